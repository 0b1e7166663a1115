from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from digits.reports.figures import tune

from .conftest import Draw, check_drawing

DRAWINGS: dict[str, Draw] = {
    "history": lambda path: tune.search_history([(0, 0.9, True), (1, 0.95, False), (2, 0.92, True)], path),
    "history, all completed": lambda path: tune.search_history([(0, 0.9, True), (1, 0.95, True)], path),
    "importance": lambda path: tune.importance({"a": 0.2, "b": 0.7, "c": 0.1}, path),
}


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_figure_is_a_png_of_the_same_bytes_whatever_the_users_own_style(tmp_path: Path, drawing: str) -> None:
    check_drawing(DRAWINGS[drawing], tmp_path)


def test_history_of_a_search_shows_every_trial_and_the_best_of_those_that_were_completed(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    tune.search_history([(0, 0.9, True), (1, 0.95, False), (2, 0.92, True)], tmp_path / "figure.png")
    lines: dict[Any, Any] = {line.get_label(): line.get_xydata() for line in drawn[0].axes[0].lines}
    for name, points in {
        "complete": [[0, 0.1], [2, 0.08]],
        "pruned": [[1, 0.05]],
        "best": [[0, 0.1], [1, 0.1], [2, 0.08]],
    }.items():
        assert lines[name] == pytest.approx(np.array(points))


def test_importance_is_a_bar_for_each_knob_the_largest_on_top(tmp_path: Path, drawn: list[Figure]) -> None:
    tune.importance({"a": 0.2, "b": 0.7, "c": 0.1}, tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "a", "b"]
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.2, 0.7]  # type: ignore[attr-defined]  # rectangles
