import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml

from digits import __main__, errors, params, paths
from digits.errors import UserError
from digits.files import write_json
from digits.images import splits
from digits.learning import networks, training
from digits.learning.curve import Epoch
from digits.records import lineage, store
from digits.tools import tune

from ..conftest import ROOT, Change, bars
from ..pipeline.servers import postgres

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
    """Return a folder with small splits, the repository's params.yaml and a small search; the working directory."""
    change({})
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    parts = {paths.TRAIN: bars(96), paths.VALIDATION: bars(48, seed=1), paths.TEST: bars(3)}
    for path, split in parts.items():
        splits.save(split, path)
    counts = {path.stem: {"count": len(split)} for path, split in parts.items()}
    write_json(paths.DATASET_METRICS, counts | {"pixel_mean": 0.2, "pixel_std": 0.3})
    write_search({})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    return Path.cwd()


def write_search(changes: dict[str, Any]) -> None:
    tune.SEARCH.write_text(yaml.safe_dump(SEARCH | changes), encoding="utf-8")


def run(*arguments: str) -> optuna.Study:
    __main__.dispatch(["tune", *arguments])
    return optuna.load_study(study_name="bars", storage="sqlite:///tuning/studies.db")


def curve(accuracies: Sequence[float]) -> SimpleNamespace:
    """Return what stands in for a training: epochs of these validation accuracies."""
    return SimpleNamespace(
        epochs=lambda: (Epoch(number, 1.0, 1.0, 0.5, value, 0.1) for number, value in enumerate(accuracies, 1))
    )


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_search_begins_with_the_params_as_they_are_finds_better_ones_and_is_resumed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = run("-S", "train.learning_rate=1e-6", "--trials", "3")
    assert study.trials[0].params == {"train.learning_rate": 1e-6, "train.optimizer": "sgd"}
    assert len(study.trials) == 3
    study = run("-S", "train.learning_rate=1e-6")
    assert len(study.trials) == 6
    assert study.best_value > (study.trials[0].value or 0)
    said = capsys.readouterr().out
    assert f"best: trial {study.best_trial.number}, validation accuracy {study.best_value:.2%}" in said
    assert f"-S train.optimizer={study.best_params['train.optimizer']}" in said
    assert "-S recipe=quick" in said
    assert {path.name for path in Path("tuning/bars").iterdir()} == {"history.png", "importance.png"}
    before = Path("params.yaml").read_text(encoding="utf-8")
    assert before == (ROOT / "params.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_search_can_be_repeated_exactly_with_and_without_a_break() -> None:
    trials = optuna.samplers.TPESampler()._n_startup_trials + 4  # so many are drawn at random, the others learn
    whole = run("--trials", str(trials))
    Path("tuning/studies.db").unlink()
    for count in (2, trials):
        again = run("--trials", str(count))
    assert [(one.params, one.values) for one in again.trials] == [(one.params, one.values) for one in whole.trials]
    assert len({one.params["train.learning_rate"] for one in whole.trials}) == trials


@pytest.mark.usefixtures("project")
def test_best_values_are_written_and_comments_stay() -> None:
    before = Path("params.yaml").read_text(encoding="utf-8")
    study = run("--write")
    after = Path("params.yaml").read_text(encoding="utf-8")
    p = params.load(networks.check)
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
def test_wrong_search_is_refused_with_its_place(changes: dict[str, Any], fault: str) -> None:
    write_search(changes)
    with pytest.raises(UserError) as refusal:
        run()
    assert str(refusal.value).startswith(f"search.yaml: {fault}" if fault else "params.yaml: train.epoch: no knob")


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_study_is_resumed_only_as_it_was_begun() -> None:
    for option in ("train.learning_rate=1e-6", "train.epochs=1"):
        run("--trials", "2")
        with pytest.raises(UserError, match=rf"^study bars: was begun with {option.split('=')[0]} .*--study$"):
            run("--trials", "2", "-S", option)
        run("--trials", "2", "-S", option, "--study", option)
        assert len(optuna.load_study(study_name=option, storage="sqlite:///tuning/studies.db").trials) == 2
    write_search({"space": {"train.optimizer": ["sgd"]}})
    with pytest.raises(UserError, match=r"space\.train\.learning_rate low=1e-06 high=0\.1 log=True, not free"):
        run()
    write_search({})
    splits.save(bars(48, seed=2), paths.VALIDATION)
    with pytest.raises(UserError, match=r"was begun with data/splits/validation\.safetensors [0-9a-f]{32}, not "):
        run()


@pytest.mark.usefixtures("project")
def test_choices_may_be_lists_and_are_written_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    settings = SETTINGS | {"model.name": "mlp", "model.cnn.channels": [8, 16]}
    write_search({"settings": settings, "space": {"model.mlp.hidden": [[4], [128, 64]]}, "trials": 3})
    study = run("--write")
    assert study.trials[0].params == {"model.mlp.hidden": "[128, 64]"}
    said = capsys.readouterr().out
    best = yaml.safe_load(study.best_params["model.mlp.hidden"])
    assert f"-S 'model.mlp.hidden={best}'" in said
    assert "-S 'model.cnn.channels.quick=[8, 16]'" in said
    written = params.load(networks.check).flat()
    assert (written["model.mlp.hidden"], written["model.cnn.channels"]) == (best, [8, 16])
    assert "default: [16, 32, 64]" in Path("params.yaml").read_text(encoding="utf-8")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("param", ["split.validation=10", "data.name=kmnist"])
def test_what_made_the_splits_is_no_setting_of_trials(param: str) -> None:
    key, value = param.split("=")
    with pytest.raises(UserError, match=rf"^-S {key}: cannot differ between trials, which share the splits in data/"):
        run("-S", param)
    write_search({"settings": {key: value}})
    with pytest.raises(UserError, match=rf"^search\.yaml: settings\.{key}: cannot differ between trials"):
        run()


@pytest.mark.usefixtures("project")
def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"^--storage: nonsense://x cannot be used: "):
        run("--storage", "nonsense://x")
    with pytest.raises(UserError, match=r"^--trials: must be 1 or more, not 0"):
        run("--trials", "0")
    paths.TRAIN.unlink()
    with pytest.raises(UserError, match=r"train\.safetensors: not there yet; `dvc repro preprocess` makes it"):
        run()
    tune.SEARCH.unlink()
    with pytest.raises(UserError, match=r"^search\.yaml: not found here"):
        run()


@pytest.mark.usefixtures("project")
def test_training_that_diverges_is_a_bad_trial_and_does_not_end_the_search() -> None:
    write_search({"space": {"train.learning_rate": [1e30, 0.05]}, "trials": 8})
    study = run()
    states = {trial.params["train.learning_rate"]: trial.state.name for trial in study.trials}
    assert states == {1e30: "PRUNED", 0.05: "COMPLETE"}
    assert study.best_params["train.learning_rate"] != 1e30


@pytest.mark.usefixtures("project")
def test_trial_is_worth_the_epoch_that_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "begin", lambda *_: curve([0.5, 0.9, 0.8]))
    write_search({"space": {"train.keep": ["last", "best"]}, "trials": 6})
    assert {trial.params["train.keep"]: trial.value for trial in run().trials} == {"last": 0.8, "best": 0.9}


@pytest.mark.usefixtures("project")
def test_only_the_worst_quarter_is_pruned_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [0.5, 0.1, 0.4, 0.2, 0.3]  # all completed: there is little to compare them with
    each = iter([*first, 0.15, 0.25, 0.35])
    monkeypatch.setattr(training, "begin", lambda *_: curve([next(each)] * 2))
    trials = run("--trials", "8").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5 + ["PRUNED", "COMPLETE", "COMPLETE"]
    assert trials[5].intermediate_values == {1: 0.15}


@pytest.mark.usefixtures("project")
def test_each_trial_is_a_line_as_soon_as_it_ends_also_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    source, sink = os.pipe()
    seen = []
    each = iter([[0.5], [0.25], [1e30]])

    def begin(*_: object) -> SimpleNamespace:
        os.write(sink, b"|")  # for there is always something to read
        seen.append(os.read(source, 4096).decode())
        return curve(next(each))

    monkeypatch.setattr(training, "begin", begin)
    monkeypatch.setattr(sys, "argv", ["digits", "tune", "--trials", "3"])
    with monkeypatch.context() as patch, os.fdopen(os.dup(sink), "w") as pipe:
        patch.setattr(sys, "stdout", pipe)
        patch.setattr(errors, "end", lambda: None)  # or it would end this process
        __main__.main()
    assert seen == ["|", "trial 0: complete at 50.00%\n|", "trial 1: complete at 25.00%\n|"]
    os.close(sink)
    os.close(source)


@pytest.mark.usefixtures("project")
def test_search_in_which_everything_diverges_ends_in_a_line() -> None:
    write_search({"space": {"train.learning_rate": [1e30, 1e31]}, "trials": 2})
    with pytest.raises(UserError, match=r"^study bars: no trial was completed; all diverged or were pruned$"):
        run()


@pytest.mark.usefixtures("project")
def test_database_that_is_lost_ends_the_search_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: object) -> SimpleNamespace:
        Path("tuning/studies.db").write_bytes(b"nothing that SQLite knows" * 1000)
        return curve([0.5])

    monkeypatch.setattr(training, "begin", begin)
    with pytest.raises(
        UserError, match=r"^--storage: sqlite:///tuning/studies\.db is lost: .*; start again to resume$"
    ):
        run()


@pytest.mark.slow
def test_trials_are_runs_under_the_run_of_the_study(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{project / 'runs.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(lineage, "uncommitted", lineage.Changes)
    study = run("--trials", "3", "-S", "train.learning_rate=1e-6")
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
        assert found.data.metrics["error/validation"] == pytest.approx(100 - 100 * (trial.value or 0))


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the URL of a database for studies: a file of SQLite's, or a PostgreSQL that asks for a password."""
    if request.param == "sqlite":
        yield "sqlite:///tuning/studies.db"
        return
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with postgres() as (database, passwords):
        monkeypatch.setenv("PGPASSFILE", str(passwords))
        yield database


@pytest.mark.slow
def test_two_processes_may_begin_a_study_at_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = multiprocessing.get_context("fork")
    barrier = processes.Barrier(2)
    prepare = tune.Objective

    def prepare_and_wait(search: tune.Search) -> tune.Objective:
        prepared = prepare(search)
        barrier.wait(60)
        return prepared

    monkeypatch.setattr(tune, "Objective", prepare_and_wait)
    monkeypatch.setattr(tune, "search_on", lambda *_: None)
    monkeypatch.setattr(tune, "report", lambda *_: {})
    for attempt in range(3):
        storage = f"sqlite:///{project}/{attempt}.db"
        both = [processes.Process(target=__main__.dispatch, args=(["tune", "--storage", storage],)) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [0, 0]
        assert len(optuna.load_study(study_name="bars", storage=storage).trials) == 1


# The second trial of each process waits for a file, so that one can be killed in it for certain.
HELD = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from digits.__main__ import dispatch
from digits.learning import training
from digits.tools import tune
begin, begun = training.begin, []
def held(*arguments):
    begun.append(arguments)
    while len(begun) == 2 and not Path("released").exists():
        time.sleep(0.05)
    return begin(*arguments)
training.begin, tune.HEARTBEAT = held, 1
tune.report = lambda *_: {{}}
dispatch(["tune", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_two_processes_share_a_study_and_the_trial_of_a_killed_one_is_tried_again(project: Path, storage: str) -> None:
    write_search({"trials": 4})
    (project / "tuning").mkdir()  # where the test itself looks too
    command = [sys.executable, "-c", HELD, "--storage", storage]
    processes = [
        subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)
    ]

    def trials() -> list[optuna.trial.FrozenTrial]:
        with store.lock("tune"):  # to open a database is to create the tables, as the two processes do
            database = optuna.storages.RDBStorage(storage)
        try:
            return optuna.load_study(study_name="bars", storage=database).trials
        except KeyError:  # not created yet
            return []
        finally:  # a connection that is left open is a warning in whichever test runs when it is collected
            database.engine.dispose()

    def both_are_held() -> bool:
        states = [trial.state.name for trial in trials() if trial.params]
        return states.count("RUNNING") == 2 and len(states) == 4

    deadline = time.monotonic() + 120
    while not both_are_held():
        assert time.monotonic() < deadline
        for process in processes:
            assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.1)
    os.kill(processes[0].pid, signal.SIGKILL)
    assert processes[0].wait() == -signal.SIGKILL
    time.sleep(4)  # until it has missed more than three heartbeats, of whose times SQLite keeps whole seconds
    (project / "released").touch()
    said = processes[1].communicate(timeout=120)[0].decode()
    assert processes[1].returncode == 0, said
    assert processes[0].stdout
    processes[0].stdout.close()
    found = trials()
    assert sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in found) == 4
    (lost,) = (trial for trial in found if not trial.state.is_finished() or trial.state.name == "FAIL")
    assert lost.state.name == "FAIL"
    (again,) = (trial for trial in found if trial.system_attrs.get("failed_trial") == lost.number)
    assert again.params == lost.params
    assert again.state.name in ("COMPLETE", "PRUNED")
