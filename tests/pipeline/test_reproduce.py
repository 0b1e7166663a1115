"""From a result back to what made it, and the same bits again."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.entities import Run

from digits.errors import UserError
from digits.tools import provenance

from .conftest import DIGITS, Project

pytestmark = pytest.mark.slow
RESULTS = (":!dvc.lock", ":!metrics", ":!plots")


@pytest.fixture(scope="module")
def workshop(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy with a run of its results in MLflow."""
    return finished.copy(tmp_path_factory.mktemp("workshop") / "project", logged=True)


def assert_leads_to(project: Project, run: Run, commit: str, folder: Path) -> None:
    """Assert that what the run recorded is enough to make `commit` again, results included.

    A commit of its own has all of an experiment; the run has the commit before it, and what was changed there.
    """
    based_on = json.loads(project.artifact(run, "provenance/record.json"))["commit"]
    assert based_on == project.run("git", "rev-parse", "HEAD").stdout.strip() == run.data.tags["git_commit"]
    clone = Project(folder / run.info.run_name)
    project.run("git", "clone", "--quiet", "--shared", ".", str(clone.root))
    clone.run("git", "checkout", "--quiet", based_on)
    if run.data.tags["git_dirty"] == "true":
        (folder / "patch").write_bytes(project.artifact(run, "provenance/uncommitted.patch"))
        clone.run("git", "apply", "--whitespace=nowarn", str(folder / "patch"))
    clone.run("git", "add", "--all")
    assert not clone.run("git", "diff", "--cached", commit, "--", ".", *RESULTS).stdout
    clone.run("git", "checkout", "--quiet", "--force", commit)
    made, locked = json.loads(project.artifact(run, "provenance/outputs.json")), clone.locked()
    assert "plots/confusion.csv" in made
    assert made == {path: locked[path] for path in made}


@pytest.mark.stress  # those of one experiment and of changed code are tests below
def test_every_kind_of_run_records_all_that_made_it(project: Project, call: Callable[..., str], tmp_path: Path) -> None:
    """Of a clean folder, of an experiment in DVC's queue, and of one in a temporary folder; of changed code below."""
    clean = project.mlflow_runs()[0]
    project.run("dvc", "exp", "run", "--queue", "--name", "queued", "-S", "evaluate.bins=12")
    project.run("sh", "-c", "dvc queue start > /dev/null 2>&1")  # its worker would keep our pipe open
    project.run("dvc", "exp", "run", "--temp", "--name", "apart", "-S", "evaluate.bins=13", "evaluate")
    deadline = time.monotonic() + 300
    while "Success" not in project.run("dvc", "queue", "status").stdout:
        assert time.monotonic() < deadline
        time.sleep(2)
    runs = {run.info.run_name: run for run in project.mlflow_runs()}
    assert len(runs) == 3
    assert_leads_to(project, clean, "HEAD", tmp_path)
    commits = dict(
        line.split()
        for line in project.run(
            "git", "for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", "refs/exps/*/*/*"
        ).stdout.splitlines()
    )
    assert commits.keys() == {"queued", "apart"}
    for name, commit in commits.items():
        assert runs[name].data.tags["dvc_experiment"] == name
        assert_leads_to(project, runs[name], commit, tmp_path)

    told = call(project, "diff", clean.info.run_id, "queued")
    assert "\n  evaluate.bins  15 -> 12\n" in told
    assert "data.timeout" not in told
    assert "test_calibration_error" in told
    assert "the same: " in told
    assert "data" in told.splitlines()[-1]
    assert "environment" in told.splitlines()[-1]

    project.run("dvc", "exp", "apply", "queued")
    project.assert_complete(runs["queued"])


def test_run_of_changed_code_is_reproduced_from_its_id_alone_and_under_other_circumstances(
    project: Project, tmp_path: Path
) -> None:
    """Changed code that is nowhere in git, a new file among it.

    In another folder, time zone, language and order of hashes; nothing but caches is written to the home folder.
    """
    new, code = project.root / "digits/noise.py", project.root / "stages/export.py"
    new.write_text("NOTE = 'seven'\n")
    text = code.read_text(encoding="utf-8")
    noisy = text.replace("write_text(paths.MODEL_CARD, text)", "write_text(paths.MODEL_CARD, text + NOTE)")
    assert noisy != text
    code.write_text(noisy.replace("\nfrom digits import", "\nfrom digits.noise import NOTE\nfrom digits import", 1))
    project.run("dvc", "repro")
    assert (project.root / "models/export/MODEL_CARD.md").read_text(encoding="utf-8").endswith("seven")
    (run, *_), count = project.mlflow_runs(), len(project.locked())
    assert run.data.tags["git_dirty"] == "true"
    new.unlink()
    project.restore()

    circumstances = {"TZ": "Asia/Kathmandu", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "4711", "USER": "x"}
    home = {"HOME": tmp_path, "XDG_CACHE_HOME": tmp_path / ".cache", "XDG_CONFIG_HOME": tmp_path / ".config"}
    circumstances |= {name: str(folder) for name, folder in home.items()}
    # As the data is downloaded again, pip asks for the version of rustc, which has a folder of its own.
    circumstances["RUSTUP_HOME"] = os.environ.get("RUSTUP_HOME", str(Path("~/.rustup").expanduser()))
    told = project.run(*DIGITS, "reproduce", run.info.run_id, fails=False, measured=False, **circumstances).stdout
    assert told.splitlines()[-1].endswith(f"{count} of {count} outputs have the same bits")
    assert not project.run("git", "status", "--porcelain").stdout
    project.run(*DIGITS, "predict", "plots/samples.png", fails=False, measured=False, **circumstances)
    written = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
    # As the README says, these keep what they have computed or fetched.
    assert written <= {(folder, name) for folder in (".cache", ".config") for name in ("matplotlib", "dvc", "pip")}


def test_result_that_does_not_come_out_again_is_an_error_that_names_the_file(
    project: Project, call: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock, count = project.root / "dvc.lock", len(project.locked())
    true, right = lock.read_bytes(), project.locked()["plots/confusion.csv"]
    lock.write_bytes(true.replace(right.encode(), b"f" * 32))
    project.run("git", "commit", "--quiet", "--message=a false claim", "dvc.lock")

    def repro(command: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[bytes]:
        """Write what `dvc repro` writes when it runs everything, as the test above has it do."""
        assert command[-3:] == ["dvc", "repro", "--force"]
        assert (cwd / "dvc.lock").read_bytes() != true
        (cwd / "dvc.lock").write_bytes(true)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(provenance, "subprocess", SimpleNamespace(run=repro))
    try:
        with pytest.raises(UserError, match=r"\(a false claim\): not reproduced: plots/confusion.csv$"):
            call(project, "reproduce", "HEAD")
    finally:
        project.run("git", "reset", "--quiet", "--hard", "HEAD~")
    told = capsys.readouterr().out
    assert f"DIFFERENT  {'f' * 32}  plots/confusion.csv" in told
    assert told.splitlines()[-1].endswith(f"{count - 1} of {count} outputs have the same bits")
