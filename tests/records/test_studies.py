import platform
from pathlib import Path

import optuna
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from digits import params
from digits.learning import networks, runtime
from digits.records import studies
from digits.records.names import KEY
from digits.records.studies import TrialRun

from .conftest import EPOCH, experiment


def trial(study: str, number: int = 0) -> TrialRun:
    p = params.load(networks.check)
    return TrialRun(p, runtime.recorded(p.runtime, torch.device("cpu")), study, number)


def study_and_trials(client: MlflowClient, study: str) -> tuple[Run, list[Run]]:
    """Return the run of a study and those of its trials, by number."""
    runs = client.search_runs([experiment(client)])
    (parent,) = (run for run in runs if run.data.tags.get("study") == study)
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, sorted(below, key=lambda run: int(run.data.tags["trial"]))


def test_trials_are_runs_under_the_one_of_their_study_which_ends_with_pictures(
    client: MlflowClient, tmp_path: Path
) -> None:
    for number in range(2):
        with trial("two", number) as live:
            live.log(EPOCH)
    parent, trials = study_and_trials(client, "two")
    assert parent.info.status == "RUNNING"
    assert [run.info.run_name for run in trials] == ["two trial 0", "two trial 1"]
    for run in trials:
        assert run.info.status == "FINISHED"
        assert run.data.params["train.epochs"] == "2"
        assert run.data.metrics["error/validation"] == 20
    (tmp_path / "history.png").write_bytes(b"picture")
    studies.finish("two", [tmp_path / "history.png"])
    parent, _ = study_and_trials(client, "two")
    assert parent.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["history.png"]


@pytest.mark.parametrize(
    ("error", "status", "pruned"),
    [
        (optuna.TrialPruned(), "FINISHED", "behind the other trials"),
        (optuna.TrialPruned("it diverged"), "FINISHED", "it diverged"),
        (KeyboardInterrupt(), "KILLED", None),
    ],
)
def test_trial_that_ends_early_says_why(
    client: MlflowClient, error: BaseException, status: str, pruned: str | None
) -> None:
    name = f"early {type(error).__name__} {error}"
    with pytest.raises(type(error)), trial(name):
        raise error
    _, (run,) = study_and_trials(client, name)
    assert run.info.status == status
    assert run.data.tags.get("pruned") == pruned


@pytest.mark.usefixtures("miniature")
def test_unusable_database_costs_a_line_and_no_trial(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with trial("lost") as live:
        live.log(EPOCH)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("MLflow at http://127.0.0.1:9 cannot be used: ")
    assert line.endswith("; the search continues without a record there")


def test_search_that_is_stopped_does_not_stay_running_until_it_is_resumed(client: MlflowClient) -> None:
    with trial("stopped") as live:
        live.log(EPOCH)
    studies.stop("stopped")
    assert study_and_trials(client, "stopped")[0].info.status == "KILLED"
    with trial("stopped", 1):
        assert study_and_trials(client, "stopped")[0].info.status == "RUNNING"
    studies.finish("stopped", [])
    assert study_and_trials(client, "stopped")[0].info.status == "FINISHED"


def test_search_that_was_killed_is_marked_by_the_next_trial_of_another(client: MlflowClient) -> None:
    with trial("killed"):
        pass
    parent, _ = study_and_trials(client, "killed")
    client.set_tag(parent.info.run_id, f"{KEY}process", "elsewhere 1 0.00")
    with trial("another"):
        assert study_and_trials(client, "killed")[0].info.status == "RUNNING"  # of another machine: nobody knows
    client.set_tag(parent.info.run_id, f"{KEY}process", f"{platform.node()} {2**22} 0.00")
    with trial("another", 1):
        assert study_and_trials(client, "killed")[0].info.status == "KILLED"
