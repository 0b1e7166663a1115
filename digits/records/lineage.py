"""How the working folder relates to git."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from digits import pipeline
from digits.errors import harmless, reason

# In git, but written by the pipeline: they change while it runs. DVC's settings are no code, and may have passwords.
EXCLUDED = (":!dvc.lock", ":!metrics", ":!plots", ":!.dvc")
LARGEST, MOST = 1 << 20, 10 << 20  # bytes of one changed file, and of all of them, that are recorded
# What would change the form of a difference, or how paths are read.
MISLEADING = (
    "GIT_EXTERNAL_DIFF",
    "GIT_DIFF_OPTS",
    "GIT_LITERAL_PATHSPECS",
    "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
)
SECRET_NAME = re.compile(
    r"(?i)credential|secret|passw|token|\.env\b|\.pem$|\.key$|\.p12$|\.pfx$|id_(rsa|dsa|ecdsa|ed25519)$"
)
SECRET = re.compile(
    rb"""(?ix)
    -----BEGIN\ [A-Z\ ]*PRIVATE\ KEY
    | \b(AKIA|ASIA)[0-9A-Z]{16}\b | \bgh[pousr]_\w{30,} | \bgithub_pat_\w{20,} | \bglpat-[\w-]{15,}
    | \bhf_[a-z0-9]{20,} | \bsk-[\w-]{20,} | \bxox[abeprs]-[\w-]{10,} | \bAIza[\w-]{30,} | \bdapi[0-9a-f]{30,}
    | \beyJ[\w-]{10,}\.[\w-]{10,}\.
    | ://[^\s/:@'"]*:[^\s/@'"]+@
    | [?&](token|key|sig|signature|password|secret|access_token|x-amz-signature)=[^\s&'"]{4,}
    | (password|passwd|secret|token|credentials?
        |(api|access|auth|account|private)_?key)["']?\s*[:=]\s*["'][^"'\s]{6,}["']
    """
)


class GitError(Exception):
    """Git, or what was asked of it, failed; the message says why."""


@dataclass(frozen=True)
class Changes:
    """How the working folder differs from the commit.

    `patch` is for `git apply`; `left_out` says what is not in it and why, a line each; `unknown` says why nothing is
    known, if so.
    """

    patch: bytes = b""
    left_out: tuple[str, ...] = ()
    unknown: str = ""

    def summary(self) -> str:
        """Return "true" or "false", whether there are changes, or why that is not known."""
        return f"unknown: {self.unknown}" if self.unknown else str(bool(self.patch or self.left_out)).lower()


def git(*arguments: str) -> bytes | None:
    """Return the output of a git command, or None where it fails or there is no git or repository."""
    try:
        return _ask(*arguments)
    except GitError:
        return None


def _ask(*arguments: str, index: Path | None = None, said: bytes = b"", literal: bool = False) -> bytes:
    """Return the output of a git command that reads `said`. Raises GitError with git's reason."""
    environment = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    environment |= {"LC_ALL": "C"} | ({"GIT_INDEX_FILE": str(index)} if index else {})
    environment |= {"GIT_LITERAL_PATHSPECS": "1"} if literal else {}
    try:
        done = subprocess.run(["git", *arguments], input=said, capture_output=True, check=False, env=environment)
    except OSError as error:
        raise GitError(f"git cannot be run ({error.strerror})") from None
    if done.returncode:
        raise GitError(reason(Exception(done.stderr.decode(errors="replace"))))
    return done.stdout


def commit() -> str | None:
    """Return the commit that is checked out, or None without git or without a commit."""
    found = git("rev-parse", "--verify", "--quiet", "HEAD")
    return found.decode().strip() if found else None


def uncommitted() -> Changes:
    """Return how the working folder differs from the commit, whatever git is configured to show.

    Of new files, those that the stages are made of are included; others are data, or secrets, and stay here, and so do
    files that look like secrets or are large, and the pipeline's results. Git's own index is not touched.
    """
    try:
        with _staged() as index:
            return _changes(index)
    except (GitError, OSError, ValueError) as error:
        return Changes(unknown=reason(error))


@contextmanager
def _staged() -> Iterator[Path]:
    """Yield a copy of git's index to which all changes are added."""
    present = Path(os.fsdecode(_ask("rev-parse", "--git-path", "index")).rstrip("\n"))
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "index")
        if present.exists():
            shutil.copy(present, index)  # with it, git need not read unchanged files again
        _ask("add", "--update", "--", ".", index=index)
        yield index


def _changes(index: Path) -> Changes:
    new = _paths(_ask("ls-files", "--others", "--exclude-standard", "-z", "--", ".", index=index))
    tracked = _paths(_ask("ls-files", "-z", "--", ".", index=index))
    needed = _needed()
    hidden = (path for path in sorted(needed - set(tracked) - set(new)) if Path(path).exists())
    left_out = [f"{path}: needed, but ignored by git" for path in hidden]
    added = [path for path in new if path in needed or (pipeline.is_code(path) and path.endswith(".py"))]
    if added:
        names = b"\0".join(map(os.fsencode, added))
        _ask("add", "--pathspec-from-file=-", "--pathspec-file-nul", index=index, said=names, literal=True)
    entries = _ask("diff-index", "--cached", "--raw", "--no-renames", "-z", "HEAD", "--", ".", *EXCLUDED, index=index)
    top = _paths(entries)[1::2]  # each path follows its entry
    kinds = [entry.rsplit(" ", 1)[-1] for entry in _paths(entries)[::2]]
    return _recorded(index, dict(zip(top, kinds, strict=True)), left_out)


def _paths(listed: bytes) -> list[str]:
    return [os.fsdecode(path) for path in listed.split(b"\0") if path]


def _needed() -> set[str]:
    """Return the files of this folder that stages are made of: what dvc.yaml lists, and what this process imported."""
    root = Path.cwd()
    found = {dep for stage in pipeline.stages().values() for dep in stage["deps"] if pipeline.is_code(dep)}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_relative_to(root) and not Path(file).is_relative_to(sys.prefix):
            found.add(Path(file).relative_to(root).as_posix())
    return found | {"dvc.yaml", "params.yaml"}


def _recorded(index: Path, changed: Mapping[str, str], left_out: list[str]) -> Changes:
    """Return the changes of these files, each with its kind, less those that are not to be recorded."""
    root = Path(os.fsdecode(_ask("rev-parse", "--show-toplevel")).rstrip("\n"))
    sizes = {path: (root / path).lstat().st_size if (root / path).is_file() else 0 for path in changed}
    total, why = 0, {}
    for path in sorted(changed, key=sizes.__getitem__):
        total += sizes[path]
        if SECRET_NAME.search(path):
            why[path] = "may hold a secret"
        elif sizes[path] > LARGEST or total > MOST:
            why[path] = f"{sizes[path]:,} bytes are too many"
    if len(why) > 500:
        raise GitError(f"{len(changed):,} changed files are more than is recorded")
    shown = [path for path in changed if path not in why]
    form = (
        "--patch",
        "--binary",
        "--full-index",
        "--no-renames",
        "--no-ext-diff",
        "--no-textconv",
        "--no-color",
        "-U3",
    )
    where = (".", *EXCLUDED, *(f":(top,exclude,literal){path}" for path in why))
    patch = _ask("diff-index", "--cached", *form, "--submodule=short", "HEAD", "--", *where, index=index)
    pieces = re.split(rb"^(?=diff --git )", patch, flags=re.MULTILINE)[1:]  # no line of a file begins so in a patch
    owners = [path for path in shown for _ in range(2 if changed[path].startswith("T") else 1)]
    if len(pieces) != len(owners):
        raise GitError("git's difference cannot be divided into files")
    for path, piece in zip(owners, pieces, strict=True):
        if SECRET.search(piece):
            why[path] = "may hold a secret"
    kept = b"".join(piece for path, piece in zip(owners, pieces, strict=True) if path not in why)
    if kept:
        blank = index.with_name("blank")
        _ask("read-tree", "HEAD", index=blank)
        _ask("apply", "--cached", "--check", "--whitespace=nowarn", "-", index=blank, said=kept)
    lines = [*left_out, *(f"{path}: {said}" for path, said in sorted(why.items()))]
    return Changes(kept, tuple(harmless(line) for line in lines))
