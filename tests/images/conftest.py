"""Tiny data sets as IDX files."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digits.datasets import FILES
from digits.images.idx import format_idx

LABELS = {"train": [0, 1, 2, 1, 2], "test": [2, 0, 1]}
IMAGES, TEST_LABELS = FILES["train", "images"], FILES["test", "labels"]


def arrays() -> dict[tuple[str, str], NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    found = {}
    for part, labels in LABELS.items():
        found[part, "images"] = random.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        found[part, "labels"] = np.array(labels, np.uint8)
    return found


CONTENTS = {FILES[key]: format_idx(array) for key, array in arrays().items()}
PACKED = {f"{file}.gz": gzip.compress(content, mtime=0) for file, content in CONTENTS.items()}


def md5(contents: dict[str, bytes]) -> dict[str, str]:
    return {file: hashlib.md5(content).hexdigest() for file, content in contents.items()}


def idx(*shape: int, value: int = 0) -> bytes:
    return format_idx(np.full(shape, value, np.uint8))


def assert_complete(folder: Path) -> None:
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert json.loads(found.pop("dataset.json"))["classes"]
    assert found == CONTENTS
