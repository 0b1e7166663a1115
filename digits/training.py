"""One training run, as a generator of epoch results.

The data set lives as one tensor on the device and a batch is an index slice of it, so that no time goes into loading:
MNIST is 47 MB. Loss: cross-entropy, the negative log-likelihood of the true class under the softmax of the logits.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from digits import distributed, evaluation, runtime
from digits.checkpoints import Checkpoint
from digits.command import UserError
from digits.data import Split, augment, batches, to_float
from digits.params import AugmentationParams, TrainParams
from digits.runtime import derive, generator, random_state, restore_random_state


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; the columns of plots/training.csv.

    The two losses and accuracies are measured alike, after the epoch, in evaluation mode and without augmentation:
    on the validation split, and on a fixed sample of the training split of the same size. The gap between them is
    therefore overfitting and nothing else.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    train_accuracy: float
    validation_accuracy: float
    learning_rate: float


def fit(
    network: nn.Module,
    training: Split,
    validation: Split,
    seed: int,
    train: TrainParams,
    augmentation: AugmentationParams,
    batch_size: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    precision: torch.dtype = torch.float32,
) -> Iterator[Epoch]:
    """Train `network` in place on `device`; after each epoch give its result, with the network as it then is.

    When the generator ends, the network holds the weights that `train.keep` and `train.ema` ask for. `batch_size` is
    the number of images at once where nothing is learned. Every draw but dropout's comes from a generator of its own.
    With a `precision` of bfloat16, products are computed in it; weights, their updates and sums stay float32.
    With a `checkpoint` the whole state is saved now and then, and a saved one is gone on from: the epochs that it has
    seen are given again, and everything after is as if there had been no break, bit for bit.
    Raises UserError if the loss is no longer finite.
    """
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks this form
    sample = training[torch.randperm(len(training), generator=generator(seed, "sample"))[: len(validation)]]
    training = training.to(device)
    order, distortion = generator(seed, "order"), generator(seed, "augmentation")
    torch.manual_seed(derive(seed, "dropout"))  # dropout can only draw from the global generator
    optimizer = _optimizer(network, train)
    average = (
        AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(train.ema), use_buffers=True) if train.ema else None
    )
    final: nn.Module = average.module if average else network  # what is measured, and at last kept
    autocast = runtime.autocast(device, precision)
    per_epoch = len(batches(len(training), train.batch_size, torch.Generator()))
    steps = train.epochs * per_epoch

    epochs: list[Epoch] = []
    best, kept = -1.0, {}
    step = place = 0  # batches done: in all, and of the current epoch
    state = distributed.agree(checkpoint.load() if checkpoint else None)
    if state:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        if average:
            average.load_state_dict(state["average"])
        epochs = [Epoch(**row) for row in state["epochs"]]
        best, kept = state["best"], state["kept"]
        place = state["place"]
        step = len(epochs) * per_epoch + place
        order.set_state(state["order"])
        distortion.set_state(state["distortion"])
        restore_random_state(state["random"])
        if distributed.is_leader():
            tqdm.write(f"going on after step {step} of {steps}, the last that was saved before a break")
        yield from epochs

    silent = None if distributed.is_leader() else True
    # leave=None: under the bar of a search it goes, by itself it stays.
    with tqdm(total=steps, initial=step, unit="step", disable=silent, leave=None, dynamic_ncols=True) as bar:
        for epoch in range(len(epochs) + 1, train.epochs + 1):
            network.train()
            before_shuffle = order.get_state()
            for indices in batches(len(training), train.batch_size, order)[place:]:
                learning_rate = train.learning_rate * _factor(step, steps, train)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                part = distributed.begin_batch(len(indices))
                draws = torch.rand(5, len(indices), generator=distortion)[:, part]
                mine = indices[part].to(device)
                images = augment(to_float(training.images[mine]), draws, **augmentation.model_dump())
                with autocast:
                    logits = network(images.contiguous(memory_format=torch.channels_last))
                loss = loss_of(logits, training.labels[mine], train.label_smoothing) / len(indices)
                optimizer.zero_grad()
                loss.backward()
                distributed.sum_gradients(network)
                optimizer.step()
                if average:
                    average.update_parameters(network)
                step, place = step + 1, place + 1
                bar.update()
                if step % 50 == 0:  # reading the loss waits for the device
                    bar.set_postfix_str(f"loss {loss.item():.3f}, validation {max(best, 0):.2%}")
                if checkpoint and checkpoint.due():
                    checkpoint.save(
                        {
                            "network": network.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "average": average.state_dict() if average else {},
                            "epochs": [asdict(row) for row in epochs],
                            "best": best,
                            "kept": kept,
                            "place": place,
                            "order": before_shuffle,
                            "distortion": distortion.get_state(),
                            "random": random_state(device),
                        }
                    )
            place = 0
            train_loss, train_accuracy = _measure(final, sample, batch_size, device, precision)
            validation_loss, validation_accuracy = _measure(final, validation, batch_size, device, precision)
            if not math.isfinite(validation_loss):
                raise UserError(
                    f"params.yaml: train.learning_rate: training diverged in epoch {epoch} (validation loss "
                    f"{validation_loss}); try less than {train.learning_rate:g}"
                )
            if validation_accuracy > best:
                best = validation_accuracy
                if train.keep == "best":
                    kept = {key: value.clone() for key, value in final.state_dict().items()}
            epochs.append(
                Epoch(
                    epoch,
                    train_loss,
                    validation_loss,
                    train_accuracy,
                    validation_accuracy,
                    train.learning_rate * _factor(step - 1, steps, train),
                )
            )
            yield epochs[-1]
    if kept or average:
        network.load_state_dict(kept or final.state_dict())


def loss_of(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Give the summed cross-entropy of logits [n, classes], or those of an ensemble, [n, members, classes]."""
    if logits.ndim == 3:  # each member's loss is its own
        logits, labels = logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1])
    return functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="sum")


def _measure(
    network: nn.Module, split: Split, batch_size: int, device: torch.device, precision: torch.dtype
) -> tuple[float, float]:
    return evaluation.score(evaluation.predict(network, split, batch_size, device, precision), split.labels)


def _optimizer(network: nn.Module, train: TrainParams) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim == 1]  # biases and batch norm
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            groups, train.learning_rate, momentum=train.momentum, nesterov=train.momentum > 0, fused=True
        )
    return torch.optim.AdamW(groups, train.learning_rate, betas=(train.momentum, 0.999), fused=True)


def _factor(step: int, steps: int, train: TrainParams) -> float:
    """Give the share of the peak learning rate: linear up over the warm-up, then down to 0 as `schedule` says."""
    # Half a step in, so that neither the first nor the last step is wasted on a learning rate of 0.
    peak, place = train.warmup * steps, step + 0.5
    if place < peak:
        return place / peak
    left = (steps - place) / (steps - peak)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[train.schedule]
