import pytest
import torch
from torch import Tensor

from digits.images import batches
from digits.images.splits import Split


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int, side: int = 2) -> Tensor:
    """Return float images, each with a white square of 2 x `side` pixels in the middle."""
    images = torch.zeros(count, 1, 28, 28)
    images[:, :, 14 - side : 14 + side, 14 - side : 14 + side] = 1
    return images


def centers(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the center of mass of each image, right of and below the middle, in pixels."""
    place = torch.arange(28) - 13.5
    mass = images.sum(dim=(1, 2, 3))
    return (images.sum(dim=(1, 2)) * place).sum(dim=1) / mass, (images.sum(dim=(1, 3)) * place).sum(dim=1) / mass


def test_pixels_become_floats_from_0_to_1() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert batches.to_float(images).tolist() == pytest.approx([0, 0.2, 1])
    assert batches.to_float(images).dtype == torch.float32
    assert images.tolist() == [0, 51, 255]


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (3, 4, [3]), (1, 4, [1]), (5, 2, [2, 3]), (3, 2, [3])],
)
def test_batches_hold_every_index_once_and_a_lone_one_joins_the_batch_before(
    count: int, size: int, sizes: list[int]
) -> None:
    parts = batches.batches(batches.order(count, generator()), size)
    assert [len(part) for part in parts] == sizes
    assert sorted(torch.cat(parts).tolist()) == list(range(count))


def test_order_is_shuffled_anew_by_the_same_generator() -> None:
    drawing, again = generator(3), generator(3)
    first, second = (batches.order(50, drawing) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(50))
    assert torch.equal(first, batches.order(50, again))


@pytest.mark.parametrize(("share", "hard"), [(0.0, 0), (0.02, 1), (0.3, 15), (0.5, 25)])
def test_hard_images_come_up_twice_and_some_of_the_others_once(share: float, hard: int) -> None:
    losses = torch.arange(50.0).flip(0)
    drawn = batches.order_with_hard(losses, share, generator())
    counts = torch.bincount(drawn, minlength=50)
    assert len(drawn) == 50
    assert counts[:hard].tolist() == [2] * hard
    assert sorted(counts[hard:].tolist()) == [0] * hard + [1] * (50 - 2 * hard)
    assert not torch.equal(drawn, batches.order_with_hard(losses, share, generator(1)))


def test_of_equal_losses_the_first_are_taken_for_hard() -> None:
    counts = torch.bincount(batches.order_with_hard(torch.ones(20), 0.25, generator()))
    assert counts[:5].tolist() == [2] * 5


def augment(images: Tensor, *amounts: float, seed: int = 0) -> Tensor:
    draws = torch.rand(5, len(images), generator=generator(seed))
    return batches.augment(images, draws, *amounts, *[0.0] * (4 - len(amounts)))


def test_augmentation_by_nothing_changes_nothing(split: Split) -> None:
    images = batches.to_float(split.images)
    assert torch.equal(augment(images, 0.0, 0.0, 0.0, 0.0), images)


def test_augmented_images_keep_shape_type_and_range_and_depend_on_the_seed(split: Split) -> None:
    images = batches.to_float(split.images)
    first, again, other = (augment(images, 10.0, 0.1, 2.0, 0.1, seed=seed) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == (images.shape, images.dtype)
    assert first.isfinite().all()
    assert 0 <= first.min() < first.max() <= 1 + 1e-6
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, batches.to_float(split.images))


@pytest.mark.parametrize("amounts", [(10.0,), (0.0, 0.2), (0.0, 0.0, 2.0), (0.0, 0.0, 0.0, 0.2)])
def test_each_image_gets_a_map_of_its_own_from_every_amount_alone(amounts: tuple[float, ...]) -> None:
    images = augment(blobs(20, side=5), *amounts)
    assert len({image.numpy().tobytes() for image in images}) == 20


@pytest.mark.parametrize("largest", [0.5, 2.0, 5.0])
def test_shift_moves_the_center_of_mass_both_ways_by_at_most_its_pixels(largest: float) -> None:
    for moved in centers(augment(blobs(500), 0.0, 0.0, largest, 0.0)):
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
    for moved in centers(turned):
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
    slanted[:, :, 14:] = 0  # the upper half's middle lies 3 pixels above the center
    upper, _ = centers(slanted)
    assert float(upper.abs().max()) == pytest.approx(3 * 0.3, rel=0.1)


def test_pixels_from_outside_are_black() -> None:
    moved = augment(torch.ones(50, 1, 28, 28), 0.0, 0.0, 6.0, 0.0)[:, 0]
    assert moved[:, 7:21, 7:21].min() == pytest.approx(1)
    assert moved.amax(dim=(1, 2)).min() == pytest.approx(1)
    assert (moved.amin(dim=(1, 2)) == 0).float().mean() > 0.8  # all that move by a whole pixel
