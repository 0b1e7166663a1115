"""Where tensors are computed and what makes a computation repeatable: device, threads, seeded generators."""

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from digits.command import UserError

# One set of kernels for every x86-64 processor with AVX2. Each library reads its variable at its first operation.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "COMPATIBLE",  # matrix products: MKL's only branch that Intel's and other processors share
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def prepare(device: str, threads: int, reproducibility: str) -> torch.device:
    """Turn on deterministic algorithms, fix the thread count, and give the device, the best one for "auto".

    Sums are grouped by thread, so that results differ in the last bits between thread counts: hence a knob, not the
    number of cores. With `reproducibility` "portable", results are the same bits on every x86-64 processor with AVX2;
    that is for the CPU only ("auto" takes it), and has to be called before the process's first tensor operation.
    Raises UserError if the device is not there, or the processor cannot give portable results.
    """
    if reproducibility == "portable":
        device = _portable(device)
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


def _portable(device: str) -> str:
    if device not in ("auto", "cpu"):
        raise UserError(
            f"params.yaml: runtime.reproducibility: portable is for the CPU, not for {device}: set runtime.device to "
            "cpu or auto, or this to machine"
        )
    able = torch.cpu.get_capabilities()
    if not (able.get("avx2") and able.get("fma3")):  # asked first: MKL and PyTorch would crash, not complain
        raise UserError(
            "params.yaml: runtime.reproducibility: portable needs an x86-64 processor with AVX2 and FMA, which this "
            "machine lacks: set it to machine"
        )
    os.environ.update(PORTABLE)
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        raise RuntimeError("tensors were computed before runtime.prepare was called")
    return "cpu"


def precision_of(choice: str, device: torch.device, reproducibility: str) -> torch.dtype:
    """Give the type in which products are computed: "fp32", "bf16", or for "auto" the fastest that costs no accuracy.

    That is bfloat16 where the device has it in hardware: processors with AVX-512 BF16 or AMX, GPUs since Ampere.
    Emulated it is slower than float32, and portable bits cannot have it.
    """
    if choice != "auto":
        return PRECISIONS[choice]
    if device.type == "cuda":
        return PRECISIONS["bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"]
    able = torch.cpu.get_capabilities() if device.type == "cpu" and reproducibility == "machine" else {}
    return PRECISIONS["bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"]


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Give a context in which networks compute their products in `precision`; it can be entered again and again."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


def environment(device: torch.device, precision: torch.dtype) -> dict[str, str]:
    """Give what the last bits of a result depend on besides code, params and data."""
    packages = ("numpy", "matplotlib", "safetensors", "onnx", "onnxscript", "onnxruntime", "dvc", "mlflow")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(torch.get_num_threads()),
        "precision": str(precision).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,  # with the build: that for a GPU may round otherwise
        **{name: metadata.version(name) for name in packages},
    }


def _processor() -> str:
    """Give the processor's name with family and model, which a virtual machine's short name leaves out."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    return f"{facts.get('model name', '?')} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Give the state of torch's global generators: dropout draws from that of its device."""
    states = {"cpu": torch.get_rng_state()}
    return states if device.type == "cpu" else states | {device.type: torch.get_device_module(device).get_rng_state()}


def restore_random_state(states: dict[str, torch.Tensor]) -> None:
    """Put torch's global generators into the states that `random_state` gave."""
    for kind, state in states.items():
        (torch if kind == "cpu" else torch.get_device_module(kind)).set_rng_state(state)


def derive(seed: int, purpose: str) -> int:
    """Give a 63-bit seed for one purpose, so that a new random draw elsewhere changes nothing here."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """Give a CPU generator for one purpose; drawn on the CPU, random numbers are the same for every device."""
    return torch.Generator().manual_seed(derive(seed, purpose))
