"""Time to accuracy: the pipeline's recipes against what others train; and how good each recipe is in the end.

    python -m benchmarks.accuracy [--seeds 5] [--best-seeds 0] [--tutorial-seeds 3] [--example-seeds 2] [--budget 320]
    python -m benchmarks.accuracy --quick
    python -m benchmarks.accuracy --recipes best
    python -m benchmarks.accuracy --recipes default --precision fp32

Run it after `dvc repro`, on an otherwise idle machine. The first line trains, seed by seed, the recipes quick and
default (best for the first `--best-seeds` only, since it takes 5 minutes) and the two peers of benchmarks/peers.py,
each of these for its own number of epochs or `--budget` seconds. It rewrites accuracy.csv, .md and .png in benchmarks/.
The last two train only the recipes that they name; their files are called accuracy-best and accuracy-default-fp32.

All learn from the training split with the same number of threads, and are measured on the validation split. Seconds are
those of training alone, loading and augmentation included, measuring excluded (`benchmarks.probe`). The test split is
read once per training, after its end, and no choice depends on it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev

import torch
from torch import nn
from tqdm import tqdm

from benchmarks import figures, peers, recipes
from benchmarks.probe import Point, Probe
from digits.errors import UserError, run
from digits.files import write_table, write_text
from digits.images.batches import batches
from digits.images.splits import Split
from digits.learning import evaluation, runtime, training
from digits.learning.layers import Normalize
from digits.params.reading import RECIPES

FOLDER = Path("benchmarks")
# The tutorial ends at 97.73 % on the test split, which is the easier one: at about 97 % on the validation split.
TARGETS = (0.97, 0.9773, 0.985, 0.99, 0.994)
NEVER = float("inf")


@dataclass(frozen=True)
class Setting:
    """What all trainings have in common. `batch_size` is that of measurements."""

    learned: Split
    held_out: Split
    test: Split
    batch_size: int
    device: torch.device
    precision: str

    def accuracy(self, network: nn.Module, split: Split) -> float:
        found = evaluation.predict(network, split, self.batch_size, self.device)
        return evaluation.score(found.logits, split.labels)[1]


@dataclass(frozen=True)
class Outcome:
    """The measurements of one training. `test_accuracy` is that of a recipe's final network; peers have none."""

    contestant: str
    seed: int
    seconds: float
    points: list[Point]
    test_accuracy: float | None = None

    def time_to(self, target: float) -> float:
        """Return the seconds of training after which `target` was first measured, or `NEVER`."""
        return next((point.seconds for point in self.points if point.validation_accuracy >= target), NEVER)


def train_recipe(name: str, seed: int, setting: Setting) -> Outcome:
    """Train a recipe of the pipeline to its end."""
    p = recipes.in_precision(recipes.load({"recipe": name, "seed": seed}), setting.precision)
    learned, held_out = setting.learned, setting.held_out
    steps = len(batches(torch.arange(len(learned)), p.train.batch_size))
    probe = Probe(name, seed, steps, lambda: setting.accuracy(this.network, held_out))
    probe.resume()  # already here: the data set moves to the device when a training begins
    this = training.begin(p, learned, held_out, setting.device)
    for _ in this.epochs(probe):
        probe.resume()
    probe.measure()  # the final weights may differ from those after the last step
    return Outcome(name, seed, probe.seconds, probe.points, setting.accuracy(this.network, setting.test))


def train_peer(name: str, seed: int, setting: Setting, budget: float) -> Outcome:
    """Train a peer until its last epoch, or for `budget` seconds."""
    peer = peers.PEERS[name]
    torch.manual_seed(seed)
    network = peer.network()
    measured = nn.Sequential(Normalize(peer.mean, peer.std), network)
    accuracy = partial(setting.accuracy, measured, setting.held_out)
    probe = Probe(name, seed, peers.steps(len(setting.learned)), accuracy, budget)
    peers.fit(peer, network, setting.learned, setting.device, probe)
    return Outcome(name, seed, probe.seconds, probe.points)


def race(trainings: dict[str, list[Outcome]], targets: Sequence[float] = TARGETS) -> str:
    """Return the table of seconds to each target, with each peer's ratio to the recipe that gets there first."""
    lines = ["| contestant | seeds | " + " | ".join(f"to {100 * target:g} %" for target in targets) + " |"]
    lines.append("|---" * (len(targets) + 2) + "|")
    for name, own in trainings.items():
        cells = []
        for target in targets:
            cell = spread(own, target)
            if name in peers.PEERS:
                ours = [group for recipe, group in trainings.items() if recipe not in peers.PEERS]
                first = min(ours, key=lambda group: median(one.time_to(target) for one in group))
                cell += compare(own, first, target)
            cells.append(cell)
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(trainings: Sequence[Outcome], target: float) -> str:
    """Return median and range of the seconds to `target`, in words."""
    times = [one.time_to(target) for one in trainings]
    reached = [seconds for seconds in times if seconds < NEVER]
    if median(times) < NEVER:
        last = f"{max(times):.1f}" if max(times) < NEVER else "never"
        return f"{median(times):.1f} s ({min(times):.1f} to {last})"
    some = f" (by {len(reached)} of {len(times)} seeds, the first at {min(reached):.1f} s)" if reached else ""
    return f"not reached within {max(one.seconds for one in trainings):.0f} s{some}"


def compare(theirs: Sequence[Outcome], ours: Sequence[Outcome], target: float) -> str:
    """Return how many times as long as ours theirs took, in words: the median over the seeds that both have.

    Where most of theirs did not get there, the seconds that they trained are a lower bound, which is told if above 1.
    """
    bases = {one.seed: one.time_to(target) for one in ours}
    theirs = [one for one in theirs if one.seed in bases]
    if not theirs or any(bases[one.seed] == NEVER for one in theirs):
        return ""
    ratio = median(one.time_to(target) / bases[one.seed] for one in theirs)
    if ratio < NEVER:
        return f", {ratio:.1f} x {ours[0].contestant}"
    bound = median(min(one.time_to(target), one.seconds) / bases[one.seed] for one in theirs)
    return f", over {bound:.1f} x {ours[0].contestant}" if bound > 1 else ""


def final(trainings: dict[str, list[Outcome]]) -> str:
    """Return the table of what the recipes end with: seconds of training, validation and test accuracy."""
    lines = ["| recipe | seeds | training | validation | test | standard deviation |", "|---|---|---|---|---|---|"]
    for name, own in trainings.items():
        test = [one.test_accuracy for one in own if one.test_accuracy is not None]
        if test:
            seconds = [one.seconds for one in own]
            validation = [one.points[-1].validation_accuracy for one in own]
            deviation = f"{100 * stdev(test):.3f} % points" if len(test) > 1 else "–"
            lines.append(
                f"| {name} | {len(own)} | {median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}) "
                f"| {_percent(validation)} | {_percent(test)} | {deviation} |"
            )
    return "\n".join(lines)


def _percent(shares: Sequence[float]) -> str:
    return f"{mean(shares):.2%} ({min(shares):.2%} to {max(shares):.2%})"


def write(trainings: dict[str, list[Outcome]], head: str, path: Path) -> None:
    """Write the points as .csv, the tables as .md and the figure as .png; `path` has no suffix."""
    points = (asdict(point) for group in trainings.values() for one in group for point in one.points)
    rows = (
        {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in point.items()}
        for point in points
    )
    write_table(path.with_suffix(".csv"), [field.name for field in fields(Point)], rows)
    figures.error_over_seconds(path.with_suffix(".csv"), TARGETS)
    text = f"""{head}

Seconds of training until the validation accuracy was first measured to be this high: median over the seeds (range). For
the peers also the ratio to the recipe that gets there first, median over the seeds that both have.

{race(trainings)}

![Validation error over seconds of training]({path.name}.png)

What the recipes end with: median seconds of training (range); mean accuracy (range).

{final(trainings)}
"""
    write_text(path.with_suffix(".md"), text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description="Time to accuracy.")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each contestant (default: %(default)s)")
    parser.add_argument("--best-seeds", type=int, default=0, help="seeds of the recipe best (default: %(default)s)")
    parser.add_argument("--tutorial-seeds", type=int, default=3, help="seeds of the tutorial (default: %(default)s)")
    parser.add_argument(
        "--example-seeds", type=int, default=2, help="seeds of PyTorch's example (default: %(default)s)"
    )
    parser.add_argument("--budget", type=float, default=320, help="seconds for each peer (default: %(default)s)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, help="train only these, and no peers")
    parser.add_argument("--precision", choices=runtime.PRECISIONS, help="instead of that in params.yaml; for --recipes")
    parser.add_argument("--redraw", action="store_true", help="train nothing: draw the figures of the tables anew")
    parser.add_argument("--quick", action="store_true", help="one seed, 40 seconds for each peer: about 4 minutes")
    options = parser.parse_args()
    if options.redraw:
        for table in FOLDER.glob("accuracy*.csv"):
            figures.error_over_seconds(table, TARGETS)
        return
    seeds, budget = (1, 40.0) if options.quick else (options.seeds, options.budget)
    counts = {"quick": seeds, "default": seeds, "best": options.best_seeds}
    counts |= {"tutorial": min(seeds, options.tutorial_seeds), "example": min(seeds, options.example_seeds)}
    path = FOLDER / "accuracy"
    if options.recipes:
        counts = dict.fromkeys(options.recipes, seeds)
        path = FOLDER / "-".join(filter(None, ["accuracy", *options.recipes, options.precision]))

    p = recipes.load()
    device = runtime.prepare(p.runtime)
    if p.data.name != "mnist":
        raise UserError(f"params.yaml: data.name: must be mnist for this benchmark, not {p.data.name}")
    learned, held_out, test = recipes.load_splits()
    chosen = options.precision or p.runtime.precision
    setting = Setting(learned, held_out, test, p.runtime.batch_size, device, chosen)
    short = Setting(learned[:1024], held_out[:250], test[:250], p.runtime.batch_size, device, chosen)

    def train(name: str, seed: int, setting: Setting, budget: float) -> Outcome:
        return train_peer(name, seed, setting, budget) if name in peers.PEERS else train_recipe(name, seed, setting)

    trainings: dict[str, list[Outcome]] = {name: [] for name, count in counts.items() if count}
    for name in trainings:
        train(name, 0, short, 0)  # the first steps in a process are slow: libraries prepare their kernels
    rounds = [(name, seed) for seed in range(max(counts.values())) for name in trainings if seed < counts[name]]
    with tqdm(rounds, unit="training", disable=None, dynamic_ncols=True) as bar:
        for name, seed in bar:
            bar.set_postfix_str(f"{name}, seed {seed}")
            trainings[name].append(train(name, seed, setting, budget))
    precision = runtime.precision_of(recipes.in_precision(p, chosen).runtime, device)
    found = runtime.environment(device, precision)
    command = " ".join(["python -m benchmarks.accuracy", *sys.argv[1:]])
    head = (
        f"Interleaved trainings with {found['threads']} threads on {found['processor']}, device {found['device']}, "
        f"torch {found['torch']}, recipes in {found['precision']} (`{command}`)"
    )
    head += "." if options.recipes else f"; peers until their last epoch, or for {budget:g} s."
    write(trainings, head, path)


if __name__ == "__main__":
    run(main)
