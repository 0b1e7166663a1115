import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from digits import data, lineage, params, paths, training, tune
from digits.command import UserError
from digits.files import write_json

from .conftest import ROOT, Change, bars
from .pipeline.servers import postgres

SETTINGS = {
    "recipe": "quick",
    "model.name": "linear",
    "train.epochs": 2,
    "train.batch_size": 16,
    "runtime.threads": 1,
    "runtime.device": "cpu",
}
SEARCH: dict[str, Any] = {
    "study": "bars",
    "trials": 6,
    "seed": 0,
    "settings": SETTINGS,
    "space": {"train.learning_rate": {"low": 1e-6, "high": 0.1, "log": True}, "train.optimizer": ["sgd", "adamw"]},
}


@pytest.fixture
def project(change: Change, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small splits, the repository's params.yaml and a small search."""
    change({})
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    data.save(bars(96), paths.TRAIN)
    data.save(bars(48, seed=1), paths.VALIDATION)
    write_json(paths.DATASET_METRICS, {"pixel_mean": 0.2, "pixel_std": 0.3})
    write_search({})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    return Path.cwd()


def write_search(changes: dict[str, Any]) -> None:
    tune.SEARCH.write_text(yaml.safe_dump(SEARCH | changes), encoding="utf-8")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> optuna.Study:
    monkeypatch.setattr(sys, "argv", ["tune", *arguments])
    tune.main()
    return optuna.load_study(study_name="bars", storage="sqlite:///tuning/studies.db")


@pytest.mark.usefixtures("project")
def test_search_begins_with_what_is_there_finds_better_and_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run(monkeypatch, "-S", "train.learning_rate=1e-6", "--trials", "3")
    assert study.trials[0].params == {"train.learning_rate": 1e-6, "train.optimizer": "sgd"}
    assert len(study.trials) == 3
    study = run(monkeypatch, "-S", "train.learning_rate=1e-6")
    assert len(study.trials) == 6
    assert study.best_value > (study.trials[0].value or 0)
    said = capsys.readouterr().out
    assert f"best: trial {study.best_trial.number}, {study.best_value:.2%} of validation images" in said
    assert f"-S train.optimizer={study.best_params['train.optimizer']}" in said
    assert "-S recipe=quick" in said
    assert {path.name for path in Path("tuning/bars").iterdir()} == {"history.png", "importance.png"}
    before = Path("params.yaml").read_text(encoding="utf-8")
    assert before == (ROOT / "params.yaml").read_text(encoding="utf-8")


@pytest.mark.usefixtures("project")
def test_search_comes_out_the_same_again_with_and_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = optuna.samplers.TPESampler()._n_startup_trials + 4  # so many are drawn at random, the others learn
    whole = run(monkeypatch, "--trials", str(trials))
    Path("tuning/studies.db").unlink()
    for count in (2, trials):
        again = run(monkeypatch, "--trials", str(count))
    assert [(one.params, one.values) for one in again.trials] == [(one.params, one.values) for one in whole.trials]
    assert len({one.params["train.learning_rate"] for one in whole.trials}) == trials


@pytest.mark.usefixtures("project")
def test_best_values_are_written_and_comments_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path("params.yaml").read_text(encoding="utf-8")
    study = run(monkeypatch, "--write")
    after = Path("params.yaml").read_text(encoding="utf-8")
    p = params.load()
    assert (p.recipe, p.model.name, p.train.epochs) == ("quick", "linear", 2)
    assert p.train.learning_rate == float(f"{study.best_params['train.learning_rate']:.4g}")
    assert "epochs: {quick: 2, default: 8, best: 12}" in after
    assert before.count("#") == after.count("#")
    changed = sum(one != other for one, other in zip(before.splitlines(), after.splitlines(), strict=True))
    assert changed <= len(SETTINGS) + 2


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"space": {"train.rate": [1, 2]}}, "space.train.rate: no knob of that name"),
        ({"space": {"runtime.threads": [1, 2]}}, "space.runtime.threads: no knob of that name"),
        ({"space": {"train.momentum": {"low": 0.9, "high": 0.1}}}, "space.train.momentum.low: must be below high, 0.1"),
        ({"space": {"train.momentum": {"low": 0.9, "hgh": 1}}}, "space.train.momentum.high: missing"),
        ({"space": {"train.momentum": 0.9}}, "space.train.momentum: must be a valid dictionary"),
        (
            {"space": {"train.momentum": {"low": 0.0, "high": 0.1, "log": True}}},
            "space.train.momentum.low: must be above",
        ),
        ({"space": {"train.optimizer": []}}, "space.train.optimizer: must have a choice, or a range"),
        (
            {"space": {"train.optimizer": ["sgd", "adam"]}},
            "space.train.optimizer: must be 'sgd' or 'adamw', not 'adam'",
        ),
        (
            {"space": {"train.momentum": {"low": 0.9, "high": 1.0}}},
            "space.train.momentum: must be less than 1, not 1.0",
        ),
        ({"space": {"model.cnn.crop": {"low": 0, "high": 9}}}, "space.model.cnn.crop: must be less than or equal to 8"),
        ({"space": {}}, "space: "),
        ({"trials": 0}, "trials: must be greater than or equal to 1, not 0"),
        ({"trails": 3}, "trails: unknown key; known there: study, trials, seed, settings, space"),
        ({"settings": {"train.epoch": 3}}, ""),
    ],
)
@pytest.mark.usefixtures("project")
def test_wrong_search_is_refused_with_its_place(
    changes: dict[str, Any], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_search(changes)
    with pytest.raises(UserError) as refusal:
        run(monkeypatch)
    assert str(refusal.value).startswith(f"search.yaml: {fault}" if fault else "params.yaml: train.epoch: no knob")


@pytest.mark.usefixtures("project")
def test_study_is_gone_on_with_only_as_it_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ("train.learning_rate=1e-6", "train.epochs=1"):
        run(monkeypatch, "--trials", "2")
        with pytest.raises(UserError, match=rf"^study bars: was begun with {option.split('=')[0]} .*--study$"):
            run(monkeypatch, "--trials", "2", "-S", option)
        run(monkeypatch, "--trials", "2", "-S", option, "--study", option)
        assert len(optuna.load_study(study_name=option, storage="sqlite:///tuning/studies.db").trials) == 2
    write_search({"space": {"train.optimizer": ["sgd"]}})
    with pytest.raises(UserError, match=r"space\.train\.learning_rate low=1e-06 high=0\.1 log=True, not free"):
        run(monkeypatch)
    write_search({})
    data.save(bars(48, seed=2), paths.VALIDATION)
    with pytest.raises(UserError, match=r"was begun with data/splits/validation\.safetensors [0-9a-f]{32}, not "):
        run(monkeypatch)


@pytest.mark.usefixtures("project")
def test_choices_may_be_lists_and_come_back_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SETTINGS | {"model.name": "mlp", "model.cnn.channels": [8, 16]}
    write_search({"settings": settings, "space": {"model.mlp.hidden": [[4], [128, 64]]}, "trials": 3})
    study = run(monkeypatch, "--write")
    assert study.trials[0].params == {"model.mlp.hidden": "[128, 64]"}
    said = capsys.readouterr().out
    best = yaml.safe_load(study.best_params["model.mlp.hidden"])
    assert f"-S 'model.mlp.hidden={best}'" in said
    assert "-S 'model.cnn.channels.quick=[8, 16]'" in said
    written = params.load().flat()
    assert (written["model.mlp.hidden"], written["model.cnn.channels"]) == (best, [8, 16])
    assert "default: [16, 32, 64]" in Path("params.yaml").read_text(encoding="utf-8")


@pytest.mark.usefixtures("project")
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^--storage: nonsense://x cannot be used: "):
        run(monkeypatch, "--storage", "nonsense://x")
    with pytest.raises(UserError, match=r"^--trials: must be 1 or more, not 0"):
        run(monkeypatch, "--trials", "0")
    paths.TRAIN.unlink()
    with pytest.raises(UserError, match=r"train\.safetensors: not there yet; `dvc repro preprocess` makes it"):
        run(monkeypatch)
    tune.SEARCH.unlink()
    with pytest.raises(UserError, match=r"^search\.yaml: cannot be read here"):
        run(monkeypatch)


@pytest.mark.usefixtures("project")
def test_training_that_diverges_is_a_bad_trial_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    write_search({"space": {"train.learning_rate": [1e30, 0.05]}, "trials": 8})
    study = run(monkeypatch)
    states = {trial.params["train.learning_rate"]: trial.state.name for trial in study.trials}
    assert states == {1e30: "PRUNED", 0.05: "COMPLETE"}
    assert study.best_params["train.learning_rate"] != 1e30


@pytest.mark.usefixtures("project")
def test_trial_is_worth_the_epoch_that_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any, **__: Any) -> Iterator[training.Epoch]:
        for number, accuracy in enumerate((0.5, 0.9, 0.8), 1):
            yield training.Epoch(number, 1.0, 1.0, 0.5, accuracy, 0.1)

    monkeypatch.setattr(training, "fit", fit)
    write_search({"space": {"train.keep": ["last", "best"]}, "trials": 6})
    assert {trial.params["train.keep"]: trial.value for trial in run(monkeypatch).trials} == {"last": 0.8, "best": 0.9}


@pytest.mark.usefixtures("project")
def test_search_in_which_everything_diverges_ends_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    write_search({"space": {"train.learning_rate": [1e30, 1e31]}, "trials": 2})
    with pytest.raises(UserError, match=r"^study bars: no trial came to its end"):
        run(monkeypatch)


@pytest.mark.usefixtures("project")
def test_database_that_is_lost_ends_the_search_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any, **__: Any) -> Any:
        Path("tuning/studies.db").write_bytes(b"nothing that SQLite knows" * 1000)
        yield training.Epoch(1, 1.0, 1.0, 0.5, 0.5, 0.1)

    monkeypatch.setattr(training, "fit", fit)
    with pytest.raises(UserError, match=r"^--storage: sqlite:///tuning/studies\.db is lost: .*; start again to go on$"):
        run(monkeypatch)


@pytest.mark.usefixtures("project")
def test_trials_are_runs_under_the_run_of_the_study(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{project / 'runs.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(lineage, "uncommitted", bytes)
    study = run(monkeypatch, "--trials", "3", "-S", "train.learning_rate=1e-6")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mnist")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (found for found in runs if "study" in found.data.tags)
    trials = [found for found in runs if found.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(found.data.tags["trial"] for found in trials) == ["0", "1", "2"]
    assert {found.info.status for found in runs} == {"FINISHED"}
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"history.png", "importance.png"}
    for found in trials:
        trial = study.trials[int(found.data.tags["trial"])]
        assert found.data.params["train.learning_rate"] == str(float(f"{trial.params['train.learning_rate']:.4g}"))
        assert found.data.metrics["validation_accuracy"] == trial.value


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a database for studies: a file of SQLite's, or a PostgreSQL that asks for a password."""
    if request.param == "sqlite":
        yield "sqlite:///tuning/studies.db"
        return
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with postgres() as (database, passwords):
        monkeypatch.setenv("PGPASSFILE", str(passwords))
        yield database


def test_two_processes_share_a_study_and_the_trial_of_a_killed_one_is_tried_again(project: Path, storage: str) -> None:
    write_search({"trials": 12, "settings": SETTINGS | {"train.epochs": 30}})
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from digits import training, tune
fit = training.fit
training.fit = lambda *a, **k: (time.sleep(0.05) or epoch for epoch in fit(*a, **k))  # long enough to be killed in
tune.HEARTBEAT = 1
tune.main()
"""
    command = [sys.executable, "-c", code, "--storage", storage]
    processes = [
        subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)
    ]

    def trials() -> list[optuna.trial.FrozenTrial]:
        try:
            return optuna.load_study(study_name="bars", storage=storage).trials
        except Exception:
            return []

    def both_at_work() -> bool:
        found = trials()
        running = [trial for trial in found if trial.state.name == "RUNNING" and trial.params]
        return len(running) == 2 and len(found) > 2

    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        if both_at_work():
            os.kill(processes[0].pid, signal.SIGSTOP)
            if both_at_work():  # still, and the one that stands has a trial for certain
                break
            os.kill(processes[0].pid, signal.SIGCONT)
    os.kill(processes[0].pid, signal.SIGKILL)
    os.kill(processes[1].pid, signal.SIGSTOP)
    time.sleep(4)  # until the killed one has given no sign of life for longer than three heartbeats
    os.kill(processes[1].pid, signal.SIGCONT)
    said = processes[1].communicate(timeout=300)[0].decode()
    assert processes[1].returncode == 0, said
    assert processes[0].wait() < 0
    processes[0].stdout and processes[0].stdout.close()
    found = trials()
    assert sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in found) >= 12
    (lost,) = (trial for trial in found if trial.state.name in ("FAIL", "RUNNING"))
    assert lost.state.name == "FAIL"
    (again,) = (trial for trial in found if trial.system_attrs.get("failed_trial") == lost.number)
    assert again.params == lost.params
    assert again.state.is_finished()
