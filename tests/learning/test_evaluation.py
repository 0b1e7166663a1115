import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn import decomposition, metrics  # type: ignore[import-untyped]  # ships no types
from torch import Tensor, nn

from digits.files import read_table
from digits.images.batches import to_float
from digits.images.splits import Split
from digits.learning import evaluation, networks
from digits.learning.evaluation import Predictions
from digits.learning.scores import Calibrated, Reviewed, wilson

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Logits that tell which image they belong to; counts the images that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.modes: set[bool] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        self.modes.add(self.training)
        means = images.mean(dim=(1, 2, 3))
        return torch.stack([means, -means], dim=1)


def answers(logits: Tensor, labels: Tensor) -> Predictions:
    """Return predictions for images that do not matter; the classes are named a, b, c …."""
    names = tuple("abcdefghijklmnop"[: logits.shape[1]])
    return Predictions(Split(torch.zeros(len(labels), 1, 28, 28, dtype=torch.uint8), labels, names), logits)


def random_answers(count: int, classes: int, seed: int, missing: int | None = None) -> Predictions:
    """Return predictions that are right more often than not, of images none of which is of the class `missing`."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=random)
    logits = torch.randn(count, classes, generator=random) * 2
    logits[torch.arange(count), labels] += 2
    if missing is not None:
        labels[labels == missing] = 0
    return answers(logits, labels)


@pytest.mark.parametrize(("size", "batches"), [(96, [96]), (40, [40, 40, 16]), (1000, [96])])
def test_predictions_are_in_order_and_include_the_last_partial_batch(
    split: Split, size: int, batches: list[int]
) -> None:
    network = Brightness()
    found = evaluation.predict(network, split, size, CPU)
    assert network.batches == batches
    assert found.logits.shape == (96, 2)
    assert torch.allclose(found.logits[:, 0], to_float(split.images).mean(dim=(1, 2, 3)))
    assert found.split is split


def test_prediction_is_in_evaluation_mode_and_leaves_the_mode_as_it_was(split: Split) -> None:
    network = nn.Sequential(Brightness(), nn.BatchNorm1d(2))
    network.train()
    evaluation.predict(network, split, 50, CPU)
    assert all(module.training for module in network.modules())
    network.eval()
    evaluation.predict(network, split, 50, CPU)
    assert not any(module.training for module in network.modules())
    assert network[0].modes == {False}


def test_predictions_are_the_likeliest_classes_with_their_probabilities(tmp_path: Path) -> None:
    shares = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])
    found = answers(shares.log(), torch.tensor([1, 2, 2]))
    assert found.predicted.tolist() == [1, 0, 2]
    assert found.confidence.tolist() == pytest.approx([0.7, 0.5, 0.6])
    assert found.confidence.dtype == torch.float64
    assert found.correct.tolist() == [True, False, True]
    found.write(tmp_path / "table.csv")
    rows = [("b", "b"), ("c", "a"), ("c", "c")]
    assert read_table(tmp_path / "table.csv") == [{"actual": old, "predicted": new} for old, new in rows]


@pytest.mark.parametrize(
    ("correct", "count"), [(9954, 10_000), (1, 2), (1, 10), (9, 10), (0, 10), (10, 10), (10_000, 10_000)]
)
def test_wilson_interval_is_that_of_scipy(correct: int, count: int) -> None:
    interval = binomtest(correct, count).proportion_ci(method="wilson")
    assert wilson(correct, count) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-12)


def test_wilson_interval_lies_between_0_and_1() -> None:
    intervals = [wilson(correct, count) for count in range(1, 200) for correct in (0, count)]
    assert all(0 <= low < high <= 1 for low, high in intervals)


def test_confusion_has_true_classes_in_rows_and_predicted_ones_in_columns() -> None:
    logits = torch.eye(4)[torch.tensor([0, 2, 2, 1, 0])]
    matrix = evaluation.confusion(answers(logits, torch.tensor([0, 0, 0, 1, 3])))
    assert matrix.tolist() == [[1, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert matrix.dtype == torch.int64


def test_score_is_mean_cross_entropy_and_share_of_hits() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [math.log(9), 0.0]])
    loss, accuracy = evaluation.score(logits, torch.tensor([1, 0, 1]))
    assert loss == pytest.approx(-(math.log(0.75) + math.log(0.5) + math.log(0.1)) / 3)
    assert accuracy == 2 / 3


@pytest.mark.parametrize(("count", "classes", "missing"), [(500, 10, None), (7, 3, None), (300, 5, 2)])
def test_scores_agree_with_scikit_learn(count: int, classes: int, missing: int | None) -> None:
    predictions = random_answers(count, classes, count, missing)
    present = [label for label in range(classes) if label != missing]
    known: dict[str, Any] = {"labels": present, "zero_division": 0}
    truth, guesses = predictions.split.labels.numpy(), predictions.logits.argmax(dim=1).numpy()
    shares = predictions.logits.double().softmax(dim=1).numpy()
    hits = int((truth == guesses).sum())
    low, high = wilson(hits, count)
    recall = metrics.recall_score(truth, guesses, average=None, **known)
    found = evaluation.scores(predictions, bins=15)
    assert asdict(found) == {
        "accuracy": metrics.accuracy_score(truth, guesses),
        "accuracy_low": low,
        "accuracy_high": high,
        "errors": count - hits,
        "count": count,
        "loss": pytest.approx(metrics.log_loss(truth, shares, labels=range(classes)), rel=1e-9),
        "calibration_error": evaluation.reliability(predictions, 15).error,
        "macro_f1": pytest.approx(metrics.f1_score(truth, guesses, average="macro", **known)),
        "calibrated": {
            "temperature": 1.0,
            "loss": found.loss,
            "calibration_error": found.calibration_error,
        },
        "recall": {str(label): pytest.approx(share) for label, share in zip(present, recall, strict=True)},
        "reviewed": None,
    }
    assert list(found.recall) == list(map(str, present))


def test_calibration_error_is_the_gap_of_each_bin_weighted_by_its_count() -> None:
    # Confidences 0.6, 0.6, 0.9, 0.9, of which the first and the last two are right, in 4 bins:
    # bin 2 (0.5 to 0.75): 2 images, 0.5 right, gap 0.1; bin 3: 2 images, 1.0 right, gap 0.1.
    shares = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    predictions = answers(shares.log(), torch.tensor([0, 1, 0, 1]))
    assert evaluation.scores(predictions, bins=4).calibration_error == pytest.approx(0.1)
    # In one bin: mean confidence and accuracy are both 0.75.
    assert evaluation.scores(predictions, bins=1).calibration_error == pytest.approx(0, abs=1e-12)


def test_calibration_error_agrees_with_a_loop_over_the_bins() -> None:
    predictions = random_answers(400, 10, seed=1)
    shares = predictions.logits.double().softmax(dim=1).numpy()
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == predictions.split.labels.numpy()
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert evaluation.scores(predictions, bins=15).calibration_error == pytest.approx(expected)


def test_bins_hold_count_mean_confidence_and_accuracy_and_full_confidence_is_in_the_last() -> None:
    confidence = torch.tensor([0.1, 0.3, 0.9, 1.0, 1.0], dtype=torch.float64)
    shares = ((1 - confidence) / 15).repeat(16, 1).T.contiguous()  # 16 classes, or none could be the likeliest with 0.1
    shares[:, 0] = confidence
    found = evaluation.reliability(answers(shares.log(), torch.tensor([1, 0, 0, 0, 1])), bins=4)
    assert found.counts.tolist() == [1, 1, 0, 3]
    assert found.confidence.tolist() == pytest.approx([0.1, 0.3, 0, 2.9 / 3])
    assert found.accuracy.tolist() == pytest.approx([0, 1, 0, 2 / 3])


def test_temperature_is_where_the_cross_entropy_is_lowest() -> None:
    found = random_answers(400, 4, 3)
    best = evaluation.temperature(found)

    def loss(temperature: float) -> float:
        scaled = evaluation.calibrated(found, temperature)
        return metrics.log_loss(scaled.split.labels, scaled.logits.double().softmax(dim=1))  # type: ignore[no-any-return]

    assert loss(best) < min(loss(0.98 * best), loss(1.02 * best))
    assert evaluation.temperature(evaluation.calibrated(found, best)) == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize(("right", "temperature"), [(True, 1 / 20), (False, 20.0)])
def test_temperature_has_bounds_where_no_or_every_prediction_is_wrong(right: bool, temperature: float) -> None:  # noqa: FBT001
    labels = torch.arange(6) % 2
    assert evaluation.temperature(answers(torch.eye(2)[labels if right else 1 - labels], labels)) == temperature


def test_scores_are_also_those_of_the_calibrated_model_and_without_rejected_labels() -> None:
    found = answers(torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 1, 0]))
    scores = evaluation.scores(found, 10, 0.5, [1])
    scaled = evaluation.scores(evaluation.calibrated(found, 0.5), 10)
    assert scores.calibrated == Calibrated(0.5, scaled.loss, scaled.calibration_error)
    assert scores.reviewed == Reviewed(1.0, 0, 3)
    assert (scores.accuracy, scores.errors) == (0.75, 1)
    assert scores.as_json()["reviewed"] == {"accuracy": 1.0, "errors": 0, "count": 3}
    assert "reviewed" not in scaled.as_json()


@pytest.mark.parametrize("shift", [0, 1])
def test_features_are_what_the_last_linear_layer_is_given(split: Split, shift: int) -> None:
    network = networks.build("mlp", 3, {"hidden": [8, 5], "dropout": 0.0, "tta_shift": shift}).eval()
    found = evaluation.features(network, split, 40, CPU)
    expected = to_float(split.images)
    layers = network.get_submodule("1.network" if shift else "1").children()
    for layer in [network.get_submodule("0"), *list(layers)[:-1]]:
        expected = layer(expected)
    assert torch.allclose(found, expected, atol=1e-5)


def test_features_of_a_network_without_a_linear_layer_are_its_logits(split: Split) -> None:
    assert evaluation.features(Brightness(), split, 40, CPU).shape == (96, 2)


def test_principal_components_are_those_of_scikit_learn() -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 7)
    expected = torch.from_numpy(decomposition.PCA(3).fit_transform(features.double().numpy()))
    found = evaluation.principal_components(features, 3)
    assert torch.allclose(found.abs(), expected.abs())


def test_class_without_images_is_left_out_of_recall_and_f1() -> None:
    split = Split(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 0, 2, 2]), ("a", "b", "c"))
    logits = torch.tensor([[2.0, 0, 0], [2, 0, 0], [0, 0, 2], [2, 0, 0]])
    found = evaluation.scores(evaluation.Predictions(split, logits), 10)
    assert found.recall == {"0": 1.0, "2": 0.5}
    assert found.macro_f1 == pytest.approx((2 * 2 / 5 + 2 * 1 / 3) / 2)
