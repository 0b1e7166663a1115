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

from digits.datasets import MNIST_SHAPE
from digits.errors import UserError
from digits.learning import evaluation, exporting, models, networks
from digits.learning.description import Description
from digits.learning.evaluation import Predictions
from digits.learning.exporting import Exported
from digits.learning.layers import Calibrated
from tests.conftest import CLASSES, ROOT, bars

KNOBS: dict[str, Any] = {"crop": 0, "channels": [2, 3], "hidden": 5, "dropout": 0.5}
TRAINING = {"seed": 3, "train": {"epochs": 2, "keep": "best"}}
DESCRIPTION = Description("cnn", list(CLASSES), KNOBS, TRAINING, {"data/train": "1a2b"}, "3c4d")
EXPORT_ELSEWHERE = """
import logging
from pathlib import Path
from digits.learning import exporting, models
network, description = models.load(Path("model.safetensors"))
program = exporting.capture(network, description.shape)
exporting.write_onnx(program, Path("model.onnx"), 18, description)
exporting.write_pt2(program, Path("other name.pt2"), description)
assert not logging.root.manager.disable
"""


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = networks.build("cnn", len(CLASSES), KNOBS, mean=0.2, std=0.3)
    network(torch.rand(64, 1, 28, 28))  # so that batch norm has statistics of its own
    return network.eval()


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    models.save(network, DESCRIPTION, folder / "model.safetensors")
    program = exporting.capture(network, MNIST_SHAPE)
    exporting.write_onnx(program, folder / "model.onnx", 18, DESCRIPTION)
    exporting.write_pt2(program, folder / "model.pt2", DESCRIPTION)
    return folder


@pytest.fixture(scope="module")
def elsewhere(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Export the same model with a copy of the code in another folder; return the folder, and all that was printed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(ROOT / "digits", folder / "digits", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(exported / "model.safetensors", folder)
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONHASHSEED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", EXPORT_ELSEWHERE]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


@pytest.mark.parametrize("size", [1, 2, 7])
def test_exported_files_return_the_logits_of_the_network_for_any_batch_size(
    network: nn.Module, exported: Path, size: int
) -> None:
    split = bars(15, seed=2)
    expected = evaluation.predict(network, split, 15, torch.device("cpu")).logits
    found = exporting.run_onnx(exported / "model.onnx", split, size, threads=1)
    also_found = exporting.run_pt2(exported / "model.pt2", split, size)
    for logits in (found, also_found):
        assert logits.shape == (15, len(CLASSES))
        assert (logits - expected).abs().max() < 1e-5


def test_mlp_is_exported_as_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = networks.build("mlp", 3, {"hidden": [4], "dropout": 0.5}).eval()
    split = bars(5)
    expected = evaluation.predict(network, split, 5, torch.device("cpu")).logits
    program = exporting.capture(network, MNIST_SHAPE)
    exporting.write_onnx(program, tmp_path / "model.onnx", 21, DESCRIPTION)
    exporting.write_pt2(program, tmp_path / "model.pt2", DESCRIPTION)
    assert (exporting.run_onnx(tmp_path / "model.onnx", split, 1, threads=1) - expected).abs().max() < 1e-5
    assert (exporting.run_pt2(tmp_path / "model.pt2", split, 1) - expected).abs().max() < 1e-5
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 21


def test_onnx_file_is_readable_by_old_runtimes_and_names_its_input_and_output(exported: Path) -> None:
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


@pytest.mark.slow
def test_files_exported_from_another_folder_by_another_process_are_the_same_bytes(
    exported: Path, elsewhere: tuple[Path, str]
) -> None:
    folder, _ = elsewhere
    assert (folder / "model.onnx").read_bytes() == (exported / "model.onnx").read_bytes()
    assert (folder / "other name.pt2").read_bytes() == (exported / "model.pt2").read_bytes()


@pytest.mark.slow
def test_export_prints_nothing_and_leaves_logging_and_the_folder_as_they_were(elsewhere: tuple[Path, str]) -> None:
    folder, printed = elsewhere
    assert printed == ""
    assert {path.name for path in folder.iterdir()} == {"digits", "model.safetensors", "model.onnx", "other name.pt2"}


def test_exported_files_contain_no_path_of_the_source(exported: Path) -> None:
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    contents.append((exported / "model.onnx").read_bytes())
    for content in contents:
        assert not any(word in content for word in (b"networks.py", b"layers.py", b"site-packages", str(ROOT).encode()))


EXPECTED = Predictions(bars(3), torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 1.9], [0.0, 2.0, 0.0]]))


def test_file_that_agrees_with_the_trained_model_is_described_by_size_accuracy_and_difference(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"seven b")
    logits = EXPECTED.logits.clone()
    logits[0, 1] = -0.25
    assert exporting.verify(path, logits, EXPECTED, 1.0, 0.25) == Exported(7, 2 / 3, 0.25)
    assert exporting.verify(path, logits * 4, EXPECTED, 0.25, 1.0) == Exported(7, 2 / 3, 1.0)


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        (
            (0, 0),
            2.5,
            "0 of 3 test images get another class, logits differ by 0.5 (params.yaml: export.tolerance: 0.3)",
        ),
        ((1, 2), 2.1, "1 of 3 test images get another class, logits differ by 0.2"),
        ((0, 0), float("nan"), "0 of 3 test images get another class, logits differ by nan"),
    ],
)
def test_file_that_differs_from_the_trained_model_is_rejected(
    tmp_path: Path, place: tuple[int, int], value: float, fault: str
) -> None:
    logits = EXPECTED.logits.clone()
    logits[place] = value
    with pytest.raises(UserError) as refusal:
        exporting.verify(tmp_path / "model.onnx", logits, EXPECTED, 1.0, 0.3)
    assert str(refusal.value).startswith(f"{tmp_path / 'model.onnx'}: not the trained model: ")
    assert fault in str(refusal.value)


def test_calibrated_network_divides_its_logits_and_is_exported(tmp_path: Path) -> None:
    network = networks.build("linear", 3, {}).eval()
    split = bars(6)
    trained = evaluation.predict(network, split, 4, torch.device("cpu"))
    program = exporting.capture(Calibrated(network, 0.25).eval(), MNIST_SHAPE)
    exporting.write_onnx(program, tmp_path / "model.onnx", 18, Description("linear", [], {}, {}, {}, ""))
    found = exporting.run_onnx(tmp_path / "model.onnx", split, 4, 1)
    assert torch.allclose(found, 4 * trained.logits, atol=1e-5)


def test_operations_are_the_multiplications_of_one_image() -> None:
    assert (
        exporting.operations(networks.build("mlp", 10, {"hidden": [7], "dropout": 0.0}), MNIST_SHAPE)
        == 784 * 7 + 7 * 10
    )
