"""Is B better than A, by how much, and how sure is that?

    python -m digits.compare [A [B]] [--format console|markdown|json] [--picture FILE]

A and B are results: a git revision, the name of a DVC experiment, the id of an MLflow run, `workspace`, or a model
file; by default HEAD and the workspace. Several of one recipe, which differ by their seed, are separated by commas, or
are a pattern for the names of experiments: `wide-seed-*`.

One result of each is compared image by image, several seeds of each across seeds: see `digits.significance`. The
verdict is that of the validation split; the test split is shown, and should decide nothing. What evaluate wrote is
read, no model is run again. The picture shows the validation images that changed sides.
"""

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from digits import data, evaluation, figures, paths, provenance, significance
from digits.command import UserError, run
from digits.files import md5, parse_table
from digits.lineage import State
from digits.significance import Finding

# The split, the file it is in, and the predictions that evaluate wrote for it.
SPLITS = {"validation": (paths.VALIDATION, paths.VALIDATION_TABLE), "test": (paths.TEST, paths.CONFUSION_TABLE)}
PICTURES = (".png", ".pdf", ".svg")
COST = ("parameters", "epochs")  # of metrics/train.json


@dataclass(frozen=True)
class Predictions:
    """What a result says of each image of a split: names of classes, in the order of the split; `images` is its MD5."""

    actual: list[str]
    predicted: list[str]
    images: str

    def correct(self) -> list[bool]:
        return [actual == predicted for actual, predicted in zip(self.actual, self.predicted, strict=True)]


def read(state: State, split: str) -> Predictions:
    """Give the predictions of a result. Raises UserError if it has none."""
    images, table = (path.as_posix() for path in SPLITS[split])
    try:
        rows = parse_table(state.read(table))
    except FileNotFoundError:
        raise UserError(f"{state.name}: has no {table}; `dvc repro` writes it") from None
    if not rows or images not in state.outputs:
        raise UserError(f"{state.name}: has no predictions in {table}, or is not a finished result")
    return Predictions([row["actual"] for row in rows], [row["predicted"] for row in rows], state.outputs[images])


def side(what: str) -> list[State]:
    """Give the results that an argument names: one, or several seeds of one recipe.

    Raises UserError if there are none, they differ by more than their seed, or not even by that.
    """
    names: list[str] = []
    for part in what.split(","):
        is_pattern = re.search(r"[*?\[]", part)
        found = provenance.experiments(part).values() if is_pattern else [part]
        if not found:
            raise UserError(f"{part}: no DVC experiment has such a name; `dvc exp list --all-commits` names them")
        names.extend(found)
    states = [provenance.resolve(name) for name in names]
    try:
        states = [provenance.with_run(state) for state in states]
    except UserError as error:  # all but the seconds of training is in files
        print(f"{error}; how long training took is not known", file=sys.stderr)
    for state in states[1:]:
        if [key for key in provenance.changed(states[0].params, state.params) if key != "seed"]:
            raise UserError(f"{what}: {states[0].name} and {state.name} differ by more than their seed")
    if len({state.params.get("seed") for state in states}) < len(states):
        raise UserError(f"{what}: two of these have the same seed, and would count twice")
    return states


def compare(first: list[State], second: list[State]) -> dict[str, Any]:
    """Give all that can be said of two sides, as values that JSON can hold. Raises UserError if they do not fit."""
    if (len(first) == 1) != (len(second) == 1):
        raise UserError(
            f"{len(first)} against {len(second)} results: must be one of each, or two seeds or more of each"
        )
    found: dict[str, Any] = {"seeds": [len(first), len(second)]}
    for key, states in (("first", first), ("second", second)):
        found[key] = {"name": name_of(states), "cost": cost(states)}
    for split in SPLITS:
        sides = [[read(state, split) for state in states] for states in (first, second)]
        for key, predictions in zip(("first", "second"), sides, strict=True):
            found[key][split] = accuracy(predictions)
        found[split] = tests(*sides)
    for title, old, new in (
        ("params", first[0].params, second[0].params),
        ("data", provenance.data_of(first[0]), provenance.data_of(second[0])),
        ("code", first[0].code, second[0].code),
    ):
        keys = provenance.changed(old, new)
        found[title] = {key: [old.get(key), new.get(key)] for key in keys if len(first) == 1 or key != "seed"}
    return found


def name_of(states: list[State]) -> str:
    return states[0].name if len(states) == 1 else f"{len(states)} seeds, as {states[0].name}"


def accuracy(predictions: list[Predictions]) -> dict[str, Any]:
    """Give the accuracy of one result with Wilson's interval, or of several their mean and spread."""
    shares = [mean(one.correct()) for one in predictions]
    if len(shares) > 1:
        return {"accuracy": mean(shares), "deviation": stdev(shares), "low": min(shares), "high": max(shares)}
    count = len(predictions[0].actual)
    errors = count - sum(predictions[0].correct())
    low, high = evaluation.wilson(count - errors, count)
    return {"accuracy": shares[0], "low": low, "high": high, "errors": errors, "count": count}


def tests(first: list[Predictions], second: list[Predictions]) -> dict[str, Any] | None:
    """Give the difference and what changed, or None where the images are others and nothing can be paired."""
    if len(first) > 1:
        finding = significance.across_seeds(*([mean(one.correct()) for one in side] for side in (first, second)))
        return {"test": "Welch, across seeds", **asdict(finding), "verdict": finding.verdict}
    one, other = first[0], second[0]
    if one.images != other.images or one.actual != other.actual:
        return None
    before, after = one.correct(), other.correct()
    fixed = [place for place in range(len(before)) if after[place] > before[place]]
    broken = [place for place in range(len(before)) if before[place] > after[place]]
    finding = significance.paired(len(fixed), len(broken), len(before))
    return {
        "test": "McNemar, exact",
        **asdict(finding),
        "verdict": finding.verdict,
        "fixed": fixed,
        "broken": broken,
        "classes": classes(one.actual, fixed, broken),
    }


def classes(actual: list[str], fixed: list[int], broken: list[int]) -> dict[str, dict[str, Any]]:
    """Give for each class how many images were put right and wrong, and p corrected for the number of classes."""
    names = sorted(set(actual))
    right, wrong, all_of = (
        Counter(actual[place] for place in places) for places in (fixed, broken, range(len(actual)))
    )
    raw = [significance.paired(right[name], wrong[name], all_of[name]).p for name in names]
    return {
        name: {"images": all_of[name], "fixed": right[name], "broken": wrong[name], "p": p}
        for name, p in zip(names, significance.holm(raw), strict=True)
    }


def cost(states: list[State]) -> dict[str, float | None]:
    """Give what training took: parameters and epochs; seconds as MLflow knows them, None where it does not."""
    seconds = [state.seconds for state in states if state.seconds]
    return {key: states[0].metrics.get(key) for key in COST} | {"seconds": mean(seconds) if seconds else None}


def verdict(found: dict[str, Any]) -> str:
    """Say in words what the validation split shows."""
    test = found["validation"]
    if not test:
        return "no comparison: the two were validated on other images; give both the same data and split"
    finding = Finding(*(test[key] for key in ("difference", "low", "high", "p", "needed")))
    several, what = found["seeds"][0] > 1, f"{points(finding.difference)} (95 % interval {interval(finding)})"
    unit = "seeds of each" if several else "images"
    enough = f"; a difference of this size takes about {finding.needed:,} {unit} to show" if finding.needed else ""
    said = {
        "better": f"better: {what}, {probability(finding.p)}",
        "worse": f"worse: {what}, {probability(finding.p)}",
        "no evidence": f"no evidence of a difference at this sample size: {what}, {probability(finding.p)}{enough}",
    }[finding.verdict]
    if several or finding.verdict == "no evidence":
        return said
    return f"{said}. This is about these two networks; other seeds would give others: `python -m digits.seeds`"


def points(difference: float) -> str:
    return f"{100 * difference:+.2f} % points"


def interval(finding: Finding) -> str:
    return f"{100 * finding.low:+.2f} to {100 * finding.high:+.2f}"


def probability(p: float) -> str:
    return f"p = {p:.2g}"


Table = tuple[str, list[str], list[list[str]]]  # title, header, rows


def tables(found: dict[str, Any]) -> list[Table]:
    """Give the tables of a report."""
    first, second = found["first"], found["second"]
    rows = []
    for split in SPLITS:
        cells = [f"{part[split]['accuracy']:.2%} ({spread(part[split])})" for part in (first, second)]
        test = found[split]
        cells.append(
            f"{points(test['difference'])} ({100 * test['low']:+.2f} to {100 * test['high']:+.2f})" if test else "–"
        )
        cells += [test["test"], f"{test['p']:.2g}"] if test else ["other images", "–"]
        rows.append([split if split == "validation" else "test (for the report, not for choices)", *cells])
    within = "range" if found["seeds"][0] > 1 else "95 % interval"
    result = [
        ("Accuracy", ["split", f"A ({within})", f"B ({within})", "difference (95 % interval)", "test", "p"], rows)
    ]
    by_class = (found["validation"] or {}).get("classes", {})
    moved = [
        [name, str(row["images"]), str(row["fixed"]), str(row["broken"]), f"{row['p']:.2g}"]
        for name, row in by_class.items()
        if row["fixed"] or row["broken"]
    ]
    if moved:
        result.append(
            ("Validation images that changed sides", ["class", "images", "put right", "put wrong", "p (Holm)"], moved)
        )
    rows = [[key, number(first["cost"][key]), number(second["cost"][key])] for key in (*COST, "seconds")]
    result.append(("Cost of training", ["", "A", "B"], rows))
    for title in ("params", "data", "code"):
        rows = [[key, *(provenance.short(value) for value in pair)] for key, pair in found[title].items()]
        if rows:
            result.append((f"Differences in {title}", ["", "A", "B"], rows))
    return result


def spread(part: dict[str, Any]) -> str:
    return f"{100 * part['low']:.2f} to {100 * part['high']:.2f}"


def number(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.1f}".removesuffix(".0")


def markdown(found: dict[str, Any]) -> str:
    """Give a report as Markdown."""
    lines = [f"A: {found['first']['name']}  ", f"B: {found['second']['name']}", "", f"**B is {verdict(found)}.**"]
    for title, header, rows in tables(found):
        lines += ["", f"### {title}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines).replace("**B is no ", "**There is no ")


def console(found: dict[str, Any]) -> None:
    """Print a report for a person at a terminal."""
    from rich.console import Console
    from rich.table import Table as Grid

    # In a file or a pipe as wide as it has to be: a cell that is cut off helps nobody.
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    out.print(f"A: {found['first']['name']}\nB: {found['second']['name']}", markup=False)
    for title, header, rows in tables(found):
        grid = Grid(*header)
        for row in rows:
            grid.add_row(*row)
        out.print(f"\n{title}", style="bold")
        out.print(grid)
    said = verdict(found)
    out.print(
        f"\n{'There is' if said.startswith('no ') else 'B is'} {said}.",
        markup=False,
        style="bold",
        soft_wrap=not sys.stdout.isatty(),
    )


def picture(found: dict[str, Any], first: State, second: State, path: Path) -> None:
    """Show the validation images that changed sides.

    Raises UserError if they are not here, nothing was paired, or `path` cannot be written.
    """
    if path.suffix not in PICTURES:
        raise UserError(f"--picture: {path}: must end in {', '.join(PICTURES)}")
    test = found["validation"]
    if not test or "fixed" not in test:
        raise UserError("--picture: needs one result of each, validated on the same images")
    checksum = first.outputs[paths.VALIDATION.as_posix()]
    if not paths.VALIDATION.exists() or md5(paths.VALIDATION) != checksum:
        raise UserError(f"--picture: {paths.VALIDATION} is not the split of these results; `dvc checkout` may bring it")
    split = data.load(paths.VALIDATION)
    before, after = read(first, "validation").predicted, read(second, "validation").predicted
    groups = {f"put {kind} by B": test[key] for kind, key in (("right", "fixed"), ("wrong", "broken"))}
    try:
        figures.changed(split, before, after, groups, path)
    except OSError as error:
        raise UserError(f"--picture: {path}: cannot be written ({error.strerror})") from None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m digits.compare", description="Is B better than A, and how sure?")
    parser.add_argument("first", nargs="?", default="HEAD", metavar="A", help="default: HEAD")
    parser.add_argument("second", nargs="?", default=provenance.WORKSPACE, metavar="B", help="default: workspace")
    parser.add_argument("--format", choices=["console", "markdown", "json"], default="console")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the validation images that changed sides")
    arguments = parser.parse_args()
    first, second = side(arguments.first), side(arguments.second)
    found = compare(first, second)
    if arguments.picture:
        picture(found, first[0], second[0], arguments.picture)
    if arguments.format == "json":
        print(json.dumps(found | {"words": verdict(found)}, indent=2))
    elif arguments.format == "markdown":
        print(markdown(found))
    else:
        console(found)


if __name__ == "__main__":
    run(main)
