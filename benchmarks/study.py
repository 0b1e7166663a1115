"""The study of docs/experiments.md: what each part of the recipe is worth, over seeds.

    python -m benchmarks.study [--count 5] [--jobs 2] [--only NAME ...]
    python -m benchmarks.study --read

Run it after `dvc repro`. Each row is one change to the recipe quick, run as by `python -m digits seeds` and compared
with the unchanged recipe, or with the row that it names: across seeds (`significance.across_seeds`), on the validation
split. The recipe's hard examples are left out, since which images are hard depends on everything else; they are a row
of their own. Its learning rate is 0.2, half of what it has now. The test accuracy is shown beside it and decides
nothing. Rewrites docs/experiments.csv, which has a line for each seed, and the tables in docs/experiments.md. `--only`
runs the rows with these names; `--read` runs nothing, and makes the tables from the lines that are there.

Two trainings run at a time with one thread each: together they get more done than one with two threads.
"""

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev

from digits.errors import UserError, run
from digits.files import read_table, write_table, write_text
from digits.records.results import Result
from digits.reports import significance
from digits.tools import seeds

POINTS, PAGE = Path("docs/experiments.csv"), Path("docs/experiments.md")
BASE = ("recipe=quick", "runtime.threads=1", "train.learning_rate=0.2", "train.hard_examples=0.0")
BASELINE = "quick"
PLAIN = tuple(f"augmentation.{name}=0.0" for name in ("rotation", "scale", "shift", "shear"))
LONG, HARD = "train.epochs=8", "train.hard_examples=0.3"


@dataclass(frozen=True)
class Row:
    """A change: the name of its experiments, what is changed, the settings for it, and the row to compare it with."""

    name: str
    change: str
    settings: tuple[str, ...]
    against: str = BASELINE


STUDY: dict[str, tuple[Row, ...]] = {
    "architecture": (
        Row("linear", "softmax regression", ("model.name=linear", "train.learning_rate=0.02")),
        Row("mlp", "the classic notebook's MLP", ("model.name=mlp", "train.learning_rate=0.1")),
        Row("resnet", "residual network", ("model.name=resnet",)),
        Row("wide", "twice as wide", ("model.cnn.channels.quick=[32,64]",)),
        Row("deep", "a third convolution", ("model.cnn.channels.quick=[16,32,32]",)),
        Row("whole", "no crop", ("model.cnn.crop=0",)),
    ),
    "augmentation": (
        Row("plain", "none", PLAIN),
        Row("no-rotation", "no rotation", ("augmentation.rotation=0.0",)),
        Row("no-scale", "no scale", ("augmentation.scale=0.0",)),
        Row("no-shift", "no shift", ("augmentation.shift=0.0",)),
        Row("no-shear", "no shear", ("augmentation.shear=0.0",)),
    ),
    "optimizer and schedule": (
        Row("adamw", "AdamW, rate 0.005", ("train.optimizer=adamw", "train.learning_rate=0.005")),
        Row("cosine", "cosine schedule", ("train.schedule=cosine",)),
        Row("constant", "constant rate", ("train.schedule=constant",)),
        Row("constant-low", "constant rate of 0.02", ("train.schedule=constant", "train.learning_rate=0.02")),
        Row("no-warmup", "no warm-up", ("train.warmup=0.0",)),
        Row("big-batches", "batches of 512, rate 0.4", ("train.batch_size=512", "train.learning_rate=0.4")),
    ),
    "regularization and averaging": (
        Row("no-smoothing", "no label smoothing", ("train.label_smoothing=0.0",)),
        Row("no-dropout", "no dropout", ("model.cnn.dropout=0.0",)),
        Row("no-decay", "no weight decay", ("train.weight_decay=0.0",)),
        Row("ema", "moving average of the weights, 0.99", ("train.ema=0.99",)),
        Row("ema-constant", "the same at a constant rate of 0.1",
            ("train.ema=0.99", "train.schedule=constant", "train.learning_rate=0.1")),
        Row("tta", "test-time augmentation by 1 pixel", ("model.tta_shift=1",)),
        Row("two", "two networks, mean of both", ("model.members=2",)),
    ),
    "size of the training split": (
        Row("tenth", "10 %, ten times the epochs", ("split.training_share=0.1", "train.epochs=20")),
        Row("hundredth", "1 %, a hundred times the epochs", ("split.training_share=0.01", "train.epochs=200")),
        Row("longer", "all, twice the epochs", ("train.epochs=4",)),
        Row("hard", "all, the hard ones twice in the second epoch", (HARD,)),
    ),
    "longer trainings": (
        Row("long", "eight epochs in place of two", (LONG,)),
        Row("long-plain", "… and no augmentation", (LONG, *PLAIN), "long"),
        Row("long-no-smoothing", "… and no label smoothing", (LONG, "train.label_smoothing=0.0"), "long"),
        Row("long-no-dropout", "… and no dropout", (LONG, "model.cnn.dropout=0.0"), "long"),
        Row("long-no-decay", "… and no weight decay", (LONG, "train.weight_decay=0.0"), "long"),
        Row("long-tta", "… and test-time augmentation by 1 pixel", (LONG, "model.tta_shift=1"), "long"),
        Row("long-wide", "… and twice as wide", (LONG, "model.cnn.channels.quick=[32,64]"), "long"),
        Row("long-deep", "… and a third convolution", (LONG, "model.cnn.channels.quick=[16,32,32]"), "long"),
        Row("long-hard", "… and hard examples twice", (LONG, HARD), "long"),
    ),
}  # fmt: skip
ROWS = [Row(BASELINE, "quick, rate of 0.2, no hard examples", ()), *(row for group in STUDY.values() for row in group)]


def settings_of(row: Row) -> list[str]:
    """Return the settings of a row: its own in place of those of the base."""
    return list({setting.partition("=")[0]: setting for setting in (*BASE, *row.settings)}.values())


def command(row: Row, count: int) -> str:
    settings = " ".join(f"-S {shlex.quote(setting)}" for setting in settings_of(row))
    return f"python -m digits seeds {row.name} --count {count} --jobs 2 {settings}"


def results(row: Row, count: int, jobs: int) -> list[Result]:
    """Run the experiments of a row, and return their results."""
    return seeds.run(row.name, count, settings_of(row), jobs)[0]


def lines_of(row: Row, found: list[Result]) -> list[dict[str, str]]:
    """Return the results of a row as lines of docs/experiments.csv, one for each seed."""
    return [
        {
            "name": row.name,
            "seed": str(seed),
            "validation_accuracy": str(result.metrics["validation_accuracy"]),
            "test_accuracy": str(result.metrics["test_accuracy"]),
            "parameters": str(int(result.metrics["parameters"])),
            "seconds": f"{result.seconds:.1f}" if result.seconds else "",
        }
        for seed, result in enumerate(found)
    ]


def table(rows: Sequence[Row], lines: list[dict[str, str]]) -> str:
    """Return the Markdown table of some rows, each compared with the row that it names."""

    def column(name: str, key: str) -> list[float]:
        return [float(line[key]) for line in lines if line["name"] == name and line[key]]

    text = [
        "| change | seeds | validation, mean ± deviation, % | difference (95 % interval), % points | verdict | "
        "test, % | parameters | training, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = column(row.name, "validation_accuracy")
        others = column(row.against, "validation_accuracy")
        if min(len(shares), len(others)) < 2:
            continue
        against, verdict, timed = "–", "–", column(row.name, "seconds")
        seconds = f"{mean(timed):.1f}" if timed else "–"
        if row.name != BASELINE:
            finding = significance.across_seeds(others, shares)
            against = f"{100 * finding.difference:+.2f} ({100 * finding.low:+.2f} to {100 * finding.high:+.2f})"
            verdict = f"{finding.verdict}, p = {finding.p:.2g}"
        text.append(
            f"| {row.change} | {len(shares)} | {100 * mean(shares):.2f} ± {100 * stdev(shares):.2f} | {against} | "
            f"{verdict} | {100 * mean(column(row.name, 'test_accuracy')):.2f} | "
            f"{column(row.name, 'parameters')[0]:,.0f} | {seconds} |"
        )
    commands = "\n".join(
        wrapped(command(row, len(column(row.name, "seed")))) for row in rows if column(row.name, "seed")
    )
    table = re.sub(r"(?<=\d) %", "\u00a0%", "\n".join(text))  # which no line break parts
    return "\n".join([table, "", "```bash", commands, "```"])


def wrapped(command: str) -> str:
    """Return a command in lines that a page shows in full, each option on the line of its value."""
    lines = [""]
    for part in re.split(" (?=-)", command):
        if len(lines[-1]) + len(part) > 94:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


def _filled(made: str, found: re.Match[str]) -> str:
    return f"{found[1]}{made}\n{found[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description="What each part of the recipe is worth."
    )
    parser.add_argument("--count", type=int, default=5, help="seeds of each row (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ROWS], metavar="NAME", help="rows to run")
    parser.add_argument("--read", action="store_true", help="run nothing, only rewrite the tables")
    options = parser.parse_args()
    lines = read_table(POINTS) if POINTS.exists() else []
    for row in ROWS if not options.read else []:
        if options.only and row.name not in options.only:
            continue
        print(command(row, options.count), flush=True)
        made = lines_of(row, results(row, options.count, options.jobs))
        lines = [line for line in lines if line["name"] != row.name] + made
        write_table(POINTS, lines[0], lines)
    page = PAGE.read_text(encoding="utf-8")
    for title, rows in {"baseline": ROWS[:1], **STUDY}.items():
        mark = rf"(<!-- {title} -->\n).*?(<!-- end -->)"
        if not re.search(mark, page, re.DOTALL):
            raise UserError(f"{PAGE}: no place for the table of {title}: <!-- {title} --> … <!-- end -->")
        page = re.sub(mark, partial(_filled, table(rows, lines)), page, flags=re.DOTALL)
    write_text(PAGE, page)


if __name__ == "__main__":
    run(main)
