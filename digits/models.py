"""The networks, and the file that holds a trained one.

Every network takes float32 images [n, 1, 28, 28] with pixels in 0 … 1 and gives logits [n, classes]. Normalisation is
its first layer, so that training, evaluation and the exported files cannot disagree about it.

To add one: write a class here and name it in `NETWORKS`. Its arguments after `classes` are its knobs, of the types that
stand there, and the values are a section of its name under `model` in params.yaml.
"""

import inspect
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, create_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn import functional

from digits.command import UserError
from digits.datasets import SIDE
from digits.distributed import BatchNorm, Dropout
from digits.files import SEAL, is_intact, seal, write_bytes
from digits.params import PATH, Count, Section, Share
from digits.params import check as check_section

Cropping = Annotated[int, Field(ge=0, le=8)]  # pixels


class Normalize(nn.Module):
    """(pixel - mean) / std, with the training split's statistics kept in the file of the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Crop(nn.Module):
    """Cut off a margin of so many pixels."""

    def __init__(self, margin: int) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, images: Tensor) -> Tensor:
        inner = slice(self.margin, SIDE - self.margin)
        return images[:, :, inner, inner]


class CNN(nn.Sequential):
    """A small convolutional network: crop, 5x5, pool, then 3x3 each, pool, one hidden layer.

    Pooling comes before batch norm and ReLU (they commute with it or nearly so) because that is a quarter of their
    work, and convolutions are unpadded for the same reason: a digit has a black margin. No bias where batch norm
    follows, which would take it out again.
    """

    def __init__(
        self,
        classes: int,
        crop: Cropping,
        channels: Annotated[list[Count], Field(min_length=2, max_length=6)],
        hidden: Count,
        dropout: Share,
    ) -> None:
        layers: list[nn.Module] = [Crop(crop)]
        before, side, last = 1, SIDE - 2 * crop, len(channels) - 1
        room = ((side - 4) // 2 - 2) // 2 + 1  # 5x5, pool, then 2 pixels a convolution, of which the last pool needs 2
        if len(channels) > room:
            raise UserError(
                f"{PATH}: model.cnn.channels: {len(channels)} convolutions leave nothing of {side} x {side} pixels; "
                f"with model.cnn.crop {crop} there is room for {room}"
            )
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


class Residual(nn.Module):
    """Two padded 3x3 convolutions whose result is added to what came in (He et al., 2016, CVPR)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            BatchNorm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            BatchNorm(width),
        )

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(images + self.change(images))


class ResNet(nn.Sequential):
    """A residual network: for each width a convolution and a pool, then so many residual blocks; at last the mean."""

    def __init__(
        self,
        classes: int,
        crop: Cropping,
        channels: Annotated[list[Count], Field(min_length=1, max_length=3)],
        blocks: Count,
        dropout: Share,
    ) -> None:
        layers: list[nn.Module] = [Crop(crop)]
        before, side = 1, SIDE - 2 * crop
        for width in channels:
            kernel, padding = (5, 0) if before == 1 else (3, 1)
            layers += [nn.Conv2d(before, width, kernel, padding=padding, bias=False), nn.MaxPool2d(2)]
            layers += [BatchNorm(width), nn.ReLU(), *(Residual(width) for _ in range(blocks))]
            before, side = width, (side - kernel + 1 + 2 * padding) // 2
        super().__init__(*layers, nn.AvgPool2d(side), nn.Flatten(), Dropout(dropout), nn.Linear(before, classes))


class MLP(nn.Sequential):
    """Fully connected layers with ReLU between: with hidden = [128, 64] the network of the classic notebook."""

    def __init__(self, classes: int, hidden: list[Count], dropout: Share) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        before = SIDE * SIDE
        for width in hidden:
            layers += [nn.Linear(before, width), nn.ReLU(), Dropout(dropout)]
            before = width
        super().__init__(*layers, nn.Linear(before, classes))


class Linear(nn.Sequential):
    """One weight for each pixel and class (softmax regression): the baseline that any other network has to beat."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(SIDE * SIDE, classes))


class Ensemble(nn.ModuleList):
    """Networks that are trained side by side on the same batches, and of which the mean of the logits counts.

    In training it gives the logits of each, [n, members, classes], so that each learns as if it were alone.
    """

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.stack([member(images) for member in self], dim=1)
        return logits if self.training else logits.mean(dim=1)


class Shifted(nn.Module):
    """Test-time augmentation: outside training, the mean of the logits of an image and of it shifted four ways."""

    def __init__(self, network: nn.Module, shift: int) -> None:
        super().__init__()
        self.network, self.shift = network, shift

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        if self.training:
            return logits
        padded = functional.pad(images, [self.shift] * 4, mode="replicate")  # the edge is black, whatever that is now
        for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
            rows, columns = (slice(place * self.shift, place * self.shift + SIDE) for place in (down, right))
            logits = logits + self.network(padded[:, :, rows, columns])
        return logits / 5


NETWORKS: dict[str, type[nn.Module]] = {"cnn": CNN, "resnet": ResNet, "mlp": MLP, "linear": Linear}


def check(sections: dict[str, dict[str, Any]]) -> None:
    """Check the knobs of all networks, each a section under `model` in params.yaml, against the arguments of its class.

    Raises UserError with one line for each fault.
    """
    faults = []
    for name, section in sections.items():
        if name not in NETWORKS:
            faults.append(f"{PATH}: model.{name}: unknown network; known in digits/models.py: {', '.join(NETWORKS)}")
            continue
        arguments = list(inspect.signature(NETWORKS[name]).parameters.values())[1:]
        fields: dict[str, Any] = {argument.name: (argument.annotation, ...) for argument in arguments}
        try:
            check_section(create_model(name, __base__=Section, **fields), section, PATH, ("model", name))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))


def build(name: str, classes: int, knobs: dict[str, Any], mean: float = 0.0, std: float = 1.0) -> nn.Module:
    """Give a new network with freshly drawn weights: normalisation by `mean` and `std`, then `NETWORKS[name]`.

    `knobs` are the network's own (its section under `model` in params.yaml), and `members`, of which more than 1 make
    an ensemble, and `tta_shift`, which makes it `Shifted`. Weights are drawn from torch's global generator. Raises
    UserError if the knobs contradict each other.
    """
    own = dict(knobs)
    count, shift = own.pop("members", 1), own.pop("tta_shift", 0)
    members = [NETWORKS[name](classes=classes, **own) for _ in range(count)]
    network = Ensemble(members) if count > 1 else members[0]
    return nn.Sequential(Normalize(mean, std), Shifted(network, shift) if shift else network)


def count_parameters(network: nn.Module) -> int:
    """Give the number of trained values."""
    return sum(parameter.numel() for parameter in network.parameters())


@dataclass(frozen=True)
class Description:
    """What the file of a model says about it: enough to build the network again and to know how it was trained.

    `classes` are the names of the outputs, `knobs` the network's own, `training` the knobs of params.yaml that shaped
    the weights, `data` the MD5 of each file that they were learned from, `code` one MD5 of all source files that took
    part. Which run and which commit made it is not in it, since that differs between equal files: `digits.provenance`
    looks it up.
    """

    name: str
    classes: list[str]
    knobs: dict[str, Any]
    training: dict[str, Any]
    data: dict[str, str]
    code: str


def save(network: nn.Module, description: Description, path: Path) -> None:
    """Write weights, description and a checksum as one safetensors file, whole or not at all."""
    tensors = {key: value.contiguous().cpu() for key, value in network.state_dict().items()}
    # Exactly one metadata key: safetensors writes several in a random order, and equal models must be equal bytes.
    metadata = {"model": json.dumps({**asdict(description), "md5": SEAL}, sort_keys=True)}
    write_bytes(path, seal(serialize(tensors, metadata)))


def load(path: Path) -> tuple[nn.Module, Description]:
    """Read a file written by `save`: the network in evaluation mode on the CPU, and its description.

    Raises UserError if the file is missing, damaged or not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["model"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dictionary
        if not is_intact(path.read_bytes(), content.pop("md5")):
            raise ValueError("its content is not that of its checksum")
        description = Description(**content)
        network = build(description.name, len(description.classes), description.knobs)
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a model of this project, or damaged ({reason}); `dvc repro` makes it") from None
    return network.eval(), description
