"""A person's own images, in any of the formats of `readers`, checked and written as IDX files."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from digits.datasets import FILES, LARGEST, SMALLEST, Shape
from digits.errors import UserError
from digits.files import atomic, md5
from digits.images import pictures, readers
from digits.images.idx import header, is_image
from digits.images.raw import About
from digits.images.readers import Block, Options, natural
from digits.params.data import DataParams

MOST_CLASSES = 1000


@dataclass(frozen=True)
class Source:
    """Where own data are and how to read them: section `data` of params.yaml, see there."""

    path: Path
    format: str = "auto"
    label: str = "auto"
    transpose: bool = False
    side: int = 0
    ink: bool = False

    @classmethod
    def of(cls, data: DataParams) -> "Source":
        """Return the one that section `data` of params.yaml names."""
        return cls(Path(data.folder), data.format, data.label, data.transpose, data.side, data.ink)

    def resolved(self) -> "Source":
        """Return the same with the format that the path has."""
        return replace(self, format=readers.format_of(self.path)) if self.format == "auto" else self

    def blocks(self, options: Options) -> Iterator[Block]:
        """Yield all images as [n, height, width] or [n, height, width, 3]."""
        if not self.path.exists():
            raise UserError(f"data.folder: {self.path}: not found")
        for block in readers.FORMATS[self.format](self.path, options):
            found = _as_pictures(block.images, self.path)
            yield replace(block, images=np.swapaxes(found, 1, 2) if self.transpose else found)


def _as_pictures(images: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return images without a channel axis if they are gray, and with it last if they are in color."""
    if images.ndim == 2:
        images = images.reshape(-1, *readers.square(path, images.shape[1]).dimensions)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3):
        images = np.moveaxis(images, 1, -1)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
        raise UserError(f"{path}: images of shape {list(images.shape[1:])}; must be in gray or in three colors")
    return images


@dataclass
class Survey:
    """What a first look at all images finds.

    `counts` are images by part and class, `sizes` by height and width, `low` and `high` the smallest and largest value,
    `twice` how many test images are also training images, where that was asked for.
    """

    format: str
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    channels: int = 1
    low: float = np.inf
    high: float = -np.inf
    skipped: dict[str, int] = field(default_factory=dict)
    twice: int | None = None

    @property
    def classes(self) -> list[str]:
        return sorted({name for part in self.counts.values() for name in part}, key=natural)

    def total(self, part: str) -> int:
        return sum(self.counts.get(part, Counter()).values())

    @property
    def scale(self) -> float | None:
        """The factor that brings values to 0 … 255; None if there is none."""
        if self.format in ("images", "parquet"):
            return 1.0
        if self.low < 0 or self.high > 255 or self.high <= 0:
            return None
        return 255.0 if self.high <= 1 else 255 / 16 if self.high <= 16 else 1.0

    def faults(self, side: int) -> list[str]:
        """Return what keeps these data from being used, a line each."""
        faults = []
        train = self.counts.get("train", Counter())
        if len(train) < 2:
            found = f"{len(train)} class{'' if len(train) == 1 else 'es'} ({', '.join(train) or 'no training images'})"
            faults.append(f"{found}; must be two or more")
        if len(self.classes) > MOST_CLASSES:
            faults.append(f"{len(self.classes):,} classes; must be at most {MOST_CLASSES:,} (are the labels right?)")
        for part in ("validation", "test"):
            unknown = sorted(self.counts.get(part, Counter()).keys() - train.keys(), key=natural)
            faults += [f"{part} images of {name}, of which there are no training images" for name in unknown[:5]]
        if not side and len(self.sizes) > 1:
            (first, _), (second, _) = self.sizes.most_common(2)
            faults.append(
                f"images of {_size(first)} and of {_size(second)} pixels; data.side: 28 scales and pads all of them"
            )
        elif not side and self.sizes and not is_image(next(iter(self.sizes))):
            found = f"images of {_size(next(iter(self.sizes)))} pixels"
            faults.append(f"{found}; must be squares of {SMALLEST} to {LARGEST}: data.side: 28 scales and pads them")
        if self.scale is None and self.sizes:
            faults.append(
                f"values from {self.low:g} to {self.high:g}; must be 0 to 255, 0 to 1 or 0 to 16, and not all 0"
            )
        return faults

    def shape(self, side: int) -> Shape:
        """Return the shape of the images that are written; `side` is data.side."""
        return Shape(self.channels, side or next(iter(self.sizes))[0])

    def lines(self) -> list[str]:
        """Return what the images are, and what is worth knowing, a line each."""
        counts = ", ".join(f"{self.total(part):,} {part}" for part in readers.PARTS if self.total(part))
        sizes = ", ".join(_size(size) for size, _ in self.sizes.most_common(5)) + (", …" if len(self.sizes) > 5 else "")
        kind = "gray" if self.channels == 1 else "color"
        notes = [f"{self.format}: {counts} images of {len(self.classes)} classes, {sizes} pixels, {kind}"]
        notes += [f"skipped: {count:,} {why}" for why, count in self.skipped.items()]
        if (scale := self.scale) not in (None, 1.0):
            notes.append(f"values from {self.low:g} to {self.high:g}, scaled by {scale:g} to 0 … 255")
        if not self.total("test"):
            notes.append("no test part: split.test of the images are held out, by class and split.seed")
        train = self.counts.get("train", Counter())
        if single := [name for name, count in train.items() if count == 1]:
            notes.append(f"a single training image of {', '.join(single[:10])}: it cannot be in two splits")
        return notes


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def survey(source: Source, *, duplicates: bool = False) -> Survey:
    """Look at all images once. Raises UserError where they cannot be read."""
    source, options = source.resolved(), Options(source.label)
    found = Survey(source.format, skipped=options.skipped)
    seen: set[bytes] = set()
    twice = 0
    with tqdm(desc=f"reading {source.path.name}", unit="image", disable=None, leave=False) as bar:
        for block in source.blocks(options):
            if not len(block.labels):
                continue
            names, codes = _named(block.labels)
            counts = dict(zip(names, np.bincount(codes).tolist(), strict=True))
            found.counts.setdefault(block.part, Counter()).update(counts)
            found.sizes[block.images.shape[1], block.images.shape[2]] += len(block.labels)
            found.channels = max(found.channels, 3 if block.images.ndim == 4 else 1)
            low, high = float(block.images.min()), float(block.images.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise UserError(f"{source.path}: pixels that are not finite numbers")
            found.low, found.high = min(found.low, low), max(found.high, high)
            if duplicates:
                hashes = [image.tobytes() for image in block.images]
                if block.part == "test":
                    twice += sum(one in seen for one in hashes)
                else:
                    seen.update(hashes)
            bar.update(len(block.labels))
    found.twice = twice if duplicates and found.total("test") else None
    return found


def _name(label: Any) -> str:
    """Return the name of a class: text as it is, numbers without what a table adds."""
    if isinstance(label, bytes):
        label = label.decode(errors="replace")
    if isinstance(label, (bool, np.bool_)):
        return str(int(label))
    if isinstance(label, (int, float, np.number)):
        number = float(label)
        if not number.is_integer():
            raise UserError(f"label {number:g}: must be a whole number or a name")
        return str(int(number))
    name = " ".join(str(label).split())
    if not name or not name.isprintable():
        raise UserError(f"label {name!r}: must be a name")
    return name


def _named(labels: Sequence[Any] | NDArray[Any]) -> tuple[list[str], NDArray[np.intp]]:
    """Return the names of the classes in a block, and which of them each label is."""
    values, codes = np.unique(np.asarray(labels), return_inverse=True)
    return list(map(_name, values)), codes


def pixels(source: Source, found: Survey) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.intp]]]:
    """Yield part, images (uint8 [n, side, side] or [n, side, side, 3]) and labels, places in `classes`, by blocks."""
    assert found.scale
    places = {name: place for place, name in enumerate(found.classes)}
    for block in source.blocks(Options(source.label)):
        images = block.images
        if found.scale != 1.0 or images.dtype != np.uint8:
            images = np.rint(images * found.scale).astype(np.uint8)
        if found.channels == 3 and images.ndim == 3:
            images = np.repeat(images[..., np.newaxis], 3, axis=-1)
        if source.side:
            images = np.stack([pictures.fit(np.ascontiguousarray(image), source.side) for image in images])
        names, codes = _named(block.labels)
        yield block.part, images, np.array([places[name] for name in names], np.intp)[codes]


def copy(source: Source, found: Survey, target: Path) -> None:
    """Write images without faults as four IDX files, and `ABOUT`, into `target`. They may be larger than memory."""
    source, classes = source.resolved(), found.classes
    shape = found.shape(source.side).dimensions
    wide = len(classes) > 256
    counts = {part: found.total(part) for part in readers.PARTS}
    with ExitStack() as stack:
        partials = {key: stack.enter_context(atomic(target / file)) for key, file in FILES.items()}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        held = {kind: folder / kind for kind in ("images", "labels")}
        files: dict[tuple[str, str], IO[bytes]] = {}
        with ExitStack() as opened:
            for (part, kind), path in [
                *partials.items(),
                *((("validation", kind), path) for kind, path in held.items()),
            ]:
                files[part, kind] = opened.enter_context(path.open("wb"))
            for part in ("train", "test"):
                count = counts[part] + (counts["validation"] if part == "train" else 0)
                files[part, "images"].write(header((count, *shape)))
                files[part, "labels"].write(header((count,), wide=wide))
            with tqdm(total=sum(counts.values()), desc="writing", unit="image", disable=None, leave=False) as bar:
                for part, images, labels in pixels(source, found):
                    files[part, "images"].write(np.ascontiguousarray(images).data)
                    files[part, "labels"].write(labels.astype(">i4" if wide else "u1").tobytes())
                    bar.update(len(labels))
        for kind, path in held.items():
            with partials["train", kind].open("ab") as file, path.open("rb") as validation:
                shutil.copyfileobj(validation, file)
    About(classes, source.ink, counts["validation"]).write(target)
    for path in (target / name for name in FILES.values()):
        print(f"{path.name}: {path.stat().st_size:,} bytes from {source.path}, MD5 {md5(path)}")
