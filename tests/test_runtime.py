import os
import subprocess
import sys

import pytest
import torch

from digits import runtime
from digits.command import UserError

from .conftest import ROOT

CPU = torch.device("cpu")


def test_seed_differs_by_purpose_and_by_seed_and_is_the_same_each_time() -> None:
    pairs = [(seed, purpose) for seed in (0, 1, 11, 2**63 - 1) for purpose in ("order", "1 order", "weights")]
    seeds = [runtime.derive(*pair) for pair in pairs]
    assert len(set(seeds)) == len(pairs)
    assert seeds == [runtime.derive(*pair) for pair in pairs]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derived_seed_is_the_same_in_every_version() -> None:
    # A change here changes every trained model: the first 63 bits of `printf '0 weights' | sha256sum`.
    assert runtime.derive(0, "weights") == 0xEC590559DA46EB8


def test_generators_of_two_purposes_draw_different_numbers() -> None:
    first, again, other = (
        torch.randperm(100, generator=runtime.generator(0, purpose)) for purpose in ("order", "order", "sample")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("count", [2, 3])
def test_prepare_sets_threads_and_deterministic_algorithms(count: int) -> None:
    assert runtime.prepare("cpu", count, "machine") == torch.device("cpu")
    assert torch.get_num_threads() == count
    assert torch.are_deterministic_algorithms_enabled()


def test_auto_takes_the_gpu_where_there_is_one_and_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.mps, "is_available", lambda: False)
        assert runtime.prepare("auto", 1, "machine").type == expected


def test_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (torch.cuda, torch.mps):
        monkeypatch.setattr(module, "is_available", lambda: False)
    for device in ("cuda", "mps"):
        with pytest.raises(UserError, match=rf"^params\.yaml: runtime\.device: {device} .*allowed here: auto, cpu\)$"):
            runtime.prepare(device, 1, "machine")


@pytest.mark.parametrize("able", [set(), {"avx512_bf16"}, {"amx_bf16"}, {"avx512_f", "avx2"}])
def test_auto_precision_is_bf16_only_where_the_processor_has_it(
    able: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(able, True))
    bf16 = any(name.endswith("bf16") for name in able)
    assert runtime.precision_of("auto", CPU, "machine") == (torch.bfloat16 if bf16 else torch.float32)
    assert runtime.precision_of("auto", CPU, "portable") == torch.float32
    assert runtime.precision_of("bf16", CPU, "machine") == torch.bfloat16
    assert runtime.precision_of("fp32", CPU, "machine") == torch.float32


SHORT_TRAINING = """
import hashlib, sys, torch
from digits import data, evaluation, models, params, runtime, training
p = params.load()
device = runtime.prepare("auto", int(sys.argv[1]), "portable")
draw = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (400, 1, 28, 28), dtype=torch.uint8, generator=draw)
split = data.Split(images, torch.randint(0, 10, (400,), generator=draw), tuple("0123456789"))
torch.manual_seed(0)
network = models.build("cnn", 10, {"crop": 0, "channels": [8, 16, 16], "hidden": 32, "dropout": 0.2}, 0.5, 0.3)
one = p.train.model_copy(update={"epochs": 1, "batch_size": 50})
list(training.fit(network, split[:350], split[350:], 0, one, p.augmentation, 250, device))
weights = b"".join(value.contiguous().numpy().tobytes() for value in network.state_dict().values())
logits = evaluation.predict(network, split, 250, device)
print(torch.backends.cpu.get_cpu_capability(), hashlib.md5(weights + logits.numpy().tobytes()).hexdigest())
"""
able = torch.cpu.get_capabilities()


@pytest.mark.skipif(not (able.get("avx2") and able.get("fma3")), reason="needs an x86-64 processor with AVX2 and FMA")
@pytest.mark.parametrize(
    "own", [{}, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "AUTO"}]
)
@pytest.mark.parametrize(
    ("threads", "expected"), [(1, "02b011a25e7cc42c9b85472d7f333761"), (2, "a841fb5b6836f206b2cd770788af1731")]
)
def test_portable_training_gives_these_bits_on_every_processor(
    own: dict[str, str], threads: int, expected: str
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
        runtime.prepare(device, 1, "portable")


def test_portable_results_need_a_processor_with_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(UserError, match=r"needs an x86-64 processor with AVX2 and FMA"):
        runtime.prepare("auto", 1, "portable")


def test_portable_results_are_refused_when_it_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in runtime.PORTABLE:
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "fma3": True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with pytest.raises(RuntimeError, match="tensors were computed before"):
        runtime.prepare("auto", 1, "portable")
