"""The largest resident memory of a process that trains one epoch, in MiB (Linux).

    python -m benchmarks.memory RECIPE PRECISION

It loads what the train stage loads, but for MLflow and Matplotlib. A process of its own, since the figure never falls.
"""

import argparse
from pathlib import Path

from benchmarks import recipes
from digits import data, params, paths, runtime
from digits.command import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Peak memory of a training.")
    parser.add_argument("recipe", choices=params.RECIPES)
    parser.add_argument("precision", choices=("fp32", "bf16"))
    options = parser.parse_args()
    p = recipes.one_epoch(params.load(changes={"recipe": options.recipe}))
    device = runtime.prepare(p.runtime.device, p.runtime.threads, p.runtime.reproducibility)
    learned, held_out = data.load(paths.TRAIN), data.load(paths.VALIDATION)
    network = recipes.build(p, p.seed, len(learned.classes))
    for _ in recipes.fit(p, network, learned, held_out, p.seed, device, None, options.precision):
        pass
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


if __name__ == "__main__":
    run(main)
