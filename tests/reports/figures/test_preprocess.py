from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from digits.reports.figures import preprocess

from .conftest import LONG, SPLIT, Draw, check_drawing, named


def balance(path: Path, classes: tuple[str, ...] = SPLIT.classes) -> None:
    split = named(classes)
    preprocess.class_balance({"train": split, "validation": split[:4], "test": split[:2]}, path)


def overview(path: Path, classes: tuple[str, ...]) -> None:
    split = named(classes)
    preprocess.overview({"train": split, "validation": split[:4], "test": split[:2]}, path)


DRAWINGS: dict[str, Draw] = {
    "samples": lambda path: preprocess.samples(SPLIT, path, columns=3),
    "samples, long names": lambda path: preprocess.samples(named(LONG), path, columns=3),
    "samples, a class without images": lambda path: preprocess.samples(named(SPLIT.classes, 2), path, columns=3),
    "overview": lambda path: overview(path, SPLIT.classes),
    "overview, long names": lambda path: overview(path, LONG),
    "balance": balance,
    "balance, long names": lambda path: balance(path, LONG),
}


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_figure_is_a_png_of_the_same_bytes_whatever_the_users_own_style(tmp_path: Path, drawing: str) -> None:
    check_drawing(DRAWINGS[drawing], tmp_path)


def test_samples_are_in_the_row_of_their_class(tmp_path: Path, drawn: list[Figure]) -> None:
    preprocess.samples(SPLIT, tmp_path / "figure.png", columns=2)
    (sheet,) = drawn[0].axes[0].images
    pixels = torch.from_numpy(np.asarray(sheet.get_array()))
    for row in range(3):
        for column in range(2):
            image = pixels[28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
            assert torch.equal(image, SPLIT.images[row + 3 * column, 0])


def test_class_balance_shows_shares_of_each_split(tmp_path: Path, drawn: list[Figure]) -> None:
    balance(tmp_path / "figure.png")
    heights = [[bar.get_height() for bar in bars.patches] for bars in drawn[0].axes[0].containers]  # type: ignore[attr-defined]  # a bar container
    assert [pytest.approx(row) for row in heights] == [[1 / 3] * 3, [0.5, 0.25, 0.25], [0.5, 0.5, 0]]


def test_overview_tells_what_each_split_holds(tmp_path: Path, drawn: list[Figure]) -> None:
    overview(tmp_path / "figure.png", SPLIT.classes)
    table = drawn[0].axes[0].tables[0]
    rows = [[table[row, column].get_text().get_text() for column in range(6)] for row in range(1, 4)]
    assert [row[:4] + row[5:] for row in rows] == [
        ["train", "12", "1 x 28 x 28", "uint8", "3"],
        ["validation", "4", "1 x 28 x 28", "uint8", "3"],
        ["test", "2", "1 x 28 x 28", "uint8", "2"],
    ]
    assert rows[0][4] == "0 to 250"
    means = torch.from_numpy(np.asarray(drawn[0].axes[1].images[0].get_array()))
    assert torch.allclose(means[:, :28], SPLIT.images[::3, 0].double().mean(dim=0))
