"""Results -> MLflow.

One run stands for one execution of the pipeline, whichever of its processes writes. No run id is kept in a file: it
would go stale with DVC's cache, a lost database or a changed param. Instead each part of a run (what train, evaluate
and export wrote) is tagged with a digest of its content, and a stage looks for a run whose parts are the files at hand.
Where there is none, it creates one and fills it from the files. A run is therefore always correct and complete, and
the files suffice to create it again.

A run leads back to what made it: the commit and, as an artifact, how the working folder differs from it; the MD5 of
every source file and every output; params and environment. `records.results` reads that. The run of a training that
was killed is resumed with the training, and is marked as killed otherwise.

No failure here ever stops a stage: it costs seconds and one line.
"""

import getpass
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from digits import paths, pipeline
from digits.errors import public
from digits.files import digest, flatten, md5, read_json
from digits.learning import curve
from digits.learning.curve import Epoch
from digits.params import Params
from digits.records import lineage, names, pages, registry, store
from digits.records.names import KEY, SECONDS

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Of each stage: the splits that it reads, and the model files that it writes and by which its run is found.
SPLITS = {"train": ("train", "validation"), "evaluate": ("test",), "export": ()}
MODELS = {"train": {"model": paths.MODEL}, "evaluate": {}, "export": {"onnx": paths.ONNX, "pt2": paths.PT2}}
METRICS = {"train": paths.TRAIN_METRICS, "evaluate": paths.TEST_METRICS, "export": paths.EXPORT_METRICS}
FINISHED = "FINISHED"  # MLflow's status of a run that is complete
RECORD, PATCH, OUTPUTS = "provenance/record.json", "provenance/uncommitted.patch", "provenance/outputs.json"

_process_id: int | None = None  # None: this one's


class TrainingRun:
    """The run of a training in progress: `with TrainingRun(params, …) as live: live.log(epoch)`.

    On leaving, the files of the train stage are added; if the stage failed or was stopped, the run says so. `key` is
    that of the training's checkpoint: a run that a killed process left behind under it is resumed.
    """

    def __init__(self, p: Params, environment: dict[str, str], key: str) -> None:
        self._params, self._environment, self._key = p, environment, key
        self._run_id: str | None = None
        self._logged: set[int] = set()
        self._live = False
        self._began, self._before = time.monotonic(), 0.0  # the latter before it was resumed

    def __enter__(self) -> "TrainingRun":
        if store.is_off():
            return self
        with store.survival():
            client, experiment = store.connect()
            self._run_id = clear_up(client, experiment, self._key)
            if self._run_id:
                client.set_tag(self._run_id, f"{KEY}process", process_name())
                self._logged = _logged_epochs(client, self._run_id)
                self._before = client.get_run(self._run_id).data.metrics.get(SECONDS, 0.0)
                if not any(
                    file.path == RECORD for file in client.list_artifacts(self._run_id, Path(RECORD).parent.name)
                ):
                    _describe(client, self._run_id, self._params, self._environment, lineage.uncommitted())
            else:
                key = {f"{KEY}training": self._key}
                self._run_id = create(client, experiment, self._params, self._environment, **key)
            self._live = True
        return self

    def log(self, epoch: Epoch, seconds: float | None = None) -> None:
        """Log one epoch, and after how many `seconds` it came, by default those until now.

        After a failure no further one is tried: leaving makes up for what is missing.
        """
        seconds = time.monotonic() - self._began if seconds is None else seconds
        if self._live and self._run_id and epoch.epoch not in self._logged:
            self._live = False
            with store.survival():
                log_epochs(store.connect()[0], self._run_id, [epoch], {SECONDS: round(self._before + seconds, 1)})
                self._live = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(status_of(kind))

    def end(self, status: str) -> None:
        """End the run with a status of MLflow's; one that is finished gets what the stage wrote."""
        if self._run_id:
            with store.survival():
                if status == FINISHED:
                    _record(self._params, "train", self._environment, self._run_id)
                else:
                    store.connect()[0].set_terminated(self._run_id, status)


def status_of(kind: type[BaseException] | None) -> str:
    """Return the status of a run that ended with this type of exception, or with none."""
    return FINISHED if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"


def record(p: Params, stage: str, environment: dict[str, str]) -> None:
    """Add what `stage` wrote, and what is missing before it, to the run that the files at hand belong to."""
    if not store.is_off():
        with store.survival():
            _record(p, stage, environment)


def sync(p: Params, environment: dict[str, str]) -> None:
    """Log the results in this folder as one complete run, unless there is one. Raises UserError if MLflow fails."""
    with store.access():
        _record(p, "export", environment)


def create(
    client: "MlflowClient",
    experiment: str,
    p: Params,
    environment: dict[str, str],
    name: str | None = None,
    **more: str,
) -> str:
    """Begin a run that says what is run: params, code, environment, experiment. Return its id.

    `environment` is `learning.runtime.recorded`; `name` is that of the run, by default of the DVC experiment or the
    commit; `more` are further tags.
    """
    experiment_name, commit, changes = os.environ.get("DVC_EXP_NAME"), lineage.commit(), lineage.uncommitted()
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "dvc", "mlflow.user": getpass.getuser()}
    tags |= {
        f"{KEY}process": process_name(),
        f"{KEY}code": digest(pipeline.code(*pipeline.stages())),
        pages.COLOR: pages.color(client, experiment),
    }
    tags |= {"machine": "{device}, {threads} threads, {precision}, torch {torch}".format(**environment), **more}
    if changed := pages.changed(p):
        tags["changed"] = changed
    if experiment_name:
        tags["dvc_experiment"] = experiment_name
    if commit:
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit}
    tags["git_dirty"] = changes.summary()
    created = client.create_run(experiment, tags=tags, run_name=name or experiment_name or (commit and commit[:7]))
    run_id = str(created.info.run_id)
    _describe(client, run_id, p, environment, changes)
    return run_id


def _describe(
    client: "MlflowClient", run_id: str, p: Params, environment: dict[str, str], changes: lineage.Changes
) -> None:
    """Log what a run was begun with; the file `RECORD` comes last, so that a run that has it has all."""
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in names.used(p.flat()).items()])
    client.log_inputs(run_id, pages.datasets(p.data.name, SPLITS["train"]))
    for line in (*changes.left_out, *([f"unknown: {changes.unknown}"] if changes.unknown else [])):
        print(f"MLflow: not recorded of the uncommitted changes: {line}", file=sys.stderr)
    if changes.patch:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, Path(PATCH).name)
            file.write_bytes(changes.patch)  # not as text: it contains files as they are, in any encoding
            client.log_artifact(run_id, str(file), Path(PATCH).parent.as_posix())
    missing = {"left_out": changes.left_out, "unknown": changes.unknown}
    code = pipeline.code(*pipeline.stages())
    client.log_dict(run_id, {"commit": lineage.commit(), **missing, "code": code, "environment": environment}, RECORD)


def act_for(process_id: int) -> None:
    """Log in the name of another process: a run is alive as long as that one is."""
    global _process_id
    _process_id = process_id


def process_name() -> str:
    """Name the process that runs are logged for so that others can tell whether it is still there.

    By host, process id and time of its start.
    """
    process = psutil.Process(_process_id)
    return f"{platform.node()} {process.pid} {process.create_time():.2f}"


def _is_gone(process: str) -> bool:
    """Say whether the process of this name, given by `process_name`, ran on this machine and no longer does."""
    node, process_id, started = process.rsplit(" ", 2)
    try:
        return node == platform.node() and f"{psutil.Process(int(process_id)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True


def clear_up(client: "MlflowClient", experiment: str, key: str | None = None) -> str | None:
    """Mark the runs whose process is gone as killed, and return the one of the training `key`, if it is among them."""
    found = None
    for left in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        tags = left.data.tags
        if _is_gone(tags.get(f"{KEY}process", tags.get("process", "? 0 0"))):  # without the prefix in old runs
            if key and not found and tags.get(f"{KEY}training") == key:
                found = str(left.info.run_id)
            else:
                client.set_terminated(left.info.run_id, "KILLED")
    return found


def _record(p: Params, stage: str, environment: dict[str, str], run_id: str | None = None) -> None:
    """Complete the run `run_id`, or the one that matches the files at hand, or a new one, up to `stage`.

    Later stages are included where DVC will skip them because their inputs are unchanged.
    """
    client, experiment = store.connect()
    clear_up(client, experiment)
    stages = list(METRICS)
    known = stages[: stages.index(stage) + 1]
    for name in stages[len(known) :]:
        if not _up_to_date(name, p):
            break
        known.append(name)
    digests = {f"{KEY}{name}": _digest(p, name) for name in known}
    run_id = run_id or _find(client, experiment, digests) or create(client, experiment, p, environment)
    tags = client.get_run(run_id).data.tags
    for place, name in enumerate(known, 1):
        if f"{KEY}{name}" not in tags:
            verdict = _log_stage(client, run_id, name, p)
            client.log_dict(run_id, _outputs(known[:place]), OUTPUTS)
            said = pages.description(run_id, known[:place], verdict, tags.get("changed"))
            client.set_tag(run_id, pages.NOTE, said)
            client.set_tag(run_id, f"{KEY}{name}", digests[f"{KEY}{name}"])  # last: an interrupted one is redone
    client.set_terminated(run_id)


def _outputs(names: list[str]) -> dict[str, str]:
    """Return the MD5 of every file that these stages and the two before them wrote, by path."""
    lock = pipeline.lock()
    before = [out for stage in ("download", "preprocess") for out in lock.get(stage, {}).get("outs", [])]
    made = {file.as_posix(): md5(file) for file in pipeline.outputs(*names)}
    return {out["path"]: out["md5"] for out in before} | made


def _digest(p: Params, stage: str) -> str:
    read = (pages.CONTEXTS[split][0] for split in SPLITS[stage])
    return digest([p.flat(), [md5(file) for file in (*pipeline.outputs(stage), *read)]])


def _find(client: "MlflowClient", experiment: str, digests: dict[str, str]) -> str | None:
    """Return the newest run of this code that trained this model with these params and contradicts no file at hand."""
    code = digest(pipeline.code(*pipeline.stages()))
    same = f"tags.`{KEY}train` = '{digests[f'{KEY}train']}' and tags.`{KEY}code` = '{code}'"
    for found in client.search_runs([experiment], same, order_by=["attributes.start_time DESC"]):
        if all(found.data.tags.get(tag, value) == value for tag, value in digests.items()):
            return str(found.info.run_id)
    return None


def _up_to_date(stage: str, p: Params) -> bool:
    """Say whether dvc.lock has this stage with the code, inputs, outputs and params as they are now."""
    entry = pipeline.lock().get(stage, {})
    files = [*entry.get("deps", []), *entry.get("outs", [])]
    known, now = flatten(entry.get("params", {}).get("params.yaml", {})), p.flat()
    return (
        "outs" in entry  # or the stage never finished
        and all(now.get(key) == value for key, value in known.items())
        and all(Path(file["path"]).is_file() and md5(Path(file["path"])) == file.get("md5") for file in files)
    )


def _log_stage(client: "MlflowClient", run_id: str, stage: str, p: Params) -> str:
    """Add what a stage read and wrote to a run; return the verdict against the champion, as far as it is known."""
    from mlflow.entities import Metric

    step = 0
    content = flatten(read_json(METRICS[stage]))
    figures = names.metrics(stage, content)
    if stage == "train":
        epochs = curve.read(paths.CURVE_TABLE)
        logged = _logged_epochs(client, run_id)
        log_epochs(client, run_id, [epoch for epoch in epochs if epoch.epoch not in logged])
        step = len(epochs)
        count = read_json(paths.DATASET_METRICS)["validation"]["count"]
        figures["errors/validation"] = names.errors(content["validation_accuracy"], count)
    elif SPLITS[stage]:
        client.log_inputs(run_id, pages.datasets(p.data.name, SPLITS[stage]))
    for name, path in MODELS[stage].items():
        client.set_tag(run_id, f"{KEY}{name}", md5(path))
    now = int(time.time() * 1000)
    old = client.get_run(run_id).data.metrics
    changed = [Metric(key, value, now, step) for key, value in figures.items() if old.get(key) != value]
    for start in range(0, len(changed), 1000):  # as many as MLflow takes at once: there is a recall for each class
        client.log_batch(run_id, changed[start : start + 1000])
    for path in pipeline.outputs(stage):
        # The page that compares runs offers files that lie at the root, and no others.
        at_root = path.suffix in (".png", ".md")
        client.log_artifact(run_id, str(path), None if at_root else path.parent.as_posix())
    if stage == "evaluate":
        return registry.verdict(client)
    if stage == "export":
        if not store.offers_models(client, client.get_run(run_id).info.experiment_id):
            lacking = "has no models of MLflow 3: the run is complete, but no version of a model is registered"
            print(f"MLflow at {public(store.uri())}: the server {lacking}", file=sys.stderr)
            return ""
        with store.lock("registry"):  # of two processes that register at once, the second sees what the first did
            return registry.register(client, run_id)
    return ""


def _logged_epochs(client: "MlflowClient", run_id: str) -> set[int]:
    return {metric.step for metric in client.get_metric_history(run_id, "loss/train")}


def log_epochs(
    client: "MlflowClient", run_id: str, epochs: Iterable[Epoch], more: Mapping[str, float] | None = None
) -> None:
    """Log epochs, and `more` metrics of each, in one request."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    rows = {epoch.epoch: {key: value for key, value in asdict(epoch).items() if key != "epoch"} for epoch in epochs}
    metrics = [
        Metric(key, value, now, step)
        for step, row in rows.items()
        for key, value in {**names.metrics("train", row), **(more or {})}.items()
    ]
    client.log_batch(run_id, metrics)
