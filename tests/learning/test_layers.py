import pytest
import torch
from torch import nn

from digits.learning.layers import BatchNorm, Crop, Dropout, Normalize, Residual


def test_residual_block_without_a_change_passes_on_what_comes_in() -> None:
    block = Residual(2).eval()
    nn.init.zeros_(block.change[-1].weight)  # type: ignore[arg-type]  # of its last batch norm
    features = torch.randn(1, 2, 5, 5)
    assert torch.equal(block(features), features.relu())


def test_crop_cuts_the_margin_off_every_side() -> None:
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(Crop(3)(images), images[:, :, 3:25, 3:25])
    assert torch.equal(Crop(0)(images), images)


def test_statistics_of_normalization_are_kept_among_the_weights_and_not_trained() -> None:
    layer = Normalize(0.25, 0.5)
    assert layer(torch.tensor([0.25, 0.75])).tolist() == [0.0, 1.0]
    assert {key: float(value) for key, value in layer.state_dict().items()} == {"mean": 0.25, "std": 0.5}
    assert not list(layer.parameters())


def test_dropout_keeps_the_mean_in_training_and_changes_nothing_otherwise() -> None:
    torch.manual_seed(0)
    units, layer = torch.ones(1000), Dropout(0.25)
    found = layer(units)
    assert sorted(set(found.tolist())) == [0.0, pytest.approx(4 / 3)]
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.06)  # 4 standard errors
    assert torch.equal(layer.eval()(units), units)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 4)])
def test_batch_norm_in_one_process_is_that_of_torch(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer, expected = BatchNorm(3), nn.BatchNorm1d(3) if len(shape) == 2 else nn.BatchNorm2d(3)
    for _ in range(2):
        assert torch.equal(layer(values), expected(values))
    assert torch.equal(layer.eval()(values), expected.eval()(values))
