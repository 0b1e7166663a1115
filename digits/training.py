"""One training run, as a generator of epoch results.

The data set lives as one tensor on the device and a batch is an index slice of it, so that no time goes into loading:
MNIST is 47 MB. Loss: cross-entropy, the negative log-likelihood of the true class under the softmax of the logits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from digits import evaluation
from digits.command import UserError
from digits.data import Split, augment, batches, to_float
from digits.params import AugmentationParams, TrainParams
from digits.runtime import derive, generator


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
) -> Iterator[Epoch]:
    """Train `network` in place on `device`; after each epoch give its result, with the network as it then is.

    When the generator ends, the network holds the weights that `train.keep` asks for. `batch_size` is the number of
    images at once where nothing is learned. Every draw but dropout's comes from a generator of its own.
    Raises UserError if the loss is no longer finite.
    """
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks this form
    sample = training[torch.randperm(len(training), generator=generator(seed, "sample"))[: len(validation)]]
    training = training.to(device)
    order, distortion = generator(seed, "order"), generator(seed, "augmentation")
    torch.manual_seed(derive(seed, "dropout"))  # dropout can only draw from the global generator
    steps = train.epochs * len(batches(len(training), train.batch_size, torch.Generator()))
    optimizer, schedule = _optimizer(network, train, steps)

    best, kept = -1.0, {}
    with tqdm(total=steps, unit="step", disable=None, dynamic_ncols=True) as bar:
        for epoch in range(1, train.epochs + 1):
            network.train()
            for indices in batches(len(training), train.batch_size, order):
                indices = indices.to(device)
                images = augment(
                    to_float(training.images[indices]), **augmentation.model_dump(), generator=distortion
                ).contiguous(memory_format=torch.channels_last)
                loss = functional.cross_entropy(
                    network(images), training.labels[indices], label_smoothing=train.label_smoothing
                )
                optimizer.zero_grad()
                loss.backward()
                learning_rate = float(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
                bar.update()
                if bar.n % 50 == 0:  # reading the loss waits for the device
                    bar.set_postfix_str(f"loss {loss.item():.3f}, validation {max(best, 0):.2%}")
            train_loss, train_accuracy = _measure(network, sample, batch_size, device)
            validation_loss, validation_accuracy = _measure(network, validation, batch_size, device)
            if not math.isfinite(validation_loss):
                raise UserError(
                    f"params.yaml: train.learning_rate: training diverged in epoch {epoch} (validation loss "
                    f"{validation_loss}); try less than {train.learning_rate:g}"
                )
            if validation_accuracy > best:
                best = validation_accuracy
                if train.keep == "best":
                    kept = {key: value.clone() for key, value in network.state_dict().items()}
            yield Epoch(epoch, train_loss, validation_loss, train_accuracy, validation_accuracy, learning_rate)
    if kept:
        network.load_state_dict(kept)


def _measure(network: nn.Module, split: Split, batch_size: int, device: torch.device) -> tuple[float, float]:
    return evaluation.score(evaluation.predict(network, split, batch_size, device), split.labels)


def _optimizer(
    network: nn.Module, train: TrainParams, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Give the optimizer, and the schedule that is stepped once a batch: linear up to the peak, linear down to 0."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim == 1]  # biases and batch norm
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if train.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            groups, train.learning_rate, momentum=train.momentum, nesterov=train.momentum > 0, fused=True
        )
    else:
        optimizer = torch.optim.AdamW(groups, train.learning_rate, betas=(train.momentum, 0.999), fused=True)
    peak = train.warmup * steps

    def factor(step: int) -> float:
        # Half a step in, so that neither the first nor the last step is wasted on a learning rate of 0.
        place = min(step + 0.5, steps - 0.5)
        return place / peak if place < peak else (steps - place) / (steps - peak)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
