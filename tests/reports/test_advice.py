from dataclasses import replace
from typing import Any

import pytest

from digits.images.severities import CORRUPTIONS
from digits.learning.scores import Evidence, Robustness
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
    pair=["4", "9"],
    pair_errors=2,
    weakest="9",
    weakest_count=500,
    weakest_recall=0.99,
    suspects=[],
    robustness=Robustness(1000, 0.994, {kind: [0.99] * 5 for kind in CORRUPTIONS}, {}),
)


def sensitive(**accuracies: float) -> dict[str, Any]:
    """Return evidence whose accuracy at the third severity of some corruptions is this."""
    found = {kind: [0.99, 0.99, accuracy, 0.1, 0.1] for kind, accuracy in accuracies.items()}
    return {"robustness": replace(NOTHING.robustness, corrupted=NOTHING.robustness.corrupted | found)}


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
        (sensitive(shift=0.986), sensitive(shift=0.98), "sensitive to shift: accuracy 98.00% on 1,000"),
        (sensitive(rotation=0.986), sensitive(rotation=0.98), "sensitive to rotation: accuracy 98.00% on 1,000"),
        (sensitive(scale=0.986), sensitive(scale=0.98), "sensitive to scale: accuracy 98.00% on 1,000"),
        (sensitive(blur=0.986), sensitive(blur=0.98, noise=0.97), "sensitive to noise: accuracy 97.00% on 1,000"),
        ({"suspects": []}, {"suspects": [7, 3]}, "labels that may be wrong: 2 test images (numbers 7, 3)"),
    ],
)  # fmt: skip
def test_rule_speaks_on_one_side_of_its_edge_and_not_on_the_other(
    inside: dict[str, Any], outside: dict[str, Any], said: str
) -> None:
    assert advice.suggest(replace(NOTHING, **inside)) == []
    (line,) = advice.suggest(replace(NOTHING, **outside))
    assert line.startswith(said)


def test_remedy_is_the_knob_that_covers_the_corruption() -> None:
    lines = advice.suggest(replace(NOTHING, **sensitive(shift=0.9, rotation=0.9, scale=0.9)))
    assert "on 1,000 images shifted by 3 pixels along both axes, 99.40% as they are" in lines[0]
    knobs = ["more augmentation.shift", "more augmentation.rotation", "more augmentation.scale"]
    assert [line.split(": ")[2] for line in lines] == knobs


def test_labels_are_not_suspected_by_a_network_that_is_often_wrong() -> None:
    still = replace(NOTHING, suspects=[7], weakest_recall=0.985, train_accuracy=0.99)
    for accuracy, is_suspected in ((0.99, True), (0.9899, False)):
        lines = advice.suggest(replace(still, accuracy=accuracy))
        assert any(line.startswith("labels that may be wrong") for line in lines) == is_suspected


def test_long_list_of_suspects_is_cut() -> None:
    (line,) = advice.suggest(replace(NOTHING, suspects=list(range(100, 130))))
    assert "30 test images" in line
    assert line.count(",") == 11
