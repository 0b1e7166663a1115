"""Where MLflow's runs and models are stored, and how to reach them.

By default in `mlflow.db` and `mlartifacts/` in the repository's root, also for experiments that DVC runs in a temporary
copy (`--temp`, `--queue`); MLFLOW_TRACKING_URI names another place, or is `off`.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from digits import pipeline
from digits.errors import UserError, reason
from digits.files import atomic
from digits.records import pages

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "mnist"
OFF = "off"  # the value of MLFLOW_TRACKING_URI that turns logging off
LATER = "the results are in the files, `python -m digits sync` logs them later"

ENVIRONMENT = {  # set before mlflow is imported, unless the user has set them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default a dead server blocks every call for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for every few small files
}


def is_off() -> bool:
    """Say whether the user has turned logging off."""
    return uri() == OFF


def is_empty() -> bool:
    """Say whether there is nothing to look up: a lookup must not create the database."""
    return is_off() or (uri() == _own_uri() and not _database().exists())


def uri() -> str:
    """Return the tracking URI."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri()


def is_remote() -> bool:
    """Say whether runs are on a tracking server, and not in a database that this process opens."""
    return uri().startswith(("http://", "https://"))


def _own_uri() -> str:
    return f"sqlite:///{_database().as_posix()}"


def _database() -> Path:
    return pipeline.home() / "mlflow.db"


@contextmanager
def survival(consequence: str = LATER) -> Iterator[None]:
    """Reduce whatever MLflow raises to one printed line: the results of a stage are worth more than their record."""
    try:
        yield
    except Exception as error:
        print(f"{_explained(error)}; {consequence}", file=sys.stderr)


@contextmanager
def access() -> Iterator[None]:
    """Turn whatever MLflow raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(_explained(error)) from None


def _explained(error: Exception) -> str:
    return f"MLflow at {uri()} cannot be used: {reason(error)}"


def lock(name: str) -> FileLock:
    """Return a lock among the processes of this repository."""
    file = pipeline.home() / f".dvc/tmp/{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file)


def connect() -> tuple["MlflowClient", str]:
    """Return a client and the id of the experiment, both created if need be."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(uri())
    with lock("mlflow"):  # two processes that create the database at once would both fail
        if uri() == _own_uri() and not _database().exists():
            _create(_database())
        client = mlflow.MlflowClient()
        if not (experiment := client.get_experiment_by_name(EXPERIMENT)):
            artifacts = (pipeline.home() / "mlartifacts").as_uri() if uri() == _own_uri() else None  # or the server's
            try:
                return client, client.create_experiment(EXPERIMENT, artifacts, pages.experiment())
            except mlflow.MlflowException:  # the lock is this machine's only: another one may have been faster
                if not (experiment := client.get_experiment_by_name(EXPERIMENT)):
                    raise
        return client, experiment.experiment_id


def _create(database: Path) -> None:
    """Have mlflow create its database, which appears whole or not at all.

    SQLite waits for the disk at each step of mlflow's 68 migrations, most of the time they take. Here it waits once.
    """
    import mlflow
    from sqlalchemy import Engine, event

    connections = []

    def hurry(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")
        connections.append(connection)

    event.listen(Engine, "connect", hurry)
    try:
        with atomic(database) as partial:
            partial.unlink(missing_ok=True)  # left by a killed process: its content was never flushed
            mlflow.MlflowClient(f"sqlite:///{partial.as_posix()}")
            for connection in connections:
                connection.close()
    finally:
        event.remove(Engine, "connect", hurry)
