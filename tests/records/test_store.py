import contextlib
import re
import sqlite3
import subprocess
import sys
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
