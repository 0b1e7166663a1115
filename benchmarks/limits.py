"""How close training and inference come to what the machine can do.

    python -m benchmarks.limits [--rounds 7] [--steps 60] [--recipes quick default best] [--quick]

Run it after `dvc repro`, on an otherwise idle machine; it rewrites benchmarks/limits.md. Measurements are interleaved:
each round times everything once. Ratios are taken within a round, and their median over the rounds is reported, so that
drifts in the machine's speed do not distort them.

Training, for each recipe and each precision that the hardware has, all in steps of the recipe's own batch size:

- end to end: from step to step inside `Training.epochs`;
- of the limit: the same, relative to forward, loss, backward and optimizer on one batch that is already in memory
  (goal: 0.90);
- augmentation: the share of a step that is saved when all amounts are 0 (goal: at most 8 %);
- of the peak: floating-point operations per second of the step's convolutions and matrix products, on the batch that is
  already in memory, relative to this machine's fastest square matrix product in the same precision;
- peak memory: that of `benchmarks.memory`, a process that trains one epoch.

Inference, with the model that `dvc repro` has exported: images per second in batches of `runtime.batch_size`, and the
time for a single image. The int8 model is quantized from the ONNX file, per channel, calibrated on training images.
Accuracy is that on the validation split.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks import recipes
from digits import paths
from digits.errors import run
from digits.files import write_text
from digits.images.batches import to_float
from digits.images.splits import Split
from digits.learning import evaluation, exporting, models, runtime, training
from digits.learning.checkpoints import Checkpoint
from digits.params import Params
from digits.params.reading import RECIPES

REPORT = Path("benchmarks/limits.md")
WARM = 8  # steps before the clock starts: kernels are prepared, memory for the momentum is allocated
CALIBRATION = 1000  # training images from which the int8 model's ranges are taken


class Steps(Checkpoint):
    """A checkpoint that never saves, but records when steps `WARM` and `last` were done."""

    def __init__(self, last: int) -> None:
        super().__init__("steps", interval=0)
        self._count, self._last = 0, last
        self._times: list[float] = []

    def due(self) -> bool:
        self._count += 1
        if self._count in (WARM, self._last):
            self._times.append(now())
        return False

    def seconds(self) -> float:
        """Return the seconds of one step."""
        return (self._times[1] - self._times[0]) / (self._last - WARM)


def now() -> float:
    """Return the time in seconds, once the device has finished its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def end_to_end(p: Params, learned: Split, steps: int, device: torch.device) -> float:
    """Return the seconds of one step of a training."""
    watch = Steps(steps)
    some = learned[: steps * p.train.batch_size]
    for _ in training.begin(recipes.one_epoch(p), some, learned[:2], device).epochs(watch):
        pass
    return watch.seconds()


def resident(p: Params, learned: Split, device: torch.device) -> Callable[[], None]:
    """Return a function that trains one step on a batch that is already in memory, which no training loop can beat."""
    batch = learned[: p.train.batch_size].to(device)
    this = training.begin(p, batch, batch, device)
    network, optimizer = this.network.train(), training.optimizer_of(this.network, p.train)
    images = to_float(batch.images).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with runtime.autocast(device, this.precision):
            logits = network(images)
        loss = training.losses_of(logits, batch.labels, p.train.label_smoothing).sum() / len(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def each(call: Callable[[], object], times: int) -> float:
    """Return the seconds of one call, of `times` in a row."""
    start = now()
    for _ in range(times):
        call()
    return (now() - start) / times


def matmul_peak(precision: str, device: torch.device) -> float:
    """Return the floating-point operations per second of the fastest square matrix product, of a few sizes."""
    dtype, best = runtime.PRECISIONS[precision], 0.0
    for side in (512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192):
        left, right = torch.rand(2, side, side, device=device).to(dtype)
        seconds = min(each(lambda: left @ right, 1) for _ in range(4))  # noqa: B023  # called at once
        best = max(best, 2 * side**3 / seconds)
    return best


def peak_memory(recipe: str, precision: str) -> float:
    """Return the peak resident memory, in MiB, of a process that trains one epoch."""
    command = [sys.executable, "-m", "benchmarks.memory", recipe, precision]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def training_row(recipe: str, precision: str, learned: Split, rounds: int, steps: int, device: torch.device) -> str:
    """Measure a recipe in one precision, and return its row of the table."""
    p = recipes.in_precision(recipes.load({"recipe": recipe}), precision)
    step = resident(p, learned, device)
    with FlopCounterMode(display=False) as counter:
        step()
    operations = counter.get_total_flops()
    each(step, WARM)
    found: dict[str, list[float]] = {"speed": [], "limit": [], "augmentation": [], "rate": [], "peak": []}
    for _ in range(rounds):
        whole = end_to_end(p, learned, steps, device)
        alone = each(step, steps - WARM)
        without = end_to_end(recipes.unaugmented(p), learned, steps, device)
        found["speed"].append(p.train.batch_size / whole)
        found["limit"].append(alone / whole)
        found["augmentation"].append(1 - without / whole)
        found["rate"].append(operations / alone)
        found["peak"].append(operations / alone / matmul_peak(precision, device))
    middle = {name: median(values) for name, values in found.items()}
    return (
        f"| {recipe} | {precision} | {middle['speed']:,.0f} | {middle['limit']:.2f} ({min(found['limit']):.2f} to "
        f"{max(found['limit']):.2f}) | {middle['augmentation']:.1%} | {middle['rate'] / 1e9:,.0f} | "
        f"{middle['peak']:.0%} | {peak_memory(recipe, precision):,.0f} |"
    )


class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]  # it has no types
    """Training images in batches, as the quantizer asks for them."""

    def __init__(self, images: Tensor, batch_size: int) -> None:
        self._batches: Iterator[Tensor] = iter(images.split(batch_size))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {exporting.INPUT: to_float(batch).numpy()}


def quantize(source: Path, target: Path, images: Tensor, batch_size: int) -> None:
    """Write the ONNX model `source` with 8-bit weights and activations, calibrated on `images`."""
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared)
    # Batch norm stays as it is: its weights have no channel axis to quantize along.
    kinds = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu"]
    quantization.quantize_static(
        prepared, target, Calibration(images, batch_size), per_channel=True, op_types_to_quantize=kinds
    )


def onnx_model(path: Path, threads: int) -> Callable[[Tensor], Tensor]:
    """Load an ONNX file, and return a function from images to logits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([exporting.OUTPUT], {exporting.INPUT: images.numpy()})[0])


@dataclass(frozen=True)
class Inference:
    """Measurements of one form of the model: images per second in each round, seconds for each single image."""

    speeds: list[float]
    latencies: list[float]


@torch.inference_mode()
def measure_inference(
    forms: dict[str, Callable[[Tensor], Tensor]], images: Tensor, batch_size: int, rounds: int, calls: int
) -> dict[str, Inference]:
    """Time all forms, interleaved: all `images` in batches, and `calls` single ones; a first round does not count."""
    found = {name: Inference([], []) for name in forms}
    share = -(-calls // rounds)
    for number in range(rounds + 1):
        for name, form in forms.items():
            start = now()
            for batch in images.split(batch_size):
                form(batch)
            speed = len(images) / (now() - start)
            latencies = [each(lambda: form(single), 1) for single in images[:share].split(1)]  # noqa: B023  # called at once
            if number:
                found[name].speeds.append(speed)
                found[name].latencies.extend(latencies)
    return found


def inference_table(learned: Split, held_out: Split, test: Split, rounds: int, calls: int, p: Params) -> str:
    """Measure the exported model on the CPU in all its forms, and return the table."""
    cpu = torch.device("cpu")
    network = models.load(paths.MODEL)[0]
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "int8.onnx")
        quantize(paths.ONNX, small, learned.images[:CALIBRATION], p.runtime.batch_size)

        def autocast(images: Tensor) -> Tensor:
            with runtime.autocast(cpu, torch.bfloat16):
                return network(images).float()  # type: ignore[no-any-return]

        forms: dict[str, Callable[[Tensor], Tensor]] = {"PyTorch, fp32": network}
        if "bf16" in recipes.precisions(p, cpu):
            forms["PyTorch, bf16 autocast"] = autocast
        forms |= {
            "pt2, fp32": torch.export.load(paths.PT2).module(),
            "ONNX Runtime, fp32": onnx_model(paths.ONNX, p.runtime.threads),
            "ONNX Runtime, int8": onnx_model(small, p.runtime.threads),
        }
        found = measure_inference(forms, to_float(test.images), p.runtime.batch_size, rounds, calls)
        lines = []
        first = next(iter(found.values())).speeds
        for name, form in forms.items():
            with torch.inference_mode():
                logits = torch.cat([form(to_float(batch)) for batch in held_out.images.split(p.runtime.batch_size)])
            accuracy = evaluation.score(logits, held_out.labels)[1]
            one = found[name]
            ratio = median(speed / base for speed, base in zip(one.speeds, first, strict=True))
            cuts = quantiles(one.latencies, n=20)
            lines.append(
                f"| {name} | {median(one.speeds):,.0f} | {ratio:.2f} | {1e6 * cuts[9]:,.0f} | {1e6 * cuts[18]:,.0f} | "
                f"{accuracy:.2%} |"
            )
    head = "| model | images/s | times PyTorch fp32 | one image, p50 µs | p95 µs | validation accuracy |"
    return "\n".join([head, "|---|---|---|---|---|---|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.limits", description="How close to the machine's limits."
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="training steps each time (default: %(default)s)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 20 steps")
    options = parser.parse_args()
    rounds, steps, calls = (2, 20, 200) if options.quick else (options.rounds, max(options.steps, WARM + 1), 1000)

    p = recipes.load()
    device = runtime.prepare(p.runtime)
    learned, held_out, test = recipes.load_splits()
    pairs = list(itertools.product(options.recipes, recipes.precisions(p, device)))
    rows = []
    with tqdm(pairs, unit="recipe", disable=None, dynamic_ncols=True) as bar:
        for recipe, precision in bar:
            bar.set_postfix_str(f"{recipe}, {precision}")
            rows.append(training_row(recipe, precision, learned, rounds, steps, device))
    network = models.load(paths.MODEL)[0].to(device)
    speeds = [
        len(test) / each(lambda: evaluation.predict(network, test, p.runtime.batch_size, device), 1)
        for _ in range(rounds + 1)
    ][1:]
    found = runtime.environment(device, torch.float32)
    columns = (
        "recipe",
        "precision",
        "images/s, end to end",
        "of the limit (goal 0.90)",
        "augmentation (goal at most 8 %)",
        "GFLOP/s",
        "of the peak",
        "peak memory, MiB",
    )
    table = "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows])
    text = f"""Medians of {rounds} rounds of {steps} steps, {found["threads"]} threads on {found["processor"]}, device
{found["device"]}, torch {found["torch"]} (`python -m benchmarks.limits`, which explains each column).

## Training

{table}

## Evaluation

`evaluation.predict` on the {len(test):,} test images, as the evaluate stage calls it: {median(speeds):,.0f} images/s \
({min(speeds):,.0f} to {max(speeds):,.0f}).

## Inference on the CPU

The model of `models/`, batches of {p.runtime.batch_size}, {calls:,} single images:

{inference_table(learned, held_out, test, rounds, calls, p)}
"""
    write_text(REPORT, text)
    print(text)


if __name__ == "__main__":
    run(main)
