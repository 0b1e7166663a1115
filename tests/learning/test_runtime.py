import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from digits.errors import UserError
from digits.learning import runtime
from digits.params.runtime import RuntimeParams
from tests.conftest import ROOT

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "device": "auto",
    "threads": 1,
    "batch_size": 250,
    "reproducibility": "machine",
    "precision": "auto",
    "processes": 1,
    "checkpoint": 0.0,
}


def settings(**changes: Any) -> RuntimeParams:
    return RuntimeParams(**SETTINGS | changes)


@pytest.mark.parametrize("count", [2, 3])
def test_prepare_sets_threads_and_deterministic_algorithms(count: int) -> None:
    assert runtime.prepare(settings(device="cpu", threads=count)) == CPU
    assert torch.get_num_threads() == count
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("name", "value"), [("OMP_THREAD_LIMIT", "1"), ("OMP_DYNAMIC", "TRUE")])
def test_environment_that_changes_the_number_of_threads_is_rejected(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^{name}: "):
        runtime.prepare(settings(threads=2))
    if name == "OMP_THREAD_LIMIT":
        runtime.prepare(settings(threads=1))


def test_auto_takes_the_gpu_where_there_is_one_and_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        monkeypatch.setattr(torch.mps, "is_available", lambda: False)
        assert runtime.prepare(settings()).type == expected
        assert runtime.prepare(settings(), "cpu").type == "cpu"  # the argument overrides params.yaml


def test_device_that_is_missing_is_rejected_with_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (torch.cuda, torch.mps):
        monkeypatch.setattr(module, "is_available", lambda: False)
    for device in ("cuda", "mps"):
        with pytest.raises(UserError, match=rf"^params\.yaml: runtime\.device: {device} .*allowed here: auto, cpu\)$"):
            runtime.prepare(settings(device=device))


@pytest.mark.parametrize("able", [set(), {"avx512_bf16"}, {"amx_bf16"}, {"avx512_f", "avx2"}])
def test_auto_precision_is_bf16_only_where_the_processor_has_it(
    able: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(able, True))
    bf16 = any(name.endswith("bf16") for name in able)
    assert runtime.precision_of(settings(), CPU) == (torch.bfloat16 if bf16 else torch.float32)
    assert runtime.precision_of(settings(reproducibility="portable"), CPU) == torch.float32
    assert runtime.precision_of(settings(precision="bf16"), CPU) == torch.bfloat16
    assert runtime.precision_of(settings(precision="fp32"), CPU) == torch.float32


SHORT_TRAINING = """
import hashlib, sys, torch
from digits import params
from digits.images.splits import Split
from digits.learning import evaluation, networks, runtime
from digits.learning.training import Training
changes = {"train.epochs": 1, "train.batch_size": 50, "runtime.threads": int(sys.argv[1])}
p = params.load(networks.check, changes | {"runtime.reproducibility": "portable"})
device = runtime.prepare(p.runtime)
draw = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (400, 1, 28, 28), dtype=torch.uint8, generator=draw)
split = Split(images, torch.randint(0, 10, (400,), generator=draw), tuple("0123456789"))
torch.manual_seed(0)
knobs = {"crop": 0, "channels": [8, 16, 16], "hidden": 32, "dropout": 0.2}
network = networks.build("cnn", 10, knobs, mean=0.5, std=0.3)
list(Training(network, split[:350], split[350:], p, device).epochs())
weights = b"".join(value.contiguous().numpy().tobytes() for value in network.state_dict().values())
logits = evaluation.predict(network, split, 250, device).logits
print(torch.backends.cpu.get_cpu_capability(), hashlib.md5(weights + logits.numpy().tobytes()).hexdigest())
"""
able = torch.cpu.get_capabilities()


@pytest.mark.slow
@pytest.mark.skipif(not (able.get("avx2") and able.get("fma3")), reason="needs an x86-64 processor with AVX2 and FMA")
@pytest.mark.parametrize(
    ("threads", "own", "expected"),
    [
        (1, {}, "02b011a25e7cc42c9b85472d7f333761"),
        (
            2,
            {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "AUTO"},
            "a841fb5b6836f206b2cd770788af1731",
        ),
    ],
)
def test_portable_training_gives_these_bits_on_every_processor(
    threads: int, own: dict[str, str], expected: str
) -> None:
    # They change with the version of torch; within one, whoever sees others has found a processor that differs.
    done = subprocess.run(
        [sys.executable, "-c", SHORT_TRAINING, str(threads)],
        cwd=ROOT, env=os.environ | own, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["AVX2", expected]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_portable_results_are_not_promised_for_a_gpu(device: str) -> None:
    with pytest.raises(
        UserError, match=rf"^params\.yaml: runtime\.reproducibility: portable is for the CPU, not for {device}"
    ):
        runtime.prepare(settings(device=device, reproducibility="portable"))


def test_portable_results_need_a_processor_with_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(UserError, match=r"needs an x86-64 processor with AVX2 and FMA"):
        runtime.prepare(settings(reproducibility="portable"))


def test_portable_results_are_rejected_when_it_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in runtime.PORTABLE:
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "fma3": True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with pytest.raises(RuntimeError, match="tensors were computed before"):
        runtime.prepare(settings(reproducibility="portable"))
