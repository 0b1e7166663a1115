import re
from pathlib import Path
from typing import Any

import pydantic
import pytest

from digits import params
from digits.errors import UserError
from digits.files import flatten
from digits.learning import networks
from digits.params import Params
from digits.params.reading import RECIPES, choose, parse

from ..conftest import ROOT, Change

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def load_text(text: str | bytes, folder: Path) -> Params:
    path = folder / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return params.load(networks.check, path=path)


def test_own_params_of_the_repository_are_valid_and_hold_every_key_of_the_file() -> None:
    content = parse(TEXT)
    for recipe in RECIPES:
        loaded = params.load(networks.check, {"recipe": recipe}, ROOT / "params.yaml")
        assert flatten(loaded.model_dump()) == flatten(choose(content | {"recipe": recipe}))
        assert loaded.recipe == recipe
    assert list(loaded.model_dump()) == list(content)


THREE = {"quick": 1, "default": 2, "best": 3}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_picks_among_the_values_of_a_knob_and_a_single_value_is_for_all(change: Change, recipe: str) -> None:
    loaded = change({"recipe": recipe, "train.epochs": THREE, "train.batch_size": 7})
    assert (loaded.train.epochs, loaded.train.batch_size) == (THREE[recipe], 7)
    assert loaded.flat()["train.epochs"] == THREE[recipe]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"recipe": "fast"}, "recipe: must be 'quick', 'default' or 'best', not 'fast'"),
        (
            {"recipe": "best", "train.epochs": {"quick": 1, "default": 2}},
            "train.epochs: has values for quick, default only; must have one for the chosen recipe, or one for all",
        ),
        ({"train.epochs": THREE | {"fast": 1}}, "train.epochs: must be a valid integer, not {"),
        ({"train.epochs": THREE | {"default": "abc"}}, "train.epochs: must be a valid integer, not 'abc'"),
        (
            {"runtime.threads": THREE},
            "runtime.threads: must have one value; only knobs of model, train, augmentation can have one per recipe",
        ),
        ({"train.epochs": {}}, "train.epochs: must be a valid integer, not {}"),
    ],
)
def test_knob_without_a_value_for_the_recipe_is_rejected(change: Change, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError) as raised:
        change({"recipe": "default"} | changes)
    assert str(raised.value).startswith(f"params.yaml: {fault}")
    assert "\n" not in str(raised.value)


def test_every_knob_has_a_dotted_name(change: Change) -> None:
    flat = change({"model.cnn.channels": [3, 5], "seed": 7}).flat()
    assert flat["model.cnn.channels"] == [3, 5]
    assert flat["seed"] == 7
    assert not any(isinstance(value, dict) for value in flat.values())


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("cnn", {"members", "tta_shift", "crop", "channels", "hidden", "dropout"}),
        ("mlp", {"members", "tta_shift", "hidden", "dropout"}),
        ("linear", {"members", "tta_shift"}),
    ],
)
def test_knobs_are_those_of_the_network_that_is_named(change: Change, name: str, own: set[str]) -> None:
    assert change({"model.name": name}).model.knobs().keys() == own


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"train.epoch": 3}, "train.epoch: unknown key; known there: epochs, batch_size, optimizer, learning_rate, "),
        ({"model.member": 3}, "model.member: must be a valid dictionary, not 3"),
        ({"model.name": "cnm"}, "model.name: must be a network with a section there (cnn, linear, mlp, resnet), not "),
        ({"sed": 3}, "sed: unknown key; known there: recipe, seed, data, split, model, train, augmentation, runtime, "),
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
        ({"data.name": "cifar"}, "data.name: must be 'mnist', 'fashion_mnist', 'kmnist', 'qmnist', "),
        ({"data.sources": "pypi"}, "data.sources: must be a valid list, not 'pypi'"),
        ({"data.sources": ["pypi", "ftp://x"]}, "data.sources.1: must be torchvision, pypi or a URL that begins with "),
    ],
)
def test_wrong_value_is_rejected_with_its_place_and_what_is_allowed(
    change: Change, changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(UserError) as raised:
        change(changes)
    assert str(raised.value).startswith(f"params.yaml: {fault}")
    assert "\n" not in str(raised.value)


def test_key_that_is_a_number_is_rejected(tmp_path: Path) -> None:
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
        ("split.training_share", [0.0, 1.1]),
        ("model.members", [0]),
        ("model.tta_shift", [-1, 9]),
        ("train.epochs", [0]),
        ("train.batch_size", [1]),
        ("train.optimizer", ["adam"]),
        ("train.learning_rate", [0.0, -0.1]),
        ("train.warmup", [-0.1, 1.1]),
        ("train.schedule", ["step"]),
        ("train.ema", [-0.1, 1.0]),
        ("train.momentum", [-0.1, 1.0]),
        ("train.weight_decay", [-1e-9]),
        ("train.label_smoothing", [-0.1, 1.0]),
        ("train.hard_examples", [-0.1, 0.6]),
        ("train.keep", ["first"]),
        ("augmentation.rotation", [-1.0, 181.0]),
        ("augmentation.scale", [-0.1, 1.0]),
        ("augmentation.shift", [-1.0, 28.5]),
        ("augmentation.shear", [-0.1]),
        ("runtime.device", ["gpu"]),
        ("runtime.threads", [0]),
        ("runtime.processes", [0]),
        ("runtime.precision", ["fp16"]),
        ("runtime.batch_size", [0]),
        ("evaluate.bins", [0]),
        ("evaluate.gallery", [0]),
        ("export.opset", [17, 22]),
        ("export.tolerance", [0.0]),
    ],
)
def test_value_out_of_range_is_rejected(change: Change, key: str, values: list[Any]) -> None:
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
        {"runtime.reproducibility": "portable", "runtime.precision": "fp32"},
        {"data.name": "mnist", "split.validation": 59_000, "train.batch_size": 1000},
    ],
)
def test_value_at_the_edge_of_what_is_allowed_is_accepted(change: Change, changes: dict[str, Any]) -> None:
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
        (
            {"runtime.reproducibility": "portable", "runtime.precision": "bf16"},
            "runtime.precision: must not be bf16 where runtime.reproducibility is portable",
        ),
    ],
)
def test_values_that_contradict_each_other_are_rejected(change: Change, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=rf"^params\.yaml: {fault}"):
        change({"data.name": "mnist"} | changes)


def test_every_fault_has_a_line_of_its_own(change: Change) -> None:
    with pytest.raises(UserError) as raised:
        change({"train.epochs": "abc", "train.typo": 1, "augmentation.shift": -1.0, "seed": ...})
    lines = str(raised.value).splitlines()
    assert {line.split(": ")[1] for line in lines} == {"train.epochs", "train.typo", "augmentation.shift", "seed"}
    assert len(lines) == 4
    assert all(line.startswith("params.yaml: ") for line in lines)


def test_contradictions_are_reported_together(change: Change) -> None:
    with pytest.raises(UserError) as raised:
        change({"data.name": "kmnist", "data.sources": ["pypi"], "split.validation": 60_000})
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == ["split.validation", "data.sources"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model.cnn.dropout": 5}, "model.cnn.dropout: must be less than 1, not 5"),
        (
            {"model.mlp.hidden": [0]},
            "model.mlp.hidden.0: must be greater than or equal to 1, not 0",
        ),  # not the chosen one
        ({"model.cnn.droput": 0.5}, "model.cnn.droput: unknown key; known there: crop, channels, hidden, dropout"),
        ({"model.cnn.hidden": ...}, "model.cnn.hidden: missing"),
        (
            {"model.cnn.crop": 8, "model.cnn.channels": [8, 8, 8]},
            "model.cnn.channels: must be at most 2 convolutions with model.cnn.crop 8 and images of 28 x 28",
        ),
        (
            {"model.vgg": {"depth": 3}},
            "model.vgg: unknown network; known in digits/learning/networks.py: cnn, ",
        ),
        ({"train.optimizer": "adam"}, "train.optimizer: must be 'sgd' or 'adamw', not 'adam'"),
    ],
)
def test_wrong_knob_of_a_network_or_optimizer_is_rejected_in_one_line(
    change: Change, changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(UserError) as raised:
        change({"model.name": "cnn"} | changes)
    assert str(raised.value).startswith(f"params.yaml: {fault}")
    assert "\n" not in str(raised.value)


def test_contradictions_and_wrong_knobs_of_networks_are_reported_together(change: Change) -> None:
    with pytest.raises(UserError) as raised:
        change({"split.validation": 60_000, "model.name": "vgg", "model.cnn.dropout": 5, "model.resnet.blocks": "two"})
    lines = str(raised.value).splitlines()
    assert all(line.startswith("params.yaml: ") for line in lines)
    assert [line.split(": ")[1] for line in lines] == [
        "split.validation",
        "model.name",
        "model.cnn.dropout",
        "model.resnet.blocks",
    ]


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("5E+1", 50.0), ("1.e-2", 0.01), (".5", 0.5), ("3", 3.0)])
def test_number_with_an_exponent_is_read_as_a_number(tmp_path: Path, text: str, value: float) -> None:
    changed = re.sub(r"learning_rate: [^#]+", f"learning_rate: {text}  ", TEXT)
    assert load_text(changed, tmp_path).train.learning_rate == value


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("train: [1", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("\a", "not valid YAML"),
        (b"\xff\xfe\x00\x01", ""),
        ("seed: 2024-13-01", ""),
        ("", "must have sections (recipe, seed, data, split, model, "),
        ("- 1\n- 2", "must have sections"),
        ("just words", "must have sections"),
        ("seed: 1\nseed: 2", "not valid YAML: "),
        (f"{TEXT}\ntrain: {{}}\n", "not valid YAML: "),
    ],
    ids=[
        "open bracket",
        "two colons",
        "control character",
        "not UTF-8",
        "no such month",
        "empty",
        "list",
        "text",
        "key twice",
        "section twice",
    ],
)
def test_file_that_cannot_be_read_as_sections_is_rejected_in_one_line(
    tmp_path: Path, content: str | bytes, fault: str
) -> None:
    with pytest.raises(UserError, match=rf"params\.yaml: {re.escape(fault)}") as raised:
        load_text(content, tmp_path)
    assert "\n" not in str(raised.value)


def test_missing_file_is_rejected_with_where_to_run_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^params\.yaml: not found here; run this from the repository's root"):
        params.load(networks.check)


def test_loaded_params_cannot_be_changed(change: Change) -> None:
    loaded = change({})
    for section, key in ((loaded, "seed"), (loaded.train, "epochs"), (loaded.model, "members")):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(section, key, 1)


def test_changes_replace_what_the_file_says() -> None:
    path = ROOT / "params.yaml"
    loaded = params.load(networks.check, {"recipe": "best", "train.epochs": 3, "model.cnn.hidden": 9}, path)
    best = params.load(networks.check, {"recipe": "best"}, path)
    assert {key: value for key, value in loaded.flat().items() if value != best.flat()[key]} == {
        "train.epochs": 3,
        "model.cnn.hidden": 9,
    }
    for one in ("quick", "default"):
        assert params.load(networks.check, {"recipe": "quick", f"train.epochs.{one}": 5}, path).train.epochs == (
            5 if one == "quick" else 2
        )
    for key in ("train.epoch", "trains.epochs", "train.epochs.quickest", "epochs", "default", "train.epoch.best"):
        with pytest.raises(UserError, match=rf"params\.yaml: {re.escape(key)}: no knob of that name"):
            params.load(networks.check, {key: 3}, path)
    with pytest.raises(UserError, match=r"params\.yaml: train\.epochs: must be a valid integer, not 'abc'"):
        params.load(networks.check, {"train.epochs": "abc"}, path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train.learning_rate=1e-3", 0.001),
        ("recipe=quick", "quick"),
        ("model.cnn.channels.default=[8, 16]", [8, 16]),
        ("model.mlp.hidden=[8]", [8]),
        ("data.ink=true", True),
        ("data.folder=on", "on"),
        ("data.folder=010", "010"),
        ("data.folder=1:30", "1:30"),
        ("seed=1_000", 1000),
        ("train.warmup=+.2", 0.2),
        ("data.folder=a b", "a b"),
    ],
)
def test_settings_of_a_command_line_have_the_values_that_dvc_gives_them(
    change: Change, setting: str, value: object
) -> None:
    change({})
    Path("params.yaml").write_text(TEXT, encoding="utf-8")
    assert params.assigned([setting]) == {setting.partition("=")[0]: value}
    assert Path("params.yaml").read_text(encoding="utf-8") == TEXT


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("train.epochs", "-S train.epochs: must be KEY=VALUE"),
        ("~train.epochs=", "-S ~train.epochs=: must be KEY=VALUE"),
        ("+train.new=3", "-S +train.new=3: must be KEY=VALUE"),
        ("seed=[1", "-S seed=[1: not a value that DVC takes"),
        ("train.epochs=1,2", "-S train.epochs=1,2: not a value that DVC takes; give one recipe's: "
         "-S train.epochs.default=1,2"),
        ("model.cnn.channels=[8,16]", "-S model.cnn.channels=[8,16]: not a value that DVC takes; give one recipe's: "
         "-S model.cnn.channels.default=[8,16]"),
        ("train.epoch=3", "params.yaml: train.epoch: no knob of that name"),
        ("seed.x=3", "params.yaml: seed.x: no knob of that name"),
    ],
)  # fmt: skip
def test_setting_that_dvc_refuses_is_one_line(change: Change, setting: str, fault: str) -> None:
    change({})
    Path("params.yaml").write_text(TEXT, encoding="utf-8")
    with pytest.raises(UserError, match=f"^{re.escape(fault)}$"):
        params.assigned([setting])


DIALECT = ["010", "1:30", "yes", "off", "+.2", "0o17", "0b11", "1e3", "~", "2001-01-01", "!!int '3'", ".inf", "<<: 1"]


@pytest.mark.parametrize("text", DIALECT)
def test_yaml_is_read_as_dvc_reads_it(tmp_path: Path, text: str) -> None:
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_text(f"a: {text}\n")
    try:
        expected = load_yaml(path)
    except Exception:
        with pytest.raises(ValueError, match=r"\S"):
            parse(path.read_text())
    else:
        assert repr(parse(path.read_text())) == repr(expected)


MISTAKES = {
    "recipe: default": ["recipe: [quick]", "recipe: fast", "recipe: {quick: 1}", "recipe: !!bool abc", "recipe: 1",
                        "recipe:"],
    "seed: 0": ["seed: 0\nseed: 1", f"seed: {'9' * 5000}", f"seed: {'[' * 500}", f"seed: {'[' * 500}{']' * 500}",
                "seed: &a [*a]", "seed: 010.5", "seed: 1:30", "seed: yes", "seed: 2001-02-30"],
    "hidden: 128": ["hidden: 1000000"],
    "threads: 2": ["threads: 1025", "threads: true"],
    "bins: 15": ["bins: 1000000000"],
    "timeout: 20": ["timeout: 1e9"],
    "weight_decay: 0.0005": ["weight_decay: 1e9"],
    "members: {quick: 1, default: 1, best: 2}": ["members: 65"],
    "hidden: [128, 64]": ["hidden: [0]"],
    "sources: [torchvision, pypi]": ["sources: [ftp://x]", "sources: ['https://me:hunter2@x/']",
                                     "sources: ['https://x/?token=hunter2']",
                                     f"sources: ['{'x' * 5000}']"],
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), [(old, new) for old, texts in MISTAKES.items() for new in texts])
def test_a_mistake_is_one_short_line(tmp_path: Path, old: str, new: str) -> None:
    assert old in TEXT
    with pytest.raises(UserError) as raised:
        load_text(TEXT.replace(old, new, 1), tmp_path)
    assert re.fullmatch(r"\S*params\.yaml: [^\n]{1,250}", str(raised.value)), raised.value
    assert "hunter2" not in str(raised.value)


def test_aliases_that_multiply_are_rejected_at_once(tmp_path: Path) -> None:
    levels = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 10))
    with pytest.raises(UserError, match=r"params\.yaml: not valid YAML: too many values$"):
        load_text(f"{TEXT}\nx0: &x0 [1]\n{levels}", tmp_path)
