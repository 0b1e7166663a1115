import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from digits.learning import checkpoints
from digits.learning.checkpoints import Checkpoint
from tests.conftest import ROOT

STATE = {"weights": {"a": torch.arange(5.0)}, "epochs": [{"epoch": 1, "loss": 0.25}], "place": 3, "best": 0.5}


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def left() -> list[str]:
    return [path.name for path in checkpoints.folder().iterdir()]


def keep(result_of: Any, state: dict[str, Any]) -> Path:
    """Save a state as an interrupted training would."""
    checkpoint = Checkpoint(result_of, 1)
    with contextlib.suppress(InterruptedError), checkpoint:
        checkpoint.save(state)
        raise InterruptedError
    return checkpoint.path


def test_state_is_found_again_in_the_repository_and_gone_after_success(repository: Path) -> None:
    path = keep("this", STATE)
    assert repository in path.parents
    with Checkpoint("this", 1) as checkpoint:
        found = checkpoint.load()
    assert found is not None
    assert torch.equal(found["weights"]["a"], STATE["weights"]["a"])  # type: ignore[index]  # a dictionary of many
    assert {key: found[key] for key in ("epochs", "place", "best")} == {
        key: STATE[key] for key in ("epochs", "place", "best")
    }
    assert not left()


def test_state_of_another_training_is_never_picked_up() -> None:
    keep({"epochs": 3, "code": {"a.py": "1"}}, STATE)
    for other in ({"epochs": 4, "code": {"a.py": "1"}}, {"epochs": 3, "code": {"a.py": "2"}}, {}):
        with Checkpoint(other, 1) as checkpoint:
            assert checkpoint.load() is None
    with Checkpoint({"code": {"a.py": "1"}, "epochs": 3}, 1) as checkpoint:
        assert checkpoint.load() is not None


def test_damaged_state_is_reported_in_one_line_and_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    path = keep("this", STATE)
    sound = path.read_bytes()
    for content in (sound[:-1], sound[:40], b"", b"\x01" + sound[1:], sound[:500] + b"\x01" + sound[501:]):
        path.write_bytes(content)
        assert Checkpoint("this", 1).load() is None
        assert capsys.readouterr().err == f"{path}: damaged; ignored, training starts over\n"


@pytest.mark.parametrize(
    ("interval", "expected"), [(0.0, [False, False]), (60.0, [False, False]), (0.05, [True, False])]
)
def test_saving_is_due_once_an_interval(interval: float, expected: list[bool]) -> None:
    with Checkpoint("this", interval) as checkpoint:
        time.sleep(0.1)
        due = [checkpoint.due()]
        checkpoint.save(STATE)
        assert [*due, checkpoint.due()] == expected


@pytest.mark.slow
def test_second_process_with_the_same_training_waits_and_says_so(repository: Path) -> None:
    code = "from digits.learning.checkpoints import Checkpoint\nwith Checkpoint('this', 1) as it: print(it.load())"
    with Checkpoint("this", 1) as checkpoint:
        checkpoint.save(STATE)
        other = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert other.stderr
        assert "waiting for it to end" in other.stderr.readline()
        assert other.poll() is None
    assert other.communicate(timeout=60)[0] == "None\n"
    assert repository.exists()
    assert not left()


@pytest.mark.slow
def test_lock_of_a_killed_process_is_free() -> None:
    code = "import os, signal\nfrom digits.learning.checkpoints import Checkpoint\n"
    code += "with Checkpoint('this', 1) as it: it.save({'place': 7}); os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode < 0
    done = threading.Timer(30, pytest.fail, ["still locked"])
    done.start()
    with Checkpoint("this", 1) as checkpoint:
        assert checkpoint.load() == {"place": 7}
    done.cancel()
