"""params.yaml -> frozen, validated objects; the only reader of that file.

A knob of training has one value, or one for each recipe (`{quick: 2, default: 5, best: 30}`), of which `recipe` picks.
Unknown keys, missing keys, wrong types, values out of range and values that contradict each other are refused
together, before any work, each as `params.yaml: train.epochs: …`. The knobs of a network are the arguments of its
class: they are checked by `models.check`, which the train stage begins with.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from digits.command import UserError
from digits.datasets import DATASETS, FOLDER
from digits.files import flatten

PATH = Path("params.yaml")

RECIPES = ("quick", "default", "best")
OF_RECIPES = ("model", "train", "augmentation")  # the sections that the train stage alone reads

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, lt=1)]
Amount = Annotated[float, Field(ge=0)]
Source = Annotated[str, Field(pattern=r"^(torchvision|pypi|https?://\S+)$")]


class Section(BaseModel):
    """What may stand under a key of params.yaml, and of which type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Section)


class DataParams(Section):
    name: Literal["mnist", "fashion_mnist", "kmnist", "folder"]
    folder: Annotated[str, Field(min_length=1)]
    sources: Annotated[list[Source], Field(min_length=1)]
    timeout: Annotated[float, Field(gt=0)]


class SplitParams(Section):
    validation: Count
    training_share: Annotated[float, Field(gt=0, le=1)]
    seed: Seed


class ModelParams(Section):
    """Which network; every key but these is a section with the knobs of the network of that name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    name: str
    members: Count
    tta_shift: Annotated[int, Field(ge=0, le=8)]

    def knobs(self) -> dict[str, Any]:
        """Give the knobs that make the network: those of every network, and its own."""
        own: dict[str, Any] = getattr(self, self.name)
        return {"members": self.members, "tta_shift": self.tta_shift, **own}


class TrainParams(Section):
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]  # batch norm needs two
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["linear", "cosine", "constant"]
    warmup: Annotated[float, Field(ge=0, le=1)]
    momentum: Share
    weight_decay: Amount
    label_smoothing: Share
    ema: Share
    keep: Literal["last", "best"]


class AugmentationParams(Section):
    rotation: Annotated[float, Field(ge=0, le=180)]
    scale: Share
    shift: Annotated[float, Field(ge=0, le=28)]
    shear: Amount


class RuntimeParams(Section):
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count
    batch_size: Count
    reproducibility: Literal["machine", "portable"]
    precision: Literal["auto", "fp32", "bf16"]
    compile: bool
    processes: Count
    checkpoint: Amount


class EvaluateParams(Section):
    bins: Count
    gallery: Count


class ExportParams(Section):
    opset: Annotated[int, Field(ge=18, le=21)]
    tolerance: Annotated[float, Field(gt=0)]


class Params(Section):
    """All of params.yaml, one attribute a section."""

    recipe: Literal["quick", "default", "best"]
    seed: Seed
    data: DataParams
    split: SplitParams
    model: ModelParams
    train: TrainParams
    augmentation: AugmentationParams
    runtime: RuntimeParams
    evaluate: EvaluateParams
    export: ExportParams

    def flat(self) -> dict[str, Any]:
        """Give every knob by its dotted name, as DVC and MLflow show it."""
        return flatten(self.model_dump())


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 and DVC do; PyYAML's YAML 1.1 takes it for a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load(path: Path = PATH, changes: dict[str, Any] | None = None) -> Params:
    """Read params.yaml in the working directory, which DVC sets to the repository's root; see `assemble`."""
    return assemble(read(Params, path), changes or {}, path)


def assemble(content: dict[str, Any], changes: dict[str, Any], path: Path = PATH) -> Params:
    """Give what a file holds as checked objects, with `changes`, by dotted key, in place of some of its values.

    As for DVC, `train.epochs` changes the value of all recipes, `train.epochs.best` that of one. Raises UserError with
    one line for each fault.
    """
    content = choose(content | ({"recipe": changes["recipe"]} if "recipe" in changes else {}))
    for key, value in changes.items():
        *sections, name = key.split(".")
        recipe = name if name in RECIPES and sections else None
        if recipe:
            *sections, name = sections
        node = content
        for section in sections:
            node = node.get(section, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict) or name not in node:
            raise UserError(f"{path}: {key}: no knob of that name")
        if recipe in (None, content.get("recipe")):
            node[name] = value
    params = check(Params, content, path)
    if faults := _contradictions(params):
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
    return params


def read(kind: type[Section], path: Path) -> dict[str, Any]:
    """Give what a YAML file holds that shall have the keys of `kind`. Raises UserError if it is no such file at all."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read here ({error.strerror}); run from the repository's root") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold sections ({', '.join(kind.model_fields)}), holds {content!r}")
    return content


def assigned(settings: list[str]) -> dict[str, Any]:
    """Give the values of settings like "train.epochs=3", by dotted key. Raises UserError if one is not such."""
    found = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"-S {setting}: must be KEY=VALUE")
        try:
            found[key] = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            raise UserError(f"-S {setting}: the value is not valid YAML") from None
    return found


def check(kind: type[Kind], content: Any, path: Path = PATH, place: tuple[str, ...] = ()) -> Kind:
    """Give what a file holds at `place` as checked object. Raises UserError with one line for each fault."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = [f"{path}: {_describe(fault, kind, place)}" for fault in error.errors()]
    raise UserError("\n".join(faults))


def choose(content: dict[str, Any]) -> dict[str, Any]:
    """Give the content of a params.yaml with one value for every knob: that of its `recipe`, where there are several.

    A knob that has none for the recipe keeps them all, to be refused as a value.
    """
    recipe = content.get("recipe")

    def chosen(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if recipe in node and all(key in RECIPES for key in node):
            return node[recipe]
        return {key: chosen(value) for key, value in node.items()}

    return {key: chosen(value) if key in OF_RECIPES else value for key, value in content.items()}


def _describe(fault: Any, kind: type[Section], above: tuple[str, ...]) -> str:
    """Say one of pydantic's faults as "train.epochs: must be a valid integer, not 'abc'"."""
    place = ".".join(map(str, above + fault["loc"]))
    if fault["type"] == "extra_forbidden":
        section: Any = kind
        for key in fault["loc"][:-1]:
            section = section.model_fields[key].annotation
        return f"{place}: unknown key; known there: {', '.join(section.model_fields)}"
    if fault["type"] == "missing":
        return f"{place}: missing"
    if fault["type"] == "string_pattern_mismatch":
        return (
            f"{place}: must be torchvision, pypi or a URL that begins with http:// or https://, not {fault['input']!r}"
        )
    if isinstance(fault["input"], dict) and fault["input"] and fault["input"].keys() <= set(RECIPES):
        if place.split(".")[0] not in OF_RECIPES:
            return f"{place}: must have one value; only knobs of {', '.join(OF_RECIPES)} can have one for each recipe"
        known = ", ".join(name for name in RECIPES if name in fault["input"])
        return f"{place}: has values for {known} only; must have one for the recipe, or one for all"
    message = fault["msg"].replace("Input should be", "must be").replace("should have", "must have")
    return f"{place}: {message[0].lower()}{message[1:]}, not {fault['input']!r}"


def _contradictions(params: Params) -> list[str]:
    """Give what is wrong between values that are each right. The size of a folder's data is not known here."""
    faults = []
    data, split, train = params.data, params.split, params.train
    if data.name != FOLDER:
        count = DATASETS[data.name].train_count
        if split.validation >= count:
            faults.append(
                f"split.validation: must be less than the {count} training images of {data.name}, "
                f"not {split.validation}"
            )
        elif train.batch_size > count - split.validation:
            faults.append(
                f"train.batch_size: must be at most the {count - split.validation} images that split.validation "
                f"leaves, not {train.batch_size}"
            )
        if data.name != "mnist" and data.sources == ["pypi"]:
            faults.append(f"data.sources: pypi has mnist only, not {data.name}; add torchvision or a URL")
    known = sorted(params.model.model_extra or {})
    if params.model.name not in known:
        faults.append(
            f"model.name: must be a network with a section there ({', '.join(known)}), not {params.model.name!r}"
        )
    runtime = params.runtime
    if runtime.reproducibility == "portable":
        for key, value in {"precision": "bf16", "compile": True}.items():
            if getattr(runtime, key) == value:
                faults.append(
                    f"runtime.{key}: must not be {str(value).lower()} where runtime.reproducibility is portable: its "
                    "bits differ between processors"
                )
    return faults
