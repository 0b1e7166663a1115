"""Results -> MLflow; the only importer of mlflow.

    python -m digits.tracking sync      log the results in this folder, if the tracking server was away when they came

One run stands for one execution of the pipeline, whichever of its processes writes. No run id is kept in a file: it
would go stale with DVC's cache, a lost database or a changed param. Instead each part of a run (what train, evaluate
and export made) is tagged with a digest of its content, and a stage looks for a run whose parts are the files at hand.
Where there is none, it makes one and fills it in from the files. A run is therefore always right and complete, and
the files are enough to make it again.

Where: the database `mlflow.db` and the folder `mlartifacts/` in the repository's root, also for experiments that DVC
runs in a temporary copy (`--temp`, `--queue`); MLFLOW_TRACKING_URI overrides it. No failure here ever stops a stage:
it costs seconds and one line.
"""

import argparse
import csv
import getpass
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import yaml
from filelock import FileLock

from digits import data, models, params, paths
from digits.command import UserError, run
from digits.datasets import SIDE
from digits.files import flatten, md5, read_json
from digits.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT, MODEL_NAME = "mnist", "mnist-classifier"

ENVIRONMENT = {  # set before mlflow is imported, unless the user has set them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default a dead server holds every call up for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds
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
        (paths.CONFUSION_TABLE, paths.CONFUSION, paths.MISCLASSIFIED, paths.RELIABILITY),
        {"test_md5": paths.TEST},
    ),
    "export": Part(paths.EXPORT_METRICS, "export_", (paths.ONNX, paths.PT2, paths.MODEL_CARD), {}),
}


class TrainingRun:
    """The run of a training under way: `with TrainingRun(params) as live: live.log(row)`, a row of the curve an epoch.

    On leaving, the files of the train stage are added; if the stage failed or was stopped, the run says so.
    """

    def __init__(self, p: Params) -> None:
        self._params = p
        self._run_id: str | None = None
        self._live = False

    def __enter__(self) -> "TrainingRun":
        with _survival():
            client, experiment = _connect()
            self._run_id = _create(client, experiment, self._params)
            self._live = True
        return self

    def log(self, row: dict[str, float]) -> None:
        """Log one epoch. After a failure no further one is tried: leaving makes up for what is missing."""
        if self._live and self._run_id:
            self._live = False
            with _survival():
                _log_epochs(_connect()[0], self._run_id, [row])
                self._live = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._run_id:
            with _survival():
                if kind is None:
                    _record(self._params, "train", self._run_id)
                else:
                    status = "FAILED" if issubclass(kind, Exception) else "KILLED"
                    _connect()[0].set_terminated(self._run_id, status)


def record(p: Params, stage: str) -> None:
    """Add what `stage` made, and what is missing before it, to the run that the files at hand belong to."""
    with _survival():
        _record(p, stage)


def sync() -> None:
    """Log the results in this folder as one complete run, unless there is one.

    Raises UserError if they are not up to date, or the tracking server does not answer.
    """
    p = params.load()
    if subprocess.run([sys.executable, "-m", "dvc", "status", "--quiet"], check=False).returncode:
        raise UserError("the results here are not those of the code, data and params here; run `dvc repro` first")
    try:
        _record(p, "export")
    except Exception as error:
        raise UserError(_explain(error)) from None


@contextmanager
def _survival() -> Iterator[None]:
    """Turn whatever the tracker throws into one line: the results of a stage are worth more than their record."""
    try:
        yield
    except Exception as error:
        print(
            f"{_explain(error)}; the results are in the files, `python -m digits.tracking sync` logs them later",
            file=sys.stderr,
        )


def _explain(error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"MLflow at {_uri()} cannot be used: {reason[:200]}"


def _root() -> Path:
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def _own_uri() -> str:
    return f"sqlite:///{(_root() / 'mlflow.db').as_posix()}"


def _uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri()


def _connect() -> tuple["MlflowClient", str]:
    """Give a client and the id of the experiment, both made if need be."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(_uri())
    lock = _root() / ".dvc/tmp/mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # two processes that create the database at once would both fail
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


def _create(client: "MlflowClient", experiment: str, p: Params) -> str:
    """Begin a run that says what is run: params, code, experiment. Gives its id."""
    from mlflow.entities import Param

    name = os.environ.get("DVC_EXP_NAME")
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "dvc", "mlflow.user": getpass.getuser()}
    if name:
        tags["dvc_experiment"] = name
    commit = _git("rev-parse", "HEAD")
    if commit:
        # The pipeline's own results change while it runs and say nothing about the code.
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!dvc.lock", ":!metrics", ":!plots")
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit, "git_dirty": str(bool(changed)).lower()}
    created = client.create_run(experiment, tags=tags, run_name=name or (commit[:7] or None))
    client.log_batch(created.info.run_id, params=[Param(key, str(value)) for key, value in p.flat().items()])
    return str(created.info.run_id)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _record(p: Params, stage: str, run_id: str | None = None) -> None:
    """Complete the run `run_id`, or the one that matches the files at hand, or a new one, up to `stage`.

    Later stages are included where DVC will skip them because their inputs came out as before.
    """
    client, experiment = _connect()
    names = list(PARTS)
    known = names[: names.index(stage) + 1]
    for name in names[len(known) :]:
        if not _up_to_date(name, p):
            break
        known.append(name)
    digests = {f"digest_{name}": _digest(p, PARTS[name]) for name in known}
    run_id = run_id or _find(client, experiment, digests) or _create(client, experiment, p)
    tags = client.get_run(run_id).data.tags
    for name in known:
        if f"digest_{name}" not in tags:
            _log_part(client, run_id, name)
            client.set_tag(run_id, f"digest_{name}", digests[f"digest_{name}"])  # last: what dies half way is redone
    client.set_terminated(run_id)


def _digest(p: Params, part: Part) -> str:
    files = [part.metrics, *part.shown, *part.tagged.values()]
    content = json.dumps([p.flat(), [md5(file) for file in files]])
    return hashlib.md5(content.encode(), usedforsecurity=False).hexdigest()


def _find(client: "MlflowClient", experiment: str, digests: dict[str, str]) -> str | None:
    """Give the newest run that trained this model with these params and holds nothing that contradicts the files."""
    runs = client.search_runs(
        [experiment], f"tags.digest_train = '{digests['digest_train']}'", order_by=["attributes.start_time DESC"]
    )
    for found in runs:
        if all(found.data.tags.get(tag, digest) == digest for tag, digest in digests.items()):
            return str(found.info.run_id)
    return None


def _up_to_date(stage: str, p: Params) -> bool:
    """Say whether dvc.lock has this stage with the code, inputs, outputs and params as they are now."""
    lock = Path("dvc.lock")
    entry = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"].get(stage) if lock.exists() else None
    if not entry:
        return False
    now = p.flat()
    return all(now.get(key) == value for key, value in flatten(entry["params"]["params.yaml"]).items()) and all(
        Path(file["path"]).is_file() and md5(Path(file["path"])) == file["md5"]
        for file in [*entry["deps"], *entry["outs"]]
    )


def _log_part(client: "MlflowClient", run_id: str, name: str) -> None:
    from mlflow.entities import Metric

    part = PARTS[name]
    step = 0
    if name == "train":
        with paths.CURVE_TABLE.open(newline="") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        logged = {metric.step for metric in client.get_metric_history(run_id, "train_loss")}
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
        _register(run_id)


def _log_epochs(client: "MlflowClient", run_id: str, rows: Iterable[dict[str, float]]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        [Metric(key, value, now, int(row["epoch"])) for row in rows for key, value in row.items() if key != "epoch"],
    )


def _register(run_id: str) -> None:
    """Log the trained network as an MLflow model of this run and register it as the next version."""
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    network, description = models.load(paths.MODEL)
    # No names: with one, mlflow.pyfunc would hand the network a dictionary.
    image = TensorSpec(np.dtype(np.float32), (-1, 1, SIDE, SIDE))
    logits = TensorSpec(np.dtype(np.float32), (-1, len(description.classes)))
    with mlflow.start_run(run_id=run_id):
        mlflow.pytorch.log_model(
            network,
            name="model",
            registered_model_name=MODEL_NAME,
            signature=ModelSignature(Schema([image]), Schema([logits])),
            # Two images: a batch of one would be frozen into the saved graph.
            input_example=data.to_float(data.load(paths.TEST).images[:2]).numpy(),
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],  # finding them out takes mlflow 9 s
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m digits.tracking", description="Log results to MLflow.")
    parser.add_argument("command", choices=["sync"], help="log the results in this folder, unless that was done")
    parser.parse_args()
    sync()


if __name__ == "__main__":
    run(main)
