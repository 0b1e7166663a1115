from dataclasses import dataclass

import torch

from benchmarks.probe import Probe
from digits.learning import evaluation, training
from digits.params import Params
from tests.conftest import bars


@dataclass
class Clock:
    """Shows the time that it is set to."""

    time: float = 0.0

    def __call__(self) -> float:
        return self.time


def test_the_clock_is_paused_while_the_network_is_measured_and_between_epochs() -> None:
    clock = Clock()

    def measure() -> float:
        clock.time += 1000
        return 0.5

    probe = Probe("quick", 0, 4, measure, clock=clock)
    probe.resume()
    for _ in range(2):
        for _ in range(4):
            clock.time += 1
            assert not probe.due()
        clock.time += 500  # the training's own measurements
        probe.resume()
    probe.measure()
    assert [point.seconds for point in probe.points] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [point.epoch for point in probe.points] == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert probe.seconds == 8


def test_measurements_are_denser_at_the_beginning() -> None:
    probe = Probe("quick", 0, 64, lambda: 0.0)
    for _ in range(6 * 64):
        probe.due()
    per_epoch = [sum(epoch < point.epoch <= epoch + 1 for point in probe.points) for epoch in range(6)]
    assert per_epoch == [16, 8, 8, 8, 4, 4]


def test_a_probe_sees_every_step_of_a_training_and_changes_nothing_in_it(recipe: Params) -> None:
    learned, held_out, cpu = bars(64), bars(12), torch.device("cpu")
    watched = training.begin(recipe, learned, held_out, cpu)
    probe = Probe("quick", 0, 4, lambda: evaluation.predict(watched.network, held_out, 5, cpu).logits.mean().item())
    for _ in watched.epochs(probe):
        probe.resume()
    alone = training.begin(recipe, learned, held_out, cpu)
    for _ in alone.epochs():
        pass
    assert [point.step for point in probe.points] == [1, 2, 3, 4, 5, 6, 7, 8]
    for key, value in watched.network.state_dict().items():
        assert torch.equal(value, alone.network.state_dict()[key])
