"""params.yaml -> frozen, validated objects; the only reader of that file.

A knob of training has one value, or one per recipe (`{quick: 2, default: 8, best: 12}`), of which `recipe` picks one.
Unknown and missing keys, wrong types, values out of range and values that contradict each other are rejected together,
before any work, each as `params.yaml: train.epochs: …`.

The schema of each section is a module of its own, so that a new knob concerns only the stages that read its section.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from digits.datasets import DATASETS, Shape
from digits.errors import UserError
from digits.files import flatten
from digits.params.checks import contradictions, misfits
from digits.params.data import DataParams, SplitParams
from digits.params.evaluation import EvaluateParams
from digits.params.export import ExportParams
from digits.params.reading import PATH, RECIPES, Section, Seed, assigned, choose, faults_of, one_of, read
from digits.params.runtime import RuntimeParams
from digits.params.training import AugmentationParams, ModelParams, TrainParams

__all__ = ["PATH", "ModelParams", "Params", "TrainParams", "assemble", "assigned", "load", "reject_misfits"]

# Returns what is wrong with the knobs of networks, for images of a shape if that is known.
Check = Callable[[ModelParams, Shape | None], list[str]]


class Params(Section):
    """All of params.yaml, one attribute per section."""

    recipe: Annotated[str, one_of(*RECIPES)]
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
        """Return every knob by its dotted name, as DVC and MLflow show it."""
        return flatten(self.model_dump())


def _shape(content: dict[str, Any]) -> Shape | None:
    """Return the shape of the images of a named data set; that of a person's own is not known here."""
    data = content.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    return Shape(1, DATASETS[name].side) if name in DATASETS else None


def load(check: Check, changes: dict[str, Any] | None = None, path: Path = PATH) -> Params:
    """Read params.yaml in the working directory, which DVC sets to the repository's root; see `assemble`."""
    return assemble(read(Params, path), check, changes or {}, path)


def reject_misfits(check: Check, shape: Shape, counts: dict[str, int], path: Path = PATH) -> None:
    """Raise UserError with a line for each param that does not fit a person's own images.

    They have this shape, and there are so many of each part: train, validation and test.
    """
    if faults := misfits(assemble(read(Params, path), check, {}, path), shape, counts, check):
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))


def assemble(content: dict[str, Any], check: Check, changes: dict[str, Any], path: Path = PATH) -> Params:
    """Return the content of params.yaml as checked objects, some values replaced by `changes`, by dotted key.

    As for DVC, `train.epochs` changes the value of all recipes, `train.epochs.best` that of one. `check` is
    `learning.networks.check`, since the knobs of a network are the arguments of its class. Raises UserError with one
    line for each fault.
    """
    content = content | ({"recipe": changes["recipe"]} if "recipe" in changes else {})
    wanted = content.get("recipe")
    # Of an unknown recipe, that is the one fault, and not each knob that has a value per recipe.
    chosen = choose(content | {"recipe": wanted if wanted in RECIPES else RECIPES[0]})
    content = {key: wanted if key == "recipe" else chosen[key] for key in content}
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
        if recipe in (None, wanted):
            node[name] = value
    faults = faults_of(Params, content)
    params = None if faults else Params.model_validate(content)
    if not any(fault.startswith("model") for fault in faults):
        faults += check(ModelParams.model_validate(content["model"]), _shape(content))
    if params:
        faults = contradictions(params) + faults
    if not params or faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
    return params
