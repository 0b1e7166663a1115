"""Figures of data with many classes: legible for 62, and the most telling part of 500."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from digits.images.splits import Split
from digits.learning.evaluation import Predictions
from digits.reports.figures import evaluate, preprocess

RANDOM = torch.Generator().manual_seed(0)


def predictions(classes: int, *, color: bool = False) -> Predictions:
    """Return predictions of images of all classes but one, a tenth of them wrong."""
    labels = torch.arange(3 * classes) % classes
    labels[labels == 1] = 0
    images = torch.randint(256, (len(labels), 3 if color else 1, 8, 8), dtype=torch.uint8, generator=RANDOM)
    logits = torch.nn.functional.one_hot(labels, classes) * 9 + torch.randn(len(labels), classes, generator=RANDOM)
    logits[::10] = logits[::10].roll(1, dims=1)
    return Predictions(Split(images, labels, tuple(f"class {number}" for number in range(classes))), logits)


FIGURES: dict[str, Callable[[Predictions, Path], None]] = {
    "confusion": evaluate.confusion_matrix,
    "recall": evaluate.recall,
    "misclassified": lambda found, path: evaluate.misclassified(found, 40, path),
    "embedding": lambda found, path: evaluate.embedding(found, found.logits, path),
    "overview": lambda found, path: preprocess.overview({"train": found.split}, path),
    "samples": lambda found, path: preprocess.samples(found.split, path),
    "class_balance": lambda found, path: preprocess.class_balance(
        dict.fromkeys(("train", "validation", "test"), found.split), path
    ),
}


@pytest.mark.parametrize(("classes", "color"), [(2, True), (62, False), (500, False)])
@pytest.mark.parametrize("figure", FIGURES)
def test_figure_of_many_classes_is_of_a_size_that_can_be_read(
    tmp_path: Path, figure: str, classes: int, *, color: bool
) -> None:
    path = tmp_path / "figure.png"
    FIGURES[figure](predictions(classes, color=color), path)
    width, height = Image.open(path).size
    assert width <= 4000
    assert height <= 4000
    assert path.stat().st_size < 1_000_000
