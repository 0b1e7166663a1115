"""Experiments on other machines: each is a task, which any launcher may start anywhere, in a copy of the repository.

The machines share the repository's folder. There each task has a folder of its own, by which the two sides talk,
whatever is between them: what is to be run, a sign of life every few seconds, what was printed, and how it ended. So
it does not matter whether a launcher waits (`ssh host {}`, `srun {}`) or only queues (`sbatch --wrap {}`).

A task clones the repository, with its objects and DVC's cache shared, runs the experiment there, and pushes it back.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from digits.errors import UserError, reason
from digits.files import read_json, write_json, write_text
from digits.records import lineage, store

FOLDER = Path(".dvc/tmp/tasks")
INTERVAL = 2.0  # seconds between two signs of life, and between two looks at them
SILENCE = 60.0  # seconds without a sign of life after which a task that had begun is dead
RETRIES = 2
PLACE = "{}"  # in a launcher: the command to be run, as one word
# What a task leaves in its folder.
TASK, LIFE, LOG, END, CANCEL = "task.json", "alive", "log", "end.json", "cancel"
SAID = "launcher"  # what its launcher has printed


def launchers(launch: str) -> tuple[list[str], bool]:
    """Return the launchers that `--launch` names, and whether each is a place with room for one task at a time.

    It is a command with `{}`, or a file with a host on each line. Raises UserError if it is neither.
    """
    if PLACE in launch:
        try:
            shlex.split(launch)
        except ValueError as error:
            raise UserError(f"--launch: {launch}: {reason(error)}") from None
        return [launch], False
    try:
        lines = Path(launch).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        allowed = f"must have {PLACE} where the command goes, or be a file of hosts"
        raise UserError(f"--launch: {launch}: {allowed}") from None
    hosts = [host for line in lines if (host := line.partition("#")[0].strip())]
    if not hosts:
        raise UserError(f"--launch: {launch}: names no host")
    return [f"ssh -o BatchMode=yes {shlex.quote(host)} {PLACE}" for host in hosts], True


def check() -> None:
    """Raise UserError if tasks would not run what is in the working folder."""
    if changed := lineage.git("status", "--porcelain", "--untracked-files=no"):
        names = ", ".join(line[3:] for line in changed.decode(errors="replace").splitlines()[:5])
        raise UserError(f"{names}: changed, but tasks run what is committed; commit first")
    if not store.is_off() and not store.is_remote():
        store.reject_network_folder(store.uri(), "MLFLOW_TRACKING_URI")
        with store.survival():
            store.connect()  # now: many that create it at once would wait for each other


@dataclass
class Task:
    """An experiment that is to run, or runs, on some machine."""

    name: str
    folder: Path
    launcher: str = ""
    process: "subprocess.Popen[bytes] | None" = None
    attempts: int = 0
    life: str = ""
    seen: float = field(default_factory=time.monotonic)  # when its sign of life was last a new one

    def start(self, launcher: str) -> None:
        """Launch it, once more if it has died."""
        for name in (LIFE, END, SAID):
            (self.folder / name).unlink(missing_ok=True)
        self.launcher, self.life, self.seen = launcher, "", time.monotonic()
        self.attempts += 1
        command = shlex.join([sys.executable, "-m", "digits.tools.tasks", str(self.folder.resolve())])
        command = f"cd {shlex.quote(str(Path.cwd()))} && {command}"
        words = [word.replace(PLACE, command) for word in shlex.split(launcher)]
        with (self.folder / SAID).open("wb") as said:
            try:
                self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            except OSError as error:
                raise UserError(f"--launch: {words[0]}: {error.strerror}") from None

    def state(self) -> str:
        """Return "done", "failed", "dead", or "" while it waits or runs."""
        if (self.folder / END).exists():
            return "done" if read_json(self.folder / END)["code"] == 0 else "failed"
        with contextlib.suppress(OSError):
            if (life := (self.folder / LIFE).read_text(encoding="utf-8")) != self.life:
                self.life, self.seen = life, time.monotonic()
        if self.process and self.process.poll() and not self.life:
            return "dead"  # the launcher did not launch it
        silent = time.monotonic() - self.seen > SILENCE
        return "dead" if silent and (self.life or not self._may_be_queued()) else ""

    def _may_be_queued(self) -> bool:
        """Say whether its launcher still runs, or has put it into a queue in which it may be waiting."""
        if not self.process or self.process.poll() is None:
            return True
        if not (job := self._job()):
            return True
        self.seen = time.monotonic()  # not to ask again at once
        asked = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, check=False)
        return bool(asked.stdout.strip())

    def _job(self) -> str | None:
        """Return the number that SLURM's sbatch has given it."""
        with contextlib.suppress(OSError):
            said = (self.folder / SAID).read_text(encoding="utf-8", errors="replace")
            if found := re.search(r"^Submitted batch job (\d+)", said, re.MULTILINE):
                return found[1]
        return None

    def why(self) -> str:
        """Return the last line of what it, or its launcher, has printed."""
        for name in (LOG, SAID):
            with contextlib.suppress(OSError):
                text = (self.folder / name).read_text(encoding="utf-8", errors="replace")
                if lines := [line.strip() for line in text.split("\n") if line.strip()]:
                    return lines[-1].removeprefix("ERROR: ")[:200]
        return "it says nothing"

    def cancel(self) -> None:
        """Have it end, wherever it is."""
        write_text(self.folder / CANCEL, "")
        if self.process and self.process.poll() is None:
            self.process.terminate()
        if job := self._job():
            subprocess.run(["scancel", job], capture_output=True, check=False)


def launch(waiting: Mapping[str, list[str]], command: str, jobs: int | None) -> Iterator[str]:
    """Run an experiment of each name, with its settings, where the launcher puts it; yield each when it is back.

    At most `jobs` at a time, by default all, or one on each host. One that dies is started again. If this process is
    stopped, all are. Raises UserError at the end if one failed, or died once too often.
    """
    choices, exclusive = launchers(command)
    root = FOLDER / f"{os.getpid()}-{int(time.time())}"
    here = {"revision": lineage.commit(), "repository": str(Path.cwd()), "tracking": store.uri()}
    left, running, failed = list[Task](), list[Task](), list[str]()
    for name, settings in waiting.items():
        folder = root / name
        folder.mkdir(parents=True)
        write_json(folder / TASK, here | {"name": name, "settings": settings})
        left.append(Task(name, folder))
    limit = jobs or (len(choices) if exclusive else len(left))
    try:
        while left or running:
            while left and len(running) < limit:
                busy = [one.launcher for one in running]
                task = left.pop(0)
                task.start(min(choices, key=busy.count))
                running.append(task)
            for task in list(running):
                if not (state := task.state()):
                    continue
                running.remove(task)
                if state == "done":
                    yield task.name
                elif state == "dead" and task.attempts <= RETRIES:
                    left.append(task)
                else:
                    failed.append(f"{task.name}: {'died' if state == 'dead' else 'failed'}: {task.why()}")
            time.sleep(INTERVAL if running else 0)
    finally:
        for task in running:
            task.cancel()
    if failed:
        raise UserError("\n".join(failed))
    shutil.rmtree(root, ignore_errors=True)


def main(folder: Path) -> None:
    """Run the task whose folder this is, to its end."""
    about = read_json(folder / TASK)
    if (folder / CANCEL).exists():
        return
    over = threading.Event()
    with (folder / LOG).open("ab") as log:

        def live() -> None:
            beats = 0
            while not over.wait(INTERVAL if beats else 0):
                beats += 1
                write_text(folder / LIFE, f"{os.getpid()} {beats}")
                if (folder / CANCEL).exists():
                    os.killpg(os.getpgrp(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with contextlib.suppress(OSError):
            os.setpgrp()  # so that it ends with all that it has started
        threading.Thread(target=live, daemon=True).start()
        code = 1
        with tempfile.TemporaryDirectory(prefix="digits-") as place:
            for command in _commands(about, Path(place, "clone")):
                environment = os.environ | {"MLFLOW_TRACKING_URI": about["tracking"]}
                environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
                where = Path(place, "clone") if command[1] != "clone" else Path(place)
                done = subprocess.run(command, cwd=where, env=environment, stdout=log, stderr=log, check=False)
                if code := done.returncode:
                    break
    over.set()
    write_json(folder / END, {"code": code})


def _commands(about: dict[str, Any], clone: Path) -> Iterator[list[str]]:
    """Yield what a task runs, one after the other."""
    repository, name = about["repository"], about["name"]
    dvc = [sys.executable, "-m", "dvc"]
    yield ["git", "clone", "--quiet", "--shared", "--no-checkout", repository, str(clone)]
    yield ["git", "checkout", "--quiet", "--detach", about["revision"]]
    yield [*dvc, "cache", "dir", "--local", f"{repository}/.dvc/cache"]
    yield [*dvc, "exp", "run", "--name", name, *about["settings"], "evaluate"]
    yield [*dvc, "exp", "push", "--no-cache", "--force", "origin", name]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
