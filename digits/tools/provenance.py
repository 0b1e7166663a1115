"""Where a result comes from, whether it can be made again, and how two results differ."""

import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from digits import pipeline
from digits.errors import UserError
from digits.files import digest, flatten, md5
from digits.records import lineage, results, store

RESULT = "id of an MLflow run, DVC experiment, git revision or model file"


def of(parser: ArgumentParser, words: list[str]) -> None:
    """Print all that is known of a model file: the params, data and code that determine it, from the file itself; the
    commits, experiments and MLflow runs that made it, by its MD5.
    """
    parser.add_argument("file", type=Path, help="a .safetensors, .onnx or .pt2 file, wherever it is now")
    path: Path = parser.parse_args(words).file
    said, checksum = results.describe(path), md5(path)
    print(f"{path}: MD5 {checksum}, intact")
    knobs = flatten({"model": {"name": said.name, **said.knobs}, **said.training})
    print("\nparams\n" + "\n".join(f"  {key}: {value}" for key, value in knobs.items()))
    print("\ndata\n" + "\n".join(f"  {value}  {file}" for file, value in said.data.items()))
    here = "that of this folder" if said.code == digest(pipeline.code("train")) else "not that of this folder"
    print(f"\ncode of its training\n  {said.code}, {here}")
    commits, runs = results.origins(checksum)
    print("\nmade by")
    for commit in commits:
        print(f"  {results.name_of(commit)}")
        lock = pipeline.lock((lineage.git("show", f"{commit}:./dvc.lock") or b"").decode())
        for line in results.contradictions(said, lock):
            print(f"    dvc.lock of this commit is wrong: the model was trained with {line}")
    for run_id in runs:
        found = results.from_run(run_id)
        commit = f", on commit {found.commit[:7]}" if found and found.commit else ""
        changed = " with uncommitted changes" if found and found.patch else ""
        print(f"  MLflow {found.name if found else run_id}{commit}{changed}")
        for line in found.unrecorded if found else ():
            print(f"    not recorded of its uncommitted changes: {line}")
    if not commits and not runs:
        print("  nothing that is known here: no commit, no experiment, no run in MLflow")


def reproduce(parser: ArgumentParser, words: list[str]) -> None:
    """Run the pipeline of a result again, from nothing, in a temporary clone, and compare every bit of every output.

    Exits with code 1 if one differs.
    """
    parser.add_argument("result", help=RESULT)
    result = results.load(parser.parse_args(words).result)
    if not result.commit or not result.outputs:
        raise UserError(f"{result.name}: has no {'results' if result.commit else 'commit'} to start from")
    changes = f" and {len(result.patch.splitlines())} lines of uncommitted changes" if result.patch else ""
    print(f"{result.name}: commit {result.commit[:7]}{changes}; running the whole pipeline in a temporary clone")
    for line in result.unrecorded:
        print(f"not recorded of its uncommitted changes, so this may not be the same code: {line}")
    prefix, root = (
        (lineage.git("rev-parse", f"--show-{what}") or b"").decode().strip() for what in ("prefix", "toplevel")
    )
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        if lineage.git("clone", "--quiet", "--shared", "--no-checkout", root, str(clone)) is None:
            raise UserError(f"{root or Path.cwd()}: git cannot clone it")
        if lineage.git("-C", str(clone), "checkout", "--quiet", "--detach", result.commit) is None:
            raise UserError(f"{result.name}: commit {result.commit} is not here; `git fetch` may bring it")
        if result.patch:
            patch = Path(folder, "patch")
            patch.write_bytes(result.patch)
            if lineage.git("-C", str(clone), "apply", "--whitespace=nowarn", str(patch)) is None:
                raise UserError(f"{result.name}: its uncommitted changes do not fit commit {result.commit}")
        place = clone / prefix
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment["MLFLOW_TRACKING_URI"] = store.OFF  # a check is not a result
        # By force: nothing may come out of a cache.
        command = [sys.executable, "-m", "dvc", "repro", "--force"]
        if subprocess.run(command, cwd=place, env=environment, check=False).returncode:
            raise UserError(f"{result.name}: its pipeline does not run here, see above")
        made = results.from_lock("reproduced", None, lambda file: (place / file).read_bytes()).outputs
    _compare(result, made)


def _compare(result: results.Result, made: dict[str, str]) -> None:
    different = [file for file, checksum in result.outputs.items() if made.get(file) != checksum]
    print()
    for file, checksum in result.outputs.items():
        print(f"  {'DIFFERENT' if file in different else 'same bits':10} {checksum}  {file}")
    count = len(result.outputs)
    print(f"\n{result.name}: {count - len(different)} of {count} outputs have the same bits")
    if different:
        raise UserError(f"{result.name}: not reproduced: {', '.join(different)}")


def diff(parser: ArgumentParser, words: list[str]) -> None:
    """Print what differs between two results, causes before effects: code, params, data, environment, results."""
    for name in ("first", "second"):
        parser.add_argument(name, help=f"{RESULT}, or `{results.WORKSPACE}`")
    arguments = parser.parse_args(words)
    tell_difference(*(results.with_run(results.load(name)) for name in (arguments.first, arguments.second)))


def tell_difference(first: results.Result, second: results.Result) -> None:
    """Print what differs between two results."""
    print(f"{first.name}\n{second.name}")
    equal = []
    for title in ("code", "params", "data", "environment", "metrics"):
        old, new = getattr(first, title), getattr(second, title)
        unknown = [result.name for result, known in ((first, old), (second, new)) if not known]
        if unknown:
            print(f"\n{title}\n  not known of {' and '.join(unknown)}")
            continue
        keys = results.changed(old, new)
        if not keys:
            equal.append(title)
            continue
        print(f"\n{title}")
        width = max(map(len, keys))
        for key in keys:
            print(f"  {key:{width}}  {results.short(old.get(key))} -> {results.short(new.get(key))}")
    print(f"\nthe same: {', '.join(equal) or 'nothing'}")
