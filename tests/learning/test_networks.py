from typing import Any

import pytest
import torch
from torch import Tensor, nn

from digits import params
from digits.datasets import MNIST_SHAPE, Shape
from digits.errors import UserError
from digits.learning import networks
from digits.params import ModelParams
from digits.params.reading import RECIPES
from tests.conftest import ROOT

CNN = {"crop": 1, "channels": [2, 3], "hidden": 5, "dropout": 0.5}
MLP = {"hidden": [6], "dropout": 0.5}
RESNET = {"crop": 1, "channels": [2, 3], "blocks": 1, "dropout": 0.5}
NETWORKS: list[tuple[str, dict[str, Any]]] = [("cnn", CNN), ("resnet", RESNET), ("mlp", MLP), ("linear", {})]


def build(
    name: str = "cnn", knobs: dict[str, Any] = CNN, seed: int = 0, shape: Shape = MNIST_SHAPE, **statistics: float
) -> nn.Module:
    torch.manual_seed(seed)
    return networks.build(name, 3, knobs, shape, **statistics).eval()


def images(count: int = 4, shape: Shape = MNIST_SHAPE) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.rand(count, shape.channels, shape.side, shape.side, generator=random)


def faults(sections: dict[str, Any], name: str = "cnn", shape: Shape | None = None) -> list[str]:
    """Return what is wrong with the knobs of networks where `name` is the chosen one."""
    return networks.check(ModelParams.model_validate({"name": name, "members": 1, "tta_shift": 0, **sections}), shape)


@pytest.mark.parametrize("shape", [Shape(1, 16), Shape(3, 28), Shape(3, 64)], ids=str)
@pytest.mark.parametrize(("name", "knobs"), NETWORKS)
def test_network_takes_images_of_any_shape(name: str, knobs: dict[str, Any], shape: Shape) -> None:
    for more in ({}, {"members": 2, "tta_shift": 1}):
        assert build(name, knobs | more, shape=shape)(images(4, shape)).shape == (4, 3)


def test_network_for_which_images_are_too_small_says_what_would_fit() -> None:
    (line,) = faults({"cnn": CNN}, shape=Shape(1, 8))
    assert line.startswith(
        "model.cnn.channels: must be at most 0 convolutions with model.cnn.crop 1 and images of 8 x 8"
    )
    assert line.endswith("a smaller crop, or model.name resnet or mlp, takes smaller images")
    (line,) = faults({"resnet": RESNET | {"crop": 3}}, "resnet", Shape(3, 8))
    assert line.startswith(
        "model.resnet.channels: must have fewer widths or a smaller model.resnet.crop with images of 8"
    )
    assert not faults({"mlp": MLP}, "mlp", Shape(3, 8))


@pytest.mark.parametrize(("name", "knobs"), NETWORKS)
@pytest.mark.parametrize("count", [1, 4])
def test_network_returns_one_logit_per_class_for_any_number_of_images(
    name: str, knobs: dict[str, Any], count: int
) -> None:
    logits = build(name, knobs)(images(count))
    assert logits.shape == (count, 3)
    assert logits.dtype == torch.float32


def test_only_the_first_convolution_of_a_resnet_is_5x5_whatever_the_widths() -> None:
    for widths in ([1, 8], [1, 1], [8, 1]):
        network = networks.ResNet(3, Shape(1, 28), crop=2, channels=widths, blocks=1, dropout=0.0)
        kernels = [layer.kernel_size[0] for layer in network if isinstance(layer, torch.nn.Conv2d)]
        assert kernels == [5, 3]


def test_every_network_has_a_case_here() -> None:
    assert {name for name, _ in NETWORKS} == set(networks.NETWORKS)


def test_every_network_can_be_built_with_the_knobs_of_each_recipe_in_the_repository() -> None:
    for recipe in RECIPES:
        loaded = params.load(networks.check, {"recipe": recipe}, ROOT / "params.yaml")
        for name in networks.NETWORKS:
            build(name, loaded.model.model_copy(update={"name": name}).knobs())


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ({"cnn": CNN | {"filters": 3}}, "cnn.filters: unknown key; known there: crop, channels, hidden, dropout"),
        ({"cnn": CNN | {"channels": [8, 0]}}, "cnn.channels.1: must be greater than or equal to 1, not 0"),
        ({"cnn": {"crop": 1, "channels": [2, 2], "hidden": 5}}, "cnn.dropout: missing"),
        ({"cnn": CNN | {"hidden": 2.5}}, "cnn.hidden: must be a valid integer, not 2.5"),
        ({"linear": {"dropout": 0.1}}, "linear.dropout: unknown key; known there: none"),
        (
            {"transformer": {}},
            "transformer: unknown network; known in digits/learning/networks.py: cnn, resnet, mlp, linear",
        ),
    ],
)
def test_wrong_knob_of_a_network_is_rejected_with_its_place_and_what_is_allowed(
    section: dict[str, dict[str, Any]], fault: str
) -> None:
    (line,) = faults(section)
    assert line.startswith(f"model.{fault}")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "knobs", "key", "values"),
    [
        ("cnn", CNN, "channels", [[8], [8] * 7]),
        ("cnn", CNN, "crop", [-1, 9]),
        ("cnn", CNN, "hidden", [0]),
        ("cnn", CNN, "dropout", [-0.1, 1.0]),
        ("resnet", RESNET, "channels", [[], [2] * 4]),
        ("resnet", RESNET, "blocks", [0]),
        ("mlp", MLP, "hidden", [[0]]),
        ("mlp", MLP, "dropout", [1.0]),
    ],
)
def test_knob_of_a_network_that_is_out_of_range_is_rejected(
    name: str, knobs: dict[str, Any], key: str, values: list[Any]
) -> None:
    assert faults({name: knobs}, name) == []
    for value in values:
        (line,) = faults({name: knobs | {key: value}}, name)
        assert line.startswith((f"model.{name}.{key}.", f"model.{name}.{key}:"))


def test_every_fault_of_the_networks_has_its_own_line() -> None:
    found = faults({"cnn": CNN | {"hidden": 0, "crop": 99}, "mlp": MLP | {"hidden": "many"}})
    assert [line.split(":")[0] for line in found] == ["model.cnn.crop", "model.cnn.hidden", "model.mlp.hidden"]


@pytest.mark.parametrize(("crop", "room"), [(0, 6), (2, 5), (8, 2)])
def test_cnn_can_be_as_deep_as_its_images_allow(crop: int, room: int) -> None:
    assert build(knobs=CNN | {"crop": crop, "channels": [2] * room})(images()).shape == (4, 3)
    allowed = rf"{room} convolutions with model\.cnn\.crop {crop} and images of 28 x 28 gray"
    fault = rf"^model\.cnn\.channels: must be at most {allowed}, not {room + 1}:"
    with pytest.raises(UserError, match=fault):
        build(knobs=CNN | {"crop": crop, "channels": [2] * (room + 1)})


def test_knobs_that_do_not_go_together_are_rejected_where_the_network_is_chosen() -> None:
    sections = {"cnn": CNN | {"crop": 8, "channels": [2] * 3}, "mlp": MLP}
    (line,) = faults(sections, "cnn", MNIST_SHAPE)
    assert line.startswith("model.cnn.channels: must be at most 2 convolutions with model.cnn.crop 8 and")
    assert faults(sections, "mlp") == []


@pytest.mark.parametrize("crop", [0, 8])
@pytest.mark.parametrize("depth", [1, 3])
def test_resnet_can_be_built_with_every_shape_that_params_allow(crop: int, depth: int) -> None:
    knobs = RESNET | {"crop": crop, "channels": [2] * depth}
    assert build("resnet", knobs)(images()).shape == (4, 3)


def test_linear_is_one_weight_for_each_pixel_and_class() -> None:
    assert networks.count_parameters(build("linear", {})) == 784 * 3 + 3


def test_shifted_returns_the_mean_over_the_image_and_four_shifted_ones_but_not_in_training() -> None:
    plain, shifted = build(), build(knobs=CNN | {"tta_shift": 2})
    picture = torch.zeros(1, 1, 28, 28)
    picture[..., 10:18, 10:18] = 1
    five = [picture, *(picture.roll(step, dims) for dims in (2, 3) for step in (-2, 2))]
    assert torch.allclose(shifted(picture), torch.stack([plain(one) for one in five]).mean(dim=0), atol=1e-6)
    assert not torch.allclose(shifted(picture), plain(picture), atol=1e-6)
    torch.manual_seed(1)
    expected = plain.train()(images())
    torch.manual_seed(1)
    assert torch.equal(shifted.train()(images()), expected)


def test_mlp_without_hidden_layers_is_one_linear_map() -> None:
    assert networks.count_parameters(build("mlp", {"hidden": [], "dropout": 0.0})) == 784 * 3 + 3


def test_mlp_of_the_classic_notebook_has_its_number_of_parameters() -> None:
    assert networks.count_parameters(networks.build("mlp", 10, {"hidden": [128, 64], "dropout": 0.0})) == 109_386


def test_ensemble_returns_the_mean_of_its_members_and_in_training_the_logits_of_each() -> None:
    network = build(knobs=CNN | {"members": 3})
    normalize, ensemble = network.children()
    alone = [member(normalize(images())) for member in ensemble.children()]
    assert not torch.equal(alone[0], alone[1])
    assert torch.equal(network(images()), torch.stack(alone).mean(dim=0))
    assert network.train()(images()).shape == (4, 3, 3)


def test_network_is_blind_to_the_margin_that_it_crops_and_to_nothing_else() -> None:
    network = build(knobs=CNN | {"crop": 2})
    for place, seen in ((1, False), (2, True)):
        changed = images()
        changed[:, :, place] += 0.5
        assert torch.equal(network(changed), network(images())) != seen


def test_normalization_is_inside_the_network() -> None:
    plain, normalizing = build(), build(mean=0.13, std=0.31)
    assert torch.allclose(normalizing(images()), plain((images() - 0.13) / 0.31), atol=1e-6)
    assert not torch.allclose(normalizing(images()), plain(images()), atol=1e-2)


@pytest.mark.parametrize(("name", "knobs"), [(name, knobs) for name, knobs in NETWORKS if "dropout" in knobs])
def test_dropout_works_in_training_only(name: str, knobs: dict[str, Any]) -> None:
    network = build(name, knobs)
    assert torch.equal(network(images()), network(images()))
    network.train()
    assert not torch.equal(network(images()), network(images()))


def test_weights_follow_the_global_seed() -> None:
    first, again, other = (build(seed=seed)(images()) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
