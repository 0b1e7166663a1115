"""The picture of `python -m benchmarks.accuracy`: validation error over time."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.ticker import FuncFormatter

from digits.files import read_table
from digits.reports.figures.style import error_rates, percent, saved

# Those that the color-blind tell apart (Okabe and Ito, 2008, "Color Universal Design"); a recipe has the same in every
# figure.
COLORS = {"quick": "#0072B2", "default": "#D55E00", "best": "#CC79A7", "tutorial": "#000000", "example": "#009E73"}


def error_over_seconds(table: Path, targets: Sequence[float]) -> None:
    """Show validation error by seconds of training, beside the table of the points: `benchmarks.probe.Point`.

    A thin line is one training, a thick one the median of a contestant's; `targets` are accuracies, drawn as dotted
    lines.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in read_table(table):
        trainings = curves.setdefault(row["contestant"], {})
        trainings.setdefault(row["seed"], []).append((float(row["seconds"]), float(row["validation_accuracy"])))
    with saved(table.with_suffix(".png"), 9, 3.6) as figure:
        axes = figure.subplots()
        for name, by_seed in curves.items():
            color, middle = COLORS[name], []
            for training in by_seed.values():
                seconds, accuracies = zip(*training, strict=True)
                axes.plot(seconds, error_rates(accuracies), color=color, alpha=0.3, linewidth=0.8)
            for points in zip(*by_seed.values(), strict=False):  # as far as all of them go
                seconds, accuracies = zip(*points, strict=True)
                middle.append((median(seconds), *error_rates([median(accuracies)])))
            axes.plot(*zip(*middle, strict=True), color=color, linewidth=2, label=f"{name} ({len(by_seed)})")
        for target in targets:
            axes.axhline(1 - target, color="black", linewidth=0.8, linestyle=":")
            axes.annotate(
                f"{100 * target:g} %", (1, 1 - target), xycoords=("axes fraction", "data"), va="bottom", ha="right"
            )
        axes.set(
            title="Validation error by seconds of training (number of trainings in parentheses)",
            xlabel="seconds of training",
            ylabel="error rate (validation images misclassified)",
            xscale="log",
            yscale="log",
        )
        axes.set_ylim(top=0.3)
        percent(axes.yaxis)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axes.legend(loc="upper right")
