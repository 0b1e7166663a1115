from typing import Any

import pytest
import torch
from torch import Tensor, nn

from digits.images.splits import Split
from digits.learning import evidence
from digits.learning.curve import Epoch, TrainMetrics
from digits.learning.evaluation import Predictions
from digits.learning.evidence import Evidence
from tests.conftest import CLASSES, bars

CPU = torch.device("cpu")


class Columns(nn.Module):
    """Sees in which third of the image the bar is."""

    def forward(self, images: Tensor) -> Tensor:
        columns = images.mean(dim=(1, 2))
        return 50 * torch.stack([columns[:, place : place + 4].mean(dim=1) for place in (4, 12, 20)], dim=1)


def collect(logits: Tensor, test: Predictions, losses: list[float]) -> Evidence:
    curve = [Epoch(place + 1, 0.1, loss, 0.9, 0.9, 0.01) for place, loss in enumerate(losses)]
    train = TrainMetrics(0.1, losses[-1], 0.75, 0.9, len(losses), len(losses), 3)
    return evidence.collect(Columns(), Predictions(bars(90), logits), test, curve, train, 10, 32, CPU)


def test_evidence_is_what_can_be_counted_by_hand() -> None:
    logits = Columns()(bars(90).images.float() / 255)
    logits[:4] = torch.tensor([0.0, 9.0, 0.0])  # 0, 1, 2, 0: two of class 0 and one of class 2 are wrong
    labels = torch.tensor([0, 1, 2, 1])
    test = Predictions(Split(bars(4).images, labels, CLASSES), torch.eye(3)[torch.tensor([0, 1, 2, 2])] * 100)
    found = collect(logits, test, [0.5, 0.2, 0.3])
    assert (found.classes, found.count, found.errors) == (3, 90, 3)
    assert found.accuracy == pytest.approx(87 / 90)
    assert (found.pair, found.pair_errors) == (["left", "middle"], 2)
    assert (found.weakest, found.weakest_count) == ("left", 30)
    assert found.weakest_recall == pytest.approx(28 / 30)
    assert (found.best_epoch, found.epochs, found.lowest_loss, found.last_loss) == (2, 3, 0.2, 0.3)
    assert found.last_gain == pytest.approx(-0.1)
    assert found.train_accuracy == 0.75
    assert found.confidence == pytest.approx(float(logits.double().softmax(dim=1).amax(dim=1).mean()))
    assert found.suspects == [3]
    unsure = Predictions(test.split, test.logits / 100)
    assert collect(logits, unsure, [0.5]).suspects == []
    assert collect(logits, unsure, [0.5]).last_gain == 0.0


def test_moving_the_images_costs_accuracy_where_the_network_looks_at_places() -> None:
    split = bars(90)
    assert evidence.moved_accuracy(Columns(), split, 32, CPU) == 1
    assert evidence.moved_accuracy(Columns(), split, 32, CPU, shift=1.0) == 1
    assert evidence.moved_accuracy(Columns(), split, 32, CPU, shift=8.0) < 0.5
    assert evidence.moved_accuracy(Columns(), split, 32, CPU, rotation=90.0) < 0.8


class Half(nn.Module):
    """Sees in which half of the image the bar is, along one axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([half.mean(dim=(1, 2, 3)) for half in images.split(14, self.axis)], dim=1)


@pytest.mark.parametrize(("column", "axis", "amount"), [(12, 3, {"shift": 6.0}), (4, 2, {"rotation": 90.0})])
def test_images_are_moved_in_both_directions(column: int, axis: int, amount: dict[str, Any]) -> None:
    images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    images[..., 4:24, column : column + 4] = 250
    # Moved one way, all images are in the first half: 3 of 4 right. Moved the other way: 1 of 4.
    split = Split(images, torch.tensor([0, 0, 0, 1]), ("first", "second"))
    assert evidence.moved_accuracy(Half(axis), split, 32, CPU, **amount) == 0.5
