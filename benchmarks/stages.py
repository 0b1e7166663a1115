"""What surrounds the training: seconds, CPU seconds and memory of each stage, without the training itself.

    python -m benchmarks.stages [--rounds 4] [--quick] [--against REVISION]

Run it on an otherwise idle machine. In a temporary repository made from the working tree, with one epoch of training,
each round runs every stage by `dvc repro --force --single-item`: the first round starts with nothing and creates
MLflow's database, the later ones find both. Then one `dvc repro --force` runs all of them, again without and with the
database, and finally DVC is called with nothing to do. The seconds in `Training.epochs` are measured in the stage's
process and subtracted. `--quick` makes two rounds and leaves out the runs of all stages at once. Rewrites
benchmarks/stages.md.

With `--against`, train, evaluate and export are timed as whole processes with a single training step, here and at
another revision in turn, and the ratio of the medians is given instead.
"""

import argparse
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter

import yaml
from tqdm import tqdm

from digits import params, pipeline
from digits.errors import UserError, run
from digits.files import read_json, write_text
from digits.records.lineage import git

REPORT = Path("benchmarks/stages.md")
SPENT = Path("spent.json")  # what TIMED writes
# Appended to digits/learning/training.py.
TIMED = f"""

_epochs = Training.epochs


def _timed(self, *arguments, **named):
    import json, time

    spent, epochs = [0.0, 0.0], _epochs(self, *arguments, **named)
    while True:
        before = time.perf_counter(), time.process_time()
        epoch = next(epochs, None)
        spent = [spent[0] + time.perf_counter() - before[0], spent[1] + time.process_time() - before[1]]
        if epoch is None:
            break
        yield epoch
    with open("{SPENT}", "w") as file:
        json.dump(spent, file)


Training.epochs = _timed
"""


@dataclass(frozen=True)
class Cost:
    """What a command and its children took, without the training: seconds, CPU seconds, peak memory in MB."""

    wall: float
    cpu: float
    memory: float


def single_step(root: Path, revision: str | None) -> None:
    """Make a finished repository of a revision, or of the working tree, whose training is a single step."""
    root.mkdir()
    if revision:
        archive = git("archive", revision)
        if archive is None:
            raise UserError(f"--against {revision}: no such revision")
        subprocess.run(["tar", "-x", "-C", str(root)], input=archive, check=True)
    else:
        copy_files(root)
    text = (root / "params.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^  epochs:.*", "  epochs: 1", text, flags=re.MULTILINE)
    share = re.sub(
        r"^  training_share:.*", "  training_share: 0.002", text, flags=re.MULTILINE
    )  # 110 images: one batch
    (root / "params.yaml").write_text(share, encoding="utf-8")
    commit(root)
    shutil.copytree("data/raw", root / "data/raw", dirs_exist_ok=True)
    measure(root, "dvc", "repro")


def compared(revision: str, rounds: int) -> list[str]:
    """Return a table of train, evaluate and export here and at another revision, in turn."""
    taken: dict[str, dict[str, list[float]]] = {"this": {}, revision: {}}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=rounds * 6, unit="run", disable=None) as bar:
        for place, name in enumerate(taken):
            single_step(Path(folder, str(place)), None if name == "this" else revision)
        for number in range(rounds):
            for stage in ("train", "evaluate", "export"):
                for place, (_, seconds) in list(enumerate(taken.items()))[:: 1 if number % 2 else -1]:
                    cost = measure(Path(folder, str(place)), sys.executable, "-m", f"stages.{stage}")
                    seconds.setdefault(stage, []).append(cost.wall)
                    bar.update()
    lines = [f"| stage | this | {revision} | ratio |", "|---" * 4 + "|"]
    for seconds in taken.values():
        seconds["all three"] = [sum(one) for one in zip(*seconds.values(), strict=True)]
    for stage, here in taken["this"].items():
        there = taken[revision][stage]
        ratio = statistics.median(here) / statistics.median(there)
        lines.append(f"| {stage} | {spread(here)} | {spread(there)} | {ratio:.2f} |")
    return lines


def repository(root: Path) -> None:
    """Make a repository from the files that git tracks or would track, with one epoch of training, which is timed."""
    copy_files(root)
    # No check of the networks: that would import torch, and a process begins with the peak memory of its parent.
    content = params.load(lambda *_: []).model_dump()
    content["train"]["epochs"] = 1
    write_text(root / "params.yaml", yaml.safe_dump(content))
    training = root / "digits/learning/training.py"
    training.write_text(training.read_text(encoding="utf-8") + TIMED, encoding="utf-8")
    commit(root)


def copy_files(root: Path) -> None:
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard") or b""
    for name in filter(None, listed.decode().split("\0")):
        if Path(name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, root / name)


def commit(root: Path) -> None:
    identity = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@example.com")
    for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message=start"]):
        subprocess.run(["git", *command], cwd=root, check=True)


def measure(root: Path, *command: str) -> Cost:
    """Run a command in `root`, and return what it took. Raises UserError if it fails."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    environment = inherited | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    (root / SPENT).unlink(missing_ok=True)
    with tempfile.TemporaryFile() as said:
        start = perf_counter()
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise UserError(f"{' '.join(command)} failed: {said.read().decode()[-2000:]}")
    spent = read_json(root / SPENT) if (root / SPENT).exists() else [0.0, 0.0]
    memory = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Cost(wall - spent[0], cpu(usage) - spent[1], memory)


def cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def forget_runs(root: Path) -> None:
    (root / "mlflow.db").unlink(missing_ok=True)
    shutil.rmtree(root / "mlartifacts", ignore_errors=True)


def spread(values: list[float]) -> str:
    """Return "median (least to largest)" of seconds."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def row(name: str, first: Cost | None, later: list[Cost]) -> str:
    """Return a row of the table: `first` is the run that creates the database, `later` are those that find it."""
    every = [*later, *([first] if first else [])]
    return (
        f"| {name} | {f'{first.wall:.2f}' if first else '–'} | {spread([cost.wall for cost in later])} | "
        f"{statistics.median(cost.cpu for cost in later):.2f} | {max(cost.memory for cost in every):.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description="What surrounds the training.")
    parser.add_argument("--rounds", type=int, default=4, help="how often each is timed, from 2 (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds, and no runs of all stages at once")
    about = "compare whole processes with those of another revision, and rewrite nothing"
    parser.add_argument("--against", metavar="REVISION", help=about)
    arguments = parser.parse_args()
    if arguments.against:
        print("\n".join(compared(arguments.against, max(5, arguments.rounds))))
        return
    rounds, names = 2 if arguments.quick else max(2, arguments.rounds), list(pipeline.stages())
    taken: dict[str, list[Cost]] = {name: [] for name in names}
    whole: list[Cost] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=rounds * len(names) + (0 if arguments.quick else 2), unit="run", disable=None) as bar,
    ):
        root = Path(folder)
        repository(root)
        for _ in range(rounds):
            for name in names:
                taken[name].append(measure(root, "dvc", "repro", "--force", "--single-item", name))
                bar.update()
        if not arguments.quick:
            forget_runs(root)
            for _ in range(2):
                whole.append(measure(root, "dvc", "repro", "--force"))
                bar.update()
        idle = [measure(root, "dvc", "repro") for _ in range(5)]
        floor = [measure(root, sys.executable, "-c", "import torch") for _ in range(5)]
    sums = [
        Cost(sum(one.wall for one in costs), sum(one.cpu for one in costs), max(one.memory for one in costs))
        for costs in zip(*taken.values(), strict=True)
    ]
    lines = [row(name, costs[0], costs[1:]) for name, costs in taken.items()]
    lines.append(row("sum of the five", sums[0], sums[1:]))
    if whole:
        lines.append(row("**all by one `dvc repro`**", whole[0], whole[1:]))
    lines.append(row("`dvc repro` with nothing to do, in each of the above", None, idle))
    lines.append(row("`import torch`, in each of the five", None, floor))
    import torch  # only now, see `repository`

    from digits.learning import runtime

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "dvc", "mlflow", "matplotlib"))
    table = "\n".join(
        [
            f"{runtime.environment(torch.device('cpu'), torch.float32)['processor']}, {os.cpu_count()} cores, Python",
            f"{platform.python_version()}, {versions}; {rounds} rounds (`python -m benchmarks.stages"
            f"{' --quick' if arguments.quick else ''}`).",
            "Seconds without those in `Training.epochs`; each of the five includes DVC's own start.",
            "",
            "| stage | seconds, creating MLflow's database | seconds, database found: median (range) | CPU s | MB |",
            "|---|---|---|---|---|",
            *lines,
        ]
    )
    write_text(REPORT, table + "\n")
    print(table)


if __name__ == "__main__":
    run(main)
