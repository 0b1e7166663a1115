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

from digits.files import md5

from .conftest import DIGITS, Project

pytestmark = pytest.mark.slow
# How long each takes, roughly, as a multiple of preprocess.
STAGES = {"download": 1.5, "preprocess": 1.0, "train": 2.2, "evaluate": 1.8, "export": 2.2}


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
    """Return the processes that DVC's lock file names and that still exist; DVC ignores the others."""
    text = (project.root / ".dvc/tmp/rwlock").read_text()
    return {number for number in map(int, re.findall(r'"pid": (\d+)', text)) if psutil.pid_exists(number)}


def test_killed_at_any_moment_and_started_again_it_ends_in_the_same_bits(
    workshop: Project, request: pytest.FixtureRequest
) -> None:
    kills = int(request.config.getoption("--kills"))
    lock = workshop.root / "dvc.lock"
    expected, outputs = lock.read_bytes(), workshop.locked()
    start = time.monotonic()
    assert begin(workshop, "preprocess").wait(timeout=300) == 0
    unit = time.monotonic() - start
    seconds = {stage: multiple * unit for stage, multiple in STAGES.items()}

    draw, resumed = random.Random(0), 0
    for number in range(kills):
        stage = list(STAGES)[number % len(STAGES)]
        moment = draw.uniform(0, seconds[stage])
        doomed = begin(workshop, stage)
        time.sleep(moment)
        os.killpg(doomed.pid, signal.SIGKILL)
        doomed.wait()
        where = f"kill {number} after {moment:.2f} of {seconds[stage]:.2f} s of {stage}"
        for path, checksum in outputs.items():
            file = workshop.root / path
            assert not file.exists() or md5(file) == checksum, f"{where}: {path} is half-written"
        workshop.run(*DIGITS, "repair")  # as `make repro` does
        start = time.monotonic()
        again = workshop.run("dvc", "repro", "--force", "--single-item", stage)  # not from DVC's cache
        seconds[stage] = time.monotonic() - start
        workshop.run("dvc", "repro")  # what is missing where dvc.lock was truncated
        resumed += "resumed after step" in again.stdout
        assert lock.read_bytes() == expected, where
        assert workshop.outputs() == outputs, where
        assert not workshop.run("git", "status", "--porcelain").stdout, where
        assert not lockers(workshop), where
        assert not list((workshop.root / ".dvc/tmp/checkpoints").glob("*")), where
    print(f"{kills} kills, {resumed} trainings resumed, seconds a stage: {seconds}")
    workshop.run("dvc", "repro", "--force", "--single-item", "evaluate")  # notices runs whose process is gone
    assert not [run for run in workshop.mlflow_runs() if run.info.status == "RUNNING"]
    assert "all " in workshop.run(*DIGITS, "verify").stdout


def test_training_resumes_from_its_checkpoint_in_the_same_run(workshop: Project) -> None:
    checkpoints = workshop.root / ".dvc/tmp/checkpoints"
    expected = (workshop.root / "dvc.lock").read_bytes()
    before = len(workshop.mlflow_runs())
    doomed = begin(workshop, "train")
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("[!.]*.pt")):  # whole ones
        assert time.monotonic() < deadline
        assert doomed.poll() is None
        time.sleep(0.01)
    os.killpg(doomed.pid, signal.SIGKILL)
    doomed.wait()
    assert "resumed after step" in workshop.run("dvc", "repro", "--force", "--single-item", "train").stdout
    assert (workshop.root / "dvc.lock").read_bytes() == expected
    assert not list(checkpoints.iterdir())
    runs = workshop.mlflow_runs()
    assert len(runs) == before + 1
    assert runs[0].info.status == "FINISHED"
    steps = [metric.step for metric in workshop.client.get_metric_history(runs[0].info.run_id, "loss/train")]
    assert steps == [1]
