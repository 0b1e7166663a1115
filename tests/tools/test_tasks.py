"""Experiments on other machines: whatever a launcher does, a task ends, is started again, or says why it failed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from digits.errors import UserError
from digits.files import write_json
from digits.records import store
from digits.tools import seeds, tasks

from ..conftest import ROOT, git

# Stands for a task: `{}` is ignored, and what a task leaves in its folder is written by a shell.
SHELL = 'sh -c \'folder=$(echo "$0" | grep -o "[^ ]*$"); SCRIPT\' {}'

DONE = 'echo "{\\"code\\": 0}" > $folder/part && mv $folder/part $folder/end.json'
RUN = """
import sys
from pathlib import Path
from digits.tools import tasks
tasks.INTERVAL = 0.1
tasks.main(Path(sys.argv[1]))
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with one commit, the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    monkeypatch.setattr(tasks, "INTERVAL", 0.05)
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "start")
    return tmp_path


def script(text: str) -> str:
    return SHELL.replace("SCRIPT", text)


@pytest.mark.usefixtures("repository")
def test_tasks_are_done_in_any_order_and_leave_nothing() -> None:
    assert sorted(tasks.launch({"a": [], "b": [], "c": []}, script(DONE), 2)) == ["a", "b", "c"]
    assert not list(tasks.FOLDER.iterdir())


@pytest.mark.usefixtures("repository")
def test_task_that_dies_is_started_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "SILENCE", 0.2)
    third = f"[ $(wc -l < $folder/count) -gt 2 ] && {DONE}"
    dies_twice = f"echo x >> $folder/count; echo 1 > $folder/alive; {third}; exit 0"
    assert list(tasks.launch({"a": []}, script(dies_twice), None)) == ["a"]
    with pytest.raises(UserError, match=r"^a: died: the last words$"):
        list(tasks.launch({"a": []}, script("echo 1 > $folder/alive; echo the last words > $folder/log"), None))


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            script(f'echo "no space left" > $folder/log; {DONE.replace("0", "1")}'),
            "a: failed: no space left",
        ),
        ("sh -c 'echo host unknown >&2; exit 255' {}", "a: died: host unknown"),
        ("/no/such/launcher {}", "--launch: /no/such/launcher: No such file or directory"),
        ("sh -c 'unclosed {}", "--launch: sh -c 'unclosed {}: No closing quotation"),
        ("sbatch --wrap", "--launch: sbatch --wrap: must have {} where the command goes, or be a file of hosts"),
        ("empty.txt", "--launch: empty.txt: names no host"),
    ],
)
def test_what_goes_wrong_is_one_line(command: str, said: str) -> None:
    Path("empty.txt").write_text("# none yet\n\n")
    with pytest.raises(UserError) as raised:
        list(tasks.launch({"a": []}, command, None))
    assert str(raised.value) == said


@pytest.mark.usefixtures("repository")
def test_file_of_hosts_gives_each_one_task_at_a_time() -> None:
    Path("hosts.txt").write_text("first  # the fast one\n\nuser@second\n")
    assert tasks.launchers("hosts.txt") == (
        ["ssh -o BatchMode=yes first {}", "ssh -o BatchMode=yes user@second {}"],
        True,
    )


@pytest.mark.usefixtures("repository")
def test_tasks_run_what_is_committed_and_no_other_state() -> None:
    Path("a file").write_text("1")
    git("add", "a file")
    git("commit", "--quiet", "--message", "more")
    tasks.check()
    Path("a file").write_text("2")
    with pytest.raises(UserError, match=r'^"?a file"?: changed, but tasks run what is committed; commit first$'):
        tasks.check()


def test_cancelled_task_ends_with_all_that_it_has_started(repository: Path) -> None:
    """A real task, whose clone of the repository never ends."""
    folder = repository / "task"
    folder.mkdir()
    sleeper = repository / "bin/git"
    sleeper.parent.mkdir()
    sleeper.write_text("#!/bin/sh\nexec sleep 300\n")
    sleeper.chmod(0o755)
    about = {"name": "a", "settings": [], "revision": "HEAD", "repository": str(repository), "tracking": "off"}
    write_json(folder / tasks.TASK, about)
    path = f"{sleeper.parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, folder], env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    )
    deadline = time.monotonic() + 60
    while not psutil.Process(process.pid).children():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (child,) = psutil.Process(process.pid).children()
    assert (folder / tasks.LIFE).exists()
    (folder / tasks.CANCEL).touch()
    assert process.wait(30) == 128 + signal.SIGTERM
    child.wait(30)
    assert not (folder / tasks.END).exists()


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_sqlite_on_a_network_file_system_is_rejected(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype=kind)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    store.reject_network_folder("sqlite:////elsewhere/studies.db", "--storage")
    store.reject_network_folder("postgresql://host/name", "--storage")
    (tmp_path / "tuning").mkdir()
    with pytest.raises(UserError, match=f"^--storage: sqlite:.*studies.db: lies on {kind}, where several machines"):
        store.reject_network_folder(f"sqlite:///{tmp_path / 'tuning/studies.db'}", "--storage")


def test_grid_is_every_combination() -> None:
    assert seeds.combinations([]) == [[]]
    assert seeds.combinations(["train.epochs=2,4", "model.name=cnn, mlp"]) == [
        ["train.epochs=2", "model.name=cnn"],
        ["train.epochs=2", "model.name=mlp"],
        ["train.epochs=4", "model.name=cnn"],
        ["train.epochs=4", "model.name=mlp"],
    ]
    for wrong in ("train.epochs", "train.epochs=", "train.epochs=2,,3"):
        with pytest.raises(UserError, match=f"^--grid {wrong}: must be KEY=VALUE,VALUE$"):
            seeds.combinations([wrong])
