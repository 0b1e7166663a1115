from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from digits.images.batches import to_float
from digits.learning.curve import Epoch
from digits.reports.figures import train

from .conftest import SPLIT, Draw, check_drawing


def curve(path: Path, learned: list[float], held_out: list[float]) -> None:
    """Draw the curve of a training with these accuracies."""
    accuracies = enumerate(zip(learned, held_out, strict=True), 1)
    train.curve([Epoch(number, 0.5 / number, 0.6 / number, *pair, 0.3) for number, pair in accuracies], path)


DRAWINGS: dict[str, Draw] = {
    "curve": lambda path: curve(path, [0.9, 0.95, 0.99], [0.9, 0.94, 0.96]),
    "curve of one epoch": lambda path: curve(path, [0.9], [0.8]),
    "curve of one epoch, both alike": lambda path: curve(path, [0.9], [0.9]),
    "augmentation": lambda path: train.augmentation([to_float(SPLIT.images[:3])] * 3, path),
    "curve without errors": lambda path: curve(path, [1.0, 1.0], [1.0, 1.0]),
}


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_figure_is_a_png_of_the_same_bytes_whatever_the_users_own_style(tmp_path: Path, drawing: str) -> None:
    check_drawing(DRAWINGS[drawing], tmp_path)


def test_curve_shows_losses_error_rates_and_learning_rate_of_every_epoch(tmp_path: Path, drawn: list[Figure]) -> None:
    curve(tmp_path / "figure.png", [0.5, 0.25], [0.9, 1.0])
    loss, error, rate = (
        {line.get_label(): list(map(float, line.get_ydata())) for line in axes.lines}  # type: ignore[arg-type]  # an array
        for axes in drawn[0].axes
    )
    assert loss == {"train": [0.5, 0.25], "validation": [0.6, 0.3]}
    assert error["train"] == pytest.approx([0.5, 0.75])
    assert error["validation"] == pytest.approx([0.1, 0.0001])  # 0 has no place on the axis
    assert list(rate.values()) == [[0.3, 0.3]]
    assert [axes.get_title() for axes in drawn[0].axes] == ["Loss", "Error rate", "Learning rate"]


def test_augmented_versions_stand_below_their_originals(tmp_path: Path, drawn: list[Figure]) -> None:
    first, second = to_float(SPLIT.images[:3]), to_float(SPLIT.images[3:6])
    train.augmentation([first, second], tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    sheet = torch.from_numpy(np.asarray(axes.images[0].get_array()))
    assert torch.allclose(sheet[28:, 28:56], 255 * second[1, 0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["original", "version 1"]
