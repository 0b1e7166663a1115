from typing import Any

import pytest
import torch
from torch import Tensor, nn

from digits import advice

from .conftest import bars

CONTENT: dict[str, Any] = {  # nothing to say
    "classes": 10,
    "count": 5000,
    "errors": 30,
    "accuracy": 0.994,
    "train_accuracy": 0.996,
    "epochs": 5,
    "best_epoch": 5,
    "last_gain": 0.0,
    "lowest_loss": 0.1,
    "last_loss": 0.1,
    "calibration_error": 0.01,
    "confidence": 0.99,
    "pair": ["4", "9"],
    "pair_errors": 2,
    "weakest": "9",
    "weakest_count": 500,
    "weakest_recall": 0.99,
    "shifted_accuracy": 0.993,
    "rotated_accuracy": 0.993,
    "suspects": [],
}


def test_nothing_is_said_where_nothing_stands_out() -> None:
    assert advice.suggest(CONTENT) == []
    assert advice.listed(CONTENT) == "- nothing that the figures point to"
    assert advice.listed(CONTENT | {"suspects": [7], "last_gain": 0.1}).count("\n- ") == 1


@pytest.mark.parametrize(
    ("inside", "outside", "said"),
    [
        ({"train_accuracy": 0.994 + 0.0025}, {"train_accuracy": 0.999}, "overfitting: 99.90% of training images,"),
        ({"train_accuracy": 0.995}, {"train_accuracy": 0.9949}, "underfitting: 99.49% of the images it learned from"),
        ({"last_gain": 0.001}, {"last_gain": 0.0011}, "the validation loss still falls at the end, by 0.0011"),
        ({"lowest_loss": 0.096}, {"lowest_loss": 0.094, "best_epoch": 4}, "the validation loss was 0.0940 after"),
        ({"pair_errors": 2, "errors": 5}, {"pair_errors": 3, "errors": 5}, "4 and 9 are taken for each other in 3"),
        ({"pair_errors": 3, "errors": 31}, {"pair_errors": 3, "errors": 30}, "4 and 9 are taken for each other in 3"),
        ({"weakest_recall": 0.986}, {"weakest_recall": 0.978}, "class 9 is the weakest by more than chance: 97.80%"),
        ({"shifted_accuracy": 0.991}, {"shifted_accuracy": 0.990}, "99.00% of images shifted by 2 pixels both ways"),
        ({"rotated_accuracy": 0.991}, {"rotated_accuracy": 0.990}, "99.00% of images rotated by 15 degrees"),
        ({"calibration_error": 0.0199}, {"calibration_error": 0.02}, "too little confidence: 99.00% on"),
        ({}, {"calibration_error": 0.02, "confidence": 0.999}, "too much confidence: 99.90% on average"),
        ({"suspects": []}, {"suspects": [7, 3]}, "labels that may be wrong: 2 in the test split (places 7, 3)"),
    ],
)  # fmt: skip
def test_rule_speaks_on_one_side_of_its_edge_and_not_on_the_other(
    inside: dict[str, Any], outside: dict[str, Any], said: str
) -> None:
    assert advice.suggest(CONTENT | inside) == []
    (line,) = advice.suggest(CONTENT | outside)
    assert line.startswith(said)


def test_shifts_and_rotations_are_each_told() -> None:
    lines = advice.suggest(CONTENT | {"shifted_accuracy": 0.98, "rotated_accuracy": 0.98})
    assert [line.split(": ")[1] for line in lines] == ["more augmentation.shift", "more augmentation.rotation"]


def test_labels_are_not_suspected_by_a_network_that_is_often_wrong() -> None:
    good, poor = ({"suspects": [7], "accuracy": share, "train_accuracy": 0.995} for share in (0.99, 0.9899))
    still = {"shifted_accuracy": 0.99, "rotated_accuracy": 0.99, "weakest_recall": 0.985, "train_accuracy": 0.99}
    assert any(line.startswith("labels that may be wrong") for line in advice.suggest(CONTENT | still | good))
    assert not any(line.startswith("labels that may be wrong") for line in advice.suggest(CONTENT | still | poor))


def test_long_list_of_suspects_is_cut() -> None:
    (line,) = advice.suggest(CONTENT | {"suspects": list(range(100, 130))})
    assert "30 in the test split" in line
    assert line.count(",") == 11


class Columns(nn.Module):
    """Sees in which third of the image the bar is."""

    def forward(self, images: Tensor) -> Tensor:
        columns = images.mean(dim=(1, 2))
        return 50 * torch.stack([columns[:, place : place + 4].mean(dim=1) for place in (4, 12, 20)], dim=1)


def test_evidence_is_what_can_be_counted_by_hand() -> None:
    validation = bars(90)
    logits = Columns()(validation.images.float() / 255)
    logits[:4] = torch.tensor([0.0, 9.0, 0.0])  # 0, 1, 2, 0: two of class 0 and one of class 2 are wrong
    test_logits = torch.eye(3)[torch.tensor([0, 1, 2, 2])] * 100
    curve = [{"validation_loss": value} for value in (0.5, 0.2, 0.3)]
    found = advice.collect(
        Columns(), validation, logits, test_logits, torch.tensor([0, 1, 2, 1]), curve, {"train_accuracy": 0.75}, 10, 32,
        torch.device("cpu"),
    )  # fmt: skip
    assert (found["count"], found["errors"], found["accuracy"]) == (90, 3, pytest.approx(87 / 90))
    assert (found["pair"], found["pair_errors"]) == (["left", "middle"], 2)
    assert (found["weakest"], found["weakest_count"]) == ("left", 30)
    assert found["weakest_recall"] == pytest.approx(28 / 30)
    assert (found["best_epoch"], found["epochs"], found["lowest_loss"], found["last_loss"]) == (2, 3, 0.2, 0.3)
    assert found["last_gain"] == pytest.approx(-0.1)
    assert found["suspects"] == [3]
    unsure = advice.collect(
        Columns(), validation, logits, test_logits / 100, torch.tensor([0, 1, 2, 1]), curve, {"train_accuracy": 0.75},
        10, 32, torch.device("cpu"),
    )  # fmt: skip
    assert unsure["suspects"] == []
    assert found["train_accuracy"] == 0.75


def test_moving_the_images_costs_accuracy_where_the_network_looks_at_places() -> None:
    cpu, split = torch.device("cpu"), bars(90)
    assert advice._moved(Columns(), split, 32, cpu) == 1
    assert advice._moved(Columns(), split, 32, cpu, shift=1.0) == 1
    assert advice._moved(Columns(), split, 32, cpu, shift=8.0) < 0.5
    assert advice._moved(Columns(), split, 32, cpu, rotation=90.0) < 0.8
