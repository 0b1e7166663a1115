"""Files that appear whole or not at all, and what they hold.

A reader of any output of this project sees the old content or the new one, never half of it, whenever the writer dies.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Give a path beside `target` to write to; on success flush it to the disk and rename it to `target`.

    Missing folders are made. If the block raises, `target` stays as it was and the partial file is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name, so that a killed writer leaves one at most; the suffix last, since matplotlib goes by it.
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
    """Write `text` as UTF-8 with Unix line ends on every system, so that the bytes are the same everywhere."""
    write_bytes(target, text.encode())


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in the order given."""
    write_text(target, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Give the parsed content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_table(path: Path) -> list[dict[str, str]]:
    """Give the rows of a CSV file with a header."""
    return parse_table(path.read_bytes())


def parse_table(content: bytes) -> list[dict[str, str]]:
    """Give the rows of what a CSV file with a header holds."""
    return list(csv.DictReader(io.StringIO(content.decode())))


SEAL = "0" * 32  # stands where a file will hold its own checksum


def seal(content: bytes) -> bytes:
    """Give `content` with the MD5 of it in the one place that holds `SEAL`: the file can then prove itself anywhere."""
    assert content.count(SEAL.encode()) == 1
    return content.replace(SEAL.encode(), _md5(content).encode())


def is_intact(content: bytes, checksum: str) -> bool:
    """Say whether `content`, as `seal` gave it with this checksum in it, is unchanged."""
    return _md5(content.replace(checksum.encode(), SEAL.encode())) == checksum


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested dictionaries as one, keys joined by dots: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def md5(path: Path) -> str:
    """Give the MD5 of a file's bytes in hexadecimal, the name by which DVC knows the same file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def digest(value: Any) -> str:
    """Give the MD5 of a value that JSON can hold; equal values have equal ones, in whatever order their keys are."""
    return _md5(json.dumps(value, sort_keys=True).encode())
