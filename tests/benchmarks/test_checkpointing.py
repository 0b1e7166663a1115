from pathlib import Path

import pytest

from benchmarks import checkpointing
from digits.params import Params
from tests.conftest import bars


@pytest.mark.parametrize(("interval", "saved"), [(0.0, 0), (1e-9, 4), (60.0, 0)])
def test_checkpoints_are_counted(
    interval: float, saved: int, recipe: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    spent, count = checkpointing.seconds(recipe, interval, bars(32), bars(12))
    assert spent > 0
    assert count == saved
