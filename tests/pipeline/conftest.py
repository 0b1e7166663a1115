"""The real thing: a repository of its own made of the working tree, real MNIST, a short training."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from digits.files import flatten, md5, read_json
from digits.params import load

REPOSITORY = Path(__file__).parents[2]
SHORT = {
    "epochs: {quick: 2, default: 8, best: 12}": "epochs: 1",
    "channels: {quick: [16, 32], default: [16, 32, 64], best: [32, 64, 64, 128]}": "channels: [8, 16]",
    "checkpoint: 5.0": "checkpoint: 0.2",
}


@dataclass(frozen=True)
class Project:
    """A repository that a test can use as a person would."""

    root: Path
    database: str = "mlflow.db"
    server: str | None = None

    def run(
        self, *command: str, fails: bool = False, measured: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there as from a shell with the virtual environment; it must succeed, or fail if `fails`.

        Its coverage is taken only if `measured`: that doubles the time that every process takes to start.
        """
        ours = ("DVC_", "MLFLOW_") if measured else ("DVC_", "MLFLOW_", "COVERAGE_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        names = {
            f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        done = subprocess.run(
            command,
            cwd=self.root,
            env=inherited | names | {"PATH": path} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert bool(done.returncode) == fails, f"{command}: code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, path: str) -> dict[str, Any]:
        return flatten(read_json(self.root / path))

    @property
    def tracking_uri(self) -> str:
        return self.server or f"sqlite:///{self.root / self.database}"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def mlflow_runs(self) -> list[Run]:
        """Give all runs, the newest first."""
        experiment = self.client.get_experiment_by_name("mnist")
        assert experiment
        return list(self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))

    def assert_complete(self, run: Run) -> None:
        """The run holds the params, metrics, files and model that are in the working directory."""
        expected = (
            self.json("metrics/train.json")
            | {f"test_{key}": value for key, value in self.json("metrics/test.json").items()}
            | {f"export_{key}": value for key, value in self.json("metrics/export.json").items()}
        )
        rates = {"learning_rate": run.data.metrics["learning_rate"]}
        measured = {key: value for key, value in run.data.metrics.items() if key != "training_seconds"}
        assert measured == expected | rates
        assert run.data.params == {key: str(value) for key, value in load(self.root / "params.yaml").flat().items()}
        assert run.info.status == "FINISHED"
        steps = [metric.step for metric in self.client.get_metric_history(run.info.run_id, "train_loss")]
        assert steps == list(range(1, int(run.data.params["train.epochs"]) + 1))
        files = {
            file.path
            for folder in ("metrics", "models", "models/export", "plots")
            for file in self.client.list_artifacts(run.info.run_id, folder)
            if not file.is_dir
        }
        assert files == {
            *(f"metrics/{name}.json" for name in ("train", "test", "evidence", "export")),
            *("models/model.safetensors", "models/export/model.onnx", "models/export/model.pt2"),
            "models/export/MODEL_CARD.md",
            *(f"plots/{name}" for name in ("training.csv", "training.png", "confusion.csv", "confusion.png")),
            *("plots/validation.csv", "plots/misclassified.png", "plots/reliability.png"),
        }
        versions = self.client.search_model_versions("name='mnist-classifier'")
        assert [version.tags["model_md5"] for version in versions].count(run.data.tags["model_md5"]) == 1
        lock = yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        made = {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}
        with tempfile.TemporaryDirectory() as folder:
            recorded = self.client.download_artifacts(run.info.run_id, "provenance/outputs.json", folder)
            assert read_json(Path(recorded)) == made

    def outputs(self) -> dict[str, str]:
        """Give the MD5 of every file that a stage wrote, by path."""
        stages = yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))["stages"].values()
        paths = [self.root / out["path"] for stage in stages for out in stage["outs"]]
        files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
        return {file.relative_to(self.root).as_posix(): md5(file) for file in files}

    def copy(self, root: Path) -> "Project":
        """Clone it, and copy DVC's files in it.

        Not DVC's run cache, so that an experiment in the copy is run and not remembered.
        """
        self.run("git", "clone", "--quiet", ".", str(root))
        shutil.copytree(self.root / ".dvc/cache/files", root / ".dvc/cache/files")
        copy = Project(root)
        copy.run("dvc", "checkout", "--quiet")
        return copy

    def restore(self) -> None:
        """Go back to what is committed."""
        if self.run("git", "status", "--porcelain").stdout:
            self.run("git", "checkout", "--quiet", ".")
            self.run("dvc", "checkout", "--quiet")


def copy_of_working_tree(root: Path) -> Project:
    """Make a repository of the files that git tracks or would track, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
    text = (root / "params.yaml").read_text(encoding="utf-8")
    for long, short in SHORT.items():
        assert long in text
        text = text.replace(long, short)
    (root / "params.yaml").write_text(text, encoding="utf-8")
    project = Project(root)
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message=start")
    return project


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A repository as a newcomer clones it, with a short training."""
    return copy_of_working_tree(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def finished(fresh: Project) -> Project:
    """The same after `dvc repro` and a commit of its results."""
    fresh.run("dvc", "repro", measured=True)
    fresh.run("git", "add", "--all")
    fresh.run("git", "commit", "--quiet", "--message=results")
    return fresh


@pytest.fixture
def project(finished: Project) -> Project:
    """The finished repository, put back in order before each test."""
    finished.restore()
    return finished


@pytest.fixture
def copy(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished repository to do with as one likes."""
    return finished.copy(tmp_path / "copy")
