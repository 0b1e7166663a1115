"""Predictions -> numbers. All of them count every image once; none averages over batches."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from digits import runtime
from digits.data import Split, to_float


@torch.inference_mode()
def predict(
    network: nn.Module, split: Split, batch_size: int, device: torch.device, precision: torch.dtype = torch.float32
) -> Tensor:
    """Give the logits of every image, in order: float32 [n, classes] on the CPU; the mode is left as it was."""
    was_training = network.training
    network.eval()
    logits = torch.empty(0)
    for place in range(0, len(split), batch_size):
        # To the device batch by batch, whose memory need not hold all images.
        images = to_float(split.images[place : place + batch_size].to(device))
        with runtime.autocast(device, precision):
            found = network(images)
        if not place:  # in one piece: small ones between the batches break up the heap, which took 3 kB an image
            logits = torch.empty(len(split), found.shape[1], device=device)
        logits[place : place + batch_size] = found
    network.train(was_training)
    return logits.cpu()


def score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Give mean cross-entropy (nats) and accuracy of logits [n, classes] against labels [n]."""
    loss = functional.cross_entropy(logits.double(), labels)
    return float(loss), int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def wilson(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Give Wilson's score interval of a proportion; z = 1.96 for 95 % (E. B. Wilson, 1927, JASA 22)."""
    share, spread = correct / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / count / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding may leave 0 … 1


def margin(first: float, second: float, count: int, z: float = 1.959964) -> float:
    """Give how far apart two accuracies on `count` images each must be before chance is an unlikely reason (5 %).

    The two-proportion z-test with unpooled variance, for different images; `significance.paired` is for the same ones.
    """
    return z * math.sqrt((first * (1 - first) + second * (1 - second)) / count)


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Give counts [classes, classes], int64: row the true class, column the predicted one."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def reliability(confidence: Tensor, correct: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort predictions into equal-width bins of confidence: count, mean confidence and accuracy of each, [bins].

    Empty bins have 0 in all three.
    """
    place = (confidence * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(place, minlength=bins)
    filled = counts.clamp(min=1)
    mean_confidence = torch.bincount(place, weights=confidence.double(), minlength=bins) / filled
    accuracy = torch.bincount(place, weights=correct.double(), minlength=bins) / filled
    return counts, mean_confidence, accuracy


def report(logits: Tensor, labels: Tensor, bins: int) -> dict[str, Any]:
    """Give the content of metrics/test.json.

    `calibration_error` is the expected calibration error (Guo et al., 2017, ICML): the gap between confidence and
    accuracy, averaged over the bins by their counts. `macro_f1` is the mean of the classes' F1; `recall` is by label.
    """
    count, classes = logits.shape
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    loss, accuracy = score(logits, labels)
    matrix = confusion(labels, predicted, classes).double()
    hits, actual, guessed = matrix.diag(), matrix.sum(dim=1), matrix.sum(dim=0)
    errors = count - int(hits.sum())
    low, high = wilson(count - errors, count)
    counts, mean_confidence, bin_accuracy = reliability(confidence, predicted == labels, bins)
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "errors": errors,
        "count": count,
        "loss": loss,
        "calibration_error": float((counts * (mean_confidence - bin_accuracy).abs()).sum()) / count,
        "macro_f1": float((2 * hits / (actual + guessed).clamp(min=1)).mean()),
        "recall": {str(label): float(hits[label] / actual[label].clamp(min=1)) for label in range(classes)},
    }
