"""Own data through all stages in this process: few and many classes, one that a split lacks, small images."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from digits.errors import UserError
from digits.files import read_json
from digits.serving.reading import Model

from .conftest import REPOSITORY, SHORT, run_stage, write_params

STAGES = ("download", "preprocess", "train", "evaluate", "export")
OWN = SHORT | {"data.folder": "own.npz", "split.validation": 0.2, "model.name": "mlp", "train.batch_size": 16}


def write(classes: int, each: int, side: int = 8, channels: int = 1) -> None:
    """Write images whose classes differ by what is bright in them."""
    random = np.random.default_rng(0)
    labels = np.arange(classes * each) % classes
    shape = (len(labels), side, side) + ((3,) if channels == 3 else ())
    images = random.integers(0, 60, shape, dtype=np.uint8)
    images.reshape(len(labels), -1)[np.arange(len(labels)), labels % (side * side)] = 255
    np.savez("own.npz", x=images, y=np.array([f"kind {label}" for label in labels]))


@pytest.mark.slow
@pytest.mark.usefixtures("miniature", "untracked")
@pytest.mark.parametrize(("classes", "each", "channels"), [(2, 40, 3), (500, 3, 1)])
def test_data_of_few_and_of_many_classes_go_through_all_stages(classes: int, each: int, channels: int) -> None:
    write(classes, each, channels=channels)
    write_params(OWN)
    for stage in STAGES:
        run_stage(stage)
    model = Model(Path("models/export/model.onnx"))
    assert (len(model.classes), model.channels, model.side, model.ink) == (classes, channels, 8, False)
    assert model.classes[:3] == ["kind 0", "kind 1", "kind 2"][:classes]
    assert read_json(Path("metrics/dataset.json"))["test_held_out"]
    assert len(read_json(Path("metrics/test.json"))["recall"]) <= classes
    card = Path("models/export/MODEL_CARD.md").read_text(encoding="utf-8")
    absent = classes - len(read_json(Path("metrics/test.json"))["recall"])
    assert ("No test image shows" in card) == bool(absent)


@pytest.mark.stress
@pytest.mark.usefixtures("miniature", "untracked")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the unit of ru_maxrss is another")
def test_evaluate_of_256_classes_takes_less_than_2_gb() -> None:
    write(256, 250, side=28)
    network = {"model.cnn.channels": [16, 32, 64], "model.cnn.hidden": 128}  # of the recipe default
    write_params(OWN | network | {"model.name": "cnn", "train.batch_size": 128})
    for stage in ("download", "preprocess", "train"):
        run_stage(stage)
    code = "import resource, sys; from stages import evaluate; evaluate.main(); print(resource.getrusage(0).ru_maxrss)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    megabytes = int(done.stdout.split()[-1]) / 1024
    print(f"evaluate of 256 classes: {megabytes:.0f} MB")
    assert megabytes < 2000


@pytest.mark.usefixtures("miniature", "untracked")
@pytest.mark.parametrize(
    ("size", "changes", "fault"),
    [
        (
            (2, 20),
            {"train.batch_size": 128},
            "params.yaml: train.batch_size: must be at most the 27 images",
        ),
        (
            (2, 20),
            {"split.validation": 5000},
            "params.yaml: split.validation: must be less than 33 of the 34",
        ),
        (
            (2, 20),
            {"model.name": "cnn"},
            "params.yaml: model.cnn.channels: must be at most 0 convolutions",
        ),
        ((1, 20), {}, "own.npz: 1 class (kind 0); must be two or more"),
    ],
)
def test_what_does_not_fit_is_said_by_the_first_stage(
    size: tuple[int, int], changes: dict[str, object], fault: str
) -> None:
    write(*size)
    write_params(OWN | changes)
    with pytest.raises(UserError) as raised:
        run_stage("download")
    assert str(raised.value).startswith(fault)
    assert not Path("data/raw").exists() or not list(Path("data/raw").iterdir())


@pytest.mark.usefixtures("miniature", "untracked")
def test_single_image_of_a_class_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    write(2, 20)
    with np.load("own.npz") as content:
        images, labels = content["x"], content["y"]
    labels[0] = "rare"
    np.savez("own.npz", x=images, y=labels)
    write_params(OWN)
    run_stage("download")
    assert "a single training image of rare: it cannot be in two splits" in capsys.readouterr().out
