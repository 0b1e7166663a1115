import pytest
import torch
from torch import Tensor, nn

from digits.images.severities import CORRUPTIONS
from digits.images.splits import Split
from digits.learning import robustness
from digits.learning.scores import ORIGINAL, Robustness
from tests.conftest import bars

CPU = torch.device("cpu")


class Columns(nn.Module):
    """Sees in which third of the image the bar is."""

    def forward(self, images: Tensor) -> Tensor:
        columns = images.mean(dim=(1, 2))
        return 50 * torch.stack([columns[:, place : place + 4].mean(dim=1) for place in (4, 12, 20)], dim=1)


@pytest.fixture(scope="module")
def found() -> Robustness:
    return robustness.measure(Columns(), bars(90), 0.5, 32, CPU)


def test_corruptions_that_move_the_bar_cost_a_network_that_looks_at_places(found: Robustness) -> None:
    assert (found.count, found.accuracy) == (90, 1.0)
    assert list(found.corrupted) == list(CORRUPTIONS)
    assert found.corrupted["shift"][0] == 1.0
    assert found.corrupted["shift"][4] < 0.9
    assert found.corrupted["noise"][0] == 1.0
    assert all(0 <= share <= 1 for shares in found.corrupted.values() for share in shares)


def test_table_has_a_row_for_each_severity_and_the_images_as_they_are(found: Robustness) -> None:
    rows = found.rows()
    assert [row["severity"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert {value for key, value in rows[0].items() if key != "severity"} == {1.0}
    assert [row["shift"] for row in rows[1:]] == found.corrupted["shift"]


def test_confidence_is_that_of_the_calibrated_network(found: Robustness) -> None:
    sharper = robustness.measure(Columns(), bars(90), 0.25, 32, CPU)
    assert found.confidence[ORIGINAL] == sorted(found.confidence[ORIGINAL])
    assert found.confidence["one gray"] == pytest.approx([1 / 3] * 5)  # nothing to be seen
    assert found.confidence["noise"][2] < sharper.confidence["noise"][2] < 1


def test_sample_of_a_large_split_has_every_class_in_its_share() -> None:
    labels = torch.arange(1500) // 500  # in the order of the classes, as people's own data may be
    images = torch.zeros(1500, 1, 28, 28, dtype=torch.uint8)
    images[torch.arange(1500), 0, 4:24, 4:8] = 250

    class First(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.eye(3)[0].expand(len(images), 3)

    found = robustness.measure(First(), Split(images, labels, ("a", "b", "c")), 1.0, 500, CPU)
    assert found.count == robustness.SAMPLE
    assert found.accuracy == pytest.approx(1 / 3, abs=0.002)
