"""Networks that are trained side by side on the same batches and answer together.

On a CPU each member learns on threads of its own: two on one thread each do more work than one after the other on two
threads each, since small operations hardly gain by a second thread.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from digits.learning import distributed, layers

Map = Callable[..., Iterable[Any]]


class Ensemble(nn.ModuleList):
    """Networks whose answer is the mean of their logits.

    In training it returns the logits of each, [n, members, classes], so that each learns as if it were alone.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return torch.stack([member(images) for member in self], dim=1).mean(dim=1)
        logits: Tensor = _SideBySide.apply(list(self), images, next(self.parameters()))
        return logits


class _SideBySide(torch.autograd.Function):
    """The logits of several networks, whose way back is threaded as well.

    Without it, autograd takes the way back of all of them in the one thread that asks for it.
    """

    @staticmethod
    def forward(context: Any, members: list[nn.Module], images: Tensor, _: Tensor) -> Tensor:
        """Return [n, members, classes]. The last argument needs a gradient, or autograd would never come back here."""
        kind = images.device.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

        def logits_of(member: nn.Module, seed: int) -> Tensor:
            with torch.enable_grad(), torch.autocast(kind, dtype, enabled), layers.drawing(seed, images.device):
                found: Tensor = member(images)
            return found

        context.map = _map(len(members), images.device)
        seeds = torch.randint(2**62, [len(members)]).tolist()  # of dropout: threads would race for one generator
        context.logits = list(context.map(logits_of, members, seeds))
        return torch.stack([logits.detach() for logits in context.logits], dim=1)

    @staticmethod
    def backward(context: Any, *slopes: Tensor) -> tuple[None, None, None]:
        """Add to the gradients of all members."""
        list(context.map(Tensor.backward, context.logits, slopes[0].unbind(dim=1)))
        return None, None, None


def _map(members: int, device: torch.device) -> Map:
    """Return a `map` for so many members: threaded, unless a GPU or other processes would make them wait in line."""
    workers = min(members, torch.get_num_threads())
    if device.type != "cpu" or workers == 1 or distributed.size() > 1:
        return map
    return _pool(workers, torch.get_num_threads() // workers).map


@cache
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """Return so many threads, each of which computes with `threads` of its own."""
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))
