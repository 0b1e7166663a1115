"""How the working folder relates to git."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

RESULTS = (":!dvc.lock", ":!metrics", ":!plots")  # in git, but written by the pipeline: they change while it runs


def git(*arguments: str, index: Path | None = None) -> bytes | None:
    """Return the output of a git command, or None where it fails or there is no git or repository."""
    environment = os.environ | ({"GIT_INDEX_FILE": str(index)} if index else {})
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False, env=environment)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def commit() -> str | None:
    """Return the commit that is checked out, or None without git or without a commit."""
    found = git("rev-parse", "--verify", "--quiet", "HEAD")
    return found.decode().strip() if found else None


def uncommitted() -> bytes:
    """Return how the working folder differs from the commit, as `git apply` takes it.

    New files are included if they are Python sources: others are data, or secrets, and stay here. Results of the
    pipeline are left out. Git's own index is not touched.
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
