"""The whole pipeline as people use it, with real MNIST, real DVC and a real MLflow database."""

import csv
import io
import json
import os
import shutil
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from digits import data, evaluation, models

from .conftest import Project
from .servers import free_port, serving

CPU = torch.device("cpu")


def runs_of(project: Project, experiment: str) -> int:
    return sum(run.data.tags.get("dvc_experiment") == experiment for run in project.mlflow_runs())


def test_first_run_makes_everything_and_leaves_one_complete_run(finished: Project) -> None:
    stages = yaml.safe_load((finished.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for stage in stages.values():
        for out in [out for kind in ("outs", "plots", "metrics") for out in stage.get(kind, [])]:
            assert (finished.root / (next(iter(out)) if isinstance(out, dict) else out)).exists()
    assert finished.json("metrics/dataset.json")["train.count"] == 55_000
    assert finished.json("metrics/test.json")["accuracy"] > 0.97
    (run,) = finished.mlflow_runs()
    finished.assert_complete(run)


def test_run_says_which_code_data_and_model(finished: Project) -> None:
    tags = finished.mlflow_runs()[0].data.tags
    lock = yaml.safe_load((finished.root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    md5 = {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}
    assert tags["train_md5"] == md5["data/splits/train.safetensors"]
    assert tags["validation_md5"] == md5["data/splits/validation.safetensors"]
    assert tags["test_md5"] == md5["data/splits/test.safetensors"]
    assert tags["model_md5"] == md5["models/model.safetensors"]
    assert tags["git_commit"] == finished.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    assert tags["git_dirty"] == "false"


def test_curve_in_mlflow_is_the_curve_in_the_file(finished: Project) -> None:
    (run,) = finished.mlflow_runs()[-1:]
    with (finished.root / "plots/training.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy", "learning_rate"):
        history = finished.client.get_metric_history(run.info.run_id, name)
        assert [metric.value for metric in history] == [float(row[name]) for row in rows]


def test_registered_model_scores_as_evaluate_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.pyfunc

    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model("models:/mnist-classifier/1")
    test = data.load(project.root / "data/splits/test.safetensors")
    logits = torch.from_numpy(model.predict(data.to_float(test.images).numpy()))
    assert evaluation.score(logits, test.labels)[1] == project.json("metrics/test.json")["accuracy"]


def test_second_repro_does_nothing(project: Project) -> None:
    before = len(project.mlflow_runs())
    assert "up to date" in project.run("dvc", "repro").stdout
    assert not project.run("git", "status", "--porcelain").stdout
    assert len(project.mlflow_runs()) == before


def test_test_set_is_read_by_no_stage_before_evaluate(project: Project) -> None:
    stages = yaml.safe_load((project.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    readers = [name for name, stage in stages.items() if "data/splits/test.safetensors" in stage["deps"]]
    assert readers == ["evaluate", "export"]


@pytest.mark.parametrize("shift", [(0, 1), (0, -1), (1, 0), (-1, 0)])
def test_digit_shifted_by_a_pixel_keeps_its_class(project: Project, shift: tuple[int, int]) -> None:
    network, _ = models.load(project.root / "models/model.safetensors")
    test = data.load(project.root / "data/splits/test.safetensors")[:2000]
    moved = data.Split(test.images.roll(shift, dims=(2, 3)), test.labels, test.classes)
    still = evaluation.predict(network, test, 250, CPU).argmax(dim=1)
    assert (evaluation.predict(network, moved, 250, CPU).argmax(dim=1) == still).double().mean() > 0.97


def test_every_class_is_recognised(project: Project) -> None:
    recall = [value for key, value in project.json("metrics/test.json").items() if key.startswith("recall.")]
    assert len(recall) == 10
    assert min(recall) > 0.93


def test_blank_image_gets_less_confidence_than_a_digit(project: Project) -> None:
    network, _ = models.load(project.root / "models/model.safetensors")
    test = data.load(project.root / "data/splits/test.safetensors")[:500]
    blank = data.Split(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1, dtype=torch.long), test.classes)
    confidence = [
        evaluation.predict(network, split, 250, CPU).softmax(dim=1).max(dim=1).values for split in (blank, test)
    ]
    assert confidence[0].item() < confidence[1].median().item()


def test_experiment_shows_in_dvc_and_in_mlflow(project: Project) -> None:
    project.run("dvc", "exp", "run", "--name", "faster", "-S", "train.learning_rate=0.1")
    assert "train.learning_rate" in project.run("dvc", "params", "diff").stdout
    assert "validation_loss" in project.run("dvc", "metrics", "diff").stdout
    table = list(csv.DictReader(io.StringIO(project.run("dvc", "exp", "show", "--csv").stdout)))
    (row,) = [row for row in table if row["Experiment"] == "faster"]
    assert float(row["train.learning_rate"]) == 0.1
    assert float(row["validation_accuracy"]) == project.json("metrics/train.json")["validation_accuracy"]
    run = project.mlflow_runs()[0]
    assert run.data.tags["dvc_experiment"] == run.info.run_name == "faster"
    project.assert_complete(run)


def test_queued_experiments_log_to_the_same_place(project: Project) -> None:
    before = len(project.mlflow_runs())
    for name, width in (("narrow", 16), ("wide", 32)):
        settings = ["-S", "model.name=mlp", "-S", f"model.mlp.hidden=[{width}]"]
        project.run("dvc", "exp", "run", "--queue", "--name", name, *settings)
    project.run("dvc", "queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 300
    while any(state in project.run("dvc", "queue", "status").stdout for state in ("Queued", "Running")):
        assert time.monotonic() < deadline
        time.sleep(2)
    assert project.run("dvc", "queue", "status").stdout.count("Success") == 2
    runs = {run.info.run_name: run for run in project.mlflow_runs()}
    assert len(project.mlflow_runs()) == before + 2
    assert runs["narrow"].data.params["model.mlp.hidden"] == "[16]"
    assert runs["wide"].data.params["model.mlp.hidden"] == "[32]"
    project.run("dvc", "exp", "apply", "wide")
    project.assert_complete(runs["wide"])


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("train.epochs=abc", "params.yaml: train.epochs: must be a valid integer, not 'abc'"),
        ("+train.typo=1", "params.yaml: train.typo: unknown key; known there: epochs, batch_size, optimizer"),
        ("train.learning_rate=-1", "params.yaml: train.learning_rate: must be greater than 0, not -1"),
        (
            "model.name=transformer",
            "params.yaml: model.name: must be a network with a section there (cnn, linear, mlp, resnet), "
            "not 'transformer'",
        ),
    ],
)
def test_bad_param_is_one_line_and_loses_nothing(project: Project, setting: str, line: str) -> None:
    done = project.run("dvc", "exp", "run", "-S", setting, fails=True)
    assert (
        [text for text in done.stderr.splitlines() if text.startswith("params.yaml: ")]
        == [text for text in done.stderr.splitlines() if text.startswith(line)]
        != []
    )
    assert "Traceback" not in done.stderr
    compared = project.run("python", "-m", "digits.compare", fails=True)  # before anything is put back
    assert compared.stderr == "workspace: has no metrics/train.json, so no result; `dvc repro` makes it\n"
    project.restore()
    assert "up to date" in project.run("dvc", "status").stdout


def edit(project: Project, old: str, new: str) -> None:
    path = project.root / "params.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_changed_knob_of_evaluate_gives_a_complete_run_without_training(project: Project) -> None:
    before = len(project.mlflow_runs())
    edit(project, "bins: 15 ", "bins: 10 ")
    done = project.run("dvc", "repro")
    assert "Running stage 'train'" not in done.stdout
    assert len(project.mlflow_runs()) == before + 1
    project.assert_complete(project.mlflow_runs()[0])


def test_run_is_complete_though_export_is_skipped_because_its_inputs_came_out_as_before(project: Project) -> None:
    before = len(project.mlflow_runs())
    edit(project, "device: auto", "device: cpu")
    done = project.run("dvc", "repro")
    assert "Running stage 'evaluate'" in done.stdout
    assert "Running stage 'export'" not in done.stdout
    assert len(project.mlflow_runs()) == before + 1
    project.assert_complete(project.mlflow_runs()[0])


def test_evaluating_again_adds_no_run_and_changes_none(project: Project) -> None:
    before = project.mlflow_runs()
    project.run("dvc", "repro", "--force", "--single-item", "evaluate")
    after = project.mlflow_runs()
    assert [run.info.run_id for run in after] == [run.info.run_id for run in before]
    assert [run.data.metrics for run in after] == [run.data.metrics for run in before]


def test_outputs_restored_from_the_run_cache_need_no_new_run(project: Project) -> None:
    before = len(project.mlflow_runs())
    edit(project, "smoothing: 0.1", "smoothing: 0.2")
    project.run("dvc", "repro")
    edit(project, "smoothing: 0.2", "smoothing: 0.1")
    done = project.run("dvc", "repro")
    assert "is cached - skipping run" in done.stdout
    assert not project.run("git", "status", "--porcelain").stdout
    assert len(project.mlflow_runs()) == before + 1
    # The run that these restored files belong to is found again by their content.
    project.run("dvc", "repro", "--force", "--single-item", "export")
    assert len(project.mlflow_runs()) == before + 1


def test_lost_database_is_made_again_from_the_files(project: Project, tmp_path: Path) -> None:
    database, artifacts = project.root / "mlflow.db", project.root / "mlartifacts"
    with set_aside(database), set_aside(artifacts):
        project.run("dvc", "repro", "--force", "--single-item", "evaluate")
        # Under another name, since this process still has the file open that was set aside.
        anew = Project(project.root, str(shutil.copy(database, tmp_path)))
        (run,) = anew.mlflow_runs()
        anew.assert_complete(run)


@contextmanager
def set_aside(path: Path) -> Iterator[None]:
    """Move a file or folder away for a while."""
    hidden = path.with_name(f"{path.name}.aside")
    path.rename(hidden)
    try:
        yield
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        hidden.rename(path)


@contextmanager
def silent_server() -> Iterator[str]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    uri = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rsplit(":")[-1]]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"

    def ready() -> bool:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=2).close()
        except OSError:
            return False
        return True

    with serving(command, ready, folder / "log", folder=folder, environment=environment):
        yield uri


def test_silent_tracking_server_costs_a_line_and_sync_fills_the_run_in_later(project: Project, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    edit(project, "epochs: 1", "epochs: 2")
    with silent_server() as uri:
        done = project.run("dvc", "repro", MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_TIMEOUT="1")
    lines = [line for line in done.stderr.splitlines() if uri in line]
    assert len(lines) == 3  # train, evaluate and export say it once each
    assert all("python -m digits.tracking sync" in line for line in lines)
    assert "Traceback" not in done.stderr
    assert project.json("metrics/train.json")["epochs"] == 2

    sync = (sys.executable, "-m", "digits.tracking", "sync")
    assert uri in project.run(*sync, fails=True, MLFLOW_TRACKING_URI=uri).stderr
    with mlflow_server(tmp_path) as uri:
        for _ in range(2):  # the second finds everything done
            project.run(*sync, measured=True, MLFLOW_TRACKING_URI=uri)
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("mnist")
        assert experiment
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.data.metrics["test_accuracy"] == project.json("metrics/test.json")["accuracy"]
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train_loss")] == [1, 2]
        assert len(client.search_model_versions("name='mnist-classifier'")) == 1
        assert [file.path for file in client.list_artifacts(run.info.run_id, "models")] != []


def test_sync_refuses_results_that_do_not_belong_together(project: Project) -> None:
    edit(project, "smoothing: 0.1", "smoothing: 0.3")
    done = project.run(sys.executable, "-m", "digits.tracking", "sync", fails=True)
    assert "run `dvc repro` first" in done.stderr
    assert "Traceback" not in done.stderr


def test_own_folder_of_images_is_watched(project: Project, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(project.root / "data/raw", own)
    settings = ["-S", "data.name=folder", "-S", f"data.folder={own}", "-S", "model.name=mlp"]
    project.run("dvc", "exp", "run", *settings, "preprocess")
    assert "up to date" in project.run("dvc", "repro", "preprocess").stdout
    labels = own / "train-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[8] = (content[8] + 1) % 10
    labels.write_bytes(content)
    assert "Running stage 'download'" in project.run("dvc", "repro", "preprocess").stdout
    assert json.loads((project.root / "metrics/dataset.json").read_text())["train"]["count"] == 55_000


def test_prediction_of_an_image_file(project: Project, tmp_path: Path) -> None:
    from PIL import Image

    test = data.load(project.root / "data/splits/test.safetensors")
    picture = Image.fromarray(255 - test.images[0, 0].numpy()).resize((200, 200))  # dark on white, large
    picture.save(tmp_path / "seven.png")
    done = project.run(sys.executable, "-m", "digits.predict", str(tmp_path / "seven.png"))
    assert done.stdout.startswith(f"{tmp_path / 'seven.png'}: 7 (")
