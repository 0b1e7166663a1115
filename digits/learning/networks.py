"""The networks.

Every network takes float32 images [n, channels, side, side] with pixels in 0 … 1 and returns logits [n, classes].
Normalization is its first layer, so that training, evaluation and the exported files cannot disagree about it.

To add one: write a class here and name it in `NETWORKS`. Its arguments after `classes` and `shape`, that of an image,
are its knobs, checked against their annotations; the values are a section of its name under `model` in params.yaml.
"""

import inspect
from typing import Annotated, Any

import torch
from pydantic import Field, create_model
from torch import Tensor, nn
from torch.nn import functional

from digits.datasets import LARGEST, MNIST_SHAPE, Shape
from digits.errors import UserError
from digits.learning.layers import BatchNorm, Crop, Dropout, Normalize, Residual
from digits.params.reading import Section, Share, faults_of
from digits.params.training import ModelParams

Width = Annotated[int, Field(ge=1, le=4096)]
Cropping = Annotated[int, Field(ge=0, le=8)]  # pixels


class CNN(nn.Sequential):
    """A small convolutional network: crop, 5x5, pool, then 3x3 each, pool, one hidden layer.

    Pooling comes before batch norm and ReLU (which commute with it, or nearly so) because that leaves them a quarter
    of the work. Convolutions are unpadded for the same reason: a digit has a black margin. No bias before batch norm,
    which would cancel it.
    """

    def __init__(
        self,
        classes: int,
        shape: Shape,
        crop: Cropping,
        channels: Annotated[list[Width], Field(min_length=2, max_length=6)],
        hidden: Width,
        dropout: Share,
    ) -> None:
        layers: list[nn.Module] = [Crop(crop)]
        before, side, last = shape.channels, shape.side - 2 * crop, len(channels) - 1
        room = ((side - 4) // 2 - 2) // 2 + 1  # 5x5, pool, then 2 pixels a convolution, of which the last pool needs 2
        if len(channels) > room:
            limit = f"at most {max(0, room)} convolutions with model.cnn.crop {crop} and images of {shape}"
            instead = "" if room > 1 else "; a smaller crop, or model.name resnet or mlp, takes smaller images"
            found = f"not {len(channels)}: nothing of the image is left"
            raise UserError(f"model.cnn.channels: must be {limit}, {found}{instead}")
        for place, width in enumerate(channels):
            kernel = 5 if place == 0 else 3
            layers.append(nn.Conv2d(before, width, kernel, bias=False))
            side -= kernel - 1
            if place in (0, last):
                layers.append(nn.MaxPool2d(2))
                side //= 2
            layers += [BatchNorm(width), nn.ReLU()]
            before = width
        layers += [nn.Flatten(), nn.Linear(before * side * side, hidden, bias=False), BatchNorm(hidden), nn.ReLU()]
        super().__init__(*layers, Dropout(dropout), nn.Linear(hidden, classes))


class ResNet(nn.Sequential):
    """A residual network: for each width a convolution, a pool and residual blocks; then global average pooling."""

    def __init__(
        self,
        classes: int,
        shape: Shape,
        crop: Cropping,
        channels: Annotated[list[Width], Field(min_length=1, max_length=3)],
        blocks: Annotated[int, Field(ge=1, le=32)],
        dropout: Share,
    ) -> None:
        layers: list[nn.Module] = [Crop(crop)]
        before, side = shape.channels, shape.side - 2 * crop
        for place, width in enumerate(channels):
            kernel, padding = (3, 1) if place else (5, 0)
            layers += [nn.Conv2d(before, width, kernel, padding=padding, bias=False), nn.MaxPool2d(2)]
            layers += [BatchNorm(width), nn.ReLU(), *(Residual(width) for _ in range(blocks))]
            before, side = width, (side - kernel + 1 + 2 * padding) // 2
            if side < 1:
                limit = f"fewer widths or a smaller model.resnet.crop with images of {shape}"
                raise UserError(f"model.resnet.channels: must have {limit}: nothing of the image is left")
        super().__init__(*layers, nn.AvgPool2d(side), nn.Flatten(), Dropout(dropout), nn.Linear(before, classes))


class MLP(nn.Sequential):
    """Fully connected layers with ReLU: with hidden = [128, 64] the network of the classic notebook."""

    def __init__(
        self, classes: int, shape: Shape, hidden: Annotated[list[Width], Field(max_length=32)], dropout: Share
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        before = shape.channels * shape.side**2
        for width in hidden:
            layers += [nn.Linear(before, width), nn.ReLU(), Dropout(dropout)]
            before = width
        super().__init__(*layers, nn.Linear(before, classes))


class Linear(nn.Sequential):
    """One weight per pixel and class (softmax regression): the baseline that any other network has to beat."""

    def __init__(self, classes: int, shape: Shape) -> None:
        super().__init__(nn.Flatten(), nn.Linear(shape.channels * shape.side**2, classes))


class Ensemble(nn.ModuleList):
    """Networks that are trained side by side on the same batches and answer with the mean of their logits.

    In training it returns the logits of each, [n, members, classes], so that each learns as if it were alone.
    """

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.stack([member(images) for member in self], dim=1)
        return logits if self.training else logits.mean(dim=1)


class Shifted(nn.Module):
    """Test-time augmentation: outside training, the mean logits of an image and of it shifted four ways."""

    def __init__(self, network: nn.Module, shift: int) -> None:
        super().__init__()
        self.network, self.shift = network, shift

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        if self.training:
            return logits
        side = images.shape[-1]
        padded = functional.pad(images, [self.shift] * 4, mode="replicate")  # the edge is background, normalized or not
        for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
            rows, columns = (slice(place * self.shift, place * self.shift + side) for place in (down, right))
            logits = logits + self.network(padded[:, :, rows, columns])
        return logits / 5


NETWORKS: dict[str, type[nn.Module]] = {"cnn": CNN, "resnet": ResNet, "mlp": MLP, "linear": Linear}


def check(model: ModelParams, shape: Shape | None = None) -> list[str]:
    """Return what is wrong with the knobs of all networks, each a section under `model`, a line for each fault.

    The chosen network is built without memory for its weights, which shows whether its knobs go together, and with the
    shape of an image; without one, with the largest that there may be.
    """
    faults = []
    for name, section in model.networks().items():
        if name not in NETWORKS:
            faults.append(f"model.{name}: unknown network; known in digits/learning/networks.py: {', '.join(NETWORKS)}")
            continue
        arguments = list(inspect.signature(NETWORKS[name]).parameters.values())[2:]
        fields: dict[str, Any] = {argument.name: (argument.annotation, ...) for argument in arguments}
        faults += faults_of(create_model(name, __base__=Section, **fields), section, ("model", name))
    if not faults and model.name in model.networks():
        try:
            with torch.device("meta"):
                NETWORKS[model.name](classes=2, shape=shape or Shape(3, LARGEST), **model.networks()[model.name])
        except UserError as error:
            faults.append(str(error))
    return faults


def build(
    name: str,
    classes: int,
    knobs: dict[str, Any],
    shape: Shape = MNIST_SHAPE,
    mean: float | list[float] | None = None,
    std: float | list[float] | None = None,
) -> nn.Module:
    """Return a new network with random weights: normalization by `mean` and `std`, then `NETWORKS[name]`.

    `knobs` are the network's own (its section under `model` in params.yaml), and `members`, of which more than 1 make
    an ensemble, and `tta_shift`, which makes it `Shifted`. Weights are drawn from torch's global generator.
    """
    own = dict(knobs)
    count, shift = own.pop("members", 1), own.pop("tta_shift", 0)
    if mean is None or std is None:  # to be loaded
        mean, std = (0.0, 1.0) if shape.channels == 1 else ([0.0] * shape.channels, [1.0] * shape.channels)
    members = [NETWORKS[name](classes=classes, shape=shape, **own) for _ in range(count)]
    network = Ensemble(members) if count > 1 else members[0]
    return nn.Sequential(Normalize(mean, std), Shifted(network, shift) if shift else network)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(parameter.numel() for parameter in network.parameters())
