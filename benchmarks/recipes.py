"""The pipeline's recipes as the benchmarks train them: params to give `training.begin`, and what `dvc repro` has made.

Everything about a training is in its params, so that a variant of one is its params with a few values changed.
"""

from typing import Any

import torch

from digits import params, paths
from digits.errors import UserError
from digits.images import splits
from digits.images.splits import Split
from digits.learning import networks, runtime
from digits.params import Params


def load(changes: dict[str, Any] | None = None) -> Params:
    """Return params.yaml with `changes` by dotted key."""
    return params.load(networks.check, changes)


def load_splits() -> tuple[Split, Split, Split]:
    """Return the training, validation and test split. Raises UserError if they have not been made."""
    try:
        return splits.load(paths.TRAIN), splits.load(paths.VALIDATION), splits.load(paths.TEST)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or error}: not found; `dvc repro` makes it") from None


def precisions(p: Params, device: torch.device) -> list[str]:
    """Return the precisions that `device` computes in hardware."""
    fastest = runtime.precision_of(in_precision(p, "auto").runtime, device)
    return ["fp32", "bf16"] if fastest == torch.bfloat16 else ["fp32"]


def one_epoch(p: Params) -> Params:
    """Return `p` with one epoch."""
    return _changed(p, "train", epochs=1)


def in_precision(p: Params, precision: str) -> Params:
    """Return `p` with another `runtime.precision`."""
    return _changed(p, "runtime", precision=precision)


def unaugmented(p: Params) -> Params:
    """Return `p` with all amounts of augmentation 0."""
    return _changed(p, "augmentation", **dict.fromkeys(type(p.augmentation).model_fields, 0.0))


def _changed(p: Params, section: str, **values: Any) -> Params:
    return p.model_copy(update={section: getattr(p, section).model_copy(update=values)})
