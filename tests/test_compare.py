import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_ind

from digits import compare, data, paths, provenance, seeds, significance
from digits.command import UserError
from digits.files import md5
from digits.lineage import State

from .conftest import CLASSES, bars

COUNT = 60
ACTUAL = [CLASSES[place % 3] for place in range(COUNT)]


def table(wrong: set[int]) -> bytes:
    guesses = [CLASSES[(place + 1) % 3] if place in wrong else name for place, name in enumerate(ACTUAL)]
    return "\n".join(["actual,predicted", *map(",".join, zip(ACTUAL, guesses, strict=True))]).encode()


def state(name: str, wrong: set[int], images: str = "1" * 32, **params: str) -> State:
    """Give a result that is wrong about these images of both splits."""
    outputs = {paths.VALIDATION.as_posix(): images, paths.TEST.as_posix(): "2" * 32, "models/m": "3" * 32}

    def read(file: str) -> bytes:
        if file not in (paths.VALIDATION_TABLE.as_posix(), paths.CONFUSION_TABLE.as_posix()):
            raise FileNotFoundError(file)
        return table(wrong)

    knobs = {"seed": "0", "train.epochs": "3"} | params
    return State(
        name, "c" * 40, b"", {"a.py": "4" * 32}, knobs, {}, outputs, {"parameters": 9.0, "epochs": 3.0}, read, 3.5
    )


BEFORE, AFTER = state("one", set(range(20))), state("other", {0, 1, 2, 40}, **{"train.epochs": "5.0"})


def test_two_results_are_compared_image_by_image() -> None:
    found = compare.compare([BEFORE], [AFTER])
    test = found["validation"]
    assert (test["fixed"], test["broken"]) == (list(range(3, 20)), [40])
    expected = significance.paired(17, 1, COUNT)
    assert (test["p"], test["low"], test["high"]) == (expected.p, expected.low, expected.high)
    assert test["difference"] == pytest.approx(16 / 60)
    assert found["first"]["validation"]["errors"] == 20
    assert found["second"]["validation"]["accuracy"] == pytest.approx(56 / 60)
    assert found["params"] == {"train.epochs": ["3", "5.0"]}
    assert found["first"]["cost"] == {"parameters": 9.0, "epochs": 3.0, "seconds": 3.5}
    assert test["classes"]["left"] == {"images": 20, "fixed": 6, "broken": 0, "p": pytest.approx(3 * 2 / 2**6)}
    assert compare.verdict(found).startswith("better: +26.67 % points (95 % interval +")
    assert compare.verdict(compare.compare([AFTER], [BEFORE])).startswith("worse: -26.67 % points")


def test_too_few_changes_are_no_evidence_and_it_is_said_what_would_be() -> None:
    found = compare.compare([state("a", {1, 2, 3})], [state("b", {3, 4})])
    said = compare.verdict(found)
    assert said.startswith("no evidence of a difference at this sample size: +1.67 % points")
    assert f"a difference of this size takes about {significance.paired(2, 1, COUNT).needed:,} images to show" in said
    assert "There is no evidence" in compare.markdown(found)


def test_equal_results_do_not_differ() -> None:
    found = compare.compare([BEFORE], [BEFORE])
    assert found["validation"]["p"] == 1
    assert "no evidence of a difference at this sample size: +0.00 % points" in compare.verdict(found)
    assert found["params"] == found["data"] == found["code"] == {}


def test_other_images_cannot_be_compared() -> None:
    found = compare.compare([BEFORE], [state("b", set(), images="9" * 32)])
    assert found["validation"] is None
    assert found["test"]
    assert compare.verdict(found).startswith("no comparison: the two were validated on other images")
    assert found["data"] == {paths.VALIDATION.as_posix(): ["1" * 32, "9" * 32]}


def test_several_seeds_are_compared_across_seeds() -> None:
    first = [state(f"a{seed}", set(range(20 + seed)), seed=str(seed)) for seed in range(3)]
    second = [state(f"b{seed}", set(range(2 * seed)), seed=str(seed)) for seed in range(3)]
    found = compare.compare(first, second)
    shares = [[(COUNT - wrong) / COUNT for wrong in side] for side in ((20, 21, 22), (0, 2, 4))]
    assert found["validation"]["p"] == pytest.approx(ttest_ind(*shares, equal_var=False).pvalue)
    assert found["validation"]["verdict"] == "better"
    assert found["first"]["validation"]["accuracy"] == pytest.approx(sum(shares[0]) / 3)
    assert "seed" not in found["params"]
    assert "better: +31.67 % points" in compare.verdict(found)
    with pytest.raises(UserError, match=r"^3 against 1 results: must be one of each, or two seeds or more of each"):
        compare.compare(first, second[:1])


@pytest.mark.parametrize("others", [{"train.epochs": "4"}, {"train.epochs": "4", "seed": "1"}])
def test_seeds_of_different_recipes_are_no_side(monkeypatch: pytest.MonkeyPatch, others: dict[str, str]) -> None:
    results = {"a": state("a", set()), "b": state("b", set(), **others), "c": state("c", set(), seed="1")}
    monkeypatch.setattr(provenance, "resolve", results.__getitem__)
    monkeypatch.setattr(provenance, "with_run", lambda found: found)
    assert [found.name for found in compare.side("a,c")] == ["a", "c"]
    with pytest.raises(UserError, match=r"^a,b: a and b differ by more than their seed"):
        compare.side("a,b")
    with pytest.raises(UserError, match=r"^a,c,a: two of these have the same seed"):
        compare.side("a,c,a")


def test_result_without_predictions_is_refused() -> None:
    def nothing(file: str) -> bytes:
        raise FileNotFoundError(file)

    bare = State("old", None, b"", {}, {}, {}, {}, {}, nothing)
    with pytest.raises(UserError, match=r"^old: has no plots/validation\.csv; `dvc repro` writes it"):
        compare.compare([bare], [bare])


def test_report_in_every_form_has_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare.compare([BEFORE], [AFTER])
    text = compare.markdown(found)
    for part in (
        "**B is better: ",
        "| train.epochs | 3 | 5.0 |",
        "+26.67 % points",
        "| left | 20 | 6 | 0 |",
        "| seconds | 3.5 |",
    ):
        assert part in text
    compare.console(found)
    shown = capsys.readouterr().out
    for part in ("A: one", "B: other", "B is better: +26.67 % points", "train.epochs", "McNemar, exact"):
        assert part in shown
    assert json.loads(json.dumps(found)) == found


def test_picture_shows_the_images_that_changed_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = compare.compare([BEFORE], [AFTER])
    with pytest.raises(UserError, match="is not the split of these results"):
        compare.picture(found, BEFORE, AFTER, Path("changed.png"))
    data.save(bars(COUNT), paths.VALIDATION)
    first, second = (
        state(one.name, wrong, images=md5(paths.VALIDATION)) for one, wrong in ((BEFORE, {1}), (AFTER, {2}))
    )
    compare.picture(compare.compare([first], [second]), first, second, Path("changed.png"))
    assert Path("changed.png").stat().st_size > 1000
    for place, fault in (("a.txt", "must end in .png, .pdf, .svg"), ("changed.png/a.png", "cannot be written (")):
        with pytest.raises(UserError, match=rf"^--picture: {re.escape(place)}: {re.escape(fault)}"):
            compare.picture(compare.compare([first], [second]), first, second, Path(place))
    seeds: Any = compare.compare([BEFORE, AFTER], [BEFORE, AFTER])
    with pytest.raises(UserError, match="needs one result of each"):
        compare.picture(seeds, BEFORE, AFTER, Path("changed.png"))


def test_row_of_one_seed_has_no_deviation_and_seconds_only_where_they_are_known() -> None:
    one, other = (
        replace(state(name, set()), metrics={"validation_accuracy": share, "test_accuracy": 0.99}, seconds=seconds)
        for name, share, seconds in (("a", 0.98, None), ("b", 0.97, 4.0))
    )
    assert seeds.markdown([seeds.row("x", [one])]).splitlines()[-1] == (
        "| x | 1 | 98.00 ± – (98.00 to 98.00) | 99.00 ± – (99.00 to 99.00) | – |"
    )
    both = seeds.row("x", [one, other])
    assert both["validation_deviation"] == pytest.approx(0.5**0.5)
    assert seeds.markdown([both]).splitlines()[-1].endswith("| 99.00 ± 0.00 (99.00 to 99.00) | 4.0 |")


def test_task_that_the_queue_loses_or_whose_worker_is_killed_is_put_again_and_at_last_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put: list[dict[str, int]] = []
    earlier = "zz  x-seed-1  09:00 PM  Success"  # of an earlier call, which says nothing of this one
    looks: list[list[str]] = []  # at the queue: before anything is put, after the first time, after the second, …
    monkeypatch.setattr(seeds, "put", lambda names, *_: put.append(names))
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(seeds, "dvc", lambda *_: "\n".join([*looks[len(put)], "Worker status: 0 active, 0 idle"]))
    first, second = "aa  x-seed-0  10:00 PM  Success", "cc  x-seed-1  10:01 PM  Success"
    for after in ([earlier, first], [earlier, first, "bb  x-seed-1  10:00 PM  Running"]):
        put.clear()
        looks[:] = [earlier], after, [*after, second]
        seeds.queue(["x-seed-0", "x-seed-1"], [], 1)
        assert put == [{"x-seed-0": 0, "x-seed-1": 1}, {"x-seed-1": 1}]
    put.clear()
    looks[:] = [[earlier]] * 4
    with pytest.raises(UserError, match="x-seed-0, x-seed-1: DVC's workers end before it does"):
        seeds.queue(["x-seed-0", "x-seed-1"], [], 1)
    assert len(put) == 1 + seeds.AGAIN
    put.clear()
    looks[:] = [[earlier], [first, second.replace("Success", "Failed")]]
    with pytest.raises(UserError, match="x-seed-1: failed; `dvc queue logs x-seed-1` says why"):
        seeds.queue(["x-seed-0", "x-seed-1"], [], 1)
