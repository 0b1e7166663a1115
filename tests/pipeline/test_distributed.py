"""The train stage under torchrun: real processes, real kills, and two hosts made of network namespaces."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch import Tensor

from digits import paths
from digits.learning import models
from tests.pipeline.servers import free_port
from tests.stages.conftest import REPOSITORY, SHORT, run_stage, write_images, write_params

pytestmark = pytest.mark.slow
RECIPE = {"train.epochs": 1, "train.learning_rate": 0.05, "train.keep": "best", "runtime.precision": "fp32"}
LONG = RECIPE | {"train.epochs": 6, "train.hard_examples": 0.3, "runtime.checkpoint": 0.1}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with splits of 840 training and 160 validation images."""
    folder = tmp_path_factory.mktemp("prepared") / "project"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        write_images(Path("data/own"), train=1000)
        write_params(SHORT | {"split.validation": 160})
        for stage in ("download", "preprocess"):
            run_stage(stage)
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that folder, the working directory of this test."""
    for name in ("DVC_ROOT", "DIGITS_TORCHRUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    folder = shutil.copytree(prepared, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def start(*prefix: str, code: Path = REPOSITORY, **environment: str) -> subprocess.Popen[str]:
    own = {"PYTHONPATH": str(code), "MLFLOW_TRACKING_URI": "off"}
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "stages.train"],
        env=os.environ | own | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def train(changes: dict[str, Any], torchrun: str = "") -> tuple[int, str, str]:
    write_params(SHORT | RECIPE | changes)
    process = start(DIGITS_TORCHRUN=torchrun)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def train_alone(changes: dict[str, Any]) -> dict[str, Tensor]:
    """Train in this very process and return the weights."""
    write_params(SHORT | RECIPE | changes)
    run_stage("train")
    return weights()


def weights() -> dict[str, Tensor]:
    return {key: value.double() for key, value in models.load(paths.MODEL)[0].state_dict().items()}


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(
        float((value - second[key]).abs().max() / value.abs().max().clamp(min=1)) for key, value in first.items()
    )


@pytest.mark.usefixtures("project")
def test_result_is_that_of_one_process_for_even_and_uneven_shares() -> None:
    """To 1e-4 of the largest weight after an epoch of 27 steps, dropout and augmentation included.

    Three processes have 10, 11 and 11 images of each batch.
    """
    alone, other = train_alone({}), train_alone({"seed": 1})
    assert difference(alone, other) > 0.1
    for count in (2, 3):
        assert train({"runtime.processes": count})[0] == 0
        assert 0 < difference(alone, weights()) < 1e-4


@pytest.mark.stress
@pytest.mark.usefixtures("project")
def test_in_bf16_as_well_a_number_of_processes_has_its_bits() -> None:
    """One step, for each rounding to 8 bits is another start for the next."""
    one = {"runtime.precision": "bf16", "train.batch_size": 840}
    alone = train_alone(one)
    files = []
    for _ in range(2):
        assert train(one | {"runtime.processes": 2})[0] == 0
        files.append(paths.MODEL.read_bytes())
    assert files[0] == files[1]
    assert 0 < difference(alone, weights()) < 0.01


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)


def saved() -> bool:
    """Say whether there is a whole checkpoint; the name of a partial one begins with a dot."""
    return bool(list(Path(".dvc/tmp/checkpoints").glob("[!.]*.pt")))


@pytest.fixture(scope="module")
def expected(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the model file of LONG with two processes that nothing disturbs."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("expected") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("DVC_ROOT", "DIGITS_TORCHRUN"):
            patch.delenv(name, raising=False)
        assert train(LONG | {"runtime.processes": 2})[0] == 0
        return paths.MODEL.read_bytes()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.stress)])
def test_killed_worker_is_replaced_and_training_resumes_from_the_checkpoint(expected: bytes, victim: int) -> None:
    write_params(SHORT | LONG | {"runtime.processes": 2})
    with start() as process:
        until(saved, "a checkpoint")
        workers = psutil.Process(process.pid).children()
        workers[victim].kill()
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "resumed after step" in out
    # Not a word if torchrun ends the other process before that notices.
    assert set(err.splitlines()) <= {f"process {1 - victim}: lost another process; all restart"}
    assert paths.MODEL.read_bytes() == expected
    assert not saved()


@pytest.mark.usefixtures("project")
def test_workers_die_with_a_killed_launcher_and_the_next_start_resumes(expected: bytes) -> None:
    write_params(SHORT | LONG | {"runtime.processes": 2})
    with start() as process:
        until(saved, "a checkpoint")
        workers = psutil.Process(process.pid).children()
        process.kill()
        process.communicate()
    psutil.wait_procs(workers, timeout=30)
    assert not any(worker.is_running() for worker in workers)
    assert not paths.MODEL.exists()
    code, out, _ = train(LONG | {"runtime.processes": 2})
    assert code == 0
    assert "resumed after step" in out
    assert paths.MODEL.read_bytes() == expected


@pytest.mark.usefixtures("project")
def test_mistakes_of_a_user_are_reported_once_in_one_line() -> None:
    code, _, err = train({"runtime.processes": 2, "train.learning_rate": 1e30})
    assert (code, len(err.splitlines())) == (1, 1)
    assert err.startswith("params.yaml: train.learning_rate: training diverged in epoch 1")
    code, _, err = train({}, torchrun="--nonsense 3")
    assert (code, err) == (1, "DIGITS_TORCHRUN: not arguments of torchrun: unrecognized arguments: --nonsense\n")
    assert not paths.MODEL.exists()


@pytest.mark.usefixtures("project")
def test_torchrun_by_hand_trains_once_and_reports_a_mistake_once() -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        "-m",
        "stages.train",
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for changes, count in (({"train.learning_rate": 1e30}, 0), ({"train.epochs": 0}, 0), ({}, 1)):
        write_params(SHORT | RECIPE | changes)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        said = [line for line in done.stderr.splitlines() if line.startswith("params.yaml: ")]
        assert (len(said), "KeyError" in done.stderr) == (1 - count, False)
        assert (done.returncode == 0) == paths.MODEL.exists() == bool(count)
        assert done.stdout.count("epoch 1:") == count


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"PET_NNODES": "2"}, "DIGITS_TORCHRUN: 2 machines need an address where they meet: --rdzv-endpoint "),
        ({"RANK": "0"}, "RANK: is set, but not WORLD_SIZE, "),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "x", "SLURM_LOCALID": "0"}, "RANK: 'x': must be a number, "),
    ],
)
def test_several_machines_never_train_alone_by_mistake(environment: dict[str, str], said: str) -> None:
    write_params(SHORT | RECIPE)
    process = start(code=REPOSITORY, **environment)
    _, err = process.communicate(timeout=100)
    assert (process.returncode, len(err.splitlines()), err.startswith(said)) == (1, 1, True), err
    assert not paths.MODEL.exists()


@pytest.mark.usefixtures("project")
def test_variables_of_torchrun_make_two_machines_of_these_processes(
    expected: bytes, prepared: Path, tmp_path: Path
) -> None:
    write_params(SHORT | LONG | {"runtime.processes": 2})
    meeting = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_RDZV_BACKEND": "c10d"}
    meeting["PET_RDZV_ENDPOINT"] = f"127.0.0.1:{free_port()}"
    first = start(code=REPOSITORY, **meeting)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shutil.copytree(prepared, tmp_path / "other"))
        write_params(SHORT | LONG | {"runtime.processes": 2})
        second = start(code=REPOSITORY, **meeting)
        outs = [process.communicate(timeout=300) for process in (first, second)]
        models = [paths.MODEL.read_bytes()] if paths.MODEL.exists() else []
    models += [paths.MODEL.read_bytes()] if paths.MODEL.exists() else []
    assert [process.returncode for process in (first, second)] == [0, 0], outs
    assert sum(out.count("epoch 1:") for out, _ in outs) == 1
    assert models == [expected]  # the leader's machine has the result


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Return two hosts, 10.77.0.1 and 10.77.0.2, with a cable between them."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the ip command")
    names = f"digits{os.getpid()}a", f"digits{os.getpid()}b"
    for name in names:
        ip("netns", "add", name)
    try:
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for place, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{place}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


@pytest.fixture
def impatient(tmp_path: Path) -> Path:
    """Return a copy of the code that takes a silent process for dead after 15 s instead of a minute."""
    for name in ("digits", "stages"):
        shutil.copytree(REPOSITORY / name, tmp_path / "code" / name)
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path / "code")
    module = tmp_path / "code/digits/learning/distributed.py"
    text = module.read_text(encoding="utf-8")
    assert "SILENCE = timedelta(seconds=60)" in text
    module.write_text(
        text.replace("SILENCE = timedelta(seconds=60)", "SILENCE = timedelta(seconds=15)"), encoding="utf-8"
    )
    return tmp_path / "code"


@pytest.mark.stress
@pytest.mark.usefixtures("project")
def test_two_hosts_train_together_and_when_one_is_cut_off_the_other_continues_alone(
    hosts: tuple[str, str], impatient: Path
) -> None:
    write_params(SHORT | LONG | {"train.epochs": 40})
    meeting = "--nnodes 1:2 --max-restarts 9 --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29400"
    processes = []
    for place, name in enumerate(hosts, 1):
        # The two share this machine's name, by which torchrun would find out who is at home at the meeting point.
        own = f"--local-addr 10.77.0.{place} --rdzv-conf is_host={int(place == 1)},last_call_timeout=5"
        torchrun = f"{meeting} {own}"
        processes.append(
            start("ip", "netns", "exec", name, code=impatient, DIGITS_TORCHRUN=torchrun, GLOO_SOCKET_IFNAME="cable"),
        )
    try:
        until(saved, "a checkpoint")
        assert all(psutil.Process(process.pid).children() for process in processes)
        ip("-n", hosts[1], "link", "set", "cable", "down")
        out, err = processes[0].communicate(timeout=400)
        assert processes[0].returncode == 0, err
        assert "resumed after step" in out
        assert "lost another process" in err
        assert paths.MODEL.exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
