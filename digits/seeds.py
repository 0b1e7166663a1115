"""One recipe over several seeds, as experiments of DVC's queue, and what they come to: mean, deviation, range.

    python -m digits.seeds NAME [--count 5] [-S train.epochs=8 ...] [--jobs 1]

The experiments are called NAME-seed-0, NAME-seed-1 and so on, each up to the evaluate stage. An experiment of that name
is replaced; what DVC's run cache knows is not trained again, so that a second call takes seconds. Compare two recipes
by `python -m digits.compare 'NAME-seed-*' 'OTHER-seed-*'`.
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import mean, stdev

from tqdm import tqdm

from digits import models, params, provenance
from digits.command import UserError, run
from digits.lineage import State

PATIENCE, AGAIN = 5, 2  # looks at a queue without a worker before it is started again, and how often that is done
DONE = {"Success", "Failed"}  # states of a task in `dvc queue status` in which nothing more will happen


def dvc(*arguments: str) -> str:
    """Give what a command of DVC prints. Raises UserError with its last line if it fails."""
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise UserError(f"dvc {' '.join(arguments[:2])}: {lines[-1].removeprefix('ERROR: ') if lines else 'failed'}")
    return done.stdout


def tasks() -> tuple[dict[str, tuple[str, str]], bool]:
    """Give the name and state of each task in DVC's queue by its identifier, and whether any worker is there."""
    status = dvc("queue", "status")
    rows = [words for line in status.splitlines() if len(words := line.split()) >= 3]
    return {words[0]: (words[1], words[-1]) for words in rows}, "0 active, 0 idle" not in status


def put(names: dict[str, int], settings: list[str], jobs: int) -> None:
    """Put an experiment of each name and seed into the queue, and see to it that somebody works on them."""
    # Not `exp run --force`: that would run every stage again, and download the data for each seed.
    if there := names.keys() & set(dvc("exp", "list", "--name-only").split()):
        dvc("exp", "remove", *sorted(there))
    for name, seed in names.items():
        dvc("exp", "run", "--queue", "--name", name, *settings, "--set-param", f"seed={seed}", "evaluate")
    # Its workers live on, and would keep a pipe of ours open.
    subprocess.run(
        [sys.executable, "-m", "dvc", "queue", "start", "--jobs", str(jobs)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
    )  # fmt: skip


def queue(names: list[str], changes: list[str], jobs: int) -> None:
    """Run an experiment of each name, with its place as seed. Raises UserError if one fails.

    A task is put into the queue again if its worker was killed (DVC calls it running for ever) or took it while it
    ended itself (DVC loses it; seen once in 130).
    """
    settings = [argument for change in changes for argument in ("--set-param", change)]
    passed_over = set(tasks()[0])  # of earlier calls
    idle, again = 0, AGAIN
    with tqdm(total=len(names), unit="seed", disable=None) as bar:
        bar.set_postfix_str("putting them into the queue")
        put({name: seed for seed, name in enumerate(names)}, settings, jobs)
        bar.set_postfix_str("")
        while True:
            known, working = tasks()
            found = dict(task for identifier, task in known.items() if identifier not in passed_over)
            bar.update(sum(found.get(name) in DONE for name in names) - bar.n)
            if all(found.get(name) in DONE for name in names):
                break
            idle = 0 if working else idle + 1
            if idle > PATIENCE:
                lost = {name: seed for seed, name in enumerate(names) if found.get(name) not in {*DONE, "Queued"}}
                if not again:
                    raise UserError(f"{', '.join(lost) or 'the queue'}: DVC's workers end before it does")
                passed_over |= {identifier for identifier, task in known.items() if task[0] in lost}
                put(lost, settings, jobs)
                idle, again = 0, again - 1
            time.sleep(1)
    if failed := [name for name in names if found[name] != "Success"]:
        raise UserError(f"{', '.join(failed)}: failed; `dvc queue logs {failed[0]}` says why")


def results(name: str, count: int, changes: list[str], jobs: int) -> list[State]:
    """Run NAME-seed-0, NAME-seed-1 and so on, see `queue`, and give what they came to."""
    names = [f"{name}-seed-{seed}" for seed in range(count)]
    queue(names, changes, jobs)
    return [provenance.with_run(provenance.resolve(one)) for one in names]


Row = dict[str, float | str | None]


def row(name: str, states: list[State]) -> Row:
    """Give a row of the table: count, mean, deviation and range, in percent, and mean seconds of training.

    None is what is not known: the deviation of one seed, the seconds of trainings that this MLflow has not seen.
    """
    cells: Row = {"name": name, "seeds": len(states)}
    for split, metric in (("validation", "validation_accuracy"), ("test", "test_accuracy")):
        values = [100 * state.metrics[metric] for state in states]
        deviation = stdev(values) if len(values) > 1 else None
        cells |= {f"{split}_mean": mean(values), f"{split}_deviation": deviation}
        cells |= {f"{split}_low": min(values), f"{split}_high": max(values)}
    seconds = [state.seconds for state in states if state.seconds]
    return cells | {"seconds": mean(seconds) if seconds else None}


def markdown(rows: list[Row]) -> str:
    """Give rows as a Markdown table."""

    def number(value: float | str | None, digits: int = 2) -> str:
        return f"{value:.{digits}f}" if isinstance(value, float) else "–"

    lines = [
        "| recipe | seeds | validation: mean ± deviation (range), % | test, % | training, s |",
        "|---|---|---|---|---|",
    ]
    for cells in rows:
        accuracies = [
            "{} ± {} ({} to {})".format(
                *(number(cells[f"{split}_{part}"]) for part in ("mean", "deviation", "low", "high"))
            )
            for split in ("validation", "test")
        ]
        lines.append(
            f"| {cells['name']} | {cells['seeds']} | {' | '.join(accuracies)} | {number(cells['seconds'], 1)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m digits.seeds", description="One recipe over several seeds.")
    parser.add_argument("name", help="the experiments are called NAME-seed-0, NAME-seed-1, …")
    parser.add_argument("--count", type=int, default=5, help="how many seeds, from 0 on (default: %(default)s)")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help="as of dvc exp run")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the row as JSON, not as a Markdown table")
    arguments = parser.parse_args()
    if min(arguments.count, arguments.jobs) < 1:
        raise UserError("--count, --jobs: must be 1 or more")
    # A fault is told before anything is queued.
    models.check(params.load(changes=params.assigned(arguments.set_param)).model.model_extra or {})
    found = row(arguments.name, results(arguments.name, arguments.count, arguments.set_param, arguments.jobs))
    print(json.dumps(found, indent=2) if arguments.json else markdown([found]))


if __name__ == "__main__":
    run(main)
