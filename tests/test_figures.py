import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from digits import evaluation, figures
from digits.data import Split

from .conftest import ROOT, bars

LONG = ("T-shirt/top", "Ankle boot, brown", "日本語")
SPLIT = bars(12)
RIGHT = SPLIT.labels
WRONG = (RIGHT + 1) % 3
CONFIDENCE = torch.linspace(0.4, 1, 12, dtype=torch.float64)
NAMES = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy", "learning_rate")
STRANGE: dict[Any, Any] = {
    "axes.facecolor": "black",
    "axes.grid": False,
    "figure.dpi": 37,
    "font.size": 17,
    "image.cmap": "jet",
    "lines.linewidth": 9,
    "savefig.bbox": "tight",
    "savefig.dpi": 31,
    "savefig.transparent": True,
    "text.color": "red",
}


def named(classes: tuple[str, ...], count: int = 12) -> Split:
    return Split(SPLIT.images[:count], SPLIT.labels[:count] % len(classes), classes)


def balance(path: Path, classes: tuple[str, ...] = SPLIT.classes) -> None:
    split = named(classes)
    figures.class_balance({"train": split, "validation": split[:4], "test": split[:2]}, path)


def curve(path: Path, train: list[float], validation: list[float]) -> None:
    columns: dict[str, Any] = {name: [0.3] * len(train) for name in NAMES}
    columns |= {"epoch": range(1, len(train) + 1), "train_accuracy": train, "validation_accuracy": validation}
    figures.curve(columns, path)


def confusion(path: Path, predicted: Tensor, classes: tuple[str, ...] = SPLIT.classes) -> None:
    figures.confusion(evaluation.confusion(RIGHT, predicted, 3), classes, path)


def reliability(path: Path, correct: Tensor) -> None:
    figures.reliability(*evaluation.reliability(CONFIDENCE, correct, 5), 0.1, path)


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "samples": lambda path: figures.samples(SPLIT, path, columns=3),
    "samples, long names": lambda path: figures.samples(named(LONG), path, columns=3),
    "samples, a class without images": lambda path: figures.samples(named(SPLIT.classes, 2), path, columns=3),
    "balance": balance,
    "balance, long names": lambda path: balance(path, LONG),
    "curve": lambda path: curve(path, [0.9, 0.95, 0.99], [0.9, 0.94, 0.96]),
    "curve of one epoch": lambda path: curve(path, [0.9], [0.8]),
    "curve of one epoch, both alike": lambda path: curve(path, [0.9], [0.9]),
    "curve without errors": lambda path: curve(path, [1.0, 1.0], [1.0, 1.0]),
    "confusion": lambda path: confusion(path, WRONG),
    "confusion, long names": lambda path: confusion(path, WRONG, LONG),
    "confusion without mistakes": lambda path: confusion(path, RIGHT),
    "misclassified": lambda path: figures.misclassified(SPLIT, CONFIDENCE, WRONG, 9, path),
    "misclassified, long names": lambda path: figures.misclassified(named(LONG), CONFIDENCE, WRONG, 9, path),
    "misclassified, none": lambda path: figures.misclassified(SPLIT, CONFIDENCE, RIGHT, 9, path),
    "reliability": lambda path: reliability(path, CONFIDENCE > 0.7),
    "reliability, all wrong": lambda path: reliability(path, CONFIDENCE > 2),
}


@pytest.mark.filterwarnings("error", "ignore:Glyph")  # the font that comes with matplotlib has no Japanese
@pytest.mark.parametrize("drawing", DRAWINGS)
def test_figure_is_a_png_of_the_same_bytes_whatever_the_users_own_style(tmp_path: Path, drawing: str) -> None:
    DRAWINGS[drawing](tmp_path / "first.png")
    with matplotlib.rc_context(STRANGE):
        DRAWINGS[drawing](tmp_path / "second.png")
        assert {key: matplotlib.rcParams[key] for key in STRANGE} == STRANGE  # left as they were
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    with Image.open(tmp_path / "first.png") as image:
        assert image.format == "PNG"
        assert min(image.size) >= 100
        assert len(image.convert("RGB").getcolors(10**7) or []) > 5
        assert "Software" not in image.info


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect the figures that are saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def spy(figure: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def shown(axes: Axes) -> int:
    """Give the sum of pixels of the image in `axes`, which tells the images of SPLIT apart."""
    return int(torch.as_tensor(axes.images[0].get_array()).sum())


def brightness(place: int) -> int:
    return int(SPLIT.images[place].sum())


def test_misclassified_images_are_the_most_confident_mistakes_first_and_no_more_than_asked(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    predicted = RIGHT.clone()
    predicted[[1, 4, 9]] = WRONG[[1, 4, 9]]
    figures.misclassified(SPLIT, CONFIDENCE, predicted, 2, tmp_path / "figure.png")
    titles = [axes.get_title() for axes in drawn[0].axes if axes.get_title()]
    assert titles == ["left → middle  89%", "middle → right  62%"]
    assert [shown(axes) for axes in drawn[0].axes if axes.images] == [brightness(9), brightness(4)]
    assert drawn[0].get_suptitle().startswith("2 of 3 misclassified")


def test_confusion_shows_every_count_that_is_not_0(tmp_path: Path, drawn: list[Figure]) -> None:
    matrix = torch.tensor([[5, 0, 2], [1, 7, 0], [0, 0, 9]])
    figures.confusion(matrix, SPLIT.classes, tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    texts = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert texts == {((0, 0), "5"), ((2, 0), "2"), ((0, 1), "1"), ((1, 1), "7"), ((2, 2), "9")}
    assert axes.get_title().endswith("3 errors in 24")
    assert [label.get_text() for label in axes.get_yticklabels()] == list(SPLIT.classes)


def test_curve_shows_error_rates_and_every_epoch(tmp_path: Path, drawn: list[Figure]) -> None:
    columns: dict[str, Any] = {name: [0.5, 0.25] for name in NAMES} | {
        "epoch": [1, 2],
        "validation_accuracy": [0.9, 1.0],
    }
    figures.curve(columns, tmp_path / "figure.png")
    lines = {
        (axes.get_title(), line.get_label()): list(map(float, line.get_ydata()))  # type: ignore[arg-type]  # an array
        for axes in drawn[0].axes
        for line in axes.lines
    }
    assert lines["Loss", "validation"] == [0.5, 0.25]
    assert lines["Error rate", "train"] == pytest.approx([0.5, 0.75])
    assert lines["Error rate", "validation"] == pytest.approx([0.1, 0.0001])  # 0 has no place on the axis


def test_class_balance_shows_shares_of_each_split(tmp_path: Path, drawn: list[Figure]) -> None:
    balance(tmp_path / "figure.png")
    heights = [[bar.get_height() for bar in bars.patches] for bars in drawn[0].axes[0].containers]  # type: ignore[attr-defined]  # a bar container
    assert [pytest.approx(row) for row in heights] == [[1 / 3] * 3, [0.5, 0.25, 0.25], [0.5, 0.5, 0]]


def test_samples_are_in_the_row_of_their_class(tmp_path: Path, drawn: list[Figure]) -> None:
    figures.samples(SPLIT, tmp_path / "figure.png", columns=2)
    (sheet,) = drawn[0].axes[0].images
    pixels = torch.from_numpy(np.asarray(sheet.get_array()))
    for row in range(3):
        for column in range(2):
            image = pixels[28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
            assert torch.equal(image, SPLIT.images[row + 3 * column, 0])


def test_reliability_shows_accuracy_and_counts_of_the_bins(tmp_path: Path, drawn: list[Figure]) -> None:
    reliability(tmp_path / "figure.png", CONFIDENCE > 0.7)
    upper, lower = drawn[0].axes
    counts, _, accuracy = evaluation.reliability(CONFIDENCE, CONFIDENCE > 0.7, 5)
    assert [bar.get_height() for bar in upper.patches] == accuracy.tolist()  # type: ignore[attr-defined]  # a rectangle
    assert [bar.get_height() for bar in lower.patches] == counts.tolist()  # type: ignore[attr-defined]  # a rectangle
    assert upper.get_title().endswith("10.00%")


def test_figures_need_no_display_and_touch_nothing_at_import(tmp_path: Path) -> None:
    script = (
        "import sys; from digits import figures; import matplotlib\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams['axes.axisbelow'] == 'line'"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"MPLBACKEND": "tkagg", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_changed_images_are_in_the_block_of_their_group(tmp_path: Path, drawn: list[Figure]) -> None:
    names = [SPLIT.classes[label] for label in SPLIT.labels.tolist()]
    before, after = list(names), list(names)
    before[1], after[4], after[9] = "left", "right", "left"
    groups = {"put right by B": [1], "put wrong by B": [4, 9]}
    figures.changed(SPLIT, before, after, groups, tmp_path / "figure.png", limit=1)
    titles = [axes.get_title() for axes in drawn[0].axes if axes.get_title()]
    assert titles == [f"{names[1]}: left → {names[1]}", f"{names[4]}: {names[4]} → right"]
    assert [shown(axes) for axes in drawn[0].axes if axes.images] == [brightness(1), brightness(4)]
    assert [block.get_suptitle().split(":")[0] for block in drawn[0].subfigs] == [
        "1 of 1 put right by B",
        "1 of 2 put wrong by B",
    ]


def test_history_of_a_search_shows_every_trial_and_the_best_of_those_that_ended(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    figures.search_history([(0, 0.9, True), (1, 0.95, False), (2, 0.92, True)], tmp_path / "figure.png")
    lines: dict[Any, Any] = {line.get_label(): line.get_xydata() for line in drawn[0].axes[0].lines}
    for name, points in {
        "complete": [[0, 0.1], [2, 0.08]],
        "given up early": [[1, 0.05]],
        "best": [[0, 0.1], [1, 0.1], [2, 0.08]],
    }.items():
        assert lines[name] == pytest.approx(np.array(points))


def test_importance_is_a_bar_for_each_knob_the_largest_on_top(tmp_path: Path, drawn: list[Figure]) -> None:
    figures.importance({"a": 0.2, "b": 0.7, "c": 0.1}, tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "a", "b"]
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.2, 0.7]  # type: ignore[attr-defined]  # rectangles
