"""Real servers of other programs, each on a free port of this machine, for as long as a test needs them."""

import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

SLURM = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo")  # what a cluster consists of


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str | Path],
    ready: Callable[[], bool],
    log: Path,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    end: signal.Signals = signal.SIGTERM,
) -> Iterator[None]:
    """Run a server that stays in the foreground, from when it is ready; what it says goes to `log`."""
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=user,
            extra_groups=[] if user else None,
            start_new_session=True,  # so that it ends with all its children
        )
        try:
            deadline = time.monotonic() + 120
            while not ready():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield
        finally:
            if server.poll() is None:
                os.killpg(server.pid, end)
            server.wait(timeout=30)


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A SLURM whose only node is this machine: the environment by which its commands find it.

    Without systemd and cgroups; a node of its own for munge, which signs what they tell each other.
    """
    programs = {name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in SLURM}
    if missing := [name for name, path in programs.items() if not path]:
        pytest.skip(f"{missing[0]} is not installed (Debian: apt-get install slurm-wlm munge)")
    if os.getuid():
        pytest.skip("a SLURM of one's own needs root")
    node, ports = platform.node().split(".")[0], (free_port(), free_port())
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    settings = {
        "ClusterName": "digits",
        "SlurmctldHost": f"{node}(127.0.0.1)",
        "SlurmctldPort": ports[0],
        "SlurmdPort": ports[1],
        "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny",
        "SlurmUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder / 'socket'}",
        "CredType": "cred/munge",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "MpiDefault": "none",
        "ReturnToService": 2,
        "KillWait": 5,
        "NodeName": f"{node} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN",
        "PartitionName": "main Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
        "SlurmdParameters": "config_overrides",
    }
    conf = folder / "slurm.conf"
    conf.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    own = {"SLURM_CONF": str(conf)}
    environment = os.environ | own
    munged = [str(programs["munged"]), "--foreground", "--force", f"--key-file={folder / 'key'}"]
    munged += [f"--{name}-file={folder / name}" for name in ("pid", "log", "seed")] + [f"--socket={folder / 'socket'}"]

    def idle() -> bool:
        asked = [str(programs["sinfo"]), "--noheader", "--format=%t"]
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
        return done.stdout.strip() == "idle"

    def quiet(name: str) -> list[str]:
        return [str(programs[name]), "-D", "-f", str(conf)]

    with (
        serving(munged, (folder / "socket").exists, folder / "munged.log", folder=folder),
        serving(quiet("slurmctld"), lambda: True, folder / "slurmctld.log", folder=folder, environment=environment),
        serving(quiet("slurmd"), idle, folder / "slurmd.log", folder=folder, environment=environment),
    ):
        yield own


@contextmanager
def postgres() -> Iterator[tuple[str, Path]]:
    """A new PostgreSQL with a password: its URL without that, and the file in the form of ~/.pgpass that has it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    program = shutil.which("initdb") or (str(found[-1]) if found else None)
    if not program:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    programs = Path(program).resolve().parent
    user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses root; Debian's package makes this user
    # Not in pytest's folder: that is closed to other users. A path of a socket is 107 characters at most.
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "password").write_text("s3cret\n")
        if user:
            shutil.chown(folder, user)
            shutil.chown(folder / "password", user)
        data = folder / "data"
        options = ["--username=team", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"]
        make = [str(programs / "initdb"), f"--pgdata={data}", f"--pwfile={folder / 'password'}", *options]
        groups: list[str] | None = [] if user else None
        subprocess.run(make, cwd=folder, user=user, extra_groups=groups, stdout=subprocess.DEVNULL, check=True)
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
        command = [str(programs / "postgres"), f"-D{data}", *(f"--{key}={value}" for key, value in settings.items())]

        def ready() -> bool:
            asked = [str(programs / "pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={port}"]
            return not subprocess.run(asked, check=False).returncode

        with serving(command, ready, folder / "log", folder=folder, user=user, end=signal.SIGINT):
            passwords = folder / "pgpass"
            passwords.write_text(f"127.0.0.1:{port}:postgres:team:s3cret\n")
            passwords.chmod(0o600)
            yield f"postgresql://team@127.0.0.1:{port}/postgres", passwords
