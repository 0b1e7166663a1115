"""Search for better params with Optuna, by validation accuracy:

    python -m digits.tune [--study NAME] [--trials 30] [-S train.epochs=3 ...] [--storage URL] [--write]

search.yaml names the knobs and their ranges. TPE (Bergstra et al., 2011, NeurIPS) proposes; after each epoch a trial
that is in the last quarter of the others at that epoch is given up. The first trial has the params as they are. Trials
train on the splits that `dvc repro` has made; the test split is not touched. Each becomes a run in MLflow, under one
for the study.

The study lies in a database, by default `tuning/studies.db`: stop it and start it again, or start it in several
processes, or with `--storage postgresql://…` on several machines, and they share the trials. One that was killed is
tried again by another. A search of one process comes out the same every time. At the end stands the `dvc exp run` that
makes a result of the best trial; `--write` puts it into params.yaml.

Needs the extra `tune`: `uv pip install optuna`.
"""

import argparse
import io
import json
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
from digits.files import flatten, md5, read_json, write_text
from digits.params import Count, Params, Section, Seed

if TYPE_CHECKING:
    import optuna

SEARCH = Path("search.yaml")
FOLDER = Path("tuning")
KEPT = 75.0  # percent of the trials that go on after each epoch
HEARTBEAT = 10  # seconds between two signs of life of a process; after three without, its trial is tried again
BEGUN_WITH = "begun_with"  # attribute of a study: what its trials have in common
Space = dict[str, "list[Any] | Range"]


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


def load(study: str | None, settings: dict[str, Any]) -> Search:
    """Read search.yaml; `study` is another name than its own, `settings` are more than its own.

    Raises UserError with a line for each fault.
    """
    search = params.check(Search, params.read(Search, SEARCH), SEARCH)
    known = [key for key in params.load().flat() if key.split(".")[0] in params.OF_RECIPES]
    faults: list[str] = []
    space: Space = {}
    for key, value in search.space.items():
        if key not in known:
            faults.append(f"{SEARCH}: space.{key}: no knob of that name; known are {', '.join(known)}")
        elif isinstance(value, list):
            space[key] = value
            if not value:
                faults.append(f"{SEARCH}: space.{key}: must have a choice, or a range from low to high")
        else:
            domain = space[key] = params.check(Range, value, SEARCH, ("space", key))
            if domain.low >= domain.high:
                faults.append(f"{SEARCH}: space.{key}.low: must be below high, {domain.high}, not {domain.low}")
            elif domain.log and domain.low <= 0:
                faults.append(f"{SEARCH}: space.{key}.low: must be above 0 where log is true, not {domain.low}")
    if faults:
        raise UserError("\n".join(faults))
    more = {"study": study or search.study, "settings": search.settings | settings}
    return search.model_copy(update={"space": space, **more})


def suggest(trial: "optuna.Trial", space: Space) -> dict[str, Any]:
    """Give a value for each knob of the space."""
    found: dict[str, Any] = {}
    for key, domain in space.items():
        if isinstance(domain, list):
            found[key] = trial.suggest_categorical(key, [_stored(choice) for choice in domain])
        elif isinstance(domain.low, int) and isinstance(domain.high, int):
            found[key] = trial.suggest_int(key, domain.low, domain.high, log=domain.log)
        else:
            found[key] = trial.suggest_float(key, domain.low, domain.high, log=domain.log)
    return values(found, space)


def _stored(choice: Any) -> Any:
    """Give a choice as Optuna can keep it: a list, as of channels, as text."""
    return json.dumps(choice) if isinstance(choice, list) else choice


def values(stored: dict[str, Any], space: Space) -> dict[str, Any]:
    """Give the values of knobs that a trial has as Optuna keeps them; numbers with four digits, which is plenty."""
    found = {}
    for key, value in stored.items():
        domain = space[key]
        if isinstance(domain, list):
            found[key] = next(choice for choice in domain if _stored(choice) == value)
        else:
            found[key] = float(f"{value:.4g}") if isinstance(value, float) else value
    return found


class Trials:
    """Trains a network for each trial: `study.optimize(Trials(search))`.

    Raises UserError if the splits are missing, or the space has a value that its knob may not have.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._content = params.read(Params, params.PATH)  # once: whoever edits the file now changes no trial
        p = self._params({})
        faults = []
        for key, domain in search.space.items():
            for value in domain if isinstance(domain, list) else (domain.low, domain.high):
                try:
                    self._params({key: value})
                except UserError as error:
                    faults.append(f"{SEARCH}: space.{key}: {str(error).removeprefix(f'{params.PATH}: {key}: ')}")
        if faults:
            raise UserError("\n".join(faults))
        self.device = runtime.prepare(p.runtime.device, p.runtime.threads, p.runtime.reproducibility)
        try:
            self._splits = data.load(paths.TRAIN), data.load(paths.VALIDATION)
            self._pixels = read_json(paths.DATASET_METRICS)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: not there yet; `dvc repro preprocess` makes it") from None

    def _params(self, chosen: dict[str, Any]) -> Params:
        p = params.assemble(self._content, self._search.settings | chosen)
        models.check(p.model.model_extra or {})
        return p

    def start(self) -> dict[str, Any]:
        """Give the values that the knobs of the space have without a search, those that it holds."""
        flat = self._params({}).flat()
        return {key: _stored(flat[key]) for key, domain in self._search.space.items() if flat[key] in domain}

    def in_common(self) -> dict[str, str]:
        """Give what all trials of the study share, as text: the space, params outside it, and the images."""
        search = self._search
        common = {f"space.{key}": str(domain) for key, domain in search.space.items()}
        for key, value in self._params({}).flat().items():
            named = key in search.settings or key not in search.space
            if named and key.split(".")[0] in ("recipe", "seed", *params.OF_RECIPES):
                common[key] = str(value)
        return common | {path.as_posix(): md5(path) for path in (paths.TRAIN, paths.VALIDATION)}

    def __call__(self, trial: "optuna.Trial") -> float:
        import optuna

        pixels, classes = self._pixels, self._splits[0].classes
        p = self._params(suggest(trial, self._search.space))
        precision = runtime.precision_of(p.runtime.precision, self.device, p.runtime.reproducibility)
        reached = []
        with tracking.Trial(p, self.device, self._search.study, trial.number) as live:
            try:
                torch.manual_seed(runtime.derive(p.seed, "weights"))
                network = models.build(
                    p.model.name, len(classes), p.model.knobs(), pixels["pixel_mean"], pixels["pixel_std"]
                )
                for epoch in training.fit(
                    network, *self._splits, p.seed, p.train, p.augmentation, p.runtime.batch_size, self.device,
                    precision=precision,
                ):  # fmt: skip
                    live.log(asdict(epoch))
                    reached.append(epoch.validation_accuracy)
                    trial.report(epoch.validation_accuracy, epoch.epoch)
                    if trial.should_prune():
                        raise optuna.TrialPruned
            except UserError as error:  # no room for so many convolutions, or it diverged: bad, and nobody's mistake
                raise optuna.TrialPruned(str(error)) from None
        return max(reached) if p.train.keep == "best" else reached[-1]


def _sampler(seed: int) -> "optuna.samplers.BaseSampler":
    """Give a TPE whose draws depend on `seed` and on the number of the trial alone.

    So a search of one process comes out the same again, also after a break, and two that share a study never draw the
    same.
    """
    from optuna.samplers import TPESampler

    class Sampler(TPESampler):
        def before_trial(self, study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
            super().__init__(seed=runtime.derive(seed, f"trial {trial.number}") % 2**32)
            super().before_trial(study, trial)

    return Sampler()


def study_of(search: Search, storage: str, in_common: dict[str, str]) -> "optuna.Study":
    """Give the study of this name, made if need be.

    Raises UserError if the database cannot be used, or the study is there and its trials have other things in common.
    """
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
        study = optuna.create_study(
            storage=database,
            study_name=search.study,
            direction="maximize",
            load_if_exists=True,
            sampler=_sampler(search.seed),
            pruner=optuna.pruners.PercentilePruner(KEPT, n_startup_trials=5),
        )
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(f"--storage: {storage} cannot be used: {str(error).splitlines()[0][:200]}") from None
    begun = study.user_attrs.get(BEGUN_WITH)
    if not begun:
        study.set_user_attr(BEGUN_WITH, in_common)
    elif begun != in_common:
        keys = [key for key in {**begun, **in_common} if begun.get(key) != in_common.get(key)]
        differences = ", ".join(f"{key} {begun.get(key, 'free')}, not {in_common.get(key, 'free')}" for key in keys)
        raise UserError(f"study {search.study}: was begun with {differences}; give this one another name with --study")
    return study


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
            reached = [trial.value for trial in done if trial.value is not None]
            bar.set_postfix_str(f"best {max(reached):.2%}" if reached else "")
            if len(done) >= count:
                study.stop()

        if bar.n < count:
            study.optimize(trials, callbacks=[progress], catch=())


def assignments(chosen: dict[str, Any]) -> list[str]:
    """Give what `dvc exp run -S` takes for these values."""
    content = params.read(Params, params.PATH)
    recipe, known = chosen.get("recipe", content["recipe"]), flatten(content)
    found = []
    for key, value in chosen.items():
        # In place of one value for each recipe DVC takes a scalar, but no list.
        name = f"{key}.{recipe}" if isinstance(value, list) and f"{key}.{recipe}" in known else key
        found.append(f"{name}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
    return found


def write(chosen: dict[str, Any]) -> None:
    """Put values into params.yaml, of which comments and everything else stay as they are."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq

    editor = YAML()
    editor.preserve_quotes, editor.width = True, 4096
    content = editor.load(params.PATH.read_text(encoding="utf-8"))
    recipe = chosen.get("recipe", content["recipe"])
    for key, value in chosen.items():
        *sections, name = key.split(".")
        node = content
        for section in sections:
            node = node[section]
        if isinstance(node[name], dict):  # one value for each recipe
            node, name = node[name], recipe
        if isinstance(value, list):
            value = CommentedSeq(value)
            value.fa.set_flow_style()
        node[name] = value
    text = io.StringIO()
    editor.dump(content, text)
    write_text(params.PATH, text.getvalue())


def report(study: "optuna.Study", search: Search) -> dict[str, Any]:
    """Draw the history and the importance of each knob, print the best trial; give its values.

    Raises UserError if there is none.
    """
    import optuna

    done = [trial for trial in finished(study) if trial.value is not None]
    complete = [trial for trial in done if trial.state.name == "COMPLETE"]
    if not complete:
        raise UserError(f"study {search.study}: no trial came to its end; all diverged or were given up")
    best = study.best_trial
    chosen = values(best.params, search.space)
    folder = FOLDER / search.study
    history = [(trial.number, trial.value, trial.state.name == "COMPLETE") for trial in done if trial.value is not None]
    figures.search_history(history, folder / "history.png")
    pictures = [folder / "history.png"]
    if len({trial.value for trial in complete}) > 1:
        shares = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=search.seed)
        )
        figures.importance(shares, folder / "importance.png")
        pictures.append(folder / "importance.png")
    tracking.record_study(search.study, pictures)
    print(f"\n{len(done)} trials, {len(done) - len(complete)} of them given up early")
    print(f"best: trial {best.number}, {best.value:.2%} of validation images")
    for key, value in chosen.items():
        print(f"  {key}: {value}")
    print(f"pictures: {', '.join(map(str, pictures))}")
    arguments = " ".join(f"-S {shlex.quote(one)}" for one in assignments(search.settings | chosen))
    print(f"\nto make a result of it:\ndvc exp run {arguments}")
    return search.settings | chosen


def _lost(error: BaseException | None) -> str | None:
    """Give what the database said if it is the reason of an error, which Optuna 5.0 hides behind one of its own."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    while error and not isinstance(error, StorageInternalError | SQLAlchemyError):
        error = error.__context__
    return str(error.__cause__ or error).splitlines()[0][:200] if error else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m digits.tune", description="Search for better params.")
    parser.add_argument("--study", metavar="NAME", help="go on with this study, or begin it (default: search.yaml's)")
    parser.add_argument("--trials", type=int, help="in all (default: that of search.yaml)")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help="as of dvc exp run")
    parser.add_argument("--storage", default=f"sqlite:///{FOLDER}/studies.db", help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="put the best values into params.yaml")
    arguments = parser.parse_args()
    try:
        import optuna  # noqa: F401  # the extra
    except ImportError:
        raise UserError("python -m digits.tune needs Optuna: `uv pip install optuna`") from None
    search = load(arguments.study, params.assigned(arguments.set_param))
    count = search.trials if arguments.trials is None else arguments.trials
    if count < 1:
        raise UserError(f"--trials: must be 1 or more, not {count}")
    trials = Trials(search)
    study = study_of(search, arguments.storage, trials.in_common())
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(trials.start(), skip_if_exists=True)
    try:
        search_on(study, trials, count)
        best = report(study, search)
    except Exception as error:
        if not (reason := _lost(error)):
            raise
        raise UserError(f"--storage: {arguments.storage} is lost: {reason}; start again to go on") from None
    if arguments.write:
        write(best)
        print(f"\n{params.PATH} has them now; `git diff {params.PATH}` shows what changed")


if __name__ == "__main__":
    run(main)
