"""Where MLflow's runs and models are stored, and how to reach them.

By default in `mlflow.db` and `mlartifacts/` in the repository's root, also for experiments that DVC runs in a temporary
copy (`--temp`, `--queue`); MLFLOW_TRACKING_URI names another place, or is `off`.
"""

import logging
import os
import sqlite3
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
from filelock import FileLock

from digits import pipeline
from digits.errors import UserError, public, reason
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
    "PGCONNECT_TIMEOUT": "5",
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
    database = _database()
    if "%" in str(database):  # which means something else to the library by which MLflow makes its database
        database = Path(os.path.relpath(database))
    return f"sqlite:///{database.as_posix()}"


def _database() -> Path:
    return pipeline.home() / "mlflow.db"


# File systems on which several machines lock a file unreliably, by which SQLite damages it.
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "lustre", "beegfs", "gpfs", "ceph", "fuse.sshfs", "glusterfs")


def reject_network_folder(address: str, named: str) -> None:
    """Raise UserError if a database's address, which `named` gives, is a file of SQLite on a network file system."""
    if not address.startswith("sqlite:///"):
        return
    folder = Path(address.removeprefix("sqlite:///").partition("?")[0]).resolve().parent
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    kind = next((mounts[place] for place in (folder, *folder.parents) if place in mounts), "")
    if kind.removeprefix("fuse.") in NETWORK or kind in NETWORK:
        fault = f"{public(address)}: lies on {kind}, where several machines damage a database of SQLite"
        raise UserError(f"{named}: {fault}; name a server (docs/servers.md)")


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
    return f"MLflow at {public(uri())}{_through()} cannot be used: {reason(error)}"


def _through() -> str:
    """Name the proxy through which a tracking server is asked, if there is one."""
    address = urlsplit(uri())
    proxy = urllib.request.getproxies().get(address.scheme) if is_remote() else None
    if not proxy or urllib.request.proxy_bypass(address.hostname or ""):
        return ""
    return f" (through the proxy {public(proxy)}; NO_PROXY names hosts that are asked without one)"


def lock(name: str) -> FileLock:
    """Return a lock among the processes of this repository."""
    file = pipeline.home() / f".dvc/tmp/{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file)


def prepare() -> None:
    """Load MLflow, and open its store where that is a database: what takes seconds, and asks no tracking server."""
    if is_remote():
        _load()
    else:
        connect()


def _load() -> Any:
    """Return the module mlflow, set up."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they report, they also raise
    mlflow.set_tracking_uri(uri())
    return mlflow


def connect() -> tuple["MlflowClient", str]:
    """Return a client and the id of the experiment, both created or restored if need be."""
    mlflow = _load()
    _reach(uri())
    with lock("mlflow"):  # two processes that create the database at once would both fail
        if uri() == _own_uri():
            if _database().exists():
                _rehome(_database())
            else:
                _create(_database())
        client = mlflow.MlflowClient()
        if not (experiment := client.get_experiment_by_name(EXPERIMENT)):
            artifacts = (pipeline.home() / "mlartifacts").as_uri() if uri() == _own_uri() else None  # or the server's
            try:
                return client, client.create_experiment(EXPERIMENT, artifacts, pages.experiment())
            except mlflow.MlflowException:  # the lock is this machine's only: another one may have been faster
                if not (experiment := client.get_experiment_by_name(EXPERIMENT)):
                    raise
        if experiment.lifecycle_stage == "deleted":  # its name cannot be used again
            client.restore_experiment(experiment.experiment_id)
            print(f"MLflow: the experiment {EXPERIMENT} had been deleted; restored, to log to it", file=sys.stderr)
        return client, experiment.experiment_id


@cache
def _reach(address: str) -> None:
    """Raise what the database's driver raises if its server does not answer; MLflow would try for three minutes."""
    if is_remote() or urlsplit(address).scheme in ("", "file", "sqlite"):
        return
    from sqlalchemy import create_engine

    engine = create_engine(address)
    engine.connect().close()
    engine.dispose()


@cache
def _rehome(database: Path) -> None:
    """Have what was logged before the repository was moved or copied found beside the database, not where it was.

    MLflow stores absolute addresses.
    """
    here = (pipeline.home() / "mlartifacts").as_uri()
    places = (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "source"),
        ("model_versions", "storage_location"),
    )
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        found = connection.execute(query, (EXPERIMENT,)).fetchone()
        there = found[0] if found else here
        if there != here and there.startswith("file:") and there.endswith("/mlartifacts"):
            for table, column in places:
                moved = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE instr({column}, ?) = 1"
                connection.execute(moved, (here, len(there) + 1, there))


def offers_models(client: "MlflowClient", experiment: str) -> bool:
    """Say whether the tracking server has models of their own, as MLflow 3 logs them; older ones have none."""
    from mlflow.exceptions import MlflowException

    try:
        client.search_logged_models([experiment], max_results=1)
    except MlflowException as error:
        if error.error_code == "ENDPOINT_NOT_FOUND" or "404" in str(error):
            return False
        raise
    return True


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
