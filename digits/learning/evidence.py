"""What is measured of a trained network beyond its scores, as evidence for what to try next."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from digits.images.batches import augment, to_float
from digits.images.splits import BLOCK, Split
from digits.learning import curve, evaluation

SHIFT, ROTATION = 2.0, 15.0  # pixels and degrees by which images are moved to see how much accuracy that costs
SUSPECT = 0.05  # a mistake made with more confidence than this share of the correct answers is worth a look


@dataclass(frozen=True)
class Evidence:
    """The content of metrics/evidence.json.

    All of it but `suspects`, indices of test images, is measured on the validation split, so that following a piece of
    advice does not fit the test set. `last_gain` is how much the validation loss fell in the last epoch.
    """

    classes: int
    count: int
    errors: int
    accuracy: float
    train_accuracy: float
    epochs: int
    best_epoch: int
    last_gain: float
    lowest_loss: float
    last_loss: float
    calibration_error: float
    confidence: float
    pair: list[str]
    pair_errors: int
    weakest: str
    weakest_count: int
    weakest_recall: float
    shifted_accuracy: float
    rotated_accuracy: float
    suspects: list[int]


def collect(
    network: nn.Module,
    validation: evaluation.Predictions,
    test: evaluation.Predictions,
    epochs: Sequence[curve.Epoch],
    train: curve.TrainMetrics,
    bins: int,
    batch_size: int,
    device: torch.device,
) -> Evidence:
    """Measure what the advice goes by."""
    split, scores = validation.split, evaluation.scores(validation, bins)
    mistakes = evaluation.confusion(validation).fill_diagonal_(0)
    pairs = (mistakes + mistakes.T).triu()
    worst = int(pairs.argmax())
    recall = {int(label): share for label, share in scores.recall.items()}
    weakest = min(recall, key=recall.__getitem__)
    right = validation.confidence[validation.correct]
    sure = float(right.quantile(SUSPECT)) if len(right) else 1.0
    order = test.confidence.argsort(descending=True, stable=True)
    losses = [epoch.validation_loss for epoch in epochs]
    return Evidence(
        classes=len(split.classes),
        count=len(split),
        errors=scores.errors,
        accuracy=scores.accuracy,
        train_accuracy=train.train_accuracy,
        epochs=len(epochs),
        best_epoch=losses.index(min(losses)) + 1,
        last_gain=losses[-2] - losses[-1] if len(losses) > 1 else 0.0,
        lowest_loss=min(losses),
        last_loss=losses[-1],
        calibration_error=scores.calibration_error,
        confidence=float(validation.confidence.mean()),
        pair=[split.classes[worst // len(pairs)], split.classes[worst % len(pairs)]],
        pair_errors=int(pairs.max()),
        weakest=split.classes[weakest],
        weakest_count=int((split.labels == weakest).sum()),
        weakest_recall=recall[weakest],
        shifted_accuracy=moved_accuracy(network, split, batch_size, device, shift=SHIFT),
        rotated_accuracy=moved_accuracy(network, split, batch_size, device, rotation=ROTATION),
        suspects=order[((test.confidence >= sure) & ~test.correct)[order]].tolist(),
    )


def moved_accuracy(network: nn.Module, split: Split, batch_size: int, device: torch.device, **amount: float) -> float:
    """Return the accuracy on images that are all moved by `amount` (as for `augment`), the mean of both directions."""
    names = ("rotation", "scale", "shear", "shift", "shift")  # what each of the draws is for
    amounts = {"rotation": 0.0, "scale": 0.0, "shift": 0.0, "shear": 0.0} | amount

    def moved(images: Tensor, direction: float) -> Tensor:
        draws = torch.tensor([[direction if name in amount else 0.5] for name in names]).expand(-1, len(images))
        return (augment(to_float(images), draws, **amounts) * 255).round().to(torch.uint8)

    found = []
    for direction in (0.0, 1.0):
        images = torch.cat([moved(part, direction) for part in split.images.split(BLOCK)])
        predictions = evaluation.predict(network, Split(images, split.labels, split.classes), batch_size, device)
        found.append(float(predictions.correct.double().mean()))
    return sum(found) / 2
