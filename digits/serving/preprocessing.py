"""A person's own image as the model expects it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from digits.datasets import SIDE
from digits.errors import UserError

INK_SIDE = 20  # pixels: MNIST scales digits to fit 20 x 20, then centers them by mass in 28 x 28 (LeCun et al., 1998)


def read_image(path: Path) -> Image.Image:
    """Return the image in a file as 8-bit grayscale, upright, transparency on white. Raises UserError if unreadable."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: not an image that Pillow can read ({error})") from None
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L")


def prepare(image: Image.Image) -> NDArray[np.float32]:
    """Return a grayscale image as the model expects it: float32 [1, 28, 28], 0 … 1, white on black.

    It is scaled and centered like those of MNIST; an image of 28 x 28 on black is taken as it is. Raises UserError if
    it is blank.
    """
    pixels = np.asarray(image, np.float32) / np.float32(255)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = float(np.median(border))
    if background > 0.5:
        pixels, background = np.float32(1) - pixels, 1 - background
    elif pixels.shape == (SIDE, SIDE):
        return pixels[np.newaxis]
    contrast = float(pixels.max()) - background
    if contrast < 0.1:
        raise UserError("nothing to see: all of it has nearly the same brightness")
    pixels = np.clip((pixels - background) / contrast, 0, 1)

    rows, columns = (np.flatnonzero((pixels > 0.3).any(axis=axis)) for axis in (1, 0))
    ink = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = INK_SIDE / max(ink.shape)
    size = (max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale)))
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    small = np.clip(np.asarray(Image.fromarray(ink).resize(size, resampling)), 0, 1)
    # Ink of 20 x 20 has 8 pixels of room: the center of mass comes as close to the middle as they allow.
    top, left = (
        int(np.clip(round((SIDE - 1) / 2 - center), 0, SIDE - length))
        for center, length in zip(_center_of_mass(small), small.shape, strict=True)
    )
    canvas = np.zeros((1, SIDE, SIDE), np.float32)
    canvas[0, top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def _center_of_mass(image: NDArray[np.float32]) -> tuple[float, float]:
    total = float(image.sum())
    rows, columns = (np.arange(length) for length in image.shape)
    return float(rows @ image.sum(axis=1)) / total, float(columns @ image.sum(axis=0)) / total
