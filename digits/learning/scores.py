"""What is measured of a trained network, as the files under metrics/ have it, and how sure it is; without torch."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from digits.images.severities import SEVERITIES

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ORIGINAL = "validation images"
SUSPECT = 0.05  # a mistake made with more confidence than this share of the correct answers is worth a look


def wilson(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; z = 1.96 for 95 % (E. B. Wilson, 1927, JASA 22)."""
    share, spread = correct / count, z * z / count
    center = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / count / 4) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)  # rounding may leave 0 … 1


def margin(first: float, second: float, count: int, z: float = 1.959964) -> float:
    """Return how far apart two accuracies, on `count` images each, must be for chance to be unlikely (5 %).

    The two-proportion z-test with unpooled variance, for different images; `significance.paired` is for the same ones.
    """
    return z * math.sqrt((first * (1 - first) + second * (1 - second)) / count)


@dataclass(frozen=True)
class Calibrated:
    """Scores of the exported model, whose logits are divided by a temperature that was fit on the validation split."""

    temperature: float
    loss: float
    calibration_error: float


@dataclass(frozen=True)
class Reviewed:
    """Scores without the images whose labels people rejected (`datasets.Dataset.rejected`)."""

    accuracy: float
    errors: int
    count: int


@dataclass(frozen=True)
class Scores:
    """The content of metrics/test.json: accuracy with Wilson's 95 % interval, loss in nats, F1 averaged over classes.

    `recall` is by label; it and F1 leave out classes of which the split has no image. `reviewed` is left out of the
    file for data whose labels nobody has reviewed.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    errors: int
    count: int
    loss: float
    calibration_error: float
    macro_f1: float
    calibrated: Calibrated
    recall: dict[str, float]
    reviewed: Reviewed | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Robustness:
    """Accuracy on `count` images and on the same ones corrupted, by kind and in the order of severity.

    `confidence` has the `QUANTILES` of confidence, calibrated, by kind of meaningless input, and of the images.
    """

    count: int
    accuracy: float
    corrupted: dict[str, list[float]]
    confidence: dict[str, list[float]]

    def rows(self) -> list[dict[str, float]]:
        """Return the accuracies as rows of a table: a column for each kind, a row for each severity from 0 (as is)."""
        rows = [{"severity": 0, **dict.fromkeys(self.corrupted, self.accuracy)}]
        for place, severity in enumerate(SEVERITIES):
            found = {kind: accuracies[place] for kind, accuracies in self.corrupted.items()}
            rows.append({"severity": severity, **found})
        return rows


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
    pair: list[str]
    pair_errors: int
    weakest: str
    weakest_count: int
    weakest_recall: float
    suspects: list[int]
    robustness: Robustness
