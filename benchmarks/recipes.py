"""The pipeline's recipes as the benchmarks train them: by `digits.training.fit`, on what `dvc repro` has made."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from digits import data, models, params, paths, runtime, training
from digits.command import UserError
from digits.data import Split
from digits.files import read_json
from digits.params import Params
from digits.training import Epoch

NAMES = ("quick", "default", "best")

# Until params.yaml has recipes: what differs from it.
_SHIM: dict[str, tuple[list[int], int]] = {"quick": ([16, 32], 2), "best": ([32, 64, 64, 128], 19)}


def load(recipe: str) -> Params:
    """Give params.yaml as `recipe` changes it."""
    p = params.load()
    if recipe == "default":
        return p
    channels, epochs = _SHIM[recipe]
    cnn = p.model.cnn.model_copy(update={"channels": channels})
    return p.model_copy(
        update={
            "model": p.model.model_copy(update={"cnn": cnn}),
            "train": p.train.model_copy(update={"epochs": epochs}),
        }
    )


def splits() -> tuple[Split, Split, Split]:
    """Give the training, validation and test split. Raises UserError if they have not been made."""
    try:
        return data.load(paths.TRAIN), data.load(paths.VALIDATION), data.load(paths.TEST)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or error}: not there yet; `dvc repro` makes it") from None


def precisions(device: torch.device) -> list[str]:
    """Give the precisions that this machine computes in hardware."""
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return ["fp32", "bf16"] if able.get("avx512_bf16") or able.get("amx_bf16") else ["fp32"]
    return ["fp32", "bf16"] if device.type == "cuda" and torch.cuda.is_bf16_supported() else ["fp32"]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Give the block in which a network computes in `precision`; its weights stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


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
    precision: str | None = None,
) -> Iterator[Epoch]:
    """Train `network` by the recipe in `precision` (None: what params.yaml says), watched by `checkpoint`."""
    with autocast(device, precision or "fp32"):
        yield from training.fit(
            network, learned, held_out, seed, p.train, p.augmentation, p.runtime.batch_size, device, checkpoint
        )


def one_epoch(p: Params) -> Params:
    """Give `p` with an epoch alone."""
    return p.model_copy(update={"train": p.train.model_copy(update={"epochs": 1})})


def unaugmented(p: Params) -> Params:
    """Give `p` with every amount of augmentation at 0."""
    amounts = dict.fromkeys(type(p.augmentation).model_fields, 0.0)
    return p.model_copy(update={"augmentation": p.augmentation.model_copy(update=amounts)})
