from pathlib import Path

import pytest
import torch

from benchmarks import accuracy, recipes
from benchmarks.accuracy import NEVER, Outcome, Setting
from benchmarks.probe import Point
from digits.params import Params
from tests.conftest import bars


def trained(contestant: str, seed: int, *points: tuple[float, float]) -> Outcome:
    """Return a training with these (seconds, accuracy), which ended with the last of them."""
    rows = [Point(contestant, seed, seconds, step, step, share) for step, (seconds, share) in enumerate(points)]
    return Outcome(contestant, seed, points[-1][0], rows)


def test_time_to_accuracy_is_that_of_the_first_measurement_that_reaches_it() -> None:
    run = trained("quick", 0, (1, 0.9), (2, 0.95), (3, 0.94), (4, 0.96))
    assert [run.time_to(target) for target in (0.5, 0.95, 0.96, 0.97)] == [1, 2, 4, NEVER]


def test_a_peer_is_compared_with_the_recipe_that_is_first_seed_by_seed() -> None:
    trainings = {
        "quick": [trained("quick", seed, (2, 0.95), (4, 0.96)) for seed in range(3)],
        "default": [trained("default", seed, (3, 0.95), (10, 0.99)) for seed in range(3)],
        "tutorial": [trained("tutorial", seed, (8 + seed, 0.95), (40, 0.96 - seed / 100)) for seed in range(3)],
        "example": [trained("example", 0, (5, 0.9), (60, 0.99))],
    }
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in accuracy.race(trainings, [0.95, 0.97]).split("\n")
    ]
    assert rows[2] == ["quick", "3", "2.0 s (2.0 to 2.0)", "not reached within 4 s"]
    assert rows[3] == ["default", "3", "3.0 s (3.0 to 3.0)", "10.0 s (10.0 to 10.0)"]
    assert rows[4] == [
        "tutorial",
        "3",
        "9.0 s (8.0 to 10.0), 4.5 x quick",
        "not reached within 40 s, over 4.0 x default",
    ]
    assert rows[5] == ["example", "1", "60.0 s (60.0 to 60.0), 30.0 x quick", "60.0 s (60.0 to 60.0), 6.0 x default"]


def test_seeds_that_miss_a_target_are_reported() -> None:
    one, other, third = trained("quick", 0, (3, 0.99)), trained("quick", 1, (4, 0.98)), trained("quick", 2, (5, 0.99))
    assert accuracy.spread([one, other, third], 0.99) == "5.0 s (3.0 to never)"
    assert accuracy.spread([one, other], 0.99) == "not reached within 4 s (by 1 of 2 seeds, the first at 3.0 s)"


def test_the_files_of_a_race_hold_every_point(tmp_path: Path) -> None:
    trainings = {name: [trained(name, 0, (1, 0.5), (2, 1.0))] for name in ("quick", "tutorial")}
    accuracy.write(trainings, "Head.", tmp_path / "race")
    lines = (tmp_path / "race.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "contestant,seed,seconds,step,epoch,validation_accuracy"
    assert lines[2] == "quick,0,2,1,1,1"
    assert len(lines) == 5
    assert "![Validation error over seconds of training](race.png)" in (tmp_path / "race.md").read_text("utf-8")
    assert (tmp_path / "race.png").stat().st_size > 1000


def test_a_recipe_is_trained_to_its_end_with_its_own_seed(recipe: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[object] = []

    def load(asked: dict[str, object]) -> Params:
        changes.append(asked)
        return recipe

    monkeypatch.setattr(recipes, "load", load)
    setting = Setting(bars(64), bars(12), bars(12), 5, torch.device("cpu"), "fp32")
    outcome = accuracy.train_recipe("best", 3, setting)
    assert changes == [{"recipe": "best", "seed": 3}]
    assert [point.step for point in outcome.points] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert 0 < outcome.points[0].seconds < outcome.points[-1].seconds == outcome.seconds
    assert outcome.test_accuracy == outcome.points[-1].validation_accuracy  # both splits have the same images
