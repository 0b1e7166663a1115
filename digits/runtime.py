"""Where tensors are computed and what makes a computation repeatable: device, threads, seeded generators."""

import hashlib
import os

import torch

from digits.command import UserError


def prepare(device: str, threads: int) -> torch.device:
    """Turn on deterministic algorithms, fix the thread count, and give the device, the best one for "auto".

    Sums are grouped by thread, so that results differ in the last bits between thread counts: hence a knob, not the
    number of cores. Raises UserError if the device is not there.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True) less 1.1 s of imports
    # A debugging aid that comes with it and costs 16 % of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # missing from the stubs
    torch.set_num_threads(threads)
    available = [name for name in ("cuda", "mps") if getattr(torch, name).is_available()] + ["cpu"]
    if device == "auto":
        device = available[0]
    if device not in available:
        raise UserError(
            f"params.yaml: runtime.device: {device} is not available on this machine (allowed here: "
            f"{', '.join(['auto', *available])})"
        )
    return torch.device(device)


def derive(seed: int, purpose: str) -> int:
    """Give a 63-bit seed for one purpose, so that a new random draw elsewhere changes nothing here."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """Give a CPU generator for one purpose; drawn on the CPU, random numbers are the same for every device."""
    return torch.Generator().manual_seed(derive(seed, purpose))
