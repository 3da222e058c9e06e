"""Sensitivities: against the accuracy of candidates, and how they add up."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from codesign.accuracy import evaluate, pixel_by_pixel
from codesign.cost_table import cost_table
from codesign.data import Images
from codesign.knapsack import knapsack
from codesign.quant import calibrate, match_batchnorm, norm_references, quantize, set_bits
from codesign.quantized_accuracy import QuantizedAccuracy
from codesign.sensitivity import Sensitivities, additivity, sensitivities
from codesign.space import BitwidthSpace
from hwmodels import BitFusion
from hwmodels.from_torch import from_torch

BITS = (2, 4, 8)


@pytest.fixture(scope="module", autouse=True)
def in_float():
    """Values are compared exactly with those of the whole network, which bytes give to rounding alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codesign.quant.byte_conv.bytes_are_exact", lambda: False)
        yield


@pytest.fixture(scope="module")
def case():
    """A network of three layers, the last one pinned: (network, space, statistics, data)."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5),
    )  # fmt: skip
    images = torch.randn(120, 1, 8, 8)
    for norm in (net[1], net[4]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    space = BitwidthSpace(from_torch(net, (1, 1, 8, 8)), BITS, pinned={"7": 8})
    network = quantize(net, space.layer_bits(space.uniform(8)), bitwidths=BITS)
    calibrate(network, images[:64])
    return network, space, images[:64], Images(images[64:], torch.randint(0, 5, (56,)))


def plain(network, space, statistics, data):
    """The accuracy of a candidate, the whole network run for each."""

    def accuracy(arch):
        candidate = copy.deepcopy(network)
        set_bits(candidate, space.layer_bits(arch))
        if statistics is not None:
            images = pixel_by_pixel(statistics)
            match_batchnorm(candidate, images, norm_references(network, images))
        return evaluate(candidate, data)

    return accuracy


@pytest.fixture(scope="module")
def quick(case):
    return QuantizedAccuracy(*case)


@pytest.fixture(scope="module")
def found(case, quick):
    return sensitivities(quick, case[1])


def test_an_entry_is_the_loss_of_that_candidate_less_that_of_the_widest(case, found):
    accuracy = plain(*case)
    base = accuracy((2, 2, 2, 2))["loss"]
    assert found.base_loss == pytest.approx(base, abs=1e-12) and found.increase.shape == (2, 3, 3)
    for w, a in itertools.product(range(3), repeat=2):
        assert found.increase[0, w, a] == pytest.approx(accuracy((w, a, 2, 2))["loss"] - base, abs=1e-12)
        assert found.increase[1, w, a] == pytest.approx(accuracy((2, 2, w, a))["loss"] - base, abs=1e-12)
    assert (found.increase[:, 2, 2] == 0).all() and (found.increase != 0).sum() == 2 * 8


def test_the_network_is_left_alone_and_each_measurement_is_reported(case):
    network, _, _, _ = case
    before = {name: value.clone() for name, value in network.state_dict().items()}
    bits = [(layer.weight_bits, layer.input_bits) for layer in network.modules() if hasattr(layer, "weight_bits")]
    calls = []
    sensitivities(QuantizedAccuracy(*case), case[1], progress=lambda: calls.append(None))
    assert len(calls) == 2 * (3**2 - 1) + 1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert bits == [
        (layer.weight_bits, layer.input_bits) for layer in network.modules() if hasattr(layer, "weight_bits")
    ]


def test_without_images_for_them_batchnorm_statistics_stay(case, found):
    network, space, _, data = case
    kept = sensitivities(QuantizedAccuracy(network, space, None, data), space)
    assert kept.base_loss != found.base_loss
    assert kept.base_loss == pytest.approx(plain(network, space, None, data)((2, 2, 2, 2))["loss"], abs=1e-12)


def test_archs_that_differ_from_the_widest_in_one_layer_add_up_exactly(case, quick, found):
    archs = [(w, a, 2, 2) for w in range(3) for a in range(3)]
    check = additivity(found, quick, case[1], archs=archs)
    assert check.r2 == pytest.approx(1) and check.tau == pytest.approx(1)
    assert check.predicted == pytest.approx(check.measured)


def test_additivity_is_that_of_its_formulas_on_twenty_assignments(case, quick, found):
    check = additivity(found, quick, case[1])
    assert len(check.measured) == len(check.predicted) == 20
    rest = ((check.measured - check.predicted) ** 2).sum()
    assert check.r2 == pytest.approx(1 - rest / (20 * check.measured.var()))
    space, rng = case[1], np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(20)]
    sums = [found.base_loss + found.increase[0, w0, a0] + found.increase[1, w1, a1] for w0, a0, w1, a1 in archs]
    assert check.predicted == pytest.approx(sums)
    assert -1 <= check.tau <= 1
    with pytest.raises(ValueError, match="at least two"):
        additivity(found, quick, case[1], archs=[(0, 0, 0, 0)])


def test_as_an_objective_they_give_the_arch_of_enumeration(case, found):
    space = case[1]
    table = cost_table(space, BitFusion(), n_checks=0)
    archs = np.array(list(itertools.product(range(3), repeat=4)))
    costs = table.price(archs)["energy_j"]
    limit = float(np.median(costs))
    best = knapsack(table, found.factors(space), {"energy_j": limit})
    assert found.base_loss + best.objective == pytest.approx(found.predict(archs)[costs <= limit].min())
    with pytest.raises(ValueError, match="the space must search what they were measured on"):
        found.factors(BitwidthSpace(space.network, (2, 8), pinned={"7": 8}))


def test_monotone_ones_lose_no_less_with_fewer_bits(found):
    raised = found.monotone().increase
    for layer, w, a in np.ndindex(raised.shape):
        assert raised[layer, w, a] == max(0.0, found.increase[layer, w:, a:].max())
    assert (found.increase < 0).any() and found.monotone().base_loss == found.base_loss


def test_where_input_bits_are_fixed_they_are_those_of_weights(case, tmp_path):
    network, space, statistics, data = case
    weights = BitwidthSpace(space.network, BITS, space.pinned, input_bits=4)
    found = sensitivities(QuantizedAccuracy(network, weights, statistics, data), weights)
    accuracy = plain(network, weights, statistics, data)
    assert found.increase.shape == (2, 3, 1)
    assert found.increase[1, 0, 0] == pytest.approx(accuracy((2, 0))["loss"] - accuracy((2, 2))["loss"], abs=1e-12)
    assert found.predict([(2, 0)])[0] == pytest.approx(accuracy((2, 0))["loss"], abs=1e-12)
    table = cost_table(weights, BitFusion())
    limit = 0.7 * table.price([(2, 2)])["weight_bytes"][0]
    best = min(
        (a for a in itertools.product(range(3), repeat=2) if table.price([a])["weight_bytes"][0] <= limit),
        key=lambda a: found.predict([a])[0],
    )
    assert knapsack(table, found.factors(weights), {"weight_bytes": limit}).arch == best
    found.save(tmp_path / "s.npz")
    assert Sensitivities.load(tmp_path / "s.npz").increase.shape == (2, 3, 1)
    with pytest.raises(ValueError, match="must search what they were measured on"):
        found.factors(space)


def test_they_are_read_back_and_another_file_is_refused(found, tmp_path):
    found.save(tmp_path / "s.npz")
    back = Sensitivities.load(tmp_path / "s.npz")
    assert (back.layers, back.bits, back.base_loss) == (found.layers, found.bits, found.base_loss)
    assert np.array_equal(back.increase, found.increase)
    (tmp_path / "text").write_text("no")
    np.savez(tmp_path / "other.npz", layers=np.array(["a"]), bits=np.array(BITS), base_loss=0.0, increase=np.ones(3))
    np.savez(tmp_path / "pickle.npz", layers=np.array([{}], dtype=object))
    for name in ("text", "other.npz", "pickle.npz"):
        with pytest.raises(ValueError, match=r"must be a file that save\(\) wrote"):
            Sensitivities.load(tmp_path / name)


def test_a_loss_that_is_no_number_is_refused(case):
    network, space, statistics, data = case
    broken = Images(torch.full_like(data.images, torch.nan), data.labels)
    with pytest.raises(ValueError, match="the loss must be a number, got nan"):
        sensitivities(QuantizedAccuracy(network, space, statistics, broken), space)
