import pytest
import torch
from torch import Tensor

from digits.images.corruptions import corrupt, meaningless
from digits.images.severities import CORRUPTIONS, SEVERITIES, described
from tests.conftest import bars

IMAGES = bars(12).images


def difference(images: Tensor) -> float:
    return float((images.float() - IMAGES.float()).abs().mean())


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_is_the_same_every_time_and_worse_with_each_severity(kind: str) -> None:
    found = [corrupt(IMAGES, kind, severity) for severity in SEVERITIES]
    assert all(images.dtype == torch.uint8 and images.shape == IMAGES.shape for images in found)
    assert torch.equal(found[2], corrupt(IMAGES, kind, 3))
    amounts = [difference(images) for images in found]
    assert 0 < amounts[0] < amounts[2]
    assert kind in ("scale", "stroke", "shift") or amounts == sorted(amounts)  # or the bar leaves the image


def middle(images: Tensor) -> Tensor:
    """Return the center of mass of each image: row and column, [n, 2]."""
    weights = images[:, 0].double()
    places = torch.arange(28, dtype=torch.float64)
    total = weights.sum(dim=(1, 2))
    rows, columns = (weights.sum(dim=2) @ places) / total, (weights.sum(dim=1) @ places) / total
    return torch.stack([rows, columns], dim=1)


def test_images_are_shifted_in_all_four_directions() -> None:
    dot = torch.zeros(8, 1, 28, 28, dtype=torch.uint8)
    dot[..., 13:15, 13:15] = 255
    moved = (middle(corrupt(dot, "shift", 3)) - middle(dot)).round().int()
    assert {tuple(step) for step in moved.tolist()} == {(3, 3), (3, -3), (-3, 3), (-3, -3)}


def test_images_are_rotated_and_scaled_in_both_directions() -> None:
    bar = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    bar[..., 13:15, 14:24] = 255  # to the right of the middle
    rows = middle(corrupt(bar, "rotation", 3))[:, 0] - 13.5
    assert rows[0] * rows[1] < 0
    assert abs(float(rows[0])) > 1.5
    columns = middle(corrupt(bar, "scale", 3))[:, 1] - middle(bar)[:, 1]
    assert columns[0] * columns[1] < 0


def test_strokes_become_wider_and_thinner_in_turn() -> None:
    ink = corrupt(IMAGES, "stroke", 5).float().mean(dim=(1, 2, 3)) - IMAGES.float().mean(dim=(1, 2, 3))
    assert ((ink > 0).tolist()) == [place % 2 == 0 for place in range(12)]


def test_full_inversion_is_the_negative_and_low_contrast_keeps_the_mean() -> None:
    assert torch.equal(corrupt(IMAGES, "inversion", 5), 255 - IMAGES)
    faint = corrupt(IMAGES, "contrast", 5).float()
    assert torch.allclose(faint.mean(dim=(1, 2, 3)), IMAGES.float().mean(dim=(1, 2, 3)), atol=1)
    assert float(faint.std()) == pytest.approx(float(IMAGES.float().std()) / 10, rel=0.2)


def test_what_is_done_is_said_with_its_amount() -> None:
    assert [described(kind, 3) for kind in ("rotation", "blur", "contrast")] == [
        "rotated by 20 degrees", "blurred with a sigma of 1.5 pixels", "with 30% of their contrast",
    ]  # fmt: skip


def test_meaningless_images_have_the_shape_of_the_others_and_are_of_several_kinds() -> None:
    found = meaningless(IMAGES)
    assert all(images.shape == IMAGES.shape and images.dtype == torch.uint8 for images in found.values())
    assert int(found["one gray"].float().std(dim=(1, 2, 3)).max()) == 0
    shuffled, original = found["pixels shuffled"].flatten(1), IMAGES.flatten(1)
    assert torch.equal(shuffled.sort(dim=1).values, original.sort(dim=1).values)
    assert not torch.equal(shuffled, original)
    assert bool((found["two images in one"] >= IMAGES).all())


@pytest.mark.parametrize("kind", ["shift", "rotation", "scale"])
def test_paper_that_is_not_black_stays_what_it_is(kind: str) -> None:
    images = torch.full((8, 3, 16, 16), 255, dtype=torch.uint8)
    images[:, 1] = 200
    images[..., 6:10, 6:10] = 20
    moved = corrupt(images, kind, 2)
    assert moved[:, 0, 0].min() == 255
    assert (moved[:, 1, 0].int() - 200).abs().max() <= 1
