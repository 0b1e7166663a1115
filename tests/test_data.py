import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from digits import data
from digits.data import Split

from .conftest import ROOT

LABELS = torch.tensor([0] * 50 + [1] * 33 + [2] * 17 + [4] * 7)[torch.randperm(107, generator=torch.Generator())]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int, side: int = 2) -> Tensor:
    """Give float images, each with a white square of 2 x `side` pixels in the middle."""
    images = torch.zeros(count, 1, 28, 28)
    images[:, :, 14 - side : 14 + side, 14 - side : 14 + side] = 1
    return images


def centres(images: Tensor) -> tuple[Tensor, Tensor]:
    """Give the centre of mass of each image, right of and below the middle, in pixels."""
    place = torch.arange(28) - 13.5
    mass = images.sum(dim=(1, 2, 3))
    return (images.sum(dim=(1, 2)) * place).sum(dim=1) / mass, (images.sum(dim=(1, 3)) * place).sum(dim=1) / mass


def test_split_is_sliced_with_images_and_labels_together(split: Split) -> None:
    part = split[torch.tensor([5, 3])]
    assert len(part) == 2
    assert torch.equal(part.images, split.images[[5, 3]])
    assert torch.equal(part.labels, split.labels[[5, 3]])
    assert len(split[:7]) == 7
    assert part.to(torch.device("cpu")).classes == split.classes


@pytest.mark.parametrize("in_order", [True, False])
def test_saved_split_comes_back_unchanged(split: Split, tmp_path: Path, *, in_order: bool) -> None:
    data.save(split, tmp_path / "split.safetensors")
    loaded = data.load(tmp_path / "split.safetensors", in_order=in_order)
    assert torch.equal(loaded.images, split.images)
    assert torch.equal(loaded.labels, split.labels)
    assert (loaded.images.dtype, loaded.labels.dtype) == (torch.uint8, torch.int64)
    assert loaded.classes == split.classes


def test_equal_splits_are_equal_bytes_in_every_process(split: Split, tmp_path: Path) -> None:
    data.save(split, tmp_path / "here")
    script = (
        "from pathlib import Path; from digits import data; from tests.conftest import bars\n"
        f"data.save(bars(96), Path({str(tmp_path)!r}, 'there'))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "1"}, check=True)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


@pytest.fixture(params=[4096, 7])
def _block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go through 96 images in one block, and in many, the last of which is smaller."""
    monkeypatch.setattr(data, "BLOCK", request.param)


@pytest.mark.usefixtures("_block")
@pytest.mark.parametrize("classes", [("left", "middle", "right"), ("0", "日本", '"')])
def test_saved_split_is_byte_for_byte_what_safetensors_writes(
    split: Split, tmp_path: Path, classes: tuple[str, ...]
) -> None:
    data.save(Split(split.images, split.labels, classes), tmp_path / "split")
    tensors = {"images": split.images, "labels": split.labels.to(torch.uint8)}
    assert (tmp_path / "split").read_bytes() == safetensors.torch.save(tensors, {"classes": json.dumps(classes)})
    with safetensors.safe_open(tmp_path / "split", "pt") as file:
        assert torch.equal(file.get_tensor("images"), split.images)


@pytest.mark.usefixtures("_block")
def test_images_are_picked_while_they_are_saved(split: Split, tmp_path: Path) -> None:
    indices = torch.arange(1, 96, 3)
    data.save(split, tmp_path / "picked", indices)
    data.save(split[indices], tmp_path / "whole")
    assert (tmp_path / "picked").read_bytes() == (tmp_path / "whole").read_bytes()
    assert torch.equal(data.load(tmp_path / "picked").labels, split.labels[indices])


def test_writing_into_loaded_images_stays_in_memory(split: Split, tmp_path: Path) -> None:
    data.save(split, tmp_path / "split")
    before = (tmp_path / "split").read_bytes()
    loaded = data.load(tmp_path / "split")
    loaded.images[:5] = 7
    assert loaded.images[4].unique().tolist() == [7]
    assert (tmp_path / "split").read_bytes() == before


@pytest.mark.filterwarnings("error")
def test_read_only_array_becomes_a_tensor_of_the_same_memory_without_a_warning() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    array.flags.writeable = False
    tensor = data.from_numpy(array)
    assert tensor.tolist() == array.tolist()
    assert tensor.data_ptr() == array.ctypes.data


@pytest.mark.parametrize("count", [0, 1, 10, 53, 106, 107])
def test_stratified_split_is_exact_disjoint_and_complete(count: int) -> None:
    rest, chosen = data.stratified(LABELS, count, generator())
    assert (len(rest), len(chosen)) == (107 - count, count)
    assert sorted(rest.tolist() + chosen.tolist()) == list(range(107))
    assert rest.tolist() == sorted(rest.tolist())
    assert chosen.tolist() == sorted(chosen.tolist())


@pytest.mark.parametrize("count", [4, 10, 53, 90])
def test_stratified_split_has_the_share_of_every_class_within_one_image(count: int) -> None:
    _, chosen = data.stratified(LABELS, count, generator())
    found = LABELS[chosen].bincount(minlength=5)
    exact = LABELS.bincount(minlength=5) * count / len(LABELS)
    assert (found - exact).abs().max() < 1
    # The largest remainders are rounded up, so that no class rounded down was nearer to one image more.
    up, down = found > exact, found < exact
    assert not up.any() or not down.any() or (exact % 1)[up].min() >= (exact % 1)[down].max()


def test_stratified_split_follows_its_seed() -> None:
    (_, first), (_, again), (_, other) = (data.stratified(LABELS, 40, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.usefixtures("_block")
def test_pixel_statistics_are_those_of_all_pixels_in_double_precision(split: Split) -> None:
    pixels = split.images.numpy().astype(np.float64) / 255
    assert data.pixel_statistics(split.images) == pytest.approx((pixels.mean(), pixels.std()), rel=1e-12)


def test_pixels_become_floats_from_0_to_1() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert data.to_float(images).tolist() == pytest.approx([0, 0.2, 1])
    assert data.to_float(images).dtype == torch.float32
    assert images.tolist() == [0, 51, 255]


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (3, 4, [3]), (1, 4, [1]), (5, 2, [2, 3]), (3, 2, [3])],
)
def test_batches_hold_every_index_once_and_a_lone_one_joins_the_batch_before(
    count: int, size: int, sizes: list[int]
) -> None:
    parts = data.batches(count, size, generator())
    assert [len(part) for part in parts] == sizes
    assert sorted(torch.cat(parts).tolist()) == list(range(count))


def test_batches_are_shuffled_anew_by_the_same_generator() -> None:
    drawing, again = generator(3), generator(3)
    first, second = (torch.cat(data.batches(50, 8, drawing)) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(50))
    assert torch.equal(first, torch.cat(data.batches(50, 8, again)))


def augment(images: Tensor, *amounts: float, seed: int = 0) -> Tensor:
    draws = torch.rand(5, len(images), generator=generator(seed))
    return data.augment(images, draws, *amounts, *[0.0] * (4 - len(amounts)))


def test_augmentation_by_nothing_changes_nothing(split: Split) -> None:
    images = data.to_float(split.images)
    assert torch.equal(augment(images, 0.0, 0.0, 0.0, 0.0), images)


def test_augmented_images_keep_shape_type_and_range_and_follow_the_seed(split: Split) -> None:
    images = data.to_float(split.images)
    first, again, other = (augment(images, 10.0, 0.1, 2.0, 0.1, seed=seed) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == (images.shape, images.dtype)
    assert first.isfinite().all()
    assert 0 <= first.min() < first.max() <= 1 + 1e-6
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, data.to_float(split.images))


@pytest.mark.parametrize("amounts", [(10.0,), (0.0, 0.2), (0.0, 0.0, 2.0), (0.0, 0.0, 0.0, 0.2)])
def test_each_image_gets_another_map_from_every_amount_alone(amounts: tuple[float, ...]) -> None:
    images = augment(blobs(20, side=5), *amounts)
    assert len({image.numpy().tobytes() for image in images}) == 20


@pytest.mark.parametrize("largest", [0.5, 2.0, 5.0])
def test_shift_moves_the_centre_of_mass_both_ways_by_at_most_its_pixels(largest: float) -> None:
    for moved in centres(augment(blobs(500), 0.0, 0.0, largest, 0.0)):
        assert moved.abs().max() <= largest + 1e-3
        assert moved.max() > 0.9 * largest
        assert moved.min() < -0.9 * largest
        assert abs(float(moved.mean())) < 0.1 * largest


def test_rotation_turns_a_bar_both_ways_by_at_most_its_degrees_and_not_on_average() -> None:
    bars = torch.zeros(500, 1, 28, 28)
    bars[:, :, 4:24, 13:15] = 1
    turned = augment(bars, 15.0, 0.0, 0.0, 0.0)
    place = torch.arange(28) - 13.5
    mixed = (turned[:, 0] * place[:, None] * place).sum(dim=(1, 2))
    along = (turned[:, 0] * (place[:, None] ** 2 - place**2)).sum(dim=(1, 2))
    degrees = torch.rad2deg(torch.atan2(2 * mixed, along) / 2)
    assert 13 < degrees.max() < 15.5
    assert -15.5 < degrees.min() < -13
    assert abs(float(degrees.mean())) < 1.5
    assert (turned.sum(dim=(1, 2, 3)) / bars[0].sum() - 1).abs().max() < 0.03
    for moved in centres(turned):
        assert moved.abs().max() < 0.2


def test_scale_grows_and_shrinks_the_mass_by_its_fraction() -> None:
    images = blobs(500, side=6)
    sides = (augment(images, 0.0, 0.2, 0.0, 0.0).sum(dim=(1, 2, 3)) / images[0].sum()).sqrt()
    assert float(sides.max()) == pytest.approx(1 / 0.8, rel=0.03)
    assert float(sides.min()) == pytest.approx(1 / 1.2, rel=0.03)


def test_shear_slants_but_keeps_the_area() -> None:
    images = blobs(500, side=6)
    slanted = augment(images, 0.0, 0.0, 0.0, 0.3)
    assert (slanted.sum(dim=(1, 2, 3)) / images[0].sum() - 1).abs().max() < 0.02
    assert torch.allclose(slanted.sum(dim=(1, 3)), images.sum(dim=(1, 3)), atol=0.05)  # rows slide along themselves
    slanted[:, :, 14:] = 0  # the upper half's middle lies 3 pixels above the centre
    upper, _ = centres(slanted)
    assert float(upper.abs().max()) == pytest.approx(3 * 0.3, rel=0.1)


def test_what_comes_in_from_outside_is_black() -> None:
    moved = augment(torch.ones(50, 1, 28, 28), 0.0, 0.0, 6.0, 0.0)[:, 0]
    assert moved[:, 7:21, 7:21].min() == pytest.approx(1)
    assert moved.amax(dim=(1, 2)).min() == pytest.approx(1)
    assert (moved.amin(dim=(1, 2)) == 0).float().mean() > 0.8  # all that move by a whole pixel
