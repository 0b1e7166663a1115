"""Any result by any name: a git revision, a DVC experiment, an MLflow run, a model file or the working folder.

A model file says what determines it: params, the MD5s of its data and code. Which commits, experiments and runs made it
differs between equal files, and is looked up by the file's MD5: in every committed dvc.lock and in MLflow.
"""

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from digits import paths, pipeline
from digits.errors import UserError, harmless, reason
from digits.files import digest, flatten, is_intact, md5, parse_table
from digits.learning.description import Description, described
from digits.params.reading import choose
from digits.records import lineage, names, runs, store

WORKSPACE = "workspace"
MODELS = (".safetensors", ".onnx", ".pt2")
PREFIXES = {"train": "", "evaluate": "test_", "export": "export_"}  # of the figures of each stage's JSON file
# The images of a split, and the predictions that evaluate wrote for them.
SPLITS = {"validation": (paths.VALIDATION, paths.VALIDATION_TABLE), "test": (paths.TEST, paths.CONFUSION_TABLE)}


@dataclass(frozen=True)
class Answers:
    """What a result says of each image of a split: names of classes, in the order of the split; `images` is its MD5."""

    actual: list[str]
    predicted: list[str]
    images: str

    def correct(self) -> list[bool]:
        return [actual == predicted for actual, predicted in zip(self.actual, self.predicted, strict=True)]


@dataclass(frozen=True)
class Result:
    """All that is known of one result of the whole pipeline, a commit's or a run's.

    `patch` is how its code differs from `commit`, for `git apply`. `code` and `outputs` are MD5s by path; `params` are
    text, without those of other networks than the one that was used; `metrics` are named as in the JSON files, with the
    prefix of their stage. `read` returns the content of a small output (in metrics/ or plots/), or raises
    FileNotFoundError. `seconds` are those of training, which only MLflow knows; `unrecorded` says which uncommitted
    changes are not in `patch`, a line each.
    """

    name: str
    commit: str | None
    patch: bytes
    code: dict[str, str]
    params: dict[str, str]
    environment: dict[str, str]
    outputs: dict[str, str]
    metrics: dict[str, float]
    read: Callable[[str], bytes]
    seconds: float | None = None
    unrecorded: tuple[str, ...] = ()

    @property
    def data(self) -> dict[str, str]:
        """The MD5s of the data among its outputs, by path."""
        return {file: checksum for file, checksum in self.outputs.items() if file.startswith("data/")}

    def answers(self, split: str) -> Answers:
        """Return what it predicted for a split. Raises UserError if it has no predictions."""
        images, table = (path.as_posix() for path in SPLITS[split])
        try:
            rows = parse_table(self.read(table))
        except FileNotFoundError:
            advice = "; `dvc repro` writes it" if self.name == WORKSPACE else ""
            raise UserError(f"{self.name}: has no {table}{advice}") from None
        if not rows or images not in self.outputs:
            raise UserError(f"{self.name}: has no predictions in {table}, or is not a finished result")
        return Answers([row["actual"] for row in rows], [row["predicted"] for row in rows], self.outputs[images])


def load(name: str) -> Result:
    """Return the result of this name. Raises UserError if there is none, or MLflow does not answer."""
    if name == WORKSPACE:
        return from_lock(WORKSPACE, None, lambda file: Path(file).read_bytes())
    if Path(name).suffix in MODELS and Path(name).exists():
        describe(Path(name))
        commits, found = origins(md5(Path(name)))
        if not commits and not found:
            raise UserError(f"{name}: no commit, experiment or run in MLflow made this file")
        return _from_commit(commits[0]) if commits else load(found[0])
    if re.fullmatch(r"[0-9a-f]{32}", name):
        if result := from_run(name):
            return result
        raise UserError(f"{name}: MLflow has no run of this id (see MLFLOW_TRACKING_URI)")
    if commit := experiments(name).get(name) or _commit_of(name):
        return _from_commit(commit)
    raise UserError(
        f"{name}: no MLflow run, DVC experiment, git revision or model file of this name, nor `{WORKSPACE}`"
    )


def _commit_of(revision: str) -> str | None:
    """Return the commit that git knows by a name such as `main~2`, `v1` or `:/words of its message`."""
    found = (lineage.git("rev-parse", "--verify", "--quiet", "--end-of-options", revision) or b"").decode().strip()
    if not re.fullmatch(r"[0-9a-f]{40,64}", found):  # ^HEAD excludes a commit
        return None
    return (lineage.git("rev-parse", "--verify", "--quiet", f"{found}^{{commit}}") or b"").decode().strip() or None


def experiments(pattern: str) -> dict[str, str]:
    """Return the commits of the DVC experiments whose names match a pattern with `*` or `?`, by name.

    Of several of one name, on different commits, it is the one on HEAD, as for DVC, or else the newest.
    """
    head, found = lineage.commit() or "", {}
    for place in ("*/*", f"{head[:2]}/{head[2:]}"):
        command = ("for-each-ref", "--sort=committerdate", "--format=%(objectname) %(refname)")
        for line in (lineage.git(*command, f"refs/exps/{place}/{pattern}") or b"").decode().splitlines():
            commit, name = line.split()
            found[name.rsplit("/", 1)[-1]] = commit  # the last one wins
    return dict(sorted(found.items()))


def _from_commit(commit: str) -> Result:
    return from_lock(name_of(commit), commit, lambda file: _content(commit, file))


def from_lock(name: str, commit: str | None, read: Callable[[str], bytes]) -> Result:
    """Return the result that a dvc.lock describes. Raises UserError if there is none."""
    try:
        stages = pipeline.lock(read("dvc.lock").decode())
    except OSError:
        raise UserError(f"{name}: has no dvc.lock, so no result") from None
    except (UserError, UnicodeDecodeError):
        raise UserError(f"{name}: has a malformed dvc.lock, so no result") from None
    outputs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    code: dict[str, str] = {}
    knobs: dict[str, Any] = {}
    for stage in stages.values():
        code |= {dep["path"]: dep["md5"] for dep in stage["deps"] if pipeline.is_code(dep["path"])}
        knobs |= flatten(choose(stage.get("params", {}).get("params.yaml", {})))
    try:
        metrics = _figures(outputs, read)
    except FileNotFoundError as error:  # of an experiment that failed, say
        raise UserError(f"{name}: has no {error.filename}, so no result; `dvc repro` makes it") from None
    text = {key: str(value) for key, value in names.used(knobs).items()}
    return Result(name, commit, b"", code, text, {}, outputs, metrics, read)


def _figures(outputs: Iterable[str], read: Callable[[str], bytes]) -> dict[str, float]:
    """Return what the JSON files of metrics among `outputs` say. Raises FileNotFoundError if one is missing."""
    found: dict[str, float] = {}
    for stage, path in runs.METRICS.items():
        if path.as_posix() in outputs:
            found |= {PREFIXES[stage] + key: value for key, value in flatten(json.loads(read(path.as_posix()))).items()}
    return found


def _content(commit: str, file: str) -> bytes:
    found = lineage.git("show", f"{commit}:./{file}")
    if found is None:
        raise missing(file)
    return found


def name_of(commit: str) -> str:
    """Return a commit's name for people: its experiment, or its short hash and subject."""
    ref = lineage.git("for-each-ref", "--format=%(refname)", "--points-at", commit, "refs/exps/*/*/*") or b""
    if ref:
        return harmless(f"experiment {ref.decode().split()[0].rsplit('/', 1)[-1]} ({commit[:7]})")
    subject = lineage.git("log", "-1", "--format=%s", commit) or b""
    return harmless(f"commit {commit[:7]} ({subject.decode(errors='replace').strip()})")


def from_run(run_id: str) -> Result | None:
    """Return the run of this id, or None if there is none. Raises UserError if MLflow does not answer."""
    if store.is_empty():
        return None
    from mlflow.exceptions import MlflowException

    with store.access():
        client, _ = store.connect()
        try:
            found = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        contents = {}
        with tempfile.TemporaryDirectory() as folder:
            for file in client.list_artifacts(run_id, Path(runs.RECORD).parent.as_posix()):
                contents[file.path] = Path(client.download_artifacts(run_id, file.path, folder)).read_bytes()
    record, outputs = (json.loads(contents.get(file, "{}")) for file in (runs.RECORD, runs.OUTPUTS))
    commit, code, environment = record.get("commit"), record.get("code", {}), record.get("environment", {})
    name, patch, metrics = (
        harmless(f"run {run_id} ({found.info.run_name})"),
        contents.get(runs.PATCH, b""),
        found.data.metrics,
    )
    seconds = metrics.get(names.SECONDS, metrics.get("training_seconds"))  # its name in old runs

    def read(file: str) -> bytes:
        return _artifact(run_id, file)

    figures = metrics  # of a run that never finished a stage, or a trial
    with contextlib.suppress(FileNotFoundError):
        figures = _figures(outputs, read) or metrics
    params = names.used(found.data.params)
    unrecorded = (*record.get("left_out", ()), *([f"unknown: {record['unknown']}"] if record.get("unknown") else []))
    return Result(name, commit, patch, code, params, environment, outputs, figures, read, seconds, unrecorded)


def _artifact(run_id: str, file: str) -> bytes:
    """Return the content of a run's artifact. Raises FileNotFoundError, or UserError if MLflow does not answer."""
    with store.access():
        client, _ = store.connect()
        there = file in {entry.path for entry in client.list_artifacts(run_id, Path(file).parent.as_posix())}
        if there:
            with tempfile.TemporaryDirectory() as folder:
                return Path(client.download_artifacts(run_id, file, folder)).read_bytes()
    raise missing(file)


def missing(file: str) -> FileNotFoundError:
    """Return the error that the operating system raises for a file that is not there."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)


def with_run(result: Result) -> Result:
    """Add to a commit's result what only MLflow knows: environment and seconds of a run that made the same model."""
    model = result.outputs.get(paths.MODEL.as_posix())
    if result.environment or not model:
        return result
    found = next(filter(None, map(from_run, runs_with(model))), result)
    return replace(result, environment=found.environment, seconds=found.seconds)


def runs_with(checksum: str) -> list[str]:
    """Return the ids of the runs that made a model file with this MD5, the newest first.

    Raises UserError if MLflow does not answer.
    """
    if store.is_empty():
        return []
    with store.access():
        client, experiment = store.connect()
        files = [name for made in runs.MODELS.values() for name in made]
        tags = [tag for name in files for tag in (f"{names.KEY}{name}", f"{name}_md5")]  # the latter in old runs
        found = (run for tag in tags for run in client.search_runs([experiment], f"tags.`{tag}` = '{checksum}'"))
        return [str(run.info.run_id) for run in found]


def origins(checksum: str) -> tuple[list[str], list[str]]:
    """Return the commits and experiments, and the MLflow runs, that made a file with this MD5, the newest first."""
    listed = lineage.git("log", "--all", "--format=%H", "-S", checksum, "--", "dvc.lock") or b""
    commits = [commit for commit in listed.decode().split() if checksum.encode() in _content(commit, "dvc.lock")]
    return commits, runs_with(checksum)


def describe(path: Path) -> Description:
    """Return what a model file says about itself.

    Raises UserError if it is not a model of this project, or is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="numpy") as file:
                said: dict[str, Any] = json.loads(file.metadata()["model"])
            checksum = said.pop("md5")
        elif path.suffix == ".onnx":
            import onnx

            entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
            said, checksum = json.loads(entries["model"]), entries["md5"]
        elif path.suffix == ".pt2":
            from digits.learning.exporting import read_pt2  # only now: torch and onnx take seconds

            return read_pt2(path.read_bytes())
        else:
            raise ValueError(f"known are {', '.join(MODELS)}")
        if not is_intact(path.read_bytes(), checksum):
            raise ValueError("its content does not match its checksum")
        return described(said)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # each of the three libraries has exceptions of its own for a broken file
        raise UserError(f"{path}: not a model of this project, or damaged ({reason(error)})") from None


def contradictions(said: Description, stages: dict[str, Any]) -> list[str]:
    """Return what a model says of its training that a dvc.lock, by its stages, says otherwise, a line each.

    They differ if params or code were edited between the training and the moment when DVC recorded it.
    """
    entry = stages.get("train", {})
    locked = flatten(choose(entry.get("params", {}).get("params.yaml", {})))
    own = {
        f"model.{key}" if f"model.{key}" in locked else f"model.{said.name}.{key}": one
        for key, one in said.knobs.items()
    }
    trained = {"model.name": said.name, **own, **flatten(said.training)}
    if locked.get("runtime.precision") == "auto":
        trained.pop("runtime.precision", None)
    deps = {dep["path"]: dep["md5"] for dep in entry.get("deps", [])}
    code = digest({path: checksum for path, checksum in deps.items() if pipeline.is_code(path)})
    pairs = [(key, value, locked[key]) for key, value in trained.items() if key in locked]
    pairs += [(path, checksum, deps[path]) for path, checksum in said.data.items() if path in deps]
    pairs += [("code", said.code, code)] if deps else []
    return [f"{key}: {short(one)}, but {short(other)} in dvc.lock" for key, one, other in pairs if one != other]


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the keys whose values differ; 20 and 20.0 are equal, since different places write it differently.

    Of two params of different networks, `model.name` says so, and not every knob that only one of them has.
    """
    keys = [key for key in {**old, **new} if _number(old.get(key)) != _number(new.get(key))]
    return [key for key in keys if "model.name" not in keys or not names.network(key)]


def _number(value: Any) -> Any:
    with contextlib.suppress(InvalidOperation):
        return Decimal(value) if isinstance(value, str) else value
    return value


def short(value: Any) -> str:
    """Return a value for a table, an MD5 by its first digits."""
    if value is None:
        return "(none)"
    return value[:8] if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32}", value) else str(value)
