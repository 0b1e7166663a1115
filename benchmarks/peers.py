"""What others train on MNIST, rewritten here with exactly their settings, for comparison with the pipeline's recipes.

`tutorial` is the notebook that many start with: fully connected 784-128-64-10 on images in -1 … 1, batches of 64, 15
epochs. It exists with SGD (learning rate 0.003, momentum 0.9) and with Adam at its default rate of 0.001. This is the
one with Adam, which is mostly ahead in the first epochs (validation, 3 seeds) and ends the same.

`example` is examples/mnist of the PyTorch project: two 3x3 convolutions, Adadelta, its rate times 0.7 after each epoch,
batches of 64, 14 epochs. The original shuffles only where there is an accelerator; here it always does, which is in its
favor.

Like the originals, both use torchvision's transforms, image by image by way of PIL, and a DataLoader in the training's
own process (two workers made the tutorial slower on two cores). Only the images differ: they are the pipeline's
training split, so that all learn from the same ones.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

from benchmarks.probe import Probe
from digits.images.splits import Split

BATCH = 64


@dataclass(frozen=True)
class Peer:
    """A recipe of others. `mean` and `std` normalize pixels in 0 … 1; `gamma` multiplies the rate after each epoch."""

    mean: float
    std: float
    network: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    gamma: float
    epochs: int


def _tutorial() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
        nn.LogSoftmax(dim=1),
    )


def _example() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
        nn.LogSoftmax(dim=1),
    )


PEERS = {
    "tutorial": Peer(0.5, 0.5, _tutorial, lambda weights: torch.optim.Adam(weights, lr=1e-3), gamma=1.0, epochs=15),
    "example": Peer(
        0.1307, 0.3081, _example, lambda weights: torch.optim.Adadelta(weights, lr=1.0), gamma=0.7, epochs=14
    ),
}


class Images(Dataset[tuple[Tensor, int]]):
    """A split as torchvision's MNIST returns it: each image goes through PIL and transforms, when it is asked for."""

    def __init__(self, split: Split, mean: float, std: float) -> None:
        self._images, self._labels = split.images[:, 0], split.labels
        self._transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((mean,), (std,))])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Tensor = self._transform(Image.fromarray(self._images[index].numpy()))
        return image, int(self._labels[index])


def steps(count: int) -> int:
    """Return the number of steps in an epoch of `count` images."""
    return -(-count // BATCH)


def fit(peer: Peer, network: nn.Module, learned: Split, device: torch.device, probe: Probe) -> None:
    """Train `network`, made by `peer.network`, in place until the peer's last epoch or the end of the probe's budget.

    Random numbers come from torch's global generator: seed it before the network is made.
    """
    with tqdm(total=peer.epochs * steps(len(learned)), unit="step", disable=None, dynamic_ncols=True) as bar:
        probe.resume()
        network.to(device)
        loader = DataLoader(Images(learned, peer.mean, peer.std), batch_size=BATCH, shuffle=True)
        optimizer = peer.optimizer(network.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=peer.gamma)
        for _ in range(peer.epochs):
            network.train()
            probe.resume()
            for images, labels in loader:
                optimizer.zero_grad()
                functional.nll_loss(network(images.to(device)), labels.to(device)).backward()
                optimizer.step()
                bar.update()
                probe.due()
                if probe.over:
                    return
            schedule.step()
