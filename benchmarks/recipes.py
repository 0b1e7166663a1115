"""The pipeline's recipes as the benchmarks train them: by `digits.training.fit`, on what `dvc repro` has made."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from digits import data, models, paths, runtime, training
from digits.command import UserError
from digits.data import Split
from digits.files import read_json
from digits.params import Params
from digits.training import Epoch


def splits() -> tuple[Split, Split, Split]:
    """Give the training, validation and test split. Raises UserError if they have not been made."""
    try:
        return data.load(paths.TRAIN), data.load(paths.VALIDATION), data.load(paths.TEST)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or error}: not there yet; `dvc repro` makes it") from None


def precisions(device: torch.device) -> list[str]:
    """Give the precisions that this machine computes in hardware."""
    fastest = runtime.precision_of("auto", device, "machine")
    return ["fp32", "bf16"] if fastest == torch.bfloat16 else ["fp32"]


def build(p: Params, seed: int, classes: int) -> nn.Module:
    """Give the recipe's network as the train stage begins with it."""
    pixels = read_json(paths.DATASET_METRICS)
    torch.manual_seed(runtime.derive(seed, "weights"))
    return models.build(p.model.name, classes, p.model.knobs(), pixels["pixel_mean"], pixels["pixel_std"])


def fit(
    p: Params,
    network: nn.Module,
    learned: Split,
    held_out: Split,
    seed: int,
    device: torch.device,
    checkpoint: Any,
    precision: str,
) -> Iterator[Epoch]:
    """Train `network` by the recipe in `precision` (as runtime.precision in params.yaml), watched by `checkpoint`."""
    dtype = runtime.precision_of(precision, device, p.runtime.reproducibility)
    yield from training.fit(
        network, learned, held_out, seed, p.train, p.augmentation, p.runtime.batch_size, device, checkpoint, dtype
    )


def one_epoch(p: Params) -> Params:
    """Give `p` with an epoch alone."""
    return p.model_copy(update={"train": p.train.model_copy(update={"epochs": 1})})


def unaugmented(p: Params) -> Params:
    """Give `p` with every amount of augmentation at 0."""
    amounts = dict.fromkeys(type(p.augmentation).model_fields, 0.0)
    return p.model_copy(update={"augmentation": p.augmentation.model_copy(update=amounts)})
