"""Batches of a split: which images in which order, their pixels as floats, and random affine maps of them."""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


def to_float(images: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in 0 … 1, the input of every network here."""
    return images.float().div_(255)


def edges(images: Tensor) -> Tensor:
    """Return the pixels along the border of images [n, channels, side, side], by channel: [channels, pixels]."""
    borders = [images[:, :, [0, -1]].flatten(2), images[:, :, :, [0, -1]].flatten(2)]
    return torch.cat(borders, dim=2).transpose(0, 1).flatten(1)


def order(count: int, generator: torch.Generator) -> Tensor:
    """Return the indices 0 … count-1 once each, shuffled."""
    return torch.randperm(count, generator=generator)


def order_with_hard(losses: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return as many shuffled indices as there are losses: twice those of the highest `share`, and some of the others.

    `share` is at most 0.5, at which all others are left out. Equal losses are ranked by their index.
    """
    ranked = losses.argsort(descending=True, stable=True).cpu()
    hard, others = ranked.tensor_split([round(share * len(ranked))])
    some = others[order(len(others), generator)[: len(others) - len(hard)]]
    return torch.cat([hard, hard, some])[order(len(ranked), generator)]


def batches(indices: Tensor, size: int) -> list[Tensor]:
    """Return indices in batches of `size`; the last one may be smaller.

    A single image that is left over joins the batch before it, since batch norm has no statistics of one.
    """
    parts = list(indices.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def augment(
    images: Tensor,
    draws: Tensor,
    rotation: float,
    scale: float,
    shift: float,
    shear: float,
    background: float | list[float] = 0.0,
) -> Tensor:
    """Apply a random affine map to each image, all in one batched call; pixels from outside are the background.

    `images`: float [n, channels, side, side] in 0 … 1; `draws`: [5, n], uniform in 0 … 1. Each amount is the largest in
    either direction: `rotation` in degrees, `scale` and `shear` as fractions, `shift` in pixels.
    """
    if not any((rotation, scale, shift, shear)):
        return images
    draws = (2 * draws - 1).to(images.device)
    angle, zoom, slant = draws[0] * math.radians(rotation), 1 + draws[1] * scale, draws[2] * shear
    offset = draws[3:] * (2 * shift / images.shape[-1])  # the unit is half the image
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cos, slant * cos - sin, offset[0], sin, slant * sin + cos, offset[1]], dim=1)
    grid = (rows @ _places(images.shape[-1], images.device)).view(-1, *images.shape[2:], 2)
    if not any(background if isinstance(background, list) else [background]):
        return functional.grid_sample(images, grid, align_corners=False)  # which takes what is outside for 0
    paper = torch.tensor(background, device=images.device).view(1, -1, 1, 1)
    return functional.grid_sample(images - paper, grid, align_corners=False) + paper


@cache
def _places(side: int, device: torch.device) -> Tensor:
    """Return the matrix [6, side * side * 2] from the six numbers of an affine map to where each pixel comes from.

    One product for all images takes an eighth of the time of functional.affine_grid, which makes one for each.
    """
    units = torch.eye(6, device=device).view(6, 2, 3)
    return functional.affine_grid(units, [6, 1, side, side], align_corners=False).view(6, -1)
