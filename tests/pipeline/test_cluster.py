"""Many machines: a real SLURM of one node runs seeds, a training of two processes, and a search."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from .conftest import DIGITS, Project
from .servers import postgres, slurm

pytestmark = pytest.mark.slow
CHEAP = ("-S", "train.epochs=1", "-S", "model.cnn.channels=[4, 4]", "-S", "split.training_share=0.02")
BATCH = "sbatch --output=/dev/null --wrap {}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def ask(cluster: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=os.environ | cluster, capture_output=True, text=True, check=True).stdout


def wait_for_a_sign_of_life(project: Project, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not list((project.root / ".dvc/tmp/tasks").glob("*/*/alive")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def start(project: Project, cluster: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.Popen(
        [*DIGITS, "seeds", *words], cwd=project.root, env=environment | cluster,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_seeds_run_as_jobs_come_back_as_experiments_and_one_that_is_killed_is_run_again(
    project: Project, cluster: dict[str, str]
) -> None:
    process = start(project, cluster, "far", "--count", "2", *CHEAP, "--launch", BATCH)
    wait_for_a_sign_of_life(project, process)
    first = ask(cluster, "squeue", "--noheader", "--format=%i").split()[-1]
    ask(cluster, "scancel", "--signal=KILL", "--full", first)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith("| far | 2 | ")
    names = project.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert {"far-seed-0", "far-seed-1"} <= set(names)
    runs = [run for run in project.mlflow_runs() if run.info.status == "FINISHED"]
    assert {"far-seed-0", "far-seed-1"} <= {run.info.run_name for run in runs}
    project.run("dvc", "exp", "apply", "far-seed-1")
    assert "seed: 1" in (project.root / "params.yaml").read_text(encoding="utf-8")
    assert not list((project.root / ".dvc/tmp/tasks").iterdir())


def test_interrupted_it_cancels_what_runs_and_what_waits(project: Project, cluster: dict[str, str]) -> None:
    words = ("gone", "--grid", "train.epochs=1,2,3,4", "--count", "2", *CHEAP, "--launch", BATCH)
    process = start(project, cluster, *words)
    wait_for_a_sign_of_life(project, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    deadline = time.monotonic() + 60
    while ask(cluster, "squeue", "--noheader"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "gone" not in project.run("dvc", "exp", "list", "--name-only").stdout


def test_example_trains_in_two_processes_that_find_each_other(project: Project, cluster: dict[str, str]) -> None:
    job = ("sbatch", "--wait", "--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--output=job.log")
    project.edit("training_share: 1.0", "training_share: 0.1")
    project.run(*job, "docs/examples/multinode.slurm", fails=False, measured=False, **cluster)
    said = (project.root / "job.log").read_text(encoding="utf-8")
    assert said.count("epoch 1:") == 1  # one training, not two
    assert not project.run("dvc", "status", "--quiet").stdout
    (run, *_) = project.mlflow_runs()
    project.assert_complete(run)
    assert '"processes": "2"' in project.artifact(run, "provenance/record.json").decode()


@pytest.mark.stress  # two processes that share a PostgreSQL are a test of tests/tools/test_tune.py
def test_search_is_shared_by_an_array_of_jobs(project: Project, cluster: dict[str, str], tmp_path: Path) -> None:
    with postgres() as (url, passwords):
        (project.root / "search.yaml").write_text(
            "study: shared\ntrials: 4\nseed: 0\nsettings: {}\nspace:\n  train.learning_rate: {low: 0.1, high: 0.2}\n"
        )
        changes = "-S train.epochs=1 -S model.cnn.channels=[4,4]"
        command = f"{sys.executable} -m digits tune --storage {url} {changes}"
        settings = cluster | {"PGPASSFILE": str(passwords), "MLFLOW_TRACKING_URI": "off"}
        job = ("sbatch", "--wait", "--array=0-1", f"--output={tmp_path}/%a.log", "--wrap", command)
        project.run(*job, fails=False, measured=False, **settings)
    said = [(tmp_path / f"{place}.log").read_text(encoding="utf-8") for place in range(2)]
    # One more if both were at their last.
    assert sum(text.count(": complete at ") for text in said) in (4, 5), said
