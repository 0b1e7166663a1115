import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from digits import paths
from digits.__main__ import dispatch
from digits.errors import UserError
from digits.files import md5
from digits.images import splits
from digits.records import results
from digits.records.results import Result
from digits.reports import significance
from digits.tools import compare

from ..conftest import CLASSES, bars
from .conftest import result

COUNT = 60
ACTUAL = [CLASSES[place % 3] for place in range(COUNT)]


def table(wrong: set[int]) -> bytes:
    guesses = [CLASSES[(place + 1) % 3] if place in wrong else name for place, name in enumerate(ACTUAL)]
    return "\n".join(["actual,predicted", *map(",".join, zip(ACTUAL, guesses, strict=True))]).encode()


def wrong_about(wrong: set[int], name: str = "any", images: str = "1" * 32, **params: str) -> Result:
    """Return a result that is wrong about these images of both splits."""
    return result(
        name,
        params={"seed": "0", "train.epochs": "3"} | params,
        outputs={paths.VALIDATION.as_posix(): images, paths.TEST.as_posix(): "2" * 32, "models/m": "3" * 32},
        metrics={"parameters": 9.0, "epochs": 3.0},
        read={path.as_posix(): table(wrong) for path in (paths.VALIDATION_TABLE, paths.CONFUSION_TABLE)}.__getitem__,
        seconds=3.5,
    )


BEFORE = wrong_about(set(range(20)), "one")
AFTER = replace(
    wrong_about({0, 1, 2, 40}, "other", **{"train.epochs": "5.0"}), code={"a.py": "1" * 32, "b.py": "4" * 32}
)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> dict[str, Result]:
    """Return the results that commands find by name."""
    found = {"A": BEFORE, "B": AFTER}
    monkeypatch.setattr(results, "load", found.__getitem__)
    monkeypatch.setattr(results, "with_run", lambda found: found)
    return found


def test_two_results_are_compared_image_by_image() -> None:
    found = compare.compare([BEFORE], [AFTER])
    difference = found.validation
    assert difference
    assert (difference.fixed, difference.broken) == (list(range(3, 20)), [40])
    assert difference.finding == significance.paired(17, 1, COUNT)
    assert difference.finding.difference == pytest.approx(16 / 60)
    assert found.first.validation.errors == 20
    assert found.second.validation.accuracy == pytest.approx(56 / 60)
    assert found.params == {"train.epochs": ["3", "5.0"]}
    assert found.first.cost == compare.Cost(parameters=9.0, epochs=3.0, seconds=3.5)
    left = difference.classes["left"]
    assert (left.images, left.fixed, left.broken) == (20, 6, 0)
    assert left.p == pytest.approx(3 * 2 / 2**6)
    assert found.verdict.startswith("better: +26.67 % points (95 % interval +")
    assert compare.compare([AFTER], [BEFORE]).verdict.startswith("worse: -26.67 % points")


def test_too_few_changes_are_no_evidence_and_the_report_says_how_many_images_would_be_enough() -> None:
    found = compare.compare([wrong_about({1, 2, 3})], [wrong_about({3, 4})])
    assert found.verdict.startswith("no evidence of a difference at this sample size: +1.67 % points")
    needed = significance.paired(2, 1, COUNT).needed
    assert f"a difference of this size takes about {needed:,} images to show" in found.verdict
    assert "There is no evidence" in compare.markdown(found)


def test_equal_results_do_not_differ() -> None:
    found = compare.compare([BEFORE], [BEFORE])
    assert found.validation
    assert found.validation.finding.p == 1
    assert "no evidence of a difference at this sample size: +0.00 % points" in found.verdict
    assert found.params == found.data == found.code == {}


def test_results_on_other_images_cannot_be_compared() -> None:
    found = compare.compare([BEFORE], [wrong_about(set(), images="9" * 32)])
    assert found.validation is None
    assert found.test
    assert found.verdict.startswith("no comparison: the two were validated on other images")
    assert found.data == {paths.VALIDATION.as_posix(): ["1" * 32, "9" * 32]}
    assert "| validation | other images |" in compare.markdown(found)


def test_several_seeds_are_compared_across_seeds() -> None:
    first = [wrong_about(set(range(20 + seed)), seed=str(seed)) for seed in range(3)]
    second = [wrong_about(set(range(2 * seed)), seed=str(seed)) for seed in range(3)]
    found = compare.compare(first, second)
    shares = [[(COUNT - wrong) / COUNT for wrong in side] for side in ((20, 21, 22), (0, 2, 4))]
    assert found.validation
    assert found.validation.finding.p == pytest.approx(ttest_ind(*shares, equal_var=False).pvalue)
    assert found.validation.finding.verdict == "better"
    assert found.first.validation.accuracy == pytest.approx(sum(shares[0]) / 3)
    assert "seed" not in found.params
    assert "better: +31.67 % points" in found.verdict
    with pytest.raises(UserError, match=r"^3 against 1 results: must be one of each, or two seeds or more of each"):
        compare.compare(first, second[:1])


@pytest.mark.parametrize("others", [{"train.epochs": "4"}, {"train.epochs": "4", "seed": "1"}])
def test_seeds_of_different_recipes_are_no_side(named: dict[str, Result], others: dict[str, str]) -> None:
    named |= {
        name: wrong_about(set(), name, **knobs) for name, knobs in {"a": {}, "b": others, "c": {"seed": "1"}}.items()
    }
    assert [found.name for found in compare.side("a,c")] == ["a", "c"]
    with pytest.raises(UserError, match=r"^a,b: a and b differ by more than their seed"):
        compare.side("a,b")
    with pytest.raises(UserError, match=r"^a,c,a: two of these have the same seed"):
        compare.side("a,c,a")


@pytest.mark.usefixtures("named")
def test_report_in_every_form_has_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["compare", "A", "B", "--format", "markdown"])
    text = capsys.readouterr().out
    for part in (
        "**B is better: ",
        "| train.epochs | 3 | 5.0 |",
        "+26.67 % points",
        "| validation | A | 66.67% | 54.06% to 77.27% | 20 of 60 |",
        "| left | 20 | 6 | 0 |",
        "| seconds | 3.5 |",
        "### Differences in code\n\n`b.py`\n",
    ):
        assert part in text
    dispatch(["compare", "A", "B"])
    shown = capsys.readouterr().out
    for part in ("A: one", "B: other", "B is better: +26.67 % points", "train.epochs", "McNemar, exact"):
        assert part in shown
    dispatch(["compare", "A", "B", "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert found["seeds"] == [1, 1]
    assert found["first"]["cost"] == {"parameters": 9.0, "epochs": 3.0, "seconds": 3.5}
    assert found["second"]["validation"]["errors"] == 4
    assert found["validation"]["verdict"] == "better"
    assert found["validation"]["p"] == significance.paired(17, 1, COUNT).p
    assert (len(found["validation"]["fixed"]), found["validation"]["broken"]) == (17, [40])
    assert found["validation"]["classes"]["left"]["fixed"] == 6
    assert found["params"] == {"train.epochs": ["3", "5.0"]}
    assert found["words"].startswith("better: ")


@pytest.mark.parametrize(("first", "second"), [("C0", "D1"), ("C0,C1", "D0,D1")])
def test_console_shows_every_table_whole_in_80_columns(
    named: dict[str, Result],
    first: str,
    second: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    knobs = {"augmentation.rotation": "10.123456789", "model.cnn.channels": "[32, 64, 64, 128]"}
    for name, recipe in (("C", {}), ("D", knobs)):
        for seed in "01":
            named[name + seed] = wrong_about(set(range(int(seed) + 4 * len(recipe))), name, seed=seed, **recipe)
    dispatch(["compare", first, second])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    spaced = re.sub(" +", " ", shown)
    for _, _, rows in compare.tables(compare.compare(compare.side(first), compare.side(second))):
        for row in rows:
            assert re.sub(" +", " ", f" {' '.join(row)} ") in spaced


def test_picture_shows_the_images_that_changed_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not the split of these results"):
        compare.picture(compare.compare([BEFORE], [AFTER]), BEFORE, AFTER, Path("changed.png"))
    splits.save(bars(COUNT), paths.VALIDATION)
    first, second = (wrong_about(wrong, images=md5(paths.VALIDATION)) for wrong in ({1}, {2}))
    found = compare.compare([first], [second])
    compare.picture(found, first, second, Path("changed.png"))
    assert Path("changed.png").stat().st_size > 1000
    for place, fault in (("a.txt", "must end in .png, .pdf, .svg"), ("changed.png/a.png", "cannot be written (")):
        with pytest.raises(UserError, match=rf"^--picture: {re.escape(place)}: {re.escape(fault)}"):
            compare.picture(found, first, second, Path(place))
    seeds = compare.compare([BEFORE, AFTER], [BEFORE, AFTER])
    with pytest.raises(UserError, match="needs one result of each"):
        compare.picture(seeds, BEFORE, AFTER, Path("changed.png"))
