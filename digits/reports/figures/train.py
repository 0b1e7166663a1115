"""The learning curve, for train."""

from collections.abc import Sequence
from pathlib import Path

from digits.learning.curve import Epoch
from digits.reports.figures.style import BLUE, GREY, ORANGE, error_rates, percent, saved, whole_numbers


def curve(epochs: Sequence[Epoch], path: Path) -> None:
    """Show loss, error rate and learning rate by epoch.

    Error rate (1 - accuracy) and not accuracy, on a logarithmic axis: from 99.0 to 99.5 % is half the errors.
    """
    numbers = [epoch.epoch for epoch in epochs]
    with saved(path, 12, 3.6) as figure:
        loss, error, rate = figure.subplots(1, 3)
        for part, color in (("train", BLUE), ("validation", ORANGE)):
            loss.plot(numbers, [getattr(epoch, f"{part}_loss") for epoch in epochs], "o-", color=color, label=part)
            rates = error_rates(getattr(epoch, f"{part}_accuracy") for epoch in epochs)
            error.plot(numbers, rates, "o-", color=color, label=part)
        drawn = [float(value) for line in error.lines for value in line.get_ydata()]
        error.set_ylim(min(drawn) / 1.3, max(drawn) * 1.3)
        rate.plot(numbers, [epoch.learning_rate for epoch in epochs], "o-", color=GREY)
        loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
        error.set(title="Error rate", xlabel="epoch", ylabel="1 - accuracy", yscale="log")
        percent(error.yaxis)
        rate.set(title="Learning rate", xlabel="epoch", ylabel="at the end of the epoch", ylim=(0, None))
        for axes in (loss, error):
            axes.legend()
        for axes in (loss, error, rate):
            whole_numbers(axes.xaxis)
