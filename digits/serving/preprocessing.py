"""A person's own image as the model expects it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from digits.errors import UserError
from digits.images.pictures import background, fit

INK_SHARE = 20 / 28  # MNIST scales digits to fit 20 x 20, then centers them by mass in 28 x 28 (LeCun et al., 1998)


def read_image(path: Path) -> Image.Image:
    """Return the image in a file, upright, 8 bits in color, transparency on white. Raises UserError if unreadable."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: not an image that Pillow can read ({error})") from None
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def prepare(image: Image.Image, channels: int = 1, side: int = 28, *, ink: bool = True) -> NDArray[np.float32]:
    """Return an image as a model expects it: float32 [channels, side, side] in 0 … 1.

    Strokes (`ink`) are scaled and centered like those of MNIST, white on black; an image of the model's size on black
    is taken as it is. Anything else is scaled to fit the square, and padded with the color of its border. Raises
    UserError if strokes are expected and it is blank.
    """
    if ink and channels == 1:
        return _strokes(image.convert("L"), side)
    image = image.convert("L" if channels == 1 else "RGB")
    pixels = fit(np.asarray(image), side).astype(np.float32) / np.float32(255)
    return pixels[np.newaxis] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _strokes(image: Image.Image, side: int) -> NDArray[np.float32]:
    pixels = np.asarray(image, np.float32) / np.float32(255)
    paper = float(background(pixels))
    if paper > 0.5:
        pixels, paper = np.float32(1) - pixels, 1 - paper
    elif pixels.shape == (side, side):
        return pixels[np.newaxis]
    contrast = float(pixels.max()) - paper
    if contrast < 0.1:
        raise UserError("nothing to see: all of it has nearly the same brightness")
    pixels = np.clip((pixels - paper) / contrast, 0, 1)

    rows, columns = (np.flatnonzero((pixels > 0.3).any(axis=axis)) for axis in (1, 0))
    ink = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = INK_SHARE * side / max(ink.shape)
    size = (max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale)))
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    small = np.clip(np.asarray(Image.fromarray(ink).resize(size, resampling)), 0, 1)
    # Around the ink there is room (8 pixels of 28): its center of mass comes as close to the middle as that allows.
    top, left = (
        int(np.clip(round((side - 1) / 2 - center), 0, side - length))
        for center, length in zip(_center_of_mass(small), small.shape, strict=True)
    )
    canvas = np.zeros((1, side, side), np.float32)
    canvas[0, top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def _center_of_mass(image: NDArray[np.float32]) -> tuple[float, float]:
    total = float(image.sum())
    rows, columns = (np.arange(length) for length in image.shape)
    return float(rows @ image.sum(axis=1)) / total, float(columns @ image.sum(axis=0)) / total
