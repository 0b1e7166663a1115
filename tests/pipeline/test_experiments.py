"""Experiments as a person makes them: change, run over seeds, compare, decide."""

import json
import re
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from .conftest import Project


@pytest.fixture(scope="module")
def laboratory(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone with experiments: two seeds each of a network and of a linear one."""
    laboratory = finished.copy(tmp_path_factory.mktemp("laboratory") / "clone")
    for name, settings in (("cnn", []), ("linear", ["-S", "model.name=linear"])):
        done = laboratory.run("python", "-m", "digits.seeds", name, "--count", "2", *settings)
        assert f"| {name} | 2 | " in done.stdout
    return laboratory


def compare(project: Project, *arguments: str) -> dict:  # type: ignore[type-arg]  # JSON
    found: dict = json.loads(project.run("python", "-m", "digits.compare", *arguments, "--format", "json").stdout)  # type: ignore[type-arg]
    return found


def test_row_of_seeds_is_the_mean_of_their_experiments(laboratory: Project) -> None:
    done = laboratory.run("python", "-m", "digits.seeds", "linear", "--count", "2", "-S", "model.name=linear", "--json")
    row = json.loads(done.stdout)  # a second call runs nothing again, and gives the same
    assert "> python -m" not in laboratory.run("dvc", "queue", "logs", "linear-seed-1").stdout
    shown = json.loads(laboratory.run("dvc", "exp", "show", "--json").stdout)
    accuracies = {
        experiment["name"]: 100 * experiment["revs"][0]["data"]["metrics"]["metrics/test.json"]["data"]["accuracy"]
        for experiment in shown[1]["experiments"]
    }
    of_linear = [accuracies[f"linear-seed-{seed}"] for seed in range(2)]
    assert row["test_mean"] == pytest.approx(sum(of_linear) / 2)
    assert (row["test_low"], row["test_high"]) == (pytest.approx(min(of_linear)), pytest.approx(max(of_linear)))
    assert row["seeds"] == 2
    assert row["seconds"] > 0


def test_seeds_are_run_from_the_stage_that_they_change(laboratory: Project) -> None:
    done = laboratory.run("dvc", "queue", "logs", "linear-seed-1").stdout
    assert "Stage 'preprocess' didn't change, skipping" in done


def test_network_against_a_linear_one_is_better_beyond_doubt(laboratory: Project) -> None:
    found = compare(laboratory, "linear-seed-1", "cnn-seed-1")  # seed 0 of the cnn is HEAD, and was not trained here
    assert found["validation"]["verdict"] == "better"
    assert found["validation"]["p"] < 1e-6
    assert len(found["validation"]["fixed"]) > 10 * len(found["validation"]["broken"])
    assert found["params"] == {"model.name": ["linear", "cnn"]}
    assert found["first"]["cost"]["parameters"] == 7850
    assert found["second"]["cost"]["seconds"] > 0
    assert found["data"] == {}
    back = compare(laboratory, "cnn-seed-1", "linear-seed-1")
    assert back["words"].startswith("worse: ")


def test_seeds_of_one_recipe_are_no_evidence(laboratory: Project) -> None:
    found = compare(laboratory, "cnn-seed-0", "cnn-seed-1")
    assert found["words"].startswith("no evidence of a difference at this sample size: ")
    assert found["params"] == {"seed": ["0", "1"]}


def test_patterns_and_lists_are_compared_across_seeds(laboratory: Project) -> None:
    found = compare(laboratory, "linear-seed-*", "cnn-seed-0,cnn-seed-1")
    assert found["validation"]["test"] == "Welch, across seeds"
    assert found["validation"]["verdict"] == "better"
    assert found["seeds"] == [2, 2]


def test_commit_workspace_run_and_experiment_of_the_same_result_are_the_same(laboratory: Project) -> None:
    run = next(run for run in laboratory.mlflow_runs() if run.data.tags.get("dvc_experiment") == "cnn-seed-1")
    assert compare(laboratory)["validation"]["p"] == 1  # HEAD and workspace
    assert compare(laboratory, "cnn-seed-1", run.info.run_id)["validation"]["fixed"] == []
    assert compare(laboratory, "HEAD", "cnn-seed-0")["params"] == {}  # its seed is that of params.yaml


def test_report_and_picture_for_a_person(laboratory: Project, tmp_path: Path) -> None:
    picture = tmp_path / "changed.png"
    arguments = ("linear-seed-0", "cnn-seed-0", "--picture", str(picture))
    shown = laboratory.run("python", "-m", "digits.compare", *arguments).stdout
    for part in ("A: experiment linear-seed-0", "B is better: +", "Validation images that changed sides", "McNemar"):
        assert part in shown
    assert picture.stat().st_size > 10_000
    markdown = laboratory.run("python", "-m", "digits.compare", *arguments[:2], "--format", "markdown").stdout
    assert "**B is better: +" in markdown


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (("compare", "nothing", "HEAD"), "nothing: there is no MLflow run, DVC experiment, git revision or model file"),
        (("compare", "none-*", "HEAD"), "none-*: no DVC experiment has such a name"),
        (("compare", "cnn-seed-0,linear-seed-0", "HEAD"), "differ by more than their seed"),
        (("compare", "cnn-seed-*", "HEAD"), "2 against 1 results: must be one of each, or two seeds or more of each"),
        (("seeds", "x", "--count", "0"), "--count, --jobs: must be 1 or more"),
        (("seeds", "x y"), "dvc exp run: "),
        (("seeds", "x", "-S", "train.epoch=3"), "params.yaml: train.epoch: no knob of that name"),
        (("seeds", "x", "-S", "train.epochs=abc"), "params.yaml: train.epochs: must be a valid integer, not 'abc'"),
        (("seeds", "x", "-S", "model.mlp.dropout=1.5"), "params.yaml: model.mlp.dropout: must be less than 1"),
    ],
)
def test_mistake_is_one_line(laboratory: Project, command: tuple[str, ...], fault: str) -> None:
    done = laboratory.run("python", "-m", f"digits.{command[0]}", *command[1:], fails=True)
    assert done.returncode == 1
    assert fault in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_seed_that_fails_is_named_with_where_its_reason_stands(laboratory: Project) -> None:
    done = laboratory.run(
        "python", "-m", "digits.seeds", "wild", "--count", "1", "-S", "train.learning_rate=1e30", fails=True
    )
    assert "wild-seed-0: failed; `dvc queue logs wild-seed-0` says why" in done.stderr
    assert "training diverged" in laboratory.run("dvc", "queue", "logs", "wild-seed-0").stdout


def test_seed_whose_worker_is_killed_is_run_again(laboratory: Project) -> None:
    with ThreadPoolExecutor() as pool:
        # Of a network that the run cache does not know: it has to be trained.
        command = ("python", "-m", "digits.seeds", "hit", "--count", "1", "-S", "model.name=mlp")
        under_way = pool.submit(laboratory.run, *command)
        while not re.search(r"\bhit-seed-0\b.*Running", laboratory.run("dvc", "queue", "status").stdout):
            assert not under_way.done()
        ours = [
            process
            for process in psutil.process_iter(["cmdline", "cwd"])
            if process.info["cwd"] == str(laboratory.root)
        ]
        worker = next(process for process in ours if "queue-worker" in (process.info["cmdline"] or ()))
        for process in (worker, *worker.children(recursive=True)):
            process.kill()
        assert "| hit | 1 | " in under_way.result(timeout=240).stdout


def test_grid_of_the_readme_tries_every_combination(laboratory: Project) -> None:
    lines = (laboratory.root / "README.md").read_text().splitlines()
    grid = next(line for line in lines if line.startswith("dvc exp run --queue --name rates"))
    laboratory.run(*shlex.split(grid))
    names = [f"rates-{place}" for place in range(1, 5)]
    laboratory.run("sh", "-c", "dvc queue start --jobs 1 > /dev/null 2>&1")  # its worker would keep our pipe open
    for _ in range(300):
        status = laboratory.run("dvc", "queue", "status").stdout
        if all(re.search(rf"\b{name}\b.*Success", status) for name in names):
            break
        assert "Failed" not in "".join(line for line in status.splitlines() if "rates" in line)
        time.sleep(1)
    shown = json.loads(laboratory.run("dvc", "exp", "show", "--json").stdout)
    tried = {
        (content["train"]["learning_rate"], content["model"]["cnn"]["dropout"])
        for experiment in shown[1]["experiments"]
        if experiment["name"] in names
        for content in [experiment["revs"][0]["data"]["params"]["params.yaml"]["data"]]
    }
    assert tried == {(0.1, 0.0), (0.1, 0.1), (0.2, 0.0), (0.2, 0.1)}
