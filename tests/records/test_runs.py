"""What is logged beside the stages: when one stops or is killed, and when MLflow cannot be used."""

import contextlib
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from digits.errors import UserError
from digits.records import runs
from digits.records.names import KEY

from ..conftest import ROOT
from ..stages.conftest import SHORT, run_stage, write_params
from .conftest import EPOCH, experiment, newest, training_run


def test_epochs_can_be_seen_during_training(client: MlflowClient) -> None:
    with training_run() as live:
        live.log(EPOCH)
        run = newest(client)
    assert run.info.status == "RUNNING"
    assert run.data.metrics["error/validation"] == 20
    assert run.data.params["train.epochs"] == "2"


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (UserError, "FAILED")]
)
def test_run_of_a_stage_that_stops_says_so(client: MlflowClient, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), training_run():
        raise error
    assert newest(client).info.status == status


KILLED = f"""
import os, signal, sys, torch
sys.path.insert(0, {str(ROOT)!r})
from digits import params
from digits.learning import networks, runtime
from digits.learning.curve import Epoch
from digits.records.runs import TrainingRun
p = params.load(networks.check)
live = TrainingRun(p, runtime.recorded(p.runtime, torch.device("cpu")), "key").__enter__()
live.log({EPOCH!r})
print(live._run_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_a_training() -> str:
    """Let a process begin a run, log an epoch and be killed; return the run's id."""
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert done.returncode < 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_run_of_a_killed_training_is_resumed_by_the_same_training(client: MlflowClient) -> None:
    killed = kill_a_training()
    assert client.get_run(killed).info.status == "RUNNING"
    with contextlib.suppress(UserError), training_run("key") as live:
        live.log(EPOCH)
        live.log(replace(EPOCH, epoch=2))
        raise UserError
    assert newest(client).info.run_id == killed
    assert [metric.step for metric in client.get_metric_history(killed, "loss/train")] == [1, 2]
    assert newest(client).info.status == "FAILED"


def test_run_that_was_only_just_created_is_completed_when_it_is_resumed(client: MlflowClient) -> None:
    tags = {f"{KEY}training": "begun", f"{KEY}process": f"{platform.node()} 0 1.00"}
    begun = client.create_run(experiment(client), tags=tags).info.run_id
    with pytest.raises(UserError), training_run("begun"):
        raise UserError
    run = client.get_run(begun)
    assert run.data.params["train.epochs"] == "2"
    assert run.info.status == "FAILED"
    assert mlflow.artifacts.load_dict(f"runs:/{begun}/{runs.RECORD}")["environment"]["threads"]


@pytest.mark.slow
def test_run_of_a_killed_training_is_marked_by_another_one(client: MlflowClient) -> None:
    killed = kill_a_training()
    with training_run("other") as live:
        live.log(EPOCH)
        with training_run("third"):  # the run of a live process is left alone
            pass
        assert client.get_run(killed).info.status == "KILLED"
        assert newest(client).info.run_id != killed


def test_run_records_what_its_last_bits_depend_on(client: MlflowClient) -> None:
    with contextlib.suppress(UserError), training_run():
        raise UserError
    run = newest(client)
    environment = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/{runs.RECORD}")["environment"]
    for name in ("processor", "instructions", "threads", "device", "precision", "torch", "numpy", "python", "mlflow"):
        assert environment[name]
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == str(torch.get_num_threads())
    assert run.data.tags["machine"] == "cpu, {threads} threads, {precision}, torch {torch}".format(**environment)


def test_run_of_an_experiment_has_its_name(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "bold-try")
    with pytest.raises(UserError), training_run():
        raise UserError
    run = newest(client)
    assert run.info.run_name == run.data.tags["dvc_experiment"] == "bold-try"


@pytest.mark.slow
def test_epochs_that_could_not_be_logged_live_are_added_at_the_end(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("download", "preprocess"):
        run_stage(stage)
    log_epochs, calls = runs.log_epochs, []

    def fail_the_second_time(*arguments: Any, **more: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise ConnectionError("gone")
        log_epochs(*arguments, **more)

    monkeypatch.setattr(runs, "log_epochs", fail_the_second_time)
    write_params(SHORT | {"train.epochs": 4})
    run_stage("train")
    run = newest(client)
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss/train")]
    assert steps == [1, 2, 3, 4]
    assert len(calls) == 3  # the first, the one that failed, and all that was missing
    assert run.info.status == "FINISHED"
    assert capsys.readouterr().err.count("gone") == 1


@pytest.mark.slow
def test_same_params_trained_twice_are_two_runs_and_evaluation_belongs_to_the_newer(client: MlflowClient) -> None:
    for stage in ("download", "preprocess", "train", "evaluate"):
        run_stage(stage)
    first = newest(client)
    run_stage("train")
    second = newest(client)
    assert second.info.run_id != first.info.run_id
    assert "error/test" not in second.data.metrics
    run_stage("evaluate")
    assert newest(client).info.run_id == second.info.run_id
    assert newest(client).data.metrics["error/test"] == first.data.metrics["error/test"]


@pytest.mark.usefixtures("miniature")
def test_unusable_database_costs_one_line_and_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for stage in ("download", "preprocess"):
        run_stage(stage)
    capsys.readouterr()
    run_stage("train")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("MLflow at http://127.0.0.1:9 cannot be used: ")
    assert Path("models/model.safetensors").exists()
    assert Path("metrics/train.json").exists()


@pytest.mark.slow
def test_without_mlflow_nothing_is_logged_and_nothing_is_said(
    miniature: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    for stage in ("download", "preprocess", "train", "evaluate", "export"):
        run_stage(stage)
    assert "MLflow" not in "".join(capsys.readouterr())
    assert not {path.name for path in miniature.iterdir()} & {"mlflow.db", "mlartifacts", "mlruns", "off"}
