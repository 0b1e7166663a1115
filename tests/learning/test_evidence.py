import pytest
import torch
from torch import Tensor

from digits.images.splits import Split
from digits.learning import evidence
from digits.learning.curve import Epoch, TrainMetrics
from digits.learning.evaluation import Predictions
from digits.learning.scores import Evidence, Robustness
from tests.conftest import CLASSES, bars

ROBUST = Robustness(90, 0.9, {}, {})


def collect(logits: Tensor, test: Predictions, losses: list[float]) -> Evidence:
    curve = [Epoch(place + 1, 0.1, loss, 0.9, 0.9, 0.01) for place, loss in enumerate(losses)]
    train = TrainMetrics(0.1, losses[-1], 0.75, 0.9, len(losses), len(losses), 3)
    return evidence.collect(Predictions(bars(90), logits), test, curve, train, ROBUST)


def test_evidence_is_what_can_be_counted_by_hand() -> None:
    logits = 9 * torch.eye(3)[bars(90).labels]
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
    assert found.robustness == ROBUST
    assert found.suspects == [3]
    unsure = Predictions(test.split, test.logits / 100)
    assert collect(logits, unsure, [0.5]).suspects == []
    assert collect(logits, unsure, [0.5]).last_gain == 0.0
