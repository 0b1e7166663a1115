"""One recipe over several seeds, as experiments in DVC's queue, and what they come to."""

import json
import re
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
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

PATIENCE, RETRIES = 3, 2  # looks at a queue without a worker before it is started again, and how often that is done
OLD = "replaced-"  # prefix of an experiment until another one of its name is complete
INTERVAL = 3  # seconds between two looks; each costs more than one of CPU
DONE = {"Success", "Failed"}  # final states of a task in `dvc queue status`


def dvc(*arguments: str) -> str:
    """Return the output of a DVC command. Raises UserError with its last line if it fails."""
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise UserError(f"dvc {' '.join(arguments[:2])}: {lines[-1].removeprefix('ERROR: ') if lines else 'failed'}")
    return done.stdout


def tasks() -> tuple[dict[str, tuple[str, str]], bool]:
    """Return the name and state of each task in DVC's queue by its identifier, and whether there is any worker."""
    status = dvc("queue", "status")
    rows = [words for line in status.splitlines() if len(words := line.split()) >= 3]
    return {words[0]: (words[1], words[-1]) for words in rows}, "0 active, 0 idle" not in status


def listed() -> set[str]:
    """Return the names of the experiments on this commit."""
    return set(dvc("exp", "list", "--name-only").split())


def put(names: dict[str, int], settings: list[str], jobs: int) -> None:
    """Put an experiment of each name and seed into the queue, and start workers.

    Not `exp run --force`: that would also run every stage, and download the data for each seed. What has the name
    already is kept under another one, see `settle`.
    """
    there = listed()
    for name in sorted(names.keys() & there):
        if OLD + name in there:  # of a call that was killed: the one of this name has replaced it
            dvc("exp", "remove", OLD + name)
        dvc("exp", "rename", name, OLD + name)
    try:
        for name, seed in names.items():
            dvc("exp", "run", "--queue", "--name", name, *settings, "--set-param", f"seed={seed}", "evaluate")
    except UserError:
        settle(names)
        raise
    # Its workers live on, and would keep a pipe of ours open.
    command = [sys.executable, "-m", "dvc", "queue", "start", "--jobs", str(jobs)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def settle(names: Iterable[str]) -> None:
    """Remove the experiments that others of their name have replaced, and give the rest their names back."""
    there = listed()
    for name in names:
        if OLD + name in there:
            dvc("exp", "remove", OLD + name) if name in there else dvc("exp", "rename", OLD + name, name)


def forget(identifiers: set[str]) -> None:
    """Remove tasks that no worker will finish from DVC's queue: `dvc exp show` fails on one that was never started."""
    if identifiers:
        dvc("queue", "kill", *sorted(identifiers))
        dvc("queue", "remove", *sorted(identifiers))


def queue(names: list[str], changes: list[str], jobs: int) -> Iterator[str]:
    """Run an experiment of each name, with its place as seed; yield each when it is done.

    A task is queued again if its worker was killed (DVC calls it running forever) or took it while shutting down (DVC
    loses it; seen once in 130). Raises UserError at the end if one failed.
    """
    settings = [argument for change in changes for argument in ("--set-param", change)]
    ignored = set(tasks()[0])  # of earlier calls
    idle, retries = 0, RETRIES
    failed: list[str] = []
    waiting = {name: seed for seed, name in enumerate(names)}
    put(waiting, settings, jobs)
    while waiting:
        known, working = tasks()
        state = dict(task for identifier, task in known.items() if identifier not in ignored)
        done = [name for name in waiting if state.get(name) in DONE]
        waiting = {name: seed for name, seed in waiting.items() if name not in done}
        yield from (name for name in done if state[name] == "Success")
        failed += [name for name in done if state[name] == "Failed"]
        idle = 0 if working else idle + 1
        if waiting and idle > PATIENCE:
            lost = {name: seed for name, seed in waiting.items() if state.get(name) != "Queued"}
            if not retries:
                raise UserError(f"{', '.join(lost) or 'the queue'}: DVC's workers exit before it is done")
            gone = {identifier for identifier, task in known.items() if task[0] in lost} - ignored
            forget(gone)
            ignored |= gone
            put(lost, settings, jobs)
            idle, retries = 0, retries - 1
        time.sleep(INTERVAL if waiting else 0)
    settle(names)
    if failed:
        raise UserError(f"{', '.join(failed)}: failed; `dvc queue logs {failed[0]}` says why")


def reaches_a_copy(path: Path) -> bool:
    """Say whether a temporary copy of the repository, in which a queue runs, finds this path."""
    return path.is_absolute() or bool(lineage.git("ls-files", "--", str(path), f"{path}.dvc"))


def run(name: str, count: int, changes: list[str], jobs: int, report: Any = None) -> list[results.Result]:
    """Run NAME-seed-0, NAME-seed-1 and so on, see `queue`; print a line for each to `report`, and return all."""
    names, found = [f"{name}-seed-{seed}" for seed in range(count)], {}
    with tqdm(total=count, unit="seed", disable=None) as bar:
        for one in queue(names, changes, jobs):
            found[one] = result = results.with_run(results.load(one))
            shares = (f"{split} {result.metrics[f'{split}_accuracy']:.2%}" for split in ("validation", "test"))
            with bar.external_write_mode():
                print(f"{one}: {', '.join(shares)}", file=report or sys.stdout)
            bar.update()
    return [found[one] for one in names]


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

    Each seed is a DVC experiment, NAME-seed-0 and so on, up to the evaluate stage. One of that name is replaced once
    its successor is complete, and called replaced-NAME-seed-0 until then. What DVC's run cache knows is not trained
    again, so that a second call takes seconds. Compare two recipes by
    `python -m digits compare 'NAME-seed-*' 'OTHER-seed-*'`.
    """
    parser.add_argument("name", help="the experiments are called NAME-seed-0, NAME-seed-1, …")
    parser.add_argument("--count", type=int, default=5, help="number of seeds, starting from 0 (default: %(default)s)")
    about = "change a param, as in dvc exp run; can be repeated"
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help=about)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    arguments = parser.parse_args(words)
    if not 1 <= arguments.count <= 1000 or not 1 <= arguments.jobs <= 1000:
        raise UserError("--count, --jobs: must be 1 or more, and at most 1,000")
    changes = params.assigned(arguments.set_param)
    if "seed" in changes:
        raise UserError("-S seed: is set for each of them, from 0 on; --count says how many")
    _check_name(arguments.name)
    p = params.load(networks.check, changes)  # reports a fault before anything is queued
    if p.data.name == FOLDER and not reaches_a_copy(Path(p.data.folder)):
        where = "not in git or DVC, so the copies in which the queue runs do not have it"
        raise UserError(f"params.yaml: data.folder: {p.data.folder}: {where}; give an absolute path")
    report = sys.stderr if arguments.json else sys.stdout
    found = summary(arguments.name, run(arguments.name, arguments.count, arguments.set_param, arguments.jobs, report))
    print(json.dumps(found.as_json(), indent=2) if arguments.json else f"\n{markdown([found])}")
