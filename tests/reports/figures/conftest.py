"""Shared by the tests of the figures: a split, what its images look like, and what every figure must be."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from digits.images.splits import Split
from digits.learning.evaluation import Predictions
from tests.conftest import bars

LONG = ("T-shirt/top", "Ankle boot, brown", "日本語")
SPLIT = bars(12)
RIGHT = SPLIT.labels
WRONG = (RIGHT + 1) % 3
CONFIDENCE = torch.linspace(0.4, 1, 12, dtype=torch.float64)
STRANGE: dict[Any, Any] = {
    "axes.facecolor": "black",
    "axes.grid": False,
    "figure.dpi": 37,
    "font.size": 17,
    "image.cmap": "jet",
    "lines.linewidth": 9,
    "savefig.bbox": "tight",
    "savefig.dpi": 31,
    "savefig.transparent": True,
    "text.color": "red",
}

Draw = Callable[[Path], None]


def named(classes: tuple[str, ...], count: int = 12) -> Split:
    """Return the first images of SPLIT with other names of classes."""
    return Split(SPLIT.images[:count], SPLIT.labels[:count] % len(classes), classes)


def predictions(predicted: torch.Tensor, split: Split = SPLIT) -> Predictions:
    """Return predictions of these classes, with CONFIDENCE."""
    shares = ((1 - CONFIDENCE) / 2).repeat(3, 1).T.contiguous()
    shares[range(12), predicted] = CONFIDENCE
    return Predictions(split, shares.log())


def shown(axes: Axes) -> int:
    """Return the sum of pixels of the image in `axes`, which tells the images of SPLIT apart."""
    return int(torch.as_tensor(axes.images[0].get_array()).sum())


def brightness(place: int) -> int:
    return int(SPLIT.images[place].sum())


def check_drawing(draw: Draw, folder: Path) -> None:
    """Check that a figure is a PNG of the same bytes whatever the user's own style, which is left as it was.

    It is drawn without a warning; what the garbage of other tests says, if it is collected meanwhile, is not its own.
    """
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", "Glyph")  # the font that comes with matplotlib has no Japanese
        warnings.simplefilter("ignore", ResourceWarning)
        draw(folder / "first.png")
        with matplotlib.rc_context(STRANGE):
            draw(folder / "second.png")
            assert {key: matplotlib.rcParams[key] for key in STRANGE} == STRANGE
    assert (folder / "first.png").read_bytes() == (folder / "second.png").read_bytes()
    with Image.open(folder / "first.png") as image:
        assert image.format == "PNG"
        assert min(image.size) >= 100
        assert len(image.convert("RGB").getcolors(10**7) or []) > 5
        assert "Software" not in image.info


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect the figures that are saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def spy(figure: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved
