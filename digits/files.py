"""Files that appear whole or not at all, and what they contain.

A reader of any output of this project sees the old content or the new one, never half of it, whenever the writer dies.
"""

import csv
import hashlib
import io
import json
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Kind = TypeVar("Kind")
NORESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python's mmap names from 3.13 on


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to; on success flush it to disk and rename it to `target`.

    Missing folders are created. If the block raises, `target` stays as it was and the partial file is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name, so that killed writers leave one at most; suffix last, since matplotlib goes by it.
    partial = target.with_name(f".partial.{target.name}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(target: Path, content: bytes) -> None:
    """Write `content` to `target`, whole or not at all."""
    with atomic(target) as partial:
        partial.write_bytes(content)


def write_text(target: Path, text: str) -> None:
    """Write `text` as UTF-8 with Unix line endings on every system, so that the bytes are the same everywhere."""
    write_bytes(target, text.encode())


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in the order given."""
    write_text(target, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Return the parsed content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_as(kind: type[Kind], path: Path) -> Kind:
    """Return the content of a JSON file as the dataclass that it was written from."""
    from pydantic import TypeAdapter  # only now: reading digits does not need it, and it takes a tenth of that time

    return TypeAdapter(kind).validate_json(path.read_bytes())


def write_table(target: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(target, text.getvalue())


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header."""
    return parse_table(path.read_bytes())


def parse_table(content: bytes) -> list[dict[str, str]]:
    """Return the rows of the content of a CSV file with a header."""
    return list(csv.DictReader(io.StringIO(content.decode())))


def map_bytes(path: Path, *, in_order: bool) -> NDArray[np.uint8]:
    """Map a file as uint8 [bytes], which may be larger than memory; writing to it never reaches the file.

    `in_order` says that it will be read from front to back and not at random places. It changes the time only, and
    only where memory is smaller than the file.
    """
    with path.open("rb") as file:
        # Linux refuses a private map larger than memory and swap, unless it is asked not to reserve memory for it.
        how = {"flags": mmap.MAP_PRIVATE | NORESERVE} if sys.platform == "linux" else {"access": mmap.ACCESS_COPY}
        content = mmap.mmap(file.fileno(), 0, **how)
    if not in_order and hasattr(mmap, "MADV_RANDOM"):
        # Otherwise each missing page brings in megabytes around it: 139 instead of 13,800 images/s, of 1.2 GB in
        # 0.7 GB of memory (`python -m benchmarks.growth`).
        content.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(content, np.uint8)


SEAL = "0" * 32  # placeholder for the checksum that a file will contain of itself


def seal(content: bytes) -> bytes:
    """Return `content` with its MD5 in the one place that holds `SEAL`: the file can then prove itself anywhere."""
    assert content.count(SEAL.encode()) == 1
    return content.replace(SEAL.encode(), md5_of(content).encode())


def is_intact(content: bytes, checksum: str) -> bool:
    """Say whether `content`, sealed with `checksum`, is unchanged."""
    return md5_of(content.replace(checksum.encode(), SEAL.encode())) == checksum


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, keys joined by dots: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def md5(path: Path) -> str:
    """Return the MD5 of a file's bytes in hexadecimal, the name by which DVC knows the same file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5_of(content: bytes) -> str:
    """Return the MD5 of some bytes in hexadecimal."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def digest(value: Any) -> str:
    """Return the MD5 of a value that JSON can represent; the order of keys does not matter."""
    return md5_of(json.dumps(value, sort_keys=True).encode())
