import re
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from digits import params
from digits.command import UserError
from digits.params import Params

from .conftest import ROOT, Change

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def load_text(text: str | bytes, folder: Path) -> Params:
    path = folder / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return params.load(path)


def test_own_params_of_the_repository_are_valid_and_hold_every_key_of_the_file() -> None:
    loaded = params.load(ROOT / "params.yaml")
    assert loaded.model_dump(include={"seed", "train"}) == {
        key: value for key, value in yaml.safe_load(TEXT).items() if key in ("seed", "train")
    }
    assert list(loaded.model_dump()) == list(yaml.safe_load(TEXT))


def test_every_knob_has_a_dotted_name(change: Change) -> None:
    flat = change({"model.cnn.channels": [3, 5], "seed": 7}).flat()
    assert flat["model.cnn.channels"] == [3, 5]
    assert flat["seed"] == 7
    assert not any(isinstance(value, dict) for value in flat.values())


@pytest.mark.parametrize(("name", "own"), [("cnn", {"channels", "hidden", "dropout"}), ("mlp", {"hidden", "dropout"})])
def test_knobs_are_those_of_the_network_that_is_named(change: Change, name: str, own: set[str]) -> None:
    assert change({"model.name": name}).model.knobs().keys() == own


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"train.epoch": 3}, "train.epoch: unknown key; known there: epochs, batch_size, optimizer, learning_rate, "),
        ({"model.cnn.filters": 3}, "model.cnn.filters: unknown key; known there: channels, hidden, dropout"),
        ({"sed": 3}, "sed: unknown key; known there: seed, data, split, model, train, augmentation, runtime, "),
        ({"train.epochs": ...}, "train.epochs: missing"),
        ({"train": ...}, "train: missing"),
        ({"train": None}, "train: must be a valid dictionary"),
        ({"train.epochs": "abc"}, "train.epochs: must be a valid integer, not 'abc'"),
        ({"train.epochs": "3"}, "train.epochs: must be a valid integer, not '3'"),
        ({"train.epochs": 2.5}, "train.epochs: must be a valid integer, not 2.5"),
        ({"train.epochs": True}, "train.epochs: must be a valid integer, not True"),
        ({"train.learning_rate": True}, "train.learning_rate: must be a valid number, not True"),
        ({"train.learning_rate": float("nan")}, "train.learning_rate: must be a finite number, not nan"),
        ({"train.weight_decay": float("inf")}, "train.weight_decay: must be a finite number, not inf"),
        ({"data.name": "cifar"}, "data.name: must be 'mnist', 'fashion_mnist', 'kmnist' or 'folder', not 'cifar'"),
        ({"data.sources": "pypi"}, "data.sources: must be a valid list, not 'pypi'"),
        ({"data.sources": ["pypi", "ftp://x"]}, "data.sources.1: must be torchvision, pypi or a URL that begins with "),
        ({"model.cnn.channels": [8, 0]}, "model.cnn.channels.1: must be greater than or equal to 1, not 0"),
    ],
)
def test_wrong_value_is_refused_with_its_place_and_what_is_allowed(
    change: Change, changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(UserError) as refusal:
        change(changes)
    assert str(refusal.value).startswith(f"params.yaml: {fault}")
    assert "\n" not in str(refusal.value)


def test_key_that_is_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: 1: keys should be strings"):
        load_text(f"{TEXT}\n1: 2\n", tmp_path)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("seed", [-1, 2**63]),
        ("data.folder", [""]),
        ("data.sources", [[]]),
        ("data.timeout", [0, -1.0]),
        ("split.validation", [0, -5]),
        ("split.seed", [-1]),
        ("model.cnn.channels", [[8], [8] * 7]),
        ("model.cnn.hidden", [0]),
        ("model.cnn.dropout", [-0.1, 1.0]),
        ("model.mlp.hidden", [[0]]),
        ("model.mlp.dropout", [1.0]),
        ("train.epochs", [0]),
        ("train.batch_size", [1]),
        ("train.optimizer", ["adam"]),
        ("train.learning_rate", [0.0, -0.1]),
        ("train.warmup", [-0.1, 1.1]),
        ("train.momentum", [-0.1, 1.0]),
        ("train.weight_decay", [-1e-9]),
        ("train.label_smoothing", [-0.1, 1.0]),
        ("train.keep", ["first"]),
        ("augmentation.rotation", [-1.0, 181.0]),
        ("augmentation.scale", [-0.1, 1.0]),
        ("augmentation.shift", [-1.0, 28.5]),
        ("augmentation.shear", [-0.1]),
        ("runtime.device", ["gpu"]),
        ("runtime.threads", [0]),
        ("runtime.batch_size", [0]),
        ("evaluate.bins", [0]),
        ("evaluate.gallery", [0]),
        ("export.opset", [17, 22]),
        ("export.tolerance", [0.0]),
    ],
)
def test_value_out_of_range_is_refused(change: Change, key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UserError, match=rf"^params\.yaml: {re.escape(key)}[.:]"):
            change({key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2**63 - 1},
        {"train.learning_rate": 1},
        {"train.warmup": 1.0},
        {"train.warmup": 0},
        {"train.momentum": 0.0, "train.weight_decay": 0.0},
        {"model.mlp.hidden": []},
        {"data.name": "kmnist", "data.sources": ["pypi", "https://example.org/kmnist"]},
        {"data.name": "folder", "split.validation": 10**9},
        {"data.name": "mnist", "split.validation": 59_000, "train.batch_size": 1000},
    ],
)
def test_value_at_the_edge_of_what_is_allowed_is_taken(change: Change, changes: dict[str, Any]) -> None:
    flat = change(changes).flat()
    assert {key: flat[key] for key in changes} == changes


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"split.validation": 60_000}, "split.validation: must be less than the 60000 training images of mnist"),
        (
            {"split.validation": 59_000, "train.batch_size": 1001},
            "train.batch_size: must be at most the 1000 images that split.validation leaves, not 1001",
        ),
        ({"data.name": "kmnist", "data.sources": ["pypi"]}, "data.sources: pypi has mnist only, not kmnist"),
    ],
)
def test_values_that_contradict_each_other_are_refused(change: Change, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=rf"^params\.yaml: {fault}"):
        change({"data.name": "mnist"} | changes)


def test_every_fault_has_a_line_of_its_own(change: Change) -> None:
    with pytest.raises(UserError) as refusal:
        change({"train.epochs": "abc", "train.typo": 1, "augmentation.shift": -1.0, "seed": ...})
    lines = str(refusal.value).splitlines()
    assert {line.split(": ")[1] for line in lines} == {"train.epochs", "train.typo", "augmentation.shift", "seed"}
    assert len(lines) == 4
    assert all(line.startswith("params.yaml: ") for line in lines)


def test_contradictions_are_told_together(change: Change) -> None:
    with pytest.raises(UserError) as refusal:
        change({"data.name": "kmnist", "data.sources": ["pypi"], "split.validation": 60_000})
    assert [line.split(": ")[1] for line in str(refusal.value).splitlines()] == ["split.validation", "data.sources"]


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("5E+2", 500.0), ("1.e-2", 0.01), (".5", 0.5), ("3", 3.0)]
)
def test_number_with_an_exponent_is_read_as_a_number(tmp_path: Path, text: str, value: float) -> None:
    changed = re.sub(r"learning_rate: \S+", f"learning_rate: {text}", TEXT)
    assert load_text(changed, tmp_path).train.learning_rate == value


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("train: [1", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("\a", "not valid YAML"),
        (b"\xff\xfe\x00\x01", ""),
        ("seed: 2024-13-01", ""),
        ("", "must hold sections (seed, data, split, model, "),
        ("- 1\n- 2", "must hold sections"),
        ("just words", "must hold sections"),
    ],
    ids=["open bracket", "two colons", "control character", "not UTF-8", "no such month", "empty", "list", "text"],
)
def test_file_that_holds_no_sections_is_refused_in_one_line(tmp_path: Path, content: str | bytes, fault: str) -> None:
    with pytest.raises(UserError, match=rf"params\.yaml: {re.escape(fault)}") as refusal:
        load_text(content, tmp_path)
    assert "\n" not in str(refusal.value)


def test_missing_file_is_refused_with_the_place_to_run_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^params\.yaml: cannot be read here .*run from the repository's root"):
        params.load()


def test_loaded_params_cannot_be_changed(change: Change) -> None:
    loaded = change({})
    for section, key in ((loaded, "seed"), (loaded.train, "epochs"), (loaded.model.cnn, "hidden")):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(section, key, 1)
