import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import limits
from digits.learning import training
from digits.params import Params
from tests.conftest import bars

CPU = torch.device("cpu")


def test_a_step_of_a_training_is_timed_from_step_to_step(recipe: Params) -> None:
    assert limits.end_to_end(recipe, bars(160), limits.WARM + 2, CPU) > 0


def test_a_step_on_a_batch_in_memory_does_all_that_training_needs(
    recipe: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = training.begin(recipe, bars(16), bars(16), CPU)
    before = [weights.clone() for weights in begun.network.parameters()]
    monkeypatch.setattr(training, "begin", lambda *_: begun)
    step = limits.resident(recipe, bars(16), CPU)
    with FlopCounterMode(display=False) as counter:
        step()
    first = 16 * 2 * 24 * 24 * 5 * 5 * 2  # multiplications and additions of the first convolution, forward
    assert counter.get_total_flops() > 2 * first  # at least once more, for the gradient of its weights
    assert not any(map(torch.equal, before, begun.network.parameters()))
