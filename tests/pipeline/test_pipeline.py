"""The whole pipeline as people run it: real MNIST, real DVC, a real MLflow database."""

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml

from digits.images import batches, splits
from digits.images.batches import to_float
from digits.images.splits import Split
from digits.learning import evaluation, models
from digits.serving.reading import Model

from ..serving.servers import ask
from .conftest import DIGITS, Project
from .servers import free_port, serving

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def test_first_run_writes_everything_and_leaves_one_complete_run(finished: Project) -> None:
    stages = yaml.safe_load((finished.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for stage in stages.values():
        for out in [out for kind in ("outs", "plots", "metrics") for out in stage.get(kind, [])]:
            assert (finished.root / (next(iter(out)) if isinstance(out, dict) else out)).exists()
    assert finished.json("metrics/dataset.json")["train.count"] == 55_000
    assert finished.json("metrics/test.json")["accuracy"] > 0.97
    (run,) = finished.mlflow_runs()
    finished.assert_complete(run)


def test_run_names_its_code_data_and_model(finished: Project) -> None:
    run, md5 = finished.mlflow_runs()[0], finished.locked()
    tags, counts = run.data.tags, finished.json("metrics/dataset.json")
    assert run.inputs
    assert {(one.dataset.name, one.dataset.digest, one.tags[0].value) for one in run.inputs.dataset_inputs} == {
        ("mnist train", md5["data/splits/train.safetensors"], "training"),
        ("mnist validation", md5["data/splits/validation.safetensors"], "validation"),
        ("mnist test", md5["data/splits/test.safetensors"], "test"),
    }
    for one in run.inputs.dataset_inputs:
        split = one.dataset.name.split()[1]
        size = (finished.root / f"data/splits/{split}.safetensors").stat().st_size
        assert json.loads(str(one.dataset.profile)) == {"num_rows": counts[f"{split}.count"], "bytes": size}
    for name, path in {"model": "model.safetensors", "onnx": "export/model.onnx", "pt2": "export/model.pt2"}.items():
        assert tags[f"mlflow.digits.{name}"] == md5[f"models/{path}"]
    assert len([key for key in tags if not key.startswith("mlflow.")]) <= 10
    assert tags["git_commit"] == finished.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    assert tags["git_dirty"] == "false"


def test_curve_in_mlflow_is_the_curve_in_the_file(finished: Project) -> None:
    (run,) = finished.mlflow_runs()
    with (finished.root / "plots/training.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {"loss/train": "train_loss", "loss/validation": "validation_loss"}
    columns |= {"error/train": "train_accuracy", "error/validation": "validation_accuracy"}
    for name, column in {**columns, "schedule/learning_rate": "learning_rate"}.items():
        history = finished.client.get_metric_history(run.info.run_id, name)
        values = [float(row[column]) for row in rows]
        expected = [100 * (1 - value) for value in values] if name.startswith("error/") else values
        assert [metric.value for metric in history] == pytest.approx(expected, abs=1e-6)


def test_registered_model_scores_as_evaluate_reported(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.pyfunc

    mlflow.set_tracking_uri(finished.tracking_uri)  # another test of this process may have set another
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model("models:/mnist-classifier/1")
    test = splits.load(finished.root / "data/splits/test.safetensors")
    logits = torch.from_numpy(model.predict(batches.to_float(test.images).numpy()))
    assert evaluation.score(logits, test.labels)[1] == finished.json("metrics/test.json")["accuracy"]


def test_registered_model_is_served_without_torch(finished: Project, tmp_path: Path) -> None:
    port, address = free_port(), "models:/mnist-classifier@champion"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", address, "--env-manager", "local"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": finished.tracking_uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    images = to_float(splits.load(finished.root / "data/splits/test.safetensors").images[:100]).numpy()
    body = json.dumps({"inputs": images.tolist()}).encode()
    url, answers = f"http://127.0.0.1:{port}", list[tuple[int, Any]]()

    def ready() -> bool:
        try:
            answers.append(ask(f"{url}/invocations", body, "application/json"))
        except OSError:
            return False
        return True

    with serving([*command, "--port", str(port)], ready, tmp_path / "log", environment=environment):
        ((code, found),) = answers
        assert code == 200
        exported = Model(finished.root / "models/export/model.onnx")
        np.testing.assert_allclose(found["predictions"], exported.logits(images), atol=1e-4)
        started = psutil.Process().children(recursive=True)
        processes = [one for one in started if any("mlflow" in word for word in one.cmdline())]
        if sys.platform == "linux":
            loaded = {Path(one.path).name for process in processes for one in process.memory_maps()}
            assert any("onnxruntime" in name for name in loaded)
            assert not [name for name in loaded if name.startswith("libtorch")]


def test_second_repro_does_nothing(finished: Project) -> None:
    assert "up to date" in finished.run("dvc", "repro").stdout
    assert not finished.run("git", "status", "--porcelain").stdout
    assert len(finished.mlflow_runs()) == 1


def test_test_set_is_read_by_no_stage_before_evaluate(finished: Project) -> None:
    stages = yaml.safe_load((finished.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    readers = [name for name, stage in stages.items() if "data/splits/test.safetensors" in stage["deps"]]
    assert readers == ["evaluate", "export"]


@pytest.mark.parametrize("shift", [(0, 1), (0, -1), (1, 0), (-1, 0)])
def test_digit_shifted_by_a_pixel_keeps_its_class(finished: Project, shift: tuple[int, int]) -> None:
    network, _ = models.load(finished.root / "models/model.safetensors")
    test = splits.load(finished.root / "data/splits/test.safetensors")[:2000]
    moved = Split(test.images.roll(shift, dims=(2, 3)), test.labels, test.classes)
    first, second = (evaluation.predict(network, split, 250, CPU).predicted for split in (test, moved))
    assert (first == second).double().mean() > 0.97


def test_every_class_is_recognized(finished: Project) -> None:
    recall = [value for key, value in finished.json("metrics/test.json").items() if key.startswith("recall.")]
    assert len(recall) == 10
    assert min(recall) > 0.93


def test_blank_image_gets_less_confidence_than_a_digit(finished: Project) -> None:
    network, _ = models.load(finished.root / "models/model.safetensors")
    test = splits.load(finished.root / "data/splits/test.safetensors")[:500]
    blank = Split(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1, dtype=torch.long), test.classes)
    of_blank, of_digits = (evaluation.predict(network, split, 250, CPU).confidence for split in (blank, test))
    assert of_blank.item() < of_digits.median().item()


def test_prediction_of_an_image_file(finished: Project, tmp_path: Path) -> None:
    from PIL import Image

    test = splits.load(finished.root / "data/splits/test.safetensors")
    picture = Image.fromarray(255 - test.images[0, 0].numpy()).resize((200, 200))  # dark on white, large
    picture.save(tmp_path / "seven.png")
    done = finished.run(*DIGITS, "predict", str(tmp_path / "seven.png"))
    assert done.stdout.startswith(f"{tmp_path / 'seven.png'}: 7 (")
