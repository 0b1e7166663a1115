"""Search for better params with Optuna, by validation accuracy."""

import io
import json
import re
import shlex
import warnings
from argparse import ArgumentParser
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import AfterValidator, Field
from tqdm import tqdm

from digits import params, paths
from digits.errors import UserError, public, reason, shown
from digits.files import flatten, md5, write_text
from digits.images import splits
from digits.learning import networks, runtime, streams, training
from digits.params import Params
from digits.params.reading import OF_RECIPES, Count, Section, Seed, read, validated
from digits.records import store, studies

if TYPE_CHECKING:
    import optuna

SEARCH = Path("search.yaml")
FOLDER = Path("tuning")
STORAGE = f"sqlite:///{FOLDER}/studies.db"
KEPT = 75.0  # percent of the trials that continue after each epoch
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


def _name(study: str) -> str:
    if not re.fullmatch(r"\w[\w.=+-]{0,99}", study):  # it names a folder, and is looked up in MLflow
        raise ValueError("must be a name of letters, digits and _.=+-, of up to 100 characters")
    return study


class Search(Section):
    """The content of search.yaml; in `space`, by knob, a list of choices or a `Range`."""

    study: Annotated[str, AfterValidator(_name)]
    trials: Count
    seed: Seed
    settings: dict[str, Any]
    space: Annotated[dict[str, Any], Field(min_length=1)]


def load(study: str | None, settings: dict[str, Any]) -> Search:
    """Read search.yaml; `study` overrides its name, `settings` add to its own.

    Raises UserError with a line for each fault.
    """
    search = validated(Search, read(Search, SEARCH), SEARCH)
    known = [key for key in params.load(networks.check).flat() if key.split(".")[0] in OF_RECIPES]
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
            domain = space[key] = validated(Range, value, SEARCH, ("space", key))
            if domain.low >= domain.high:
                faults.append(f"{SEARCH}: space.{key}.low: must be below high, {domain.high}, not {domain.low}")
            elif domain.log and domain.low <= 0:
                faults.append(f"{SEARCH}: space.{key}.low: must be above 0 where log is true, not {domain.low}")
    for where, own in ((f"{SEARCH}: settings.", search.settings), ("-S ", settings)):
        made = [key for key in own if key.split(".")[0] in ("data", "split")]
        faults += [
            f"{where}{key}: cannot differ between trials, which share the splits in {paths.TRAIN.parent}; "
            "set it in params.yaml, and run `dvc repro preprocess`"
            for key in made
        ]
    if faults:
        raise UserError("\n".join(faults))
    if study is not None:
        try:
            _name(study)
        except ValueError as error:
            raise UserError(f"--study: {error}, not {shown(study)}") from None
    more = {"study": study or search.study, "settings": search.settings | settings}
    return search.model_copy(update={"space": space, **more})


def suggest(trial: "optuna.Trial", space: Space) -> dict[str, Any]:
    """Return a value for each knob of the space."""
    found: dict[str, Any] = {}
    for key, domain in space.items():
        if isinstance(domain, list):
            found[key] = trial.suggest_categorical(key, [_stored(choice) for choice in domain])
        elif isinstance(domain.low, int) and isinstance(domain.high, int):
            found[key] = trial.suggest_int(key, domain.low, domain.high, log=domain.log)
        else:
            found[key] = trial.suggest_float(key, domain.low, domain.high, log=domain.log)
    return {key: value_of(stored) for key, stored in found.items()}


def _stored(choice: Any) -> Any:
    """Return a choice as Optuna can store it: a list, as of channels, as text."""
    return json.dumps(choice) if isinstance(choice, list) else choice


def value_of(stored: Any) -> Any:
    """Return the value of a knob that Optuna has stored; a number with four digits, which is plenty."""
    if isinstance(stored, float):
        return float(f"{stored:.4g}")
    return json.loads(stored) if str(stored).startswith("[") else stored


class Objective:
    """Trains a network for each of Optuna's trials: `study.optimize(Objective(search))`.

    Raises UserError if the splits are missing, or the space has a value that its knob may not have.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._content = read(Params, params.PATH)  # once: editing the file now changes no trial
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
        self.device = runtime.prepare(p.runtime)
        if missing := [path for path in (paths.TRAIN, paths.VALIDATION, paths.DATASET_METRICS) if not path.exists()]:
            raise UserError(f"{missing[0]}: not there yet; `dvc repro preprocess` makes it")
        self._splits = splits.load(paths.TRAIN), splits.load(paths.VALIDATION)

    def _params(self, chosen: dict[str, Any]) -> Params:
        return params.assemble(self._content, networks.check, self._search.settings | chosen)

    def start(self) -> dict[str, Any]:
        """Return the values that the knobs of the space have without a search, where it contains them."""
        flat = self._params({}).flat()
        return {key: _stored(flat[key]) for key, domain in self._search.space.items() if flat[key] in domain}

    def in_common(self) -> dict[str, str]:
        """Return what all trials of the study share, as text: the space, params outside it, and the images."""
        search = self._search
        common = {f"space.{key}": str(domain) for key, domain in search.space.items()}
        for key, value in self._params({}).flat().items():
            named = key in search.settings or key not in search.space
            if named and key.split(".")[0] in ("recipe", "seed", *OF_RECIPES):
                common[key] = str(value)
        return common | {path.as_posix(): md5(path) for path in (paths.TRAIN, paths.VALIDATION)}

    def __call__(self, trial: "optuna.Trial") -> float:
        import optuna

        reached = []
        try:
            p = self._params(suggest(trial, self._search.space))
            with studies.TrialRun(
                p, runtime.recorded(p.runtime, self.device), self._search.study, trial.number
            ) as live:
                for epoch in training.begin(p, *self._splits, self.device).epochs():
                    live.log(epoch)
                    reached.append(epoch.validation_accuracy)
                    trial.report(epoch.validation_accuracy, epoch.epoch)
                    if trial.should_prune():
                        raise optuna.TrialPruned
        except UserError as error:  # knobs that contradict each other, or it diverged: a bad trial, nobody's mistake
            raise optuna.TrialPruned(str(error)) from None
        return max(reached) if p.train.keep == "best" else reached[-1]


def _sampler(seed: int) -> "optuna.samplers.BaseSampler":
    """Return a TPE whose draws depend on `seed` and on the trial's number alone.

    So a search of one process can be repeated, also with a break, and two that share a study never draw the same.
    """
    from optuna.samplers import TPESampler

    class Sampler(TPESampler):
        def before_trial(self, study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
            super().__init__(seed=streams.derive(seed, f"trial {trial.number}") % 2**32)
            super().before_trial(study, trial)

    return Sampler()


def study_of(search: Search, storage: str, in_common: dict[str, str]) -> "optuna.Study":
    """Return the study of this name, created if need be.

    Raises UserError if the database cannot be used, or the study's trials have other things in common.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    store.reject_network_folder(storage, "--storage")
    if storage.startswith("sqlite:///"):
        Path(storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        again = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2)
        pulse: dict[str, Any] = {"heartbeat_interval": HEARTBEAT, "grace_period": 3 * HEARTBEAT}
        database = optuna.storages.RDBStorage(storage, heartbeat_stale_trial_callback=again, **pulse)
        what: dict[str, Any] = {"study_name": search.study, "direction": "maximize", "load_if_exists": True}
        pruner = optuna.pruners.PercentilePruner(KEPT, n_startup_trials=5)
        study = optuna.create_study(storage=database, sampler=_sampler(search.seed), pruner=pruner, **what)
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(f"--storage: {public(storage)} cannot be used: {reason(error)}") from None
    begun = study.user_attrs.get(BEGUN_WITH, in_common)
    keys = [key for key in {**begun, **in_common} if begun.get(key) != in_common.get(key)]
    if differences := ", ".join(f"{key} {begun.get(key, 'free')}, not {in_common.get(key, 'free')}" for key in keys):
        raise UserError(f"study {search.study}: was begun with {differences}; name another one with --study")
    study.set_user_attr(BEGUN_WITH, in_common)
    return study


def finished(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """Return the trials that came to an end: complete or pruned."""
    from optuna.trial import TrialState

    return list(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def search_on(study: "optuna.Study", objective: Objective, count: int) -> None:
    """Run trials until the study has `count` that came to an end, those of other processes included."""
    with tqdm(total=count, initial=min(count, len(finished(study))), unit="trial", disable=None) as bar:

        def progress(study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
            done = finished(study)
            bar.update(min(count, len(done)) - bar.n)
            reached = [trial.value for trial in done if trial.value is not None]
            bar.set_postfix_str(f"best {max(reached):.2%}" if reached else "")
            value = f" at {trial.value:.2%}" if trial.value is not None else ""
            with bar.external_write_mode():
                print(f"trial {trial.number}: {trial.state.name.lower()}{value}")
            if len(done) >= count:
                study.stop()

        if bar.n < count:
            study.optimize(objective, callbacks=[progress], catch=())


def assignments(chosen: dict[str, Any]) -> list[str]:
    """Return what `dvc exp run -S` takes for these values."""
    content = read(Params, params.PATH)
    recipe, known = chosen.get("recipe", content["recipe"]), flatten(content)
    found = []
    for key, value in chosen.items():
        # DVC cannot replace one value per recipe by a list, only by a scalar.
        name = f"{key}.{recipe}" if isinstance(value, list) and f"{key}.{recipe}" in known else key
        found.append(f"{name}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
    return found


def write(chosen: dict[str, Any]) -> None:
    """Put values into params.yaml, whose comments and everything else stay as they are."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq

    editor = YAML()
    editor.preserve_quotes, editor.width = True, 4096
    content = editor.load(params.PATH.read_text(encoding="utf-8"))
    recipe = chosen.get("recipe", content["recipe"])
    for key, value in chosen.items():
        *sections, name = key.split(".")
        node = reduce(getitem, sections, content)
        if isinstance(node[name], dict):  # one value per recipe
            node, name = node[name], recipe
        node[name] = CommentedSeq(value) if isinstance(value, list) else value
        if isinstance(value, list):
            node[name].fa.set_flow_style()
    text = io.StringIO()
    editor.dump(content, text)
    write_text(params.PATH, text.getvalue())


def report(study: "optuna.Study", search: Search) -> dict[str, Any]:
    """Draw the history and the importance of each knob, print the best trial, and return its values.

    Raises UserError if there is none.
    """
    import optuna

    from digits.reports.figures import tune as figures

    done = finished(study)
    complete = [trial for trial in done if trial.state.name == "COMPLETE"]
    if not complete:
        raise UserError(f"study {search.study}: no trial was completed; all diverged or were pruned")
    best = study.best_trial
    chosen = search.settings | {key: value_of(stored) for key, stored in best.params.items()}
    folder = FOLDER / search.study
    pictures = [folder / "history.png"]
    history = [(trial.number, trial.value, trial.state.name == "COMPLETE") for trial in done if trial.value is not None]
    figures.search_history(history, pictures[0])
    if len({trial.value for trial in complete}) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=search.seed)
        pictures.append(folder / "importance.png")
        figures.importance(optuna.importance.get_param_importances(study, evaluator=evaluator), pictures[1])
    studies.finish(search.study, pictures)
    print(f"\n{len(done)} trials, {len(done) - len(complete)} of them pruned")
    print(f"best: trial {best.number}, validation accuracy {best.value:.2%}")
    for key in best.params:
        print(f"  {key}: {chosen[key]}")
    print(f"pictures: {', '.join(map(str, pictures))}")
    arguments = " ".join(f"-S {shlex.quote(one)}" for one in assignments(chosen))
    print(f"\nto make a result of it:\ndvc exp run {arguments}")
    return chosen


def _lost(error: BaseException | None) -> str | None:
    """Return what the database said if that is the cause of an error, which Optuna 5.0 hides behind its own."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    while error and not isinstance(error, StorageInternalError | SQLAlchemyError):
        error = error.__context__
    return reason(error.__cause__ or error) if error else None


def main(parser: ArgumentParser, words: list[str]) -> None:
    """Search for better params with Optuna, by validation accuracy.

    search.yaml names the knobs and their ranges. TPE (Bergstra et al., 2011, NeurIPS) proposes; the worst quarter of
    the trials is pruned after each epoch. The first trial has the params as they are. Trials train on the splits that
    `dvc repro` has made; the test split is not touched. Each becomes a run in MLflow, under one for the study.

    Stop a study and start it again, or start it in several processes, or with --storage postgresql://… on several
    machines: they share the trials. That of a killed process is tried again. A search of one process can be repeated
    exactly. It ends with the `dvc exp run` that makes a result of the best trial.
    """
    parser.add_argument("--study", metavar="NAME", help="resume this study, or begin it (default: that of search.yaml)")
    parser.add_argument("--trials", type=int, help="how many in all (default: that of search.yaml)")
    about = "change a param for all trials, as in dvc exp run; can be repeated"
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help=about)
    parser.add_argument("--storage", default=STORAGE, help="the database's URL (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the best values into params.yaml")
    arguments = parser.parse_args(words)
    try:
        import optuna  # noqa: F401  # the extra
    except ImportError:
        raise UserError(f"{parser.prog}: needs Optuna: `uv pip install optuna`") from None
    search = load(arguments.study, params.assigned(arguments.set_param))
    count = search.trials if arguments.trials is None else arguments.trials
    if count < 1:
        raise UserError(f"--trials: must be 1 or more, not {count}")
    objective = Objective(search)
    with store.lock("tune"):  # two processes that create the database at once would both fail
        study = study_of(search, arguments.storage, objective.in_common())
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(objective.start(), skip_if_exists=True)
    try:
        search_on(study, objective, count)
        best = report(study, search)
    except BaseException as error:
        studies.stop(search.study)
        if not isinstance(error, Exception) or not (lost := _lost(error)):
            raise
        raise UserError(f"--storage: {public(arguments.storage)} is lost: {lost}; start again to resume") from None
    if arguments.write:
        write(best)
        print(f"\n{params.PATH} has them now; `git diff {params.PATH}` shows what changed")
