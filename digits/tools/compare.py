"""Is B better than A, by how much, and how sure is that?"""

import json
import re
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from digits import paths
from digits.errors import UserError
from digits.files import md5
from digits.images import splits
from digits.learning.scores import wilson
from digits.records import results
from digits.records.results import SPLITS, WORKSPACE, Answers, Result
from digits.reports import significance
from digits.reports.significance import Finding

PICTURES = (".png", ".pdf", ".svg")
CAUSES = ("params", "data", "code")


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one result with Wilson's interval, or of several seeds their mean, deviation and range."""

    accuracy: float
    low: float
    high: float
    deviation: float | None = None
    errors: int | None = None
    count: int | None = None


@dataclass(frozen=True)
class Cost:
    """What training took: sizes from metrics/train.json; seconds as MLflow knows them, None where it does not."""

    parameters: float | None
    epochs: float | None
    seconds: float | None


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a result, or several that differ by their seed."""

    name: str
    cost: Cost
    validation: Accuracy
    test: Accuracy


@dataclass(frozen=True)
class ClassChanges:
    """How many images of a class were fixed and broken; `p` is corrected for the number of classes."""

    images: int
    fixed: int
    broken: int
    p: float


@dataclass(frozen=True)
class Difference:
    """The difference on one split and, for one result of each, which images B gets newly right and newly wrong."""

    test: str
    finding: Finding
    fixed: list[int] | None = None
    broken: list[int] | None = None
    classes: Mapping[str, ClassChanges] = field(default_factory=dict)


Causes = dict[str, list[Any]]  # the two values of each key that differs


@dataclass(frozen=True)
class Comparison:
    """All that can be said of two sides. On a split whose images differ, there is no difference to test."""

    seeds: list[int]
    first: Side
    second: Side
    validation: Difference | None
    test: Difference | None
    params: Causes
    data: Causes
    code: Causes

    @property
    def verdict(self) -> str:
        """What the validation split shows, in words."""
        if not self.validation:
            return "no comparison: the two were validated on other images; give both the same data and split"
        finding, several = self.validation.finding, self.seeds[0] > 1
        words = finding.words("seeds of each" if several else "images")
        if finding.verdict == "no evidence" or several:
            return words
        return f"{words}. This is about these two networks; other seeds would give others: `python -m digits seeds`"

    def as_json(self) -> dict[str, Any]:
        """Return all of it as values that JSON can represent."""
        content = asdict(self) | {"words": self.verdict}
        for split in SPLITS:
            if difference := getattr(self, split):
                content[split] |= content[split].pop("finding") | {"verdict": difference.finding.verdict}
        return content


def side(what: str) -> list[Result]:
    """Return the results that an argument names: one, or several seeds of one recipe.

    Raises UserError if there are none, they differ by more than their seed, or not even by that.
    """
    names: list[str] = []
    for part in what.split(","):
        is_pattern = re.search(r"[*?\[]", part)
        commits = list(results.experiments(part).values()) if is_pattern else [part]
        if not commits:
            raise UserError(f"{part}: no DVC experiment has such a name; `dvc exp list --all-commits` names them")
        names.extend(commits)
    found = [results.load(name) for name in names]
    try:
        found = [results.with_run(result) for result in found]
    except UserError as error:  # all but the seconds of training is in files
        print(f"{error}; how long training took is not known", file=sys.stderr)
    for result in found[1:]:
        if [key for key in results.changed(found[0].params, result.params) if key != "seed"]:
            raise UserError(f"{what}: {found[0].name} and {result.name} differ by more than their seed")
    if len({result.params.get("seed") for result in found}) < len(found):
        raise UserError(f"{what}: two of these have the same seed, and would count twice")
    return found


def compare(first: list[Result], second: list[Result]) -> Comparison:
    """Compare two sides. Raises UserError if they do not match."""
    if (len(first) == 1) != (len(second) == 1):
        counts = f"{len(first)} against {len(second)} results"
        raise UserError(f"{counts}: must be one of each, or two seeds or more of each")
    answers = [{split: [one.answers(split) for one in found] for split in SPLITS} for found in (first, second)]

    def causes(old: dict[str, str], new: dict[str, str]) -> Causes:
        keys = (key for key in results.changed(old, new) if len(first) == 1 or key != "seed")
        return {key: [old.get(key), new.get(key)] for key in keys}

    sides = _side(first, answers[0]), _side(second, answers[1])
    parts: dict[str, Any] = {split: _difference(answers[0][split], answers[1][split]) for split in SPLITS}
    parts |= {name: causes(getattr(first[0], name), getattr(second[0], name)) for name in CAUSES}
    return Comparison([len(first), len(second)], *sides, **parts)


def _side(found: list[Result], answers: Mapping[str, list[Answers]]) -> Side:
    seconds = [result.seconds for result in found if result.seconds]
    metrics = found[0].metrics
    return Side(
        found[0].name if len(found) == 1 else f"{len(found)} seeds, as {found[0].name}",
        Cost(metrics.get("parameters"), metrics.get("epochs"), mean(seconds) if seconds else None),
        **{split: _accuracy(said) for split, said in answers.items()},
    )


def _accuracy(answers: list[Answers]) -> Accuracy:
    shares = [mean(one.correct()) for one in answers]
    if len(shares) > 1:
        return Accuracy(mean(shares), min(shares), max(shares), stdev(shares))
    count = len(answers[0].actual)
    errors = count - sum(answers[0].correct())
    return Accuracy(shares[0], *wilson(count - errors, count), None, errors, count)


def _difference(first: list[Answers], second: list[Answers]) -> Difference | None:
    if len(first) > 1:
        shares = ([mean(one.correct()) for one in answers] for answers in (first, second))
        return Difference("Welch, across seeds", significance.across_seeds(*shares))
    one, other = first[0], second[0]
    if one.images != other.images or one.actual != other.actual:
        return None
    fixed, broken = significance.changes(one.correct(), other.correct())
    finding = significance.paired(len(fixed), len(broken), len(one.actual))
    return Difference("McNemar, exact", finding, fixed, broken, _by_class(one.actual, fixed, broken))


def _by_class(actual: list[str], fixed: list[int], broken: list[int]) -> dict[str, ClassChanges]:
    names = sorted(set(actual))
    right, wrong = (Counter(actual[place] for place in places) for places in (fixed, broken))
    counts = [(Counter(actual)[name], right[name], wrong[name]) for name in names]
    corrected = significance.holm([significance.paired(right, wrong, images).p for images, right, wrong in counts])
    return {name: ClassChanges(*count, p) for name, count, p in zip(names, counts, corrected, strict=True)}


Table = tuple[str, list[str], list[list[str]]]  # title, header, rows


def tables(found: Comparison) -> list[Table]:
    """Return the tables of a report, each narrow enough for 80 columns."""
    sides, several = {"A": found.first, "B": found.second}, found.seeds[0] > 1
    accuracies: list[list[str]] = []
    for split in SPLITS:
        for name, one in sides.items():
            said: Accuracy = getattr(one, split)
            spread = f"{100 * said.deviation:.2f}" if said.deviation is not None else f"{said.errors} of {said.count:,}"
            accuracies.append([split, name, f"{said.accuracy:.2%}", f"{said.low:.2%} to {said.high:.2%}", spread])
    header = ["mean", "range", "deviation (% points)"] if several else ["accuracy", "95 % interval", "errors"]
    differences: dict[str, Difference | None] = {split: getattr(found, split) for split in SPLITS}
    tested = [
        [split, one.finding.points, one.finding.interval, f"{one.finding.p:.2g}", one.test]
        if one
        else [split, "other images", "–", "–", "–"]
        for split, one in differences.items()
    ]
    classes = found.validation.classes if found.validation else {}
    changed = {name: row for name, row in classes.items() if row.fixed or row.broken}
    moved = [[name, *map(str, (row.images, row.fixed, row.broken)), f"{row.p:.2g}"] for name, row in changed.items()]
    costs = [asdict(one.cost) for one in sides.values()]
    made = [
        ("Accuracy", ["split", "", *header], accuracies),
        ("Difference, B less A: validation decides", ["split", "difference", "95 % interval", "p", "test"], tested),
        ("Validation images that changed sides", ["class", "images", "fixed", "broken", "p (Holm)"], moved),
        ("Cost of training", ["", "A", "B"], [[key, *(_number(cost[key]) for cost in costs)] for key in costs[0]]),
    ]
    for name in ("params", "data"):
        rows = [[key, *map(results.short, pair)] for key, pair in getattr(found, name).items()]
        made.append((f"Differences in {name}", ["", "A", "B"], rows))
    return [table for table in made if table[2]]


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.1f}".removesuffix(".0")


def markdown(found: Comparison) -> str:
    """Return a report as Markdown."""
    said = f"{'There is' if found.verdict.startswith('no ') else 'B is'} {found.verdict}."
    lines = [f"A: {found.first.name}  ", f"B: {found.second.name}", "", f"**{said}**"]
    for title, header, rows in tables(found):
        lines += ["", f"### {title}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    if found.code:
        lines += ["", "### Differences in code", "", ", ".join(f"`{file}`" for file in found.code)]
    return "\n".join(lines)


def picture(found: Comparison, first: Result, second: Result, path: Path) -> None:
    """Show the validation images that changed sides.

    Raises UserError if they are not here, nothing was paired, or `path` cannot be written.
    """
    from digits.reports.figures import compare as figures

    if path.suffix not in PICTURES:
        raise UserError(f"--picture: {path}: must end in {', '.join(PICTURES)}")
    difference = found.validation
    if not difference or difference.fixed is None or difference.broken is None:
        raise UserError("--picture: needs one result of each, validated on the same images")
    if not paths.VALIDATION.exists() or md5(paths.VALIDATION) != first.outputs[paths.VALIDATION.as_posix()]:
        raise UserError(f"--picture: {paths.VALIDATION} is not the split of these results; `dvc checkout` may bring it")
    before, after = (one.answers("validation").predicted for one in (first, second))
    groups = {"fixed by B": difference.fixed, "broken by B": difference.broken}
    try:
        figures.changed(splits.load(paths.VALIDATION), before, after, groups, path)
    except OSError as error:
        raise UserError(f"--picture: {path}: cannot be written ({error.strerror})") from None


def main(parser: ArgumentParser, words: list[str]) -> None:
    """Is B better than A, by how much, and how sure is that?

    A and B are results: a git revision, the name of a DVC experiment, the id of an MLflow run, `workspace`, or a model
    file. Several seeds of one recipe are separated by commas, or are a pattern for names of experiments: 'wide-seed-*'.

    One result of each is compared image by image (McNemar's exact test), several seeds of each across seeds (Welch's
    t-test). The validation split decides; the test split is shown beside it. No model is run again: what evaluate wrote
    is read.
    """
    parser.add_argument("first", nargs="?", default="HEAD", metavar="A", help="the baseline (default: %(default)s)")
    parser.add_argument("second", nargs="?", default=WORKSPACE, metavar="B", help="the other (default: %(default)s)")
    formats, about = (
        ["console", "markdown", "json"],
        "markdown for a pull request, json for a script (default: console)",
    )
    parser.add_argument("--format", choices=formats, default="console", help=about)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the validation images that changed sides")
    arguments = parser.parse_args(words)
    first, second = side(arguments.first), side(arguments.second)
    found = compare(first, second)
    if arguments.picture:
        picture(found, first[0], second[0], arguments.picture)
    if arguments.format == "json":
        print(json.dumps(found.as_json(), indent=2))
    elif arguments.format == "markdown":
        print(markdown(found))
    else:
        Console().print(Markdown(markdown(found)))
