"""A person's own picture as the model expects it, one image for each character on it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from digits.errors import UserError
from digits.images import pictures
from digits.images.pictures import border, resize
from digits.serving import segmentation
from digits.serving.paper import Gray, stroke_width

NOTHING = "nothing to read"
WORK = 900  # pixels of the longer side in which characters are sought: enough for a page, and 0.8 megapixels at most
INK_SHARE = 20 / 28  # MNIST scales digits to fit 20 x 20, then centers them by mass in 28 x 28 (LeCun et al., 1998)
STROKE = 2.4 / 28  # the width of its strokes
FINE = 4  # strokes are widened in so many times the model's pixels


@dataclass(frozen=True)
class Character:
    """What the model is to see, float32 [channels, side, side] in 0 … 1, and where in the picture it is.

    `box` is left, top, right and bottom in pixels of the picture; `line` counts from 0. An `odd` one may be no
    character at all.
    """

    image: NDArray[np.float32]
    box: tuple[int, int, int, int]
    line: int = 0
    odd: bool = False


def characters(
    source: Path | IO[bytes], name: str, channels: int, side: int, *, ink: bool, single: bool
) -> list[Character]:
    """Return the characters of a picture, line by line; if `single`, the one that it shows.

    Without `ink`, what the model knows is not written: the picture is fitted into a square, on the color of its border.
    Raises UserError if the picture cannot be read, or shows nothing to read.
    """
    if not ink or channels == 3:
        pixels = pictures.read(source, name)
        if channels == 3 and pixels.ndim == 2:
            pixels = np.repeat(pixels[..., np.newaxis], 3, axis=2)
        if channels == 1 and pixels.ndim == 3:
            pixels = pictures.luminance(pixels)
        image = pictures.fit(pixels, side).astype(np.float32) / np.float32(255)
        image = np.ascontiguousarray(image.transpose(2, 0, 1)) if channels == 3 else image[np.newaxis]
        return [Character(image, (0, 0, pixels.shape[1], pixels.shape[0]))]
    gray, scale = pictures.read_gray(source, name, WORK)
    found = strokes(gray, side, single=single)
    if not found:
        raise UserError(f"{name}: {NOTHING}")
    placed = []
    for one in found:
        left, top, right, bottom = (round(edge * scale) for edge in one.box)
        placed.append(replace(one, image=one.image[np.newaxis], box=(left, top, right, bottom)))
    return placed


def strokes(gray: Gray, side: int, *, single: bool) -> list[Character]:
    """Return the characters of a gray picture (0 … 255), their images [side, side], boxes in its own pixels."""
    if (image := as_it_is(gray, side)) is not None:
        rows, columns = np.nonzero(image > 0.1)
        return [Character(image, (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))]
    if min(gray.shape) < 3:
        return []
    ink = segmentation.find(gray)
    lines = [segmentation.one(ink)] if single else segmentation.page(ink)
    return [
        Character(
            normalize(ink.of(part), side),
            (part.left, part.top, part.right, part.bottom),
            number,
            segmentation.is_odd(ink, part),
        )
        for number, line in enumerate(lines)
        for part in line
    ]


def as_it_is(gray: Gray, side: int) -> Gray | None:
    """Return a picture as the model's image if it looks like one of MNIST, white on black or black on white."""
    if gray.shape != (side, side):
        return None
    for image in (gray / np.float32(255), 1 - gray / np.float32(255)):
        if border(image).max() >= 0.02 or image.max() <= 0.9:
            continue
        rows, columns = np.nonzero(image > 0.1)
        length = max(np.ptp(rows), np.ptp(columns)) + 1
        off = max(abs(center - (side - 1) / 2) for center in center_of_mass(image))
        if 18 / 28 * side <= length <= 22 / 28 * side and off <= 1.2 / 28 * side:
            return image.astype(np.float32)
    return None


def normalize(ink: Gray, side: int) -> Gray:
    """Return the ink of one character [height, width] as MNIST would show it, [side, side].

    Scaled to fit 5/7 of the side, its contrast renewed (thin strokes fade when they shrink), its strokes as wide as
    MNIST's or wider, its center of mass in the middle.
    """
    length, wanted = round(INK_SHARE * side * FINE), STROKE * side * FINE
    fine = _fit(ink, length)
    radius = (wanted - stroke_width(fine > 0.5)) / 2
    if radius > 0:
        margin = math.floor(radius + 0.5)
        fine = _widen(np.pad(_fit(ink, length - 2 * margin), margin), radius)
    height, width = (-(-size // FINE) * FINE for size in fine.shape)
    top, left = (height - fine.shape[0]) // 2, (width - fine.shape[1]) // 2
    fine = np.pad(fine, ((top, height - fine.shape[0] - top), (left, width - fine.shape[1] - left)))
    small = fine.reshape(height // FINE, FINE, width // FINE, FINE).mean(axis=(1, 3))
    # Around the ink there is room (8 pixels of 28): its center of mass comes as close to the middle as that allows.
    top, left = (
        int(np.clip(math.floor((side - 1) / 2 - center + 0.5), 0, side - size))
        for center, size in zip(center_of_mass(small), small.shape, strict=True)
    )
    canvas = np.zeros((side, side), np.float32)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def _fit(ink: Gray, length: int) -> Gray:
    """Return ink with its longer side of `length` pixels and its darkest strokes at 1."""
    scale = length / max(ink.shape)
    small = resize(ink, *(max(1, math.floor(size * scale + 0.5)) for size in ink.shape))
    dark = np.sort(small[small > small.max() / 2])
    fitted: Gray = np.clip(small / dark[3 * (len(dark) - 1) // 4], 0, 1)
    return fitted


def _widen(ink: Gray, radius: float) -> Gray:
    """Return ink whose every pixel is a disc of this radius, the last pixel of which fades."""
    reach = math.ceil(radius)
    padded, out = np.pad(ink, reach), ink.copy()
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            share = np.float32(min(1.0, radius + 1 - math.hypot(down, right)))
            if share > 0:
                rows, columns = reach + down, reach + right
                moved = padded[rows : rows + ink.shape[0], columns : columns + ink.shape[1]]
                np.maximum(out, share * moved, out=out)
    return out


def center_of_mass(image: Gray) -> tuple[float, float]:
    """Return the row and the column of the center of mass."""
    total = float(image.sum())
    rows, columns = (np.arange(length) for length in image.shape)
    return float(rows @ image.sum(axis=1)) / total, float(columns @ image.sum(axis=0)) / total
