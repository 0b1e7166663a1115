"""From a result back to what made it, and the same bits again."""

import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from digits.files import md5

from .conftest import Project

PROVENANCE = (sys.executable, "-m", "digits.provenance")
INTEGRITY = (sys.executable, "-m", "digits.integrity")


@pytest.fixture(scope="module")
def workshop(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Give a copy of the finished repository, made anew there by force, under other circumstances."""
    project = finished.copy(tmp_path_factory.mktemp("elsewhere") / "a folder of another name")
    settings = {"TZ": "Asia/Kathmandu", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "4711", "USER": "x"}
    project.run("env", *(f"{name}={value}" for name, value in settings.items()), "dvc", "repro", "--force")
    return project


def outputs(project: Project) -> dict[str, str]:
    lock = yaml.safe_load((project.root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}


def test_same_bits_in_another_folder_time_zone_language_and_order_of_hashes(
    finished: Project, workshop: Project
) -> None:
    assert (workshop.root / "dvc.lock").read_bytes() == (finished.root / "dvc.lock").read_bytes()
    assert not workshop.run("git", "status", "--porcelain").stdout
    assert f"all {len(outputs(workshop))} outputs" in workshop.run(*INTEGRITY, "verify").stdout


def test_five_kinds_of_runs_are_reproduced_from_their_ids_alone(workshop: Project) -> None:
    runs = {"clean": workshop.mlflow_runs()[0].info.run_id}

    # With changed code that is nowhere in git, a new file among it.
    (workshop.root / "digits/noise.py").write_text("AMOUNT = 7\n")
    code = workshop.root / "digits/data.py"
    text = code.read_text(encoding="utf-8")
    code.write_text(
        text.replace('"""Turn uint8', 'from digits.noise import AMOUNT\n\n    images[:AMOUNT] = 0\n    """Turn uint8')
    )
    assert code.read_text(encoding="utf-8") != text
    workshop.run("dvc", "repro")
    runs["dirty"] = workshop.mlflow_runs()[0].info.run_id
    (workshop.root / "digits/noise.py").unlink()
    workshop.restore()

    cheap = ["-S", "model.name=mlp"]
    workshop.run("dvc", "exp", "run", "--name", "here", *cheap, "-S", "model.mlp.hidden=[16]")
    origin = workshop.run(*PROVENANCE, "of", "models/model.safetensors").stdout
    assert "\n  experiment here (" in origin
    assert "(here), on commit " in origin
    workshop.restore()
    workshop.run("dvc", "exp", "run", "--queue", "--name", "queued", *cheap, "-S", "model.mlp.hidden=[17]")
    workshop.run("dvc", "queue", "start")
    workshop.run("dvc", "exp", "run", "--temp", "--name", "apart", *cheap, "-S", "model.mlp.hidden=[18]")
    deadline = time.monotonic() + 300
    while "Success" not in workshop.run("dvc", "queue", "status").stdout:
        assert time.monotonic() < deadline
        time.sleep(1)
    names = {run.info.run_name: run.info.run_id for run in workshop.mlflow_runs()}
    runs |= {name: names[name] for name in ("here", "queued", "apart")}

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda run_id: workshop.run(*PROVENANCE, "reproduce", run_id).stdout, runs.values()))
    for name, told in zip(runs, done, strict=True):
        last = told.splitlines()[-1]
        assert last.endswith(f"{len(outputs(workshop))} of {len(outputs(workshop))} outputs have the same bits"), name
    assert not workshop.run("git", "status", "--porcelain").stdout

    told = workshop.run(*PROVENANCE, "diff", runs["clean"], "queued").stdout
    assert "\n  model.name        cnn -> mlp\n" in told
    assert "data.timeout" not in told
    assert "test_accuracy" in told
    assert "the same: " in told
    assert "data" in told.splitlines()[-1]
    assert "environment" in told.splitlines()[-1]


def test_result_that_does_not_come_out_again_is_an_error_that_names_the_file(workshop: Project) -> None:
    lock = workshop.root / "dvc.lock"
    right = outputs(workshop)["plots/confusion.csv"]
    lock.write_text(lock.read_text().replace(right, "f" * 32))
    workshop.run("git", "commit", "--quiet", "--message=a false claim", "dvc.lock")
    done = workshop.run(*PROVENANCE, "reproduce", "HEAD", fails=True)
    workshop.run("git", "reset", "--quiet", "--hard", "HEAD~")
    assert done.returncode == 1
    assert f"DIFFERENT  {'f' * 32}  plots/confusion.csv" in done.stdout
    assert done.stderr.splitlines()[-1].endswith("(a false claim): not reproduced: plots/confusion.csv")


@pytest.mark.parametrize("file", ["models/model.safetensors", "models/export/model.onnx", "models/export/model.pt2"])
def test_model_file_leads_to_its_commit_and_its_run(project: Project, tmp_path: Path, file: str) -> None:
    copied = shutil.copy(project.root / file, tmp_path)
    told = project.run(*PROVENANCE, "of", str(copied)).stdout
    head = project.run("git", "rev-parse", "--short=7", "HEAD").stdout.strip()
    first = project.mlflow_runs()[-1].info.run_id
    assert f"commit {head} (results)" in told
    assert f"MLflow run {first}" in told
    assert outputs(project)["data/splits/train.safetensors"] in told
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
    expected = outputs(workshop)
    for file in ("data/raw/t10k-images-idx3-ubyte", "models/model.safetensors", "models/export/model.onnx"):
        flip(workshop.root / file)
        assert f"modified:           {file}" in workshop.run("dvc", "status").stdout
        assert "checking out outputs" in workshop.run("dvc", "repro").stdout
        assert md5(workshop.root / file) == expected[file]
    assert not workshop.run("git", "status", "--porcelain").stdout


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("data/raw/train-labels-idx1-ubyte", ("-m", "stages.preprocess")),
        ("data/splits/train.safetensors", ("-m", "stages.train")),
        ("models/model.safetensors", ("-m", "stages.evaluate")),
        ("data/splits/test.safetensors", ("-m", "stages.export")),
        ("models/export/model.onnx", ("-m", "digits.predict", "plots/curve.png")),
        ("models/export/model.pt2", ("-m", "digits.provenance", "of", "models/export/model.pt2")),
    ],
)
def test_byte_flipped_behind_the_back_of_dvc_is_noticed_by_what_uses_the_file(
    workshop: Project, file: str, command: tuple[str, ...]
) -> None:
    sound = (workshop.root / file).read_bytes()
    stamps = (workshop.root / file).stat()
    results = {path: md5(workshop.root / path) for path in outputs(workshop) if path != file}
    (workshop.root / "plots/curve.png").write_bytes((workshop.root / "plots/training.png").read_bytes())
    flip(workshop.root / file, secretly=True)
    for words in (command, ("-m", "digits.integrity", "verify")):
        done = workshop.run(sys.executable, *words, fails=True)
        assert done.returncode == 1
        assert file in done.stderr
        assert "Traceback" not in done.stderr
    assert results == {path: md5(workshop.root / path) for path in results}
    (workshop.root / "plots/curve.png").unlink()
    (workshop.root / file).write_bytes(sound)
    os.utime(workshop.root / file, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))


def test_flipped_byte_in_the_cache_of_dvc_is_noticed_and_can_be_repaired(workshop: Project) -> None:
    file = "models/model.safetensors"
    checksum = outputs(workshop)[file]
    cached = workshop.root / ".dvc/cache/files/md5" / checksum[:2] / checksum[2:]
    flip(cached, secretly=True)
    (workshop.root / file).unlink()
    workshop.run("dvc", "checkout")  # which takes it for sound
    used = workshop.run("dvc", "repro", "--force", "--single-item", "evaluate", fails=True)
    assert f"{file}: MD5 " in used.stderr
    told = workshop.run(*INTEGRITY, "verify", fails=True).stderr
    assert str(cached) in told
    assert f"{file}: damaged" in told
    workshop.restore()
    for damaged in (cached, workshop.root / file):  # as it says
        damaged.unlink()
    workshop.run("dvc", "repro")
    assert "all " in workshop.run(*INTEGRITY, "verify").stdout
    assert not workshop.run("git", "status", "--porcelain").stdout
