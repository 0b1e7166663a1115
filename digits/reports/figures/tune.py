"""How a search went, for `python -m digits tune`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import PercentFormatter

from digits.reports.figures.style import BLUE, GREY, ORANGE, error_rates, percent, saved, whole_numbers


def search_history(trials: Sequence[tuple[int, float, bool]], path: Path) -> None:
    """Show the trials of a search (number, accuracy, whether it was completed) and the best so far."""
    with saved(path, 7, 4) as figure:
        axes = figure.subplots()
        for complete, color, label in ((True, BLUE, "complete"), (False, GREY, "pruned")):
            shown = [trial for trial in trials if trial[2] == complete]
            if shown:
                errors = error_rates(accuracy for _, accuracy, _ in shown)
                axes.plot([number for number, _, _ in shown], errors, "o", color=color, label=label)
        best, steps = 0.0, []
        for number, accuracy, whole in sorted(trials):
            best = max(best, accuracy) if whole else best
            steps += [(number, best)] if best else []
        numbers, reached = zip(*steps, strict=True)
        axes.plot(numbers, error_rates(reached), color=ORANGE, drawstyle="steps-post", label="best")
        axes.set(title="Validation error by trial", xlabel="trial", ylabel="error rate", yscale="log")
        percent(axes.yaxis)
        whole_numbers(axes.xaxis)
        axes.legend()


def importance(shares: dict[str, float], path: Path) -> None:
    """Show how much of the variance between trials each knob explains."""
    with saved(path, 7, 0.35 * len(shares) + 1.2) as figure:
        axes = figure.subplots()
        names = sorted(shares, key=shares.__getitem__)
        axes.barh(names, [shares[name] for name in names], color=BLUE)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(title="Importance of each knob (fANOVA)", xlabel="share of the variance explained")
        axes.grid(visible=False, axis="y")
