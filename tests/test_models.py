from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from digits import models, params
from digits.command import UserError
from digits.models import Description

from .conftest import ROOT

CNN = {"crop": 1, "channels": [2, 3], "hidden": 5, "dropout": 0.5}
MLP = {"hidden": [6], "dropout": 0.5}
RESNET = {"crop": 1, "channels": [2, 3], "blocks": 1, "dropout": 0.5}
NETWORKS: list[tuple[str, dict[str, Any]]] = [("cnn", CNN), ("resnet", RESNET), ("mlp", MLP), ("linear", {})]
DESCRIPTION = Description(
    "cnn", ["left", "middle", "right"], CNN, {"seed": 0, "train": {"epochs": 1}}, {"train": "1a2b"}, "3c4d"
)


def build(name: str = "cnn", knobs: dict[str, Any] = CNN, seed: int = 0, **statistics: float) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(name, 3, knobs, **statistics).eval()


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "knobs"), NETWORKS)
@pytest.mark.parametrize("count", [1, 4])
def test_network_gives_one_logit_a_class_for_any_number_of_images(name: str, knobs: dict[str, Any], count: int) -> None:
    logits = build(name, knobs)(images(count))
    assert logits.shape == (count, 3)
    assert logits.dtype == torch.float32


def test_every_network_has_a_case_here() -> None:
    assert {name for name, _ in NETWORKS} == set(models.NETWORKS)


def test_knobs_of_the_repository_are_right() -> None:
    for recipe in params.RECIPES:
        loaded = params.load(ROOT / "params.yaml", {"recipe": recipe})
        models.check(loaded.model.model_extra or {})
        for name in models.NETWORKS:
            build(name, loaded.model.model_copy(update={"name": name}).knobs())


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ({"cnn": CNN | {"filters": 3}}, "cnn.filters: unknown key; known there: crop, channels, hidden, dropout"),
        ({"cnn": CNN | {"channels": [8, 0]}}, "cnn.channels.1: must be greater than or equal to 1, not 0"),
        ({"cnn": {"crop": 1, "channels": [2, 2], "hidden": 5}}, "cnn.dropout: missing"),
        ({"cnn": CNN | {"hidden": 2.5}}, "cnn.hidden: must be a valid integer, not 2.5"),
        ({"linear": {"dropout": 0.1}}, "linear.dropout: unknown key; known there: "),
        ({"transformer": {}}, "transformer: unknown network; known in digits/models.py: cnn, resnet, mlp, linear"),
    ],
)
def test_wrong_knob_of_a_network_is_refused_with_its_place_and_what_is_allowed(
    section: dict[str, dict[str, Any]], fault: str
) -> None:
    with pytest.raises(UserError) as refusal:
        models.check(section)
    assert str(refusal.value).startswith(f"params.yaml: model.{fault}")
    assert "\n" not in str(refusal.value)


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
def test_knob_of_a_network_out_of_range_is_refused(
    name: str, knobs: dict[str, Any], key: str, values: list[Any]
) -> None:
    models.check({name: knobs})
    for value in values:
        with pytest.raises(UserError, match=rf"^params\.yaml: model\.{name}\.{key}[.:]"):
            models.check({name: knobs | {key: value}})


def test_every_fault_of_the_networks_has_a_line_of_its_own() -> None:
    with pytest.raises(UserError) as refusal:
        models.check({"cnn": CNN | {"hidden": 0, "crop": 99}, "mlp": MLP | {"hidden": "many"}})
    assert len(str(refusal.value).splitlines()) == 3


@pytest.mark.parametrize(("crop", "room"), [(0, 6), (2, 5), (8, 2)])
def test_cnn_can_be_as_deep_as_its_images_allow(crop: int, room: int) -> None:
    assert build(knobs=CNN | {"crop": crop, "channels": [2] * room})(images()).shape == (4, 3)
    with pytest.raises(
        UserError,
        match=rf"^params\.yaml: model\.cnn\.channels: {room + 1} convolutions leave nothing of .* room for {room}$",
    ):
        build(knobs=CNN | {"crop": crop, "channels": [2] * (room + 1)})


@pytest.mark.parametrize("crop", [0, 8])
@pytest.mark.parametrize("depth", [1, 3])
def test_resnet_can_be_built_with_every_shape_that_params_allow(crop: int, depth: int) -> None:
    knobs = RESNET | {"crop": crop, "channels": [2] * depth}
    assert build("resnet", knobs)(images()).shape == (4, 3)


def test_residual_block_without_a_change_passes_on_what_comes_in() -> None:
    block = models.Residual(2).eval()
    nn.init.zeros_(block.change[-1].weight)  # type: ignore[arg-type]  # of its last batch norm
    features = torch.randn(1, 2, 5, 5)
    assert torch.equal(block(features), features.relu())


def test_linear_is_one_weight_for_each_pixel_and_class() -> None:
    assert models.count_parameters(build("linear", {})) == 784 * 3 + 3


def test_shifted_gives_the_mean_over_the_image_and_four_shifted_ones_outside_training_alone() -> None:
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
    assert models.count_parameters(build("mlp", {"hidden": [], "dropout": 0.0})) == 784 * 3 + 3


def test_mlp_of_the_classic_notebook_has_its_number_of_parameters() -> None:
    assert models.count_parameters(models.build("mlp", 10, {"hidden": [128, 64], "dropout": 0.0})) == 109_386


def test_ensemble_gives_the_mean_of_its_members_and_in_training_the_logits_of_each() -> None:
    network = build(knobs=CNN | {"members": 3})
    normalize, ensemble = network.children()
    alone = [member(normalize(images())) for member in ensemble.children()]
    assert not torch.equal(alone[0], alone[1])
    assert torch.equal(network(images()), torch.stack(alone).mean(dim=0))
    assert network.train()(images()).shape == (4, 3, 3)


def test_a_crop_is_blind_to_the_margin_and_to_nothing_else() -> None:
    network = build(knobs=CNN | {"crop": 2})
    for place, seen in ((1, False), (2, True)):
        changed = images()
        changed[:, :, place] += 0.5
        assert torch.equal(network(changed), network(images())) != seen


def test_normalisation_is_inside_the_network() -> None:
    plain, normalizing = build(), build(mean=0.13, std=0.31)
    assert torch.allclose(normalizing(images()), plain((images() - 0.13) / 0.31), atol=1e-6)
    assert not torch.allclose(normalizing(images()), plain(images()), atol=1e-2)


@pytest.mark.parametrize(("name", "knobs"), NETWORKS)
def test_dropout_works_in_training_alone(name: str, knobs: dict[str, Any]) -> None:
    if "dropout" not in knobs:
        pytest.skip("it has none")
    network = build(name, knobs)
    assert torch.equal(network(images()), network(images()))
    network.train()
    assert not torch.equal(network(images()), network(images()))


def test_weights_follow_the_global_seed() -> None:
    first, again, other = (build(seed=seed)(images()) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("name", "knobs"), NETWORKS)
def test_loaded_model_gives_the_same_logits_and_description(name: str, knobs: dict[str, Any], tmp_path: Path) -> None:
    network = build(name, knobs, mean=0.2, std=0.4)
    network.train()(images())  # so that batch norm has statistics of its own
    description = replace(DESCRIPTION, name=name, knobs=knobs)
    models.save(network, description, tmp_path / "model")
    loaded, found = models.load(tmp_path / "model")
    assert found == description
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(loaded(images()), network.eval()(images()))


def test_equal_models_are_equal_bytes_whatever_the_memory_layout(tmp_path: Path) -> None:
    contents = set()
    for _ in range(8):
        models.save(build(), DESCRIPTION, tmp_path / "model")
        contents.add((tmp_path / "model").read_bytes())
    network = build().to(memory_format=torch.channels_last)
    models.save(network, replace(DESCRIPTION, knobs=dict(reversed(CNN.items()))), tmp_path / "model")
    contents.add((tmp_path / "model").read_bytes())
    assert len(contents) == 1


def test_one_changed_byte_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    models.save(build(), DESCRIPTION, path)
    sound = path.read_bytes()
    for place in range(0, len(sound), 97):
        damaged = bytearray(sound)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged"):
            models.load(path)


def write_model(path: Path, damage: str) -> None:
    """Write a model's file with something wrong about it."""
    network = build()
    if damage == "other description":
        models.save(network, replace(DESCRIPTION, name="transformer"), path)
    elif damage == "other number of classes":
        models.save(network, replace(DESCRIPTION, classes=["only"]), path)
    elif damage == "other knobs":
        models.save(network, replace(DESCRIPTION, knobs={"depth": 3}), path)
    elif damage == "no description":
        save_file(network.state_dict(), path)
    elif damage == "description is not JSON":
        save_file(network.state_dict(), path, metadata={"model": "{"})
    elif damage == "not safetensors":
        path.write_bytes(b"these are no tensors" * 100)
    elif damage == "folder":
        path.mkdir()
    elif damage in ("truncated", "empty"):
        models.save(network, DESCRIPTION, path)
        path.write_bytes(path.read_bytes()[: -100 if damage == "truncated" else 0])


@pytest.mark.parametrize(
    "damage",
    [
        "missing",
        "truncated",
        "empty",
        "folder",
        "not safetensors",
        "no description",
        "description is not JSON",
        "other description",
        "other number of classes",
        "other knobs",
    ],
)
def test_file_that_holds_no_model_is_refused_in_one_line_with_its_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, damage)
    with pytest.raises(UserError) as refusal:
        models.load(path)
    assert str(refusal.value).startswith(f"{path}: not a model of this project, or damaged (")
    assert "\n" not in str(refusal.value)
