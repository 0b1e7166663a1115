"""One recipe over several seeds, as experiments in DVC's queue, and what they come to."""

import itertools
import json
import re
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tqdm import tqdm

from digits import params
from digits.datasets import FOLDER
from digits.errors import UserError, shown
from digits.files import flatten
from digits.learning import networks
from digits.records import lineage, results
from digits.tools import tasks

PATIENCE, RETRIES = 8, 2  # looks at a queue without a worker before it is started again, and how often that is done
OLD = "replaced-"  # prefix of an experiment until another one of its name is complete
ENDED = Path(".dvc/tmp/exps/celery/result")  # where DVC's queue writes a file for each task that has come to an end
INTERVAL, LONGEST = 3, 20  # seconds between two looks without a worker, and with one; each costs more than one of CPU
DONE = {"Success", "Failed"}  # final states of a task in `dvc queue status`


def dvc(*arguments: str) -> str:
    """Return the output of a DVC command. Raises UserError with its last line if it fails."""
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise UserError(f"dvc {' '.join(arguments[:2])}: {lines[-1].removeprefix('ERROR: ') if lines else 'failed'}")
    return done.stdout


def queued() -> tuple[dict[str, tuple[str, str]], bool]:
    """Return the name and state of each task in DVC's queue by its identifier, and whether there is any worker."""
    status = dvc("queue", "status")
    rows = [words for line in status.splitlines() if len(words := line.split()) >= 3]
    return {words[0]: (words[1], words[-1]) for words in rows}, "0 active, 0 idle" not in status


def ended() -> set[str]:
    """Return what is there of each task of DVC's queue that has come to an end."""
    return {path.name for path in ENDED.glob("*")}


def listed() -> set[str]:
    """Return the names of the experiments on this commit."""
    return set(dvc("exp", "list", "--name-only").split())


def put(names: Mapping[str, list[str]], jobs: int) -> None:
    """Put an experiment of each name, with its settings, into the queue, and start workers.

    Not `exp run --force`: that would also run every stage, and download the data for each seed.
    """
    set_aside(names)
    try:
        for name, settings in names.items():
            dvc("exp", "run", "--queue", "--name", name, *settings, "evaluate")
    except UserError:
        settle(names)
        raise
    # Its workers live on, and would keep a pipe of ours open.
    command = [sys.executable, "-m", "dvc", "queue", "start", "--jobs", str(jobs)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def set_aside(names: Iterable[str]) -> None:
    """Keep the experiments that have these names already under others, until `settle`."""
    there = listed()
    for name in sorted(set(names) & there):
        if OLD + name in there:  # of a call that was killed: the one of this name has replaced it
            dvc("exp", "remove", OLD + name)
        dvc("exp", "rename", name, OLD + name)


def settle(names: Iterable[str]) -> None:
    """Remove the experiments that others of their name have replaced, and give the rest their names back."""
    there = listed()
    for name in names:
        if OLD + name in there:
            dvc("exp", "remove", OLD + name) if name in there else dvc("exp", "rename", OLD + name, name)


def forget(identifiers: set[str]) -> None:
    """Remove tasks that no worker will finish from DVC's queue: `dvc exp show` fails on one that was never started."""
    for identifier in sorted(identifiers):
        with suppress(UserError):  # a worker on a busy machine has come to it in the meantime
            dvc("queue", "kill", identifier)
            dvc("queue", "remove", identifier)


def queue(names: Mapping[str, list[str]], jobs: int) -> Iterator[str]:
    """Run an experiment of each name, with its settings, in DVC's queue; yield each when it is done.

    A task is queued again if its worker was killed (DVC calls it running forever) or took it while shutting down (DVC
    loses it; seen once in 130). Raises UserError at the end if one failed.
    """
    ignored = set(queued()[0])  # of earlier calls
    idle, retries = 0, RETRIES
    failed: list[str] = []
    waiting = dict(names)
    put(waiting, jobs)
    while waiting:
        before = ended()
        known, working = queued()
        state = dict(task for identifier, task in known.items() if identifier not in ignored)
        done = [name for name in waiting if state.get(name) in DONE]
        waiting = {name: settings for name, settings in waiting.items() if name not in done}
        yield from (name for name in done if state[name] == "Success")
        failed += [name for name in done if state[name] == "Failed"]
        idle = 0 if working else idle + 1
        if waiting and idle > PATIENCE:
            lost = {name: settings for name, settings in waiting.items() if state.get(name) != "Queued"}
            if not retries:
                raise UserError(f"{', '.join(lost) or 'the queue'}: DVC's workers exit before it is done")
            gone = {identifier for identifier, task in known.items() if task[0] in lost} - ignored
            forget(gone)
            ignored |= gone
            put(lost, jobs)
            idle, retries = 0, retries - 1
        for _ in range(INTERVAL if idle else LONGEST):
            if waiting and ended() == before:
                time.sleep(1)
    settle(names)
    if failed:
        raise UserError(f"{', '.join(failed)}: failed; `dvc queue logs {failed[0]}` says why")


def reaches_a_copy(path: Path) -> bool:
    """Say whether a temporary copy of the repository, in which a queue runs, finds this path."""
    return path.is_absolute() or bool(lineage.git("ls-files", "--", str(path), f"{path}.dvc"))


def elsewhere(names: Mapping[str, list[str]], launch: str, jobs: int | None) -> Iterator[str]:
    """Run an experiment of each name, with its settings, on other machines, see `tasks.launch`."""
    set_aside(names)
    try:
        yield from tasks.launch(names, launch, jobs)
    finally:
        settle(names)


def run(
    name: str,
    count: int,
    changes: list[str],
    jobs: int | None = None,
    report: Any = None,
    grid: Sequence[list[str]] = ([],),
    launch: str | None = None,
) -> list[list[results.Result]]:
    """Run NAME-seed-0, NAME-seed-1 and so on with each set of changes of `grid`, and return the results of each set.

    Of several sets, the second has the names NAME-2-seed-0 and so on. In DVC's queue, or where `launch` puts them.
    Prints a line for each to `report` when it is done.
    """
    groups = [[f"{label(name, place, grid)}-seed-{seed}" for seed in range(count)] for place in range(len(grid))]
    names = {
        one: [word for change in (*changes, *more, f"seed={seed}") for word in ("--set-param", change)]
        for group, more in zip(groups, grid, strict=True)
        for seed, one in enumerate(group)
    }
    found = {}
    with tqdm(total=len(names), unit="seed", disable=None) as bar:
        for one in elsewhere(names, launch, jobs) if launch else queue(names, jobs or 1):
            found[one] = result = results.with_run(results.load(one))
            shares = (f"{split} {result.metrics[f'{split}_accuracy']:.2%}" for split in ("validation", "test"))
            with bar.external_write_mode():
                print(f"{one}: {', '.join(shares)}", file=report or sys.stdout)
            bar.update()
    return [[found[one] for one in group] for group in groups]


def label(name: str, place: int, grid: Sequence[list[str]]) -> str:
    """Return what the experiments of a set of changes are called."""
    return name if len(grid) == 1 else f"{name}-{place + 1}"


def combinations(options: list[str]) -> list[list[str]]:
    """Return every combination of the values of options like "train.epochs=2,4". Raises UserError if one has none."""
    axes = []
    for option in options:
        key, equals, values = option.partition("=")
        if not equals or not all(value.strip() for value in values.split(",")):
            raise UserError(f"--grid {option}: must be KEY=VALUE,VALUE")
        axes.append([f"{key}={value.strip()}" for value in values.split(",")])
    return [list(one) for one in itertools.product(*axes)]


def _check_name(name: str) -> None:
    # Part of a git reference, and of a pattern of compare.
    if not re.fullmatch(r"\w[\w.-]{0,99}", name) or ".." in name or name.endswith("."):
        raise UserError(f"{shown(name)}: must be a name of letters, digits and _.-, of up to 100 characters")


@dataclass(frozen=True)
class Spread:
    """The accuracies of several seeds in percent; one alone has no deviation."""

    mean: float
    deviation: float | None
    low: float
    high: float

    def __str__(self) -> str:
        deviation = "–" if self.deviation is None else f"{self.deviation:.2f}"
        return f"{self.mean:.2f} ± {deviation} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Summary:
    """What the seeds of a recipe come to; `seconds` is their mean, None where this MLflow has not seen them."""

    name: str
    seeds: int
    validation: Spread
    test: Spread
    seconds: float | None

    def as_json(self) -> dict[str, Any]:
        return {key.replace(".", "_"): value for key, value in flatten(asdict(self)).items()}


def summary(name: str, found: list[results.Result]) -> Summary:
    """Return what several results come to."""

    def spread(split: str) -> Spread:
        values = [100 * result.metrics[f"{split}_accuracy"] for result in found]
        return Spread(mean(values), stdev(values) if len(values) > 1 else None, min(values), max(values))

    seconds = [result.seconds for result in found if result.seconds]
    return Summary(name, len(found), spread("validation"), spread("test"), mean(seconds) if seconds else None)


def markdown(rows: list[Summary]) -> str:
    """Return summaries as a Markdown table."""
    lines = ["| recipe | seeds | validation: mean ± deviation (range), % | test, % | training, s |", "|---" * 5 + "|"]
    for row in rows:
        seconds = "–" if row.seconds is None else f"{row.seconds:.1f}"
        lines.append(f"| {row.name} | {row.seeds} | {row.validation} | {row.test} | {seconds} |")
    return "\n".join(lines)


def main(parser: ArgumentParser, words: list[str]) -> None:
    """Run one recipe over several seeds, and print the mean and spread of its accuracy.

    With --grid, of several. Each seed is a DVC experiment, NAME-seed-0 and so on, up to the evaluate stage. One of that
    name is replaced once its successor is complete, and called replaced-NAME-seed-0 until then. What DVC's run cache
    knows is not trained again, so that a second call takes seconds. Compare two recipes by
    `python -m digits compare 'NAME-seed-*' 'OTHER-seed-*'`.
    """
    parser.add_argument("name", help="the experiments are called NAME-seed-0, NAME-seed-1, …")
    parser.add_argument("--count", type=int, default=5, help="number of seeds, starting from 0 (default: %(default)s)")
    about = "change a param, as in dvc exp run; can be repeated"
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help=about)
    about = "run the seeds with each of these values, of several options with each combination; a row for each"
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=VALUE,VALUE", help=about)
    about = "trainings at a time (default: 1; with --launch all, or one on each host)"
    parser.add_argument("--jobs", type=int, help=about)
    about = "run each where this command puts it, in place of {}: 'ssh host {}', 'sbatch --wrap {}'; or a file of hosts"
    parser.add_argument("--launch", metavar="COMMAND", help=about)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    arguments = parser.parse_args(words)
    grid = combinations(arguments.grid)
    if not 1 <= arguments.count * len(grid) <= 1000 or not (arguments.jobs is None or 1 <= arguments.jobs <= 1000):
        raise UserError("--count, --grid, --jobs: must be 1 or more, and at most 1,000")
    _check_name(arguments.name)
    for combination in grid:  # reports a fault before anything is queued
        changes = params.assigned([*arguments.set_param, *combination])
        if "seed" in changes:
            raise UserError("-S seed: is set for each of them, from 0 on; --count says how many")
        p = params.load(networks.check, changes)
    if p.data.name == FOLDER and not reaches_a_copy(Path(p.data.folder)):
        where = "not in git or DVC, so the copies in which the queue runs do not have it"
        raise UserError(f"params.yaml: data.folder: {p.data.folder}: {where}; give an absolute path")
    if arguments.launch:
        tasks.launchers(arguments.launch)
        tasks.check()
    report = sys.stderr if arguments.json else sys.stdout
    every = run(arguments.name, arguments.count, arguments.set_param, arguments.jobs, report, grid, arguments.launch)
    rows = [
        summary(" ".join([label(arguments.name, place, grid), *combination]), found)
        for place, (combination, found) in enumerate(zip(grid, every, strict=True))
    ]
    table = [row.as_json() for row in rows]
    if arguments.json:
        print(json.dumps(table if arguments.grid else table[0], indent=2))
    else:
        print(f"\n{markdown(rows)}")
