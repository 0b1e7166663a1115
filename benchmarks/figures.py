"""The picture of `python -m benchmarks.accuracy`: validation error over time."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.ticker import FuncFormatter, NullLocator

from digits.reports.figures.style import error_rates, percent, saved


def error_over_seconds(
    curves: dict[str, list[list[tuple[float, float]]]], targets: Sequence[float], path: Path
) -> None:
    """Show validation error by seconds of training: a thin line per training, a thick one for their median.

    `curves` is, by contestant, a list of trainings, each a list of (seconds, accuracy) measured after the same steps;
    `targets` are accuracies, drawn as dotted lines.
    """
    # Five that the color-blind tell apart (Okabe and Ito, 2008, "Color Universal Design").
    colors = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7")
    with saved(path, 9, 5) as figure:
        axes = figure.subplots()
        for place, (name, trainings) in enumerate(curves.items()):
            color, middle = colors[place % len(colors)], []
            for training in trainings:
                seconds, accuracies = zip(*training, strict=True)
                axes.plot(seconds, error_rates(accuracies), color=color, alpha=0.3, linewidth=0.8)
            for points in zip(*trainings, strict=False):  # as far as all of them go
                seconds, accuracies = zip(*points, strict=True)
                middle.append((median(seconds), *error_rates([median(accuracies)])))
            axes.plot(*zip(*middle, strict=True), color=color, linewidth=2, label=f"{name} ({len(trainings)})")
        for target in targets:
            axes.axhline(1 - target, color="black", linewidth=0.8, linestyle=":")
            axes.annotate(
                f"{100 * target:g} %", (1, 1 - target), xycoords=("axes fraction", "data"), va="bottom", ha="right"
            )
        axes.set(
            title="Validation error by seconds of training (number of trainings in parentheses)",
            xlabel="seconds of training",
            ylabel="1 - accuracy",
            xscale="log",
            yscale="log",
        )
        axes.set_ylim(top=0.3)
        axes.set_yticks([0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003])
        percent(axes.yaxis)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axes.legend(loc="lower left")
