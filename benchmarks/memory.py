"""The peak resident memory of a process that trains one epoch, in MiB (Linux).

    python -m benchmarks.memory RECIPE PRECISION

It loads what the train stage loads, except MLflow and Matplotlib. It needs a process of its own, since a peak never
falls.
"""

import argparse
from pathlib import Path

from benchmarks import recipes
from digits import paths
from digits.errors import run
from digits.images import splits
from digits.learning import runtime, training
from digits.params.reading import RECIPES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Peak memory of a training.")
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("precision", choices=runtime.PRECISIONS)
    options = parser.parse_args()
    p = recipes.one_epoch(recipes.load({"recipe": options.recipe, "runtime.precision": options.precision}))
    device = runtime.prepare(p.runtime)
    for _ in training.begin(p, splits.load(paths.TRAIN), splits.load(paths.VALIDATION), device).epochs():
        pass
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


if __name__ == "__main__":
    run(main)
