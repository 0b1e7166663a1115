from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from digits.images.splits import Split
from digits.learning import evaluation
from digits.learning.evaluation import Predictions
from digits.reports.figures import evaluate

from .conftest import CONFIDENCE, LONG, RIGHT, SPLIT, WRONG, Draw, brightness, check_drawing, named, predictions, shown

SURE = torch.where(CONFIDENCE > 0.7, RIGHT, WRONG)  # right where the confidence is high


def reliability(path: Path, predicted: torch.Tensor) -> None:
    evaluate.reliability(evaluation.reliability(predictions(predicted), 5), path)


DRAWINGS: dict[str, Draw] = {
    "confusion": lambda path: evaluate.confusion_matrix(predictions(WRONG), path),
    "confusion, long names": lambda path: evaluate.confusion_matrix(predictions(WRONG, named(LONG)), path),
    "confusion without mistakes": lambda path: evaluate.confusion_matrix(predictions(RIGHT), path),
    "misclassified": lambda path: evaluate.misclassified(predictions(WRONG), 9, path),
    "misclassified, long names": lambda path: evaluate.misclassified(predictions(WRONG, named(LONG)), 9, path),
    "misclassified, none": lambda path: evaluate.misclassified(predictions(RIGHT), 9, path),
    "reliability": lambda path: reliability(path, SURE),
    "reliability, all wrong": lambda path: reliability(path, WRONG),
}


@pytest.mark.filterwarnings("error", "ignore:Glyph")  # the font that comes with matplotlib has no Japanese
@pytest.mark.parametrize("drawing", DRAWINGS)
def test_figure_is_a_png_of_the_same_bytes_whatever_the_users_own_style(tmp_path: Path, drawing: str) -> None:
    check_drawing(DRAWINGS[drawing], tmp_path)


def test_misclassified_images_are_the_most_confident_mistakes_first_and_no_more_than_asked(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    predicted = RIGHT.clone()
    predicted[[1, 4, 9]] = WRONG[[1, 4, 9]]
    evaluate.misclassified(predictions(predicted), 2, tmp_path / "figure.png")
    titles = [axes.get_title() for axes in drawn[0].axes if axes.get_title()]
    assert titles == ["left → middle  89%", "middle → right  62%"]
    assert [shown(axes) for axes in drawn[0].axes if axes.images] == [brightness(9), brightness(4)]
    assert drawn[0].get_suptitle().startswith("2 of 3 misclassified")


def test_confusion_shows_every_count_that_is_not_0(tmp_path: Path, drawn: list[Figure]) -> None:
    pairs = torch.tensor([[0, 0]] * 5 + [[0, 2]] * 2 + [[1, 0]] + [[1, 1]] * 7 + [[2, 2]] * 9)
    split = Split(torch.zeros(24, 1, 28, 28, dtype=torch.uint8), pairs[:, 0], SPLIT.classes)
    evaluate.confusion_matrix(Predictions(split, torch.eye(3)[pairs[:, 1]]), tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    texts = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert texts == {((0, 0), "5"), ((2, 0), "2"), ((0, 1), "1"), ((1, 1), "7"), ((2, 2), "9")}
    assert axes.get_title().endswith("3 errors in 24")
    assert [label.get_text() for label in axes.get_yticklabels()] == list(SPLIT.classes)


def test_reliability_shows_accuracy_and_counts_of_the_bins(tmp_path: Path, drawn: list[Figure]) -> None:
    reliability(tmp_path / "figure.png", SURE)
    upper, lower = drawn[0].axes
    found = evaluation.reliability(predictions(SURE), 5)
    assert [bar.get_height() for bar in upper.patches] == found.accuracy.tolist()  # type: ignore[attr-defined]  # a rectangle
    assert [bar.get_height() for bar in lower.patches] == found.counts.tolist()  # type: ignore[attr-defined]  # a rectangle
    assert upper.get_title().endswith(f" {found.error:.2%}")
