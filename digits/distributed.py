"""One training in several processes, on one machine or on many: the only user of torch.distributed.

Every process has the whole network and works on its share of each batch. What is drawn at random is drawn for the whole
batch everywhere, batch norm sums over the whole batch, and gradients are added up: so the result is that of one
process, up to the order in which numbers are added. With one process all of this does nothing.

`runtime.processes` in params.yaml starts that many on this machine. The environment variable DIGITS_TORCHRUN adds
arguments of torchrun's own, for more machines; each of them runs `python -m stages.train`, with the same files:

    DIGITS_TORCHRUN="--nnodes 1:2 --rdzv-backend c10d --rdzv-endpoint 10.0.0.1:29400" python -m stages.train

When a process dies, or its machine, torchrun starts the others again, and they go on from the last checkpoint. That is
a file: machines that shall take over from each other share the folder.
"""

import io
import logging
import math
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from digits.command import UserError

ARGUMENTS = "DIGITS_TORCHRUN"
FAULT = "DIGITS_FAULT"  # names the file in which a worker tells its launcher of a user's mistake
RESTARTS = 3
SILENCE = timedelta(seconds=60)  # without a word from another process, after which it is taken for dead

_batch = 0  # images in the current batch, over all processes


def launch(processes: int, module: str) -> None:
    """Where several processes are asked for, run `python -m module` in each under torchrun, and leave when it ends.

    Comes back where there is nothing to launch: one process is asked for, or this one was launched.
    Raises UserError with what a worker said, if its arguments are not torchrun's, or if workers died once too often.
    """
    arguments = shlex.split(os.environ.get(ARGUMENTS, ""))
    if "RANK" in os.environ or (processes == 1 and not arguments):
        return
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    defaults = ["--nproc-per-node", str(processes), "--max-restarts", str(RESTARTS)]
    if not any(word.startswith(("--rdzv", "--master")) for word in arguments):
        defaults.append("--standalone")  # they meet at a free port of this machine
    with redirect_stderr(io.StringIO()) as said:
        try:
            parsed = run.parse_args([*defaults, *arguments, "--module", module])
        except SystemExit:
            fault = said.getvalue().rpartition("error: ")[2].strip()
            raise UserError(f"{ARGUMENTS}: not arguments of torchrun: {fault}") from None
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # its reports would bury ours
    # A meeting point for each start: in one that outlives it, the new processes find the addresses of the dead.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or torchrun says that it does so; params.yaml has the last word
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "fault")
        os.environ[FAULT] = str(told)
        try:
            run.run(parsed)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise UserError(
                f"process {rank} ended with code {failure.exitcode}, after {parsed.max_restarts} new starts of all; "
                "what it said stands above. Started again, the training goes on from its last checkpoint"
            ) from None
        if told.exists():
            raise UserError(told.read_text(encoding="utf-8"))
    raise SystemExit(0)


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Be one of the processes that were launched, if this one was, while the block runs."""
    if "RANK" not in os.environ:
        yield
        return
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=SILENCE)
        yield
    except UserError as error:  # told once, by the launcher; all processes come here, since all see the same figures
        if is_leader():
            Path(os.environ[FAULT]).write_text(str(error), encoding="utf-8")
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        print(f"process {os.environ['RANK']}: another process is gone; all start again", file=sys.stderr, flush=True)
        os._exit(1)  # at once: on the way out, libraries would wait for the others
    dist.destroy_process_group()


def _die_with(launcher: int) -> None:
    """End this process when its launcher is gone, which by kill -9 has no time to end it."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(1)


def size() -> int:
    """Give the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_leader() -> bool:
    """Say whether this is the one process that writes and speaks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def begin_batch(count: int) -> slice:
    """Begin a batch of `count` images and give the part of it that is this process's."""
    global _batch  # layers are called without it
    _batch = count
    return _part()


def _part() -> slice:
    rank = dist.get_rank() if dist.is_initialized() else 0
    return slice(rank * _batch // size(), (rank + 1) * _batch // size())


def agree(state: Any) -> Any:
    """Give the leader's value to all; tensors come out on the CPU."""
    if size() == 1:
        return state
    box = [state if is_leader() else None]
    dist.broadcast_object_list(box, device=torch.device("cpu") if dist.get_backend() == "gloo" else None)
    return box[0]


def sum_gradients(network: nn.Module) -> None:
    """Add up the gradients of all processes, in place: one message, since a message costs more than its bytes."""
    if size() == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class _Sum(torch.autograd.Function):
    """Add up a tensor over all processes; so does the gradient on its way back."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *slopes: Tensor) -> Tensor:
        return _Sum.forward(_, slopes[0].contiguous())


class Dropout(nn.Module):
    """Leave out a share of the units at random (Srivastava et al., 2014, JMLR 15), drawn for the whole batch."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, units: Tensor) -> Tensor:
        if not self.training or not self.share:
            return units
        if size() == 1:
            return functional.dropout(units, self.share)
        kept = units.new_empty(_batch, *units.shape[1:]).bernoulli_(1 - self.share)[_part()]
        return units * kept.div_(1 - self.share)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm (Ioffe and Szegedy, 2015, ICML) over the whole batch, for any number of dimensions after the channels.

    torch's SyncBatchNorm does so on GPUs only.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def _check_input_dim(self, images: Tensor) -> None:
        pass

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or size() == 1:
            return super().forward(images)
        values = images.float()
        others = [place for place in range(values.ndim) if place != 1]
        count = _batch * math.prod(values.shape[2:])
        mean: Tensor = _Sum.apply(values.sum(others)) / count
        shape = [1, -1] + [1] * (values.ndim - 2)
        centred = values - mean.view(shape)
        variance: Tensor = _Sum.apply(centred.square().sum(others)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(images.dtype)
