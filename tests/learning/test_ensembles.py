from typing import Any

import pytest
import torch
from torch import Tensor, nn

from digits.learning import ensembles, networks

KNOBS: dict[str, Any] = {"crop": 0, "channels": [4, 4], "hidden": 8, "dropout": 0.3}
IMAGES = torch.rand(16, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def built(members: int = 2, **knobs: Any) -> nn.Module:
    torch.manual_seed(0)
    return networks.build("cnn", 3, KNOBS | {"members": members} | knobs, mean=0.2, std=0.3)


def gradients(network: nn.Module) -> Tensor:
    """Return those of two steps' losses, after which the running statistics differ as well."""
    for power in (1, 2):
        network(IMAGES).float().pow(power).sum().backward()
    pieces = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    return torch.cat([*pieces, *(buffer.flatten().float() for buffer in network.buffers())])


@pytest.mark.parametrize("members", [2, 3])
def test_members_in_threads_compute_the_bits_of_one_after_the_other(
    members: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gradients(built(members))
    assert torch.equal(found, gradients(built(members)))
    assert (ensembles._map(members, IMAGES.device) is map) == (threads == 1)
    monkeypatch.setattr(ensembles, "_map", lambda *_: map)
    torch.set_num_threads(1)
    assert torch.equal(found, gradients(built(members)))


@pytest.mark.usefixtures("threads")
def test_each_member_drops_units_of_its_own_and_the_seed_decides_which() -> None:
    network = built(dropout=0.5)
    one, other = next(module for module in network.modules() if isinstance(module, ensembles.Ensemble))
    other.load_state_dict(one.state_dict())
    torch.manual_seed(1)
    found = network(IMAGES)
    assert not torch.equal(found[:, 0], found[:, 1])
    assert not torch.equal(found, network(IMAGES))
    torch.manual_seed(1)
    assert torch.equal(found, network(IMAGES))


@pytest.mark.usefixtures("threads")
def test_members_compute_in_the_precision_that_is_asked_for() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert built()(IMAGES).dtype == torch.bfloat16
    assert built()(IMAGES).dtype == torch.float32


@pytest.mark.usefixtures("threads")
def test_error_of_a_member_reaches_the_training() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        built()(IMAGES.expand(-1, 3, -1, -1))
