import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from digits import evaluation, exporting, models
from digits.models import Description

from .conftest import CLASSES, ROOT, bars

KNOBS: dict[str, Any] = {"crop": 0, "channels": [2, 3], "hidden": 5, "dropout": 0.5}
TRAINING = {"seed": 3, "train": {"epochs": 2, "keep": "best"}}
DESCRIPTION = Description("cnn", list(CLASSES), KNOBS, TRAINING, {"data/train": "1a2b"}, "3c4d")
EXPORT_ELSEWHERE = """
import logging
from pathlib import Path
from digits import exporting, models
network, description = models.load(Path("model.safetensors"))
exporting.write_onnx(network, Path("model.onnx"), 18, description)
exporting.write_pt2(network, Path("other name.pt2"), description)
assert not logging.root.manager.disable
"""


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = models.build("cnn", len(CLASSES), KNOBS, mean=0.2, std=0.3)
    network(torch.rand(64, 1, 28, 28))  # so that batch norm has statistics of its own
    return network.eval()


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    models.save(network, DESCRIPTION, folder / "model.safetensors")
    exporting.write_onnx(network, folder / "model.onnx", 18, DESCRIPTION)
    exporting.write_pt2(network, folder / "model.pt2", DESCRIPTION)
    return folder


@pytest.fixture(scope="module")
def elsewhere(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Export the same model with a copy of the code in another folder: give that folder, and all that was said."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(ROOT / "digits", folder / "digits", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(exported / "model.safetensors", folder)
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONHASHSEED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", EXPORT_ELSEWHERE]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


@pytest.mark.parametrize("size", [1, 2, 7])
def test_exported_files_give_the_logits_of_the_network_for_any_batch_size(
    network: nn.Module, exported: Path, size: int
) -> None:
    split = bars(15, seed=2)
    expected = evaluation.predict(network, split, 15, torch.device("cpu"))
    found = exporting.run_onnx(exported / "model.onnx", split, size, threads=1)
    also_found = exporting.run_pt2(exported / "model.pt2", split, size)
    for logits in (found, also_found):
        assert logits.shape == (15, len(CLASSES))
        assert (logits - expected).abs().max() < 1e-5


def test_mlp_is_exported_as_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = models.build("mlp", 3, {"hidden": [4], "dropout": 0.5}).eval()
    split = bars(5)
    expected = evaluation.predict(network, split, 5, torch.device("cpu"))
    exporting.write_onnx(network, tmp_path / "model.onnx", 21, DESCRIPTION)
    exporting.write_pt2(network, tmp_path / "model.pt2", DESCRIPTION)
    assert (exporting.run_onnx(tmp_path / "model.onnx", split, 1, threads=1) - expected).abs().max() < 1e-5
    assert (exporting.run_pt2(tmp_path / "model.pt2", split, 1) - expected).abs().max() < 1e-5
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 21


def test_onnx_file_is_readable_by_old_runtimes_and_says_what_goes_in_and_out(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.ir_version <= 10  # the newest that ONNX Runtime 1.18 (2024) reads
    for value, name, axes in ((model.graph.input, "images", [1, 28, 28]), (model.graph.output, "logits", [3])):
        (tensor,) = value
        batch, *others = tensor.type.tensor_type.shape.dim
        assert tensor.name == name
        assert tensor.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert batch.dim_param
        assert [axis.dim_value for axis in others] == axes
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata.keys() == {"classes", "model", "md5"}
    assert json.loads(metadata["classes"]) == list(CLASSES)


def test_files_exported_from_another_folder_by_another_process_are_the_same_bytes(
    exported: Path, elsewhere: tuple[Path, str]
) -> None:
    folder, _ = elsewhere
    assert (folder / "model.onnx").read_bytes() == (exported / "model.onnx").read_bytes()
    assert (folder / "other name.pt2").read_bytes() == (exported / "model.pt2").read_bytes()


def test_export_says_nothing_and_leaves_logging_and_the_folder_as_they_were(elsewhere: tuple[Path, str]) -> None:
    folder, said = elsewhere
    assert said == ""
    assert {path.name for path in folder.iterdir()} == {"digits", "model.safetensors", "model.onnx", "other name.pt2"}


def test_exported_files_hold_no_path_of_the_source(exported: Path) -> None:
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    contents.append((exported / "model.onnx").read_bytes())
    for content in contents:
        assert not any(word in content for word in (b"models.py", b"site-packages", str(ROOT).encode()))


RESULTS: dict[str, dict[str, Any]] = {
    "dataset": {"train": {"count": 54_321}, "validation": {"count": 4321}, "test": {"count": 9876}},
    "train": {
        "train_loss": 0.11,
        "train_accuracy": 0.9876,
        "validation_loss": 0.12,
        "validation_accuracy": 0.9765,
        "epochs": 9,
        "kept_epoch": 7,
        "parameters": 123_456,
    },
    "test": {
        "accuracy": 0.9954,
        "accuracy_low": 0.9939,
        "accuracy_high": 0.9966,
        "errors": 46,
        "count": 9876,
        "loss": 0.01536,
        "calibration_error": 0.0123,
        "macro_f1": 0.9953,
        "recall": {"0": 0.999, "1": 0.9871, "2": 0.998},
    },
    "export": {
        "onnx": {"bytes": 628_669, "accuracy": 0.9954, "max_abs_difference": 2.4e-06},
        "pt2": {"bytes": 701_234, "accuracy": 0.9953, "max_abs_difference": 0.0},
    },
}


def test_model_card_tells_the_figures_of_the_pipeline() -> None:
    card = exporting.model_card("mnist", DESCRIPTION, RESULTS, "- try this\n- and that")
    for told in (
        "# Model card: cnn on mnist",
        "3 classes: left, middle, right. 123,456 trained parameters",
        "| accuracy | 99.54% (95 % interval 99.39% to 99.66%), 46 errors |",
        "| cross-entropy | 0.0154 nats |",
        "| expected calibration error | 1.23% |",
        "| macro F1 | 0.9953 |",
        "| weakest class | middle: recall 98.71% |",
        "On 9,876 test images",
        "54,321 training and 4,321 validation images of mnist",
        "After 9 epochs, with the weights of epoch 7: validation accuracy 97.65%, training accuracy 98.76%",
        "| `model.onnx` | 628,669 | 99.54% | 2.4e-06 |",
        "| `model.pt2` | 701,234 | 99.53% | 0.0e+00 |",
        "| `model.channels` | [2, 3] |",
        "| `train.keep` | best |",
        "| `seed` | 3 |",
        "## What may improve it\n\n- try this\n- and that\n",
    ):
        assert told in card, told


def test_code_in_the_model_card_runs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = exporting.model_card("mnist", DESCRIPTION, RESULTS, "- nothing")
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(exported)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 3)
