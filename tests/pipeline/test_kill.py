"""kill -9 at random moments: `pytest tests/pipeline/test_kill.py --kills 100` for a longer run."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from digits.files import md5

from .conftest import Project

STAGES = ("download", "preprocess", "train", "evaluate", "export")


@pytest.fixture(scope="module")
def victim(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Give a copy of the finished repository that may be maltreated."""
    return finished.copy(tmp_path_factory.mktemp("victim") / "project")


def begin(project: Project, stage: str) -> subprocess.Popen[bytes]:
    """Start `dvc repro` of one stage, by force, in a process group of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["dvc", "repro", "--force", "--single-item", stage],
        cwd=project.root,
        env={name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "COVERAGE_"))}
        | {"PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def lockers(project: Project) -> set[int]:
    """Give the processes that DVC's lock file names and that still exist; DVC passes over the others."""
    text = (project.root / ".dvc/tmp/rwlock").read_text()
    return {number for number in map(int, re.findall(r'"pid": (\d+)', text)) if psutil.pid_exists(number)}


def test_killed_at_any_moment_and_started_again_it_ends_in_the_same_bits(
    victim: Project, request: pytest.FixtureRequest
) -> None:
    kills = int(request.config.getoption("--kills"))
    lock = victim.root / "dvc.lock"
    expected = lock.read_bytes()
    outputs = {
        out["path"]: out["md5"] for stage in yaml.safe_load(expected)["stages"].values() for out in stage["outs"]
    }
    seconds = {}
    for stage in STAGES:
        start = time.monotonic()
        assert begin(victim, stage).wait(timeout=300) == 0
        seconds[stage] = time.monotonic() - start
    assert lock.read_bytes() == expected

    draw, resumed = random.Random(0), 0
    for number in range(kills):
        stage = STAGES[number % len(STAGES)]
        moment = draw.uniform(0, seconds[stage])
        doomed = begin(victim, stage)
        time.sleep(moment)
        os.killpg(doomed.pid, signal.SIGKILL)
        doomed.wait()
        where = f"kill {number} after {moment:.2f} of {seconds[stage]:.2f} s of {stage}"
        for path, checksum in outputs.items():
            file = victim.root / path
            assert not file.exists() or md5(file) == checksum, f"{where}: {path} is half-written"
        victim.run(sys.executable, "-m", "digits.integrity", "repair")  # as `make repro` does
        again = victim.run("dvc", "repro", "--force", "--single-item", stage)  # not from DVC's cache
        victim.run("dvc", "repro")  # what is missing where dvc.lock was cut off
        resumed += "going on after step" in again.stdout
        assert lock.read_bytes() == expected, where
        assert all(md5(victim.root / path) == checksum for path, checksum in outputs.items()), where
        assert not victim.run("git", "status", "--porcelain").stdout, where
        assert not lockers(victim), where
        assert not list((victim.root / ".dvc/tmp/checkpoints").iterdir()), where
    print(f"{kills} kills, {resumed} trainings gone on with, seconds a stage: {seconds}")
    victim.run("dvc", "repro", "--force", "--single-item", "evaluate")  # notices runs whose process is gone
    assert not [run for run in victim.mlflow_runs() if run.info.status == "RUNNING"]
    assert "all " in victim.run(sys.executable, "-m", "digits.integrity", "verify").stdout


def test_training_goes_on_from_its_checkpoint_in_the_same_run(victim: Project) -> None:
    checkpoints = victim.root / ".dvc/tmp/checkpoints"
    expected = (victim.root / "dvc.lock").read_bytes()
    before = len(victim.mlflow_runs())
    doomed = begin(victim, "train")
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("[!.]*.pt")):  # whole ones
        assert time.monotonic() < deadline
        assert doomed.poll() is None
        time.sleep(0.01)
    os.killpg(doomed.pid, signal.SIGKILL)
    doomed.wait()
    assert "going on after step" in victim.run("dvc", "repro", "--force", "--single-item", "train").stdout
    assert (victim.root / "dvc.lock").read_bytes() == expected
    assert not list(checkpoints.iterdir())
    runs = victim.mlflow_runs()
    assert len(runs) == before + 1
    assert runs[0].info.status == "FINISHED"
    steps = [metric.step for metric in victim.client.get_metric_history(runs[0].info.run_id, "train_loss")]
    assert steps == [1]
