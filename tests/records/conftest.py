"""Shared by the tests of records: a database of MLflow's, and what is logged to it."""

from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from digits import params
from digits.learning import networks, runtime
from digits.learning.curve import Epoch
from digits.records import store
from digits.records.runs import TrainingRun

from ..stages.conftest import miniature

__all__ = ["miniature"]

EPOCH = Epoch(1, train_loss=0.5, validation_loss=0.6, train_accuracy=0.9, validation_accuracy=0.8, learning_rate=0.1)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of one database for all tests of records: creating one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'runs.db'}"
    MlflowClient(uri).create_experiment(store.EXPERIMENT, artifact_location=(folder / "artifacts").as_uri())
    return uri


@pytest.fixture
def client(miniature: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Return a client of that database, to which the miniature project in the working directory logs."""
    monkeypatch.chdir(miniature)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return store.connect()[0]  # as the code does: it also sets the URI that mlflow keeps for the whole process


def training_run(key: str = "key") -> TrainingRun:
    p = params.load(networks.check)
    return TrainingRun(p, runtime.recorded(p.runtime, torch.device("cpu")), key)


def experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name(store.EXPERIMENT)
    assert found
    return str(found.experiment_id)


def newest(client: MlflowClient) -> Run:
    return client.search_runs([experiment(client)], order_by=["attributes.start_time DESC"])[0]
