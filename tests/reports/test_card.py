import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from digits.datasets import MNIST_SHAPE
from digits.images.severities import CORRUPTIONS
from digits.images.statistics import Count, Statistics
from digits.learning import exporting, networks
from digits.learning.curve import TrainMetrics
from digits.learning.description import Description
from digits.learning.exporting import Exported
from digits.learning.scores import ORIGINAL, Calibrated, Reviewed, Robustness, Scores
from digits.learning.training import Training
from digits.reports.card import model_card
from tests.conftest import CLASSES, Change, bars

from .test_advice import NOTHING

KNOBS: dict[str, Any] = {"crop": 0, "channels": [2, 3], "hidden": 5, "dropout": 0.5, "members": 1, "tta_shift": 0}
RUNTIME = {"threads": 2, "processes": 1, "precision": "bf16"}
TRAINING = {"seed": 3, "train": {"epochs": 2, "keep": "best"}, "runtime": RUNTIME}
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
    calibrated=Calibrated(temperature=0.5, loss=0.01234, calibration_error=0.0045),
    recall={"0": 0.999, "1": 0.9871, "2": 0.998},
    reviewed=Reviewed(0.9967, 31, 9861),
)
CONFIDENCE = {ORIGINAL: [0.9, 0.95, 0.99, 1.0, 1.0], "noise": [0.1, 0.2, 0.3, 0.4, 0.5]}
CORRUPTED = {kind: [0.99] * 5 for kind in CORRUPTIONS} | {"blur": [0.9, 0.8, 0.7, 0.6, 0.5]}
EVIDENCE = replace(NOTHING, robustness=Robustness(1234, 0.991, CORRUPTED, CONFIDENCE))
EXPORTED = {"onnx": Exported(628_669, 0.9954, 2.4e-06), "pt2": Exported(701_234, 0.9953, 0.0)}


def written(data_name: str = "mnist", test: Scores = TEST) -> str:
    return model_card(data_name, DESCRIPTION, DATASET, TRAIN, test, EXPORTED, EVIDENCE, 4567, "2.15.0")


def test_model_card_tells_the_figures_of_the_pipeline() -> None:
    card = written()
    for told in (
        "# Model card: cnn on mnist",
        "3 classes: left, middle, right. 123,456 trained parameters",
        "| accuracy | 99.54% (95 % interval 99.39% to 99.66%), 46 errors |",
        "| accuracy without the 15 images whose labels reviewers rejected | 99.67%, 31 errors |",
        "| cross-entropy | 0.0123 nats |",
        "| expected calibration error | 0.45% (before calibration 1.23%) |",
        "| macro F1 | 0.9953 |",
        "| middle | 98.71% |",
        "On 9,876 test images",
        "On 1,234 validation images, accuracy in % as they are (99.1)",
        "| blur | 90.0 | 80.0 | 70.0 | 60.0 | 50.0 | blurred with a sigma of 1.5 pixels |",
        "Median confidence on inputs that show no character: noise 30%.",
        "54,321 training and 4,321 validation images of mnist",
        "After 9 epochs, with the weights of epoch 7: validation accuracy 97.65%, training accuracy 98.76%",
        "divided by 0.5, which was fit on the validation split",
        "torch 2.15.0, products in bf16, 1 process of 2 threads. One image takes 4,567 multiply-accumulate",
        "three times as many for each of 488,889 images",
        "| `model.onnx` | 628,669 | 99.54% | 2.4e-06 |",
        "| `model.pt2` | 701,234 | 99.53% | 0.0e+00 |",
        "| `model.cnn.channels` | [2, 3] |",
        "| `model.members` | 1 |",
        "| `train.keep` | best |",
        "| `seed` | 3 |",
        "Model and code: MIT. Data: mnist, CC BY-SA 3.0.",
        "## What may improve it\n\n- sensitive",
    ):
        assert told in card, told


def test_model_card_begins_with_the_metadata_that_hugging_face_reads() -> None:
    _, block, _ = written().split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert (metadata["license"], metadata["library_name"]) == ("mit", "onnx")
    assert (metadata["pipeline_tag"], metadata["datasets"]) == ("image-classification", ["ylecun/mnist"])
    (entry,) = metadata["model-index"]
    (result,) = entry["results"]
    assert result["dataset"] == {"name": "mnist", "type": "ylecun/mnist", "split": "test"}
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {"accuracy": 0.9954, "f1": 0.9953, "expected_calibration_error": 0.0045}
    own = yaml.safe_load(written("folder").split("---\n", 2)[1])
    assert "datasets" not in own
    assert own["model-index"][0]["results"][0]["dataset"]["type"] == "folder"
    assert "Data: your own." in written("folder")
    assert "reviewers" not in written("folder", replace(TEST, reviewed=None))


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_knobs_in_the_model_card_are_those_of_params_yaml(change: Change, name: str) -> None:
    p = change({"model.name": name})
    learned = bars(9)
    network = networks.build(name, 3, p.model.knobs())
    training = Training(network, learned, learned, p, torch.device("cpu"), torch.bfloat16)
    description = training.description({}, {})
    card = model_card("mnist", description, DATASET, TRAIN, TEST, EXPORTED, EVIDENCE, 1, "2.15.0")
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+) \|$", card.split("| knob of params.yaml")[1], re.MULTILINE))
    assert {"model.name", "model.members", "train.epochs", "runtime.precision", "seed"} <= set(rows)
    assert change({key: yaml.safe_load(value) for key, value in rows.items()}).flat() | {"runtime.precision": ""} == (
        p.flat() | {"runtime.precision": ""}
    )


def test_code_in_the_model_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = written().split("```python\n")[1].split("```")[0]
    program = exporting.capture(networks.build("cnn", 3, KNOBS).eval(), MNIST_SHAPE)
    exporting.write_onnx(program, tmp_path / "model.onnx", 18, DESCRIPTION)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 3)


def test_what_hands_it_has_not_seen_is_said_of_mnist_alone() -> None:
    assert "crossed 7s" in written("mnist")
    assert "crossed 7s" not in written("emnist_digits")
    assert "test set's.\n\n## License" in written("fashion_mnist")
