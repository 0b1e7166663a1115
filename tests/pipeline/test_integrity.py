"""From a model file to its run, and bits that change where nobody looks."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from digits.errors import UserError
from tests.stages.conftest import run_stage

from .conftest import Project

pytestmark = pytest.mark.slow
Call = Callable[..., str]


@pytest.fixture(scope="module")
def workshop(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy with a run of its results in MLflow."""
    return finished.copy(tmp_path_factory.mktemp("workshop") / "project", logged=True)


@pytest.mark.parametrize("file", ["models/model.safetensors", "models/export/model.onnx", "models/export/model.pt2"])
def test_model_file_leads_to_its_commit_and_its_run(project: Project, tmp_path: Path, call: Call, file: str) -> None:
    copied = shutil.copy(project.root / file, tmp_path)
    told = call(project, "of", str(copied))
    head = project.run("git", "rev-parse", "--short=7", "HEAD").stdout.strip()
    (run,) = project.mlflow_runs()
    assert f"commit {head} (results)" in told
    assert f"MLflow run {run.info.run_id}" in told
    assert project.locked()["data/splits/train.safetensors"] in told
    assert "train.epochs: 1" in told
    assert "that of this folder" in told


def flip(path: Path, *, secretly: bool = False) -> None:
    """Change one bit in the middle of a file; `secretly` keeps its time stamps, as a failing disk does."""
    before = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    path.chmod(before.st_mode)
    if secretly:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_flipped_byte_of_a_raw_file_or_a_model_is_noticed_and_repaired(workshop: Project) -> None:
    files = ("data/raw/t10k-images-idx3-ubyte", "models/model.safetensors", "models/export/model.onnx")
    for file in files:
        flip(workshop.root / file)
    status = workshop.run("dvc", "status").stdout
    assert all(f"modified:           {file}" in status for file in files)
    assert workshop.run("dvc", "repro").stdout.count("checking out outputs") == len(files)
    assert workshop.outputs() == workshop.locked()
    assert not workshop.run("git", "status", "--porcelain").stdout


@pytest.mark.parametrize(
    ("file", "user"),
    [
        ("data/raw/train-labels-idx1-ubyte", "preprocess"),
        ("data/splits/train.safetensors", "train"),
        ("models/model.safetensors", "evaluate"),
        ("data/splits/test.safetensors", "export"),
        ("models/export/model.onnx", "digits predict plots/training.png"),
        ("models/export/model.pt2", "digits of models/export/model.pt2"),
    ],
)
def test_byte_flipped_behind_the_back_of_dvc_is_noticed_by_what_uses_the_file(
    workshop: Project, enter: Callable[[Project], None], call: Call, file: str, user: str
) -> None:
    sound = (workshop.root / file).read_bytes()
    stamps = (workshop.root / file).stat()
    flip(workshop.root / file, secretly=True)
    enter(workshop)
    with pytest.raises(UserError, match=file):
        call(workshop, *user.split()[1:]) if " " in user else run_stage(user)
    with pytest.raises(UserError, match=file):
        call(workshop, "verify")
    (workshop.root / file).write_bytes(sound)
    os.utime(workshop.root / file, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
    assert workshop.outputs() == workshop.locked()


def test_flipped_byte_in_the_cache_of_dvc_is_noticed_and_can_be_repaired(workshop: Project, call: Call) -> None:
    file = "data/splits/test.safetensors"
    checksum = workshop.locked()[file]
    cached = workshop.root / ".dvc/cache/files/md5" / checksum[:2] / checksum[2:]
    flip(cached, secretly=True)
    (workshop.root / file).unlink()
    workshop.run("dvc", "checkout")  # which takes it for sound
    used = workshop.run("dvc", "repro", "--force", "--single-item", "evaluate", fails=True)
    assert f"{file}: MD5 " in used.stderr
    assert "Traceback" not in used.stderr
    with pytest.raises(UserError, match=f"{file}: damaged") as told:
        call(workshop, "verify")
    assert str(cached) in str(told.value)
    workshop.restore()
    for damaged in (cached, workshop.root / file):  # as it says
        damaged.unlink()
    workshop.run("dvc", "repro")
    assert "all " in call(workshop, "verify")
    assert not workshop.run("git", "status", "--porcelain").stdout
