"""A clock that stands still while something is measured, for trainings that are compared by their seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Point:
    """How good a network is after so much training; a row of accuracy.csv. `epoch` counts fractions, too."""

    contestant: str
    seed: int
    seconds: float
    step: int
    epoch: float
    validation_accuracy: float


class Probe:
    """Measures a network now and then while it is trained; its clock counts the training alone.

    `due()` is to be called after each step, which is what `training.fit` does with a checkpoint, and this can be given
    as one. The clock runs from `resume()` on, stops while `accuracy` is called, and stops after the last step of an
    epoch until `resume()`: what a training measures of its own there does not count either.
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
        """Let the clock run, if it does not."""
        if self._since is None:
            self._since = self._clock()

    def stop(self) -> None:
        """Let the clock stand, once the device has done what it was told."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        if self._since is not None:
            self.seconds += self._clock() - self._since
        self._since = None

    def measure(self) -> None:
        """Note the accuracy at this moment, in place of an earlier one after the same step; the clock then stands."""
        self.stop()
        epoch = self.step / self._per_epoch
        if self.points and self.points[-1].step == self.step:
            self.points.pop()
        self.points.append(Point(self._contestant, self._seed, self.seconds, self.step, epoch, self._accuracy()))

    def due(self) -> bool:
        """Count a step, and measure if it is time to; the answer is that there is nothing to save."""
        epoch, place = divmod(self.step, self._per_epoch)
        self.step += 1
        parts = 16 if epoch == 0 else 8 if epoch < 4 else 4
        if (place + 1) * parts // self._per_epoch > place * parts // self._per_epoch:
            self.measure()
            if place + 1 < self._per_epoch and not self.over:
                self.resume()
        return False

    def load(self) -> None:
        """Give no state to go on from."""

    def save(self, state: dict[str, Any]) -> None:
        """Never called, since nothing is ever due."""
        raise NotImplementedError
