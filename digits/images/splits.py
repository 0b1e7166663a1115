"""Splits: labelled images as tensors, the files that hold them, how they are drawn, and their statistics."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from digits.datasets import Shape
from digits.errors import UserError
from digits.files import atomic, map_bytes
from digits.images.batches import edges
from digits.images.statistics import Count, Statistics

BLOCK = 4096  # images in memory at once where all are read: 3 MB


@dataclass(frozen=True)
class Split:
    """Labelled images. `images`: uint8 [n, channels, side, side]; `labels`: int64 [n]; `classes`: their names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> Shape:
        return Shape(self.images.shape[1], self.images.shape[-1])

    def absent(self) -> list[str]:
        """Return the classes of which it has no image."""
        counts = self.labels.bincount(minlength=len(self.classes)).tolist()
        return [name for name, count in zip(self.classes, counts, strict=True) if not count]

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
    few = len(split.classes) <= 256
    width, dtype = (1, torch.uint8) if few else (4, torch.int32)
    header = {
        "__metadata__": {"classes": json.dumps(split.classes)},
        "images": {"dtype": "U8", "shape": shape, "data_offsets": [0, size]},
        "labels": {
            "dtype": "U8" if few else "I32",
            "shape": shape[:1],
            "data_offsets": [size, size + width * shape[0]],
        },
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with atomic(path) as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor, kind in ((split.images, torch.uint8), (split.labels, dtype)):
            for part in tqdm(indices.split(BLOCK), desc=f"writing {path.name}", disable=None, leave=False):
                file.write(tensor[part].to(kind).contiguous().numpy().data)


def load(path: Path, *, in_order: bool = False) -> Split:
    """Map a split written by `save`; `in_order` as for `map_bytes`."""
    content = map_bytes(path, in_order=in_order)
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())

    def tensor(name: str) -> Tensor:
        begin, end = header[name]["data_offsets"]
        values = content[start + begin : start + end]
        if header[name]["dtype"] == "I32":
            values = np.frombuffer(values.tobytes(), "<i4").astype(np.int64)
        return torch.from_numpy(values.reshape(header[name]["shape"]))

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


def statistics(splits: Mapping[str, Split], *, ink: bool = True, test_held_out: bool = False) -> Statistics:
    """Return the statistics of the three splits.

    Those of pixels come from a histogram: its counts are integers, so that they are the same on every processor.
    Raises UserError if all pixels are the same.
    """
    images = splits["train"].images
    channels = images.shape[1]
    counts, borders = torch.zeros(2, channels, 256, dtype=torch.int64)
    for part in tqdm(images.split(BLOCK), desc="pixel statistics", disable=None, leave=False):
        for channel, border in enumerate(edges(part)):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
            borders[channel] += torch.bincount(border, minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations, backgrounds = list[float](), list[float](), list[float]()
    for histogram, edge in zip(counts, borders, strict=True):
        shares = histogram.double() / histogram.sum()
        means.append(float((values * shares).sum()))
        deviations.append(math.sqrt(float(((values - means[-1]) ** 2 * shares).sum())))
        backgrounds.append(float(values[int((2 * edge.cumsum(0) >= edge.sum()).long().argmax())]))

    if not any(deviations):
        raise UserError(
            f"all pixels of the training images have the value {255 * means[0]:.0f}: nothing can be learned"
        )
    deviations = [deviation or 1.0 for deviation in deviations]  # of a channel that is the same everywhere

    def of_channels(found: list[float]) -> float | list[float]:
        return found[0] if channels == 1 else found

    return Statistics(
        **{name: Count(len(split)) for name, split in splits.items()},
        pixel_mean=of_channels(means),
        pixel_std=of_channels(deviations),
        background=of_channels(backgrounds),
        ink=ink,
        test_held_out=test_held_out,
    )


def class_means(split: Split) -> Tensor:
    """Return the mean image of each class, float64 [classes, c, side, side] in 0 … 255; of an empty class, zeros."""
    sums = torch.zeros(len(split.classes), *split.images.shape[1:], dtype=torch.int64)
    for images, labels in zip(split.images.split(BLOCK), split.labels.split(BLOCK), strict=True):
        sums.index_add_(0, labels, images.long())
    counts = split.labels.bincount(minlength=len(split.classes)).clamp(min=1)
    return sums / counts.double().view(-1, 1, 1, 1)
