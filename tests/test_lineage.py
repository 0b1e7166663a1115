import subprocess
from pathlib import Path

import pytest
import yaml

from digits import lineage
from digits.command import UserError
from digits.files import md5

from .conftest import ROOT, git


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a git repository with one commit, the working directory of this test."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "digits/code.py": "1\n",
        "params.yaml": "a: 1\n",
        "dvc.lock": "x\n",
        ".gitignore": "old\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message=start")
    return tmp_path


def test_code_of_a_stage_is_each_source_file_that_dvc_yaml_names() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    code = lineage.code("train")
    assert code == {dep: md5(ROOT / dep) for dep in stages["train"]["deps"] if dep.endswith(".py")}
    assert lineage.code(*stages).items() > code.items()


def write_inputs() -> None:
    """Write what the stage preprocess reads, and a dvc.lock that knows it."""
    files = [dep for dep in lineage.stages()["preprocess"]["deps"] if not dep.endswith(".py")]
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(f"content of {file}")
    outs = [{"path": file, "md5": md5(Path(file))} for file in files]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"download": {"outs": outs}}}))


def test_inputs_that_are_as_dvc_lock_says_are_given_with_their_md5(repository: Path) -> None:
    write_inputs()
    found = lineage.inputs("preprocess")
    assert len(found) == 4
    assert all(md5(repository / file) == checksum for file, checksum in found.items())


def test_every_changed_or_missing_input_is_named_with_what_to_do(repository: Path) -> None:
    write_inputs()
    first, second, *_ = lineage.inputs("preprocess")
    content = bytearray((repository / first).read_bytes())
    content[3] ^= 1
    (repository / first).write_bytes(content)
    (repository / second).unlink()
    with pytest.raises(UserError) as refusal:
        lineage.inputs("preprocess")
    one, other = str(refusal.value).splitlines()
    assert one.startswith(f"{first}: MD5 {md5(repository / first)}, but by dvc.lock stage download made ")
    assert "python -m digits.integrity verify" in one
    assert other.startswith(f"{second}: cannot be read (No such file or directory)")


def test_without_dvc_lock_inputs_are_taken_as_they_are(repository: Path) -> None:
    write_inputs()
    (repository / "dvc.lock").unlink()
    assert len(lineage.inputs("preprocess")) == 4


@pytest.mark.parametrize("text", ["", "stages", "{", "other: 1", "\0"])
def test_broken_dvc_lock_is_one_line(repository: Path, text: str) -> None:
    (repository / "dvc.lock").write_text(text)
    with pytest.raises(UserError, match=r"^dvc\.lock: .* `git checkout dvc\.lock`"):
        lineage.lock()


def test_clean_folder_differs_by_nothing_though_results_have_changed(repository: Path) -> None:
    (repository / "dvc.lock").write_text("y\n")
    (repository / "metrics").mkdir()
    (repository / "metrics/new.json").write_text("{}")
    assert lineage.uncommitted() == b""


def test_uncommitted_changes_make_the_same_folder_of_the_commit(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
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
    clone = tmp_path_factory.mktemp("clone")
    git("clone", "--quiet", str(repository), str(clone))
    subprocess.run(["git", "apply", "-"], cwd=clone, input=patch, check=True)
    assert (clone / "digits/code.py").read_text() == "3\n"
    assert (clone / "digits/new code.py").read_text(encoding="utf-8") == "ümlaut = 3\n"
    assert not (clone / "params.yaml").exists()


def test_without_git_there_is_no_commit_and_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert lineage.commit() is None
    assert lineage.uncommitted() == b""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lineage.commit() is None
    assert lineage.uncommitted() == b""
