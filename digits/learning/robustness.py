"""How a network does on images unlike those it was trained on: corrupted ones, and ones that show no class at all."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from digits.images.corruptions import CORRUPTIONS, SEVERITIES, corrupt, meaningless
from digits.images.splits import Split, stratified
from digits.learning import evaluation
from digits.learning.streams import generator

SAMPLE = 500  # images: each of the 40 corruptions costs a pass over them
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ORIGINAL = "validation images"


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


def measure(network: nn.Module, split: Split, temperature: float, batch_size: int, device: torch.device) -> Robustness:
    """Measure it on a sample of `split`, stratified and always the same; `temperature` is the network's."""
    if len(split) > SAMPLE:
        split = split[stratified(split.labels, SAMPLE, generator(0, "robustness"))[1]]

    def predict(images: Tensor) -> evaluation.Predictions:
        return evaluation.predict(network, Split(images, split.labels, split.classes), batch_size, device)

    def quantiles(found: evaluation.Predictions) -> list[float]:
        confidence = evaluation.calibrated(found, temperature).confidence
        return confidence.quantile(torch.tensor(QUANTILES, dtype=confidence.dtype)).tolist()

    original = predict(split.images)
    corrupted = {
        kind: [predict(corrupt(split.images, kind, severity)).accuracy for severity in SEVERITIES]
        for kind in CORRUPTIONS
    }
    confidence = {kind: quantiles(predict(images)) for kind, images in meaningless(split.images).items()}
    return Robustness(len(split), original.accuracy, corrupted, {ORIGINAL: quantiles(original), **confidence})
