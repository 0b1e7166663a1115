"""Where a result comes from, whether it can be made again, and how two results differ:

    python -m digits.provenance of models/model.safetensors     # or an .onnx or .pt2 file, wherever it lies now
    python -m digits.provenance reproduce RESULT                # run it all again elsewhere, compare every bit
    python -m digits.provenance diff RESULT RESULT              # code, params, data, environment, results

RESULT is the id of an MLflow run, the name of a DVC experiment, a git revision, `workspace`, or a model file.

A model file holds what determines it: params, the MD5s of its data and code. Which commits, experiments and runs made
it differs between equal files, and is looked up by the MD5 of the file: in every committed dvc.lock and in MLflow.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from digits import lineage, params, paths, tracking
from digits.command import UserError, run
from digits.files import digest, flatten, is_intact, md5
from digits.lineage import State, git

WORKSPACE = "workspace"
MODELS = (".safetensors", ".onnx", ".pt2")


def describe(path: Path) -> dict[str, Any]:
    """Give what a model file says about itself: the fields of `models.Description`.

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
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    raise ValueError("its content is not that of its checksum")
                (name,) = (name for name in archive.namelist() if name.endswith("extra/model.json"))
                return dict(json.loads(archive.read(name)))
        else:
            raise ValueError(f"known are {', '.join(MODELS)}")
        if not is_intact(path.read_bytes(), checksum):
            raise ValueError("its content is not that of its checksum")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # each of the three libraries has exceptions of its own for a broken file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a model of this project, or damaged ({reason})") from None
    return said


def origins(checksum: str) -> tuple[list[str], list[str]]:
    """Give the commits and experiments, and the MLflow runs, that made a file with this MD5, the newest first."""
    listed = git("log", "--all", "--format=%H", "-S", checksum, "--", "dvc.lock") or b""
    commits = [commit for commit in listed.decode().split() if checksum.encode() in _content(commit, "dvc.lock")]
    return commits, tracking.runs_with(checksum)


def resolve(what: str) -> State:
    """Give the state that `what` stands for. Raises UserError if nothing has that name, or MLflow does not answer."""
    if what == WORKSPACE:
        return _from_lock(WORKSPACE, None, lambda file: Path(file).read_bytes())
    if Path(what).suffix in MODELS and Path(what).exists():
        describe(Path(what))
        commits, runs = origins(md5(Path(what)))
        if not commits and not runs:
            raise UserError(f"{what}: neither a commit, nor an experiment, nor a run in MLflow made this file")
        return _from_commit(commits[0]) if commits else resolve(runs[0])
    if re.fullmatch(r"[0-9a-f]{32}", what):
        found = tracking.find(what)
        if not found:
            raise UserError(f"{what}: MLflow has no run of this id (see MLFLOW_TRACKING_URI)")
        return found
    commit = (
        experiments(what).get(what) or (git("rev-parse", "--verify", "--quiet", f"{what}^{{commit}}") or b"").decode()
    )
    if not commit:
        raise UserError(
            f"{what}: there is no MLflow run, DVC experiment, git revision or model file of this name "
            f"(nor is it `{WORKSPACE}`)"
        )
    return _from_commit(commit.strip())


def _from_commit(commit: str) -> State:
    return _from_lock(_name(commit), commit, lambda file: _content(commit, file))


def experiments(pattern: str) -> dict[str, str]:
    """Give the commits of the DVC experiments whose names fit a pattern with `*` or `?`, by name.

    Of several of one name, on different commits, it is the one on HEAD, as for DVC, or else the newest.
    """
    head, found = lineage.commit() or "", {}
    for place in ("*/*", f"{head[:2]}/{head[2:]}"):
        command = ("for-each-ref", "--sort=committerdate", "--format=%(objectname) %(refname)")
        for line in (git(*command, f"refs/exps/{place}/{pattern}") or b"").decode().splitlines():
            commit, name = line.split()
            found[name.rsplit("/", 1)[-1]] = commit  # the last one wins
    return dict(sorted(found.items()))


def _from_lock(name: str, commit: str | None, read: Callable[[str], bytes]) -> State:
    try:
        stages = lineage.lock(read("dvc.lock").decode())
    except OSError:
        raise UserError(f"{name}: has no dvc.lock, so no result") from None
    outputs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    code: dict[str, str] = {}
    knobs: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    for stage in stages.values():
        code |= {dep["path"]: dep["md5"] for dep in stage["deps"] if dep["path"].endswith(".py")}
        knobs |= flatten(params.choose(stage.get("params", {}).get("params.yaml", {})))
    for part in tracking.PARTS.values():
        if part.metrics.as_posix() in outputs:
            try:
                values = flatten(json.loads(read(part.metrics.as_posix())))
            except FileNotFoundError:  # of an experiment that failed, say
                raise UserError(f"{name}: has no {part.metrics}, so no result; `dvc repro` makes it") from None
            metrics |= {part.prefix + key: value for key, value in values.items()}
    text = {key: str(value) for key, value in knobs.items()}
    return State(name, commit, b"", code, text, {}, outputs, metrics, read)


def _content(commit: str, file: str) -> bytes:
    found = git("show", f"{commit}:./{file}")
    if found is None:
        raise FileNotFoundError(file)
    return found


def _name(commit: str) -> str:
    """Say a commit as people know it: its experiment, or its short hash and subject."""
    ref = git("for-each-ref", "--format=%(refname)", "--points-at", commit, "refs/exps/*/*/*") or b""
    if ref:
        return f"experiment {ref.decode().split()[0].rsplit('/', 1)[-1]} ({commit[:7]})"
    subject = git("log", "-1", "--format=%s", commit) or b""
    return f"commit {commit[:7]} ({subject.decode().strip()})"


def tell_origin(path: Path) -> None:
    """Print all that is known of a model file."""
    said, checksum = describe(path), md5(path)
    print(f"{path}: MD5 {checksum}, intact")
    knobs = flatten({"model": {"name": said["name"], **said["knobs"]}, **said["training"]})
    print("\nparams\n" + "\n".join(f"  {key}: {value}" for key, value in knobs.items()))
    print("\ndata\n" + "\n".join(f"  {value}  {file}" for file, value in said["data"].items()))
    here = "that of this folder" if said["code"] == digest(lineage.code("train")) else "not that of this folder"
    print(f"\ncode of its training\n  {said['code']}, {here}")
    commits, runs = origins(checksum)
    print("\nmade by")
    for commit in commits:
        print(f"  {_name(commit)}")
    for run_id in runs:
        found = tracking.find(run_id)
        commit = f", on commit {found.commit[:7]}" if found and found.commit else ""
        changed = " with uncommitted changes" if found and found.patch else ""
        print(f"  MLflow {found.name if found else run_id}{commit}{changed}")
    if not commits and not runs:
        print("  nothing that is known here: no commit, no experiment, no run in MLflow")


def reproduce(what: str) -> None:
    """Run the pipeline of a result again, from nothing, in a temporary clone; compare the bits of every output.

    Raises UserError if one differs.
    """
    state = resolve(what)
    if not state.commit or not state.outputs:
        raise UserError(f"{state.name}: holds no {'results' if state.commit else 'commit'} to start from")
    changes = f" and {len(state.patch.splitlines())} lines of uncommitted changes" if state.patch else ""
    print(
        f"{state.name}: commit {state.commit[:7]}{changes}; running the whole pipeline in a temporary clone", flush=True
    )
    prefix = (git("rev-parse", "--show-prefix") or b"").decode().strip()
    root = (git("rev-parse", "--show-toplevel") or b"").decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        if git("clone", "--quiet", "--shared", "--no-checkout", root, str(clone)) is None:
            raise UserError(f"{root or Path.cwd()}: git cannot clone it")
        if git("-C", str(clone), "checkout", "--quiet", "--detach", state.commit) is None:
            raise UserError(f"{state.name}: commit {state.commit} is not in this repository; `git fetch` may bring it")
        if state.patch:
            patch = Path(folder, "patch")
            patch.write_bytes(state.patch)
            if git("-C", str(clone), "apply", "--whitespace=nowarn", str(patch)) is None:
                raise UserError(f"{state.name}: its uncommitted changes do not fit commit {state.commit}")
        place = clone / prefix
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment["MLFLOW_TRACKING_URI"] = tracking.OFF  # a check is not a result
        # By force: nothing may come out of a cache.
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "repro", "--force"], cwd=place, env=environment, check=False
        )
        if done.returncode:
            raise UserError(f"{state.name}: its pipeline does not run here, see above")
        made = _from_lock("reproduced", None, lambda file: (place / file).read_bytes()).outputs
    _compare(state, made)


def _compare(state: State, made: dict[str, str]) -> None:
    different = [file for file, checksum in state.outputs.items() if made.get(file) != checksum]
    print()
    for file, checksum in state.outputs.items():
        print(f"  {'DIFFERENT' if file in different else 'same bits':10} {checksum}  {file}")
    count = len(state.outputs)
    print(f"\n{state.name}: {count - len(different)} of {count} outputs have the same bits")
    if different:
        raise UserError(f"{state.name}: not reproduced: {', '.join(different)}")


def tell_difference(first: State, second: State) -> None:
    """Print what differs between two results, causes before effects."""
    print(f"{first.name}\n{second.name}")
    equal = []
    for title, old, new in (
        ("code", first.code, second.code),
        ("params", first.params, second.params),
        ("data", data_of(first), data_of(second)),
        ("environment", first.environment, second.environment),
        ("results", first.metrics, second.metrics),
    ):
        unknown = [state.name for state, known in ((first, old), (second, new)) if not known]
        if unknown:
            print(f"\n{title}\n  not known of {' and '.join(unknown)}")
            continue
        keys = changed(old, new)
        if not keys:
            equal.append(title)
            continue
        print(f"\n{title}")
        width = max(map(len, keys))
        for key in keys:
            print(f"  {key:{width}}  {short(old.get(key))} -> {short(new.get(key))}")
    print(f"\nthe same: {', '.join(equal) or 'nothing'}")


def with_run(state: State) -> State:
    """Add to a commit's result what only MLflow knows: environment and seconds of a run that made the same model."""
    model = state.outputs.get(paths.MODEL.as_posix())
    if state.environment or not model:
        return state
    runs = (tracking.find(run_id) for run_id in tracking.runs_with(model))
    found = next((found for found in runs if found), state)
    return replace(state, environment=found.environment, seconds=found.seconds)


def data_of(state: State) -> dict[str, str]:
    """Give the MD5s of the data among a result's outputs, by path."""
    return {file: checksum for file, checksum in state.outputs.items() if file.startswith("data/")}


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Give the keys whose values differ; a number is the same as 20 and as 20.0, as different places write it."""
    return [key for key in {**old, **new} if _number(old.get(key)) != _number(new.get(key))]


def _number(value: Any) -> Any:
    with contextlib.suppress(InvalidOperation):
        return Decimal(value) if isinstance(value, str) else value
    return value


def short(value: Any) -> str:
    """Give a value for a table, an MD5 by its first digits."""
    if value is None:
        return "(none)"
    return value[:8] if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32}", value) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m digits.provenance", description="Where a result comes from.")
    commands = parser.add_subparsers(dest="command", required=True)
    origin = commands.add_parser("of", help="say what made a model file")
    origin.add_argument("file", type=Path, help="a .safetensors, .onnx or .pt2 file")
    again = commands.add_parser(
        "reproduce", help="make a result again and compare every bit; exit code 1 if one differs"
    )
    again.add_argument("result", help="MLflow run id, DVC experiment, git revision or model file")
    difference = commands.add_parser("diff", help="say what differs between two results, and their causes")
    for name in ("first", "second"):
        difference.add_argument(name, help=f"MLflow run id, DVC experiment, git revision, model file or `{WORKSPACE}`")
    arguments = parser.parse_args()
    if arguments.command == "of":
        tell_origin(arguments.file)
    elif arguments.command == "reproduce":
        reproduce(arguments.result)
    else:
        tell_difference(*(with_run(resolve(name)) for name in (arguments.first, arguments.second)))


if __name__ == "__main__":
    run(main)
