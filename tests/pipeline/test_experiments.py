"""Experiments as a person makes them: change, run over seeds, compare, decide."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from digits.errors import UserError

from .conftest import DIGITS, Project

pytestmark = pytest.mark.slow
LINEAR = ("seeds", "linear", "-S", "model.name=linear")
Call = Callable[..., str]


@pytest.fixture(scope="module")
def laboratory(workshop: Project) -> Project:
    """A copy with experiments: two seeds each of a network and of a linear one, the latter at once.

    Seed 0 of the network is HEAD, and is not trained again.
    """
    done = workshop.run(*DIGITS, "seeds", "cnn", "--count", "2")
    assert "| cnn | 2 | " in done.stdout
    return workshop


@pytest.fixture(scope="module")
def row(laboratory: Project) -> dict[str, Any]:
    """What the seeds of the linear network come to."""
    row: dict[str, Any] = json.loads(laboratory.run(*DIGITS, *LINEAR, "--count", "2", "--jobs", "2", "--json").stdout)
    return row


@pytest.fixture
def compare(laboratory: Project, row: dict[str, Any], call: Call) -> Callable[..., dict[str, Any]]:
    assert row

    def run(*arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(call(laboratory, "compare", *arguments, "--format", "json"))
        return found

    return run


def test_row_of_seeds_is_the_mean_of_their_experiments(laboratory: Project, row: dict[str, Any]) -> None:
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


def test_seeds_are_run_from_the_stage_that_they_change_and_logged_to_the_same_place(
    laboratory: Project, row: dict[str, Any]
) -> None:
    assert row
    done = laboratory.run("dvc", "queue", "logs", "linear-seed-1").stdout
    assert "Stage 'preprocess' didn't change, skipping" in done
    runs = {run.info.run_name: run for run in laboratory.mlflow_runs()}
    assert runs.keys() == {"cnn-seed-1", "linear-seed-0", "linear-seed-1"}
    for seed in range(2):
        run = runs[f"linear-seed-{seed}"]
        assert run.data.params["seed"] == str(seed)
        assert run.data.params["model.name"] == "linear"
        assert run.info.status == "FINISHED"


@pytest.mark.stress  # that what was run before is not trained again is also seen of cnn-seed-0, above
def test_seed_that_was_run_before_is_restored_and_not_trained_again(laboratory: Project, row: dict[str, Any]) -> None:
    done = laboratory.run(*DIGITS, *LINEAR, "--count", "1", "--json")
    assert json.loads(done.stdout)["test_mean"] in (pytest.approx(row["test_low"]), pytest.approx(row["test_high"]))
    assert "> python -m" not in laboratory.run("dvc", "queue", "logs", "linear-seed-0").stdout


def test_network_against_a_linear_one_is_better_beyond_doubt(compare: Callable[..., dict[str, Any]]) -> None:
    found = compare("linear-seed-1", "cnn-seed-1")  # seed 0 of the cnn is HEAD, and was not trained here
    assert found["validation"]["verdict"] == "better"
    assert found["validation"]["p"] < 1e-6
    assert len(found["validation"]["fixed"]) > 10 * len(found["validation"]["broken"])
    assert found["params"] == {"model.name": ["linear", "cnn"]}
    assert found["first"]["cost"]["parameters"] == 7850
    assert found["second"]["cost"]["seconds"] > 0
    assert found["data"] == {}
    back = compare("cnn-seed-1", "linear-seed-1")
    assert back["words"].startswith("worse: ")


def test_seeds_of_one_recipe_are_no_evidence(compare: Callable[..., dict[str, Any]]) -> None:
    found = compare("cnn-seed-0", "cnn-seed-1")
    assert found["words"].startswith("no evidence of a difference at this sample size: ")
    assert found["params"] == {"seed": ["0", "1"]}


def test_patterns_and_lists_are_compared_across_seeds(compare: Callable[..., dict[str, Any]]) -> None:
    found = compare("linear-seed-*", "cnn-seed-0,cnn-seed-1")
    assert found["validation"]["test"] == "Welch, across seeds"
    assert found["validation"]["verdict"] == "better"
    assert found["seeds"] == [2, 2]


def test_commit_workspace_run_and_experiment_of_the_same_result_are_the_same(
    laboratory: Project, compare: Callable[..., dict[str, Any]]
) -> None:
    run = next(run for run in laboratory.mlflow_runs() if run.data.tags.get("dvc_experiment") == "cnn-seed-1")
    assert compare()["validation"]["p"] == 1  # HEAD and workspace
    assert compare("cnn-seed-1", run.info.run_id)["validation"]["fixed"] == []
    assert compare("HEAD", "cnn-seed-0")["params"] == {}  # its seed is that of params.yaml


@pytest.mark.usefixtures("row")
def test_report_and_picture_for_a_person(laboratory: Project, tmp_path: Path) -> None:
    picture = tmp_path / "changed.png"
    arguments = ("linear-seed-0", "cnn-seed-0", "--picture", str(picture))
    shown = laboratory.run(*DIGITS, "compare", *arguments).stdout
    for part in ("A: experiment linear-seed-0", "B is better: +", "Validation images that changed sides", "McNemar"):
        assert part in shown
    assert picture.stat().st_size > 10_000


@pytest.mark.usefixtures("row")
@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("compare none-* HEAD", "none-*: no DVC experiment has such a name"),
        ("compare cnn-seed-0,linear-seed-0 HEAD", "differ by more than their seed"),
        ("compare cnn-seed-* HEAD", "2 against 1 results: must be one of each, or two seeds or more of each"),
        ("seeds x --count 0", "--count, --grid, --jobs: must be 1 or more"),
        ("seeds x --jobs 0", "--count, --grid, --jobs: must be 1 or more"),
        ("seeds x -S train.epoch=3", "params.yaml: train.epoch: no knob of that name"),
        ("seeds x -S train.epochs=abc", "params.yaml: train.epochs: must be a valid integer, not 'abc'"),
        ("seeds x -S model.mlp.dropout=1.5", "params.yaml: model.mlp.dropout: must be less than 1"),
    ],
)
def test_mistake_is_one_line(laboratory: Project, call: Call, command: str, fault: str) -> None:
    with pytest.raises(UserError) as caught:
        call(laboratory, *command.split())
    assert fault in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (
            ("compare", "nothing", "HEAD"),
            "nothing: no MLflow run, DVC experiment, git revision or model file of this name",
        ),
        (("seeds", "x y"), "'x y': must be a name of letters"),
    ],
)
def test_mistake_on_the_command_line_is_one_line(laboratory: Project, command: tuple[str, ...], fault: str) -> None:
    done = laboratory.run(*DIGITS, *command, fails=True)
    assert done.returncode == 1
    assert fault in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
