"""The tracker beside the stages: what it does when a stage stops, when MLflow is not to be had, and where it writes."""

import contextlib
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run

from digits import params, tracking
from digits.command import UserError

from .conftest import REPOSITORY, SHORT, run_stage, write_params

ROW = {
    "epoch": 1,
    "train_loss": 0.5,
    "validation_loss": 0.6,
    "train_accuracy": 0.9,
    "validation_accuracy": 0.8,
    "learning_rate": 0.1,
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of its own for these tests: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


@pytest.fixture
def client(miniature: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    yield MlflowClient(database)
    assert miniature == Path.cwd()


def training_run(key: str = "key") -> tracking.TrainingRun:
    return tracking.TrainingRun(params.load(), torch.device("cpu"), key)


def newest(client: MlflowClient) -> Run:
    experiment = client.get_experiment_by_name("mnist")
    assert experiment
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]


def test_epochs_can_be_seen_while_training_goes_on(client: MlflowClient) -> None:
    with training_run() as live:
        live.log(ROW)
        run = newest(client)
    assert run.info.status == "RUNNING"
    assert run.data.metrics["validation_accuracy"] == 0.8
    assert run.data.params["train.epochs"] == "2"


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (UserError, "FAILED")]
)
def test_run_of_a_stage_that_stops_says_so(client: MlflowClient, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), training_run():
        raise error
    assert newest(client).info.status == status


KILLED = """
import os, signal, torch
from digits import params, tracking
row = {row}
live = tracking.TrainingRun(params.load(), torch.device("cpu"), "key").__enter__()
live.log(row)
print(live._run_id)
os.sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_a_training() -> str:
    """Let a process begin a run, log an epoch and be killed; give the run's id."""
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); {KILLED.format(row=ROW)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode < 0, done.stderr
    return done.stdout.strip()


def test_run_of_a_killed_training_is_gone_on_with_by_the_same_training(client: MlflowClient) -> None:
    killed = kill_a_training()
    assert client.get_run(killed).info.status == "RUNNING"
    with contextlib.suppress(UserError), training_run("key") as live:
        live.log(ROW)
        live.log(ROW | {"epoch": 2})
        raise UserError
    assert newest(client).info.run_id == killed
    assert [metric.step for metric in client.get_metric_history(killed, "train_loss")] == [1, 2]
    assert newest(client).info.status == "FAILED"


def test_run_of_a_killed_training_is_marked_by_another_one(client: MlflowClient) -> None:
    killed = kill_a_training()
    with training_run("other") as live:
        live.log(ROW)
        with training_run("third"):  # a run of a process that lives is left alone
            pass
        assert client.get_run(killed).info.status == "KILLED"
        assert newest(client).info.run_id != killed


def test_run_records_what_its_last_bits_depend_on(client: MlflowClient) -> None:
    with contextlib.suppress(UserError), training_run():
        raise UserError
    tags = newest(client).data.tags
    for name in ("processor", "instructions", "threads", "device", "precision", "torch", "numpy", "python", "mlflow"):
        assert tags[f"environment.{name}"]
    assert tags["environment.torch"] == torch.__version__
    assert tags["environment.threads"] == str(torch.get_num_threads())


def train_and_export(changes: dict[str, object]) -> None:
    write_params(SHORT | changes)
    for stage in ("download", "preprocess", "train", "evaluate", "export"):
        run_stage(stage)


def test_champion_moves_for_a_model_that_is_better_on_validation_by_more_than_chance(
    miniature: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{miniature / 'champion.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)

    def champion() -> str:
        return str(client.get_model_version_by_alias("mnist-classifier", "champion").version)

    bad: dict[str, object] = {"train.epochs": 1, "train.learning_rate": 1e-4}
    train_and_export(bad)
    assert champion() == "1"
    assert client.get_model_version("mnist-classifier", "1").tags["champion"] == "yes: the first"
    run_stage("export")
    assert len(client.search_model_versions("name='mnist-classifier'")) == 1  # the same model is no new version

    train_and_export(bad | {"seed": 1})  # another, as bad
    second = client.get_model_version("mnist-classifier", "2").tags
    assert champion() == "1"
    assert second["champion"].startswith("no: ")
    assert float(second["p"]) >= 0.05 or float(second["gain"]) < 0
    assert second["compared_with_version"] == "1"

    train_and_export({"train.epochs": 12, "train.batch_size": 16})
    third = client.get_model_version("mnist-classifier", "3").tags
    assert champion() == "3"
    assert float(third["gain"]) > 0
    assert float(third["p"]) < 0.05
    assert "of 60 validation images it puts" in third["champion"]
    assert float(third["validation_accuracy"]) > 0.9

    train_and_export({"train.epochs": 12, "train.batch_size": 16, "split.seed": 1})
    fourth = client.get_model_version("mnist-classifier", "4").tags
    assert champion() == "3"
    assert fourth["champion"] == "no: version 3 was validated on other images"
    assert capsys.readouterr().out.count("; champion? yes: ") == 2
    assert not [key for tags in (second, third, fourth) for key in tags if "test" in key]


def test_run_of_an_experiment_has_its_name(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "bold-try")
    with pytest.raises(UserError), training_run():
        raise UserError
    run = newest(client)
    assert run.info.run_name == run.data.tags["dvc_experiment"] == "bold-try"


def test_epochs_that_could_not_be_logged_live_are_added_at_the_end(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("download", "preprocess"):
        run_stage(stage)
    log_epochs, calls = tracking._log_epochs, []

    def fail_the_second_time(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise ConnectionError("gone")
        log_epochs(*arguments)  # type: ignore[arg-type]  # handed through as they come

    monkeypatch.setattr(tracking, "_log_epochs", fail_the_second_time)
    write_params(SHORT | {"train.epochs": 4})
    run_stage("train")
    run = newest(client)
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train_loss")]
    assert steps == [1, 2, 3, 4]
    assert len(calls) == 3  # the first, the one that failed, and all that was missing
    assert run.info.status == "FINISHED"
    assert capsys.readouterr().err.count("gone") == 1


def test_same_params_trained_twice_are_two_runs_and_evaluation_belongs_to_the_newer(client: MlflowClient) -> None:
    for stage in ("download", "preprocess", "train", "evaluate"):
        run_stage(stage)
    first = newest(client)
    run_stage("train")
    second = newest(client)
    assert second.info.run_id != first.info.run_id
    assert "test_accuracy" not in second.data.metrics
    run_stage("evaluate")
    assert newest(client).info.run_id == second.info.run_id
    assert newest(client).data.metrics["test_accuracy"] == first.data.metrics["test_accuracy"]


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


def test_without_mlflow_nothing_is_logged_and_nothing_is_said(
    miniature: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    for stage in ("download", "preprocess", "train", "evaluate", "export"):
        run_stage(stage)
    assert "MLflow" not in "".join(capsys.readouterr())
    assert not {path.name for path in miniature.iterdir()} & {"mlflow.db", "mlartifacts", "mlruns", "off"}
    with pytest.raises(UserError, match="must name a tracking server"):
        tracking.sync()


@pytest.mark.usefixtures("miniature")
def test_two_processes_may_make_the_database_at_once(tmp_path: Path) -> None:
    code = "from digits import tracking; print(tracking._connect()[1])"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); {code}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert told[0][0] == told[1][0]
    assert (tmp_path / "mlflow.db").exists()


def layout(database: Path) -> set[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(database)) as opened:
        made = opened.execute("SELECT type, name, sql FROM sqlite_master")
        words = {(kind, name, " ".join(sorted(re.findall(r"\w+", sql or "")))) for kind, name, sql in made}  # mlflow's
        return words | {*opened.execute("PRAGMA journal_mode")}  # own order of a CHECK's values is that of a set


@pytest.mark.usefixtures("client")
def test_database_is_that_of_mlflow_and_replaces_what_a_killed_process_left(tmp_path: Path, database: str) -> None:
    tracking._connect()
    partial = tmp_path / ".partial.mlflow.db"
    partial.write_text("half a database")
    tracking._make(tmp_path / "mlflow.db")
    assert layout(tmp_path / "mlflow.db") == layout(Path(database.removeprefix("sqlite:///")))
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith((".partial", "mlflow.db-"))]


@pytest.mark.usefixtures("client")
def test_experiment_that_another_machine_makes_at_the_same_moment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tracking._connect()[1]
    find, asked = MlflowClient.get_experiment_by_name, []

    def find_only_the_second_time(self: MlflowClient, name: str) -> Experiment | None:
        asked.append(name)
        return find(self, name) if len(asked) > 1 else None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", find_only_the_second_time)
    assert tracking._connect()[1] == made


@pytest.mark.usefixtures("miniature")
def test_database_is_in_the_repository_and_not_in_the_temporary_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(repository))
    with pytest.raises(UserError), training_run():
        raise UserError
    assert (repository / "mlflow.db").exists()
    assert not (tmp_path / "mlflow.db").exists()
