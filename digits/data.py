"""Images as tensors: splits and the files that hold them, pixel statistics, batches, augmentation."""

import json
import math
import mmap
import struct
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils import dlpack
from tqdm import tqdm

from digits.files import atomic

NORESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python's mmap names from 3.13 on
BLOCK = 4096  # images in memory at once where all are gone through: 3 MB


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


def save(split: Split, path: Path, indices: Tensor | None = None) -> None:
    """Write a split, or its images at `indices`, as safetensors, whole or not at all.

    Block by block, so that the images may be mapped files larger than the memory. The bytes are those that safetensors
    itself would write, which wants all of them in the memory.
    """
    indices = torch.arange(len(split)) if indices is None else indices
    shape = [len(indices), *split.images.shape[1:]]
    size = math.prod(shape)
    header = {
        "__metadata__": {"classes": json.dumps(split.classes)},
        "images": {"dtype": "U8", "shape": shape, "data_offsets": [0, size]},
        "labels": {"dtype": "U8", "shape": shape[:1], "data_offsets": [size, size + shape[0]]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with atomic(path) as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in (split.images, split.labels):
            for part in tqdm(indices.split(BLOCK), desc=f"writing {path.name}", disable=None, leave=False):
                file.write(tensor[part].to(torch.uint8).numpy().data)


def load(path: Path, *, in_order: bool = False) -> Split:
    """Map a split written by `save`: the images come from the file when they are touched; writing never reaches it.

    `in_order` says that they will be touched one after the other, and not in the random order of training. It changes
    the time only, and only where the memory is smaller than the file.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        # Not by safetensors: Linux refuses a map that can be written to (in memory only) and is larger than memory and
        # swap together, unless it is asked not to reserve memory for that.
        how = {"flags": mmap.MAP_PRIVATE | NORESERVE} if sys.platform == "linux" else {"access": mmap.ACCESS_COPY}
        content = mmap.mmap(file.fileno(), 0, **how)
    if not in_order and hasattr(mmap, "MADV_RANDOM"):
        # Otherwise each image that is not there brings in megabytes around it: 139 images a second and not 13,800, of
        # 1.2 GB with 0.7 GB of memory.
        content.madvise(mmap.MADV_RANDOM)
    images, labels = (
        np.ndarray(header[name]["shape"], np.uint8, content, 8 + length + header[name]["data_offsets"][0])
        for name in ("images", "labels")
    )
    return Split(
        torch.from_numpy(images), torch.from_numpy(labels).long(), tuple(json.loads(header["__metadata__"]["classes"]))
    )


def from_numpy(array: NDArray[np.uint8]) -> Tensor:
    """Give a tensor that shares the memory of an array, also of a read-only one, of which torch's own would warn."""
    tensor: Tensor = dlpack.from_dlpack(array)
    return tensor


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
    counts = torch.zeros(256, dtype=torch.int64)
    for part in tqdm(images.split(BLOCK), desc="pixel statistics", disable=None, leave=False):
        counts += torch.bincount(part.flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / images.numel()
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
    offset = draws[3:] * (2 * shift / images.shape[-1])  # the unit is half the image
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cos, slant * cos - sin, offset[0], sin, slant * sin + cos, offset[1]], dim=1)
    grid = (rows @ _places(images.shape[-1], images.device)).view(-1, *images.shape[2:], 2)
    return functional.grid_sample(images, grid, align_corners=False)


@cache
def _places(side: int, device: torch.device) -> Tensor:
    """Give the matrix [6, side * side * 2] from the six numbers of an affine map to where each pixel comes from.

    One product for all images, 84 µs for a batch of 128; functional.affine_grid makes one for each, 700 µs.
    """
    units = torch.eye(6, device=device).view(6, 2, 3)
    return functional.affine_grid(units, [6, 1, side, side], align_corners=False).view(6, -1)
