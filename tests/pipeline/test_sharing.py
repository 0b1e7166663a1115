"""Two people and what they share: results through a DVC remote, experiments through git and the remote."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Project
from .servers import free_port, serving

pytestmark = pytest.mark.slow


def clone(source: Path, root: Path) -> Project:
    project = Project(root)
    subprocess.run(["git", "clone", "--quiet", source, root], check=True)
    return project


def add_remote(project: Project, url: str) -> None:
    project.run("dvc", "remote", "add", "--default", "storage", url)
    project.run("git", "commit", "--quiet", "--all", "--message=Share the data")


def assert_nothing_runs(project: Project) -> None:
    done = project.run("dvc", "repro")
    assert "up to date" in done.stdout
    assert "Running stage" not in done.stdout
    assert not (project.root / "mlflow.db").exists()


def test_pull_from_a_shared_folder_leaves_nothing_to_run(copy: Project, tmp_path: Path) -> None:
    add_remote(copy, str(tmp_path / "storage"))
    copy.run("dvc", "push")
    theirs = clone(copy.root, tmp_path / "theirs")
    theirs.run("dvc", "pull")
    assert_nothing_runs(theirs)
    assert theirs.outputs() == copy.outputs()
    assert not theirs.run("git", "status", "--porcelain").stdout


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of an SSH server and the private key that it lets in."""
    pytest.importorskip("dvc_ssh", reason="dvc-ssh is not installed")
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if not program:
        pytest.skip("sshd is not installed (Debian: apt-get install openssh-server)")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where Debian's sshd, as root, locks up the part that meets strangers
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    port = free_port()
    config = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": tmp_path / "host_key",
        "AuthorizedKeysFile": tmp_path / "key.pub",
        "AuthenticationMethods": "publickey",
        "PermitRootLogin": "prohibit-password",
        "PidFile": "none",
        "StrictModes": "no",  # a temporary folder lies in one that everybody may write to
        "UsePAM": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (tmp_path / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in config.items()))

    def ready() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    with serving([program, "-D", "-e", "-f", tmp_path / "sshd_config"], ready, tmp_path / "sshd.log"):
        yield f"ssh://{pwd.getpwuid(os.getuid()).pw_name}@127.0.0.1:{port}", tmp_path / "key"


def test_pull_over_ssh_leaves_nothing_to_run(copy: Project, ssh: tuple[str, Path], tmp_path: Path) -> None:
    address, key = ssh
    add_remote(copy, f"{address}{tmp_path / 'storage'}")
    theirs = clone(copy.root, tmp_path / "theirs")
    for project in (copy, theirs):  # --local: in a file that git ignores, for each has a key of their own
        project.run("dvc", "remote", "modify", "--local", "storage", "keyfile", str(key))
    copy.run("dvc", "push")
    theirs.run("dvc", "pull")
    assert_nothing_runs(theirs)
    assert theirs.outputs() == copy.outputs()
    assert not theirs.run("git", "status", "--porcelain").stdout


def test_shared_experiment_is_applied_elsewhere_without_training(copy: Project, tmp_path: Path) -> None:
    add_remote(copy, str(tmp_path / "storage"))
    copy.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(tmp_path / "hub"))
    copy.run("git", "remote", "add", "origin", str(tmp_path / "hub"))
    copy.run("git", "push", "--quiet", "origin", "main")
    before = copy.outputs()
    copy.run("dvc", "exp", "run", "--name", "coarse", "-S", "evaluate.bins=5", MLFLOW_TRACKING_URI="off")
    copy.run("dvc", "exp", "push", "origin", "coarse")

    theirs = clone(tmp_path / "hub", tmp_path / "theirs")
    assert "coarse" in theirs.run("dvc", "exp", "list", "origin").stdout
    theirs.run("dvc", "exp", "pull", "origin", "coarse")
    theirs.run("dvc", "exp", "apply", "coarse")
    assert_nothing_runs(theirs)
    assert theirs.outputs() == copy.outputs() != before
    assert (theirs.root / "params.yaml").read_bytes() == (copy.root / "params.yaml").read_bytes()
    assert theirs.json("metrics/test.json") == copy.json("metrics/test.json")
