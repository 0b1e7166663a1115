"""One training in several processes, on one machine or many: the only user of torch.distributed.

Every process has the whole network and works on its share of each batch. Random numbers are drawn for the whole batch
everywhere, batch norm sums over the whole batch, and gradients are summed: so the result is that of one process, up to
the order in which numbers are added. With one process all of this does nothing.

`runtime.processes` in params.yaml starts that many on this machine. For more machines, the environment variable
DIGITS_TORCHRUN adds torchrun's own arguments; each machine runs `python -m stages.train` with the same files:

    DIGITS_TORCHRUN="--nnodes 1:2 --rdzv-backend c10d --rdzv-endpoint 10.0.0.1:29400" python -m stages.train

torchrun's own variables (PET_NNODES and others, as Kubeflow sets them) do the same. Where another launcher has started
the processes (torchrun by hand, SLURM's srun, Kubeflow with a process per machine), they find each other as it says.

When a process or its machine dies, torchrun restarts the others, and they resume from the last checkpoint. That is a
file: machines that are to take over from each other share the folder.
"""

import io
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch import distributed as dist

from digits.errors import UserError, shown

ARGUMENTS = "DIGITS_TORCHRUN"
FAULT = "DIGITS_FAULT"  # names the file in which a worker reports a user's mistake to its launcher
RESTARTS = 3
SILENCE = timedelta(seconds=60)  # after which another process is taken for dead

_batch = 0


def is_launcher(processes: int) -> bool:
    """Say whether this process is to launch others: several are wanted, and it was not itself launched."""
    if os.environ.get("PET_NPROC_PER_NODE", "1") != "1":  # also where Kubeflow has given each machine a rank
        return "TORCHELASTIC_RUN_ID" not in os.environ
    if os.environ.get("PET_NNODES", "1") not in ("1", "1:1") or os.environ.get(ARGUMENTS, "").strip():
        return "RANK" not in os.environ  # also where srun has started one for each machine
    return processes > 1 and not is_launched()


def is_launched() -> bool:
    """Say whether another process has started this one as one of several."""
    return "RANK" in os.environ or os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def launch(processes: int, module: str) -> NoReturn:
    """Run `python -m module` in so many processes under torchrun, and exit when it ends.

    Raises UserError with a worker's own, or if torchrun does not know its arguments, or if workers died once too often.
    """
    arguments = shlex.split(os.environ.get(ARGUMENTS, ""))
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    own = {"NPROC_PER_NODE": processes, "MAX_RESTARTS": RESTARTS}
    defaults = [f"--{key.lower()}={value}" for key, value in own.items() if f"PET_{key}" not in os.environ]
    meets = any(word.startswith(("--rdzv", "--master")) for word in arguments)
    meets |= bool(os.environ.keys() & {"PET_RDZV_ENDPOINT", "PET_MASTER_ADDR"})
    if not meets:
        defaults.append("--standalone")  # they meet at a free port of this machine
    with redirect_stderr(io.StringIO()) as said:
        try:
            parsed = run.parse_args([*defaults, *arguments, "--module", module])
        except SystemExit:
            fault = said.getvalue().rpartition("error: ")[2].strip()
            raise UserError(f"{ARGUMENTS}: not arguments of torchrun: {fault}") from None
    if not meets and parsed.nnodes not in ("1", "1:1"):
        where = "--rdzv-endpoint (PET_RDZV_ENDPOINT) or --master-addr (PET_MASTER_ADDR)"
        raise UserError(f"{ARGUMENTS}: {parsed.nnodes} machines need an address where they meet: {where}")
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # its reports would bury ours
    # A new meeting point for each restart: in an old one, processes find the addresses of the dead.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or torchrun announces doing so; params.yaml has the last word
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "fault")
        os.environ[FAULT] = str(told)
        try:
            run.run(parsed)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            fault = f"exited with code {failure.exitcode} after {parsed.max_restarts} restarts, see above"
            raise UserError(f"process {rank} {fault}; run it again to resume from the last checkpoint") from None
        if told.exists():
            raise UserError(told.read_text(encoding="utf-8"))
    raise SystemExit(0)


@contextmanager
def reported_once() -> Iterator[None]:
    """Have a user's mistake reported by one of the launched processes of a machine: all of them meet it."""
    try:
        yield
    except UserError:
        if is_launched() and os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) != "0":
            raise SystemExit(1) from None
        raise


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the other launched processes, if this one was launched, while the block runs."""
    if not is_launched():
        yield
        return
    if "RANK" not in os.environ:
        os.environ.update(_slurm())
    if missing := [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(f"RANK: is set, but not {missing[0]}, as who launches several processes does; unset it")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not (value := os.environ.get(name, "0")).isdecimal():
            raise UserError(f"{name}: {shown(value)}: must be a number, as who launches several processes sets it")
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=SILENCE)
        yield
    except UserError as error:  # all processes get here, since all see the same figures
        if FAULT not in os.environ:  # another launcher than ours
            raise
        if is_leader():
            Path(os.environ[FAULT]).write_text(str(error), encoding="utf-8")
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        what = "all restart" if "TORCHELASTIC_RUN_ID" in os.environ else "run it again to resume"
        print(f"process {os.environ['RANK']}: lost another process; {what}", file=sys.stderr, flush=True)
        os._exit(1)  # at once: a clean exit would wait for the others
    dist.destroy_process_group()


def _slurm() -> dict[str, str]:
    """Return what torch asks of the environment, from what SLURM's srun says there. Raises UserError if it cannot."""
    found = os.environ
    hosts = found.get("SLURM_STEP_NODELIST", "")
    if found.get("SLURM_STEP_NUM_NODES", "1") == "1":
        hosts = "127.0.0.1"
    elif "[" in hosts:  # as in node[1-4]
        try:
            hosts = subprocess.run(
                ["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True
            ).stdout
        except (OSError, subprocess.CalledProcessError):
            raise UserError(f"SLURM_STEP_NODELIST: {hosts}: scontrol cannot expand it; set MASTER_ADDR") from None
    numbers = [found.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    port = 20_000 + int("".join(one for one in numbers if one.isdecimal()) or "0") % 20_000
    return {
        "RANK": found.get("SLURM_PROCID", ""),
        "WORLD_SIZE": found["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": found.get("SLURM_LOCALID", ""),
        "MASTER_ADDR": found.get("MASTER_ADDR") or re.split(r"[,\s]", hosts)[0],
        "MASTER_PORT": found.get("MASTER_PORT") or str(port),
    }


def _die_with(launcher: int) -> None:
    """Exit when the launcher is gone, which had no time to stop its workers if it was killed."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(1)


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_leader() -> bool:
    """Say whether this is the one process that writes and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


def begin_batch(count: int) -> slice:
    """Begin a batch of `count` images, and return the part of it that is this process's."""
    global _batch  # layers are called without it
    _batch = count
    return part()


def batch() -> int:
    """Return the number of images in the current batch, over all processes."""
    return _batch


def part() -> slice:
    """Return the part of the current batch that is this process's."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return slice(rank * _batch // size(), (rank + 1) * _batch // size())


def agree(state: Any) -> Any:
    """Return the leader's value in every process, with its tensors on the CPU."""
    if size() == 1:
        return state
    box = [state if is_leader() else None]
    dist.broadcast_object_list(box, device=torch.device("cpu") if dist.get_backend() == "gloo" else None)
    return box[0]


def sum_gradients(network: nn.Module) -> None:
    """Sum the gradients of all processes, in place: in one message, since messages cost more than bytes."""
    if size() == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, piece in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))


def of_batch(values: Tensor) -> Tensor:
    """Return one value for each image of the current batch, of which this process has those of its part."""
    if size() == 1:
        return values
    whole = values.new_zeros(batch())
    whole[part()] = values
    dist.all_reduce(whole)
    return whole


class Sum(torch.autograd.Function):
    """Sum a tensor over all processes, and its gradient on the way back."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *slopes: Tensor) -> Tensor:
        return Sum.forward(_, slopes[0].contiguous())
