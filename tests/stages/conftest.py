"""A project in miniature: the real stages, called in this process, on generated data."""

import importlib
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from digits.datasets import FILES
from digits.files import flatten
from digits.images.idx import format_idx
from digits.params.reading import choose
from digits.records import recorder

REPOSITORY = Path(__file__).parents[2]
SHORT = {
    "data.name": "folder",
    "split.validation": 60,
    "model.cnn.channels": [4, 4],
    "model.cnn.hidden": 8,
    "model.mlp.hidden": [8],
    "model.resnet.channels": [4],
    "train.epochs": 2,
    "train.hard_examples": 0.0,
    "train.batch_size": 32,
    "runtime.threads": 1,  # two that wait for a busy core take seconds
}


def write_images(folder: Path, train: int = 300, test: int = 50) -> None:
    """Write IDX files of bars whose row is their class; a fifth of the test labels are wrong on purpose."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("test", test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = random.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 3 : 2 * label + 6, 6:22] = 250
        if part == "test":
            labels[::5] = (labels[::5] + 1) % 10
        (folder / FILES[part, "images"]).write_bytes(format_idx(images))
        (folder / FILES[part, "labels"]).write_bytes(format_idx(labels))


def write_params(changes: dict[str, Any]) -> None:
    """Write the repository's params.yaml with `changes` by dotted key into the working directory."""
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    assert changes.keys() <= flatten(choose(content)).keys()
    for key, value in changes.items():
        *sections, name = key.split(".")
        node = content
        for section in sections:
            node = node[section]
        node[name] = value
    Path("params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def run_stage(name: str) -> None:
    importlib.import_module(f"stages.{name}").main()


@pytest.fixture
def miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a miniature project, the working directory of this test."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    savefig = Figure.savefig  # at 20 dots per inch: a fifth less work for a stage
    monkeypatch.setattr(Figure, "savefig", lambda *arguments, **names: savefig(*arguments, **names | {"dpi": 20}))
    write_images(Path("data/own"))
    write_params(SHORT)
    return tmp_path


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep MLflow out of a test of files."""
    monkeypatch.setattr(recorder, "training", MagicMock())
    monkeypatch.setattr(recorder, "record", MagicMock())
