"""The real thing: a repository of its own made of the working tree, real MNIST, a short training.

Most of the time goes into starting processes that import torch and mlflow. So the pipeline is run once for all tests,
and a test that changes something does so in a copy, by the cheapest stage that shows what it tests.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from digits import params, pipeline
from digits.__main__ import dispatch
from digits.files import flatten, md5, read_json
from digits.learning import networks

REPOSITORY = Path(__file__).parents[2]
DIGITS = (sys.executable, "-m", "digits")
FIRST = (
    "tests/pipeline/test_changes.py",
    "tests/pipeline/test_distributed.py",
    "tests/tools/test_tune.py",
    "tests/pages/test_agreement.py",
    "tests/pipeline/",
)
SHORT = {
    "epochs: {quick: 2, default: 8, best: 12}": "epochs: 1",
    "channels: {quick: [16, 32], default: [16, 32, 64], best: [32, 64, 64, 128]}": "channels: [8, 16]",
    "checkpoint: 5.0": "checkpoint: 0.2",
    "threads: 2": "threads: 1",  # the tests run in two processes, and threads that wait for a busy core cost seconds
}


def has(version: ModelVersion, run: Run) -> bool:
    """Say whether a version has the model of a run."""
    return bool(version.tags["mlflow.digits.model"] == run.data.tags["mlflow.digits.model"])


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
        """Return all runs, the newest first."""
        if not self.server and not (self.root / self.database).exists():
            return []  # looking would create it
        experiment = self.client.get_experiment_by_name("mnist")
        assert experiment
        return list(self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))

    def assert_complete(self, run: Run) -> None:
        """Assert that the run has the params, metrics, files and model that are in the working directory."""
        train, test = self.json("metrics/train.json"), self.json("metrics/test.json")
        export, count = self.json("metrics/export.json"), self.json("metrics/dataset.json")["validation.count"]
        wrong = 1 - train["validation_accuracy"]
        expected = {
            "error/validation": 100 * wrong,
            "error/train": 100 * (1 - train["train_accuracy"]),
            "error/test": 100 * (1 - test["accuracy"]),
            "error/test_low": 100 * (1 - test["accuracy_high"]),
            "error/test_high": 100 * (1 - test["accuracy_low"]),
            "errors/validation": wrong * count,
            "errors/test": test["errors"],
            "loss/train": train["train_loss"],
            "loss/validation": train["validation_loss"],
            "loss/test": test["loss"],
            "loss/test_calibrated": test["calibrated.loss"],
            "probability/calibration_error": test["calibration_error"],
            "probability/calibration_error_calibrated": test["calibrated.calibration_error"],
            "probability/temperature": test["calibrated.temperature"],
            "schedule/epochs": train["epochs"],
            "schedule/kept_epoch": train["kept_epoch"],
            "size/parameters": train["parameters"],
            "size/test_images": test["count"],
            "recall/macro_f1": test["macro_f1"],
        }
        expected |= {f"recall/{label}": test[f"recall.{label}"] for label in range(10)}
        if "reviewed.accuracy" in test:
            expected |= {"error/test_reviewed": 100 * (1 - test["reviewed.accuracy"])}
            expected |= {"errors/test_reviewed": test["reviewed.errors"]}
            expected |= {"size/test_images_reviewed": test["reviewed.count"]}
        for name in ("onnx", "pt2"):
            expected[f"export/{name}_error"] = 100 * (1 - export[f"{name}.accuracy"])
            expected[f"size/{name}_bytes"] = export[f"{name}.bytes"]
            expected[f"export/{name}_difference"] = export[f"{name}.max_abs_difference"]
        rates = {"schedule/learning_rate": run.data.metrics["schedule/learning_rate"]}
        measured = {key: value for key, value in run.data.metrics.items() if key != "time/training_seconds"}
        assert measured == pytest.approx(expected | rates, abs=1e-6)
        knobs = params.load(networks.check, path=self.root / "params.yaml").flat()
        others = {"model.resnet", "model.mlp", "model.linear", "model.cnn"} - {f"model.{knobs['model.name']}"}
        used = {key: str(value) for key, value in knobs.items() if key.rpartition(".")[0] not in others}
        assert run.data.params == used
        assert run.info.status == "FINISHED"
        assert self.description(run).startswith(f"**{100 * wrong:.2f} % validation error (95 % interval ")
        steps = [metric.step for metric in self.client.get_metric_history(run.info.run_id, "loss/train")]
        assert steps == list(range(1, int(run.data.params["train.epochs"]) + 1))
        files = {
            file.path
            for folder in (None, "metrics", "models", "models/export", "plots")
            for file in self.client.list_artifacts(run.info.run_id, folder)
            if not file.is_dir
        }
        pictures = ("training", "augmentation", "confusion", "recall", "misclassified", "reliability", "robustness")
        assert files == {
            *(f"metrics/{name}.json" for name in ("train", "test", "evidence", "export")),
            *("models/model.safetensors", "models/export/model.onnx", "models/export/model.pt2"),
            *(f"plots/{name}.csv" for name in ("training", "confusion", "validation", "robustness")),
            *(f"{name}.png" for name in (*pictures, "embedding")),
            "MODEL_CARD.md",
        }
        (version,) = (one for one in self.client.search_model_versions("name='mnist-classifier'") if has(one, run))
        assert version.tags.keys() == {"mlflow.digits.model", "champion"}
        figures, verdict = str(version.description).split("\n\n")
        assert self.description(run).startswith(f"**{figures}**; {verdict}")
        assert json.loads(self.artifact(run, "provenance/outputs.json")) == self.locked()

    def description(self, run: Run) -> str:
        return str(run.data.tags["mlflow.note.content"])

    def artifact(self, run: Run, path: str) -> bytes:
        """Return the content of a run's artifact."""
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run.info.run_id, path, folder)).read_bytes()

    def locked(self) -> dict[str, str]:
        """Return the MD5 of every output by path, according to dvc.lock."""
        stages = yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))["stages"].values()
        return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}

    def outputs(self) -> dict[str, str]:
        """Return the MD5 of every output by path, from the files themselves."""
        return {path: md5(self.root / path) for path in self.locked()}

    def edit(self, old: str, new: str) -> None:
        """Replace a text in params.yaml."""
        path = self.root / "params.yaml"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    @property
    def aside(self) -> Path:
        """Where `finished` has put a copy of itself in which nothing runs, so that no file goes while it is copied."""
        return self.root.with_name("aside")

    def copy(self, root: Path, *, logged: bool = False) -> "Project":
        """Copy what `finished` has set aside: with results and DVC's cache, and with its run in MLflow if `logged`."""
        left = () if logged else ("mlflow.db", "mlartifacts")
        shutil.copytree(self.aside, root, ignore=shutil.ignore_patterns(*left))
        return Project(root)

    def restore(self) -> None:
        """Return to what is committed."""
        if self.run("git", "status", "--porcelain").stdout:
            self.run("git", "checkout", "--quiet", ".")
            self.run("dvc", "checkout", "--quiet")


def start(root: Path) -> Project:
    """Make a repository, with a short training, of the files that git tracks or would track, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
    project = Project(root)
    for long, short in SHORT.items():
        project.edit(long, short)
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message=start")
    return project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A repository as a newcomer has it after `dvc repro` and a commit of its results. Nobody changes this one.

    The processes of pytest-xdist share it.
    """
    folder = tmp_path_factory.getbasetemp()
    root = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "finished"
    done = root.with_name("finished.done")
    with FileLock(root.with_name("finished.lock")):
        if not done.exists():
            for folder in (root, Project(root).aside):
                shutil.rmtree(folder, ignore_errors=True)
            project = start(root)
            project.run("dvc", "repro", measured=True)
            project.run("git", "add", "--all")
            project.run("git", "commit", "--quiet", "--message=results")
            shutil.copytree(root, project.aside)
            for left in (".dvc/tmp", ".dvc/cache/runs"):  # so that an experiment in a copy is run and not restored
                shutil.rmtree(project.aside / left)
            done.touch()
    return Project(root)


@pytest.fixture(scope="module")
def workshop(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of it for the tests of one file."""
    return finished.copy(tmp_path_factory.mktemp("workshop") / "project")


@pytest.fixture
def project(workshop: Project) -> Project:
    """The file's copy, put back in order before each test."""
    workshop.restore()
    return workshop


@pytest.fixture
def copy(finished: Project, tmp_path: Path) -> Project:
    """A copy for one test."""
    return finished.copy(tmp_path / "copy")


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch) -> Callable[[Project], None]:
    """Return a function after which this process works in a project as a process started there would."""

    def change(project: Project) -> None:
        monkeypatch.chdir(project.root)
        monkeypatch.setattr(pipeline, "ROOT", project.root)
        for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
            monkeypatch.delenv(name, raising=False)

    return change


@pytest.fixture
def call(enter: Callable[[Project], None], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command of `python -m digits` in this process and returns what it prints.

    In a process of its own, it would spend most of its time importing torch and mlflow.
    """

    def run(project: Project, *words: str) -> str:
        enter(project)
        capsys.readouterr()
        dispatch(list(words))
        return capsys.readouterr().out

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take the longest first, so that no process is left with one when the others are done.

    While the first process runs the pipeline for `finished`, the others have tests that do not wait for it.
    """

    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((place for place, part in enumerate(FIRST) if part in path), len(FIRST))

    items.sort(key=rank)
