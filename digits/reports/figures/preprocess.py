"""Pictures of the data, for preprocess."""

from pathlib import Path

import torch
from matplotlib.ticker import PercentFormatter

from digits.images.splits import Split, class_means
from digits.reports.figures.style import BLUE, GREY, MANY, ORANGE, blank, label_classes, saved, show

SHOWN = 20  # classes at most where each has a picture


def _first(split: Split) -> str:
    return f" (the first {SHOWN} of {len(split.classes)})" if len(split.classes) > SHOWN else ""


def overview(splits: dict[str, Split], path: Path) -> None:
    """Show what the splits hold, in a table, and the mean image of each class of the training split."""
    header = ("split", "images", "shape of an image", "type", "pixel values", "classes")
    rows = []
    for name, split in splits.items():
        low, high = (int(edge) for edge in split.images.aminmax())
        shape, dtype = " x ".join(map(str, split.images.shape[1:])), str(split.images.dtype).removeprefix("torch.")
        rows.append([name, f"{len(split):,}", shape, dtype, f"{low} to {high}", f"{len(split.labels.unique())}"])
    train = next(iter(splits.values()))
    with saved(path, 9, 3.4) as figure:
        upper, lower = figure.subplots(2, 1, height_ratios=[1.3, 1])
        table = upper.table(rows, colLabels=header, loc="center", cellLoc="center", edges="horizontal")
        table.scale(1, 1.7)
        table.auto_set_font_size(value=False)
        table.set_fontsize(11)
        upper.set_axis_off()
        upper.set_title("The three splits")
        means = class_means(train)[:SHOWN]
        show(lower, torch.cat(list(means), dim=2))
        side, names = means.shape[-1], train.classes[:SHOWN]
        slant = {"rotation": 45, "ha": "right"} if max(map(len, names)) > 4 else {}
        lower.set_xticks([(place + 0.5) * side for place in range(len(means))], names, fontsize=11, **slant)
        lower.tick_params(length=0)
        lower.set_title(f"The mean training image of each class{_first(train)}")


def samples(split: Split, path: Path, columns: int = 10) -> None:
    """Show the first images of each class, one class per row."""
    rows, side = min(SHOWN, len(split.classes)), split.images.shape[-1]
    sheet = blank(split.images.shape[1], rows * side, columns * side)  # one image, since a grid of axes takes seconds
    for row in range(rows):
        first = (split.labels == row).nonzero().flatten()[:columns]
        for column, image in enumerate(split.images[first]):
            sheet[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = image
    with saved(path, columns * 0.65 + 1, rows * 0.65 + 0.4) as figure:
        axes = figure.subplots()
        show(axes, sheet)
        axes.set_title(f"The first {columns} training images of each class{_first(split)}")
        axes.set_yticks([(row + 0.5) * side for row in range(rows)], split.classes[:rows], fontsize=12)
        axes.tick_params(length=0)


def class_balance(splits: dict[str, Split], path: Path) -> None:
    """Show the share of each class in each split, side by side; of very many classes, those shares in rising order."""
    classes = next(iter(splits.values())).classes
    width = 0.8 / len(splits)
    if len(classes) > MANY:
        with saved(path, 7, 3.5) as figure:
            axes = figure.subplots()
            for (name, split), color in zip(splits.items(), (BLUE, ORANGE, GREY), strict=True):
                shares = split.labels.bincount(minlength=len(classes)) / len(split)
                axes.plot(shares.sort().values.tolist(), color=color, label=f"{name} ({len(split):,})")
            axes.set(
                title="Class balance", ylabel="share of images", xlabel="classes, from the smallest", ylim=(0, None)
            )
            axes.legend()
        return
    with saved(path, max(7.0, 0.6 * len(classes) + 1), 3.5) as figure:
        axes = figure.subplots()
        for place, ((name, split), color) in enumerate(zip(splits.items(), (BLUE, ORANGE, GREY), strict=True)):
            shares = split.labels.bincount(minlength=len(classes)) / len(split)
            left = [label + (place - 1) * width for label in range(len(classes))]
            axes.bar(left, shares.tolist(), width, color=color, label=f"{name} ({len(split):,})")
        axes.axhline(1 / len(classes), color="black", linewidth=0.8, linestyle=":", label="equal shares")
        label_classes(axes, classes)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(title="Class balance", ylabel="share of images")
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.25)
        axes.legend(ncols=2, loc="upper right")
