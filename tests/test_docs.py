"""The documentation against its sources: every figure, claim, command, link, path and knob that it names."""

import ast
import math
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from statistics import mean, median
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from benchmarks import study
from digits import params, pipeline
from digits.errors import UserError
from digits.files import read_json, read_table
from digits.images.severities import CORRUPTIONS
from digits.learning import networks, robustness
from digits.learning.scores import wilson
from digits.params import Params
from digits.params.reading import RECIPES, parse, read
from digits.reports import significance

from .conftest import ROOT, command_blocks
from .test_architecture import LAYERS

README, STUDY, OWN = "README.md", "docs/experiments.md", "docs/own.md"
PAST = "CHANGELOG.md"  # may name what is gone
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder, pattern in ((".", "*.md"), ("docs", "*.md"), ("benchmarks", "*.md"), ("data/own", "*.md"))
    for path in (ROOT / folder).glob(pattern)
    if path.name != PAST
)
COMMENTED = ("params.yaml", "search.yaml", "dvc.yaml", "Makefile", ".ci/run", "pyproject.toml")
FOLDERS = ("digits", "stages", "tests", "benchmarks", "docs", "metrics", "plots", "models", "data")


@cache
def source(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """Return a page with every run of white space as one space, so that lines may break anywhere."""
    return " ".join(source(page).split())


def paragraph(page: str, opening: str) -> str:
    """Return what follows a bold opening, up to the next bold text or the end of its paragraph."""
    for text in source(page).split("\n\n"):
        if found := re.search(rf"\*\*{re.escape(opening)}\*\*(.*?)(?=\*\*|$)", " ".join(text.split())):
            return found[1]
    raise AssertionError(f"{page}: has no paragraph with the opening {opening!r}")


def rows(page: str, *keys: str) -> list[dict[str, str]]:
    """Return the rows of the table whose header begins with these cells."""
    lines = iter(source(page).splitlines())
    for line in lines:
        header = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and header[: len(keys)] == list(keys):
            next(lines)  # |---|
            body = takewhile(lambda text: text.startswith("|"), lines)
            return [
                dict(zip(header, (cell.strip() for cell in text.strip("|").split("|")), strict=True)) for text in body
            ]
    raise AssertionError(f"{page}: has no table with {keys}")


def row(page: str, **cells: str) -> dict[str, str]:
    """Return the row of the first table with these columns whose cells are these."""
    (found,) = (line for line in rows(page, *cells) if cells.items() <= line.items())
    return found


def numbers(cell: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", cell)]


def rounded(value: float, digits: int = 0) -> str:
    """Return a figure with so many digits; a half is rounded up, as readers do."""
    return f"{math.floor(value * 10**digits + 0.5) / 10**digits:.{digits}f}"


def words(count: int) -> str:
    return ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")[
        count
    ]


# --- Figures: sentences that the page must have, with the figures of their source filled in


def recipe(name: str) -> dict[str, list[float]]:
    """Return the figures of a recipe over five seeds, each with its range: seconds, and percents."""
    page = "benchmarks/accuracy-best.md" if name == "best" else "benchmarks/accuracy.md"
    cells = row(page, recipe=name)
    assert cells["seeds"] == "5"
    return {key: numbers(cells[key]) for key in ("training", "validation", "test", "standard deviation")}


def table_of_recipes_and_others() -> Iterator[str]:
    levels = {"to 97.73 %": "to 97.73 %", "to 99 %": "to 99.0 %"}
    yield f"| on two CPU cores | training | validation | test | {' | '.join(levels.values())} |"
    for name in RECIPES:
        found, page = recipe(name), "benchmarks/accuracy-best.md" if name == "best" else "benchmarks/accuracy.md"
        seconds = (numbers(row(page, contestant=name)[level])[0] for level in levels)
        digits = 1 if name == "quick" else 0
        cells = [f"{rounded(found['training'][0], digits)} s", f"{found['validation'][0]:.2f} %"]
        cells += [f"**{found['test'][0]:.2f} %**", *(f"{one:.1f} s" for one in seconds)]
        yield f"| recipe `{name}` | {' | '.join(cells)} |"
    points = read_table(ROOT / "benchmarks/accuracy.csv")
    for name, title in {"tutorial": "the classic tutorial", "example": "PyTorch's example"}.items():
        last = {line["seed"]: line for line in points if line["contestant"] == name}.values()
        accuracy = mean(float(line["validation_accuracy"]) for line in last)
        cells = [f"{median(float(line['seconds']) for line in last):.0f} s", f"{100 * accuracy:.2f} %"]
        reached = (row("benchmarks/accuracy.md", contestant=name)[level] for level in levels)
        times = (re.sub(r"not reached (within \d+ s).*|([\d.]+ s).*", _never_or_after, cell) for cell in reached)
        yield f"| {title} | {' | '.join(cells)} | | {' | '.join(times)} |"
    seeds = [row("benchmarks/accuracy.md", contestant=name)["seeds"] for name in ("quick", "tutorial", "example")]
    yield "Means of {} seeds for the recipes, of {} and {} for the others,".format(*(words(int(n)) for n in seeds))


def _never_or_after(found: re.Match[str]) -> str:
    return f"not {found[1]}" if found[1] else str(found[2])


def first_output() -> Iterator[str]:
    test = read_json(ROOT / "metrics/test.json")
    yield (
        f"test accuracy {test['accuracy']:.2%} (95 % interval {test['accuracy_low']:.2%} to "
        f"{test['accuracy_high']:.2%}), {test['errors']} errors in {test['count']:,}"
    )


def comparison_as_shown() -> Iterator[str]:
    for split, table in (("validation", "validation"), ("test", "confusion")):
        lines = read_table(ROOT / f"plots/{table}.csv")
        wrong = sum(line["actual"] != line["predicted"] for line in lines)
        low, high = wilson(len(lines) - wrong, len(lines))
        yield f"{split} A {1 - wrong / len(lines):.2%} {low:.2%} to {high:.2%} {wrong} of {len(lines):,}"


def results_of_this_commit() -> Iterator[str]:
    test, train, exported, dataset = (
        read_json(ROOT / f"metrics/{name}.json") for name in ("test", "train", "export", "dataset")
    )
    yield (
        (
            f"| test accuracy | {test['accuracy']:.2%} (95 % interval {100 * test['accuracy_low']:.2f} to "
            f"{test['accuracy_high']:.2%}), {test['errors']} errors in {test['count']:,} |"
        )
        .replace("%", " %")
        .replace("95  %", "95 %")
    )
    yield (
        f"| validation accuracy | {100 * train['validation_accuracy']:.2f} % of {dataset['validation']['count']:,} |"
    )
    yield (
        f"| without {test['count'] - test['reviewed']['count']} test labels that reviewers rejected | "
        f"{100 * test['reviewed']['accuracy']:.2f} %, {test['reviewed']['errors']} errors in "
        f"{test['reviewed']['count']:,} |"
    )
    yield f"| trained parameters | {train['parameters']:,} |"
    yield f"| training | {recipe('default')['training'][0]:.0f} s |"
    onnx, pt2 = exported["onnx"], exported["pt2"]
    assert onnx["accuracy"] == pt2["accuracy"] == test["accuracy"]
    yield (
        f"| exported files | {onnx['bytes'] / 1e6:.2f} MB ONNX, {pt2['bytes'] / 1e6:.2f} MB pt2, all "
        f"{test['count']:,} predictions identical to the trained model's |"
    )


def preparation() -> Iterator[str]:
    count = read_json(ROOT / "metrics/dataset.json")["validation"]["count"]
    yield f"**A validation split of {count:,}, stratified and seeded.**"
    factors = [int(cell["times MNIST"].split(",")[0]) for cell in rows("benchmarks/growth.md", "stage", "times MNIST")]
    yield f"([measured](../benchmarks/growth.md) up to {max(factors)} times MNIST)"
    content = parse(source("params.yaml"))
    yield f"The network crops {words(content['model']['cnn']['crop']['default'])} black pixels off each side"
    yield f"(784-{'-'.join(map(str, content['model']['mlp']['hidden']))}-10, fully connected)"
    yield f"measured on {robustness.SAMPLE} validation images, corrupted in {words(len(CORRUPTIONS))} ways"


def speed() -> Iterator[str]:
    share = numbers(row("benchmarks/limits.md", recipe="default", precision="bf16")["augmentation (goal at most 8 %)"])
    yield f"augmentation one call per batch, {share[0]:.0f} % of a step"
    bf16, fp32 = recipe("default"), row("benchmarks/accuracy-default-fp32.md", recipe="default")
    assert f"{bf16['validation'][0]:.2f}" == f"{numbers(fp32['validation'])[0]:.2f}"
    rates = [
        numbers(row("benchmarks/limits.md", recipe="default", precision=precision)["images/s, end to end"])[0]
        for precision in ("bf16", "fp32")
    ]
    yield (
        f"bfloat16 where the processor has it, {rates[0] / rates[1]:.2f} times the images a second of float32 at the "
        "same validation accuracy"
    )


def noise() -> Iterator[str]:
    found = {
        (line["B against A"].split(",")[0], line["split"]): line
        for line in rows("benchmarks/noise.md", "B against A", "comparisons")
    }
    same = {split: found["quick against quick", split] for split in ("validation", "test")}
    mlp = [found["quick against the MLP", split] for split in ("validation", "test")]
    assert all(line["better"] == line["comparisons"] for line in mlp)
    different = {split: int(line["better"]) + int(line["worse"]) for split, line in same.items()}
    largest = max(float(line["p, smallest to largest"].split(" to ")[1]) for line in mlp)
    yield (
        f"of {same['test']['comparisons']} pairs of seeds of the study's baseline, "
        f"{different['validation']} are called different on the validation split and {different['test']} on the test "
        f"split, while all {mlp[0]['comparisons']} beat the MLP of their seed with p < "
        f"1e{math.ceil(math.log10(largest))}"
    )


def checkpoints() -> Iterator[str]:
    none, every = (row("benchmarks/checkpointing.md", checkpoints=how) for how in ("none", "every step"))
    cost, interval = float(every["seconds"]) - float(none["seconds"]), loaded().runtime.checkpoint
    each = cost / int(every["saved"])
    yield (
        f"A save takes {1000 * each:.0f} ms ([table](../benchmarks/checkpointing.md): {every['saved']} in one epoch "
        f"cost {cost:.1f} s), {100 * each / interval:.1f} % of the {interval:.0f} s between two."
    )


def portability() -> Iterator[str]:
    page = "benchmarks/portable.md"
    lines = rows(page, "reproducibility", "processor")
    kinds = {
        how: {line["CNN, SGD"] for line in lines if line["reproducibility"] == how} for how in ("machine", "portable")
    }
    emulated = {line["processor"] for line in lines} - {"this one"}
    assert len(kinds["portable"]) == 1
    yield f"had the same bits on an AMD processor with AVX-512 and on {words(len(emulated))} emulated ones"
    yield f"by default there were {words(len(kinds['machine']))} variants"
    alone = rows("benchmarks/portable_here.md", "reproducibility", "processor")  # of another processor
    default, portable = (line["CNN, SGD"] for line in alone)
    assert kinds["portable"] == {portable}
    assert default not in kinds["machine"]
    times = float(re.search(r"takes ([\d.]+) times as long", source(page))[1])  # type: ignore[index]  # a failure is one of the test
    yield f"A step takes {times:.1f} times as long in float32"


def durations_of_tests() -> Iterator[str]:
    limits = dict(re.findall(r"^(check|test):.*under (\d+) minutes", source("Makefile"), re.MULTILINE))
    yield (
        f"`make check` runs linters, type checks and the fast tests in under {limits['check']} minutes on two cores, "
        f"`make test` all tests in under {limits['test']};"
    )


def knobs_as_examples() -> Iterator[str]:
    content = parse(source("params.yaml"))
    epochs = ", ".join(f"{name}: {value}" for name, value in content["train"]["epochs"].items())
    yield f"as `train.epochs: {{{epochs}}}` does"
    with pytest.raises(UserError) as refused:
        loaded({"train.epochs": "abc"})
    said = str(refused.value).removeprefix(f"{ROOT}/")
    yield f"`dvc exp run -S train.epochs=abc` ends with `{said}` before any work"
    search = parse(source("search.yaml"))
    yield f"# {search['trials']} trials of the recipe {search['settings']['recipe']}"


def networks_by_name() -> Iterator[str]:
    yield f"`model.name` picks one of {words(len(networks.NETWORKS))}:"


def study_at_large() -> Iterator[str]:
    count = len(findings())
    assert 1 < significance.LEVEL * count < 2
    yield f"Of {count} comparisons of equals, one or two would come out as different by chance (p < 0.05)."
    half = median(50 * (finding.high - finding.low) for finding in findings().values())
    yield f"The 95 % intervals reach about {half:.1f} % points to either side"


def study_of_recipes() -> Iterator[str]:
    quick, default, best = (loaded({"recipe": name}) for name in RECIPES)
    layers = [p.model.networks()["cnn"]["channels"] for p in (quick, default, best)]
    crop = best.model.networks()["cnn"]["crop"]
    assert [len(of) for of in layers] == [2, 3, 4]
    assert layers[2][0] == 2 * layers[1][0] == 2 * layers[0][0]
    yield (
        f"`quick` has two convolutions and {words(quick.train.epochs)} epochs, `default` a third convolution and "
        f"{words(default.train.epochs)} epochs, `best` is twice as wide, with four convolutions, {words(crop)} crop, "
        f"{words(best.train.epochs)} epochs and {words(best.model.members)} networks."
    )


def size_of_the_largest_network() -> Iterator[str]:
    p = loaded({"model.cnn.crop": 0})
    count = networks.count_parameters(networks.build(p.model.name, 10, p.model.knobs()))
    yield f"| P | {count:,} parameters, float32: {4 * count:,} bytes of gradient |"


FIGURES = (
    (README, table_of_recipes_and_others),
    (README, first_output),
    (README, comparison_as_shown),
    (README, results_of_this_commit),
    (README, speed),
    (README, noise),
    (README, durations_of_tests),
    (README, knobs_as_examples),
    ("docs/data.md", preparation),
    ("docs/kills.md", checkpoints),
    ("docs/portability.md", portability),
    ("docs/own.md", networks_by_name),
    (STUDY, study_at_large),
    (STUDY, study_of_recipes),
    ("docs/scale.md", size_of_the_largest_network),
)


@pytest.mark.parametrize(("page", "sentences"), FIGURES, ids=lambda given: getattr(given, "__name__", None))
def test_figures_are_those_of_their_source(page: str, sentences: Any) -> None:
    text = prose(page)
    missing = [sentence for sentence in sentences() if text.count(sentence) != 1]
    assert not missing, f"{page}: should say"


# --- Claims: what the prose says of each row of the study, and the verdict of Welch's test that it takes

Claims = dict[str, dict[str, tuple[str, ...]]]
HELPED: Claims = {  # opening, then for each phrase the rows and, in braces, the size of the difference in % points
    "What helped:": {
        "the MLP loses {mlp} % points": ("worse", "mlp"),
        "softmax regression {linear})": ("worse", "linear"),
        "more epochs (twice as many: +{longer}, four times: +{long})": ("better", "longer", "long"),
        "a residual network (+{resnet})": ("better", "resnet"),
        "a tenth of the images loses {tenth} and a hundredth {hundredth}": ("worse", "tenth", "hundredth"),
        "a constant one loses {constant}, and {constant_low} at a tenth of the rate":
            ("worse", "constant", "constant-low"),
        "twice the width (+{wide})": ("better", "wide"),
        "512 images at twice the rate lose {big_batches}": ("worse", "big-batches"),
        "hard examples twice in the second epoch (+{hard})": ("better", "hard"),
    },
    "What showed no effect": {
        "each part of the augmentation alone and all of it together":
            ("no evidence", "no-rotation", "no-scale", "no-shift", "no-shear", "plain"),
        "cropping": ("no evidence", "whole"),
        "a third convolution": ("no evidence", "deep", "long-deep"),
        "linear or cosine": ("no evidence", "cosine"),
        "the warm-up": ("no evidence", "no-warmup"),
        "AdamW in place of SGD": ("no evidence", "adamw"),
        "label smoothing, dropout and weight decay": ("no evidence", "no-smoothing", "no-dropout", "no-decay"),
        "a moving average of the weights, with the falling rate or in its place":
            ("no evidence", "ema", "ema-constant"),
        "test-time augmentation;": ("no evidence", "tta"),
        "a second network": ("no evidence", "two"),
        "with eight epochs in place of two, where augmentation, label smoothing, dropout, weight decay, test-time "
        "augmentation, width, a third convolution and hard examples were tried again":
            ("no evidence", "long-plain", "long-no-smoothing", "long-no-dropout", "long-no-decay", "long-tta",
             "long-wide", "long-deep", "long-hard"),
        "no label smoothing (-{long_no_smoothing}, p = {p_long_no_smoothing})": ("no evidence", "long-no-smoothing"),
        "a third convolution (+{long_deep}, p = {p_long_deep})": ("no evidence", "long-deep"),
        "no augmentation (-{long_plain}, p = {p_long_plain})": ("no evidence", "long-plain"),
    },
}  # fmt: skip
IN_SHORT: Claims = {
    "What makes it accurate,": {
        "an MLP loses {mlp} % points": ("worse", "mlp"),
        "twice the epochs (+{longer})": ("better", "longer"),
        "a constant one loses {constant}": ("worse", "constant"),
        "batches of 128 rather than 512 (which lose {big_batches})": ("worse", "big-batches"),
    },
    "What showed no effect:": {
        "label smoothing": ("no evidence", "no-smoothing", "long-no-smoothing"),
        "dropout": ("no evidence", "no-dropout", "long-no-dropout"),
        "weight decay": ("no evidence", "no-decay", "long-no-decay"),
        "augmentation": ("no evidence", "plain", "long-plain"),
        "a moving average of the weights": ("no evidence", "ema", "ema-constant"),
        "a second network": ("no evidence", "two"),
    },
}
CLAIMS = [
    (page, opening, phrase, *claim)
    for page, paragraphs in ((STUDY, HELPED), (README, IN_SHORT))
    for opening, phrases in paragraphs.items()
    for phrase, claim in phrases.items()
]


@cache
def findings() -> dict[str, significance.Finding]:
    """Return the result of Welch's test of each row of the study against the one that it is compared with."""
    lines = read_table(ROOT / study.POINTS)

    def shares(name: str) -> list[float]:
        return [float(line["validation_accuracy"]) for line in lines if line["name"] == name]

    compared = [one for one in study.ROWS if one.name != study.BASELINE]
    return {one.name: significance.across_seeds(shares(one.against), shares(one.name)) for one in compared}


def as_written() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, finding in findings().items():
        key = name.replace("-", "_")
        found |= {key: f"{abs(100 * finding.difference):.2f}", f"p_{key}": f"{finding.p:.2g}"}
    return found


@pytest.mark.parametrize(("page", "opening", "phrase", "verdict", "names"), [(*c[:4], c[4:]) for c in CLAIMS])
def test_claims_are_those_of_the_study(
    page: str, opening: str, phrase: str, verdict: str, names: tuple[str, ...]
) -> None:
    assert phrase.format(**as_written()) in paragraph(page, opening)
    assert {name: findings()[name].verdict for name in names} == dict.fromkeys(names, verdict)


@pytest.mark.parametrize(("page", "opening"), [(STUDY, "What helped:"), (README, "What makes it accurate,")])
def test_nothing_without_an_effect_is_said_to_help(page: str, opening: str) -> None:
    for phrase in IN_SHORT["What showed no effect:"]:
        assert phrase not in paragraph(page, opening)


def test_every_row_of_the_study_is_spoken_of() -> None:
    assert {name for page, _, _, _, *names in CLAIMS if page == STUDY for name in names} == set(findings())


@pytest.mark.parametrize(("page", "paragraphs"), [(STUDY, HELPED), (README, IN_SHORT)])
def test_no_figure_of_those_paragraphs_is_without_a_claim(page: str, paragraphs: Claims) -> None:
    for opening, phrases in paragraphs.items():
        text = re.sub(r"p (<|between 0\.01 and) 0\.05|about 0\.1 % points", "", paragraph(page, opening))
        for phrase in sorted(phrases, key=len, reverse=True):  # one may contain another
            text = text.replace(phrase.format(**as_written()), "")
        assert not re.findall(r"\d\.\d+", text)


def test_small_p_values_are_told_from_smaller_ones() -> None:
    head, tail = paragraph(STUDY, "What helped:").split("With p between 0.01 and 0.05:")
    for phrase, (_, *names) in HELPED["What helped:"].items():
        for name in names:
            assert (0.01 < findings()[name].p < 0.05) == (phrase.format(**as_written()) in tail), name
        assert phrase.format(**as_written()) in head + tail


def test_costs_in_the_study_are_those_of_its_rows() -> None:
    lines = read_table(ROOT / study.POINTS)
    quick, resnet, wide = (
        mean(float(line["seconds"]) for line in lines if line["name"] == name) for name in ("quick", "resnet", "wide")
    )
    text, times = paragraph(STUDY, "What helped:"), {2: "twice", 3: "three times"}
    assert re.search(rf"a residual network \(.*?\), at {times[round(resnet / quick)]} the seconds", text)
    assert re.search(rf"twice the width \(.*?\) at {times[round(wide / quick)]} the seconds", text)


def test_search_from_a_bad_start_is_compared_as_its_table_says() -> None:
    from scipy.stats import t  # only now: it takes a second

    (after, spread, *_), (before, other, *_) = (
        numbers(row(STUDY, recipe=name)["validation: mean ± deviation (range), %"]) for name in ("tuned", "untuned")
    )
    found = re.search(r"\((-?[\d.]+) % points, 95 % interval (-?[\d.]+) to \+?(-?[\d.]+)\)", prose(STUDY))
    assert found
    variances = spread**2 / 5, other**2 / 5
    freedom = sum(variances) ** 2 / sum(variance**2 / 4 for variance in variances)  # Welch and Satterthwaite
    half = float(t.ppf(0.975, freedom)) * math.sqrt(sum(variances))
    expected = [after - before, after - before - half, after - before + half]
    assert [float(figure) for figure in found.groups()] == pytest.approx(expected, abs=0.02)  # the table is rounded


# --- Names: what a page names exists


def fences(page: str) -> list[tuple[str, str]]:
    """Return the language and the content of each block of code of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", source(page), re.DOTALL | re.MULTILINE)


def code(page: str) -> list[str]:
    """Return the spans and blocks of code of a page; of another file, its text."""
    if not page.endswith(".md"):
        return [source(page)]
    blocks = [block for _, block in fences(page)]
    rest = re.sub(r"^```.*?^```", "", source(page), flags=re.DOTALL | re.MULTILINE)
    return blocks + re.findall(r"`([^`]+)`", rest)


def anchors(page: str) -> set[str]:
    allowed = string.ascii_letters + string.digits + " -"
    headings = re.findall(r"^#+ (.*)$", source(page), re.MULTILINE)
    return {"".join(c for c in heading if c in allowed).lower().replace(" ", "-") for heading in headings}


@cache
def outputs() -> set[str]:
    """Return the outputs of all stages, and their folders."""
    files = pipeline.outputs(*pipeline.stages())
    return {path.as_posix() for file in files for path in (file, *file.parents)}


@pytest.mark.parametrize("page", [*PAGES, PAST])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", source(page)):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / file if file else ROOT / page
        assert linked.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(linked.relative_to(ROOT).as_posix()), f"{page}: {target}"


@pytest.mark.parametrize("page", [*PAGES, *COMMENTED])
def test_paths_exist(page: str) -> None:
    pattern = rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w"
    for text in code(page) if page.endswith(".md") else [source(page)]:
        for named in re.findall(pattern, text):
            assert (ROOT / named).exists() or named in outputs(), f"{page}: {named}"


@pytest.mark.parametrize("page", [*PAGES, *COMMENTED])
def test_commands_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", source("Makefile"), re.MULTILINE))
    for text in code(page):
        for target in re.findall(r"(?:^|\$\()make ([a-z]+)", text, re.MULTILINE):
            assert target in targets, f"{page}: make {target}"
        for module in re.findall(r"python -m ((?:stages|benchmarks)\.\w+)", text):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), f"{page}: {module}"
        assert not re.search(r"python -m digits\.", text), f"{page}: a module of digits is not a command"


def loaded(changes: dict[str, Any] | None = None) -> Params:
    return params.load(networks.check, changes, ROOT / "params.yaml")


@cache
def knobs() -> set[str]:
    """Return every knob and section of params.yaml by its dotted name, and of the example of a network."""
    keys = {*loaded().flat(), "model.linear", "model.bottleneck.width"}
    keys |= {f"{key}.{name}" for key in keys for name in RECIPES}
    return keys | {".".join(parts[:end]) for key in keys if (parts := key.split(".")) for end in range(1, len(parts))}


@pytest.mark.parametrize("page", [*PAGES, "params.yaml", "search.yaml"])
def test_knobs_exist(page: str) -> None:
    sections = "|".join(sorted({key.split(".")[0] for key in loaded().flat() if "." in key}))
    for text in code(page) if page.endswith(".md") else re.findall(r"`([^`]+)`", source(page)):
        named = re.findall(r"(?:-S|--set-param) '?([a-z_.]+)=", text)
        named += re.findall(rf"^(?:{sections})\.[a-z_.]+(?=: |$)", text)
        for name in named:
            if not name.endswith((".py", ".onnx", ".pt2", ".safetensors", ".json")):
                assert name in knobs(), f"{page}: {name}"


def test_layout_is_what_is_there() -> None:
    (block,) = (block for block in code("docs/layout.md") if block.startswith("dvc.yaml  params.yaml"))
    library: dict[str, set[str]] = {}
    for line in re.sub(r",\n +", ", ", block).splitlines():
        inner = line.startswith("    ")
        for name in (text.strip() for text in line.split("  ")):
            if re.fullmatch(r"[\w./]+(\.\w+|/)", name):
                assert (ROOT / ("digits" if inner else ".") / name).exists() or name.strip("/") in outputs(), name
                if inner:
                    library[name] = set(line.rpartition(": ")[2].split(", ")) if ": " in line else set()

    def modules(folder: str) -> set[str]:
        found = [path for path in (ROOT / "digits" / folder).iterdir() if not path.name.startswith(("_", "."))]
        return {path.stem if path.suffix == ".py" else path.name for path in found if path.suffix != ".md"}

    assert {name.removesuffix(".py").strip("/") for name in library} == modules(".") | {"__main__"}
    assert {name: named for name, named in library.items() if named} == {
        name: modules(name) for name, named in library.items() if named
    }


# --- Form: what a page looks like


@pytest.mark.parametrize("page", PAGES)
def test_code_has_a_language_and_is_not_cut_off(page: str) -> None:
    """At 1280 pixels, GitHub shows 98 characters of a line of code."""
    for language, block in fences(page):
        assert language in ("bash", "console", "python", "js", "yaml", "text", "mermaid"), f"{page}: {block[:50]}"
        assert max(map(len, block.splitlines())) <= 98, f"{page}: {block}"


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("benchmarks/")])
def test_number_and_percent_sign_stay_on_one_line(page: str) -> None:
    text = re.sub(r"<!--.*?-->|^```.*?^```|`[^`]*`", "", source(page), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r".*\d\s%(?<!\u00a0%).*", text)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_commands_is_run_or_says_why_not(page: str) -> None:
    """Those without a reason are run by tests/pipeline/test_pages.py, in the README only."""
    for reason, block in command_blocks(ROOT / page):
        assert reason or page == README, f"{page}: {block}"
        for named in re.findall(r"(?:tests/)?[\w/]+\.py", reason or ""):
            assert any((ROOT / folder / named).exists() for folder in (".", "tests/pipeline")), f"{page}: {named}"


def test_diagram_of_the_pipeline_is_the_one_of_dvc() -> None:
    drawn = subprocess.run(
        [sys.executable, "-m", "dvc", "dag", "--mermaid"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    names = dict(re.findall(r'(node\d+)\["(\w+)"\]', drawn))
    (block,) = (block for language, block in fences(README) if language == "mermaid")
    shown = re.findall(r"^    (\w+) -- .* --> (\w+)$", block, re.MULTILINE)
    assert sorted(shown) == sorted((names[a], names[b]) for a, b in re.findall(r"(node\d+)-->(node\d+)", drawn))


def test_layers_in_contributing_are_those_that_are_enforced() -> None:
    named = re.findall(r"^\| `?(\w+)/?`? \|", source("CONTRIBUTING.md"), re.MULTILINE)
    assert tuple(named) == LAYERS


def test_network_in_the_documentation_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in code(OWN) if block.startswith("class Bottleneck"))
    (settings,) = (yaml.safe_load(block) for block in code(OWN) if block.startswith("model:\n"))
    namespace = dict(vars(networks))
    exec(ast.unparse(ast.parse(block.partition("\n\n\n")[0])), namespace)
    monkeypatch.setitem(networks.NETWORKS, "bottleneck", namespace["Bottleneck"])
    content = read(Params, ROOT / "params.yaml")
    content["model"] |= settings["model"]
    p = params.assemble(content, networks.check, {})
    network: nn.Module = networks.build(p.model.name, 10, p.model.knobs())
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(UserError, match=r"model\.bottleneck\.width: must be greater than or equal to 1, not 0"):
        params.assemble(content, networks.check, {"model.bottleneck.width": 0})


def test_what_was_read_is_what_was_measured() -> None:
    page = source("benchmarks/handwriting.md")
    counts = {
        kind: (int(right), int(count)) for kind, right, count in re.findall(r"\| (\w+) \| (\d+) of (\d+) \|", page)
    }
    right, count = (sum(counts[kind][place] for kind in ("corpus", "drawing", "photo")) for place in (0, 1))
    (digits,) = re.findall(r"page: digits \| \d+ of \d+ \(([\d.]+)%\)", page)
    (unsure,) = re.findall(r"right answers that are unsure \| ([\d.]+)%", page)
    (marked, wrong) = re.findall(r"wrong answers that are unsure, .* \| (\d+) of (\d+) \|", page)[0]
    said = (
        f"On {count:,} real pictures of single digits from many hands it reads {right} rightly, on {counts['page'][1]} "
        f"pages {digits} % of the digits, and it is unsure of {unsure} % of the right and {marked} of the {wrong} wrong"
    )
    assert said in prose(README).replace("\u00a0", " ")
