import contextlib
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Experiment

from digits.errors import UserError
from digits.records import store

from ..conftest import ROOT
from .conftest import training_run


def test_whatever_mlflow_raises_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    line = "MLflow at http://server cannot be used: gone"
    with store.survival("life goes on"):
        raise ConnectionError("gone\nfor these reasons")
    assert capsys.readouterr().err == f"{line}; life goes on\n"
    with pytest.raises(UserError, match=f"^{line}$"), store.access():
        raise ConnectionError("gone\nfor these reasons")
    with pytest.raises(UserError, match=r"^mine$"), store.access():
        raise UserError("mine")


def test_no_password_and_the_proxy_are_in_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@server:5000/?token=hunter2")
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(UserError, match=r"^MLflow at http://server:5000/ cannot be used: no postgresql://db/x$"),
        store.access(),
    ):
        raise ConnectionError("no postgresql://me:hunter2@db/x")
    monkeypatch.setenv("HTTP_PROXY", "http://me:hunter2@proxy:3128")
    with (
        pytest.raises(
            UserError, match=r"^MLflow at http://server:5000/ \(through the proxy http://proxy:3128; NO_PROXY"
        ),
        store.access(),
    ):
        raise ConnectionError("gone")
    monkeypatch.setenv("NO_PROXY", "server")
    with pytest.raises(UserError, match=r"^MLflow at http://server:5000/ cannot"), store.access():
        raise ConnectionError("gone")


@pytest.mark.parametrize("silent", [True, False])
def test_database_that_does_not_answer_costs_seconds(silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not silent:
            server.close()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:hunter2@127.0.0.1:{port}/x")
        monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
        began = time.monotonic()
        with pytest.raises(UserError) as raised, store.access():
            store.connect()
    assert time.monotonic() - began < 20
    assert str(raised.value).startswith(f"MLflow at postgresql://127.0.0.1:{port}/x cannot be used: ")
    assert "hunter2" not in str(raised.value)


@pytest.mark.slow
def test_deleted_experiment_is_restored(client: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = store.connect()[1]
    client.delete_experiment(experiment)
    assert store.connect()[1] == experiment
    assert client.get_experiment(experiment).lifecycle_stage == "active"
    assert capsys.readouterr().err == "MLflow: the experiment mnist had been deleted; restored, to log to it\n"


LOOK = """
import sys
from pathlib import Path
from digits.records import store
client, experiment = store.connect()
run = sys.argv[1]
print(Path(client.download_artifacts(run, "note.txt")).read_text())
client.log_text(run, "two", "more.txt")
client.log_text(client.create_run(experiment, run_name="new").info.run_id, "three", "note.txt")
print(client.get_model_version("m", "1").source)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("miniature")
def test_moved_and_copied_repositories_have_their_own_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, moved, second = (tmp_path / name for name in ("first", "100 % moved", "second"))
    first.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(first))
    client, experiment = store.connect()
    run = client.create_run(experiment).info
    client.log_text(run.run_id, "one", "note.txt")
    client.create_registered_model("m")
    client.create_model_version("m", f"{run.artifact_uri}/note.txt", run.run_id)
    shutil.copytree(first, second)
    first.rename(moved)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # mlflow sets it for the processes that it starts
    for folder in (moved, second):
        monkeypatch.setenv("DVC_ROOT", str(folder))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        command = [sys.executable, "-c", LOOK, run.run_id]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        artifacts = folder / "mlartifacts"
        source = f"{artifacts.as_uri()}/{run.run_id}/artifacts/note.txt"
        assert (done.returncode, done.stdout) == (0, f"one\n{source}\n"), done.stderr
        assert (artifacts / run.run_id / "artifacts/more.txt").read_text() == "two"
        assert len(list(artifacts.glob("*/artifacts/note.txt"))) == 2
    assert not first.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("miniature")
def test_two_processes_may_make_the_database_at_once(tmp_path: Path) -> None:
    code = "from digits.records import store; print(store.connect()[1])"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert (tmp_path / "mlflow.db").exists()


def layout(database: Path) -> set[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(database)) as opened:
        tables = opened.execute("SELECT type, name, sql FROM sqlite_master")
        # As sorted words: mlflow takes the values of a CHECK from a set, in any order.
        words = {(kind, name, " ".join(sorted(re.findall(r"\w+", sql or "")))) for kind, name, sql in tables}
        return words | {*opened.execute("PRAGMA journal_mode")}


@pytest.mark.usefixtures("client")
def test_database_is_that_of_mlflow_and_replaces_what_a_killed_process_left(tmp_path: Path, database: str) -> None:
    partial = tmp_path / ".partial.mlflow.db"
    partial.write_text("half a database")
    store._create(tmp_path / "mlflow.db")
    assert layout(tmp_path / "mlflow.db") == layout(Path(database.removeprefix("sqlite:///")))
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith((".partial", "mlflow.db-"))]


@pytest.mark.usefixtures("client")
def test_experiment_that_another_machine_makes_at_the_same_moment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = store.connect()[1]
    find, asked = MlflowClient.get_experiment_by_name, []

    def find_only_the_second_time(self: MlflowClient, name: str) -> Experiment | None:
        asked.append(name)
        return find(self, name) if len(asked) > 1 else None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", find_only_the_second_time)
    assert store.connect()[1] == made
    assert len(asked) == 2


@pytest.mark.slow
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
