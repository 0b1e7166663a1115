from pathlib import Path
from typing import Any

import pytest

from digits.images.splits import Count, Statistics
from digits.learning import exporting, networks
from digits.learning.curve import TrainMetrics
from digits.learning.evaluation import Scores
from digits.learning.exporting import Exported
from digits.learning.models import Description
from digits.reports.card import model_card
from tests.conftest import CLASSES

KNOBS: dict[str, Any] = {"crop": 0, "channels": [2, 3], "hidden": 5, "dropout": 0.5}
TRAINING = {"seed": 3, "train": {"epochs": 2, "keep": "best"}}
DESCRIPTION = Description("cnn", list(CLASSES), KNOBS, TRAINING, {"data/train": "1a2b"}, "3c4d")
DATASET = Statistics(Count(54_321), Count(4321), Count(9876), pixel_mean=0.13, pixel_std=0.31)
TRAIN = TrainMetrics(
    train_loss=0.11,
    validation_loss=0.12,
    train_accuracy=0.9876,
    validation_accuracy=0.9765,
    epochs=9,
    kept_epoch=7,
    parameters=123_456,
)
TEST = Scores(
    accuracy=0.9954,
    accuracy_low=0.9939,
    accuracy_high=0.9966,
    errors=46,
    count=9876,
    loss=0.01536,
    calibration_error=0.0123,
    macro_f1=0.9953,
    recall={"0": 0.999, "1": 0.9871, "2": 0.998},
)
EXPORTED = {"onnx": Exported(628_669, 0.9954, 2.4e-06), "pt2": Exported(701_234, 0.9953, 0.0)}


def test_model_card_tells_the_figures_of_the_pipeline() -> None:
    card = model_card("mnist", DESCRIPTION, DATASET, TRAIN, TEST, EXPORTED, "- try this\n- and that")
    for told in (
        "# Model card: cnn on mnist",
        "3 classes: left, middle, right. 123,456 trained parameters",
        "| accuracy | 99.54% (95 % interval 99.39% to 99.66%), 46 errors |",
        "| cross-entropy | 0.0154 nats |",
        "| expected calibration error | 1.23% |",
        "| macro F1 | 0.9953 |",
        "| weakest class | middle: recall 98.71% |",
        "On 9,876 test images",
        "54,321 training and 4,321 validation images of mnist",
        "After 9 epochs, with the weights of epoch 7: validation accuracy 97.65%, training accuracy 98.76%",
        "| `model.onnx` | 628,669 | 99.54% | 2.4e-06 |",
        "| `model.pt2` | 701,234 | 99.53% | 0.0e+00 |",
        "| `model.channels` | [2, 3] |",
        "| `train.keep` | best |",
        "| `seed` | 3 |",
        "## What may improve it\n\n- try this\n- and that\n",
    ):
        assert told in card, told


def test_code_in_the_model_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = model_card("mnist", DESCRIPTION, DATASET, TRAIN, TEST, EXPORTED, "- nothing")
    code = card.split("```python\n")[1].split("```")[0]
    exporting.write_onnx(networks.build("cnn", 3, KNOBS).eval(), tmp_path / "model.onnx", 18, DESCRIPTION)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 3)
