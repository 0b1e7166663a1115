"""Is everything here as it should be: `repair` before `dvc repro`, `verify` after it, as `make repro` does.

DVC writes two of its own files in place, so that a kill at the wrong moment truncates them and every later command of
its fails; and it trusts time stamps and its cache's write protection, so that it passes on what the disk has damaged.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

from digits import paths, pipeline
from digits.errors import UserError
from digits.files import md5, write_bytes
from digits.records import results
from digits.records.lineage import git

LOCK, RUNNING = Path("dvc.lock"), Path(".dvc/tmp/rwlock")


def repair(parser: ArgumentParser, words: list[str]) -> None:
    """Restore what a killed DVC left half-written: a truncated dvc.lock to the committed one, and a truncated list of
    running commands to none. Nothing is lost: DVC's run cache still knows the stages that were finished since.
    """
    parser.parse_args(words)
    try:
        pipeline.lock()
    except UserError:
        committed = git("show", f"HEAD:./{LOCK}")
        if committed:
            write_bytes(LOCK, committed)
        else:
            LOCK.unlink()
        print(f"{LOCK}: truncated when DVC was killed; restored as committed", file=sys.stderr)
    try:
        json.loads(RUNNING.read_bytes() or b"-")
    except FileNotFoundError:
        pass
    except ValueError:
        RUNNING.unlink()
        print(f"{RUNNING}: truncated when DVC was killed; removed", file=sys.stderr)


def _told() -> list[str]:
    """Return a line for each thing that a model file says of its training and dvc.lock says otherwise."""
    said = results.describe(paths.MODEL)
    advice = "; `dvc repro --force train` makes it anew"
    faults = [f"{paths.MODEL}: trained with {line}{advice}" for line in results.contradictions(said, pipeline.lock())]
    others = (path for path in (paths.ONNX, paths.PT2) if path.exists() and results.describe(path) != said)
    advice = "; `dvc repro --force export` makes it anew"
    return [*faults, *(f"{path}: says that it is another model than {paths.MODEL}{advice}" for path in others)]


def verify(parser: ArgumentParser, words: list[str]) -> None:
    """Compare every output in this folder, and its copy in DVC's cache, with the MD5 in dvc.lock, byte by byte; then
    what the models say of their training with what dvc.lock says of it.

    Exits with code 1, and a line for each file that differs.
    """
    parser.parse_args(words)
    asked = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    cache = Path(asked.stdout.strip() or ".dvc/cache") / "files" / "md5"
    faults, count = [], 0
    for entry in pipeline.lock().values():
        for out in entry.get("outs", []):
            path, copy = Path(out["path"]), cache / out["md5"][:2] / out["md5"][2:]
            if path.is_dir():  # not one of ours
                continue
            count += 1
            if not path.exists():
                faults.append(f"{path}: missing; `dvc repro` brings it")
            elif md5(path) != out["md5"]:
                faults.append(f"{path}: damaged or edited; delete it, then `dvc repro` brings it")
            if copy.exists() and md5(copy) != out["md5"]:
                faults.append(f"{copy}: damaged, DVC's copy of {path}; delete it first")
    if not faults and paths.MODEL.exists():
        faults = _told()
    if faults:
        raise UserError("\n".join(faults))
    print(f"all {count} outputs are as dvc.lock says, and so are their copies in DVC's cache")
