import pytest
import torch

from benchmarks import peers
from benchmarks.probe import Probe
from digits.images.batches import to_float
from digits.images.splits import Split
from digits.learning import evaluation
from digits.learning.layers import Normalize
from tests.conftest import bars


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_learns_from_a_batch_and_returns_a_logit_for_each_digit(name: str) -> None:
    peer, cpu = peers.PEERS[name], torch.device("cpu")
    torch.manual_seed(0)
    network = peer.network()
    before = [weights.clone() for weights in network.parameters()]
    probe = Probe(name, 0, 1, lambda: 0.0, budget=0)
    peers.fit(peer, network, bars(64), cpu, probe)
    assert probe.step == 1
    assert not any(map(torch.equal, before, network.parameters()))
    assert evaluation.predict(network, bars(3), 2, cpu).logits.shape == (3, 10)


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_is_measured_with_the_normalization_that_it_is_trained_with(name: str, split: Split) -> None:
    peer = peers.PEERS[name]
    image, label = peers.Images(split, peer.mean, peer.std)[5]
    torch.testing.assert_close(image, Normalize(peer.mean, peer.std)(to_float(split.images[5])))
    assert label == split.labels[5]
