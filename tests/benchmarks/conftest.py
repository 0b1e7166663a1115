"""A training that takes no time."""

import pytest

from benchmarks import recipes
from digits.params import Params
from tests.conftest import ROOT


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Params:
    """Return the recipe quick with a tiny network, from the repository's params.yaml."""
    monkeypatch.chdir(ROOT)
    network = {"model.cnn.crop": 0, "model.cnn.channels": [2, 2], "model.cnn.hidden": 4}
    short = {
        "recipe": "quick",
        "train.batch_size": 16,
        "train.epochs": 2,
        "train.learning_rate": 0.2,
        "runtime.precision": "fp32",
    }
    return recipes.load(short | network)
