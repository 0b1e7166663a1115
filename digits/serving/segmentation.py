"""A picture of ink on paper -> its characters: what is on it without ruled lines, frames, edges and specks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from digits.serving.paper import EIGHT, Gray, Mask, cut, darkness, lightness, stroke_width, threshold, variation

MOST = 1000  # connected parts of a page that are looked at, the largest first
FAINT = 0.06  # the least darkness that is ink: below it, it is the grain of the paper
GAP = 7  # pixels: grain breaks faint lines; what is closer is one
SMALLEST = 6  # pixels of the longer side of a character
CARD_EDGE = 0.8  # the share of a card's edge that is its own color: a stroke may lie across the rest


@dataclass(frozen=True)
class Part:
    """Connected pixels, or several such together: their numbers in `Ink.labels`, their box, and how many there are."""

    labels: tuple[int, ...]
    left: int
    top: int
    right: int
    bottom: int
    area: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def size(self) -> int:
        return max(self.width, self.height)

    def __add__(self, other: "Part") -> "Part":
        return Part(
            self.labels + other.labels,
            min(self.left, other.left),
            min(self.top, other.top),
            max(self.right, other.right),
            max(self.bottom, other.bottom),
            self.area + other.area,
        )

    def contains(self, other: "Part") -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


@dataclass(frozen=True)
class Ink:
    """How dark each pixel is, 0 … 1, which connected part it belongs to, from 1 on, and the parts that may be read.

    `grain` is how much the darkness of neighboring pixels differs on paper.
    """

    darkness: Gray
    labels: NDArray[np.int32]
    parts: list[Part]
    grain: float

    def mask(self, part: Part) -> Mask:
        """Return which pixels of its box belong to a part."""
        return _mask(self.labels, part)

    def of(self, part: Part) -> Gray:
        """Return the ink of a part alone, cut out at its edges."""
        box = np.s_[max(0, part.top - 1) : part.bottom + 1, max(0, part.left - 1) : part.right + 1]
        alone: Gray = self.darkness[box] * ndimage.binary_dilation(np.isin(self.labels[box], part.labels), EIGHT)
        rows, columns = np.nonzero(alone > 0.1 * alone.max())
        return alone[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def find(gray: Gray, depth: int = 0) -> Ink:
    """Return the ink on a gray picture (0 … 255)."""
    if depth < 2 and (box := _card(gray)):
        found = find(gray[box.top : box.bottom, box.left : box.right], depth + 1)
        if found.parts:
            return _placed(found, box, gray.shape)
    ink = darkness(gray)
    varies = variation(ink)
    limit = threshold(ink, varies)
    dark = ink > limit
    lines = _lines(dark)
    if not dark[~lines].any():
        lines[:] = False
    if lines.any():  # they are often darker than what is written between them
        limit = threshold(ink, np.where(ndimage.binary_dilation(lines, EIGHT, 2), 0, varies))
    # A stroke is ink where it is faint, too, if it is dark somewhere; ruled lines may be faint everywhere.
    faint = (ink > max(limit / 2, FAINT)) & ~lines
    faint &= ~_lines(faint)
    labels, count = ndimage.label(faint, EIGHT)
    darkest = ndimage.maximum(ink, labels, np.arange(count + 1))
    parts = _readable(_parts(labels, darkest > max(0.6 * limit, FAINT)), labels)
    return Ink(ink, labels, parts, float(np.median(varies)))


def _placed(found: Ink, box: Part, shape: tuple[int, int]) -> Ink:
    margins = ((box.top, shape[0] - box.bottom), (box.left, shape[1] - box.right))
    moved = [
        replace(
            part,
            left=part.left + box.left,
            top=part.top + box.top,
            right=part.right + box.left,
            bottom=part.bottom + box.top,
        )
        for part in found.parts
    ]
    return Ink(np.pad(found.darkness, margins), np.pad(found.labels, margins), moved, found.grain)


def _mask(labels: NDArray[np.int32], part: Part) -> Mask:
    return np.isin(labels[part.top : part.bottom, part.left : part.right], part.labels)


def _parts(labels: NDArray[np.int32], keep: Mask) -> list[Part]:
    """Return the connected parts, the largest first; `keep` says of each number whether it counts."""
    areas = np.bincount(labels.ravel(), minlength=len(keep))
    found = [
        Part((number,), box[1].start, box[0].start, box[1].stop, box[0].stop, int(areas[number]))
        for number, box in enumerate(ndimage.find_objects(labels), 1)
        if keep[number]
    ]
    return sorted(found, key=lambda part: -part.area)[:MOST]


def _card(gray: Gray) -> Part | None:
    """Return the inside of a rectangle of another brightness on which the picture is, such as a card on a table."""
    height, width = gray.shape
    limit = cut(gray)
    labels, count = ndimage.label(gray < limit if lightness(gray) > 1 else gray >= limit, EIGHT)
    parts = _parts(labels, np.ones(count + 1, bool))
    if not parts:
        return None
    card = max(parts, key=lambda part: part.width * part.height)
    area = card.width * card.height
    if not 0.15 <= area / (width * height) <= 0.95 or min(card.width, card.height) < 16 or card.area < area / 2:
        return None
    if card.width == width or card.height == height:  # a shadow
        return None
    mask = _mask(labels, card)
    edge = max(1, round(0.02 * min(mask.shape)))
    if min(side.mean() for side in (mask[edge], mask[-1 - edge], mask[:, edge], mask[:, -1 - edge])) < CARD_EDGE:
        return None
    inside = Part(
        (), card.left + 2 * edge, card.top + 2 * edge, card.right - 2 * edge, card.bottom - 2 * edge, card.area
    )
    return inside if np.ptp(gray[inside.top : inside.bottom, inside.left : inside.right]) >= 60 else None


def _lines(mask: Mask) -> Mask:
    """Return the pixels of thin lines from one side of the picture to the other, except where a stroke crosses."""
    lines = np.zeros_like(mask)
    for image, found in ((mask, lines), (mask.T, lines.T)):
        height, width = image.shape
        whole = ndimage.minimum_filter1d(ndimage.maximum_filter1d(image.astype(np.uint8), GAP), GAP) > 0
        labels, _ = ndimage.label(_runs(whole, max(5, round(0.15 * width))), EIGHT)
        for number, box in enumerate(ndimage.find_objects(labels), 1):
            left, right = box[1].start, box[1].stop
            if right - left < 0.9 * width or left > 0.04 * width or right < 0.96 * width:
                continue
            line = labels[box] == number
            counts = line.sum(axis=0)
            there = counts > 0
            thickness = float(np.median(counts[there]))
            if thickness > max(1.2, 0.04 * height):
                continue
            # Also where it is broken, or thicker because something touches it.
            middle = box[0].start + (line.argmax(axis=0) + len(line) - 1 - line[::-1].argmax(axis=0)) / 2
            sure = np.flatnonzero(there & (counts <= 1.5 * thickness))
            path = np.interp(np.arange(width), sure + left, middle[sure])
            for column, row in enumerate(path):
                first = max(0, round(row - thickness / 2 - 1.5))
                last = min(height - 1, round(row + thickness / 2 + 1.5))
                within = first > 0 and last < height - 1
                if not (within and image[first - 1, column] and image[last + 1, column]):
                    found[first : last + 1, column] = True
    return lines


def _runs(mask: Mask, length: int) -> Mask:
    """Return the pixels of a mask that lie in horizontal runs of at least `length`."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    long = ends - starts >= length
    marks = np.zeros_like(edges, np.int32)
    marks[rows[long], starts[long]] += 1
    marks[rows[long], ends[long]] -= 1
    return np.cumsum(marks, axis=1)[:, :-1] > 0


def _readable(parts: list[Part], labels: NDArray[np.int32]) -> list[Part]:
    """Return the parts without frames and, if others are large enough, without bars and strips along an edge."""
    height, width = labels.shape

    def is_frame(part: Part) -> bool:
        if part.width < 0.3 * width or part.height < 0.3 * height:
            return False
        if not any(one is not part and part.contains(one) and one.height > part.height / 4 for one in parts):
            return False
        mask = _mask(labels, part)
        edge = max(1, round(0.1 * min(mask.shape)))
        return bool(mask[edge:-edge, edge:-edge].sum() < 0.15 * part.area)

    def is_strip(part: Part) -> bool:
        bar = part.width >= 0.5 * width and part.width >= 6 * part.height
        shadow = part.height == height and part.width < 0.15 * width
        upright = (part.left == 0 or part.right == width) and part.height > 0.5 * height and part.width < 0.15 * width
        level = (part.top == 0 or part.bottom == height) and part.width > 0.5 * width and part.height < 0.15 * height
        return bar or shadow or upright or level

    parts = [part for part in parts if not is_frame(part)]
    rest = [part for part in parts if not is_strip(part)]
    return rest if any(part.size >= 0.25 * min(height, width) for part in rest) else parts


def one(ink: Ink) -> list[Part]:
    """Return the only character, in a list, or none: the largest part and what is near enough to belong to it."""
    if not ink.parts:
        return []
    character, rest = ink.parts[0], [part for part in ink.parts[1:] if part.area >= 0.02 * ink.parts[0].area]
    while near := next((part for part in rest if -min(_shared(part, character)) < character.size / 4), None):
        character += near
        rest.remove(near)
    return [character] if _is_drawn(ink, character) else []


def page(ink: Ink) -> list[list[Part]]:
    """Return the characters of each line, from left to right and from top to bottom."""
    if not ink.parts:
        return []
    by_height = sorted(ink.parts, key=lambda part: part.height)
    areas = np.cumsum([part.area for part in by_height])
    typical = by_height[int(np.searchsorted(areas, areas[-1] / 2))].height
    characters: list[Part] = []
    for part in ink.parts:
        if part.size < 0.12 * typical:
            continue
        while other := next((one for one in characters if _together(part, one, typical)), None):
            characters.remove(other)
            part += other
        characters.append(part)
    large = [one for one in characters if one.height >= 0.4 * typical and one.width <= 4 * one.height]
    lines = list(_in_lines([one for one in large if _is_drawn(ink, one)]))
    height, width = ink.labels.shape

    def is_cut(part: Part) -> bool:
        return part.left == 0 or part.top == 0 or part.right == width or part.bottom == height

    whole = [line for line in lines if not all(map(is_cut, line))]
    return whole or lines


def _overlap(first: int, last: int, other_first: int, other_last: int) -> int:
    """Return how much two ranges have in common; less than 0 is how far they are apart."""
    return min(last, other_last) - max(first, other_first)


def _shared(one: Part, other: Part) -> tuple[int, int]:
    """Return how many columns and rows two parts have in common; less than 0 is how far they are apart."""
    columns = _overlap(one.left, one.right, other.left, other.right)
    return columns, _overlap(one.top, one.bottom, other.top, other.bottom)


def _together(one: Part, other: Part, typical: int) -> bool:
    """Say whether two parts are strokes of one character, given the height of most characters."""
    columns, rows = _shared(one, other)
    both = one + other
    if both.height > 1.5 * typical:
        return False
    stacked = columns >= min(one.width, other.width) / 2 and rows > -typical / 4 and both.width <= 1.5 * typical
    beside = min(one.size, other.size) < 0.75 * typical and columns > -0.06 * typical and rows > 0
    return stacked or beside


def _is_drawn(ink: Ink, part: Part) -> bool:
    """Say whether a part consists of strokes as a character does: not a speck, a surface, a tangle or grain."""
    if part.size < SMALLEST:
        return False
    mask = ink.mask(part)
    width = stroke_width(mask)
    # Digits of MNIST have strokes up to 0.28 of their size wide and 3.6 of it long.
    return width <= 0.38 * part.size and part.area <= 5 * width * part.size and _contrast(ink, part, mask) >= 2


def is_odd(ink: Ink, part: Part) -> bool:
    """Say whether a character is so solid, so tangled or so faint that its answer should not be trusted."""
    mask = ink.mask(part)
    if part.area > 4 * stroke_width(mask) * part.size or _contrast(ink, part, mask) < 4:
        return True
    side, solid = max(3, round(0.46 * part.size)), np.pad(mask, 1).astype(np.uint8)
    for axis in (0, 1):
        solid = ndimage.minimum_filter1d(solid, side, axis=axis, mode="constant")
    return bool(solid.any())


def _contrast(ink: Ink, part: Part, mask: Mask) -> float:
    """Return how many times darker the strokes are than the grain of the paper is."""
    box = ink.darkness[part.top : part.bottom, part.left : part.right]
    return float(np.median(box[mask])) / max(ink.grain, 1e-3)


def _in_lines(parts: list[Part]) -> Iterator[list[Part]]:
    """Yield the parts of each line from left to right: a part belongs to the line whose rows it shares most."""
    lines: list[list[Part]] = []
    for part in sorted(parts, key=lambda part: part.top + part.bottom):

        def shared(line: list[Part], part: Part = part) -> float:
            top, bottom = (float(np.mean([getattr(one, end) for one in line])) for end in ("top", "bottom"))
            near = min(line, key=lambda one: abs(one.left + one.right - part.left - part.right))
            rows = max(
                min(part.bottom, bottom) - max(part.top, top),
                _overlap(part.top, part.bottom, near.top, near.bottom),
            )
            return rows / min(part.height, bottom - top)

        best = max(lines, key=shared, default=None)
        if best and shared(best) >= 0.4:
            best.append(part)
        else:
            lines.append([part])
    for line in sorted(lines, key=lambda line: float(np.mean([one.top + one.bottom for one in line]))):
        yield sorted(line, key=lambda part: part.left)
