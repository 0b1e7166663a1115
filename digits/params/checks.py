"""Values of params.yaml that are each allowed but contradict each other. What is found here stops every stage."""

from typing import TYPE_CHECKING

from digits.datasets import DATASETS, FOLDER, Shape
from digits.params.data import number_of

if TYPE_CHECKING:
    from digits.params import Check, Params


def contradictions(params: "Params") -> list[str]:
    """Return a line for each contradiction. The size of a user's own data is not known here."""
    faults = []
    data, split, train = params.data, params.split, params.train
    if data.name != FOLDER:
        count = DATASETS[data.name].train_count
        validation = number_of(split.validation, count)
        if validation >= count:
            allowed = f"less than the {count} training images of {data.name}"
            faults.append(f"split.validation: must be {allowed}, not {split.validation}")
        elif train.batch_size > count - validation:
            allowed = f"at most the {count - validation} images that split.validation leaves"
            faults.append(f"train.batch_size: must be {allowed}, not {train.batch_size}")
        if data.name != "mnist" and data.sources == ["pypi"]:
            faults.append(f"data.sources: pypi has mnist only, not {data.name}; add torchvision or a URL")
    known = sorted(params.model.networks())
    if params.model.name not in known:
        allowed = f"a network with a section there ({', '.join(known)})"
        faults.append(f"model.name: must be {allowed}, not {params.model.name!r}")
    if params.runtime.reproducibility == "portable" and params.runtime.precision == "bf16":
        faults.append("runtime.precision: must not be bf16 where runtime.reproducibility is portable")
    return faults


def misfits(params: "Params", shape: Shape, counts: dict[str, int], check: "Check") -> list[str]:
    """Return a line for each param that does not fit a person's own images, of this shape and so many of each part."""
    faults = check(params.model, shape)
    test = 0 if counts["test"] else number_of(params.split.test, counts["train"])
    left = counts["train"] - test
    validation = 0 if counts["validation"] else number_of(params.split.validation, left)
    if left - validation < 2:
        allowed = f"less than {max(1, left - 1):,} of the {left:,} images that are left, or a share such as 0.15"
        faults.append(f"split.validation: must be {allowed}, not {params.split.validation}")
    elif params.train.batch_size > left - validation:
        allowed = f"at most the {left - validation:,} images that are left to train"
        faults.append(f"train.batch_size: must be {allowed}, not {params.train.batch_size}")
    return faults
