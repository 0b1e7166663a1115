"""A change to params.yaml or to data: what runs again, and what MLflow and DVC show of it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from digits.datasets import FILES
from digits.errors import UserError
from digits.images.idx import format_idx, read_idx

from .conftest import DIGITS, Project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workshop(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy whose results were logged to MLflow from the files, and with DVC's run cache."""
    copy = finished.copy(tmp_path_factory.mktemp("workshop") / "project")
    copy.run(*DIGITS, "sync")
    shutil.copytree(finished.root / ".dvc/cache/runs", copy.root / ".dvc/cache/runs")
    return copy


def test_results_logged_by_sync_are_one_complete_run(project: Project) -> None:
    (run,) = project.mlflow_runs()
    project.assert_complete(run)


def test_code_edited_while_a_stage_runs_is_not_recorded_as_what_made_its_result(project: Project) -> None:
    lock, runs = (project.root / "dvc.lock").read_bytes(), len(project.mlflow_runs())
    file = project.root / "digits/reports/advice.py"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        ["dvc", "repro", "--force", "--single-item", "evaluate"],
        cwd=project.root,
        env={name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
        | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert any(line.startswith("test accuracy") for line in process.stdout)
        file.write_text(file.read_text() + "# edited\n")
        _, errors = process.communicate(timeout=100)
    assert process.returncode
    assert "digits/reports/advice.py: edited after evaluate had read it: its result is not kept" in errors
    assert (project.root / "dvc.lock").read_bytes() == lock
    assert len(project.mlflow_runs()) == runs


def test_bad_params_are_a_line_each_and_lose_nothing(project: Project, call: Callable[..., str]) -> None:
    done = project.run("dvc", "exp", "run", "-S", "train.epochs=abc", "-S", "+train.typo=1", fails=True)
    told = sorted(line for line in done.stderr.splitlines() if line.startswith("params.yaml: "))
    assert len(told) == 2
    assert told[0] == "params.yaml: train.epochs: must be a valid integer, not 'abc'"
    assert told[1].startswith("params.yaml: train.typo: unknown key; known there: epochs, batch_size, optimizer")
    assert "Traceback" not in done.stderr
    with pytest.raises(UserError, match=r"^workspace: has no metrics/train\.json, so no result; `dvc repro` makes it$"):
        call(project, "compare")  # before anything is restored
    project.restore()
    assert "up to date" in project.run("dvc", "status").stdout


def test_changed_knob_of_evaluate_gives_a_complete_run_without_training(project: Project) -> None:
    before = len(project.mlflow_runs())
    project.edit("bins: 15 ", "bins: 10 ")
    done = project.run("dvc", "repro")
    assert "Running stage 'train'" not in done.stdout
    assert len(project.mlflow_runs()) == before + 1
    project.assert_complete(project.mlflow_runs()[0])


@pytest.mark.stress
def test_run_is_complete_though_export_is_skipped_and_going_back_needs_no_new_run(project: Project) -> None:
    """Here the outputs of train, and so the inputs of export, are as before."""
    before = len(project.mlflow_runs())
    project.edit("device: auto", "device: cpu")
    done = project.run("dvc", "repro")
    assert "Running stage 'evaluate'" in done.stdout
    assert "Running stage 'export'" not in done.stdout
    assert len(project.mlflow_runs()) == before + 1
    project.assert_complete(project.mlflow_runs()[0])

    project.edit("device: cpu", "device: auto")
    done = project.run("dvc", "repro")
    for stage in ("train", "evaluate"):
        assert f"Stage '{stage}' is cached - skipping run" in done.stdout
    assert not project.run("git", "status", "--porcelain").stdout
    # The run that these restored files belong to is found again by their content.
    project.run("dvc", "repro", "--force", "--single-item", "export")
    assert len(project.mlflow_runs()) == before + 1


def test_evaluating_again_adds_no_run_and_changes_none(project: Project) -> None:
    before = project.mlflow_runs()
    project.run("dvc", "repro", "--force", "--single-item", "evaluate")
    after = project.mlflow_runs()
    assert [run.info.run_id for run in after] == [run.info.run_id for run in before]
    assert [run.data.metrics for run in after] == [run.data.metrics for run in before]


@pytest.mark.stress
def test_own_folder_of_images_is_watched(project: Project, tmp_path: Path) -> None:
    for file in FILES.values():
        count = 6000 if file.startswith("train") else 100
        (tmp_path / file).write_bytes(format_idx(read_idx(project.root / "data/raw" / file)[:count]))
    project.run("dvc", "exp", "run", "-S", "data.name=folder", "-S", f"data.folder={tmp_path}", "preprocess")
    assert "up to date" in project.run("dvc", "repro", "preprocess").stdout
    labels = tmp_path / "train-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[8] = (content[8] + 1) % 10
    labels.write_bytes(content)
    assert "Running stage 'download'" in project.run("dvc", "repro", "preprocess").stdout
    assert project.json("metrics/dataset.json")["train.count"] == 1000


def pictures(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> str:
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / f"class {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"class {label}" / f"{place}.png")
    return str(folder)


def test_own_pictures_go_through_the_whole_pipeline_and_are_watched(project: Project, tmp_path: Path) -> None:
    raw = project.root / "data/raw"
    images, labels = (read_idx(raw / FILES["train", kind])[:3000] for kind in ("images", "labels"))
    kept = labels != 5  # a class that nobody has
    own = pictures(tmp_path, images[kept], labels[kept])
    settings = ["-S", "data.name=folder", "-S", f"data.folder={own}", "-S", "split.validation=0.1"]
    done = project.run("dvc", "exp", "run", *settings, MLFLOW_TRACKING_URI="off")
    assert "the data have no test part" in done.stdout
    test, dataset = project.json("metrics/test.json"), project.json("metrics/dataset.json")
    assert test["accuracy"] > 0.8
    assert len([key for key in test if key.startswith("recall.")]) == 9
    assert dataset["test.count"] == round(0.15 * int(kept.sum()))
    card = (project.root / "models/export/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "The data had no test images of their own" in card
    assert "28 x 28 gray images into 9 classes" in card
    chosen = next(tmp_path.glob("class 3/*.png"))
    assert project.run(*DIGITS, "predict", str(chosen)).stdout.startswith(f"{chosen}: class ")
    chosen.unlink()
    assert str(tmp_path) in project.run("dvc", "status").stdout
