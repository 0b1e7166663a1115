"""YAML -> frozen, validated objects, with one line for each fault."""

import copy
import re
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

from digits.errors import UserError, reason, shown

PATH = Path("params.yaml")
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


LONGEST = 200_000  # characters of a YAML file
MOST = 20_000  # values in it, once its aliases are written out
DEEPEST = 20  # levels


def parse(text: str) -> Any:
    """Return the content of a YAML 1.2 text, as DVC reads it: PyYAML's 1.1 has other numbers and booleans.

    Raises ValueError if it is not valid, or so large or deep that it cannot be meant.
    """
    return copy.deepcopy(_parsed(text))


@lru_cache(maxsize=8)  # a stage reads params.yaml, dvc.yaml and dvc.lock several times, each in a tenth of a second
def _parsed(text: str) -> Any:
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters are more than {LONGEST:,}")
    try:
        content = YAML(typ="safe").load(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # ruamel.yaml has many: YAMLError, and KeyError for `!!bool abc`, say
        raise ValueError(" ".join(str(error).split())) from None
    _bound(content, 0, [0])
    return content


def _bound(node: Any, depth: int, count: list[int]) -> None:
    count[0] += 1
    if depth > DEEPEST or count[0] > MOST:
        raise ValueError("nested too deeply" if depth > DEEPEST else "too many values")
    if isinstance(node, dict | list | set):
        for child in node.values() if isinstance(node, dict) else node:
            _bound(child, depth + 1, count)


def read(kind: type[Section], path: Path) -> dict[str, Any]:
    """Return the content of a YAML file that should have the keys of `kind`. Raises UserError if it is unreadable."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found here; run this from the repository's root") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # also what is not UTF-8
        raise UserError(f"{path}: not valid YAML: {reason(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must have sections ({', '.join(kind.model_fields)}), but is {shown(content)}")
    return content


def assigned(settings: list[str]) -> dict[str, Any]:
    """Return the values that `dvc exp run -S` gives params, from settings like "train.epochs=3", by dotted key.

    Raises UserError for what it refuses.
    """
    return {setting.partition("=")[0]: _assigned(setting) for setting in settings}


def _assigned(setting: str) -> Any:
    from dvc.utils.hydra import apply_overrides  # only now: it takes a third of a second

    key, equals, text = setting.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise UserError(f"-S {setting}: must be KEY=VALUE")
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder, PATH.name)
        try:
            shutil.copyfile(PATH, changed)
            before = _at(parse(changed.read_text(encoding="utf-8")), key)
            apply_overrides(changed, [setting])
            return _at(parse(changed.read_text(encoding="utf-8")), key)
        except OSError as error:
            raise UserError(f"{PATH}: cannot be read here ({error.strerror})") from None
        except KeyError:
            raise UserError(f"{PATH}: {key}: no knob of that name") from None
        except Exception:  # DVC's, Hydra's and OmegaConf's
            one = f"; give one recipe's: -S {key}.default={text}" if _per_recipe(before) else ""
            raise UserError(f"-S {setting}: not a value that DVC takes{one}") from None


def _at(content: Any, key: str) -> Any:
    """Return the value of a dotted key. Raises KeyError if there is none."""
    for name in key.split("."):
        if not isinstance(content, dict):
            raise KeyError(key)
        content = content[name]
    return content


def _per_recipe(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and value.keys() <= set(RECIPES)


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
        if recipe in RECIPES and recipe in node and all(key in RECIPES for key in node):
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
    if _per_recipe(fault["input"]):
        if place.split(".")[0] not in OF_RECIPES:
            return f"{place}: must have one value; only knobs of {', '.join(OF_RECIPES)} can have one per recipe"
        known = ", ".join(name for name in RECIPES if name in fault["input"])
        return f"{place}: has values for {known} only; must have one for the chosen recipe, or one for all"
    message = (
        fault["msg"].removeprefix("Value error, ").replace("Input should", "must").replace("should have", "must have")
    )
    message = re.sub(r" after validation, not \d+$", "", message)
    return f"{place}: {message[0].lower()}{message[1:]}, not {shown(fault['input'])}"
