"""The formats in which people have labelled images; each is one function.

A reader takes a path and yields blocks of images with the names of their classes. To add a format, write a function
here and name it in `FORMATS`. It may be called twice, and must yield the same.
"""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from digits.datasets import FILES, Shape
from digits.errors import UserError, listed, reason
from digits.images import pictures
from digits.images.idx import promised, read_idx

BLOCK = 1024  # images in memory at once
# By the words that name them in files and folders.
PARTS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Block:
    """Some images of one part: numbers [n, height, width] or [n, height, width, 3], and a class for each.

    `part` is train, validation or test. Where data are not divided, all are train.
    """

    part: str
    images: NDArray[Any]
    labels: Sequence[Any] | NDArray[Any]


@dataclass
class Options:
    """How to read: `label` is where a table has its labels. `skipped` counts what is not read, by reason."""

    label: str = "auto"
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, why: str) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1


Reader = Callable[[Path, Options], Iterator[Block]]


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return the key by which people sort names: 10 comes after 2."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, in the natural order of names."""
    return sorted(folder.iterdir(), key=lambda entry: natural(entry.name))


def _in_order(parts: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Return parts with their files or folders in the order of `PARTS`, and as they come within each."""
    return sorted(parts, key=lambda pair: list(PARTS).index(pair[0]))


def part_of(name: str) -> str | None:
    """Return the part that a file or folder is named after, or None."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((part for part, known in PARTS.items() if any(word in known for word in words)), None)


def _files(path: Path, *suffixes: str) -> list[tuple[str, Path]]:
    """Return the files of a format at `path`, a file or a folder of them, each with its part, train first."""
    if path.is_file():
        return [("train", path)]
    found = [file for file in _entries(path) if _is(file, suffixes)]
    if not found:
        raise UserError(f"{path}: has no file that ends in {', '.join(suffixes)}")
    return _in_order((part_of(file.name) or "train", file) for file in found)


def _is(file: Path, suffixes: Iterable[str]) -> bool:
    return file.name.lower().endswith(tuple(suffixes)) and not file.name.startswith(".") and file.is_file()


def _flat(labels: NDArray[Any], name: str) -> NDArray[Any]:
    """Return labels of shape [n] or [n, 1] as [n]."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(f"{name}: labels of shape {list(labels.shape)}; must be one for each image")
    return labels


# --- The formats


def idx(path: Path, _options: Options) -> Iterator[Block]:
    """Four IDX files, named as those of MNIST, plain or .gz."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("train", "test"):
            arrays = {kind: _unpacked(path / FILES[part, kind], Path(folder)) for kind in ("images", "labels")}
            images, labels = arrays["images"], arrays["labels"]
            if len(images) != len(labels):
                raise UserError(f"{path}: {len(images)} {part} images but {len(labels)} {part} labels; must be as many")
            yield from _cut(part, images, labels, path)


def _unpacked(path: Path, folder: Path) -> NDArray[Any]:
    """Map an IDX file, or what is in its .gz, unpacked to `folder` if its header promises no more than it may."""
    packed = path.with_name(path.name + ".gz")
    if path.is_file() or not packed.is_file():
        if not path.is_file():
            raise UserError(f"{path}: missing (or {packed.name})")
        return read_idx(path)
    target = folder / path.name
    try:
        with gzip.open(packed) as source, target.open("wb") as copy:
            start = source.read(20)
            copy.write(start)
            left = promised(start) - len(start) + 1  # one more, so that a file that is too long is noticed
            while left > 0 and (part := source.read(min(left, 1 << 20))):
                copy.write(part)
                left -= len(part)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{packed}: cannot be read ({reason(error)})") from None
    return read_idx(target, path)


def images(path: Path, options: Options) -> Iterator[Block]:
    """A folder of pictures for each class, in train/ and test/ (and validation/), or not divided."""
    if not path.is_dir():
        raise UserError(f"{path}: must be a folder with a folder of pictures for each class")
    divided = [(part, entry) for entry in _entries(path) if entry.is_dir() and (part := part_of(entry.name))]
    parts = divided if any(part == "train" for part, _ in divided) else [("train", path)]
    for part, folder in _in_order(parts):
        for entry in _entries(folder):
            if entry.name.startswith("."):
                options.skip("hidden")
            elif not entry.is_dir():
                options.skip("not in the folder of a class")
            else:
                yield from _of_class(part, entry, options)


def _of_class(part: str, folder: Path, options: Options) -> Iterator[Block]:
    gathered: list[NDArray[np.uint8]] = []

    def block() -> Block:
        return Block(part, np.stack(gathered), [folder.name] * len(gathered))

    for file in sorted(folder.rglob("*"), key=lambda file: natural(file.relative_to(folder).as_posix())):
        if file.name.startswith("."):
            options.skip("hidden")
        elif file.is_dir():
            continue
        elif not _is(file, pictures.SUFFIXES):
            options.skip("not a picture")
        else:
            pixels = pictures.read(file, file)
            if gathered and (pixels.shape != gathered[0].shape or len(gathered) == BLOCK):
                yield block()
                gathered.clear()
            gathered.append(pixels)
    if gathered:
        yield block()


def csv(path: Path, options: Options) -> Iterator[Block]:
    """A row for each image: its label first or last, or in the column that a header or `data.label` names."""
    for part, file in _files(path, ".csv", ".csv.gz", ".tsv", ".tsv.gz"):
        yield from _table(part, file, options)


SAMPLE = 4_000_000  # characters of a table that show what it is: 80 rows of the largest images
LABELS = ("label", "labels", "class", "target", "y", "digit", "category")  # of a header


def _table(part: str, file: Path, options: Options) -> Iterator[Block]:
    try:
        with (
            gzip.open(file, "rt", encoding="utf-8")
            if file.name.endswith(".gz")
            else file.open(encoding="utf-8") as text
        ):
            start = text.read(SAMPLE)
        lines = start.splitlines(keepends=True)
        if not lines:
            raise UserError(f"{file}: empty")
        if len(start) == SAMPLE and len(lines.pop()) == SAMPLE:
            raise UserError(f"{file}: has a line of more than {SAMPLE:,} characters")
        separator = max(",;\t ", key=lines[0].count)
        first = [cell.strip().strip('"') for cell in lines[0].split(separator)]
        header = 0 if sum(not _is_number(cell) for cell in first) > 1 or first[0].lower() in LABELS else None
        how: dict[str, Any] = {"sep": separator, "header": header, "skipinitialspace": True, "index_col": False}
        sample = next(_chunks(io.StringIO("".join(lines)), SAMPLE, **how))
        place = _label_column(file, sample, first if header == 0 else [], options)
        if place is None:
            options.skip(f"{file.name}, which has no labels")
            return
        width = sample.shape[1] - 1
        shape = square(file, width).dimensions
        for chunk in _chunks(file, BLOCK, **how):
            labels = chunk.iloc[:, place]
            values = chunk.drop(columns=chunk.columns[place])
            if labels.isna().any() or any(kind.kind not in "biuf" for kind in values.dtypes):
                raise UserError(
                    f"{file}: a row near {int(chunk.index[0]) + 1} has a pixel that is no number, or no label"
                )
            yield Block(part, values.to_numpy().reshape(-1, *shape), labels.to_numpy())
    except UserError:
        raise
    except Exception as error:  # pandas raises whatever it meets in a damaged table
        raise UserError(f"{file}: not a table of pixels that can be read ({reason(error, 120)})") from None


def _chunks(source: Any, rows: int, **how: Any) -> Iterator[Any]:
    """Yield a table in chunks of so many rows. Raises pandas' ParserWarning where it would drop cells."""
    import pandas as pd  # only now: it takes half a second

    chunks = pd.read_csv(source, chunksize=rows, **how)
    while True:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def square(file: Path, width: int) -> Shape:
    """Return the shape of the square images that so many pixels make."""
    for channels in (1, 3):
        side = round((width / channels) ** 0.5)
        if side and side * side * channels == width:
            return Shape(channels, side)
    raise UserError(f"{file}: {width} pixels in a row; must be a square, in gray or color (data.label: is it right?)")


def _label_column(file: Path, sample: Any, header: list[str], options: Options) -> int | None:
    """Return the place of the labels, or None if there are none, as in a test table to be filled in."""
    count = sample.shape[1]
    if options.label in ("first", "last"):
        return 0 if options.label == "first" else count - 1
    wanted = LABELS if options.label == "auto" else (options.label.lower(),)
    for place, name in enumerate(header):
        if name.lower() in wanted:
            return place
    if options.label != "auto":
        raise UserError(
            f"{file}: data.label: no column {options.label!r}; must be first, last, auto or one of its header"
        )
    if round(count**0.5) ** 2 == count:
        return None
    varied = [place for place in (0, count - 1) if sample.iloc[:, place].nunique() > 1]
    if len(varied) != 1:
        raise UserError(f"{file}: labels may be first or last; set data.label to say which")
    return varied[0]


def npz(path: Path, _options: Options) -> Iterator[Block]:
    """Arrays as of Keras (x_train, y_train, …) or MedMNIST (train_images, train_labels, …), or not divided."""
    for outer, file in _files(path, ".npz"):
        try:
            with zipfile.ZipFile(file) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                pairs = [(one, other) for one in names for other in names if _is_pair(one, other)]
                if not pairs:
                    raise UserError(
                        f"{file}: has {listed(names) or 'nothing'}; must have x_train and y_train, or the like"
                    )
                for one, other in pairs:
                    part = part_of(one) or outer
                    labels = _flat(np.concatenate(list(_rows(archive, other, file))), f"{file}: {listed([other])}")
                    place = 0
                    for rows in _rows(archive, one, file):
                        if place + len(rows) > len(labels):
                            break
                        yield Block(part, rows, labels[place : place + len(rows)])
                        place += len(rows)
                    if place != len(labels):
                        raise UserError(f"{file}: {listed([one])} and {listed([other])} have different lengths")
        except UserError:
            raise
        except Exception as error:  # zipfile and numpy raise whatever they meet in a damaged archive
            raise UserError(f"{file}: not arrays that can be read ({reason(error, 120)})") from None


IMAGES, ANSWERS = ("x", "images", "image", "data", "imgs"), ("y", "labels", "label", "target", "targets")


def _is_pair(one: str, other: str) -> bool:
    """Say whether two arrays are the images and the labels of one part."""
    first, second = (re.split(r"[^a-z]+", name.lower()) for name in (one, other))
    rest = [[word for word in words if word not in known] for words, known in ((first, IMAGES), (second, ANSWERS))]
    return rest[0] == rest[1] and len(rest[0]) == len(first) - 1 and len(rest[1]) == len(second) - 1


def _rows(archive: zipfile.ZipFile, name: str, file: Path) -> Iterator[NDArray[Any]]:
    """Yield the rows of an array in an archive, block by block; never what needs pickle."""
    where = f"{file}: {listed([name])}"
    with archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject or dtype.kind not in "biufU" or not shape:
            raise UserError(f"{where}: {dtype} of shape {list(shape)}; must be an array of numbers or text")
        if fortran and len(shape) > 1:
            raise UserError(f"{where}: in Fortran's order; save it with numpy.ascontiguousarray")
        size = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize
        if size * shape[0] > 1 << 44 or size > 1 << 26:
            raise UserError(f"{where}: of shape {list(shape)}, which is too large")
        for start in range(0, shape[0], BLOCK):
            count = min(BLOCK, shape[0] - start)
            content = _exactly(stream, size * count)
            yield np.frombuffer(content, dtype).reshape(count, *shape[1:])


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise EOFError("it ends early")
    return content


def parquet(path: Path, options: Options) -> Iterator[Block]:
    """Tables as of Hugging Face: pictures as bytes, labels whose names are in the schema."""
    import pyarrow.parquet as pq  # only now: it takes a third of a second

    for part, file in _files(path, ".parquet"):
        try:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            pixel = next((name for name in names if name.lower() in ("image", "img", "images")), None)
            label = next((name for name in names if name.lower() in LABELS or name.lower().endswith("label")), None)
            if options.label not in ("auto", "first", "last"):
                label = options.label if options.label in names else None
            if not pixel or not label:
                raise UserError(
                    f"{file}: columns {listed(names)}; must have image and label (data.label names another)"
                )
            known = _class_names(table.schema_arrow.metadata, label)
            for batch in table.iter_batches(batch_size=BLOCK, columns=[pixel, label]):
                labels = batch.column(label).to_pylist()
                rows = batch.column(pixel).to_pylist()
                for row, answer in zip(rows, labels, strict=True):
                    content = row.get("bytes") if isinstance(row, dict) else row
                    if not isinstance(content, bytes) or answer is None:
                        raise UserError(f"{file}: a row without the bytes of a picture, or without a label")
                    name = known[answer] if known and isinstance(answer, int) and 0 <= answer < len(known) else answer
                    yield Block(part, pictures.read(io.BytesIO(content), file)[np.newaxis], [name])
        except UserError:
            raise
        except Exception as error:  # pyarrow raises whatever it meets in a damaged table
            raise UserError(f"{file}: not a table that can be read ({reason(error, 120)})") from None


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str]:
    """Return the names that Hugging Face's metadata give the labels, or none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def mat(path: Path, _options: Options) -> Iterator[Block]:
    """MATLAB files of SVHN (X, y; label 10 is the digit 0) or EMNIST (dataset, whose images are stored by columns)."""
    for outer, file in _files(path, ".mat"):
        with tempfile.TemporaryDirectory() as folder:
            content = _unpacked_mat(file, Path(folder, "content.npz"))
        if "X" in content and "y" in content:
            labels = _flat(content["y"], str(file))
            labels = labels % 10 if set(np.unique(labels)) == set(range(1, 11)) else labels
            yield from _cut(outer, np.moveaxis(content["X"], -1, 0), labels, file)
        elif "train_images" in content:
            for part in ("train", "test"):
                found, labels = content[f"{part}_images"], _flat(content[f"{part}_labels"], str(file))
                side = square(file, found.shape[-1]).side
                yield from _cut(part, found.reshape(-1, side, side).transpose(0, 2, 1), labels, file)
        else:
            raise UserError(f"{file}: has {listed(content) or 'nothing'}; must have X and y, or dataset")


ROOM = 1 << 31  # bytes of memory that MATLAB files may take, beside those for
MOST_PACKED = 40  # times the size of the file: EMNIST's are packed to a fifth
# In a process of its own: scipy 1.17 reads past the end of some damaged files, which ends the process.
UNPACK = """
import resource
import sys
import numpy as np
from scipy.io import loadmat
room = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    content = loadmat(sys.argv[1])
except MemoryError:
    sys.exit(f"unpacking it takes more than {room >> 20:,} MiB")
if "dataset" in content:
    parts = {part: content["dataset"][part][0, 0] for part in ("train", "test")}
    content = {f"{part}_{what}": found[what][0, 0] for part, found in parts.items() for what in ("images", "labels")}
found = {name: value for name, value in content.items() if not name.startswith("__") and value.dtype.kind in "biuf"}
np.savez(sys.argv[2], **found)
"""


def _unpacked_mat(file: Path, target: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays in a MATLAB file."""
    command = [sys.executable, "-c", UNPACK, str(file), str(target), str(ROOM + MOST_PACKED * file.stat().st_size)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # or its threads alone take the room
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        why = lines[-1][:120] if lines and done.returncode > 0 else "damaged"
        raise UserError(f"{file}: not a MATLAB file that can be read ({why})")
    with np.load(target) as content:
        return dict(content)


def _cut(part: str, found: NDArray[Any], labels: NDArray[Any], file: Path) -> Iterator[Block]:
    if found.ndim < 3 or len(found) != len(labels):
        raise UserError(f"{file}: {len(found)} images but {len(labels)} labels")
    for start in range(0, len(labels), BLOCK):
        yield Block(part, found[start : start + BLOCK], labels[start : start + BLOCK])


FORMATS: dict[str, Reader] = {"idx": idx, "images": images, "csv": csv, "npz": npz, "parquet": parquet, "mat": mat}
ENDINGS: dict[str, tuple[str, ...]] = {
    "csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz"),
    "npz": (".npz",),
    "parquet": (".parquet",),
    "mat": (".mat",),
}


def format_of(path: Path) -> str:
    """Return the format of a file or folder, by its name and content. Raises UserError if it is none of `FORMATS`."""
    if not path.exists():
        raise UserError(f"data.folder: {path}: not found")
    if path.is_dir():
        if any((path / (name + end)).exists() for name in FILES.values() for end in ("", ".gz")):
            return "idx"
        names = [entry.name.lower() for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
        for name, endings in ENDINGS.items():
            if any(one.endswith(endings) for one in names):
                return name
        if any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir()):
            return "images"
        wanted = (
            "four IDX files (plain or .gz), a folder of pictures for each class, or .csv, .npz, .parquet or .mat files"
        )
        raise UserError(f"{path}: nothing to read; must have {wanted}")
    for name, endings in ENDINGS.items():
        if path.name.lower().endswith(endings):
            return name
    raise UserError(f"data.folder: {path}: unknown format; must end in .csv, .csv.gz, .npz, .parquet or .mat")
