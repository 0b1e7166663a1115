"""Every picture of the pipeline; the only importer of matplotlib.

Figures are drawn without a display and saved without date or version, so that equal data gives equal bytes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from torch import Tensor

from digits.data import Split
from digits.files import atomic

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
    "font.size": 10,
}


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Give a figure of `width` x `height` inches that is saved to `path` at the end, whatever the user's own style."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        layout = figure.get_layout_engine()
        assert layout
        layout.execute(figure)
        figure.set_layout_engine("none")  # else savefig draws everything twice: once for the layout
        with atomic(path) as partial:
            figure.savefig(partial, dpi=100, metadata={"Software": None})


def _show(axes: Axes, image: Tensor) -> None:
    axes.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def samples(split: Split, path: Path, columns: int = 10) -> None:
    """Show the first images of each class, a row a class."""
    rows, side = len(split.classes), split.images.shape[-1]
    sheet = torch.zeros(rows * side, columns * side, dtype=torch.uint8)  # one image: a grid of axes takes seconds
    for row in range(rows):
        first = (split.labels == row).nonzero().flatten()[:columns]
        for column, image in enumerate(split.images[first]):
            sheet[row * side : (row + 1) * side, column * side : (column + 1) * side] = image[0]
    with _figure(path, columns * 0.65 + 1, rows * 0.65 + 0.4) as figure:
        axes = figure.subplots()
        _show(axes, sheet.unsqueeze(0))
        axes.set_title(f"The first {columns} training images of each class")
        axes.set_yticks([(row + 0.5) * side for row in range(rows)], split.classes, fontsize=12)
        axes.tick_params(length=0)


def class_balance(splits: dict[str, Split], path: Path) -> None:
    """Show the share of each class in each split, side by side."""
    classes = next(iter(splits.values())).classes
    width = 0.8 / len(splits)
    with _figure(path, max(7.0, 0.6 * len(classes) + 1), 3.5) as figure:
        axes = figure.subplots()
        for place, ((name, split), colour) in enumerate(zip(splits.items(), (BLUE, ORANGE, GREY), strict=True)):
            shares = split.labels.bincount(minlength=len(classes)) / len(split)
            left = [label + (place - 1) * width for label in range(len(classes))]
            axes.bar(left, shares.tolist(), width, color=colour, label=f"{name} ({len(split):,})")
        axes.axhline(1 / len(classes), color="black", linewidth=0.8, linestyle=":", label="all classes alike")
        rotation = 30 if max(map(len, classes)) > 4 else 0
        axes.set_xticks(range(len(classes)), classes, rotation=rotation, ha="right" if rotation else "center")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(title="Class balance", ylabel="share of images")
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.25)
        axes.legend(ncols=2, loc="upper right")


def curve(columns: dict[str, Sequence[float]], path: Path) -> None:
    """Show loss, error rate and learning rate by epoch, from the columns of plots/training.csv.

    Error rate (1 - accuracy) and not accuracy, on a logarithmic axis: from 99.0 to 99.5 % is half the errors.
    """
    epochs = columns["epoch"]
    with _figure(path, 12, 3.6) as figure:
        loss, error, rate = figure.subplots(1, 3)
        for part, colour in (("train", BLUE), ("validation", ORANGE)):
            loss.plot(epochs, columns[f"{part}_loss"], "o-", color=colour, label=part)
            # Half an error in the sample stands for none, which a logarithmic axis cannot show.
            errors = [max(1 - accuracy, 1e-4) for accuracy in columns[f"{part}_accuracy"]]
            error.plot(epochs, errors, "o-", color=colour, label=part)
        drawn = [float(value) for line in error.lines for value in line.get_ydata()]
        error.set_ylim(min(drawn) / 1.3, max(drawn) * 1.3)
        rate.plot(epochs, columns["learning_rate"], "o-", color=GREY)
        loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
        error.set(title="Error rate", xlabel="epoch", ylabel="1 - accuracy", yscale="log")
        for set_formatter in (error.yaxis.set_major_formatter, error.yaxis.set_minor_formatter):
            set_formatter(FuncFormatter(lambda share, _: f"{100 * share:.2g} %"))
        rate.set(title="Learning rate", xlabel="epoch", ylabel="at the end of the epoch", ylim=(0, None))
        for axes in (loss, error):
            axes.legend()
        for axes in (loss, error, rate):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def confusion(matrix: Tensor, classes: Sequence[str], path: Path) -> None:
    """Show counts [classes, classes]; the colour shows the mistakes alone, which the diagonal would drown."""
    count, errors = int(matrix.sum()), int(matrix.sum() - matrix.diag().sum())
    mistakes = matrix.clone().fill_diagonal_(0)
    size = max(5.5, 0.5 * len(classes) + 1.5)
    with _figure(path, size, size) as figure:
        axes = figure.subplots()
        axes.imshow(mistakes.numpy(), cmap="Oranges", vmin=0, vmax=max(1, int(mistakes.max())))
        for actual, row in enumerate(matrix.tolist()):
            for predicted, number in enumerate(row):
                if number:
                    weight = "bold" if actual == predicted else "normal"
                    axes.text(predicted, actual, str(number), ha="center", va="center", fontsize=9, fontweight=weight)
        rotation = 45 if max(map(len, classes)) > 4 else 0
        axes.set_xticks(range(len(classes)), classes, rotation=rotation, ha="right" if rotation else "center")
        axes.set_yticks(range(len(classes)), classes)
        axes.set(
            title=f"Confusion on the test set: {errors} errors in {count:,}",
            xlabel="predicted class",
            ylabel="true class",
        )
        axes.grid(visible=False)


def misclassified(split: Split, confidence: Tensor, predicted: Tensor, limit: int, path: Path) -> None:
    """Show up to `limit` misclassified images, the most confident mistakes first."""
    wrong = (predicted != split.labels).nonzero().flatten()
    shown = wrong[confidence[wrong].argsort(descending=True, stable=True)][:limit]
    columns = 8
    rows = max(1, -(-len(shown) // columns))
    with _figure(path, columns * 1.1, rows * 1.35 + 0.6) as figure:
        figure.suptitle(
            f"{len(shown)} of {len(wrong)} misclassified test images: true class, prediction and confidence"
        )
        cells = figure.subplots(rows, columns, squeeze=False).flatten()
        for cell in cells[len(shown) :]:
            cell.set_axis_off()
        for cell, index in zip(cells, shown.tolist(), strict=False):
            _show(cell, split.images[index])
            actual, guess = split.classes[int(split.labels[index])], split.classes[int(predicted[index])]
            cell.set_title(f"{actual} → {guess}  {confidence[index]:.0%}", fontsize=9)


def changed(
    split: Split,
    before: Sequence[str],
    after: Sequence[str],
    groups: dict[str, list[int]],
    path: Path,
    limit: int = 24,
) -> None:
    """Show images whose prediction changed from `before` to `after`: up to `limit` of each group of indices."""
    columns = 8
    heights = {name: max(1, -(-min(len(places), limit) // columns)) for name, places in groups.items()}
    with _figure(path, columns * 1.1, sum(heights.values()) * 1.35 + 0.4 * len(groups)) as figure:
        ratios = [height + 0.3 for height in heights.values()]
        blocks = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=ratios)[:, 0]
        for block, (name, places) in zip(blocks, groups.items(), strict=True):
            block.suptitle(f"{min(len(places), limit)} of {len(places)} {name}: true class, prediction of A → of B")
            cells = block.subplots(heights[name], columns, squeeze=False).flatten()
            for cell in cells:
                cell.set_axis_off()
            for cell, index in zip(cells, places[:limit], strict=False):
                _show(cell, split.images[index])
                cell.set_axis_on()
                actual = split.classes[int(split.labels[index])]
                cell.set_title(f"{actual}: {before[index]} → {after[index]}", fontsize=9)


def search_history(trials: Sequence[tuple[int, float, bool]], path: Path) -> None:
    """Show the trials of a search: number, accuracy, and whether it came to its end; and the best until then."""
    with _figure(path, 7, 4) as figure:
        axes = figure.subplots()
        for complete, colour, label in ((True, BLUE, "complete"), (False, GREY, "given up early")):
            shown = [(number, max(1 - accuracy, 1e-4)) for number, accuracy, whole in trials if whole == complete]
            if shown:
                axes.plot(*zip(*shown, strict=True), "o", color=colour, label=label)
        best, steps = 1.0, []
        for number, accuracy, whole in sorted(trials):
            best = min(best, max(1 - accuracy, 1e-4)) if whole else best
            steps.append((number, best))
        axes.plot(
            *zip(*[step for step in steps if step[1] < 1], strict=True),
            color=ORANGE,
            drawstyle="steps-post",
            label="best",
        )
        axes.set(title="Validation error by trial", xlabel="trial", ylabel="1 - accuracy", yscale="log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(FuncFormatter(lambda share, _: f"{100 * share:.2g} %"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()


def importance(shares: dict[str, float], path: Path) -> None:
    """Show how much of the differences between trials each knob explains."""
    with _figure(path, 7, 0.35 * len(shares) + 1.2) as figure:
        axes = figure.subplots()
        names = sorted(shares, key=shares.__getitem__)
        axes.barh(names, [shares[name] for name in names], color=BLUE)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(title="What made the difference between trials (fANOVA)", xlabel="share of the variance explained")
        axes.grid(visible=False, axis="y")


def reliability(counts: Tensor, confidence: Tensor, accuracy: Tensor, error: float, path: Path) -> None:
    """Show accuracy by confidence, bin by bin, and how many predictions each bin holds (`evaluation.reliability`)."""
    bins, filled = len(counts), counts > 0
    middles = [(place + 0.5) / bins for place in range(bins)]
    with _figure(path, 5.5, 6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="perfectly calibrated")
        upper.bar(middles, accuracy.tolist(), 0.9 / bins, color="#bee3f8")
        upper.plot(confidence[filled].tolist(), accuracy[filled].tolist(), "o-", color=BLUE, label="this model")
        upper.set(title=f"Reliability: expected calibration error {error:.2%}", ylabel="accuracy", ylim=(0, 1.02))
        upper.legend()
        lower.bar(middles, counts.tolist(), 0.9 / bins, color=GREY)
        lower.set(xlabel="confidence", ylabel="images", yscale="log", xlim=(0, 1), ylim=(0.5, None))


def error_over_seconds(
    curves: dict[str, list[list[tuple[float, float]]]], targets: Sequence[float], path: Path
) -> None:
    """Show validation error by seconds of training: a thin line a training, a thick one for their median.

    `curves` has for each contestant its trainings, each a list of (seconds, accuracy) measured after the same steps;
    `targets` are accuracies, drawn as dotted lines.
    """
    # Five that the colour-blind tell apart (Okabe and Ito, 2008, "Color Universal Design").
    colours = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7")
    with _figure(path, 9, 5) as figure:
        axes = figure.subplots()
        for place, (name, trainings) in enumerate(curves.items()):
            colour, middle = colours[place % len(colours)], []
            for training in trainings:
                seconds, accuracies = zip(*training, strict=True)
                axes.plot(seconds, [max(1 - one, 1e-4) for one in accuracies], color=colour, alpha=0.3, linewidth=0.8)
            for points in zip(*trainings, strict=False):  # as far as all of them go
                seconds, accuracies = zip(*points, strict=True)
                middle.append((median(seconds), max(1 - median(accuracies), 1e-4)))
            axes.plot(*zip(*middle, strict=True), color=colour, linewidth=2, label=f"{name} ({len(trainings)})")
        for target in targets:
            axes.axhline(1 - target, color="black", linewidth=0.8, linestyle=":")
            axes.annotate(
                f"{100 * target:g} %", (1, 1 - target), xycoords=("axes fraction", "data"), va="bottom", ha="right"
            )
        axes.set(
            title="Validation error over seconds of training (in brackets: how many trainings)",
            xlabel="seconds of training",
            ylabel="1 - accuracy",
            xscale="log",
            yscale="log",
        )
        axes.set_ylim(top=0.3)
        axes.set_yticks([0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.2g} %"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axes.legend(loc="lower left")
