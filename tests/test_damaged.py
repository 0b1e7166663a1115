"""Damaged and forged files of every kind end in one line, in time, and run nothing.

`make stress` tries 10,000 of each; own data are in tests/images/test_own.py.
"""

import io
import json
import os
import pickle
import random
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from digits import params, pipeline
from digits.datasets import MNIST_SHAPE
from digits.errors import UserError
from digits.files import SEAL, md5_of, seal
from digits.images import pictures
from digits.images.idx import format_idx, read_idx
from digits.learning import exporting, models, networks
from digits.learning.checkpoints import Checkpoint
from digits.learning.description import Description
from digits.records import results
from digits.serving import preprocessing
from digits.serving.reading import Model

from .conftest import ROOT, drawing
from .damage import all_damaged, repacked

SECONDS = 10.0  # for any file; the machine may be busy
Use = Callable[[Path], object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sound")


@pytest.fixture(scope="module")
def sound(folder: Path) -> dict[str, bytes]:
    """Return a sound file of each kind."""
    network = networks.build("mlp", 3, {"hidden": [8], "dropout": 0.0}).eval()
    said = Description("mlp", ["a", "b", "c"], {"hidden": [8], "dropout": 0.0}, {}, {}, "")
    models.save(network, said, folder / "model.safetensors")
    program = exporting.capture(network, MNIST_SHAPE)
    exporting.write_onnx(program, folder / "model.onnx", 18, said)
    exporting.write_pt2(program, folder / "model.pt2", said)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    found["a-idx3-ubyte"] = format_idx(images)
    found["a-idx1-ubyte"] = format_idx(np.arange(20, dtype=np.uint8))
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"):
        picture = io.BytesIO()
        drawing(20, 230).save(picture, kind)
        found[f"picture.{kind}"] = picture.getvalue()
    transparent = io.BytesIO()
    Image.new("RGBA", (40, 30), (0, 0, 0, 90)).save(transparent, "PNG")
    found["transparent.png"] = transparent.getvalue()
    found["params.yaml"] = (ROOT / "params.yaml").read_bytes()
    found["dvc.lock"] = (ROOT / "dvc.lock").read_bytes()
    state = io.BytesIO()
    torch.save({"network": network.state_dict(), "progress": {"epochs": [], "step": 3}}, state)
    found["checkpoint.pt"] = state.getvalue()
    return found


def _resealed(content: bytes) -> bytes:
    """Return a model file with its checksum made right again, as a forger would."""
    found = re.findall(rb"[0-9a-f]{32}", content)
    for one in found:
        blank = content.replace(one, SEAL.encode())
        if blank.count(SEAL.encode()) == 1:
            return seal(blank)
    return content


def _characters(path: Path) -> None:
    preprocessing.characters(path, path.name, 1, 28, ink=True, single=False)


def _transparent(path: Path) -> None:
    pictures.read(path, path.name)
    _characters(path)


def _checkpoint(path: Path) -> None:
    content = path.read_bytes()
    checkpoint = Checkpoint("training", 1.0)
    checkpoint.path = path.with_name("forged.pt")
    checkpoint.path.write_bytes(md5_of(content).encode() + content)
    checkpoint.load()
    checkpoint.path.write_bytes(content)
    checkpoint.load()


USES: dict[str, Use] = {
    "model.safetensors": lambda path: (results.describe(path), models.load(path)),
    "model.onnx": lambda path: (results.describe(path), Model(path)),
    "model.pt2": results.describe,
    "a-idx3-ubyte": read_idx,
    "a-idx1-ubyte": read_idx,
    "params.yaml": lambda path: params.load(networks.check, path=path),
    "dvc.lock": lambda path: pipeline.lock(path.read_text(encoding="utf-8", errors="replace")),
    "checkpoint.pt": _checkpoint,
    **{f"picture.{kind}": _characters for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm")},
    "transparent.png": _transparent,
}


def variants(name: str, content: bytes, count: int) -> Iterator[bytes]:
    """Yield damaged versions, every other one of a sealed file with a checksum that is right."""
    for number, changed in enumerate(all_damaged(content, count, seed=0)):
        if name == "model.pt2" and number % 4 == 1:
            changed = repacked(content, random.Random(number))
        yield _resealed(changed) if name.startswith("model.") and number % 2 else changed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", USES)
def test_damaged_files_are_read_or_one_line(
    name: str, sound: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    count = request.config.getoption("--damaged")
    if name.startswith(("picture", "transparent")):
        count = -(-count // 8)  # of each of eight kinds
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    for number, content in enumerate(variants(name, sound[name], count)):
        path.unlink(missing_ok=True)  # what is mapped is not changed
        path.write_bytes(content)
        began = time.process_time()  # other processes may keep this one waiting
        try:
            USES[name](path)
        except UserError as error:
            lines = str(error).splitlines()
            # Several mistakes in params.yaml are a line each.
            assert len(lines) == 1 or name == "params.yaml", (number, lines)
            assert all(len(line) < 600 for line in lines), (number, lines)
        assert time.process_time() - began < SECONDS, number


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._trace),)


@pytest.mark.parametrize("where", ["sample_inputs", "weights", "constants", "appended", "zeroed", "json", "compressed"])
def test_doctored_pt2_is_refused_and_runs_nothing(where: str, sound: dict[str, bytes], tmp_path: Path) -> None:
    trace, packed = tmp_path / "trace", io.BytesIO()
    bomb = pickle.dumps(Bomb(trace))
    with zipfile.ZipFile(io.BytesIO(sound["model.pt2"])) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    for name, content in entries.items():
        if where == "sample_inputs" and "sample_inputs" in name:
            entries[name] = bomb
        if where == "zeroed" and "weights/weight_0" in name:
            entries[name] = bytes(len(content))
        if where == "json" and name.endswith("extra/model.json"):
            entries[name] = content.replace(b'"mlp"', b'"cnn"')
        if where in ("weights", "constants") and name.endswith(f"model_{where}_config.json"):
            config = json.loads(content)
            for one in config["config"].values():
                one["use_pickle"] = True
            config["config"] = config["config"] or {"x": {"path_name": "c", "use_pickle": True}}
            entries[name] = json.dumps(config, separators=(",", ":")).encode()  # spaces hide nothing
    kind = zipfile.ZIP_DEFLATED if where == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(packed, "w", kind) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    path = tmp_path / "model.pt2"
    path.write_bytes(sound["model.pt2"] + b"more" if where == "appended" else packed.getvalue())
    forged = packed.getvalue()[:-2] + len(SEAL).to_bytes(2, "little") + SEAL.encode()
    for content in (
        (path.read_bytes(), seal(forged)) if where not in ("appended", "zeroed", "json") else (path.read_bytes(),)
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"^\S+model\.pt2: not a model of this project, or damaged \("):
            results.describe(path)
    assert not trace.exists()


def test_forged_checkpoint_runs_nothing_and_training_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint("training", 1.0)
    checkpoint.path.parent.mkdir(parents=True)
    forged = io.BytesIO()
    torch.save(Bomb(tmp_path / "trace"), forged)
    for content in (forged.getvalue(), pickle.dumps(Bomb(tmp_path / "trace"))):
        checkpoint.path.write_bytes(md5_of(content).encode() + content)
        assert checkpoint.load() is None
    assert capsys.readouterr().err.count("not a checkpoint; ignored, training starts over") == 2
    assert not (tmp_path / "trace").exists()
