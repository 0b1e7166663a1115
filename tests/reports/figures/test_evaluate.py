from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from digits.images.splits import Split
from digits.learning import evaluation
from digits.learning.evaluation import Predictions, calibrated
from digits.learning.scores import Robustness, wilson
from digits.reports.figures import evaluate

from .conftest import CONFIDENCE, LONG, RIGHT, SPLIT, WRONG, Draw, brightness, check_drawing, named, predictions

SURE = torch.where(CONFIDENCE > 0.7, RIGHT, WRONG)  # right where the confidence is high


ROBUST = Robustness(
    12, 1.0, {"shift": [1.0, 0.9, 0.8, 0.5, 0.1], "noise": [0.9] * 5}, {"noise": [0.1, 0.2, 0.3, 0.4, 0.5]}
)


def reliability(path: Path, predicted: torch.Tensor, smoothing: float = 0.0) -> None:
    evaluate.reliability(predictions(predicted), 0.5, smoothing, 5, path)


def embedding(path: Path, predicted: torch.Tensor, classes: tuple[str, ...] = SPLIT.classes) -> None:
    features = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    evaluate.embedding(predictions(predicted, named(classes)), features, path)


DRAWINGS: dict[str, Draw] = {
    "confusion": lambda path: evaluate.confusion_matrix(predictions(WRONG), path),
    "confusion, long names": lambda path: evaluate.confusion_matrix(predictions(WRONG, named(LONG)), path),
    "confusion without mistakes": lambda path: evaluate.confusion_matrix(predictions(RIGHT), path),
    "misclassified": lambda path: evaluate.misclassified(predictions(WRONG), 9, path),
    "misclassified, long names": lambda path: evaluate.misclassified(predictions(WRONG, named(LONG)), 9, path),
    "misclassified, none": lambda path: evaluate.misclassified(predictions(RIGHT), 9, path),
    "recall": lambda path: evaluate.recall(predictions(WRONG), path),
    "recall, a class without images": lambda path: evaluate.recall(predictions(RIGHT, named(LONG, 12)), path),
    "robustness": lambda path: evaluate.robustness(ROBUST, path),
    "embedding": lambda path: embedding(path, WRONG),
    "embedding without mistakes, long names": lambda path: embedding(path, RIGHT, LONG),
    "reliability": lambda path: reliability(path, SURE),
    "reliability, all wrong": lambda path: reliability(path, WRONG),
}


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_figure_is_a_png_of_the_same_bytes_whatever_the_users_own_style(tmp_path: Path, drawing: str) -> None:
    check_drawing(DRAWINGS[drawing], tmp_path)


def test_misclassified_images_are_the_most_confident_mistakes_first_and_no_more_than_asked(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    predicted = RIGHT.clone()
    predicted[[1, 4, 9]] = WRONG[[1, 4, 9]]
    evaluate.misclassified(predictions(predicted), 2, tmp_path / "figure.png")
    titles = [text.get_text() for axes in drawn[0].axes for text in axes.texts]
    assert titles == ["left → middle  89%", "middle → right  62%"]
    sheet = torch.as_tensor(drawn[0].axes[0].images[0].get_array())
    assert [int(part.sum()) for part in sheet.chunk(8, dim=1)] == [brightness(9), brightness(4)] + [0] * 6
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


@pytest.mark.parametrize("drawing", [evaluate.confusion_matrix, lambda _, path: evaluate.robustness(ROBUST, path)])
def test_text_on_a_colored_cell_contrasts_by_4_5_or_more(
    tmp_path: Path, drawn: list[Figure], drawing: Callable[..., None]
) -> None:
    drawing(predictions(WRONG), tmp_path / "figure.png")
    axes = drawn[0].axes[0]
    shades = axes.images[0].to_rgba(np.asarray(axes.images[0].get_array()))
    assert axes.texts

    def luminance(color: Any) -> float:
        parts = np.asarray(to_rgb(color))
        return float(
            np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
        )

    for text in axes.texts:
        column, row = text.get_position()
        low, high = sorted((luminance(text.get_color()), luminance(shades[int(row), int(column)][:3])))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_recall_is_shown_with_its_interval(tmp_path: Path, drawn: list[Figure]) -> None:
    predicted = RIGHT.clone()
    predicted[0] = 1
    evaluate.recall(predictions(predicted), tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    points, average = axes.lines[0], axes.lines[-1]
    assert list(points.get_ydata()) == [0.75, 1.0, 1.0]  # type: ignore[arg-type]  # an array
    assert average.get_ydata()[0] == pytest.approx(11 / 12)  # type: ignore[index]  # an array
    low, high = wilson(3, 4)
    ends = np.asarray(axes.collections[0].get_paths()[0].vertices)[:, 1]
    assert ends.tolist() == pytest.approx([low, high])


def test_robustness_shows_every_accuracy_in_percent(tmp_path: Path, drawn: list[Figure]) -> None:
    evaluate.robustness(ROBUST, tmp_path / "figure.png")
    shown = [text.get_text() for text in drawn[0].axes[0].texts]
    assert shown == ["100.0", "100.0", "90.0", "80.0", "50.0", "10.0", "100.0", *["90.0"] * 5]


def test_embedding_marks_the_mistakes(tmp_path: Path, drawn: list[Figure]) -> None:
    predicted = RIGHT.clone()
    predicted[[2, 5]] = WRONG[[2, 5]]
    embedding(tmp_path / "figure.png", predicted)
    assert "12 validation images, 2 misclassified" in drawn[0].get_suptitle()
    for axes in drawn[0].axes:
        assert [len(points.get_offsets()) for points in axes.collections] == [4, 4, 4, 2]  # type: ignore[arg-type]
        assert [text.get_text() for text in axes.texts] == list(SPLIT.classes)


def test_reliability_shows_both_versions_and_says_how_and_why_it_deviates(tmp_path: Path, drawn: list[Figure]) -> None:
    reliability(tmp_path / "figure.png", RIGHT, 0.1)
    upper, lower = drawn[0].axes
    for line, found in zip(upper.lines[1:], (predictions(RIGHT), calibrated(predictions(RIGHT), 0.5)), strict=True):
        bins = evaluation.reliability(found, 5)
        assert list(line.get_ydata()) == bins.accuracy[bins.counts > 0].tolist()  # type: ignore[arg-type]  # an array
        assert str(line.get_label()).endswith(f"calibration error {bins.error:.2%}")
    counts = evaluation.reliability(predictions(RIGHT), 5).counts.tolist()
    assert [bar.get_height() for bar in lower.patches][:5] == counts  # type: ignore[attr-defined]  # a rectangle
    assert upper.get_title().endswith("underconfident\nby 30.0 points, because of label smoothing of 0.1")
    reliability(tmp_path / "figure.png", WRONG)
    assert "overconfident\nby 70.0 points, because of training on" in drawn[1].axes[0].get_title()
