"""How a network does on images unlike those it was trained on: corrupted ones, and ones that show no class at all."""

import torch
from torch import Tensor, nn

from digits.images.corruptions import corrupt, meaningless
from digits.images.severities import CORRUPTIONS, SEVERITIES
from digits.images.splits import Split, stratified
from digits.learning import evaluation
from digits.learning.scores import ORIGINAL, QUANTILES, Robustness
from digits.learning.streams import generator

SAMPLE = 500  # images: each of the 40 corruptions costs a pass over them


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
