"""Do two processors train the same weights, bit for bit? A table of digests, one row for each processor and setting.

    python -m benchmarks.portable [--qemu qemu-x86_64] [--threads 2] [--steps 10] [--processors Haswell EPYC-Rome …]

A short training (augmentation, batch norm, dropout; SGD and AdamW, convolutional and fully connected) is repeated on
this processor, and on other x86-64 processors emulated by QEMU in user mode, each time with `runtime.reproducibility`
machine and then portable. All rows with "portable" must show the same digests; otherwise the exit status is 1. Rows
with "machine" may differ: the last column is the largest difference of any weight of the first network from what this
processor trains with the same setting.

An emulated processor differs from this one in what libraries choose their code by: vendor, instruction sets, cache
sizes. QEMU computes fused multiply-adds, divisions and square roots as IEEE 754 defines them, as any processor must; so
equal digests also show that no approximate instructions (rcpps, rsqrtps), which vendors implement differently, are in
use. QEMU has no AVX-512: a processor that has it can only be checked for real, by running this program there.

Needs QEMU 8 or later (`apt install qemu-user`); 7.2 is known to crash in gather instructions. Without it, only this
processor's own row is printed. A row takes a minute or two, since emulation is 30 times slower. Images are drawn at
random, so that no data set is needed: the digests are about arithmetic, not about learning.

Finally the cost: seconds per step of the default training on this processor, portable over machine, interleaved. Table
and cost are written to benchmarks/portable.md; without other processors (an empty `--processors`, or no QEMU) to
benchmarks/portable_here.md, so that the longer table is kept.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import recipes
from digits.errors import run
from digits.files import write_text
from digits.images.splits import Split
from digits.learning import evaluation, networks, runtime
from digits.learning.training import Training
from digits.params import Params

REPORT = Path("benchmarks/portable.md")
REPORT_HERE = Path("benchmarks/portable_here.md")
SETTINGS = ("machine", "portable")
PROCESSORS = (
    "Haswell",
    "Skylake-Client-noTSX-IBRS",
    "EPYC-Rome",
    "EPYC-Rome,legacy-cache=on",  # another first-level cache
    "EPYC-Rome,vendor=GenuineIntel",  # another vendor with the same caches
    "YongFeng",  # neither Intel nor AMD
)
BATCH = 64
WARM = 10  # steps before the clock starts, since the first are slower
# Every knob that shapes the weights, whatever params.yaml says; and what each training adds.
SHARED: dict[str, Any] = {
    "seed": 0,
    "model.members": 1,
    "model.tta_shift": 0,
    "train.epochs": 1,
    "train.batch_size": BATCH,
    "train.schedule": "linear",
    "train.warmup": 0.3,
    "train.momentum": 0.9,
    "train.weight_decay": 0.0005,
    "train.label_smoothing": 0.1,
    "train.hard_examples": 0.0,
    "train.ema": 0.0,
    "train.keep": "last",
    "augmentation.rotation": 10.0,
    "augmentation.scale": 0.1,
    "augmentation.shift": 2.0,
    "augmentation.shear": 0.1,
}
CNN: dict[str, Any] = {
    "model.name": "cnn",
    "model.cnn.crop": 0,
    "model.cnn.channels": [8, 16, 16],
    "model.cnn.hidden": 32,
    "model.cnn.dropout": 0.2,
}
MLP: dict[str, Any] = {"model.name": "mlp", "model.mlp.hidden": [64, 32], "model.mlp.dropout": 0.1}
RUNS: dict[str, dict[str, Any]] = {
    "CNN, SGD": CNN | {"train.optimizer": "sgd", "train.learning_rate": 0.1},
    "CNN, AdamW": CNN | {"train.optimizer": "adamw", "train.learning_rate": 0.005},
    "MLP, SGD": MLP | {"train.optimizer": "sgd", "train.learning_rate": 0.05},
}


def load(changes: dict[str, Any], reproducibility: str, threads: int) -> Params:
    """Return params.yaml with `changes`, for trainings in float32 on the CPU."""
    how = {"reproducibility": reproducibility, "threads": threads, "device": "cpu", "precision": "fp32"}
    return recipes.load(changes | {f"runtime.{key}": value for key, value in how.items()} | {"runtime.batch_size": 250})


def digest(arrays: Iterable[bytes]) -> str:
    """Return the first eight hexadecimal digits of the MD5 of all arrays' bytes, in order."""
    total = hashlib.md5()
    for array in arrays:
        total.update(array)
    return total.hexdigest()[:8]


def train(reproducibility: str, threads: int, steps: int, folder: Path) -> None:
    """Train every network of RUNS; write digests.json and the first one's weights.safetensors to `folder`."""
    from safetensors.torch import save_file

    settings = {title: load(SHARED | changes, reproducibility, threads) for title, changes in RUNS.items()}
    device = runtime.prepare(next(iter(settings.values())).runtime)
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(0, 256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
        return Split(images, torch.randint(0, 10, (count,), generator=generator), tuple("0123456789"))

    learned, held_out = split(steps * BATCH), split(250)
    digests = {"kernels": torch.backends.cpu.get_cpu_capability()}
    for title, p in settings.items():
        torch.manual_seed(0)
        network = networks.build(p.model.name, 10, p.model.knobs(), mean=0.5, std=0.3)
        for _ in Training(network, learned, held_out, p, device).epochs():
            pass
        weights = {key: value.contiguous() for key, value in network.state_dict().items()}
        digests[title] = digest(value.numpy().tobytes() for value in weights.values())
        if title == next(iter(RUNS)):
            logits = evaluation.predict(network, held_out, p.runtime.batch_size, device).logits
            digests["Logits"] = digest([logits.numpy().tobytes()])
            save_file(weights, folder / "weights.safetensors")
    (folder / "digests.json").write_text(json.dumps(digests), encoding="utf-8")


def train_as(command: list[str], folder: Path) -> dict[str, str] | None:
    """Run one training process, and return its digests; None, with the reason on standard error, if it failed."""
    # The caller's shell must not decide for MKL what the setting under test decides.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MKL_", "ONEDNN_", "ATEN_"))}
    folder.mkdir()
    done = subprocess.run(command, env={**kept, "TQDM_DISABLE": "1"}, capture_output=True, text=True)
    if done.returncode:
        print(f"{' '.join(command[:3])}: {' '.join(done.stderr.splitlines()[-1:])}", file=sys.stderr)
        return None
    digests: dict[str, str] = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
    return digests


def moved(first: Path, second: Path) -> float:
    """Return the largest absolute difference of any value between two files of weights."""
    from safetensors.torch import load_file

    one, other = load_file(first / "weights.safetensors"), load_file(second / "weights.safetensors")
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


def seconds_a_step(reproducibility: str, threads: int, steps: int = 100) -> float:
    """Return the seconds of one step of the default training, of `steps`, on images drawn at random."""
    # Two epochs, of which the first is timed: a training that ends no better than guessing fails, as it may here.
    p = load({"train.epochs": 2}, reproducibility, threads)
    device = runtime.prepare(p.runtime)
    labels = torch.arange(max(WARM, steps) * p.train.batch_size) % 10
    images = torch.randint(0, 256, (len(labels), 1, 28, 28), dtype=torch.uint8)
    split = Split(images, labels, tuple("0123456789"))
    network = networks.build(p.model.name, 10, p.model.knobs(), mean=0.5, std=0.3)
    for count in (WARM, steps):
        part = split[: count * p.train.batch_size]
        start = time.perf_counter()
        next(Training(network, part, split[:250], p, device).epochs())
        seconds = (time.perf_counter() - start) / count
    return seconds


def cost(rounds: int, threads: int) -> str:
    """Time both settings, interleaved, each time in a new process, and return their ratio in words."""
    ratios = []
    for _ in tqdm(range(rounds), unit="round", disable=None):
        seconds = {}
        for setting in SETTINGS:
            command = [sys.executable, "-m", "benchmarks.portable", "--time", setting, "--threads", str(threads)]
            done = subprocess.run(
                command, env={**os.environ, "TQDM_DISABLE": "1"}, stdout=subprocess.PIPE, text=True, check=True
            )
            seconds[setting] = float(done.stdout)
        ratios.append(seconds["portable"] / seconds["machine"])
    return (
        f"A step of the default training with {threads} threads takes {statistics.median(ratios):.2f} times as long "
        f"when portable (median of {rounds} rounds, {min(ratios):.2f} to {max(ratios):.2f})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the bits trained on this and on emulated processors.")
    parser.add_argument("--qemu", default="qemu-x86_64", help="the emulator, by name or path")
    parser.add_argument(
        "--processors", nargs="*", default=PROCESSORS, metavar="MODEL", help="see qemu-x86_64 -cpu help"
    )
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--child", nargs=2, metavar=("SETTING", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7, help="how often both are timed (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds of timing")
    parser.add_argument("--time", metavar="SETTING", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time:
        print(seconds_a_step(options.time, options.threads))
        return
    if options.child:
        train(options.child[0], options.threads, options.steps, Path(options.child[1]))
        return

    emulator = shutil.which(options.qemu)
    if emulator is None:
        print(f"{options.qemu} is not installed (apt install qemu-user): this processor only", file=sys.stderr)
    rows: list[tuple[str, list[str]]] = [("this one", [])]
    rows += [(model, [emulator, "-cpu", model]) for model in options.processors if emulator]
    columns = ["kernels", *RUNS, "Logits"]
    lines = ["| " + " | ".join(["reproducibility", "processor", *columns, "moved by"]) + " |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    failed = False
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=len(options.settings) * len(rows), disable=None) as bar:
        for setting in options.settings:
            reference, expected = Path(scratch, f"{setting}-0"), None
            for place, (title, prefix) in enumerate(rows):
                folder = Path(scratch, f"{setting}-{place}")
                command = [*prefix, sys.executable, "-m", "benchmarks.portable", "--child", setting, str(folder)]
                command += ["--threads", str(options.threads), "--steps", str(options.steps)]
                digests = train_as(command, folder)
                bar.update()
                if digests is None:
                    failed = True
                    continue
                expected = expected or digests
                if setting == "portable" and digests != expected:
                    failed = True
                distance = f"{moved(reference, folder):.1g}" if (reference / "digests.json").exists() else ""
                lines.append("| " + " | ".join([setting, title, *(digests[key] for key in columns), distance]) + " |")
    lines += ["", cost(2 if options.quick else options.rounds, options.threads)]
    this = runtime.environment(torch.device("cpu"), torch.float32)
    head = (
        f"{options.steps} steps with {options.threads} threads; this processor is {this['processor']}, others are "
        f"emulated; torch {this['torch']} (`python -m benchmarks.portable`)."
    )
    report = "\n".join([head, "", *lines]) + "\n"
    write_text(REPORT if len(rows) > 1 else REPORT_HERE, report)
    print(report)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
