import itertools
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from digits import paths
from digits.errors import UserError
from digits.files import digest, flatten, write_json
from digits.images import splits
from digits.images.batches import to_float
from digits.learning import evaluation, networks, streams, training
from digits.learning.checkpoints import Checkpoint, folder
from digits.learning.curve import Epoch, TrainMetrics
from digits.learning.evaluation import Predictions
from digits.learning.training import Training
from digits.params import Params
from tests.conftest import CLASSES, Change, bars

CPU = torch.device("cpu")
KNOBS: dict[str, Any] = {"crop": 0, "channels": [4, 4], "hidden": 8, "dropout": 0.2}
PARAMETERS = 5 * 5 * 4 + 3 * 3 * 4 * 4 + 5 * 5 * 4 * 8 + 2 * (4 + 4 + 8) + 9 * 3
RECIPE: dict[str, Any] = {
    "train.epochs": 3,
    "train.batch_size": 16,
    "train.optimizer": "sgd",
    "train.learning_rate": 0.05,
    "train.schedule": "linear",
    "train.warmup": 0.3,
    "train.momentum": 0.9,
    "train.weight_decay": 0.0005,
    "train.label_smoothing": 0.1,
    "train.hard_examples": 0.0,
    "train.ema": 0.0,
    "train.keep": "last",
    "augmentation.rotation": 5.0,
    "augmentation.scale": 0.1,
    "augmentation.shift": 1.0,
    "augmentation.shear": 0.1,
    "runtime.batch_size": 50,
}
STILL = {key: 0.0 for key in RECIPE if key.startswith("augmentation.")}
LEARNED, HELD_OUT = bars(96), bars(48, seed=1)
State = dict[str, Tensor]


def small(dropout: float = 0.2, members: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return networks.build("cnn", len(CLASSES), KNOBS | {"dropout": dropout, "members": members}, mean=0.2, std=0.3)


def training_of(p: Params, network: nn.Module | None = None, precision: torch.dtype = torch.float32) -> Training:
    return Training(network or small(), LEARNED, HELD_OUT, p, CPU, precision)


def fit(
    change: Change, network: nn.Module | None = None, changes: dict[str, Any] | None = None, **train: Any
) -> tuple[list[Epoch], State]:
    """Train on bars with RECIPE, `changes` and `train` changed; return the epochs and the final weights."""
    p = change(RECIPE | (changes or {}) | {f"train.{key}": value for key, value in train.items()})
    this = training_of(p, network)
    return list(this.epochs()), dict(this.network.state_dict())


def copied(network: nn.Module) -> State:
    return {key: value.clone() for key, value in network.state_dict().items()}


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adamw", 0.01)])
def test_network_learns_classes_that_are_easy_to_tell_apart(change: Change, optimizer: str, rate: float) -> None:
    epochs, weights = fit(change, epochs=5, optimizer=optimizer, learning_rate=rate)
    assert epochs[-1].validation_accuracy > 0.9
    assert epochs[-1].train_accuracy > 0.9
    assert epochs[-1].validation_loss < epochs[0].validation_loss
    assert all(value.any() for key, value in weights.items() if "running_mean" in key)


def test_steps_are_those_of_gradient_descent_by_hand(change: Change) -> None:
    changes = {"epochs": 2, "batch_size": 96, "momentum": 0.0, "weight_decay": 0.0, "warmup": 0.0}
    p = change(RECIPE | {f"train.{key}": value for key, value in changes.items()} | STILL)
    trained, expected = (networks.build("mlp", 3, {"hidden": [], "dropout": 0.0}) for _ in range(2))
    expected.load_state_dict(trained.state_dict())
    list(training_of(p, trained).epochs())
    weights = list(expected.parameters())
    for share in (0.75, 0.25):  # of the learning rate, falling linearly: the middles of two steps
        logits = expected(to_float(LEARNED.images))
        loss = functional.cross_entropy(logits, LEARNED.labels, label_smoothing=p.train.label_smoothing)
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data -= p.train.learning_rate * share * slope
    for weight, value in zip(weights, trained.parameters(), strict=True):
        assert torch.allclose(weight, value, atol=1e-6)


def test_each_member_of_an_ensemble_learns_as_if_it_were_alone(change: Change) -> None:
    together = networks.build("cnn", len(CLASSES), KNOBS | {"dropout": 0.0, "members": 2}, mean=0.2, std=0.3)
    alone = [small(dropout=0.0) for _ in range(2)]
    members = list(list(together.children())[1].children())
    for network, member in zip(alone, members, strict=True):
        list(network.children())[1].load_state_dict(member.state_dict())
    fit(change, together)
    for network, member in zip(alone, members, strict=True):
        _, weights = fit(change, network)
        for key, value in member.state_dict().items():
            assert torch.allclose(value, weights[f"1.{key}"], atol=1e-5), key


@pytest.mark.parametrize("keep", ["last", "best"])
def test_bf16_learns_as_well_and_leaves_float32_weights(change: Change, keep: str) -> None:
    p = change(RECIPE | {"train.epochs": 5, "train.keep": keep})
    found = []
    for precision in (torch.bfloat16, torch.bfloat16, torch.float32):
        this = training_of(p, precision=precision)
        assert list(this.epochs())[-1].validation_accuracy > 0.9
        found.append(dict(this.network.state_dict()))
    assert equal(found[0], found[1])
    assert all(value.dtype == torch.float32 for value in found[0].values() if value.is_floating_point())
    assert not equal(found[0], found[2])


@pytest.mark.parametrize("keep", ["last", "best"])
def test_kept_epoch_is_measured_in_float32_as_evaluate_will(change: Change, keep: str) -> None:
    this = training_of(change(RECIPE | {"train.keep": keep}), precision=torch.bfloat16)
    epochs = list(this.epochs())
    found = evaluation.predict(this.network, HELD_OUT, 50, CPU)
    expected = evaluation.score(found.logits, HELD_OUT.labels)
    metrics = this.metrics()
    assert (metrics.validation_loss, metrics.validation_accuracy) == expected
    assert epochs[metrics.kept_epoch - 1].validation_loss == metrics.validation_loss


def test_same_seed_gives_the_same_weights_to_the_last_bit_and_another_seed_others(change: Change) -> None:
    first_epochs, first = fit(change)
    network = small()
    torch.manual_seed(12345)  # what was drawn before must not matter
    again_epochs, again = fit(change, network)
    _, other = fit(change, changes={"seed": 1})
    assert equal(first, again)
    assert first_epochs == again_epochs
    assert not equal(first, other)


class Killed(BaseException):
    pass


class Interrupting(Checkpoint):
    """Saves after every step, and dies right after the step `last`."""

    def __init__(self, last: int) -> None:
        super().__init__("training", interval=1e-9)
        self.left = last

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.mark.parametrize(
    ("optimizer", "rate", "keep", "ema", "hard", "members"),  # of the choices, nearly every pair of values
    [
        ("sgd", 0.05, "last", 0.0, 0.3, 2),
        ("sgd", 0.05, "best", 0.9, 0.0, 1),
        ("adamw", 0.01, "last", 0.9, 0.0, 1),
        ("adamw", 0.01, "best", 0.0, 0.3, 2),
    ],
)
def test_resuming_after_a_break_gives_the_same_weights_and_epochs(
    change: Change, optimizer: str, rate: float, keep: str, ema: float, hard: float, members: int
) -> None:
    recipe: dict[str, Any] = {"optimizer": optimizer, "learning_rate": rate, "keep": keep, "ema": ema}
    recipe["hard_examples"] = hard
    expected_epochs, expected = fit(change, small(members=members), **recipe)
    p = change(RECIPE | {f"train.{key}": value for key, value in recipe.items()})
    for breaks in ([1], [5], [6], [7, 6], [3, 3, 3, 3, 3, 3], [18]):  # 6 steps an epoch, 3 epochs
        for last in [*breaks, 1000]:
            this = training_of(p, small(members=members))
            torch.manual_seed(last)  # what was drawn before must not matter
            try:
                with Interrupting(last) as checkpoint:
                    epochs = list(this.epochs(checkpoint))
            except Killed:
                continue
        assert epochs == expected_epochs
        assert equal(dict(this.network.state_dict()), expected)
        assert not list(folder().iterdir())


def test_resuming_does_not_repeat_the_steps_that_were_saved(change: Change, capsys: pytest.CaptureFixture[str]) -> None:
    p = change(RECIPE)
    with pytest.raises(Killed), Interrupting(10) as checkpoint:
        list(training_of(p).epochs(checkpoint))
    with Interrupting(1000) as checkpoint:
        list(training_of(p).epochs(checkpoint))
    assert 1000 - checkpoint.left == 8
    assert "resumed after step 10 of 18" in capsys.readouterr().out


def test_images_with_the_highest_losses_come_up_twice_after_the_warm_up(change: Change) -> None:
    this, orders, losses = training_of(change(RECIPE | {"train.hard_examples": 0.25, "train.epochs": 4})), [], []
    for _ in this.epochs():
        orders.append(this._progress.order)
        losses.append(this._progress.losses.clone())
    counts = [torch.bincount(order, minlength=len(LEARNED)) for order in orders]
    assert [count.max().item() for count in counts] == [1, 1, 2, 2]  # 0.3 of 4 epochs are 1.2
    for place in (2, 3):
        assert torch.equal((counts[place] == 2).nonzero()[:, 0], losses[place - 1].topk(24).indices.sort().values)
    _, plain = fit(change, epochs=4)
    assert not equal(plain, copied(this.network))


def test_each_image_and_member_has_a_loss_of_its_own() -> None:
    logits = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    shares = logits.log_softmax(2)
    by_hand = -0.9 * shares[torch.arange(6), :, labels] - 0.1 * shares.mean(2)
    assert torch.allclose(training.losses_of(logits, labels, 0.1), by_hand)
    assert torch.allclose(training.losses_of(logits[:, 0], labels, 0.1), by_hand[:, :1])


def test_order_of_batches_follows_the_seed(change: Change) -> None:
    (_, first), (_, again), (_, other) = (
        fit(change, small(dropout=0.0), STILL | {"seed": seed}, epochs=1) for seed in (0, 0, 1)
    )
    assert equal(first, again)
    assert not equal(first, other)


@pytest.fixture
def uneven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the second and third of four epochs equally good, and better than the others."""
    accuracies = iter([0.5, 0.9, 0.9, 0.7])
    measured = evaluation.score

    def score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
        loss, accuracy = measured(logits, labels)
        return loss, next(accuracies) if torch.equal(labels, HELD_OUT.labels) else accuracy

    monkeypatch.setattr(evaluation, "score", score)


@pytest.mark.usefixtures("uneven")
@pytest.mark.parametrize(("keep", "kept"), [("last", 4), ("best", 2)])  # of two equally good epochs, the first is best
def test_kept_weights_and_metrics_are_those_of_the_epoch_asked_for(change: Change, keep: str, kept: int) -> None:
    this = training_of(change(RECIPE | {"train.epochs": 4, "train.keep": keep}))
    epochs, states = [], []
    for epoch in this.epochs():
        epochs.append(epoch)
        states.append(copied(this.network))
    assert equal(copied(this.network), states[kept - 1])
    assert not equal(states[1], states[2])
    expected = epochs[kept - 1]
    assert this.metrics() == TrainMetrics(
        train_loss=expected.train_loss,
        validation_loss=expected.validation_loss,
        train_accuracy=expected.train_accuracy,
        validation_accuracy=expected.validation_accuracy,
        epochs=4,
        kept_epoch=kept,
        parameters=PARAMETERS,
    )


def test_epochs_are_numbered_from_1_and_measure_the_network_as_it_then_is(change: Change) -> None:
    this = training_of(change(RECIPE))
    numbers = []
    for epoch in this.epochs():
        numbers.append(epoch.epoch)
        expected = evaluation.score(evaluation.predict(this.network, HELD_OUT, 50, CPU).logits, HELD_OUT.labels)
        assert (epoch.validation_loss, epoch.validation_accuracy) == expected
    assert numbers == [1, 2, 3]


def test_train_figures_come_from_as_many_training_images_as_there_are_for_validation(
    change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    predict = evaluation.predict

    def spy(network: nn.Module, split: splits.Split, *others: Any) -> Predictions:
        seen.append(split.images)
        return predict(network, split, *others)

    monkeypatch.setattr(evaluation, "predict", spy)
    fit(change, epochs=2)
    train = {image.numpy().tobytes() for image in LEARNED.images}
    assert [len(images) for images in seen] == [48] * 4
    assert torch.equal(seen[0], seen[2])
    assert {image.numpy().tobytes() for image in seen[0]} < train
    assert torch.equal(seen[1], HELD_OUT.images)


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
def test_learning_rate_falls_as_the_schedule_says(change: Change, schedule: str, share: float) -> None:
    epochs, _ = fit(change, epochs=9, batch_size=96, warmup=0.0, learning_rate=0.01, schedule=schedule)
    rates = [epoch.learning_rate / 0.01 for epoch in epochs]
    assert rates[4] == pytest.approx(share)  # half way
    expected = {"linear": 0.5 / 9, "cosine": (1 - math.cos(math.pi * 0.5 / 9)) / 2, "constant": 1.0}
    assert rates[-1] == pytest.approx(expected[schedule])


def test_moving_average_is_of_weights_and_of_statistics_of_batch_norm(change: Change) -> None:
    recipe: dict[str, Any] = {f"train.{key}": value for key, value in (("epochs", 3), ("batch_size", 96))}
    plain = training_of(change(RECIPE | recipe))
    first, *others = [copied(plain.network) for _ in plain.epochs()]  # one step an epoch
    _, averaged = fit(change, changes=recipe, ema=0.7)
    for key, value in averaged.items():
        if value.is_floating_point():
            expected = first[key]
            for state in others:
                expected = 0.7 * expected + 0.3 * state[key]
            assert torch.allclose(value, expected, atol=1e-6), key
            assert key.startswith("0.") or not torch.equal(value, others[-1][key]), key  # 0: normalization is fixed


def test_moving_average_of_the_weights_is_what_is_measured_and_kept(change: Change) -> None:
    epochs, weights = fit(change, ema=0.9)
    network = small()
    network.load_state_dict(weights)
    measured = evaluation.score(evaluation.predict(network, HELD_OUT, 50, CPU).logits, HELD_OUT.labels)
    assert measured == pytest.approx((epochs[-1].validation_loss, epochs[-1].validation_accuracy), abs=1e-6)


def test_training_that_diverges_ends_with_the_knob_to_turn(change: Change) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: train\.learning_rate: .* diverged in epoch 1 .* less than 1e"):
        fit(change, learning_rate=1e30)


def test_training_that_ends_in_one_answer_for_all_has_diverged(change: Change) -> None:
    nothing = splits.Split(torch.zeros_like(LEARNED.images), LEARNED.labels, LEARNED.classes)
    held_out = splits.Split(torch.zeros_like(HELD_OUT.images), HELD_OUT.labels, HELD_OUT.classes)
    p = change(RECIPE | {"train.weight_decay": 1.0, "train.learning_rate": 0.5})
    with pytest.raises(
        UserError, match=r"^params\.yaml: train\.weight_decay: .* accuracy 3\d\.\d\d%\); try less than 1$"
    ):
        list(training.Training(small(), nothing, held_out, p, CPU).epochs())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_shrinks_matrices_and_leaves_vectors_free(change: Change, optimizer: str) -> None:
    p = change(RECIPE | {"train.weight_decay": 0.5, "train.optimizer": optimizer})
    network = small()
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    stepping = training.optimizer_of(network, p.train)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)  # nothing but decay moves a weight
    stepping.step()
    for key, value in network.named_parameters():
        if value.ndim == 1:
            assert torch.equal(value, before[key])
        else:
            assert value.norm() < before[key].norm()


def test_optimizer_is_the_one_named_and_an_unknown_name_is_an_error(change: Change) -> None:
    train = change(RECIPE).train
    for name, kind in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        assert type(training.optimizer_of(small(), train.model_copy(update={"optimizer": name}))) is kind
    with pytest.raises(ValueError, match="unknown optimizer 'rmsprop'"):
        training.optimizer_of(small(), train.model_copy(update={"optimizer": "rmsprop"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"train.label_smoothing": 0.0},
        {"train.momentum": 0.0},
        {"train.weight_decay": 0.1},
        {"train.batch_size": 32},
        {"train.schedule": "cosine"},
        {"train.ema": 0.5},
        {"augmentation.shift": 0.0},
        {"augmentation.rotation": 0.0},
    ],
)
def test_every_knob_of_the_recipe_changes_the_weights(change: Change, changes: dict[str, Any]) -> None:
    _, before = fit(change, epochs=1)
    _, after = fit(change, changes={"train.epochs": 1} | changes)
    assert not equal(before, after)


def test_description_holds_exactly_the_params_that_shape_the_weights(change: Change) -> None:
    p = change(RECIPE | {"model.cnn": KNOBS, "model.tta_shift": 1, "seed": 7})
    found = training_of(p, precision=torch.bfloat16).description({"data/train": "1a2b"}, {"digits/a.py": "3c4d"})
    assert (found.name, found.classes) == ("cnn", list(CLASSES))
    assert found.knobs == KNOBS | {"members": 1, "tta_shift": 1}
    assert (found.data, found.code) == ({"data/train": "1a2b"}, digest({"digits/a.py": "3c4d"}))
    whole = ("recipe", "seed", "runtime.threads", "runtime.processes", "runtime.reproducibility")
    shaping = {key: value for key, value in p.flat().items() if key in whole or key.startswith(("train.", "augm"))}
    assert flatten(found.training) == shaping | {"runtime.precision": "bf16"}


def test_begun_training_is_the_one_made_by_hand_with_the_same_seed(change: Change) -> None:
    p = change(RECIPE | {"model.cnn": KNOBS, "seed": 5, "runtime.precision": "bf16"})
    pixels = splits.statistics({"train": LEARNED, "validation": HELD_OUT, "test": HELD_OUT})
    write_json(paths.DATASET_METRICS, asdict(pixels))
    torch.manual_seed(streams.derive(5, "weights"))
    network = networks.build("cnn", len(CLASSES), KNOBS, mean=pixels.pixel_mean, std=pixels.pixel_std)
    torch.manual_seed(12345)  # what was drawn before must not matter
    begun = training.begin(p, LEARNED, HELD_OUT, CPU)
    assert equal(copied(begun.network), copied(network))
    by_hand = Training(network, LEARNED, HELD_OUT, p, CPU, torch.bfloat16, pixels)
    assert list(begun.epochs()) == list(by_hand.epochs())
    assert equal(copied(begun.network), copied(network))
