import subprocess
from pathlib import Path

import pytest

from digits.records import lineage

from ..conftest import git


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a git repository with one commit, the working directory of this test."""
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "digits/code.py": b"1\n",
        "params.yaml": b"a: 1\n",
        "dvc.lock": b"x\n",
        "docs/picture.png": b"\x89PNG\r\n\0one",
        ".gitignore": b"old\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message=start")
    return tmp_path


@pytest.fixture
def clone(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clone of the repository, at its commit."""
    clone = tmp_path_factory.mktemp("clone")
    git("clone", "--quiet", str(repository), str(clone))
    return clone


def test_clean_folder_differs_by_nothing_though_results_have_changed(repository: Path) -> None:
    (repository / "dvc.lock").write_text("y\n")
    (repository / "metrics").mkdir()
    (repository / "metrics/new.json").write_text("{}")
    assert lineage.uncommitted() == b""


def test_uncommitted_changes_turn_the_commit_into_the_same_folder(repository: Path, clone: Path) -> None:
    (repository / "digits/code.py").write_text("2\n")
    (repository / "params.yaml").unlink()
    (repository / "digits/new code.py").write_text("ümlaut = 3\n", encoding="utf-8")
    (repository / "digits/secret.txt").write_text("password")
    git("add", "digits/code.py")
    (repository / "digits/code.py").write_text("3\n")
    index = (repository / ".git/index").read_bytes()
    patch = lineage.uncommitted()
    assert (repository / ".git/index").read_bytes() == index
    assert b"password" not in patch
    subprocess.run(["git", "apply", "-"], cwd=clone, input=patch, check=True)
    assert (clone / "digits/code.py").read_text() == "3\n"
    assert (clone / "digits/new code.py").read_text(encoding="utf-8") == "ümlaut = 3\n"
    assert not (clone / "params.yaml").exists()


def test_changed_picture_is_part_of_the_uncommitted_changes(repository: Path, clone: Path) -> None:
    picture = b"\x89PNG\r\n\0two\xff"
    (repository / "docs/picture.png").write_bytes(picture)
    subprocess.run(["git", "apply", "-"], cwd=clone, input=lineage.uncommitted(), check=True)
    assert (clone / "docs/picture.png").read_bytes() == picture


def test_without_git_there_is_no_commit_and_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert lineage.commit() is None
    assert lineage.uncommitted() == b""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lineage.commit() is None
    assert lineage.uncommitted() == b""
