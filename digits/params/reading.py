"""YAML -> frozen, validated objects, with one line for each fault."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from digits.errors import UserError

RECIPES = ("quick", "default", "best")
OF_RECIPES = ("model", "train", "augmentation")  # the sections whose knobs may have one value per recipe

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, lt=1)]
Amount = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """What may stand under a key of a YAML file, and of which type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Section)


def one_of(*names: str) -> AfterValidator:
    """Return a check that text is one of `names`, for names that are listed elsewhere and not in a Literal."""
    allowed = f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"must be {allowed}")
        return name

    return AfterValidator(check)


def parse(text: str) -> Any:
    """Return the content of a YAML 1.2 text, which reads 1e-3 as a number, as DVC does; PyYAML's 1.1 does not."""
    return YAML(typ="safe", pure=True).load(text)


def read(kind: type[Section], path: Path) -> dict[str, Any]:
    """Return the content of a YAML file that should have the keys of `kind`. Raises UserError if it is unreadable."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read here ({error.strerror}); run from the repository's root") from None
    except (YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must have sections ({', '.join(kind.model_fields)}), but is {content!r}")
    return content


def assigned(settings: list[str]) -> dict[str, Any]:
    """Return the values of settings like "train.epochs=3", by dotted key. Raises UserError for any other text."""
    found = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"-S {setting}: must be KEY=VALUE")
        try:
            found[key] = parse(text)
        except YAMLError:
            raise UserError(f"-S {setting}: the value is not valid YAML") from None
    return found


def validated(kind: type[Kind], content: Any, path: Path, place: tuple[str, ...] = ()) -> Kind:
    """Return the content of `path` at `place` as an object. Raises UserError with one line for each fault."""
    if faults := faults_of(kind, content, place):
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
    return kind.model_validate(content)


def faults_of(kind: type[Section], content: Any, place: tuple[str, ...] = ()) -> list[str]:
    """Return what keeps `content`, found at `place` of a file, from being a `kind`, a line for each fault."""
    try:
        kind.model_validate(content)
    except ValidationError as error:
        return [_describe(fault, kind, place) for fault in error.errors()]
    return []


def choose(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a params.yaml with one value for every knob: that of its `recipe`, where there are several.

    A knob without a value for the recipe keeps them all, and is then rejected for its type.
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
    """Turn one of pydantic's faults into "train.epochs: must be a valid integer, not 'abc'"."""
    place = ".".join(map(str, above + fault["loc"]))
    if fault["type"] == "extra_forbidden":
        section: Any = kind
        for key in fault["loc"][:-1]:
            section = section.model_fields[key].annotation
        return f"{place}: unknown key; known there: {', '.join(section.model_fields) or 'none'}"
    if fault["type"] == "missing":
        return f"{place}: missing"
    if isinstance(fault["input"], dict) and fault["input"] and fault["input"].keys() <= set(RECIPES):
        if place.split(".")[0] not in OF_RECIPES:
            return f"{place}: must have one value; only knobs of {', '.join(OF_RECIPES)} can have one per recipe"
        known = ", ".join(name for name in RECIPES if name in fault["input"])
        return f"{place}: has values for {known} only; must have one for the chosen recipe, or one for all"
    message = (
        fault["msg"].removeprefix("Value error, ").replace("Input should", "must").replace("should have", "must have")
    )
    return f"{place}: {message[0].lower()}{message[1:]}, not {fault['input']!r}"
