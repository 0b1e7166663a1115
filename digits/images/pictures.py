"""Picture files as pixels, whatever their mode. No torch: also for `serving`."""

import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from digits.errors import UserError, reason

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
MOST = 100_000_000  # pixels: a larger picture is rejected by its header


def read(source: Path | IO[bytes], name: Path | str) -> NDArray[np.uint8]:
    """Return a picture upright in 8 bits: [height, width] if it is gray, whatever its mode, else [height, width, 3].

    Of transparent ones, what is opaque lies on the background that it contrasts with, black or white. 16 bits and
    floating-point values are scaled. Raises UserError, in which the picture is called `name`, if it is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large is rejected below
            picture = Image.open(source)
        with picture as opened:
            if opened.width * opened.height > MOST:
                raise UserError(f"{name}: {opened.width} x {opened.height} pixels; must be at most {MOST:,}")
            image = ImageOps.exif_transpose(opened)
            image.load()
    except UserError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they like on damaged files
        raise UserError(f"{name}: not a picture that Pillow can read ({reason(error, 100)})") from None
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return deep(np.asarray(image))
    if "A" in image.mode or "transparency" in image.info:
        image = _opaque(image.convert("RGBA"))
    pixels = np.asarray(image.convert("RGB"))
    gray = (pixels[..., :1] == pixels).all()
    return pixels[..., 0] if gray else pixels


def deep(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels of more than 8 bits as bytes: 0 … 1 if none is larger, 0 … 255, or else 16 bits."""
    highest = float(values.max())
    scale = 255.0 if highest <= 1 and values.dtype.kind == "f" else 1.0 if highest <= 255 else 1 / 257
    return np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8)


def _opaque(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    seen = pixels[pixels[..., 3] > 127][:, :3]
    paper = "black" if len(seen) and seen.mean() > 127 else "white"
    return Image.alpha_composite(Image.new("RGBA", image.size, paper), image)


def background(pixels: NDArray[Any]) -> Any:
    """Return the median of the pixels along the border, of pictures in color one for each channel."""
    return np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)


def fit(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a picture scaled to fit a square of `side` pixels, in its middle, on the color of the picture's border."""
    height, width = pixels.shape[:2]
    if (height, width) == (side, side):
        return pixels
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    small = np.asarray(Image.fromarray(pixels).resize(size, resampling))
    paper = np.empty((side, side, *pixels.shape[2:]), np.uint8)
    paper[:] = background(pixels).astype(np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    paper[top : top + size[1], left : left + size[0]] = small
    return paper
