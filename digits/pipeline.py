"""What dvc.yaml and dvc.lock say about the stages: what each reads, runs and writes, and what it last made."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from digits.errors import UserError
from digits.files import md5

# Of the code that runs: in an experiment that DVC runs in a temporary copy, that copy.
ROOT = Path.cwd() if Path("dvc.yaml").exists() else Path(__file__).parents[1]


def home() -> Path:
    """Return the folder of what outlives a run: the real repository, also inside a temporary copy of DVC's."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


@cache
def stages() -> dict[str, Any]:
    """Return the stages of dvc.yaml by name. Raises UserError if there is no such file."""
    try:
        return dict(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    except FileNotFoundError:
        raise UserError("dvc.yaml: not found here; run this from the repository's root") from None


def is_code(path: str) -> bool:
    """Say whether a dependency is a file of the library, and not data."""
    return path.startswith(("digits/", "stages/"))


def code(*names: str) -> dict[str, str]:
    """Return the MD5 of every source file that these stages depend on, by path."""
    files = {dep for name in names for dep in stages()[name]["deps"] if is_code(dep)}
    return {file: md5(ROOT / file) for file in sorted(files)}


def outputs(*names: str) -> list[Path]:
    """Return all files that these stages write, metrics first."""
    kinds = ("metrics", "plots", "outs")
    entries = (entry for name in names for kind in kinds for entry in stages()[name].get(kind, []))
    return [Path(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in entries]


def inputs(name: str) -> dict[str, str]:
    """Return the MD5 of every result of earlier stages that this stage reads, by path, and prove that they are sound.

    DVC trusts a file's time stamp and the write protection of its cache; a byte that the disk or a hand has changed
    behind its back is noticed here. Raises UserError with a line for each file that is missing or not the one in
    dvc.lock; without that file, there is nothing to compare with.
    """
    made = {out["path"]: (stage, out["md5"]) for stage, entry in lock().items() for out in entry.get("outs", [])}
    found, faults = {}, []
    for file in stages()[name]["deps"]:
        if is_code(file):
            continue
        try:
            found[file] = md5(Path(file))
        except OSError as error:
            faults.append(f"{file}: cannot be read ({error.strerror}); `dvc repro` makes it")
            continue
        stage, expected = made.get(file, ("", found[file]))
        if found[file] != expected:
            fault = f"{file}: MD5 {found[file]}, but in dvc.lock stage {stage} made {expected}: damaged or edited"
            faults.append(f"{fault}; `python -m digits verify` says what to do")
    if faults:
        raise UserError("\n".join(faults))
    return found


def lock(text: str | None = None) -> dict[str, Any]:
    """Return the stages of the working folder's dvc.lock, or of another one's text, by name; none without the file.

    Raises UserError if it is malformed.
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
        raise UserError("dvc.lock: malformed; `git checkout dvc.lock` restores the committed one") from None
    return found
