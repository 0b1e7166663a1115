"""Is everything here as it should be:

    python -m digits.integrity repair     # before `dvc repro`: what DVC leaves half-written when it is killed
    python -m digits.integrity verify     # after it: every output here and in DVC's cache, byte by byte

`make repro` calls both. DVC writes two of its own files in place, so that a kill at the wrong moment leaves them cut
off and every later `dvc` command ends in an error; and it trusts time stamps and the write protection of its cache, so
that it hands on as sound what the disk has damaged.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from digits import lineage
from digits.command import UserError, run
from digits.files import md5, write_bytes

LOCK, RUNNING = Path("dvc.lock"), Path(".dvc/tmp/rwlock")


def repair() -> None:
    """Put a cut-off dvc.lock back to the committed one, and a cut-off list of running commands to none.

    Nothing is lost: DVC's run cache still knows the stages that were finished since.
    """
    try:
        lineage.lock()
    except UserError:
        committed = lineage.git("show", f"HEAD:./{LOCK}")
        if committed:
            write_bytes(LOCK, committed)
        else:
            LOCK.unlink()
        print(f"{LOCK}: was cut off when DVC was killed; put back as committed", file=sys.stderr)
    try:
        json.loads(RUNNING.read_bytes() or b"-")
    except FileNotFoundError:
        pass
    except ValueError:
        RUNNING.unlink()
        print(f"{RUNNING}: was cut off when DVC was killed; removed", file=sys.stderr)


def verify() -> None:
    """Compare every output in this folder, and its copy in DVC's cache, with the MD5 in dvc.lock.

    Raises UserError with a line for each file that is not what it should be.
    """
    asked = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    cache = Path(asked.stdout.strip() or ".dvc/cache") / "files" / "md5"
    faults, count = [], 0
    for entry in lineage.lock().values():
        for out in entry.get("outs", []):
            path, copy = Path(out["path"]), cache / out["md5"][:2] / out["md5"][2:]
            if path.is_dir():  # not one of ours
                continue
            count += 1
            if not path.exists():
                faults.append(f"{path}: missing; `dvc repro` brings it")
            elif md5(path) != out["md5"]:
                faults.append(f"{path}: damaged, or changed by hand; delete it, then `dvc repro` brings it")
            if copy.exists() and md5(copy) != out["md5"]:
                faults.append(f"{copy}: damaged, DVC's copy of {path}; delete it first")
    if faults:
        raise UserError("\n".join(faults))
    print(f"all {count} outputs are as dvc.lock says, and so are their copies in DVC's cache")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m digits.integrity", description="Check and repair what is here.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("repair", help="put right what DVC leaves half-written when it is killed")
    commands.add_parser("verify", help="compare every output here and in DVC's cache with dvc.lock")
    {"repair": repair, "verify": verify}[parser.parse_args().command]()


if __name__ == "__main__":
    run(main)
