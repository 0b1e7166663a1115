from pathlib import Path

import pytest
from matplotlib.figure import Figure

from digits.reports.figures import compare

from .conftest import SPLIT, brightness, check_drawing, shown

NAMES = [SPLIT.classes[label] for label in SPLIT.labels.tolist()]


def changed(path: Path, groups: dict[str, list[int]]) -> None:
    """Draw images that A got wrong (1) and that B gets wrong (4, 9), one of each group at most."""
    before, after = list(NAMES), list(NAMES)
    before[1], after[4], after[9] = "left", "right", "left"
    compare.changed(SPLIT, before, after, groups, path, limit=1)


@pytest.mark.parametrize("fixed", [[1], []])
def test_figure_is_a_png_of_the_same_bytes_whatever_the_users_own_style(tmp_path: Path, fixed: list[int]) -> None:
    check_drawing(lambda path: changed(path, {"put right by B": fixed, "put wrong by B": [4, 9]}), tmp_path)


def test_changed_images_are_in_the_block_of_their_group(tmp_path: Path, drawn: list[Figure]) -> None:
    changed(tmp_path / "figure.png", {"put right by B": [1], "put wrong by B": [4, 9]})
    titles = [text.get_text() for axes in drawn[0].axes for text in axes.texts]
    assert titles == [f"{NAMES[1]}: left → {NAMES[1]}", f"{NAMES[4]}: {NAMES[4]} → right"]
    assert [shown(axes) for axes in drawn[0].axes if axes.images] == [brightness(1), brightness(4)]
    assert [block.get_suptitle().split(":")[0] for block in drawn[0].subfigs] == [
        "1 of 1 put right by B",
        "1 of 2 put wrong by B",
    ]
