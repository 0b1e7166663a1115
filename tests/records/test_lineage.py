import os
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
    found = lineage.uncommitted()
    assert (found, found.summary()) == (lineage.Changes(), "false")


def test_uncommitted_changes_turn_the_commit_into_the_same_folder(repository: Path, clone: Path) -> None:
    (repository / "digits/code.py").write_text("2\n")
    (repository / "params.yaml").unlink()
    (repository / "digits/new code.py").write_text("ümlaut = 3\n", encoding="utf-8")
    (repository / "digits/secret.txt").write_text("password")
    git("add", "digits/code.py")
    (repository / "digits/code.py").write_text("3\n")
    index = (repository / ".git/index").read_bytes()
    found = lineage.uncommitted()
    assert (repository / ".git/index").read_bytes() == index
    assert b"password" not in found.patch
    subprocess.run(["git", "apply", "-"], cwd=clone, input=found.patch, check=True)
    assert (clone / "digits/code.py").read_text() == "3\n"
    assert (clone / "digits/new code.py").read_text(encoding="utf-8") == "ümlaut = 3\n"
    assert not (clone / "params.yaml").exists()
    assert found.summary() == "true"


def test_changed_picture_is_part_of_the_uncommitted_changes(repository: Path, clone: Path) -> None:
    picture = b"\x89PNG\r\n\0two\xff"
    (repository / "docs/picture.png").write_bytes(picture)
    subprocess.run(["git", "apply", "-"], cwd=clone, input=lineage.uncommitted().patch, check=True)
    assert (clone / "docs/picture.png").read_bytes() == picture


CONFIGURED = {
    "external": {"diff.external": "/bin/false"},
    "noprefix": {"diff.noprefix": "true"},
    "mnemonic": {"diff.mnemonicPrefix": "true"},
    "color": {"color.ui": "always", "color.diff": "always"},
    "context": {"diff.context": "0"},
    "renames": {"diff.renames": "copies"},
    "relative": {"diff.relative": "true"},
    "textconv": {"diff.shout.textconv": "tr a-z A-Z <"},
    "whitespace": {"apply.whitespace": "error", "diff.wsErrorHighlight": "all"},
    "order": {"diff.orderFile": "/nowhere", "core.quotePath": "false"},
}


@pytest.mark.parametrize("settings", CONFIGURED.values(), ids=CONFIGURED)
def test_no_setting_of_git_changes_the_recorded_difference(
    settings: dict[str, str], repository: Path, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in settings.items():
        git("config", key, value)
    (repository / ".git/info/attributes").write_text("*.py diff=shout\n")
    (repository / "digits/code.py").write_text("2 \n\n\n")
    (repository / "digits/moved.py").write_text("1\n")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "/bin/false")
    monkeypatch.setenv("GIT_DIFF_OPTS", "-u0")
    monkeypatch.setenv("GIT_LITERAL_PATHSPECS", "1")
    found = lineage.uncommitted()
    assert (found.left_out, found.unknown) == ((), "")
    subprocess.run(["git", "apply", "-"], cwd=clone, input=found.patch, check=True)
    assert (clone / "digits/code.py").read_text() == "2 \n\n\n"
    assert (clone / "digits/moved.py").exists()


def test_new_files_with_strange_names_and_thousands_that_no_stage_needs(repository: Path, clone: Path) -> None:
    for name in (":colon.py", "*.py", "--all.py", "new\nline.py"):
        (repository / "digits" / name).write_text("1\n")
    (repository / os.fsdecode(b"digits/caf\xe9.py")).write_text("2\n")
    (repository / ":colon.py").write_text("not needed\n")
    (repository / "venv/lib").mkdir(parents=True)
    for number in range(5_000):
        (repository / f"venv/lib/{number}.py").touch()
    found = lineage.uncommitted()
    assert (found.left_out, found.unknown) == ((), "")
    subprocess.run(["git", "apply", "-"], cwd=clone, input=found.patch, check=True)
    assert {os.fsencode(path.name) for path in (clone / "digits").iterdir()} == {
        b":colon.py", b"*.py", b"--all.py", b"new\nline.py", b"caf\xe9.py", b"code.py",
    }  # fmt: skip
    assert not (clone / "venv").exists()
    assert not (clone / ":colon.py").exists()


def test_imported_module_beside_the_library_is_recorded(
    repository: Path, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "my_network_of_this_test.py").write_text("width = 3\n")
    monkeypatch.syspath_prepend(str(repository))
    __import__("my_network_of_this_test")
    subprocess.run(["git", "apply", "-"], cwd=clone, input=lineage.uncommitted().patch, check=True)
    assert (clone / "my_network_of_this_test.py").exists()


SECRETS = {
    "digits/code.py": 'api_key = "f3a9c0de77"\n',
    "params.yaml": "sources: [https://user:hunter2hunter2@example.com/x]\n",
    "docs/notes.txt": "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n",
    "digits/aws.py": "KEY = 'AKIAABCDEFGHIJKLMNOP'\n",
    "digits/credentials.py": "x = 1\n",
    ".env": "A=hunter2\n",
    ".dvc/config": "password = hunter2\n",
}


@pytest.mark.parametrize("name", SECRETS)
def test_file_that_may_hold_a_secret_is_left_out_and_named(name: str, repository: Path) -> None:
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).write_text("")
    git("add", "--force", "--", name)
    git("commit", "--quiet", "--message=empty")
    (repository / name).write_text(SECRETS[name])
    (repository / "digits/other.py").write_text("2\n")
    found = lineage.uncommitted()
    assert found.left_out == (() if name == ".dvc/config" else (f"{name}: may hold a secret",))
    assert b"digits/other.py" in found.patch
    for secret in (b"hunter2", b"f3a9", b"MIIE", b"AKIA"):
        assert secret not in found.patch


def test_difference_is_bounded(repository: Path) -> None:
    (repository / "docs/picture.png").write_bytes(os.urandom(lineage.LARGEST + 1))
    (repository / "digits/code.py").write_text("2\n")
    found = lineage.uncommitted()
    assert found.left_out == (f"docs/picture.png: {lineage.LARGEST + 1:,} bytes are too many",)
    assert len(found.patch) < 1000
    assert found.summary() == "true"


def test_broken_repository_is_not_called_clean(repository: Path) -> None:
    (repository / ".git/index").write_bytes(b"broken")
    found = lineage.uncommitted()
    assert found.summary().startswith("unknown: error: bad") or found.summary().startswith("unknown: fatal")


def test_without_git_there_is_no_commit_and_the_difference_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert lineage.commit() is None
    assert lineage.uncommitted().summary().startswith("unknown: fatal: not a git repository")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lineage.commit() is None
    assert lineage.uncommitted().summary() == "unknown: git cannot be run (No such file or directory)"


def test_repository_of_another_owner_is_not_called_clean(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "digits/code.py").write_text("2\n")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert lineage.uncommitted().summary().startswith("unknown: fatal: detected dubious ownership in repository")
