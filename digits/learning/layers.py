"""The layers of which networks are made, beyond those of torch."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from digits.learning import distributed


class Normalize(nn.Module):
    """(pixel - mean) / std, with the training split's statistics kept among the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | list[float] = 0.0, std: float | list[float] = 1.0) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            of_channels = torch.tensor(value)
            self.register_buffer(name, of_channels.view(-1, 1, 1) if isinstance(value, list) else of_channels)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Crop(nn.Module):
    """Cut a margin of so many pixels off each side."""

    def __init__(self, margin: int) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, images: Tensor) -> Tensor:
        inner = slice(self.margin, images.shape[-1] - self.margin)
        return images[:, :, inner, inner]


class Dropout(nn.Module):
    """Drop a share of the units at random (Srivastava et al., 2014, JMLR 15), drawn for the whole batch."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, units: Tensor) -> Tensor:
        if not self.training or not self.share:
            return units
        if distributed.size() == 1:
            return functional.dropout(units, self.share)
        whole = units.new_empty(distributed.batch(), *units.shape[1:]).bernoulli_(1 - self.share)
        return units * whole[distributed.part()].div_(1 - self.share)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm (Ioffe and Szegedy, 2015, ICML) over the batch of all processes, for any number of dimensions.

    torch's SyncBatchNorm works on GPUs only.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def _check_input_dim(self, images: Tensor) -> None:
        pass

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or distributed.size() == 1:
            return super().forward(images)
        values = images.float()
        others = [place for place in range(values.ndim) if place != 1]
        count = distributed.batch() * math.prod(values.shape[2:])
        mean: Tensor = distributed.Sum.apply(values.sum(others)) / count
        shape = [1, -1] + [1] * (values.ndim - 2)
        centered = values - mean.view(shape)
        variance: Tensor = distributed.Sum.apply(centered.square().sum(others)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centered * scale.view(shape) + self.bias.view(shape)).to(images.dtype)


class Residual(nn.Module):
    """Two padded 3x3 convolutions whose result is added to their input (He et al., 2016, CVPR)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        one, other = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.change = nn.Sequential(one, BatchNorm(width), nn.ReLU(), other, BatchNorm(width))

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(images + self.change(images))


class Calibrated(nn.Module):
    """A network whose logits are divided by a temperature, as `evaluation.temperature` fits it."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits / self.temperature
