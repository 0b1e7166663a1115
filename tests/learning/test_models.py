from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from digits.errors import UserError
from digits.learning import models
from digits.learning.description import Description

from .test_networks import CNN, NETWORKS, build, images

DESCRIPTION = Description(
    "cnn", ["left", "middle", "right"], CNN, {"seed": 0, "train": {"epochs": 1}}, {"train": "1a2b"}, "3c4d"
)


@pytest.mark.parametrize(("name", "knobs"), NETWORKS)
def test_loaded_model_returns_the_same_logits_and_description(name: str, knobs: dict[str, Any], tmp_path: Path) -> None:
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
    """Write a model's file with something wrong with it."""
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
def test_file_that_holds_no_model_is_rejected_in_one_line_with_its_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, damage)
    with pytest.raises(UserError) as refusal:
        models.load(path)
    assert str(refusal.value).startswith(f"{path}: not a model of this project, or damaged (")
    assert "\n" not in str(refusal.value)
