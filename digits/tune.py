"""Search for better params with Optuna, by validation accuracy:

    python -m digits.tune [--trials 30] [-S train.epochs=3 ...] [--storage URL] [--write]

search.yaml names the knobs and their ranges. TPE (Bergstra et al., 2011, NeurIPS) proposes; after each epoch a trial
that is in the last quarter of the others at that epoch is given up. The first trial has the params as they are. Trials
train on the splits that `dvc repro` has made; the test split is not touched. Each becomes a run in MLflow, under one
for the study.

The study lies in a database, by default `tuning/studies.db`: stop it and start it again, or start it in several
processes, or with `--storage postgresql://…` on several machines, and they share the trials. One that was killed is
tried again by another. At the end stands the `dvc exp run` that makes a result of the best trial; `--write` puts it
into params.yaml.

Needs the extra `tune`: `uv pip install optuna`.
"""

import argparse
import io
import os
import shlex
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import yaml
from pydantic import Field
from tqdm import tqdm

from digits import data, figures, models, params, paths, runtime, tracking, training
from digits.command import UserError, run
from digits.files import read_json, write_text
from digits.params import Count, Section, Seed

if TYPE_CHECKING:
    import optuna

SEARCH = Path("search.yaml")
FOLDER = Path("tuning")
KEPT = 75.0  # percent of the trials that go on after each epoch
HEARTBEAT = 10  # seconds between two signs of life of a process; after three without, its trial is tried again


class Range(Section):
    """The values from `low` to `high`, both included; whole numbers if both are; `log`: even in the exponent."""

    low: int | float
    high: int | float
    log: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


class Search(Section):
    """The content of search.yaml; in `space`, by knob, a list of choices or a `Range`."""

    study: Annotated[str, Field(min_length=1)]
    trials: Count
    seed: Seed
    settings: dict[str, Any]
    space: Annotated[dict[str, Any], Field(min_length=1)]


def load() -> Search:
    """Read search.yaml. Raises UserError with a line for each fault."""
    search = params.check(Search, params.read(Search, SEARCH), SEARCH)
    known = [key for key in params.load().flat() if key.split(".")[0] in params.OF_RECIPES]
    faults: list[str] = []
    space: dict[str, list[Any] | Range] = {}
    for key, value in search.space.items():
        if key not in known:
            faults.append(f"{SEARCH}: space.{key}: no knob of that name; known are {', '.join(known)}")
        elif isinstance(value, list):
            space[key] = value
        else:
            domain = space[key] = params.check(Range, value, SEARCH, ("space", key))
            if domain.low >= domain.high:
                faults.append(f"{SEARCH}: space.{key}.low: must be below high, {domain.high}, not {domain.low}")
            elif domain.log and domain.low <= 0:
                faults.append(f"{SEARCH}: space.{key}.low: must be above 0 where log is true, not {domain.low}")
    if faults:
        raise UserError("\n".join(faults))
    return search.model_copy(update={"space": space})


def suggest(trial: "optuna.Trial", space: dict[str, list[Any] | Range]) -> dict[str, Any]:
    """Give a value for each knob of the space."""
    found: dict[str, Any] = {}
    for key, domain in space.items():
        if isinstance(domain, list):
            found[key] = trial.suggest_categorical(key, domain)
        elif isinstance(domain.low, int) and isinstance(domain.high, int):
            found[key] = trial.suggest_int(key, domain.low, domain.high, log=domain.log)
        else:
            found[key] = trial.suggest_float(key, domain.low, domain.high, log=domain.log)
    return found


class Trials:
    """Trains a network for each trial: `study.optimize(Trials(search, changes))`."""

    def __init__(self, search: Search, changes: dict[str, Any]) -> None:
        self._search, self._changes = search, search.settings | changes
        p = params.load(changes=self._changes)
        self.device = runtime.prepare(p.runtime.device, p.runtime.threads, p.runtime.reproducibility)
        try:
            self._splits = data.load(paths.TRAIN), data.load(paths.VALIDATION)
            self._pixels = read_json(paths.DATASET_METRICS)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: not there yet; `dvc repro preprocess` makes it") from None

    def start(self) -> dict[str, Any]:
        """Give the values that the knobs of the space have without a search, those that it holds."""
        flat = params.load(changes=self._changes).flat()
        return {key: flat[key] for key, domain in self._search.space.items() if flat[key] in domain}

    def __call__(self, trial: "optuna.Trial") -> float:
        import optuna

        p = params.load(changes=self._changes | suggest(trial, self._search.space))
        models.check(p.model.model_extra or {})
        torch.manual_seed(runtime.derive(p.seed, "weights"))
        pixels, classes = self._pixels, self._splits[0].classes
        network = models.build(p.model.name, len(classes), p.model.knobs(), pixels["pixel_mean"], pixels["pixel_std"])
        precision = runtime.precision_of(p.runtime.precision, self.device, p.runtime.reproducibility)
        with tracking.Trial(p, self.device, self._search.study, trial.number) as live:
            try:
                for epoch in training.fit(
                    network, *self._splits, p.seed, p.train, p.augmentation, p.runtime.batch_size, self.device,
                    precision=precision,
                ):  # fmt: skip
                    live.log(asdict(epoch))
                    trial.report(epoch.validation_accuracy, epoch.epoch)
                    if trial.should_prune():
                        raise optuna.TrialPruned
            except UserError as error:  # it diverged: a bad place to search, and nobody's mistake
                raise optuna.TrialPruned(str(error)) from None
        return epoch.validation_accuracy


def study_of(search: Search, storage: str) -> "optuna.Study":
    """Give the study of this name, made if need be. Raises UserError if the database cannot be used."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if storage.startswith("sqlite:///"):
        Path(storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        database = optuna.storages.RDBStorage(
            storage,
            heartbeat_interval=HEARTBEAT,
            grace_period=3 * HEARTBEAT,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2),
        )
        return optuna.create_study(
            storage=database,
            study_name=search.study,
            direction="maximize",
            load_if_exists=True,
            # Seeded anew for each start, or processes that share a study would all propose the same.
            sampler=optuna.samplers.TPESampler(seed=search.seed + os.getpid(), multivariate=True, constant_liar=True),
            pruner=optuna.pruners.PercentilePruner(KEPT, n_startup_trials=5),
        )
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(f"--storage: {storage} cannot be used: {str(error).splitlines()[0][:200]}") from None


def finished(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """Give the trials that came to an end: complete, or given up."""
    from optuna.trial import TrialState

    return list(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def search_on(study: "optuna.Study", trials: Trials, count: int) -> None:
    """Run trials until the study has `count` that came to an end, those of other processes counted."""
    with tqdm(total=count, initial=min(count, len(finished(study))), unit="trial", disable=None) as bar:

        def progress(study: "optuna.Study", _trial: Any) -> None:
            done = finished(study)
            bar.update(min(count, len(done)) - bar.n)
            values = [trial.value for trial in done if trial.value is not None]
            bar.set_postfix_str(f"best {max(values):.2%}" if values else "")
            if len(done) >= count:
                study.stop()

        if bar.n < count:
            study.optimize(trials, callbacks=[progress], catch=())


def assignments(values: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Give what `dvc exp run -S` takes for these values."""
    everything = settings | values
    return [
        f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}" for key, value in everything.items()
    ]


def write(values: dict[str, Any]) -> None:
    """Put values into params.yaml, of which comments and everything else stay as they are."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes, editor.width = True, 4096
    content = editor.load(params.PATH.read_text(encoding="utf-8"))
    for key, value in values.items():
        *sections, name = key.split(".")
        node = content
        for section in sections:
            node = node[section]
        if isinstance(node[name], dict):  # one value for each recipe
            node, name = node[name], content["recipe"]
        node[name] = value
    text = io.StringIO()
    editor.dump(content, text)
    write_text(params.PATH, text.getvalue())


def report(study: "optuna.Study", search: Search, settings: dict[str, Any]) -> dict[str, Any]:
    """Draw the history and the importance of each knob, print the best trial; give its values."""
    import optuna

    done = [trial for trial in finished(study) if trial.value is not None]
    if not done:
        raise UserError(f"{search.study}: no trial came to an end")
    best = study.best_trial
    folder = FOLDER / search.study
    history = [(trial.number, trial.value, trial.state.name == "COMPLETE") for trial in done if trial.value is not None]
    figures.search_history(history, folder / "history.png")
    pictures = [folder / "history.png"]
    complete = [trial for trial in done if trial.state.name == "COMPLETE"]
    if len({trial.value for trial in complete}) > 1:
        shares = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=search.seed)
        )
        figures.importance(shares, folder / "importance.png")
        pictures.append(folder / "importance.png")
    tracking.record_study(search.study, pictures)
    print(f"\n{len(done)} trials, {len(done) - len(complete)} of them given up early")
    print(f"best: trial {best.number}, {best.value:.2%} of validation images")
    for key, value in best.params.items():
        print(f"  {key}: {value}")
    print(f"pictures: {', '.join(map(str, pictures))}")
    arguments = " ".join(f"-S {shlex.quote(one)}" for one in assignments(best.params, settings))
    print(f"\nto make a result of it:\ndvc exp run {arguments}")
    return dict(best.params)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m digits.tune", description="Search for better params.")
    parser.add_argument("--trials", type=int, help="in all (default: that of search.yaml)")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help="as of dvc exp run")
    parser.add_argument("--storage", default=f"sqlite:///{FOLDER}/studies.db", help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="put the best values into params.yaml")
    arguments = parser.parse_args()
    try:
        import optuna  # noqa: F401  # the extra
    except ImportError:
        raise UserError("python -m digits.tune needs Optuna: `uv pip install optuna`") from None
    search = load()
    changes = params.assigned(arguments.set_param)
    settings = search.settings | changes
    trials = Trials(search, changes)
    study = study_of(search, arguments.storage)
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(trials.start(), skip_if_exists=True)
    search_on(study, trials, arguments.trials or search.trials)
    best = report(study, search, settings)
    if arguments.write:
        write(settings | best)
        print(f"\n{params.PATH} has them now; `git diff {params.PATH}` shows what changed")


if __name__ == "__main__":
    run(main)
