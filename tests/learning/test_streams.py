import torch

from digits.learning import streams
from digits.learning.streams import Streams


def test_seed_differs_by_purpose_and_by_seed_and_is_the_same_each_time() -> None:
    pairs = [(seed, purpose) for seed in (0, 1, 11, 2**63 - 1) for purpose in ("order", "1 order", "weights")]
    seeds = [streams.derive(*pair) for pair in pairs]
    assert len(set(seeds)) == len(pairs)
    assert seeds == [streams.derive(*pair) for pair in pairs]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derived_seed_is_the_same_in_every_version() -> None:
    # A change here changes every trained model: the first 63 bits of `printf '0 weights' | sha256sum`.
    assert streams.derive(0, "weights") == 0xEC590559DA46EB8


def test_generators_of_two_purposes_draw_different_numbers() -> None:
    first, again, other = (
        torch.randperm(100, generator=streams.generator(0, purpose)) for purpose in ("order", "order", "sample")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_restored_streams_draw_what_had_not_been_drawn() -> None:
    def draw(from_: Streams) -> list[float]:
        own = (torch.rand(1, generator=generator) for generator in (from_.order, from_.augmentation))
        return [*map(float, own), float(torch.rand(1))]

    drawing = Streams(0, torch.device("cpu"))
    draw(drawing)
    state = drawing.state_dict()
    expected = draw(drawing)
    restored = Streams(1, torch.device("cpu"))
    restored.load_state_dict(state)
    assert draw(restored) == expected
