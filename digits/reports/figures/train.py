"""The learning curve, for train."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from digits.learning.curve import Epoch
from digits.reports.figures.style import BLUE, GREY, ORANGE, error_rates, percent, saved, show, whole_numbers


def curve(epochs: Sequence[Epoch], path: Path) -> None:
    """Show loss, error rate and learning rate by epoch.

    Error rate (1 - accuracy) and not accuracy, on a logarithmic axis: from 99.0 to 99.5 % is half the errors.
    """
    numbers = [epoch.epoch for epoch in epochs]
    with saved(path, 9.5, 3.2) as figure:
        loss, error, rate = figure.subplots(1, 3)
        for part, color in (("train", BLUE), ("validation", ORANGE)):
            loss.plot(numbers, [getattr(epoch, f"{part}_loss") for epoch in epochs], "o-", color=color, label=part)
            rates = error_rates(getattr(epoch, f"{part}_accuracy") for epoch in epochs)
            error.plot(numbers, rates, "o-", color=color, label=part)
        drawn = [float(value) for line in error.lines for value in line.get_ydata()]
        error.set_ylim(min(drawn) / 1.3, max(drawn) * 1.3)
        rate.plot(numbers, [epoch.learning_rate for epoch in epochs], "o-", color=GREY)
        loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
        error.set(title="Error rate", xlabel="epoch", ylabel="misclassified images", yscale="log")
        percent(error.yaxis)
        rate.set(title="Learning rate", xlabel="epoch", ylabel="after the epoch", ylim=(0, None))
        for axes in (loss, error):
            axes.legend()
        for axes in (loss, error, rate):
            whole_numbers(axes.xaxis)


def augmentation(versions: Sequence[Tensor], path: Path) -> None:
    """Show the first of `versions`, images [n, 1, height, width] in 0 … 1, in a row above the others."""
    sheet = torch.cat([torch.cat(list(images), dim=2) for images in versions], dim=1)
    rows, side = len(versions), versions[0].shape[-1]
    with saved(path, 0.65 * len(versions[0]) + 1.2, 0.65 * rows + 0.5) as figure:
        axes = figure.subplots()
        show(axes, 255 * sheet)
        axes.axhline(side - 0.5, color=GREY, linewidth=0.8)
        names = ["original", *(f"version {row}" for row in range(1, rows))]
        axes.set_yticks([(row + 0.5) * side for row in range(rows)], names)
        axes.tick_params(length=0)
        axes.set_title("Training images, and how augmentation changes them anew in every epoch")
