"""Where and how tensors are computed: device, threads, kernels, precision, environment."""

import ctypes
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from digits.errors import UserError
from digits.params.runtime import RuntimeParams

# One set of kernels for every x86-64 processor with AVX2. Each library reads its variable at its first operation.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "COMPATIBLE",  # matrix products: MKL's only branch that Intel's and other processors share
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _keep_memory() -> None:
    """Have glibc keep freed memory for the next step, and not return it to the system only to ask for it again.

    Otherwise a step of the recipe best waits for some 3,000 new pages, which is a tenth of its time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # not glibc
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 1 << 30)
    mallopt(mmap_threshold, 1 << 25)  # the largest that all versions take


def _check_threads(wanted: int) -> None:
    """Raise UserError if the environment keeps OpenMP from starting so many threads.

    With fewer than PyTorch asks for, it waits for ever, or groups sums in another way.
    """
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    if limit.strip().isdigit() and int(limit) < wanted:
        raise UserError(
            f"OMP_THREAD_LIMIT: {limit.strip()} is less than params.yaml: runtime.threads: {wanted}; "
            "unset it, or set runtime.threads to it, which gives other last bits"
        )
    if os.environ.get("OMP_DYNAMIC", "").strip().lower() == "true":
        raise UserError("OMP_DYNAMIC: true lets the number of threads change, and with it the result; unset it")


def prepare(p: RuntimeParams, device: str | None = None) -> torch.device:
    """Turn on deterministic algorithms, fix the thread count, and return the device, the best one for "auto".

    `device` overrides that of params.yaml. Sums are grouped by thread, so that results differ in the last bits between
    thread counts: hence a knob, not the number of cores. With `reproducibility: portable`, results are the same bits
    on every x86-64 processor with AVX2; that is for the CPU only ("auto" takes it), and must be called before the
    process's first tensor operation. Raises UserError if the device is missing, the processor cannot be portable, or
    OpenMP may not start so many threads.
    """
    _check_threads(p.threads)
    _keep_memory()
    device = device or p.device
    if p.reproducibility == "portable":
        device = _portable(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True) without its slow imports
    # A debugging aid that comes with it and costs a sixth of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # missing from the stubs
    torch.set_num_threads(p.threads)
    available = [name for name in ("cuda", "mps") if getattr(torch, name).is_available()] + ["cpu"]
    if device == "auto":
        device = available[0]
    if device not in available:
        allowed = ", ".join(["auto", *available])
        raise UserError(
            f"params.yaml: runtime.device: {device} is not available on this machine (allowed here: {allowed})"
        )
    return torch.device(device)


def _portable(device: str) -> str:
    where = "params.yaml: runtime.reproducibility: portable"
    if device not in ("auto", "cpu"):
        raise UserError(
            f"{where} is for the CPU, not for {device}; set runtime.device to cpu or auto, or this to machine"
        )
    able = torch.cpu.get_capabilities()
    if not (able.get("avx2") and able.get("fma3")):  # asked first: MKL and PyTorch would crash, not complain
        raise UserError(
            f"{where} needs an x86-64 processor with AVX2 and FMA, unlike this machine's; set it to machine"
        )
    os.environ.update(PORTABLE)
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        raise RuntimeError("tensors were computed before runtime.prepare was called")
    return "cpu"


def precision_of(p: RuntimeParams, device: torch.device) -> torch.dtype:
    """Return the type in which products are computed, for "auto" the fastest that costs no accuracy.

    That is bfloat16 where the device has it in hardware: processors with AVX-512 BF16 or AMX, GPUs since Ampere.
    Emulated, it is slower than float32, and it rules out portable bits.
    """
    if p.precision != "auto":
        return PRECISIONS[p.precision]
    if device.type == "cuda":
        return PRECISIONS["bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"]
    able = torch.cpu.get_capabilities() if device.type == "cpu" and p.reproducibility == "machine" else {}
    return PRECISIONS["bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"]


def name_of(precision: torch.dtype) -> str:
    """Return the name of a precision in params.yaml."""
    return next(name for name, dtype in PRECISIONS.items() if dtype == precision)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Return a reusable context in which networks compute their products in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


def environment(device: torch.device, precision: torch.dtype) -> dict[str, str]:
    """Return what the last bits of a result depend on besides code, params and data."""
    packages = ("numpy", "matplotlib", "safetensors", "onnx", "onnxscript", "onnxruntime", "dvc", "mlflow")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(torch.get_num_threads()),
        "precision": str(precision).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,  # with the build: one for a GPU may round differently
        **{name: metadata.version(name) for name in packages},
    }


def recorded(p: RuntimeParams, device: torch.device, processes: int = 1) -> dict[str, str]:
    """Return what a run says of where it ran."""
    return environment(device, precision_of(p, device)) | {"processes": str(processes)}


def _processor() -> str:
    """Return the processor's name with family and model, which a virtual machine's short name leaves out."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    return f"{facts.get('model name', '?')} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"
