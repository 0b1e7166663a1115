"""Ink on paper: how much darker each pixel is than the paper around it, whatever the light and the colors.

A pixel of ink is told from paper by Otsu's threshold (1979), in which each pixel weighs as much as its surroundings
differ: otherwise a large page with little ink is cut in its shades of paper.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from digits.images.pictures import border, resize

Gray = NDArray[np.float32]  # [height, width]
Mask = NDArray[np.bool_]

GRID = 64  # paper is estimated on a grid of so many cells along the longer side
WINDOW = 33  # cells: wider than any stroke, also of a character that fills the picture
NEAR = 17  # cells: around a pixel, to say whether it differs from its surroundings
BINS = 256
EIGHT = np.ones((3, 3), bool)  # pixels that touch at a corner belong together


def darkness(gray: Gray) -> Gray:
    """Return how much darker than paper each pixel of a gray picture (0 … 255) is, 0 … 1; light ink counts as dark."""
    if not is_ink_dark(gray):
        gray = 255 - gray
    cells = _cells(gray)
    ink = _against(gray, _paper(cells, WINDOW))
    # Once the width of strokes is known, the paper between them can follow the light more closely.
    wide = stroke_width(ink > threshold(ink, variation(ink))) * GRID / max(*gray.shape, GRID)
    return _against(gray, _paper(cells, min(max(math.ceil(3 * wide), 3), WINDOW) | 1))


def _against(gray: Gray, paper: Gray) -> Gray:
    if paper.shape != gray.shape:
        paper = resize(paper, *gray.shape)
    return np.clip((paper - gray) / np.maximum(paper, 64), 0, 1)


def _cells(gray: Gray) -> Gray:
    scale = GRID / max(gray.shape)
    return resize(gray, *(max(1, round(length * scale)) for length in gray.shape)) if scale < 1 else gray


def _paper(cells: Gray, window: int) -> Gray:
    """Return the brightness of the paper in each cell: strokes narrower than `window` cells are closed."""
    closed = ndimage.grey_closing(cells, size=(window, window), mode="nearest")
    smooth: Gray = ndimage.uniform_filter(closed, 3, mode="nearest")
    return smooth


def is_ink_dark(gray: Gray) -> bool:
    """Say whether the ink is darker than the paper.

    Paper is what most pixels are, and most along the border. Where shadows leave that open, ink is the side on which
    the few pixels far from their surroundings are.
    """
    light = lightness(gray)
    if not 0.4 <= light <= 1.6:
        return light > 1
    cells = _cells(gray)
    rest = cells - ndimage.uniform_filter(cells, NEAR, mode="nearest")
    return bool(((rest - np.median(rest)) ** 3).sum() < 0)


def lightness(gray: Gray) -> float:
    """Return the share of light pixels in the picture plus that along its border: 0 … 2."""
    light = gray > cut(gray)
    return float(np.mean(light) + np.mean(border(light)))


def cut(gray: Gray) -> float:
    """Return Otsu's threshold of a gray picture (0 … 255), all of whose pixels weigh the same."""
    return 255 * threshold(gray / 255, np.ones_like(gray))


def variation(ink: Gray) -> Gray:
    """Return how much the darkness of a pixel and its eight neighbors differs."""
    found: Gray = ndimage.maximum_filter(ink, 3) - ndimage.minimum_filter(ink, 3)
    return found


def threshold(values: NDArray[np.floating], weights: NDArray[np.floating]) -> float:
    """Return from which darkness on (0 … 1) a pixel is ink, by Otsu's method with a weight for each pixel."""
    counts = np.histogram(values, BINS, (0, 1), weights=weights)[0].astype(np.float64)
    centers = (np.arange(BINS) + 0.5) / BINS
    below, mass = np.cumsum(counts), np.cumsum(counts * centers)
    above, rest = below[-1] - below, mass[-1] - mass
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (mass / below - rest / above) ** 2
    return float(np.argmax(np.nan_to_num(between)) + 1) / BINS


def stroke_width(mask: Mask) -> float:
    """Return the mean width of strokes in pixels: twice their area by the length of their outline."""
    inside = np.pad(mask, 1)
    edges = int((inside[1:] != inside[:-1]).sum() + (inside[:, 1:] != inside[:, :-1]).sum())
    return 2 * int(mask.sum()) / (max(1, edges) * math.pi / 4)  # pixels make slanted outlines 4/π longer
