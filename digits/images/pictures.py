"""Picture files as pixels, whatever their mode. No torch: also for `serving`."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from digits.errors import UserError, reason

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
MOST = 100_000_000  # pixels: a larger picture is rejected by its header


@contextmanager
def _opened(source: Path | IO[bytes], name: Path | str) -> Iterator[Image.Image]:
    """Open a picture that is not too large; whatever Pillow says about it while it is open becomes a UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large is rejected below
            picture = Image.open(source)
        with picture as opened:
            if opened.width * opened.height > MOST:
                raise UserError(f"{name}: {opened.width} x {opened.height} pixels; must be at most {MOST:,}")
            yield opened
    except UserError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they like on damaged files
        why = reason(error, 100).partition(" <_io.")[0]  # its name is ours to give
        raise UserError(f"{name}: not a picture that Pillow can read ({why})") from None


def read(source: Path | IO[bytes], name: Path | str) -> NDArray[np.uint8]:
    """Return a picture upright in 8 bits: [height, width] if it is gray, whatever its mode, else [height, width, 3].

    Of transparent ones, what is opaque lies on the background that it contrasts with, black or white. 16 bits and
    floating-point values are scaled. Raises UserError, in which the picture is called `name`, if it is none.
    """
    with _opened(source, name) as opened:
        image = ImageOps.exif_transpose(opened)
        image.load()
        if _is_deep(image):
            return _bytes(np.asarray(image), _highest(image))
        if _is_transparent(image):
            image = _opaque(image.convert("RGBA"), _paper_of(image))
        pixels = np.asarray(image.convert("RGB"))
        gray = (pixels[..., :1] == pixels).all()
        return pixels[..., 0] if gray else pixels


def read_gray(source: Path | IO[bytes], name: Path | str, longest: int) -> tuple[NDArray[np.float32], float]:
    """Return a picture upright in gray, [height, width] in 0 … 255, and how many of its pixels make one of these.

    Pixels are averaged until no side is longer than `longest`. Of a large one, only some rows are in memory in more
    than the form in which Pillow decodes it. Transparency, 16 bits and errors are as in `read`.
    """
    with _opened(source, name) as opened:
        original = max(opened.size)
        opened.draft(None, (2 * longest, 2 * longest))  # JPEG decodes to a half, a quarter or an eighth
        opened.load()
        factor = max(1, max(opened.size) // longest)
        paper, highest = _paper_of(opened), _highest(opened)
        rows = []
        for top in range(0, opened.height, 64 * factor):
            band = opened.crop((0, top, opened.width, min(top + 64 * factor, opened.height)))
            if _is_deep(opened):
                band = Image.fromarray(_bytes(np.asarray(band), highest))
            elif _is_transparent(opened):
                band.info.update(opened.info)
                band = _opaque(band.convert("RGBA"), paper)
            rows.append(np.asarray(band.convert("RGB").convert("L").reduce(factor)))
        image = Image.fromarray(np.concatenate(rows))
        image.info = {key: value for key, value in opened.info.items() if key == "exif"}
        image = ImageOps.exif_transpose(image)
    pixels = np.asarray(image, np.float32)
    if max(pixels.shape) > longest:
        scale = longest / max(pixels.shape)
        pixels = resize(pixels, *(max(1, round(length * scale)) for length in pixels.shape))
    return pixels, original / max(pixels.shape)


def luminance(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture in color [height, width, 3] as gray [height, width], by the weights of ITU-R 601."""
    return np.asarray(Image.fromarray(pixels).convert("L"))


def resize(pixels: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Return pixels [height, width] interpolated, or averaged with the weights of a triangle."""
    image = Image.fromarray(np.ascontiguousarray(pixels, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _highest(image: Image.Image) -> float:
    return float(np.asarray(image).max()) if _is_deep(image) else 255.0


def deep(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels of more than 8 bits as bytes: 0 … 1 if none is larger, 0 … 255, or else 16 bits."""
    return _bytes(values, float(values.max()))


def _bytes(values: NDArray[Any], highest: float) -> NDArray[np.uint8]:
    scale = 255.0 if highest <= 1 and values.dtype.kind == "f" else 1.0 if highest <= 255 else 1 / 257
    return np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8)


def _is_transparent(image: Image.Image) -> bool:
    return "A" in image.mode or "transparency" in image.info


def _paper_of(image: Image.Image) -> str:
    """Return the background that contrasts with what is opaque."""
    if not _is_transparent(image):
        return "white"
    sample = image.resize((min(image.width, 300), min(image.height, 300)), Image.Resampling.NEAREST)
    sample.info.update(image.info)
    pixels = np.asarray(sample.convert("RGBA"))
    seen = pixels[pixels[..., 3] > 127][:, :3]
    return "black" if len(seen) and seen.mean() > 127 else "white"


def _opaque(image: Image.Image, paper: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, paper), image)


def border(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels along the border, corners twice: [pixels], or [pixels, 3] of a picture in color."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


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
    paper[:] = np.median(border(pixels), axis=0).astype(np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    paper[top : top + size[1], left : left + size[0]] = small
    return paper
