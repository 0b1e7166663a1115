"""The process that logs beside a stage: it imports no torch, ends with its stage, and keeps nothing waiting."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from digits.files import flatten
from digits.params import Params
from digits.records import recorder

from ..conftest import ROOT, Change
from ..stages.conftest import SHORT, run_stage, write_params
from .conftest import experiment, newest

LIGHT = "import sys, digits.records.recorder, digits.records.runs, digits.records.registry; print(*sys.modules)"


def stage(name: str, **more: str) -> subprocess.Popen[str]:
    """Start a stage as DVC does, in the working directory, with this repository's code."""
    command = [sys.executable, "-m", f"stages.{name}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | more
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_it_imports_neither_torch_nor_figures() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "matplotlib", "scipy", "pandas", "mlflow"} & set(done.stdout.split())


def test_params_arrive_as_they_were_sent(change: Change) -> None:
    p = change({"recipe": "best", "train.learning_rate": 0.1 + 0.2})
    again = Params.model_validate_json(json.loads(json.dumps({"params": p.model_dump_json()}))["params"])
    assert again == p
    assert again.flat() == flatten(p.model_dump())


@pytest.mark.parametrize("argv", [["python", "-m", "stages.download"], ["pytest"], ["python", "stages/train.py"], []])
def test_it_is_started_by_stages_that_are_logged_only(argv: list[str]) -> None:
    recorder.start(argv)
    assert recorder._process is None


@pytest.mark.parametrize(
    ("code", "patience", "said"),
    [
        ("raise SystemExit(3)", 30, "the process that logs to it has ended"),
        ("import time; time.sleep(60)", 0.1, "not done after 0.1 s"),
    ],
)
def test_stage_waits_for_a_limited_time(
    code: str, patience: float, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    monkeypatch.setattr(recorder, "_process", process)
    monkeypatch.setattr(recorder, "PATIENCE", patience)
    recorder._finish()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f": {said}; the results are in the files, `python -m digits sync` logs them later")
    assert process.returncode in (3, -signal.SIGKILL)


@pytest.fixture
def prepared(client: MlflowClient) -> MlflowClient:  # it logs to that database
    """Make the splits for a training that lasts."""
    write_params(SHORT | {"train.epochs": 100_000})
    for name in ("download", "preprocess"):
        run_stage(name)
    return client


def wait_for(condition: Callable[[], Any]) -> Any:
    """Return what a condition says once that is true."""
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def child(process: subprocess.Popen[str]) -> psutil.Process:
    (found,) = psutil.Process(process.pid).children()
    return found


@pytest.mark.slow
def test_it_ends_with_a_stage_that_is_killed(prepared: MlflowClient) -> None:
    def learning() -> set[str]:  # other tests use the database as well
        runs = prepared.search_runs([experiment(prepared)], "metrics.`loss/train` > 0")
        return {run.info.run_id for run in runs}

    before = learning()
    process = stage("train")
    try:
        wait_for(lambda: learning() - before)
        beside = child(process)
    finally:
        process.kill()
    beside.wait(30)
    process.communicate()
    assert newest(prepared).info.status == "RUNNING"  # the training resumes it


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
def test_stage_whose_recorder_is_killed_keeps_its_result() -> None:
    write_params(SHORT | {"train.epochs": 20})
    process = stage("train")
    wait_for(lambda: psutil.Process(process.pid).children())
    child(process).kill()
    _, complaints = process.communicate(timeout=120)
    assert process.returncode == 0
    assert Path("models/model.safetensors").exists()
    assert len(complaints.splitlines()) == 1
    assert ": the process that logs to it has ended; the results are in the files" in complaints


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
def test_training_does_not_wait_for_a_server_that_is_silent() -> None:
    write_params(SHORT)
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = stage("train", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{server.getsockname()[1]}")
        wait_for(Path("metrics/train.json").exists)
        assert process.poll() is None  # it waits now, when all is done
        _, complaints = process.communicate(timeout=120)
    assert process.returncode == 0
    assert len(complaints.splitlines()) == 1
