import pytest
import torch

from digits import runtime
from digits.command import UserError


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
    assert runtime.prepare("cpu", count) == torch.device("cpu")
    assert torch.get_num_threads() == count
    assert torch.are_deterministic_algorithms_enabled()


def test_auto_takes_the_gpu_where_there_is_one_and_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.mps, "is_available", lambda: False)
        assert runtime.prepare("auto", 1).type == expected


def test_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (torch.cuda, torch.mps):
        monkeypatch.setattr(module, "is_available", lambda: False)
    for device in ("cuda", "mps"):
        with pytest.raises(UserError, match=rf"^params\.yaml: runtime\.device: {device} .*allowed here: auto, cpu\)$"):
            runtime.prepare(device, 1)
