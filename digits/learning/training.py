"""One training run, as a generator of epochs.

The data set is one tensor on the device and a batch is an index slice of it, so that no time goes into loading: MNIST
is 47 MB. Loss: cross-entropy, the negative log-likelihood of the true class under the softmax of the logits.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from digits import paths
from digits.errors import UserError, reason
from digits.files import digest, read_as
from digits.images.batches import augment, batches, order, order_with_hard, to_float
from digits.images.splits import Split
from digits.images.statistics import Statistics
from digits.learning import checkpoints, curve, distributed, evaluation, networks, runtime, streams
from digits.learning.description import Description
from digits.params import Params, TrainParams


@dataclass
class Progress:
    """How far a training has come: finished epochs, steps of the current one, the best weights so far if wanted.

    `order` has the images of the current epoch; `losses` is a running mean for each, where hard ones are looked for.
    """

    losses: Tensor
    epochs: list[curve.Epoch] = field(default_factory=list)
    step: int = 0
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    best: float = -1.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return vars(self) | {"epochs": [asdict(epoch) for epoch in self.epochs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.keys() != vars(self).keys():
            raise KeyError("progress")
        losses, epochs = state["losses"].to(self.losses.device), [curve.Epoch(**epoch) for epoch in state["epochs"]]
        vars(self).update(state | {"losses": losses, "epochs": epochs})


class Training:
    """A training of `network` in place on `device`: `for epoch in training.epochs(): …`.

    `p` sets seed, train, augmentation and runtime.batch_size, the number of images at once where nothing is learned.
    With a `precision` of bfloat16, products are computed in it; weights, their updates and sums stay float32.
    """

    def __init__(
        self,
        network: nn.Module,
        learned: Split,
        held_out: Split,
        p: Params,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        pixels: Statistics | None = None,
    ) -> None:
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks this form
        self.network, self.precision, self._p, self._device = network, precision, p, device
        self.background, self._ink = (pixels.background, pixels.ink) if pixels else (0.0, True)
        sample = torch.randperm(len(learned), generator=streams.generator(p.seed, "sample"))[: len(held_out)]
        self._sample, self._held_out, self._learned = learned[sample], held_out, learned.to(device)
        self._optimizer = optimizer_of(network, p.train)
        update = get_ema_multi_avg_fn(p.train.ema)
        self._average = AveragedModel(network, multi_avg_fn=update, use_buffers=True) if p.train.ema else None
        self._final: nn.Module = self._average.module if self._average else network  # what is measured, and kept
        self._progress = Progress(torch.zeros(len(learned) if p.train.hard_examples else 0, device=device))
        self._per_epoch = len(batches(torch.arange(len(learned)), p.train.batch_size))
        self._steps = p.train.epochs * self._per_epoch

    def epochs(self, checkpoint: checkpoints.Checkpoint | None = None) -> Iterator[curve.Epoch]:
        """Yield each epoch's result, with the network as it then is.

        When the generator ends, the network has the weights that `train.keep` and `train.ema` ask for. With a
        `checkpoint` the whole state is saved now and then, and a saved one is resumed: its epochs are yielded again,
        and everything after is as if there had been no break, bit for bit. Raises UserError if the loss is not finite.
        """
        self._streams = streams.Streams(self._p.seed, self._device)
        progress = self._progress
        self._restore(checkpoint.load() if checkpoint else None)
        yield from progress.epochs
        # leave=None: below the bar of a search it disappears, by itself it stays.
        style: dict[str, Any] = {
            "disable": None if distributed.is_leader() else True,
            "leave": None,
            "dynamic_ncols": True,
        }
        with tqdm(total=self._steps, initial=self._done, unit="step", **style) as bar:
            while len(progress.epochs) < self._p.train.epochs:
                if not progress.step:
                    progress.order = self._order()
                for indices in batches(progress.order, self._p.train.batch_size)[progress.step :]:
                    loss = self._learn(indices)
                    progress.step += 1
                    bar.update()
                    if self._done % 50 == 0:  # reading the loss waits for the device
                        bar.set_postfix_str(f"batch loss {loss.item():.3f}")
                    if checkpoint and checkpoint.due():
                        checkpoint.save({name: part.state_dict() for name, part in self._parts.items()})
                progress.epochs.append(self._measure())
                progress.step = 0
                bar.set_postfix_str(f"validation loss {progress.epochs[-1].validation_loss:.4f}")
                yield progress.epochs[-1]
        if progress.best_weights or self._average:
            self.network.load_state_dict(progress.best_weights or self._final.state_dict())

    @property
    def _done(self) -> int:
        return len(self._progress.epochs) * self._per_epoch + self._progress.step

    @property
    def _parts(self) -> dict[str, Any]:
        """All that changes while the network learns, by its name in a checkpoint."""
        parts: dict[str, Any] = {"network": self.network, "optimizer": self._optimizer, "streams": self._streams}
        return parts | {"progress": self._progress} | ({"average": self._average} if self._average else {})

    def _restore(self, state: dict[str, Any] | None) -> None:
        if state := distributed.agree(state):
            try:
                for name, part in self._parts.items():
                    part.load_state_dict(state[name])
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                where = f"{checkpoints.folder()}: has a forged checkpoint of this training"
                raise UserError(f"{where} ({reason(error, 80)}); delete it") from None
            if distributed.is_leader():
                tqdm.write(f"resumed after step {self._done} of {self._steps}")

    def _order(self) -> Tensor:
        """Return the images of an epoch in the order in which they are learned.

        After the warm-up, and not before the second epoch, hard examples come up twice (after Loshchilov and Hutter,
        2015, arXiv:1511.06343).
        """
        train, done = self._p.train, len(self._progress.epochs)
        if not train.hard_examples or done < max(1, train.warmup * train.epochs):
            return order(len(self._learned), self._streams.order)
        return order_with_hard(self._progress.losses, train.hard_examples, self._streams.order)

    def _learn(self, indices: Tensor) -> Tensor:
        """Take one step on a batch, and return its loss."""
        train = self._p.train
        for group in self._optimizer.param_groups:
            group["lr"] = train.learning_rate * _factor(self._done, self._steps, train)
        part = distributed.begin_batch(len(indices))
        draws = torch.rand(5, len(indices), generator=self._streams.augmentation)[:, part]
        indices = indices.to(self._device)
        mine = indices[part]
        amounts = self._p.augmentation.model_dump()
        images = augment(to_float(self._learned.images[mine]), draws, **amounts, background=self.background)
        with runtime.autocast(self._device, self.precision):
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        losses = losses_of(logits, self._learned.labels[mine], train.label_smoothing)
        if train.hard_examples:
            found = distributed.of_batch(losses.detach().mean(dim=1))
            self._progress.losses[indices] = self._progress.losses[indices].lerp(found, 0.5)
        loss = losses.sum() / len(indices)
        self._optimizer.zero_grad()
        loss.backward()
        distributed.sum_gradients(self.network)
        self._optimizer.step()
        if self._average:
            self._average.update_parameters(self.network)
        return loss

    def _measure(self) -> curve.Epoch:
        """Measure the network at the end of an epoch, and keep its weights if it is the best so far."""
        progress, train = self._progress, self._p.train
        (train_loss, train_accuracy, _), (loss, accuracy, answers) = map(self._score, (self._sample, self._held_out))
        if not math.isfinite(loss) or (self._is_last and self._is_guessing(loss, accuracy, answers)):
            knob, value = "learning_rate", train.learning_rate
            if value < 10 and value * train.weight_decay > 0.1:  # each step shrinks the weights by this share
                knob, value = "weight_decay", train.weight_decay
            where = f"params.yaml: train.{knob}: training diverged in epoch {len(progress.epochs) + 1}"
            raise UserError(f"{where} (validation loss {loss:.4g}, accuracy {accuracy:.2%}); try less than {value:g}")
        if accuracy > progress.best:
            progress.best = accuracy
            if train.keep == "best":
                progress.best_weights = {key: value.clone() for key, value in self._final.state_dict().items()}
        rate = self._optimizer.param_groups[0]["lr"]
        return curve.Epoch(len(progress.epochs) + 1, train_loss, loss, train_accuracy, accuracy, rate)

    @property
    def _is_last(self) -> bool:
        return len(self._progress.epochs) + 1 == self._p.train.epochs

    def _is_guessing(self, loss: float, accuracy: float, answers: int) -> bool:
        """Say whether a network that still answers has lost all that it learned.

        It is right no more often than by chance, and gives all images one class, or is sure of wrong ones.
        """
        shares = torch.bincount(self._held_out.labels).double() / len(self._held_out)
        most, guessing = float(shares.max()), float(torch.special.entr(shares).sum())
        chance = most + 3 * math.sqrt(most * (1 - most) / len(self._held_out))
        return accuracy <= chance and (loss > 4 * guessing or (loss > 0.98 * guessing and answers == 1))

    def _score(self, split: Split) -> tuple[float, float, int]:
        """Return loss and accuracy on a split, and how many different classes are answered."""
        # An epoch that may be kept is measured as evaluate will: in bfloat16, an image or two come out differently.
        precision = torch.float32 if self._is_last or self._p.train.keep == "best" else self.precision
        found = evaluation.predict(self._final, split, self._p.runtime.batch_size, self._device, precision)
        return *evaluation.score(found.logits, split.labels), len(found.logits.argmax(dim=1).unique())

    def metrics(self) -> curve.TrainMetrics:
        """Return what the finished training came to."""
        epochs = self._progress.epochs
        kept = epochs[-1] if self._p.train.keep == "last" else max(epochs, key=lambda epoch: epoch.validation_accuracy)
        figures = kept.train_loss, kept.validation_loss, kept.train_accuracy, kept.validation_accuracy
        return curve.TrainMetrics(*figures, len(epochs), kept.epoch, networks.count_parameters(self.network))

    def description(self, data: dict[str, str], code: dict[str, str]) -> Description:
        """Return what determines the trained weights: network, params, and the MD5s of `data` and `code` by path."""
        p = self._p
        shaping = p.model_dump(include={"recipe", "seed", "train", "augmentation"})
        shaping["runtime"] = p.runtime.model_dump(include={"threads", "processes", "reproducibility"})
        shaping["runtime"]["precision"] = runtime.name_of(self.precision)
        classes = list(self._learned.classes)
        shape = self._learned.shape
        return Description(p.model.name, classes, p.model.knobs(), shaping, data, digest(code), shape, self._ink)


def begin(p: Params, learned: Split, held_out: Split, device: torch.device) -> Training:
    """Return the training that params.yaml describes, its network new."""
    pixels = read_as(Statistics, paths.DATASET_METRICS)
    torch.manual_seed(streams.derive(p.seed, "weights"))
    knobs, shape = p.model.knobs(), learned.shape
    network = networks.build(p.model.name, len(learned.classes), knobs, shape, pixels.pixel_mean, pixels.pixel_std)
    return Training(network, learned, held_out, p, device, runtime.precision_of(p.runtime, device), pixels)


def augmented(learned: Split, p: Params, versions: int, background: float | list[float]) -> list[Tensor]:
    """Return one image of each of the first 20 classes, and `versions` of them as training augments them.

    Each [classes, channels, side, side].
    """
    present = learned.labels.unique()[:20]
    first = torch.stack([(learned.labels == label).nonzero()[0, 0] for label in present])
    images, random = to_float(learned.images[first]), streams.generator(p.seed, "augmentation")
    draws = (torch.rand(5, len(images), generator=random) for _ in range(versions))
    amounts = p.augmentation.model_dump()
    return [images, *(augment(images, draw, **amounts, background=background) for draw in draws)]


def losses_of(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Return the cross-entropy of each image, [n, 1], or for an ensemble's logits, of each member, [n, members]."""
    members = logits.shape[1] if logits.ndim == 3 else 1
    flat, labels = logits.float().flatten(0, -2), labels.repeat_interleave(members)
    losses = functional.cross_entropy(flat, labels, label_smoothing=label_smoothing, reduction="none")
    return losses.view(-1, members)


def optimizer_of(network: nn.Module, train: TrainParams) -> torch.optim.Optimizer:
    """Return the optimizer that `train` names. Raises ValueError for an unknown one."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim == 1]  # biases and batch norm
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if train.optimizer == "sgd":
        nesterov = train.momentum > 0
        return torch.optim.SGD(groups, train.learning_rate, momentum=train.momentum, nesterov=nesterov, fused=True)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, train.learning_rate, betas=(train.momentum, 0.999), fused=True)
    raise ValueError(f"unknown optimizer {train.optimizer!r}")


def _factor(step: int, steps: int, train: TrainParams) -> float:
    """Return the share of the peak learning rate: linear up over the warm-up, then down to 0 as `schedule` says."""
    # Half a step in, so that neither the first nor the last step is wasted on a learning rate of 0.
    peak, place = train.warmup * steps, step + 0.5
    if place < peak:
        return place / peak
    left = (steps - place) / (steps - peak)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[train.schedule]
