"""What dvc.yaml and dvc.lock say about the stages: what each reads, runs and writes, and what it last made."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from digits.datasets import FOLDER
from digits.errors import UserError, reason, shown
from digits.files import digest, flatten, md5
from digits.params.reading import PATH, Section, choose, parse, read

# Of the code that runs: in an experiment that DVC runs in a temporary copy, that copy.
ROOT = Path.cwd() if Path("dvc.yaml").exists() else Path(__file__).parents[1]

_begun: dict[str, str] = {}


def home() -> Path:
    """Return the folder of what outlives a run: the real repository, also inside a temporary copy of DVC's."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


@cache
def stages() -> dict[str, Any]:
    """Return the stages of dvc.yaml by name. Raises UserError if there is no such file."""
    try:
        return dict(parse((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    except FileNotFoundError:
        raise UserError("dvc.yaml: not found here; run this from the repository's root") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"dvc.yaml: malformed ({reason(error)})") from None


def is_code(path: str) -> bool:
    """Say whether a dependency is a file of the library, and not data."""
    return path.startswith(("digits/", "stages/"))


def code(*names: str) -> dict[str, str]:
    """Return the MD5 of every source file that these stages depend on, by path."""
    files = {dep for name in names for dep in stages()[name]["deps"] if is_code(dep)}
    return {file: _begun.get(file) or md5(ROOT / file) for file in sorted(files)}


def begin(known: Mapping[str, str] | None = None) -> None:
    """Remember the source files as they are now: what this process runs, whoever edits them while it runs.

    Or, where it works for another one, as that one `begun`.
    """
    if known is not None:
        _begun.update(known)
        return
    for folder in ("digits", "stages"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md"):
                _begun[path.relative_to(ROOT).as_posix()] = md5(path)


def begun() -> dict[str, str]:
    """Return the MD5 of each source file that `begin` has remembered, by path."""
    return dict(_begun)


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
        if is_code(file) or file.startswith("${"):
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


class Reading:
    """What a stage reads: the MD5s of its `inputs` and its `code`, by path, and its params.

    DVC hashes what a stage depends on when the stage has ended, and would give whatever was edited in the meantime as
    what made the result. Hence it is begun before params.yaml is loaded, and `check` is called at the end. Raises
    UserError if params.yaml cannot be read.
    """

    def __init__(self, stage: str) -> None:
        self.code = code(stage)
        self.inputs: dict[str, str] = {}
        self._stage, self._content = stage, read(Section, PATH)
        self._folder = self._own()
        self._listing = _listing(self._folder)

    def prove(self) -> None:
        """Raise UserError unless the results of earlier stages are sound, see `inputs`."""
        self.inputs = inputs(self._stage)

    def check(self) -> None:
        """Raise UserError with a line for each file and param that is no longer what the stage has read."""
        changed = [file for file, checksum in self.code.items() if _now(ROOT / file) != checksum]
        changed += [file for file, checksum in self.inputs.items() if _now(Path(file)) != checksum]
        changed += [str(self._folder)] if _listing(self._folder) != self._listing else []
        content, recipe = read(Section, PATH), self._content.get("recipe")
        before, now = (
            flatten(choose(one | {"recipe": recipe})) | {"recipe": one.get("recipe")}
            for one in (self._content, content)
        )
        sections = tuple(f"{section}." for section in stages()[self._stage].get("params", ()))
        for key in {**before, **now}:
            if f"{key}.".startswith(sections) and before.get(key) != now.get(key):
                changed.append(f"{PATH}: {key}: {shown(before.get(key))}, now {shown(now.get(key))}")
        if changed:
            what = f"{self._stage} had read it: its result is not kept; run `dvc repro` again"
            raise UserError("\n".join(f"{one}: edited after {what}" for one in changed))

    def _own(self) -> Path | None:
        """Return the folder or file of a person's own data, if the stage reads it."""
        data = self._content.get("data")
        reads = any(dep.startswith("${data.folder") for dep in stages()[self._stage]["deps"])
        return (
            Path(str(data.get("folder"))) if reads and isinstance(data, dict) and data.get("name") == FOLDER else None
        )


def _now(path: Path) -> str | None:
    try:
        return md5(path)
    except OSError:
        return None


def _listing(path: Path | None) -> str:
    """Return a digest of the names, sizes and times of the files in a folder, or of one file."""
    files = [] if path is None else sorted(path.rglob("*")) if path.is_dir() else [path]
    about = [(str(file), status.st_size, status.st_mtime_ns) for file in files if (status := _status(file))]
    return digest(about)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def lock(text: str | None = None) -> dict[str, Any]:
    """Return the stages of the working folder's dvc.lock, or of another one's text, by name; none without the file.

    Raises UserError if it is malformed.
    """
    try:
        text = Path("dvc.lock").read_text(encoding="utf-8") if text is None else text
        found: dict[str, Any] = parse(text)["stages"]
        for stage in found.values():
            for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
                external = entry["path"] and ("etag" in entry or "checksum" in entry)
                if not external and not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", entry["md5"]):
                    raise ValueError
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError("dvc.lock: malformed; `python -m digits repair` restores the committed one") from None
    return found
