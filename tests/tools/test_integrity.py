from pathlib import Path

import pytest
import yaml

from digits.__main__ import dispatch
from digits.errors import UserError
from digits.files import md5

from ..conftest import git


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with an output, its copy in DVC's cache and a committed dvc.lock; the working directory."""
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "models/model"
    output.parent.mkdir()
    output.write_text("weights")
    lock = {"schema": "2.0", "stages": {"train": {"outs": [{"path": "models/model", "md5": md5(output)}]}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    cached = tmp_path / ".dvc/cache/files/md5" / md5(output)[:2] / md5(output)[2:]
    cached.parent.mkdir(parents=True)
    cached.write_text("weights")
    (tmp_path / ".dvc/config").write_text("")
    (tmp_path / ".dvc/tmp").mkdir()
    git("init", "--quiet")
    git("add", "dvc.lock")
    git("commit", "--quiet", "--message=start")
    return tmp_path


@pytest.mark.parametrize("length", [0, 1, 20, 40, 60, 90])
def test_truncated_lock_file_is_restored(repository: Path, length: int, capsys: pytest.CaptureFixture[str]) -> None:
    lock = repository / "dvc.lock"
    committed = lock.read_bytes()
    lock.write_bytes(committed[:length])
    dispatch(["repair"])
    assert lock.read_bytes() == committed
    assert capsys.readouterr().err == "dvc.lock: truncated when DVC was killed; restored as committed\n"


def test_lock_file_that_was_truncated_before_any_commit_is_removed(repository: Path) -> None:
    git("update-ref", "-d", "HEAD")
    (repository / "dvc.lock").write_text("")
    dispatch(["repair"])
    assert not (repository / "dvc.lock").exists()


@pytest.mark.parametrize("text", ["", '{"read": {'])
def test_truncated_list_of_running_commands_is_removed(
    repository: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / ".dvc/tmp/rwlock").write_text(text)
    dispatch(["repair"])
    assert not (repository / ".dvc/tmp/rwlock").exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_sound_files_are_left_alone_in_silence(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = (repository / "dvc.lock").read_text() + "\n# not committed\n"
    (repository / "dvc.lock").write_text(changed)
    (repository / ".dvc/tmp/rwlock").write_text("{}")
    dispatch(["repair"])
    assert (repository / "dvc.lock").read_text() == changed
    assert (repository / ".dvc/tmp/rwlock").exists()
    (repository / ".dvc/tmp/rwlock").unlink()
    (repository / "dvc.lock").unlink()
    dispatch(["repair"])
    assert not any(capsys.readouterr())


@pytest.mark.usefixtures("repository")
def test_sound_outputs_are_reported_as_sound(capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["verify"])
    assert capsys.readouterr().out == "all 1 outputs are as dvc.lock says, and so are their copies in DVC's cache\n"


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        (["models/model"], ["models/model: damaged or edited"]),
        ([".dvc/cache"], [".dvc/cache/files/md5/"]),
        (["models/model", ".dvc/cache"], ["models/model: damaged", ".dvc/cache/files/md5/"]),
    ],
)
def test_every_damaged_file_is_named(repository: Path, damaged: list[str], named: list[str]) -> None:
    for place in damaged:
        (file,) = [repository / place] if place == "models/model" else (repository / place).rglob("*/*/*/*")
        file.write_text("weighty")
    with pytest.raises(UserError) as refusal:
        dispatch(["verify"])
    lines = str(refusal.value).splitlines()
    assert len(lines) == len(named)
    assert all(part in line for part, line in zip(named, lines, strict=True))


def test_missing_output_is_named(repository: Path) -> None:
    (repository / "models/model").unlink()
    with pytest.raises(UserError, match=r"^models/model: missing; `dvc repro` brings it$"):
        dispatch(["verify"])
