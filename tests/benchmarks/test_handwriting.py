from pathlib import Path

import numpy as np
import pytest

from benchmarks import handwriting
from benchmarks.handwriting import KINDS, Tally
from digits.errors import UserError
from digits.serving.reading import INCLUDED, SURE, Answer, Digit, Model

from ..serving.conftest import png, written


def test_smallest_threshold_that_flags_half_of_the_wrong_answers_is_chosen() -> None:
    found = Tally(right=[0.5, 0.99, 0.99, 0.999], wrong=[0.55, 0.72, 0.91, 0.97])
    assert found.flagged(0.75) == (0.25, 0.5)
    assert handwriting.chosen(found) == 0.75


def test_threshold_in_use_is_the_one_that_was_chosen() -> None:
    page = Path(handwriting.__file__).with_suffix(".md").read_text(encoding="utf-8")
    assert f"at which half of the wrong answers to one digit are unsure: {SURE:.0%}." in " ".join(page.split())


def test_an_odd_answer_counts_as_unsure_and_nothing_to_read_not_as_wrong() -> None:
    found = Tally()
    digit = Digit("7", 0.99, (0, 0, 1, 1), 0)
    found.add(Answer("a", (digit,)), "7")
    found.add(Answer("b", (digit,), odd=True), "1")
    found.add(Answer("c", error="nothing to read"), None)
    assert (found.right, found.wrong, found.refused, found.count) == ([0.99], [0.0], 1, 3)
    assert handwriting.table({"one": found}).endswith(" 0.0 / 100 |")


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_without_digits_are_always_the_same(kind: str) -> None:
    one, other = (handwriting.meaningless(kind, np.random.default_rng(3)) for _ in range(2))
    assert one.shape == (200, 200)
    assert np.ptp(one) > 10
    np.testing.assert_array_equal(one, other)


def test_own_pictures_are_counted_by_folder(tmp_path: Path) -> None:
    model = Model(INCLUDED, threads=1)
    for folder in ("page", "photo"):
        (tmp_path / folder).mkdir()
    (tmp_path / "page/one.png").write_bytes(png(written("23\n5")))
    (tmp_path / "photo/two.png").write_bytes(png(written("8")))
    (tmp_path / "labels.csv").write_text("file,label\npage/one.png,24/5\nphoto/two.png,8\n")
    lines = handwriting.labelled(model, tmp_path)
    assert lines[:3] == ["| page | 0 of 1 |", "| page: digits | 2 of 3 (66.7%) |", "| photo | 1 of 1 |"]
    with pytest.raises(UserError, match="must have a labels"):
        handwriting.labelled(model, tmp_path / "absent")
