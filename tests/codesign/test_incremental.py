"""Incremental evaluation: against the whole network run anew, whatever came before."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from codesign import incremental
from codesign.accuracy import summary
from codesign.data import Images
from codesign.incremental import IncrementalNetwork, WholeNetwork, scorer
from codesign.nets.resnet_cifar import CifarResNet
from codesign.network_graph import NetworkGraph, NotTraceable, graph_of
from codesign.quant import calibrate, quantize
from codesign.quant.byte_conv import bytes_are_exact
from codesign.quantized_accuracy import QuantizedAccuracy
from codesign.space import BitwidthSpace
from hwmodels.from_torch import from_torch

BITS = (2, 4, 8)


class InPlace(nn.Module):
    """Every way to overwrite what another layer still reads."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4))
        self.norm, self.relu, self.fc = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Linear(4, 5)

    def forward(self, x):
        x = self.first(x[:, :, 0:])
        y = self.relu(self.norm(self.second(x)))
        y += functional.relu(x, inplace=True)
        y = self.third(y).relu_() + y
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(y, 1), 1))


class AddsNumbers(nn.Module):
    """Sums of a norm's value with a number, and with itself."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.other, self.fc = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        x = functional.relu(self.norm(self.first(x)) + 1.5)
        y = self.other(self.second(x))
        return self.fc((y + y).mean(dim=(2, 3)))


class Decides(nn.Module):
    """A forward that depends on what it is given."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x)
        if x.shape[-1] > 4:
            x = functional.avg_pool2d(x, 2)
        return self.fc(x.mean(dim=(2, 3)))


def case(network):
    """(quantized network, its space, images, statistics)."""
    torch.manual_seed(0)
    images, statistics = torch.randn(60, 3, 8, 8), torch.randn(32, 3, 8, 8)
    network.eval()
    space = BitwidthSpace(from_torch(network, (1, 3, 8, 8)), BITS)
    quantized = quantize(network, 8, bitwidths=BITS)
    calibrate(quantized, statistics)
    return quantized, space, images, statistics


def walk(space, rng, n=12):
    """Assignments, some far from the one before, some near, some the same."""
    arch = list(space.uniform(8))
    for i in range(n):
        if i % 4 == 0:
            arch = list(space.sample(rng))
        elif i % 4 < 3:
            arch[rng.integers(len(arch))] = int(rng.integers(len(BITS)))
        yield space.layer_bits(arch)


@pytest.mark.parametrize("renewal", ["match", "renew", "keep"])
@pytest.mark.parametrize("make", [lambda: CifarResNet(8), InPlace, AddsNumbers], ids=["resnet", "in-place", "numbers"])
@pytest.mark.parametrize("most_bytes", [2**30, 100_000, 0])
def test_scores_are_those_of_the_whole_network(make, renewal, most_bytes, monkeypatch):
    monkeypatch.setattr(incremental, "CHUNK", 25)
    torch.manual_seed(1)
    network, space, images, statistics = case(make())
    statistics = None if renewal == "keep" else statistics
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quick = IncrementalNetwork(
        network, NetworkGraph.of(network), images, statistics, renewal, most_bytes, on_bytes=False
    )
    slow = WholeNetwork(network, images, statistics, renewal)
    for bits in walk(space, np.random.default_rng(0)):
        torch.testing.assert_close(quick(bits), slow(bits), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.skipif(not bytes_are_exact(), reason="this processor or torch does not multiply bytes exactly")
@pytest.mark.parametrize(
    "make", [lambda: CifarResNet(8), lambda: CifarResNet(14), InPlace], ids=["8", "14", "in-place"]
)
def test_on_bytes_scores_are_those_of_the_whole_network_to_rounding(make):
    torch.manual_seed(1)
    network, space, images, _ = case(make())
    quick = IncrementalNetwork(network, NetworkGraph.of(network), images)
    slow = WholeNetwork(network, images)
    alike = []
    for bits in walk(space, np.random.default_rng(0)):
        found, expected = quick(bits), slow(bits)
        alike.append(((found - expected).abs().amax(dim=1) < 1e-4 * expected.abs().max()).double().mean().item())
        assert (found.argmax(1) == expected.argmax(1)).double().mean() > 0.9
    assert np.mean(alike) > 0.9  # in a few images a value lies in the middle of two levels
    assert any(convolution is not None for convolution in quick._byte_convs.values())


def test_where_bytes_are_not_exact_nothing_runs_on_them(monkeypatch):
    monkeypatch.setattr("codesign.quant.byte_conv.bytes_are_exact", lambda: False)
    network, space, images, statistics = case(CifarResNet(8))
    quick = IncrementalNetwork(network, NetworkGraph.of(network), images, statistics)
    bits = space.layer_bits(space.sample(np.random.default_rng(0)))
    torch.testing.assert_close(quick(bits), WholeNetwork(network, images, statistics)(bits), rtol=1e-5, atol=1e-5)


def test_what_is_computed_at_once_is_what_nothing_else_reads():
    network, *_ = case(CifarResNet(8))
    graph = NetworkGraph.of(network)
    chains = graph.chains(network)
    found = {chain.layer: (chain.norm, chain.activation) for chain in chains.values()}
    assert found["conv1"] == ("bn1", "relu") and found["layer1.0.conv2"] == ("layer1.0.bn2", "none")
    assert len(found) == 7 and list(graph.activated_sums(network).values()) == ["relu"] * 3
    assert all(chain.steps[0] == first for first, chain in chains.items())
    network, *_ = case(InPlace())
    graph = NetworkGraph.of(network)
    found = {chain.layer: (chain.norm, chain.activation) for chain in graph.chains(network).values()}
    assert found == {"first": (None, "none"), "second": ("norm", "relu"), "third": (None, "relu")}


def test_what_came_before_changes_no_bit():
    network, space, images, statistics = case(CifarResNet(8))
    quick = IncrementalNetwork(network, NetworkGraph.of(network), images, statistics)
    for bits in walk(space, np.random.default_rng(3)):
        assert torch.equal(quick(bits), IncrementalNetwork(network, NetworkGraph.of(network), images, statistics)(bits))


def test_only_what_lies_behind_a_change_is_computed(monkeypatch):
    network, space, images, statistics = case(CifarResNet(8))
    quick = IncrementalNetwork(network, NetworkGraph.of(network), images, statistics, on_bytes=False)
    seen = []
    monkeypatch.setattr(type(network.conv1), "quantized_input", lambda self, x: (seen.append(self), x)[1], raising=True)
    names = list(space.searched)
    for changed in (names[0], names[3], names[5]):
        bits = space.layer_bits(space.uniform(8))
        quick(bits)
        seen.clear()
        quick({**bits, changed: (2, 2)})
        convolutions = len(names) - 1 - names.index(changed)  # each for the statistics and for the images
        assert len(seen) == 2 * convolutions


def test_a_forward_that_decides_is_run_as_a_whole():
    network, space, images, _ = case(Decides())
    with pytest.raises(NotTraceable, match="the graph cannot be read"):
        NetworkGraph.of(network)
    assert graph_of(network) is None and isinstance(scorer(network, None, images), WholeNetwork)
    data = Images(images, torch.randint(0, 5, (60,)))
    arch = space.sample(np.random.default_rng(0))
    scores = WholeNetwork(network, images)(space.layer_bits(arch))
    assert QuantizedAccuracy(network, space, None, data)(arch) == summary(scores, data.labels)


def test_an_error_in_between_does_not_leave_half_of_an_assignment():
    network, space, images, statistics = case(CifarResNet(8))
    quick = IncrementalNetwork(network, NetworkGraph.of(network), images, statistics)
    first, second = space.layer_bits(space.uniform(8)), space.layer_bits(space.uniform(2))
    expected = quick(first)
    with pytest.raises(ValueError, match="must have a quantizer for each bitwidth"):
        quick({**second, "linear": (3, 3)})
    assert torch.equal(quick(first), expected)


def test_a_graph_can_be_sent_to_another_process():
    network, space, images, statistics = case(InPlace())
    graph = NetworkGraph.of(network)
    sent = pickle.loads(pickle.dumps(graph))
    bits = space.layer_bits(space.uniform(4))
    scores = [IncrementalNetwork(network, one, images, statistics)(bits) for one in (graph, sent)]
    assert torch.equal(*scores)


def test_a_layer_that_is_used_twice_is_refused():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    network = quantize(nn.Sequential(layer, layer, nn.Flatten(), nn.Linear(192, 5)), 8)
    with pytest.raises(NotTraceable, match="3 uses of 2 layers"):
        NetworkGraph.of(network)
