import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import accuracy, limits, noise, peers, recipes, study
from benchmarks.accuracy import NEVER, Training
from benchmarks.probe import Point, Probe
from digits import data, evaluation, models, params
from digits.command import UserError
from digits.data import Split
from digits.params import Params
from tests.conftest import ROOT, bars


@dataclass
class Clock:
    """Shows what it is set to."""

    time: float = 0.0

    def __call__(self) -> float:
        return self.time


def trained(contestant: str, seed: int, *points: tuple[float, float]) -> Training:
    """Give a training with these (seconds, accuracy), that ended with the last of them."""
    rows = [Point(contestant, seed, seconds, step, step, share) for step, (seconds, share) in enumerate(points)]
    return Training(contestant, seed, points[-1][0], rows)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Params:
    """Give the recipe quick with a tiny network, from the repository's params.yaml."""
    monkeypatch.chdir(ROOT)
    network = {"model.cnn.crop": 0, "model.cnn.channels": [2, 2], "model.cnn.hidden": 4}
    return params.load(changes={"recipe": "quick", "train.batch_size": 16, "train.epochs": 2, **network})


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_learns_from_a_batch_and_gives_a_logit_for_each_digit(name: str) -> None:
    peer = peers.PEERS[name]
    torch.manual_seed(0)
    network = peer.network()
    before = [weights.clone() for weights in network.parameters()]
    probe = Probe(name, 0, 1, lambda: 0.0, budget=0)
    peers.fit(peer, network, bars(64), torch.device("cpu"), probe)
    assert probe.step == 1
    assert not any(map(torch.equal, before, network.parameters()))
    assert evaluation.predict(network, bars(3), 2, torch.device("cpu")).shape == (3, 10)


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peers_transforms_are_what_its_accuracy_is_measured_with(name: str, split: Split) -> None:
    peer = peers.PEERS[name]
    image, label = peers.Images(split, peer.mean, peer.std)[5]
    torch.testing.assert_close(image, models.Normalize(peer.mean, peer.std)(data.to_float(split.images[5])))
    assert label == split.labels[5]


def test_time_to_accuracy_is_that_of_the_first_measurement_that_reaches_it() -> None:
    run = trained("quick", 0, (1, 0.9), (2, 0.95), (3, 0.94), (4, 0.96))
    assert [run.time_to(target) for target in (0.5, 0.95, 0.96, 0.97)] == [1, 2, 4, NEVER]


def test_the_race_takes_the_recipe_that_is_first_and_the_ratio_of_each_seed() -> None:
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


def test_a_target_that_some_seeds_miss_is_told_so() -> None:
    one, other, third = trained("quick", 0, (3, 0.99)), trained("quick", 1, (4, 0.98)), trained("quick", 2, (5, 0.99))
    assert accuracy.spread([one, other, third], 0.99) == "5.0 s (3.0 to never)"
    assert accuracy.spread([one, other], 0.99) == "not reached within 4 s (1 of 2 seeds were there, from 3.0 s)"


def test_the_clock_stands_while_the_network_is_measured_and_between_epochs() -> None:
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
        clock.time += 500  # the training's own measuring
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


def test_a_probe_watches_fit_and_changes_nothing_in_it(recipe: Params) -> None:
    learned, held_out, cpu = bars(64), bars(12), torch.device("cpu")
    watched, alone = (recipes.build(recipe, 0, len(learned.classes)) for _ in range(2))
    probe = Probe("quick", 0, 4, lambda: evaluation.predict(watched, held_out, 5, cpu).mean().item())
    for network, checkpoint in ((watched, probe), (alone, None)):
        for _ in recipes.fit(recipe, network, learned, held_out, 0, cpu, checkpoint, "fp32"):
            probe.resume()
    assert [point.step for point in probe.points] == [1, 2, 3, 4, 5, 6, 7, 8]
    for key, value in watched.state_dict().items():
        assert torch.equal(value, alone.state_dict()[key])


def test_files_of_a_race_hold_every_point(tmp_path: Path) -> None:
    trainings = {name: [trained(name, 0, (1, 0.5), (2, 1.0))] for name in ("quick", "tutorial")}
    accuracy.write(trainings, "Head.", tmp_path / "race")
    lines = (tmp_path / "race.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "contestant,seed,seconds,step,epoch,validation_accuracy"
    assert lines[2] == "quick,0,2,1,1,1"
    assert len(lines) == 5
    assert "![Validation error over seconds of training](race.png)" in (tmp_path / "race.md").read_text("utf-8")
    assert (tmp_path / "race.png").stat().st_size > 1000


def test_limits_time_a_step_in_fit_and_one_on_a_batch_that_lies_ready(recipe: Params) -> None:
    cpu = torch.device("cpu")
    assert limits.end_to_end(recipe, "fp32", bars(160), limits.WARM + 2, cpu) > 0
    with FlopCounterMode(display=False) as counter:
        limits.resident(recipe, "fp32", bars(16), cpu)()
    first = 16 * 2 * 24 * 24 * 5 * 5 * 2  # multiplications and additions of the first convolution, forward
    assert counter.get_total_flops() > 2 * first  # at least once more, for the gradient of its weights


def test_an_unaugmented_recipe_draws_no_maps(recipe: Params) -> None:
    images = data.to_float(bars(4).images)
    amounts = recipes.unaugmented(recipe).augmentation.model_dump()
    assert data.augment(images, torch.rand(5, len(images)), **amounts) is images


def test_missing_splits_are_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data/splits/train.safetensors.*`dvc repro` makes it"):
        recipes.splits()


def test_study_makes_its_tables_again_from_its_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page, points = ((ROOT / path).read_text() for path in (study.PAGE, study.POINTS))
    monkeypatch.chdir(tmp_path)
    study.PAGE.parent.mkdir()
    empty = re.sub(r"(<!-- (?!end)[a-z ]+ -->\n).*?(?=<!-- end -->)", r"\1", page, flags=re.DOTALL)
    study.PAGE.write_text(empty)
    study.POINTS.write_text(points)
    assert "| twice as wide |" in page
    assert "| twice as wide |" not in empty
    monkeypatch.setattr("sys.argv", ["study", "--read"])
    study.main()
    assert study.PAGE.read_text() == page


def test_noise_counts_verdicts_for_each_split() -> None:
    def one(validation: float, test: float) -> dict[str, dict[str, float | str]]:
        verdicts = {p: "no evidence" if p >= 0.05 else "worse" for p in (validation, test)}
        return {split: {"p": p, "verdict": verdicts[p]} for split, p in (("validation", validation), ("test", test))}

    lines = noise.table({"b against a": [one(0.5, 0.02), one(0.06, 0.9)]}).splitlines()
    assert lines[2:] == [
        "| b against a | 2 | validation | 2 | 0 | 0 | 0.06 to 0.5 |",
        "| b against a | 2 | test | 1 | 0 | 1 | 0.02 to 0.9 |",
    ]
