"""Searches -> MLflow: a run for each trial, under one for the study."""

import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from digits.learning.curve import Epoch
from digits.params import Params
from digits.records import runs, store
from digits.records.names import KEY

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOST = "the search continues without a record there"


class TrialRun:
    """The run of one trial: `with TrialRun(…) as live: live.log(epoch)`. TrialPruned is not a failure."""

    def __init__(self, p: Params, environment: dict[str, str], study: str, number: int) -> None:
        self._params, self._environment, self._study, self._number = p, environment, study, number
        self._run_id: str | None = None

    def __enter__(self) -> "TrialRun":
        if not store.is_off():
            with store.survival(LOST):
                client, experiment = store.connect()
                runs.clear_up(client, experiment)
                tags = {"mlflow.parentRunId": _run_of(client, experiment, self._study), "trial": str(self._number)}
                name = f"{self._study} trial {self._number}"
                self._run_id = runs.create(client, experiment, self._params, self._environment, name, **tags)
        return self

    def log(self, epoch: Epoch) -> None:
        """Log one epoch."""
        if self._run_id:
            with store.survival(LOST):
                runs.log_epochs(store.connect()[0], self._run_id, [epoch])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._run_id:
            with store.survival(LOST):
                client, _ = store.connect()
                pruned = kind is not None and kind.__name__ == "TrialPruned"
                if pruned:
                    client.set_tag(self._run_id, "pruned", str(error) or "behind the other trials")
                client.set_terminated(self._run_id, "FINISHED" if kind is None or pruned else "KILLED")


def finish(study: str, pictures: list[Path]) -> None:
    """Add pictures to the run of a study, and end it."""
    if not store.is_off():
        with store.survival(LOST):
            client, experiment = store.connect()
            run_id = _run_of(client, experiment, study)
            for path in pictures:
                client.log_artifact(run_id, str(path))
            client.set_terminated(run_id)


def stop(study: str) -> None:
    """Mark the run of a study as killed, until it is resumed."""
    if not store.is_off():
        with store.survival(LOST):
            client, experiment = store.connect()
            client.set_terminated(_run_of(client, experiment, study), "KILLED")


def _run_of(client: "MlflowClient", experiment: str, study: str) -> str:
    """Return the id of the run that stands for a study, created or resumed if need be."""
    process = {f"{KEY}process": runs.process_name()}
    with store.lock("study"):  # of two processes that begin a study at once, the second sees what the first made
        found = client.search_runs([experiment], f"tags.study = '{study}'", max_results=1)
        if not found:
            tags = {"study": study, "mlflow.user": getpass.getuser(), **process}
            return str(client.create_run(experiment, tags=tags, run_name=f"study {study}").info.run_id)
        run_id = str(found[0].info.run_id)
        for key, value in process.items():  # of the processes that share a study, that of the newest trial
            client.set_tag(run_id, key, value)
        client.update_run(run_id, "RUNNING")
        return run_id
