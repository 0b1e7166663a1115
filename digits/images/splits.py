"""Splits: labelled images as tensors, the files that hold them, how they are drawn, and their statistics."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from digits.files import atomic, map_bytes

BLOCK = 4096  # images in memory at once where all are read: 3 MB


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

    Block by block, so that the images may be mapped files larger than memory. The bytes are those that safetensors
    itself would write, which needs all of them in memory.
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
    """Map a split written by `save`; `in_order` as for `map_bytes`."""
    content = map_bytes(path, in_order=in_order)
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())

    def tensor(name: str) -> Tensor:
        begin, end = header[name]["data_offsets"]
        return torch.from_numpy(content[start + begin : start + end].reshape(header[name]["shape"]))

    return Split(tensor("images"), tensor("labels").long(), tuple(json.loads(header["__metadata__"]["classes"])))


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


@dataclass(frozen=True)
class Count:
    """The number of images in a split."""

    count: int


@dataclass(frozen=True)
class Statistics:
    """The content of metrics/dataset.json; mean and standard deviation are those of training pixels in 0 … 1."""

    train: Count
    validation: Count
    test: Count
    pixel_mean: float
    pixel_std: float


def statistics(splits: Mapping[str, Split]) -> Statistics:
    """Return the statistics of the three splits.

    Those of pixels come from a histogram: its counts are integers, so that they are the same on every processor.
    """
    images = splits["train"].images
    counts = torch.zeros(256, dtype=torch.int64)
    for part in tqdm(images.split(BLOCK), desc="pixel statistics", disable=None, leave=False):
        counts += torch.bincount(part.flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / images.numel()
    mean = float((values * shares).sum())
    std = math.sqrt(float(((values - mean) ** 2 * shares).sum()))
    return Statistics(**{name: Count(len(split)) for name, split in splits.items()}, pixel_mean=mean, pixel_std=std)


def class_means(split: Split) -> Tensor:
    """Return the mean image of each class, float64 [classes, 1, 28, 28] in 0 … 255; of an empty class, zeros."""
    sums = torch.zeros(len(split.classes), *split.images.shape[1:], dtype=torch.int64)
    for images, labels in zip(split.images.split(BLOCK), split.labels.split(BLOCK), strict=True):
        sums.index_add_(0, labels, images.long())
    counts = split.labels.bincount(minlength=len(split.classes)).clamp(min=1)
    return sums / counts.double().view(-1, 1, 1, 1)
