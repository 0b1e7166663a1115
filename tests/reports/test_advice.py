from dataclasses import replace
from typing import Any

import pytest

from digits.learning.evidence import Evidence
from digits.reports import advice

NOTHING = Evidence(  # stands out
    classes=10,
    count=5000,
    errors=30,
    accuracy=0.994,
    train_accuracy=0.996,
    epochs=5,
    best_epoch=5,
    last_gain=0.0,
    lowest_loss=0.1,
    last_loss=0.1,
    calibration_error=0.01,
    confidence=0.99,
    pair=["4", "9"],
    pair_errors=2,
    weakest="9",
    weakest_count=500,
    weakest_recall=0.99,
    shifted_accuracy=0.993,
    rotated_accuracy=0.993,
    suspects=[],
)


def test_no_advice_is_given_where_nothing_stands_out() -> None:
    assert advice.suggest(NOTHING) == []
    assert advice.listed(NOTHING) == "- nothing stands out"
    assert advice.listed(replace(NOTHING, suspects=[7], last_gain=0.1)).count("\n- ") == 1


@pytest.mark.parametrize(
    ("inside", "outside", "said"),
    [
        ({"train_accuracy": 0.994 + 0.0025}, {"train_accuracy": 0.999}, "overfitting: accuracy 99.90% on training"),
        ({"train_accuracy": 0.995}, {"train_accuracy": 0.9949}, "underfitting: accuracy 99.49% on training"),
        ({"last_gain": 0.001}, {"last_gain": 0.0011}, "validation loss still falling, by 0.0011"),
        ({"lowest_loss": 0.096}, {"lowest_loss": 0.094, "best_epoch": 4}, "validation loss 0.1000, but 0.0940 after"),
        ({"pair_errors": 2, "errors": 5}, {"pair_errors": 3, "errors": 5}, "4 and 9 confused in 3 of"),
        ({"pair_errors": 3, "errors": 31}, {"pair_errors": 3, "errors": 30}, "4 and 9 confused in 3 of"),
        ({"weakest_recall": 0.986}, {"weakest_recall": 0.978}, "class 9 weaker than chance allows: recall 97.80% of"),
        ({"shifted_accuracy": 0.991}, {"shifted_accuracy": 0.990}, "accuracy 99.00% on images shifted by 2 pixels in"),
        ({"rotated_accuracy": 0.991}, {"rotated_accuracy": 0.990}, "accuracy 99.00% on images rotated by 15 degrees"),
        ({"calibration_error": 0.0199}, {"calibration_error": 0.02}, "too little confidence: 99.00% on"),
        ({}, {"calibration_error": 0.02, "confidence": 0.999}, "too much confidence: 99.90% on average"),
        ({"suspects": []}, {"suspects": [7, 3]}, "labels that may be wrong: 2 test images (numbers 7, 3)"),
    ],
)  # fmt: skip
def test_rule_speaks_on_one_side_of_its_edge_and_not_on_the_other(
    inside: dict[str, Any], outside: dict[str, Any], said: str
) -> None:
    assert advice.suggest(replace(NOTHING, **inside)) == []
    (line,) = advice.suggest(replace(NOTHING, **outside))
    assert line.startswith(said)


def test_shifts_and_rotations_are_each_told() -> None:
    lines = advice.suggest(replace(NOTHING, shifted_accuracy=0.98, rotated_accuracy=0.98))
    assert [line.split(": ")[1] for line in lines] == ["more augmentation.shift", "more augmentation.rotation"]


def test_labels_are_not_suspected_by_a_network_that_is_often_wrong() -> None:
    still = replace(
        NOTHING, suspects=[7], shifted_accuracy=0.99, rotated_accuracy=0.99, weakest_recall=0.985, train_accuracy=0.99
    )
    for accuracy, is_suspected in ((0.99, True), (0.9899, False)):
        lines = advice.suggest(replace(still, accuracy=accuracy))
        assert any(line.startswith("labels that may be wrong") for line in lines) == is_suspected


def test_long_list_of_suspects_is_cut() -> None:
    (line,) = advice.suggest(replace(NOTHING, suspects=list(range(100, 130))))
    assert "30 test images" in line
    assert line.count(",") == 11
