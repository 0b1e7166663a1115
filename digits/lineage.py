"""What a result was made of: the code and the data of a stage, and how the working folder differs from git.

dvc.yaml says what each stage depends on, dvc.lock what the stages before it made; nothing of that is said again here.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from digits.command import UserError
from digits.files import md5

# Of the code that runs: in an experiment that DVC runs in a temporary copy, that copy.
ROOT = Path(__file__).parents[1]
RESULTS = (":!dvc.lock", ":!metrics", ":!plots")  # in git, but made by the pipeline: they change while it runs


@dataclass(frozen=True)
class State:
    """All that is known of one result of the whole pipeline, a commit's or a run's.

    `patch` is what its code differed by from `commit`, for `git apply`. `code` and `outputs` are MD5s by path; `params`
    are text, `metrics` are named as in MLflow. `read` gives the content of a small result (under metrics/ or plots/),
    or raises FileNotFoundError. `seconds` are those of training, which only MLflow knows.
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


@cache
def stages() -> dict[str, Any]:
    """Give the stages of dvc.yaml by name."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return found


def code(*names: str) -> dict[str, str]:
    """Give the MD5 of every source file that these stages depend on, by path."""
    files = {dep for name in names for dep in stages()[name]["deps"] if dep.endswith(".py")}
    return {file: md5(ROOT / file) for file in sorted(files)}


def inputs(name: str) -> dict[str, str]:
    """Give the MD5 of every result of earlier stages that this stage reads, by path, and prove that they are sound.

    DVC trusts the time stamp of a file, and the write protection of its cache. A byte that the disk or a hand has
    changed behind its back is noticed here. Raises UserError with a line for each file that is missing or is not the
    one in dvc.lock; outside DVC, without that file, there is nothing to compare with.
    """
    made = {out["path"]: (stage, out["md5"]) for stage, entry in lock().items() for out in entry.get("outs", [])}
    found, faults = {}, []
    for file in stages()[name]["deps"]:
        if file.endswith(".py"):
            continue
        try:
            found[file] = md5(Path(file))
        except OSError as error:
            faults.append(f"{file}: cannot be read ({error.strerror}); `dvc repro` makes it")
            continue
        stage, expected = made.get(file, ("", found[file]))
        if found[file] != expected:
            faults.append(
                f"{file}: MD5 {found[file]}, but by dvc.lock stage {stage} made {expected}: damaged, or changed by "
                "hand; `python -m digits.integrity verify` says what to do"
            )
    if faults:
        raise UserError("\n".join(faults))
    return found


def lock(text: str | None = None) -> dict[str, Any]:
    """Give the stages of the working folder's dvc.lock, or of another one's text, by name; none without the file.

    Raises UserError if it is not one.
    """
    try:
        text = Path("dvc.lock").read_text(encoding="utf-8") if text is None else text
        found: dict[str, Any] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
        for stage in found.values():
            for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
                external = entry["path"] and ("etag" in entry or "checksum" in entry)
                if not external and not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", entry["md5"]):
                    raise ValueError
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            "dvc.lock: not what DVC writes; `git checkout dvc.lock` brings the committed one back"
        ) from None
    return found


def git(*arguments: str, index: Path | None = None) -> bytes | None:
    """Give what a git command prints, or None where git, a repository or what was asked for is not there."""
    environment = os.environ | ({"GIT_INDEX_FILE": str(index)} if index else {})
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False, env=environment)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def commit() -> str | None:
    """Give the commit that is checked out, or None without git or without a commit."""
    found = git("rev-parse", "--verify", "--quiet", "HEAD")
    return found.decode().strip() if found else None


def uncommitted() -> bytes:
    """Give how the working folder differs from the commit, as `git apply` takes it.

    New files are in it if they are Python sources: others are data, or secrets, and stay here. Results of the pipeline
    are not. Git's own index is not touched.
    """
    present = git("rev-parse", "--git-path", "index")
    if not present:
        return b""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "index")
        if Path(present.decode().strip()).exists():
            shutil.copy(present.decode().strip(), index)  # with it, git need not read unchanged files again
        git("add", "--update", "--", ".", index=index)
        new = git("ls-files", "--others", "--exclude-standard", "-z", "--", "*.py", index=index) or b""
        if new:
            git("add", "--", *new.decode().strip("\0").split("\0"), index=index)
        return git("diff", "--cached", "--binary", "HEAD", "--", ".", *RESULTS, index=index) or b""
