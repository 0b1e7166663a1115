"""Predictions -> numbers. All of them count every image once; none averages over batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from digits.files import write_table
from digits.images.batches import to_float
from digits.images.splits import Split
from digits.learning import runtime
from digits.learning.scores import Calibrated, Reviewed, Scores, wilson


@dataclass(frozen=True)
class Predictions:
    """What a network says of a split. `logits`: float32 [n, classes], in the order of the split, on the CPU."""

    split: Split
    logits: Tensor

    @cached_property
    def _likeliest(self) -> tuple[Tensor, Tensor]:
        confidence, predicted = self.logits.double().softmax(dim=1).max(dim=1)
        return confidence, predicted

    @property
    def confidence(self) -> Tensor:
        """The probability of each predicted class, float64 [n]."""
        return self._likeliest[0]

    @property
    def predicted(self) -> Tensor:
        """The likeliest class of each image, int64 [n]."""
        return self._likeliest[1]

    @property
    def correct(self) -> Tensor:
        """Whether each image is classified correctly, bool [n]."""
        return self.predicted == self.split.labels

    @property
    def accuracy(self) -> float:
        """Correct images over all images."""
        return int(self.correct.sum()) / len(self.split)

    def write(self, path: Path) -> None:
        """Write the class and the predicted class of each image as CSV, in the order of the split."""
        names = self.split.classes
        pairs = zip(self.split.labels.tolist(), self.predicted.tolist(), strict=True)
        rows = ({"actual": names[actual], "predicted": names[predicted]} for actual, predicted in pairs)
        write_table(path, ("actual", "predicted"), rows)


@torch.inference_mode()
def predict(
    network: nn.Module, split: Split, batch_size: int, device: torch.device, precision: torch.dtype = torch.float32
) -> Predictions:
    """Classify every image of `split`; the network's mode stays as it was."""
    was_training = network.training
    network.eval()
    logits = torch.empty(0)
    for place in range(0, len(split), batch_size):
        # To the device batch by batch, whose memory need not hold all images.
        images = to_float(split.images[place : place + batch_size].to(device))
        with runtime.autocast(device, precision):
            found = network(images)
        if not place:  # in one piece: small ones between the batches fragment the heap, at 3 kB an image
            logits = torch.empty(len(split), found.shape[1], device=device)
        logits[place : place + batch_size] = found
    network.train(was_training)
    return Predictions(split, logits.cpu())


@torch.inference_mode()
def features(network: nn.Module, split: Split, batch_size: int, device: torch.device) -> Tensor:
    """Return what the last linear layer of a network (in evaluation mode) is given for each image.

    Float32 [n, width], on the CPU. Of an ensemble, that of its last member; without a linear layer, the logits.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    seen: list[Tensor] = []
    handle = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].cpu())) if linear else None
    found = []
    for images in split.images.split(batch_size):
        seen.clear()
        logits: Tensor = network(to_float(images.to(device)))
        found.append(seen[0] if seen else logits.cpu())
    if handle:
        handle.remove()
    return torch.cat(found)


def principal_components(features: Tensor, count: int) -> Tensor:
    """Return features [n, width] along the directions in which they vary most, float64 [n, count] (PCA)."""
    centered = features.double() - features.double().mean(dim=0)
    _, directions = torch.linalg.eigh(centered.T @ centered)
    chosen = directions[:, -count:].flip(1)
    signs = chosen.gather(0, chosen.abs().argmax(dim=0, keepdim=True)).sign()  # of which eigh leaves either open
    found: Tensor = centered @ (chosen * signs)
    return found


def score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return mean cross-entropy (nats) and accuracy of logits [n, classes] against labels [n]."""
    loss = functional.cross_entropy(logits.double(), labels)
    return float(loss), int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def confusion(predictions: Predictions) -> Tensor:
    """Return counts [classes, classes], int64: rows are true classes, columns predicted ones."""
    classes = len(predictions.split.classes)
    places = predictions.split.labels * classes + predictions.predicted
    return torch.bincount(places, minlength=classes * classes).view(classes, classes)


def recall(confusion: Tensor) -> Tensor:
    """Return the share of each class that is found, float64 [classes], 0 of an empty one, from a confusion matrix."""
    return confusion.diag().double() / confusion.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class Reliability:
    """Predictions in equal-width bins of confidence: count, mean confidence and accuracy of each, [bins]; empty: 0.

    `error` is the expected calibration error (Guo et al., 2017, ICML): the gap between confidence and accuracy,
    averaged over the bins by their counts.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor
    error: float


def reliability(predictions: Predictions, bins: int) -> Reliability:
    """Sort predictions into bins of confidence."""
    place = (predictions.confidence * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(place, minlength=bins)
    filled = counts.clamp(min=1)
    confidence = torch.bincount(place, weights=predictions.confidence, minlength=bins) / filled
    accuracy = torch.bincount(place, weights=predictions.correct.double(), minlength=bins) / filled
    error = float((counts * (confidence - accuracy).abs()).sum()) / len(predictions.split)
    return Reliability(counts, confidence, accuracy, error)


def temperature(predictions: Predictions) -> float:
    """Return the number to divide logits by so that confidence agrees with accuracy: temperature scaling (Guo et al.).

    It minimizes the cross-entropy of these predictions, which is convex in 1 / temperature: its slope is bisected.
    Between 1 / 20 and 20, since there is no minimum where no prediction is wrong; rounded to 4 digits.
    """
    logits = predictions.logits.double()
    answers = logits.gather(1, predictions.split.labels.unsqueeze(1)).squeeze(1)
    low, high = -math.log(20), math.log(20)
    for _ in range(40):
        middle = (low + high) / 2
        expected = (functional.softmax(logits * math.exp(middle), dim=1) * logits).sum(dim=1)
        low, high = (low, middle) if float((expected - answers).mean()) > 0 else (middle, high)
    return float(f"{math.exp(-(low + high) / 2):.4g}")


def calibrated(predictions: Predictions, temperature: float) -> Predictions:
    """Return the same predictions with their logits divided by a temperature."""
    return Predictions(predictions.split, predictions.logits / temperature)


def scores(predictions: Predictions, bins: int, temperature: float = 1.0, rejected: Sequence[int] = ()) -> Scores:
    """Return the scores of predictions.

    `bins` as for `reliability`; `temperature` is that of the exported model; `rejected` are indices of images whose
    labels are wrong.
    """
    labels, count = predictions.split.labels, len(predictions.split)
    loss, accuracy = score(predictions.logits, labels)
    matrix = confusion(predictions).double()
    hits, actual, guessed = matrix.diag(), matrix.sum(dim=1), matrix.sum(dim=0)
    present = actual > 0
    errors = count - int(hits.sum())
    low, high = wilson(count - errors, count)
    scaled = calibrated(predictions, temperature)
    return Scores(
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        errors=errors,
        count=count,
        loss=loss,
        calibration_error=reliability(predictions, bins).error,
        macro_f1=float((2 * hits / (actual + guessed).clamp(min=1))[present].mean()),
        calibrated=Calibrated(temperature, score(scaled.logits, labels)[0], reliability(scaled, bins).error),
        recall={str(label): float(share) for label, share in enumerate(recall(matrix)) if present[label]},
        reviewed=_without(predictions, rejected) if rejected else None,
    )


def _without(predictions: Predictions, rejected: Sequence[int]) -> Reviewed:
    kept = torch.ones_like(predictions.correct)
    kept[list(rejected)] = False
    errors, count = int((~predictions.correct & kept).sum()), int(kept.sum())
    return Reviewed(1 - errors / count, errors, count)
