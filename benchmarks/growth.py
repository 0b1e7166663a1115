"""Do time and memory grow as they should with the data? The real stages on data up to 50 times as large as MNIST.

    python -m benchmarks.growth [--factors 1 10 50] [--limited 30] [--quick]

Run it after `dvc repro`, on an otherwise idle machine. It takes about 6 minutes, and 10 GB for temporary files, which
must be on a disk (set TMPDIR if /tmp is in memory). For each factor it makes IDX files of MNIST's images, followed by
copies of them, each shifted by other numbers of pixels, for training and test set alike. Then download (from that
folder), preprocess, train (one epoch of a small network) and evaluate run as processes of their own in a temporary copy
of the code, without DVC and MLflow. Twenty times a second, the memory of each process is read from /proc (Linux only):
anonymous memory, which it needs, and pages of mapped files, which the system may reclaim at any time.

More data than memory: preprocess and train run once more in a control group (version 1, which takes root) whose limit
on all memory, page cache included, is half the size of the training images. Rewrites benchmarks/growth.md.
"""

import argparse
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import yaml
from tqdm import tqdm

from benchmarks import recipes
from digits import paths
from digits.datasets import FILES
from digits.errors import UserError, run
from digits.files import write_text
from digits.images.idx import read_idx
from digits.images.splits import BLOCK
from digits.learning import runtime

REPORT = Path("benchmarks/growth.md")
STAGES = ("download", "preprocess", "train", "evaluate")
LIMITED = ("preprocess", "train")  # these also run with more data than memory
INTERVAL = 0.05  # seconds between two looks at a process


@dataclass(frozen=True)
class Usage:
    """What a stage took: seconds, seconds of all processors, peak anonymous and file-mapped memory in bytes."""

    seconds: float
    processor: float
    anonymous: int
    mapped: int


def enlarge(folder: Path, factor: int) -> int:
    """Write IDX files `factor` times as large as MNIST's to `folder`, and return the number of images."""
    folder.mkdir()
    total = 0
    for part in ("train", "test"):
        images, labels = (read_idx(paths.RAW / FILES[part, kind]) for kind in ("images", "labels"))
        blocks = torch.from_numpy(images).unsqueeze(1).split(BLOCK)
        count = factor * len(labels)
        total += count
        with (folder / FILES[part, "labels"]).open("wb") as file:
            file.write(struct.pack(">4BI", 0, 0, 8, 1, count))
            file.writelines([labels.data] * factor)
        with (
            (folder / FILES[part, "images"]).open("wb") as file,
            tqdm(total=count, desc=f"{factor} x {part}", unit="image", unit_scale=True, disable=None) as bar,
        ):
            file.write(struct.pack(">4B3I", 0, 0, 8, 3, count, *images.shape[1:]))
            for copy in range(factor):
                for block in blocks:
                    file.write(block.roll(divmod(copy, images.shape[2]), (2, 3)).numpy().data)
                    bar.update(len(block))
    return total


def copy_project(root: Path, own: Path) -> None:
    """Copy what the stages need to `root`, with params for the data in `own` and a short training."""
    for name in ("digits", "stages"):
        shutil.copytree(name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("dvc.yaml", root)
    content = recipes.load().model_dump()
    content["data"] |= {"name": "folder", "folder": str(own)}
    content["model"]["name"] = "mlp"
    content["model"]["mlp"]["hidden"] = [32]
    content["train"] |= {"epochs": 1, "learning_rate": 0.05}
    content["augmentation"] = dict.fromkeys(content["augmentation"], 0.0)
    write_text(root / "params.yaml", yaml.safe_dump(content))


def measure(stage: str, root: Path, group: Path | None = None) -> Usage:
    """Run a stage in `root`, in a control group if one is given. Raises UserError if it fails."""
    command = [sys.executable, "-m", f"stages.{stage}"]
    if group:
        command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *command]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    anonymous = mapped = 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=root, env=kept | {"MLFLOW_TRACKING_URI": "off"}, stdout=log, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            found = [_resident(pid) for pid in (process.pid, *_children(process.pid))]
            anonymous = max(anonymous, sum(pair[0] for pair in found))
            mapped = max(mapped, sum(pair[1] for pair in found))
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            raise UserError(f"{stage} ended with code {process.returncode}: {' '.join(log.readlines()[-1:]).strip()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Usage(seconds, processor, anonymous, mapped)


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident(pid: int) -> tuple[int, int]:
    """Return the anonymous and the file-mapped bytes that a process holds in memory; none if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines)
    anonymous, mapped = (int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return anonymous, mapped


@contextmanager
def control_group(limit: int) -> Iterator[Path | None]:
    """Yield a new control group below this process's own with `limit` bytes of memory; None if that is impossible."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
        own = next(line.split(":")[2] for line in lines if line.split(":")[1] == "memory")
        group = Path(f"/sys/fs/cgroup/memory{own}", f"growth-{os.getpid()}")
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
    except (OSError, StopIteration):
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def forget(folder: Path) -> None:
    """Drop all files of a folder from the page cache, since what is already in it counts against nobody's limit."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def row(name: str, stage: str, size: int, usage: Usage, further: tuple[str, str]) -> str:
    numbers = f"{usage.seconds:.1f} | {usage.processor:.1f} | {further[0]} | {further[1]}"
    memory = f"{usage.anonymous / 1e6:,.0f} | {usage.mapped / 1e6:,.0f}"
    return f"| {stage} | {name} | {size / 1e6:,.0f} | {numbers} | {memory} |"


def report(found: dict[int, dict[str, Usage]], counts: dict[int, int], extra: list[str]) -> str:
    """Return benchmarks/growth.md: `found` by factor and stage, `counts` of images by factor, in rising order."""
    factors = list(found)
    environment = runtime.environment(torch.device("cpu"), torch.float32)
    memory = psutil.virtual_memory().total
    lines = [
        f"The real stages on data up to {factors[-1]} times as large as MNIST, on {environment['processor']}, "
        f"{os.cpu_count()} cores, {memory / 1e9:.0f} GB of memory, {platform.system()} {platform.release()}, Python "
        f"{environment['python']}, torch {environment['torch']} (`python -m benchmarks.growth`).",
        "Data: the training and test images. Per further million: what each million images beyond the previous factor",
        "costs, which leaves out start-up; equal numbers mean linear growth. Anonymous: the process's own peak memory;",
        "mapped: pages of files in memory, which the system reclaims when it needs them.",
        "",
        "| stage | times MNIST | data, MB | seconds | processor seconds | seconds per further million | "
        "processor seconds per further million | anonymous, MB | mapped, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    facts = []
    for stage in STAGES:
        slopes = []
        for place, factor in enumerate(factors):
            usage, further = found[factor][stage], ("", "")
            if place:
                before, millions = found[factors[place - 1]][stage], (counts[factor] - counts[factors[place - 1]]) / 1e6
                slopes.append((usage.seconds - before.seconds) / millions)
                further = (f"{slopes[-1]:.2f}", f"{(usage.processor - before.processor) / millions:.2f}")
            lines.append(row(str(factor), stage, counts[factor] * 784, usage, further))
        if slopes:
            first, last = found[factors[0]][stage], found[factors[-1]][stage]
            each = (last.anonymous - first.anonymous) / (counts[factors[-1]] - counts[factors[0]])
            constant = first.anonymous - each * counts[factors[0]]
            fact = f"- {stage}: anonymous memory {constant / 1e6:,.0f} MB {round(each):+} bytes per image"
            growth = f", time per further image {slopes[-1] / slopes[-2]:.2f} of that before" if slopes[1:] else ""
            facts.append(fact + growth)
    return "\n".join([*lines, *extra, "", *facts, ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description="Time and memory by size of data.")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 10, 50], help="times MNIST (default: 1 10 50)")
    parser.add_argument("--limited", type=int, default=30, help="the same with half the memory; 0: not (default: 30)")
    parser.add_argument("--quick", action="store_true", help="the same as --factors 1 3 --limited 0")
    options = parser.parse_args()
    factors, limited = ([1, 3], 0) if options.quick else (sorted(set(options.factors)), options.limited)
    if not (paths.RAW / FILES["train", "images"]).exists():
        raise UserError(f"{paths.RAW}: no MNIST to enlarge; `dvc repro download` fetches it")
    found: dict[int, dict[str, Usage]] = {}
    counts, extra = {}, []
    for factor in sorted({*factors, limited} - {0}):
        with tempfile.TemporaryDirectory() as folder:
            root, own = Path(folder, "project"), Path(folder, "own")
            counts[factor] = enlarge(own, factor)
            copy_project(root, own)
            stages = STAGES if factor in factors else ("download",)
            usages = {}
            for stage in stages:
                usages[stage] = measure(stage, root)
                print(f"{factor} x {stage}: {usages[stage]}")
            if factor in factors:
                found[factor] = usages
            if factor == limited:
                extra = limited_rows(root, factor, counts[factor])
    text = report(found, counts, extra)
    write_text(REPORT, text)
    print(text)


def limited_rows(root: Path, factor: int, count: int) -> list[str]:
    """Run preprocess and train with less memory than data, and return their rows of the table."""
    limit = (root / paths.RAW / FILES["train", "images"]).stat().st_size // 2
    rows = []
    with control_group(limit) as group:
        for stage in LIMITED:
            forget(root / "data")
            name = f"{factor}, limited to {limit / 1e6:,.0f} MB"
            if group is None:
                rows.append(f"| {stage} | {name} | not run: takes root and control groups of version 1 |||||||")
                continue
            usage = measure(stage, root, group)
            print(f"{name} {stage}: {usage}")
            rows.append(row(name, stage, count * 784, usage, ("", "")))
    return rows


if __name__ == "__main__":
    run(main)
