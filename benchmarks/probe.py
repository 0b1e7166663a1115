"""A clock that is paused while something is measured, for trainings that are compared by their seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from digits.learning.checkpoints import Checkpoint


@dataclass(frozen=True)
class Point:
    """How good a network is after some training: a row of accuracy.csv. `epoch` counts fractions, too."""

    contestant: str
    seed: int
    seconds: float
    step: int
    epoch: float
    validation_accuracy: float


class Probe(Checkpoint):
    """Measures a network now and then while it is trained; its clock counts the training alone.

    A checkpoint that never saves: `due()` is to be called after each step, as `Training.epochs` does. The clock runs
    from `resume()` on. It is paused while `accuracy` is called and, after the last step of an epoch, until `resume()`:
    so what a training measures of its own there does not count either.
    16 measurements in the first epoch, 8 in each of the next three, 4 in each later one.
    """

    def __init__(
        self,
        contestant: str,
        seed: int,
        per_epoch: int,
        accuracy: Callable[[], float],
        budget: float = float("inf"),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__("probe", interval=0)
        self.points: list[Point] = []
        self.seconds = 0.0
        self.step = 0
        self._contestant, self._seed, self._per_epoch = contestant, seed, per_epoch
        self._accuracy, self._budget, self._clock = accuracy, budget, clock
        self._since: float | None = None

    @property
    def over(self) -> bool:
        """Whether the budget (seconds of training) is spent."""
        return self.seconds >= self._budget

    def resume(self) -> None:
        """Start the clock, if it is not running."""
        if self._since is None:
            self._since = self._clock()

    def pause(self) -> None:
        """Pause the clock, once the device has finished its work."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        if self._since is not None:
            self.seconds += self._clock() - self._since
        self._since = None

    def measure(self) -> None:
        """Record the current accuracy, replacing an earlier one after the same step; the clock stays paused."""
        self.pause()
        epoch = self.step / self._per_epoch
        if self.points and self.points[-1].step == self.step:
            self.points.pop()
        self.points.append(Point(self._contestant, self._seed, self.seconds, self.step, epoch, self._accuracy()))

    def due(self) -> bool:
        """Count a step, and measure if it is time to; returns False, since there is nothing to save."""
        epoch, place = divmod(self.step, self._per_epoch)
        self.step += 1
        parts = 16 if epoch == 0 else 8 if epoch < 4 else 4
        if (place + 1) * parts // self._per_epoch > place * parts // self._per_epoch:
            self.measure()
            if place + 1 < self._per_epoch and not self.over:
                self.resume()
        return False
