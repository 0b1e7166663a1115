import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from digits.images import splits
from digits.images.splits import Split
from digits.images.statistics import Count

from ..conftest import ROOT, bars

LABELS = torch.tensor([0] * 50 + [1] * 33 + [2] * 17 + [4] * 7)[torch.randperm(107, generator=torch.Generator())]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_split_is_sliced_with_images_and_labels_together(split: Split) -> None:
    part = split[torch.tensor([5, 3])]
    assert len(part) == 2
    assert torch.equal(part.images, split.images[[5, 3]])
    assert torch.equal(part.labels, split.labels[[5, 3]])
    assert len(split[:7]) == 7
    assert part.to(torch.device("cpu")).classes == split.classes


@pytest.mark.parametrize("in_order", [True, False])
def test_saved_split_comes_back_unchanged(split: Split, tmp_path: Path, *, in_order: bool) -> None:
    splits.save(split, tmp_path / "split.safetensors")
    loaded = splits.load(tmp_path / "split.safetensors", in_order=in_order)
    assert torch.equal(loaded.images, split.images)
    assert torch.equal(loaded.labels, split.labels)
    assert (loaded.images.dtype, loaded.labels.dtype) == (torch.uint8, torch.int64)
    assert loaded.classes == split.classes


def test_equal_splits_are_equal_bytes_in_every_process(split: Split, tmp_path: Path) -> None:
    splits.save(split, tmp_path / "here")
    script = (
        "from pathlib import Path; from digits.images import splits\n"
        f"folder = Path({str(tmp_path)!r}); splits.save(splits.load(folder / 'here'), folder / 'there')"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "1"}, check=True)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


@pytest.fixture(params=[4096, 7])
def _block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read 96 images in one block, and in many, the last of which is smaller."""
    monkeypatch.setattr(splits, "BLOCK", request.param)


@pytest.mark.usefixtures("_block")
@pytest.mark.parametrize("classes", [("left", "middle", "right"), ("0", "日本", '"')])
def test_saved_split_is_byte_for_byte_what_safetensors_writes(
    split: Split, tmp_path: Path, classes: tuple[str, ...]
) -> None:
    splits.save(Split(split.images, split.labels, classes), tmp_path / "split")
    tensors = {"images": split.images, "labels": split.labels.to(torch.uint8)}
    assert (tmp_path / "split").read_bytes() == safetensors.torch.save(tensors, {"classes": json.dumps(classes)})
    with safetensors.safe_open(tmp_path / "split", "pt") as file:
        assert torch.equal(file.get_tensor("images"), split.images)


@pytest.mark.usefixtures("_block")
def test_images_are_picked_while_they_are_saved(split: Split, tmp_path: Path) -> None:
    indices = torch.arange(1, 96, 3)
    splits.save(split, tmp_path / "picked", indices)
    splits.save(split[indices], tmp_path / "whole")
    assert (tmp_path / "picked").read_bytes() == (tmp_path / "whole").read_bytes()
    assert torch.equal(splits.load(tmp_path / "picked").labels, split.labels[indices])


def test_writing_into_loaded_images_stays_in_memory(split: Split, tmp_path: Path) -> None:
    splits.save(split, tmp_path / "split")
    before = (tmp_path / "split").read_bytes()
    loaded = splits.load(tmp_path / "split")
    loaded.images[:5] = 7
    assert loaded.images[4].unique().tolist() == [7]
    assert (tmp_path / "split").read_bytes() == before


@pytest.mark.parametrize("count", [0, 1, 10, 53, 106, 107])
def test_stratified_split_is_exact_disjoint_and_complete(count: int) -> None:
    rest, chosen = splits.stratified(LABELS, count, generator())
    assert (len(rest), len(chosen)) == (107 - count, count)
    assert sorted(rest.tolist() + chosen.tolist()) == list(range(107))
    assert rest.tolist() == sorted(rest.tolist())
    assert chosen.tolist() == sorted(chosen.tolist())


@pytest.mark.parametrize("count", [4, 10, 53, 90])
def test_stratified_split_has_the_share_of_every_class_within_one_image(count: int) -> None:
    _, chosen = splits.stratified(LABELS, count, generator())
    found = LABELS[chosen].bincount(minlength=5)
    exact = LABELS.bincount(minlength=5) * count / len(LABELS)
    assert (found - exact).abs().max() < 1
    # The largest remainders are rounded up, so that no class rounded down was nearer to one image more.
    up, down = found > exact, found < exact
    assert not up.any() or not down.any() or (exact % 1)[up].min() >= (exact % 1)[down].max()


def test_stratified_split_depends_on_its_seed() -> None:
    (_, first), (_, again), (_, other) = (splits.stratified(LABELS, 40, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.usefixtures("_block")
def test_statistics_count_every_split_and_describe_training_pixels_in_double_precision(split: Split) -> None:
    found = splits.statistics({"train": split, "validation": bars(5), "test": bars(7)})
    pixels = split.images.numpy().astype(np.float64) / 255
    assert (found.train, found.validation, found.test) == (Count(96), Count(5), Count(7))
    assert (found.pixel_mean, found.pixel_std) == pytest.approx((pixels.mean(), pixels.std()), rel=1e-12)


def test_mean_image_of_each_class_is_that_of_its_images_and_black_without_any() -> None:
    split = bars(10)
    named = Split(split.images, split.labels, (*split.classes, "missing"))
    found = splits.class_means(named)
    for label in range(3):
        assert torch.allclose(found[label], split.images[split.labels == label].double().mean(dim=0))
    assert int(found[3].sum()) == 0
