"""Do many experiments through DVC's queue cost time, memory and disk that grow no faster than their number?

Runs `python -m digits seeds` with the cheapest training, in parts, in a clone of this repository, and measures after
each part.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from digits.errors import run
from digits.files import write_text

CHEAP = ("recipe=quick", "train.epochs=1", "split.training_share=0.02", "model.cnn.channels.quick=[4, 4]")
REPORT = Path(__file__).with_suffix(".md")


def size(folder: Path) -> float:
    """Return the megabytes of the files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def workers(folder: Path) -> tuple[int, int, float]:
    """Return how many processes work in a folder, their open files, and their megabytes of memory."""
    found = (0, 0, 0.0)
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found = (found[0] + 1, found[1] + process.num_fds(), found[2] + process.memory_info().rss / 1e6)
        except (psutil.Error, OSError):
            continue
    return found


def measured(clone: Path, part: int, count: int) -> list[str]:
    """Run `count` experiments, and return a row of the table."""
    command = [sys.executable, "-m", "digits", "seeds", f"soak-{part}", "--count", str(count)]
    settings = [argument for one in (*CHEAP, f"train.warmup={part / 100}") for argument in ("-S", one)]
    began = time.monotonic()
    subprocess.run([*command, *settings], cwd=clone, check=True, stdout=subprocess.DEVNULL)
    seconds = (time.monotonic() - began) / count
    processes, files, memory = workers(clone)
    database = (clone / "mlflow.db").stat().st_size / 1e6 if (clone / "mlflow.db").exists() else 0.0
    sizes = (database, size(clone / "mlartifacts"), size(clone / ".dvc/cache"), size(clone / ".dvc/tmp"))
    return [
        str(part * count),
        f"{seconds:.1f}",
        str(processes),
        str(files),
        f"{memory:.0f}",
        *(f"{one:.1f}" for one in sizes),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.soak")
    parser.add_argument("--parts", type=int, default=5)
    parser.add_argument("--count", type=int, default=10, help="experiments of each part (default: %(default)s)")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", ".", str(clone)], check=True)
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet", "preprocess"], cwd=clone, check=True)
        for part in range(1, arguments.parts + 1):
            rows.append(measured(clone, part, arguments.count))
            print(" | ".join(rows[-1]))
        before = size(clone)
        for command in (
            ["dvc", "exp", "remove", "--all-commits"],
            ["dvc", "queue", "remove", "--all"],
            ["dvc", "gc", "--workspace", "--force"],
        ):
            subprocess.run([sys.executable, "-m", *command], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        freed = before - size(clone)
    header = (
        "experiments",
        "s each",
        "processes",
        "open files",
        "memory, MB",
        "mlflow.db, MB",
        "mlartifacts/, MB",
        ".dvc/cache, MB",
        ".dvc/tmp, MB",
    )
    table = [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    text = f"""# Many experiments

`python -m benchmarks.soak`: {arguments.parts} times {arguments.count} experiments through DVC's queue, each a short
training, in a clone.

{chr(10).join(table)}

Afterwards `dvc exp remove --all-commits`, `dvc queue remove --all` and `dvc gc --workspace` freed {freed:.0f} MB.
"""
    write_text(REPORT, text)
    print(text)


if __name__ == "__main__":
    run(main)
