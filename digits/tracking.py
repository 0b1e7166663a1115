"""Results -> MLflow; with `registry`, the only importer of mlflow.

    python -m digits.tracking sync      log the results in this folder, if the tracking server was away when they came

One run stands for one execution of the pipeline, whichever of its processes writes. No run id is kept in a file: it
would go stale with DVC's cache, a lost database or a changed param. Instead each part of a run (what train, evaluate
and export made) is tagged with a digest of its content, and a stage looks for a run whose parts are the files at hand.
Where there is none, it makes one and fills it in from the files. A run is therefore always right and complete, and
the files are enough to make it again.

A run leads back to what made it: the commit and, as an artifact, the difference of the working folder from it; the MD5
of every source file and every output; params and environment. `digits.provenance` reads that. The run of a training
that was killed is gone on with when the training is, and is marked as killed otherwise.

Where: the database `mlflow.db` and the folder `mlartifacts/` in the repository's root, also for experiments that DVC
runs in a temporary copy (`--temp`, `--queue`); MLFLOW_TRACKING_URI names another place, or is `off`. No failure here
ever stops a stage: it costs seconds and one line.
"""

import argparse
import getpass
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil
import torch
from filelock import FileLock

from digits import distributed, lineage, params, paths, registry, runtime
from digits.command import UserError, run
from digits.files import atomic, digest, flatten, md5, read_json, read_table
from digits.lineage import State
from digits.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "mnist"
SECONDS = "training_seconds"  # metric of a run: how long its training took, the only one that no file holds
OFF = "off"  # the value of MLFLOW_TRACKING_URI for which nothing is logged

LATER = "the results are in the files, `python -m digits.tracking sync` logs them later"
LOST = "the search goes on without a record there"

ENVIRONMENT = {  # set before mlflow is imported, unless the user has set them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default a dead server holds every call up for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for each three small files
}


@dataclass(frozen=True)
class Part:
    """What one stage leaves behind: a file of metrics and the prefix of their names, files to show, files to tag."""

    metrics: Path
    prefix: str
    shown: tuple[Path, ...]
    tagged: dict[str, Path]


PARTS = {
    "train": Part(
        paths.TRAIN_METRICS,
        "",
        (paths.CURVE_TABLE, paths.CURVE, paths.MODEL),
        {"train_md5": paths.TRAIN, "validation_md5": paths.VALIDATION, "model_md5": paths.MODEL},
    ),
    "evaluate": Part(
        paths.TEST_METRICS,
        "test_",
        (
            paths.EVIDENCE,
            paths.VALIDATION_TABLE,
            paths.CONFUSION_TABLE,
            paths.CONFUSION,
            paths.MISCLASSIFIED,
            paths.RELIABILITY,
        ),
        {"test_md5": paths.TEST},
    ),
    "export": Part(
        paths.EXPORT_METRICS,
        "export_",
        (paths.ONNX, paths.PT2, paths.MODEL_CARD),
        {"onnx_md5": paths.ONNX, "pt2_md5": paths.PT2},
    ),
}
RECORD, PATCH, OUTPUTS = "provenance/record.json", "provenance/uncommitted.patch", "provenance/outputs.json"


class TrainingRun:
    """The run of a training under way: `with TrainingRun(params) as live: live.log(row)`, a row of the curve an epoch.

    On leaving, the files of the train stage are added; if the stage failed or was stopped, the run says so. `key` is
    that of the training's checkpoint: a run that a killed process left behind under it is gone on with.
    """

    def __init__(self, p: Params, device: torch.device, key: str) -> None:
        self._params, self._device, self._key = p, device, key
        self._run_id: str | None = None
        self._logged: set[int] = set()
        self._live = False
        self._began = time.monotonic()

    def __enter__(self) -> "TrainingRun":
        if _uri() == OFF:
            return self
        with _survival():
            client, experiment = _connect()
            self._run_id = _clear_up(client, experiment, self._key)
            if self._run_id:
                client.set_tag(self._run_id, "process", _process())
                self._logged = _logged_epochs(client, self._run_id)
                self._began -= client.get_run(self._run_id).data.metrics.get(SECONDS, 0.0)
            else:
                self._run_id = _create(client, experiment, self._params, self._device)
                client.set_tag(self._run_id, "training", self._key)
            self._live = True
        return self

    def log(self, row: dict[str, float]) -> None:
        """Log one epoch. After a failure no further one is tried: leaving makes up for what is missing."""
        if self._live and self._run_id and int(row["epoch"]) not in self._logged:
            self._live = False
            with _survival():
                _log_epochs(_connect()[0], self._run_id, [row | {SECONDS: time.monotonic() - self._began}])
                self._live = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._run_id:
            with _survival():
                if kind is None:
                    _record(self._params, "train", self._device, self._run_id)
                else:
                    status = "FAILED" if issubclass(kind, Exception) else "KILLED"
                    _connect()[0].set_terminated(self._run_id, status)


class Trial:
    """The run of one trial of a search, under the run of its study: `with Trial(…) as live: live.log(row)`."""

    def __init__(self, p: Params, device: torch.device, study: str, number: int) -> None:
        self._params, self._device, self._study, self._number = p, device, study, number
        self._run_id: str | None = None

    def __enter__(self) -> "Trial":
        if _uri() != OFF:
            with _survival(LOST):
                client, experiment = _connect()
                tags = {"mlflow.parentRunId": _study(client, experiment, self._study), "trial": str(self._number)}
                name = f"{self._study} trial {self._number}"
                self._run_id = _create(client, experiment, self._params, self._device, name, tags)
        return self

    def log(self, row: dict[str, float]) -> None:
        """Log one epoch."""
        if self._run_id:
            with _survival(LOST):
                _log_epochs(_connect()[0], self._run_id, [row])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._run_id:
            with _survival(LOST):
                client, _ = _connect()
                given_up = kind is not None and kind.__name__ == "TrialPruned"
                if given_up:
                    client.set_tag(self._run_id, "given_up", str(error) or "behind the other trials")
                client.set_terminated(self._run_id, "FINISHED" if kind is None or given_up else "KILLED")


def record_study(study: str, pictures: list[Path]) -> None:
    """Add pictures to the run of a study."""
    if _uri() != OFF:
        with _survival(LOST):
            client, experiment = _connect()
            run_id = _study(client, experiment, study)
            for path in pictures:
                client.log_artifact(run_id, str(path))
            client.set_terminated(run_id)


def _study(client: "MlflowClient", experiment: str, name: str) -> str:
    """Give the id of the run that stands for a study, made if need be."""
    with _lock("study"):  # of two processes that begin a study at once, the second sees what the first made
        found = client.search_runs([experiment], f"tags.study = '{name}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {"study": name, "mlflow.user": getpass.getuser(), "process": _process()}
        return str(client.create_run(experiment, tags=tags, run_name=f"study {name}").info.run_id)


def record(p: Params, stage: str, device: torch.device) -> None:
    """Add what `stage` made, and what is missing before it, to the run that the files at hand belong to."""
    if _uri() != OFF:
        with _survival():
            _record(p, stage, device)


def sync() -> None:
    """Log the results in this folder as one complete run, unless there is one.

    Raises UserError if they are not up to date, or the tracking server does not answer.
    """
    p = params.load()
    if _uri() == OFF:
        raise UserError(f"MLFLOW_TRACKING_URI: is {OFF}; must name a tracking server, or not be set")
    if subprocess.run([sys.executable, "-m", "dvc", "status", "--quiet"], check=False).returncode:
        raise UserError("the results here are not those of the code, data and params here; run `dvc repro` first")
    device = runtime.prepare(p.runtime.device, p.runtime.threads, p.runtime.reproducibility)
    try:
        _record(p, "export", device)
    except Exception as error:
        raise UserError(_explain(error)) from None


def find(run_id: str) -> State | None:
    """Give the run of this id, or None if there is none. Raises UserError if MLflow does not answer."""
    from mlflow.exceptions import MlflowException

    if _is_empty():
        return None
    try:
        client, _ = _connect()
        try:
            found = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        contents = {}
        with tempfile.TemporaryDirectory() as folder:
            for file in client.list_artifacts(run_id, Path(RECORD).parent.as_posix()):
                contents[file.path] = Path(client.download_artifacts(run_id, file.path, folder)).read_bytes()
    except Exception as error:
        raise UserError(_explain(error)) from None
    record = json.loads(contents.get(RECORD, "{}"))
    return State(
        f"run {run_id} ({found.info.run_name})",
        record.get("commit"),
        contents.get(PATCH, b""),
        record.get("code", {}),
        found.data.params,
        record.get("environment", {}),
        json.loads(contents.get(OUTPUTS, "{}")),
        {key: value for key, value in found.data.metrics.items() if key != SECONDS},
        lambda file: _artifact(run_id, file),
        found.data.metrics.get(SECONDS),
    )


def _artifact(run_id: str, file: str) -> bytes:
    """Give the content of a run's artifact. Raises FileNotFoundError, or UserError if MLflow does not answer."""
    try:
        client, _ = _connect()
        if file not in {entry.path for entry in client.list_artifacts(run_id, Path(file).parent.as_posix())}:
            raise FileNotFoundError(file)
        with tempfile.TemporaryDirectory() as folder:
            return Path(client.download_artifacts(run_id, file, folder)).read_bytes()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise UserError(_explain(error)) from None


def runs_with(checksum: str) -> list[str]:
    """Give the ids of the runs that made a model file with this MD5, the newest first.

    Raises UserError if MLflow does not answer.
    """
    if _is_empty():
        return []
    try:
        client, experiment = _connect()
        tags = [tag for part in PARTS.values() for tag, path in part.tagged.items() if path.parts[0] == "models"]
        return [
            str(found.info.run_id)
            for tag in tags
            for found in client.search_runs([experiment], f"tags.{tag} = '{checksum}'")
        ]
    except Exception as error:
        raise UserError(_explain(error)) from None


@contextmanager
def _survival(consequence: str = LATER) -> Iterator[None]:
    """Turn whatever the tracker throws into one line: the results of a stage are worth more than their record."""
    try:
        yield
    except Exception as error:
        print(f"{_explain(error)}; {consequence}", file=sys.stderr)


def _explain(error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"MLflow at {_uri()} cannot be used: {reason[:200]}"


def _root() -> Path:
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def _lock(name: str) -> FileLock:
    file = _root() / f".dvc/tmp/{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file)


def _database() -> Path:
    return _root() / "mlflow.db"


def _own_uri() -> str:
    return f"sqlite:///{_database().as_posix()}"


def _uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri()


def _is_empty() -> bool:
    """Say whether there is nothing to be looked up: who only asks makes no database."""
    return _uri() == OFF or (_uri() == _own_uri() and not _database().exists())


def _connect() -> tuple["MlflowClient", str]:
    """Give a client and the id of the experiment, both made if need be."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(_uri())
    with _lock("mlflow"):  # two processes that create the database at once would both fail
        if _uri() == _own_uri() and not _database().exists():
            _make(_database())
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment:
            return client, experiment.experiment_id
        artifacts = (_root() / "mlartifacts").as_uri() if _uri() == _own_uri() else None  # a server has its own place
        try:
            return client, client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        except mlflow.MlflowException:  # the lock holds on this machine only: on a server another may have been faster
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if not experiment:
                raise
            return client, experiment.experiment_id


def _make(database: Path) -> None:
    """Have mlflow make its database, which appears whole or not at all.

    SQLite waits for the disk at each step of mlflow's 68 migrations: 5 of 6.5 s. Here that is put off to the end.
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
            partial.unlink(missing_ok=True)  # what a killed process left: nobody waited for the disk there
            mlflow.MlflowClient(f"sqlite:///{partial.as_posix()}")
            for connection in connections:
                connection.close()
    finally:
        event.remove(Engine, "connect", hurry)


def _create(
    client: "MlflowClient",
    experiment: str,
    p: Params,
    device: torch.device,
    name: str | None = None,
    more: dict[str, str] | None = None,
) -> str:
    """Begin a run that says what is run: params, code, environment, experiment. Gives its id.

    `name` is that of the run, by default of the DVC experiment or the commit; `more` are tags of its own.
    """
    from mlflow.entities import Param

    experiment_name, commit, patch = os.environ.get("DVC_EXP_NAME"), lineage.commit(), lineage.uncommitted()
    precision = runtime.precision_of(p.runtime.precision, device, p.runtime.reproducibility)
    code = lineage.code(*lineage.stages())
    environment = {**runtime.environment(device, precision), "processes": str(distributed.size())}
    tags = (more or {}) | {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "dvc",
        "mlflow.user": getpass.getuser(),
        "process": _process(),
        "code_md5": digest(code),
        **{f"environment.{key}": value for key, value in environment.items()},
    }
    if experiment_name:
        tags["dvc_experiment"] = experiment_name
    if commit:
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit, "git_dirty": str(bool(patch)).lower()}
    created = client.create_run(experiment, tags=tags, run_name=name or experiment_name or (commit and commit[:7]))
    run_id = str(created.info.run_id)
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in p.flat().items()])
    client.log_dict(run_id, {"commit": commit, "code": code, "environment": environment}, RECORD)
    if patch:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, Path(PATCH).name)
            file.write_bytes(patch)  # not as text: it holds files as they are, in any encoding
            client.log_artifact(run_id, str(file), Path(PATCH).parent.as_posix())
    return run_id


def _process() -> str:
    """Name this process so that others can tell whether it is still there: host, process id, time of its start."""
    return f"{platform.node()} {os.getpid()} {psutil.Process().create_time():.2f}"


def _is_gone(process: str) -> bool:
    """Say whether the process of this name, given by `_process`, ran on this machine and runs no more."""
    node, process_id, started = process.rsplit(" ", 2)
    try:
        return node == platform.node() and f"{psutil.Process(int(process_id)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True


def _clear_up(client: "MlflowClient", experiment: str, key: str | None = None) -> str | None:
    """Mark the runs as killed whose process is gone, and give the one of the training `key`, if it is among them."""
    found = None
    for left in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if _is_gone(left.data.tags.get("process", "? 0 0")):
            if key and not found and left.data.tags.get("training") == key:
                found = str(left.info.run_id)
            else:
                client.set_terminated(left.info.run_id, "KILLED")
    return found


def _record(p: Params, stage: str, device: torch.device, run_id: str | None = None) -> None:
    """Complete the run `run_id`, or the one that matches the files at hand, or a new one, up to `stage`.

    Later stages are included where DVC will skip them because their inputs came out as before.
    """
    client, experiment = _connect()
    _clear_up(client, experiment)
    names = list(PARTS)
    known = names[: names.index(stage) + 1]
    for name in names[len(known) :]:
        if not _up_to_date(name, p):
            break
        known.append(name)
    digests = {f"digest_{name}": _digest(p, PARTS[name]) for name in known}
    run_id = run_id or _find(client, experiment, digests) or _create(client, experiment, p, device)
    tags = client.get_run(run_id).data.tags
    for place, name in enumerate(known, 1):
        if f"digest_{name}" not in tags:
            _log_part(client, run_id, name)
            client.log_dict(run_id, _outputs(known[:place]), OUTPUTS)
            client.set_tag(run_id, f"digest_{name}", digests[f"digest_{name}"])  # last: what dies half way is redone
    client.set_terminated(run_id)


def _outputs(names: list[str]) -> dict[str, str]:
    """Give the MD5 of every file that these stages and the two before them made, by path."""
    lock = lineage.lock()
    before = [out for stage in ("download", "preprocess") for out in lock.get(stage, {}).get("outs", [])]
    files = [file for name in names for file in (PARTS[name].metrics, *PARTS[name].shown)]
    return {out["path"]: out["md5"] for out in before} | {file.as_posix(): md5(file) for file in files}


def _digest(p: Params, part: Part) -> str:
    files = [part.metrics, *part.shown, *part.tagged.values()]
    return digest([p.flat(), [md5(file) for file in files]])


def _find(client: "MlflowClient", experiment: str, digests: dict[str, str]) -> str | None:
    """Give the newest run of this code that trained this model with these params and contradicts no file at hand."""
    code = digest(lineage.code(*lineage.stages()))
    runs = client.search_runs(
        [experiment],
        f"tags.digest_train = '{digests['digest_train']}' and tags.code_md5 = '{code}'",
        order_by=["attributes.start_time DESC"],
    )
    for found in runs:
        if all(found.data.tags.get(tag, value) == value for tag, value in digests.items()):
            return str(found.info.run_id)
    return None


def _up_to_date(stage: str, p: Params) -> bool:
    """Say whether dvc.lock has this stage with the code, inputs, outputs and params as they are now."""
    entry = lineage.lock().get(stage, {})
    files = [*entry.get("deps", []), *entry.get("outs", [])]
    known, now = flatten(entry.get("params", {}).get("params.yaml", {})), p.flat()
    return (
        "outs" in entry  # else the stage never ended
        and all(now.get(key) == value for key, value in known.items())
        and all(Path(file["path"]).is_file() and md5(Path(file["path"])) == file.get("md5") for file in files)
    )


def _log_part(client: "MlflowClient", run_id: str, name: str) -> None:
    from mlflow.entities import Metric

    part = PARTS[name]
    step = 0
    if name == "train":
        rows = [{key: float(value) for key, value in row.items()} for row in read_table(paths.CURVE_TABLE)]
        logged = _logged_epochs(client, run_id)
        _log_epochs(client, run_id, [row for row in rows if int(row["epoch"]) not in logged])
        step = len(rows)
    for tag, path in part.tagged.items():
        client.set_tag(run_id, tag, md5(path))
    now = int(time.time() * 1000)
    metrics = flatten(read_json(part.metrics))
    latest = client.get_run(run_id).data.metrics
    client.log_batch(
        run_id,
        [
            Metric(part.prefix + key, value, now, step)
            for key, value in metrics.items()
            if latest.get(part.prefix + key) != value
        ],
    )
    for path in (part.metrics, *part.shown):
        client.log_artifact(run_id, str(path), path.parent.as_posix())
    if name == "export":
        with _lock("registry"):  # of two processes that register at once, the second sees what the first did
            registry.register(client, run_id)


def _logged_epochs(client: "MlflowClient", run_id: str) -> set[int]:
    return {metric.step for metric in client.get_metric_history(run_id, "train_loss")}


def _log_epochs(client: "MlflowClient", run_id: str, rows: Iterable[dict[str, float]]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        [Metric(key, value, now, int(row["epoch"])) for row in rows for key, value in row.items() if key != "epoch"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m digits.tracking", description="Log results to MLflow.")
    parser.add_argument("command", choices=["sync"], help="log the results in this folder, unless that was done")
    parser.parse_args()
    sync()


if __name__ == "__main__":
    run(main)
