import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from digits import evaluation, models, training
from digits.checkpoints import Checkpoint, folder
from digits.command import UserError
from digits.data import to_float
from digits.training import Epoch

from .conftest import CLASSES, Change, bars

CPU = torch.device("cpu")
KNOBS: dict[str, Any] = {"crop": 0, "channels": [4, 4], "hidden": 8, "dropout": 0.2}
RECIPE = {
    "train.epochs": 3,
    "train.batch_size": 16,
    "train.optimizer": "sgd",
    "train.learning_rate": 0.05,
    "train.schedule": "linear",
    "train.warmup": 0.3,
    "train.momentum": 0.9,
    "train.weight_decay": 0.0005,
    "train.label_smoothing": 0.1,
    "train.ema": 0.0,
    "train.keep": "last",
    "augmentation.rotation": 5.0,
    "augmentation.scale": 0.1,
    "augmentation.shift": 1.0,
    "augmentation.shear": 0.1,
}
State = dict[str, Tensor]


def small() -> nn.Module:
    torch.manual_seed(0)
    return models.build("cnn", len(CLASSES), KNOBS, mean=0.2, std=0.3)


def fit(change: Change, seed: int = 0, network: nn.Module | None = None, **train: Any) -> tuple[list[Epoch], State]:
    """Train on bars with RECIPE, `train` changed; give the epochs and the final weights."""
    p = change(RECIPE | {f"train.{key}": value for key, value in train.items()})
    network = network or small()
    epochs = list(training.fit(network, bars(96), bars(48, seed=1), seed, p.train, p.augmentation, 50, CPU))
    return epochs, dict(network.state_dict())


def equal(first: State, second: State) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adamw", 0.01)])
def test_network_learns_classes_that_are_easy_to_tell_apart(change: Change, optimizer: str, rate: float) -> None:
    epochs, weights = fit(change, epochs=5, optimizer=optimizer, learning_rate=rate)
    assert epochs[-1].validation_accuracy > 0.9
    assert epochs[-1].train_accuracy > 0.9
    assert epochs[-1].validation_loss < epochs[0].validation_loss
    assert all(value.any() for key, value in weights.items() if "running_mean" in key)


def test_steps_are_those_of_gradient_descent_by_hand(change: Change) -> None:
    changes = {"epochs": 2, "batch_size": 96, "momentum": 0.0, "weight_decay": 0.0, "warmup": 0.0}
    still = {key: 0.0 for key in RECIPE if key.startswith("augmentation.")}
    p = change(RECIPE | {f"train.{key}": value for key, value in changes.items()} | still)
    trained, expected = (models.build("mlp", 3, {"hidden": [], "dropout": 0.0}) for _ in range(2))
    expected.load_state_dict(trained.state_dict())
    for _ in training.fit(trained, bars(96), bars(48), 0, p.train, p.augmentation, 50, CPU):
        pass
    weights = list(expected.parameters())
    for share in (0.75, 0.25):  # of the learning rate, falling linearly: the middles of two steps
        logits = expected(to_float(bars(96).images))
        loss = functional.cross_entropy(logits, bars(96).labels, label_smoothing=p.train.label_smoothing)
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data -= p.train.learning_rate * share * slope
    for weight, value in zip(weights, trained.parameters(), strict=True):
        assert torch.allclose(weight, value, atol=1e-6)


def test_each_member_of_an_ensemble_learns_as_if_it_were_alone(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOBS, "dropout", 0.0)
    together = models.build("cnn", len(CLASSES), KNOBS | {"members": 2}, mean=0.2, std=0.3)
    alone = [small() for _ in range(2)]
    members = list(list(together.children())[1].children())
    for network, member in zip(alone, members, strict=True):
        list(network.children())[1].load_state_dict(member.state_dict())
    fit(change, network=together)
    for network, member in zip(alone, members, strict=True):
        _, weights = fit(change, network=network)
        for key, value in member.state_dict().items():
            assert torch.allclose(value, weights[f"1.{key}"], atol=1e-5), key


@pytest.mark.parametrize("keep", ["last", "best"])
def test_bf16_learns_as_well_and_leaves_float32_weights(change: Change, keep: str) -> None:
    p = change(RECIPE | {"train.epochs": 5, "train.keep": keep})
    data = bars(96), bars(48, seed=1)
    found = []
    for _ in range(2):
        network = small()
        run = training.fit(network, *data, 0, p.train, p.augmentation, 50, CPU, precision=torch.bfloat16)
        accuracy = list(run)[-1].validation_accuracy
        found.append(dict(network.state_dict()))
    assert accuracy > 0.9
    assert equal(*found)
    assert all(value.dtype == torch.float32 for value in found[0].values() if value.is_floating_point())
    exact = small()
    list(training.fit(exact, *data, 0, p.train, p.augmentation, 50, CPU))
    assert not equal(found[0], dict(exact.state_dict()))


def test_same_seed_gives_the_same_weights_to_the_last_bit_and_another_seed_others(change: Change) -> None:
    first_epochs, first = fit(change)
    network = small()
    torch.manual_seed(12345)  # what was drawn before must not matter
    again_epochs, again = fit(change, network=network)
    _, other = fit(change, seed=1)
    assert equal(first, again)
    assert first_epochs == again_epochs
    assert not equal(first, other)


def test_compiled_network_learns_the_same_to_rounding_and_the_same_bits_again(
    change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOBS, "dropout", 0.0)  # compiled, it draws other numbers
    found = []
    for compiled in (False, True, True):
        network = small()
        if compiled:
            network.compile()
        _, weights = fit(change, epochs=1, network=network)
        found.append(weights)
    assert equal(found[1], found[2])
    assert all(torch.allclose(value, found[1][key], atol=1e-4) for key, value in found[0].items())


class Killed(BaseException):
    pass


class Interrupting(Checkpoint):
    """Saves after every step, and dies right after the step `last`."""

    def __init__(self, last: int) -> None:
        super().__init__("training", interval=1e-9)
        self._left = last

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        self._left -= 1
        if not self._left:
            raise Killed


@pytest.mark.parametrize(("keep", "ema"), [("last", 0.0), ("best", 0.0), ("last", 0.9), ("best", 0.9)])
@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adamw", 0.01)])
def test_resume_after_a_break_gives_the_same_weights_and_epochs(
    change: Change, optimizer: str, rate: float, keep: str, ema: float
) -> None:
    recipe: dict[str, Any] = {"optimizer": optimizer, "learning_rate": rate, "keep": keep, "ema": ema}
    expected_epochs, expected = fit(change, **recipe)
    p = change(RECIPE | {f"train.{key}": value for key, value in recipe.items()})
    for breaks in ([1], [5], [6], [7, 6], [3, 3, 3, 3, 3, 3], [18]):  # 6 steps an epoch, 3 epochs
        for last in [*breaks, 1000]:
            network = small()
            torch.manual_seed(last)  # what was drawn before must not matter
            try:
                with Interrupting(last) as checkpoint:
                    data = bars(96), bars(48, seed=1)
                    epochs = list(training.fit(network, *data, 0, p.train, p.augmentation, 50, CPU, checkpoint))
            except Killed:
                continue
        assert epochs == expected_epochs
        assert equal(dict(network.state_dict()), expected)
        assert not list(folder().iterdir())


def test_resume_does_not_train_again_what_was_saved(change: Change, capsys: pytest.CaptureFixture[str]) -> None:
    p = change(RECIPE)
    with pytest.raises(Killed), Interrupting(10) as checkpoint:
        list(training.fit(small(), bars(96), bars(48), 0, p.train, p.augmentation, 50, CPU, checkpoint))
    checkpoint = Interrupting(1000)
    with checkpoint:
        list(training.fit(small(), bars(96), bars(48), 0, p.train, p.augmentation, 50, CPU, checkpoint))
        saves = 1000 - checkpoint._left
    assert saves == 8
    assert "going on after step 10 of 18" in capsys.readouterr().out


def test_order_of_batches_follows_the_seed(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOBS, "dropout", 0.0)
    for key in ("rotation", "scale", "shift", "shear"):
        monkeypatch.setitem(RECIPE, f"augmentation.{key}", 0.0)
    (_, first), (_, again), (_, other) = (fit(change, seed, epochs=1) for seed in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize(("keep", "kept"), [("last", 3), ("best", 1)])
def test_kept_weights_are_those_of_the_epoch_asked_for(
    change: Change, monkeypatch: pytest.MonkeyPatch, keep: str, kept: int
) -> None:
    accuracies = iter([0.5, 0.9, 0.9, 0.7])  # of two equally good epochs, the first is the best
    measured = evaluation.score

    def score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
        loss, accuracy = measured(logits, labels)
        is_validation = torch.equal(labels, validation.labels)
        return loss, next(accuracies) if is_validation else accuracy

    monkeypatch.setattr(evaluation, "score", score)
    p = change(RECIPE | {"train.epochs": 4, "train.keep": keep})
    network, validation = small(), bars(48, seed=1)
    run = training.fit(network, bars(96), validation, 0, p.train, p.augmentation, 50, CPU)
    states = [{key: value.clone() for key, value in network.state_dict().items()} for _ in run]
    assert equal(dict(network.state_dict()), states[kept])
    assert not equal(states[1], states[2])


def test_epochs_are_numbered_from_1_and_measure_the_network_as_it_then_is(change: Change) -> None:
    p = change(RECIPE)
    network, validation, epochs = small(), bars(48, seed=1), []
    for epoch in training.fit(network, bars(96), validation, 0, p.train, p.augmentation, 50, CPU):
        epochs.append(epoch.epoch)
        loss, accuracy = evaluation.score(evaluation.predict(network, validation, 50, CPU), validation.labels)
        assert (epoch.validation_loss, epoch.validation_accuracy) == (loss, accuracy)
    assert epochs == [1, 2, 3]


def test_train_figures_come_from_as_many_training_images_as_there_are_for_validation(
    change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    predict = evaluation.predict

    def spy(network: nn.Module, split: Any, *others: Any) -> Tensor:
        seen.append(split.images)
        return predict(network, split, *others)

    monkeypatch.setattr(evaluation, "predict", spy)
    fit(change, epochs=2)
    train = {image.numpy().tobytes() for image in bars(96).images}
    assert [len(images) for images in seen] == [48] * 4
    assert torch.equal(seen[0], seen[2])
    assert {image.numpy().tobytes() for image in seen[0]} < train
    assert torch.equal(seen[1], bars(48, seed=1).images)


@pytest.mark.parametrize(("warmup", "top"), [(0.0, 0), (0.3, 3), (0.5, 5), (1.0, 9)])
def test_learning_rate_rises_to_its_peak_and_falls_and_is_never_0(change: Change, warmup: float, top: int) -> None:
    epochs, _ = fit(change, epochs=10, batch_size=96, warmup=warmup, learning_rate=0.01)  # one step an epoch
    rates = [epoch.learning_rate for epoch in epochs]
    peak = max(range(10), key=rates.__getitem__)
    assert abs(peak - top) <= 1
    assert 0.8 * 0.01 < rates[peak] <= 0.01
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert all(rate > 0 for rate in rates)
    slopes = {round(after - before, 12) for before, after in itertools.pairwise(rates[:top])}
    assert len(slopes) <= 1  # linear
    assert warmup == 1 or rates[-1] < 0.2 * 0.01


@pytest.mark.parametrize(("schedule", "share"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_schedule_says_how_the_learning_rate_falls(change: Change, schedule: str, share: float) -> None:
    epochs, _ = fit(change, epochs=9, batch_size=96, warmup=0.0, learning_rate=0.01, schedule=schedule)
    rates = [epoch.learning_rate / 0.01 for epoch in epochs]
    assert rates[4] == pytest.approx(share)  # half way
    expected = {"linear": 0.5 / 9, "cosine": (1 - math.cos(math.pi * 0.5 / 9)) / 2, "constant": 1.0}
    assert rates[-1] == pytest.approx(expected[schedule])


def test_moving_average_of_the_weights_is_what_is_measured_and_kept(change: Change) -> None:
    recipe: dict[str, Any] = {"epochs": 2, "batch_size": 96, "weight_decay": 0.0}  # one step an epoch
    start = {key: value.clone() for key, value in small().state_dict().items()}
    (_, plain), (_, averaged) = (fit(change, **recipe, ema=ema) for ema in (0.0, 0.5))
    key = next(key for key, value in start.items() if value.ndim == 4)
    moved = [float((weights[key] - start[key]).norm()) for weights in (averaged, plain)]
    assert 0 < moved[0] < moved[1]
    epochs, weights = fit(change, ema=0.9)
    measured = training._measure(_loaded(weights), bars(48, seed=1), 50, CPU, torch.float32)
    assert measured == pytest.approx((epochs[-1].validation_loss, epochs[-1].validation_accuracy), abs=1e-6)


def _loaded(weights: State) -> nn.Module:
    network = small()
    network.load_state_dict(weights)
    return network


def test_training_that_diverges_is_ended_with_the_knob_to_turn(change: Change) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: train\.learning_rate: .* diverged in epoch 1 .* less than 1e"):
        fit(change, learning_rate=1e30)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_shrinks_matrices_and_leaves_vectors_free(change: Change, optimizer: str) -> None:
    p = change(RECIPE | {"train.weight_decay": 0.5, "train.optimizer": optimizer})
    network = small()
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    stepping = training._optimizer(network, p.train)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)  # nothing but decay moves a weight
    stepping.step()
    for key, value in network.named_parameters():
        if value.ndim == 1:
            assert torch.equal(value, before[key])
        else:
            assert value.norm() < before[key].norm()


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"label_smoothing": 0.0}, {}),
        ({"momentum": 0.0}, {}),
        ({"weight_decay": 0.1}, {}),
        ({"batch_size": 32}, {}),
        ({"schedule": "cosine"}, {}),
        ({"ema": 0.5}, {}),
        ({}, {"augmentation.shift": 0.0}),
        ({}, {"augmentation.rotation": 0.0}),
    ],
)
def test_every_knob_of_the_recipe_changes_the_weights(
    change: Change, changes: dict[str, Any], other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = fit(change, epochs=1)
    for key, value in other.items():
        monkeypatch.setitem(RECIPE, key, value)
    _, after = fit(change, epochs=1, **changes)
    assert not equal(before, after)
