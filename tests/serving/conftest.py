"""Pictures drawn for the tests: digits of a font, on paper as phones and scanners show it."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from digits.serving.reading import INCLUDED, Answer, Model


def written(lines: str, size: int = 60, ink: int = 40, paper: int = 220, pitch: float = 1.6) -> Image.Image:
    """Return lines of digits, in gray, each digit apart from the next."""
    rows = lines.split("\n")
    width, height = (round(pitch * size * (count + 0.5)) for count in (max(map(len, rows)), len(rows)))
    page = Image.new("L", (width, height), paper)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    for row, text in enumerate(rows):
        for column, digit in enumerate(text):
            pen.text((pitch * size * (column + 0.4), pitch * size * (row + 0.2)), digit, ink, font)
    return page


def png(picture: Image.Image | NDArray[np.generic]) -> bytes:
    """Return a picture, or its pixels, as a PNG file."""
    content = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    image.save(content, "PNG")
    return content.getvalue()


def samples() -> NDArray[np.uint8]:
    """Return the page's digits of the test set, [100, 28, 28], ten of each class."""
    with Image.open(INCLUDED.with_name("samples.png")) as opened:
        sheet = np.asarray(opened)
    return sheet.reshape(10, 28, 10, 28).swapaxes(1, 2).reshape(-1, 28, 28)


@pytest.fixture(scope="session")
def model() -> Model:
    """Return the model that comes with the package."""
    return Model(INCLUDED, threads=1)


def answer(model: Model, picture: Image.Image | NDArray[np.generic] | bytes | Path, *, single: bool = False) -> Answer:
    """Return what the model reads on one picture."""
    source = picture if isinstance(picture, bytes | Path) else png(picture)
    (found,) = model.read([("picture", source)], single=single)
    return found
