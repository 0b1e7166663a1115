import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import stages
from digits.learning import training
from digits.params import Params
from tests.conftest import bars


def test_the_seconds_of_all_epochs_are_written_once_a_training_ends(
    recipe: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = ModuleType("timed")
    monkeypatch.setitem(sys.modules, "timed", timed)  # dataclasses look their module up
    exec(Path(training.__file__).read_text(encoding="utf-8") + stages.TIMED, vars(timed))
    begun = timed.begin(recipe, bars(64), bars(12), torch.device("cpu"))
    alone = training.begin(recipe, bars(64), bars(12), torch.device("cpu"))
    monkeypatch.chdir(tmp_path)
    epochs = list(begun.epochs())
    assert epochs == list(alone.epochs())
    wall, cpu = json.loads(stages.SPENT.read_text(encoding="utf-8"))
    assert 0 < wall < 60
    assert 0 < cpu < 60
