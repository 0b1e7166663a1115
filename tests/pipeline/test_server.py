"""A team's tracking server as `make server` starts it: on a real PostgreSQL, with two people's runs at once."""

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from digits.images import batches, splits
from digits.learning import evaluation

from .conftest import REPOSITORY, Project
from .servers import free_port, postgres, serving

NAME = "mlflow.example.com:5000"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")]
EXPERIMENTS = {"linear": "model.name=linear", "coarse": "evaluate.bins=5"}  # one that trains and one that does not


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / """it's "ours" & 100 $(x)"""
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def server(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a tracking server that `make server` started in a folder of its own."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    shutil.copy(REPOSITORY / "Makefile", folder)
    (folder / ".venv").symlink_to(sys.prefix)
    uri = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:  # to a question that makes it open the database: its first answer is the slowest
            urllib.request.urlopen(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1", timeout=60).close()
        except OSError:
            return False
        return True

    with postgres() as (database, passwords):
        settings = [f"DATABASE={database}", f"ARTIFACTS={artifacts}", f"PORT={port}", f"ADDRESS=http://{NAME}/"]
        command = ["make", "--old-file=.venv/complete", "server", *settings]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "COVERAGE_"))}
        environment = inherited | {"PGPASSFILE": str(passwords)}
        with serving(command, ready, folder / "log", folder=folder, environment=environment):
            yield uri


@pytest.fixture(scope="module")
def people(finished: Project, server: str, tmp_path_factory: pytest.TempPathFactory) -> list[Project]:
    """Two clones, in each of which an experiment was run, both at once, with nothing but the server's address."""
    projects = [finished.copy(tmp_path_factory.mktemp("people") / name) for name in EXPERIMENTS]

    def experiment(project: Project) -> None:
        name = project.root.name
        settings = ["-S", EXPERIMENTS[name]]
        done = project.run("dvc", "exp", "run", "--name", name, *settings, MLFLOW_TRACKING_URI=server)
        assert "cannot be used" not in done.stderr

    with ThreadPoolExecutor() as pool:
        list(pool.map(experiment, projects))
    return [Project(project.root, server=server) for project in projects]


def test_experiments_of_two_people_at_once_are_complete_runs_on_the_server(people: list[Project]) -> None:
    runs = {run.info.run_name: run for run in people[0].mlflow_runs()}
    assert runs.keys() == EXPERIMENTS.keys()
    for project in people:
        project.assert_complete(runs[project.root.name])
        assert not (project.root / "mlflow.db").exists()
        assert not (project.root / "mlartifacts").exists()


def test_files_of_a_run_lie_with_the_server_and_come_back_through_it(
    people: list[Project], artifacts: Path, tmp_path: Path
) -> None:
    project = people[0]
    (run,) = [run for run in project.mlflow_runs() if run.info.run_name == project.root.name]
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    project.client.download_artifacts(run.info.run_id, "models", str(tmp_path))
    for name in ("models/model.safetensors", "models/export/model.onnx"):
        assert (tmp_path / name).read_bytes() == (project.root / name).read_bytes()
        assert len(list(artifacts.rglob(f"artifacts/{name}"))) == len(people)


def test_registered_model_of_the_server_loads_anywhere(
    people: list[Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc

    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(people[0].tracking_uri)  # another test of this process may have set another
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    test = splits.load(people[0].root / "data/splits/test.safetensors")
    wrong = {}
    for version in people[0].client.search_model_versions("name='mnist-classifier'"):
        model = mlflow.pyfunc.load_model(f"models:/mnist-classifier/{version.version}")
        logits = torch.from_numpy(model.predict(batches.to_float(test.images).numpy()))
        wrong[version.run_id] = round((1 - evaluation.score(logits, test.labels)[1]) * len(test))
    assert wrong == {run.info.run_id: run.data.metrics["errors/test"] for run in people[0].mlflow_runs()}


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        (NAME, f"http://{NAME}", 200),
        ("127.0.0.1:5000", f"http://{NAME}", 200),
        ("elsewhere.example.com:5000", f"http://{NAME}", 403),
        (NAME, "http://elsewhere.example.com:5000", 403),
    ],
)
def test_server_answers_to_its_own_name_only(server: str, host: str, origin: str, status: int) -> None:
    request = urllib.request.Request(
        f"{server}/ajax-api/2.0/mlflow/experiments/search",
        b'{"max_results": 1}',
        {"Host": host, "Origin": origin, "Content-Type": "application/json"},
    )
    if status == 200:
        urllib.request.urlopen(request, timeout=30).close()
    else:
        with pytest.raises(urllib.error.HTTPError, match=str(status)):
            urllib.request.urlopen(request, timeout=30)


def test_server_without_a_database_is_one_line() -> None:
    done = subprocess.run(
        ["make", "--old-file=.venv/complete", "server"],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name not in ("DATABASE", "MAKEFLAGS", "MAKELEVEL")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert not done.stdout
    assert "name the database: make server DATABASE=postgresql://" in done.stderr
    assert done.stderr.count("\n") == 1
