from pathlib import Path

import pytest
import torch

from benchmarks import recipes
from digits.errors import UserError
from digits.images.batches import augment, to_float
from digits.learning import training
from digits.params import Params
from tests.conftest import bars

CPU = torch.device("cpu")


def test_an_unaugmented_recipe_draws_no_maps(recipe: Params) -> None:
    images = to_float(bars(4).images)
    amounts = recipes.unaugmented(recipe).augmentation.model_dump()
    assert augment(images, torch.rand(5, len(images)), **amounts) is images


def test_a_recipe_is_trained_for_one_epoch_or_in_another_precision_and_else_unchanged(recipe: Params) -> None:
    one = recipes.one_epoch(recipes.in_precision(recipe, "bf16"))
    changed = {key for key, value in one.flat().items() if value != recipe.flat()[key]}
    assert changed == {"train.epochs", "runtime.precision"}
    started = training.begin(one, bars(32), bars(12), CPU)
    assert started.precision == torch.bfloat16
    assert len(list(started.epochs())) == 1


@pytest.mark.parametrize("able", [set(), {"avx512_bf16"}])
def test_precisions_are_those_that_the_processor_has(
    able: set[str], recipe: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(able, True))
    assert recipes.precisions(recipe, CPU) == (["fp32", "bf16"] if able else ["fp32"])


def test_missing_splits_are_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^data/splits/train.safetensors: not found; `dvc repro` makes it$"):
        recipes.load_splits()
