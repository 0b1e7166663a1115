import pytest

from benchmarks import portable
from digits.learning.training import Training
from tests.conftest import ROOT


@pytest.mark.parametrize("name", portable.RUNS)
def test_every_knob_that_shapes_the_weights_is_fixed_whatever_params_yaml_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    changes = portable.SHARED | portable.RUNS[name]
    p = portable.load(changes, "portable", 2)
    network = p.model.name
    shaping = {
        key
        for key in p.flat()
        if key == "seed"
        or key.startswith(("train.", "augmentation.", f"model.{network}."))
        or key in ("model.name", "model.members", "model.tta_shift")
    }
    assert shaping == changes.keys()
    assert (p.runtime.device, p.runtime.threads, p.runtime.precision) == ("cpu", 2, "fp32")


def test_a_step_is_timed_though_nothing_can_be_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Training, "_is_guessing", lambda *_: True)
    assert 0 < portable.seconds_a_step("machine", 2, steps=2) < 60
