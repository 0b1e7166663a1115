"""What all figures share: style, saving, and how images, error rates and epochs are drawn.

Figures are drawn without a display and saved without date or version, so that equal data gives equal bytes.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from digits.files import atomic

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
MANY = 30  # classes: of more, figures show the most telling ones only
ROW = 1.17  # inches: the height of a row of `gallery` in a figure of 8.8 inches
STYLE: dict[Any, Any] = {"axes.grid": True, "axes.axisbelow": True, "grid.color": "#e2e8f0", "font.size": 10}
STYLE |= dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)


@cache
def _take_own_fonts() -> None:
    """Draw with the fonts that come with matplotlib, whatever others it has found on this machine, or has not."""
    folder, manager = Path(matplotlib.get_data_path(), "fonts/ttf"), font_manager.fontManager
    manager.ttflist = [font for font in manager.ttflist if Path(font.fname).parent == folder]
    known = {Path(font.fname) for font in manager.ttflist}
    for path in folder.glob("*.ttf"):
        if path not in known:
            manager.addfont(path)
    manager.ttflist.sort(key=lambda font: font.fname)


@contextmanager
def saved(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of `width` x `height` inches that is saved to `path` at the end, whatever the user's own style."""
    _take_own_fonts()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        layout = figure.get_layout_engine()
        assert layout
        layout.execute(figure)
        figure.set_layout_engine("none")  # or savefig draws everything twice: once for the layout
        with atomic(path) as partial:
            figure.savefig(partial, dpi=200, metadata={"Software": None})


def show(axes: Axes, image: Tensor) -> None:
    """Draw an image [channels, height, width] with values in 0 … 255: a gray one dark on white."""
    if len(image) == 1:
        axes.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    else:
        axes.imshow(image.permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def label_classes(axes: Axes, classes: Sequence[str]) -> None:
    """Name the classes along the x-axis, aslant where a name is long."""
    rotation = 45 if max(map(len, classes)) > 4 else 0
    axes.set_xticks(range(len(classes)), classes, rotation=rotation, ha="right" if rotation else "center")


def gallery(figure: Figure | SubFigure, rows: int, images: Sequence[Tensor], titles: Sequence[str]) -> None:
    """Draw images [channels, height, width] with their titles in a grid of `rows`, 8 in each."""
    channels, height, width = images[0].shape if images else (1, 1, 1)
    across, down = round(1.3 * width), round(1.35 * height)  # from one image to the next: a title needs room
    sheet = blank(channels, rows * down, 8 * across)  # one image, since a grid of axes takes a second
    axes = figure.subplots()
    for place, (image, title) in enumerate(zip(images, titles, strict=True)):
        top, left = place // 8 * down + down - height, place % 8 * across + (across - width) // 2
        sheet[:, top : top + height, left : left + width] = image
        axes.text(left + width / 2, top - 0.06 * height, title, ha="center", va="bottom", fontsize=9)
    show(axes, sheet)


def blank(channels: int, height: int, width: int) -> Tensor:
    """Return an image that `show` draws white: uint8 [channels, height, width]."""
    return torch.full((channels, height, width), 0 if channels == 1 else 255, dtype=torch.uint8)


def cells(axes: Axes, values: Tensor, texts: Sequence[Sequence[str]], *, bold: bool = False, **colors: Any) -> None:
    """Draw values [rows, columns] as colored cells with a text on each; `colors` as for `imshow`.

    Diagonal texts may be `bold`. Each text is black or white, whichever contrasts more with its cell: by 4.5 to 1 or
    more, as one of them does with every color (luminance and contrast as in WCAG 2.2).
    """
    shades = axes.imshow(values.numpy(), **colors).to_rgba(values.numpy())
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            if not text:
                continue
            color = readable_on(shades[row, column])
            weight = "bold" if bold and row == column else "normal"
            axes.text(column, row, text, ha="center", va="center", fontsize=10, fontweight=weight, color=color)
    axes.grid(visible=False)


def readable_on(color: Iterable[float]) -> str:
    """Return black or white, whichever contrasts more with a color (red, green, blue in 0 … 1)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in list(color)[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


def error_rates(accuracies: Iterable[float]) -> list[float]:
    """Return 1 - accuracy, none below 0.01 %, since a logarithmic axis cannot show 0."""
    return [max(1 - accuracy, 1e-4) for accuracy in accuracies]


def percent(axis: Axis) -> None:
    """Label a logarithmic axis of shares in percent."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.2g} %"))


def whole_numbers(axis: Axis) -> None:
    """Label an axis at whole numbers only."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
