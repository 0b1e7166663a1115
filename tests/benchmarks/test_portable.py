import pytest

from benchmarks import portable
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
