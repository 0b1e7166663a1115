"""Corrupted images, to see what a network withstands (eight kinds at five severities), and meaningless ones.

In the spirit of MNIST-C (N. Mu and J. Gilmer, 2019), but made here: the same images give the same corrupted ones on
every run. Kinds that have a direction go one way for half of the images and the other way for the rest.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from digits.images.batches import augment, edges, to_float
from digits.images.severities import CORRUPTIONS


def _move(images: Tensor, amount: float, knob: str) -> Tensor:
    """Move images by an amount of `augment`, in turn in either direction; of shifts, the two axes have turns apart."""
    ways = torch.arange(len(images))
    draws = torch.stack([ways % 2, ways % 2, ways % 2, ways % 2, ways // 2 % 2])
    amounts = dict.fromkeys(("rotation", "scale", "shift", "shear"), 0.0) | {knob: amount}
    background = edges(images).median(dim=1).values.tolist()  # of each channel
    return augment(images, draws, **amounts, background=background)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Blur by a Gaussian, along one axis and then the other."""
    offsets = torch.arange(-8, 9, dtype=torch.float32)
    kernel = torch.exp(-((offsets / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    for weight, padding in ((kernel, (0, 8)), (kernel.mT, (8, 0))):
        images = functional.conv2d(images, weight, padding=padding, groups=images.shape[1])
    return images


def _noise(images: Tensor, deviation: float) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def _contrast(images: Tensor, share: float) -> Tensor:
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    return middle + share * (images - middle)


def _stroke(images: Tensor, amount: float) -> Tensor:
    """Widen strokes by `amount` pixels on each side (0 to 1), or make them as much thinner, in turn."""
    wider, thinner = functional.max_pool2d(images, 3, 1, 1), -functional.max_pool2d(-images, 3, 1, 1)
    grows = (torch.arange(len(images)) % 2 == 0).view(-1, 1, 1, 1)
    return images.lerp(torch.where(grows, wider, thinner), amount)


APPLY: dict[str, Callable[[Tensor, float], Tensor]] = {  # each maps float images [n, c, h, w] in 0 … 1
    "shift": partial(_move, knob="shift"),
    "rotation": partial(_move, knob="rotation"),
    "scale": partial(_move, knob="scale"),
    "blur": _blur,
    "noise": _noise,
    "contrast": _contrast,
    "inversion": lambda images, by: images.lerp(1 - images, by),
    "stroke": _stroke,
}


def corrupt(images: Tensor, kind: str, severity: int) -> Tensor:
    """Return uint8 images [n, c, h, w] corrupted by a kind of `CORRUPTIONS`, at a severity of 1 to 5."""
    found = APPLY[kind](to_float(images), CORRUPTIONS[kind].amounts[severity - 1])
    return (found.clamp(0, 1) * 255).round().to(torch.uint8)


def meaningless(images: Tensor) -> dict[str, Tensor]:
    """Return as many images, of the same shape, that show none of the classes, by kind; uint8 [n, c, h, w]."""
    random = torch.Generator().manual_seed(0)
    count, channels, height, width = images.shape
    order = torch.rand(count, height * width, generator=random).argsort(dim=1).view(count, 1, -1)
    scrambled = images.flatten(2).gather(2, order.expand(-1, channels, -1)).view_as(images)
    stripes = (torch.arange(width) // (2 + torch.arange(count).view(-1, 1) % 6) % 2 * 255).to(torch.uint8)
    return {
        "one gray": torch.arange(count)
        .mul(255)
        .floor_divide(count)
        .to(torch.uint8)
        .view(-1, 1, 1, 1)
        .expand_as(images),
        "noise": torch.randint(256, images.shape, dtype=torch.uint8, generator=random),
        "stripes": stripes.view(count, 1, 1, width).expand_as(images),
        "pixels shuffled": scrambled,
        "two images in one": torch.maximum(images, images.roll(1, dims=0)),
    }
