"""Images as tensors: splits and the files that hold them, pixel statistics, batches, augmentation."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor
from torch.nn import functional

from digits.files import write_bytes


@dataclass(frozen=True)
class Split:
    """Labelled images. `images`: uint8 [n, 1, 28, 28]; `labels`: int64 [n]; `classes`: the name of each label."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor | slice) -> "Split":
        return Split(self.images[indices], self.labels[indices], self.classes)

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device), self.classes)


def save(split: Split, path: Path) -> None:
    """Write a split as safetensors, whole or not at all."""
    tensors = {"images": split.images.contiguous(), "labels": split.labels.to(torch.uint8)}
    # Exactly one metadata key: safetensors writes several in a random order, and equal splits must be equal bytes. By
    # way of the memory: given a path, it writes to a name of its own beside it, which a kill would leave there.
    write_bytes(path, serialize(tensors, {"classes": json.dumps(split.classes)}))


def load(path: Path) -> Split:
    """Read a split written by `save`."""
    with safe_open(path, framework="pt") as file:
        classes = tuple(json.loads(file.metadata()["classes"]))
        return Split(file.get_tensor("images"), file.get_tensor("labels").long(), classes)


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Divide the indices 0 … n-1 into all but `count` and `count` of them, with the same share of every class.

    Shares are rounded by the largest remainder, so that the counts add up exactly. Both results are in rising order,
    int64, shapes [n - count] and [count].
    """
    members = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    exact = torch.tensor([len(indices) * count / len(labels) for indices in members], dtype=torch.float64)
    shares = exact.floor().long()
    largest_remainders = (exact - shares).argsort(descending=True, stable=True)
    shares[largest_remainders[: count - int(shares.sum())]] += 1
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for indices, share in zip(members, shares.tolist(), strict=True):
        held_out[indices[torch.randperm(len(indices), generator=generator)[:share]]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Give mean and standard deviation of uint8 pixels on the scale 0 … 1.

    From a histogram: the counts are integers, so that the result is the same on every processor.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = torch.bincount(images.flatten(), minlength=256).double() / images.numel()
    mean = float((values * shares).sum())
    return mean, math.sqrt(float(((values - mean) ** 2 * shares).sum()))


def to_float(images: Tensor) -> Tensor:
    """Turn uint8 pixels into float32 in 0 … 1, the input of every network here."""
    return images.float().div_(255)


def batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Give the indices 0 … count-1 once each, shuffled, in batches of `size`; the last one is smaller if need be.

    A single image that is left over joins the batch before it, since batch norm has no statistics of one.
    """
    parts = list(torch.randperm(count, generator=generator).split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def augment(images: Tensor, draws: Tensor, rotation: float, scale: float, shift: float, shear: float) -> Tensor:
    """Give each image another random affine map, all in one batched call; what comes in from outside is black.

    `images`: float [n, 1, 28, 28] in 0 … 1; `draws`: [5, n], uniform in 0 … 1. Each amount is the largest in either
    direction: `rotation` in degrees, `scale` and `shear` as fractions, `shift` in pixels.
    """
    if not any((rotation, scale, shift, shear)):
        return images
    draws = (2 * draws - 1).to(images.device)
    angle, zoom, slant = draws[0] * math.radians(rotation), 1 + draws[1] * scale, draws[2] * shear
    offset = draws[3:] * (2 * shift / images.shape[-1])  # affine_grid's unit is half the image
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cos, slant * cos - sin, offset[0], sin, slant * sin + cos, offset[1]], dim=1)
    grid = functional.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
