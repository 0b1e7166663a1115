"""What checkpoints cost: the default training with them and without, in turns.

    python -m benchmarks.checkpointing [--rounds 5] [--quick]

Run it after `dvc repro`, on a machine that does nothing else. Each round trains one epoch with `runtime.checkpoint` as
in params.yaml, one without, and one with a checkpoint after every step, in changing order; the table gives the median
seconds and the median of the ratios to the round's training without. Rewrites benchmarks/checkpointing.md.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import recipes
from digits import checkpoints, data, params, runtime
from digits.command import run
from digits.files import write_text

REPORT = Path("benchmarks/checkpointing.md")


class Counting(checkpoints.Checkpoint):
    """A checkpoint that counts how often it is saved."""

    saved = 0

    def save(self, state: dict[str, object]) -> None:
        super().save(state)
        self.saved += 1


def seconds(p: params.Params, interval: float, train: data.Split, validation: data.Split) -> tuple[float, int]:
    """Give the seconds of one epoch with a checkpoint each `interval` seconds, and how many there were."""
    device = runtime.prepare(p.runtime.device, p.runtime.threads, p.runtime.reproducibility)
    network = recipes.build(p, p.seed, len(train.classes))
    with Counting("benchmark", interval) as checkpoint:
        start = time.perf_counter()
        for _ in recipes.fit(p, network, train, validation, p.seed, device, checkpoint, p.runtime.precision):
            pass
        return time.perf_counter() - start, checkpoint.saved


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpointing", description="What checkpoints cost.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    p = recipes.one_epoch(params.load())
    train, validation, _ = recipes.splits()
    intervals = {"none": 0.0, f"every {p.runtime.checkpoint:g} s": p.runtime.checkpoint, "every step": 1e-9}
    taken: dict[str, list[float]] = {name: [] for name in intervals}
    counts = {}
    seconds(p, 0.0, train, validation)  # the first is slower
    for number in tqdm(range(rounds), unit="round", disable=None):
        names = list(intervals)
        for name in names[number % 3 :] + names[: number % 3]:
            spent, counts[name] = seconds(p, intervals[name], train, validation)
            taken[name].append(spent)
    lines = [
        f"| {name} | {counts[name]} | {statistics.median(taken[name]):.2f} | {_ratio(taken[name], taken['none']):.3f} |"
        for name in intervals
    ]
    processor = runtime.environment(torch.device("cpu"), torch.float32)["processor"]
    table = "\n".join(
        [
            f"One epoch of the default training, median of {rounds} rounds, {processor}, {p.runtime.threads} threads",
            "(`python -m benchmarks.checkpointing`):",
            "",
            "| checkpoints | saved | seconds | ratio |",
            "|---|---|---|---|",
            *lines,
        ]
    )
    write_text(REPORT, table + "\n")
    print(table)


def _ratio(taken: list[float], base: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(taken, base, strict=True))


if __name__ == "__main__":
    run(main)
