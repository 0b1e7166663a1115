"""What checkpoints cost: the default training with and without them, interleaved.

    python -m benchmarks.checkpointing [--rounds 5] [--quick]

Run it after `dvc repro`, on an otherwise idle machine. Each round trains one epoch with `runtime.checkpoint` as in
params.yaml, one without, and one with a checkpoint after every step, in changing order. The table shows median seconds,
and the median ratio to the same round's training without checkpoints. Rewrites benchmarks/checkpointing.md.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import recipes
from digits.errors import run
from digits.files import write_text
from digits.images.splits import Split
from digits.learning import checkpoints, runtime, training
from digits.params import Params

REPORT = Path("benchmarks/checkpointing.md")


class Counting(checkpoints.Checkpoint):
    """A checkpoint that counts how often it is saved."""

    saved = 0

    def save(self, state: dict[str, object]) -> None:
        super().save(state)
        self.saved += 1


def seconds(p: Params, interval: float, learned: Split, held_out: Split) -> tuple[float, int]:
    """Return the seconds of one epoch with a checkpoint every `interval` seconds, and how many were saved."""
    this = training.begin(p, learned, held_out, runtime.prepare(p.runtime))
    with Counting("benchmark", interval) as checkpoint:
        start = time.perf_counter()
        for _ in this.epochs(checkpoint):
            pass
        return time.perf_counter() - start, checkpoint.saved


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpointing", description="What checkpoints cost.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    p = recipes.one_epoch(recipes.load())
    learned, held_out, _ = recipes.load_splits()
    intervals = {"none": 0.0, f"every {p.runtime.checkpoint:g} s": p.runtime.checkpoint, "every step": 1e-9}
    taken: dict[str, list[float]] = {name: [] for name in intervals}
    counts = {}
    seconds(p, 0.0, learned, held_out)  # the first is slower
    for number in tqdm(range(rounds), unit="round", disable=None):
        names = list(intervals)
        for name in names[number % 3 :] + names[: number % 3]:
            spent, counts[name] = seconds(p, intervals[name], learned, held_out)
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
