"""What MLflow missed, because its server was away or its database was lost, is logged from the files."""

import os
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from digits.errors import UserError

from .conftest import DIGITS, Project
from .servers import free_port, serving

pytestmark = pytest.mark.slow


def test_lost_database_is_rebuilt_from_the_files(project: Project) -> None:
    """A copy has none: git and DVC do not bring it."""
    assert not (project.root / "mlflow.db").exists()
    project.run("dvc", "repro", "--force", "--single-item", "evaluate")
    (run,) = project.mlflow_runs()
    project.assert_complete(run)


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

    project.edit("bins: 15", "bins: 16")
    with silent_server() as uri:
        done = project.run("dvc", "repro", MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_TIMEOUT="1")
        lines = [line for line in done.stderr.splitlines() if uri in line]
        assert len(lines) == 2  # evaluate and export report it once each
        assert all("python -m digits sync" in line for line in lines)
        assert "Traceback" not in done.stderr
    assert uri in project.run(*DIGITS, "sync", fails=True, MLFLOW_TRACKING_URI=uri).stderr

    with mlflow_server(tmp_path) as uri:
        for _ in range(2):  # the second finds everything done
            project.run(*DIGITS, "sync", measured=True, MLFLOW_TRACKING_URI=uri)
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("mnist")
        assert experiment
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.data.metrics["errors/test"] == project.json("metrics/test.json")["errors"]
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss/train")] == [1]
        assert len(client.search_model_versions("name='mnist-classifier'")) == 1
        assert [file.path for file in client.list_artifacts(run.info.run_id, "models")] != []


def test_sync_refuses_results_that_do_not_belong_together(project: Project, call: Callable[..., str]) -> None:
    project.edit("smoothing: 0.1", "smoothing: 0.3")
    with pytest.raises(UserError, match="run `dvc repro` first"):
        call(project, "sync")
