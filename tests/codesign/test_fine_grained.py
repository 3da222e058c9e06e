"""Fine-grained quantization: groups of channels, the smallest network of a bounded loss, shares that become one."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_task import BITS, at_work, problem
from torch.nn import functional

from codesign.quant import set_bits
from codesign.quant.convert import mode
from codesign.strategies import FineGrained
from codesign.strategies.relaxed_bits import group_of
from codesign.strategies.relaxed_network import Mixture, mixed, mixtures_of


@pytest.fixture(scope="module")
def p():
    return problem()


def some_logits(groups, seed=0):
    return np.random.default_rng(seed).normal(size=(6, groups, len(BITS)))


@pytest.mark.parametrize(("n", "groups"), [(8, 1), (8, 3), (12, 5), (3, 8)])
def test_groups_are_of_neighbours_and_of_equal_size_up_to_one(n, groups):
    group = group_of(n, groups)
    sizes = np.bincount(group, minlength=groups)
    assert (np.diff(group) >= 0).all() and sizes.sum() == n and set(sizes) <= {n // groups, -(-n // groups)}


def test_each_group_of_channels_mixes_by_itself(p):
    layer = p.supernet.network.get_submodule("3")  # 12 output channels
    shares = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), size=5))
    found = mixed(layer.weight, layer.weight_quantizers, Mixture((1, 2, 8), shares))
    for channel in range(12):
        row = shares[channel * 5 // 12].float()
        copies = [layer.weight_quantizers[str(bits)](layer.weight)[channel] for bits in (1, 2, 8)]
        assert torch.allclose(found[channel], sum(s * c for s, c in zip(row, copies, strict=True)), atol=1e-6)
    alone = mixed(layer.weight, layer.weight_quantizers, Mixture((1, 2, 8), shares[:1].repeat(5, 1)))
    assert torch.allclose(alone, mixed(layer.weight, layer.weight_quantizers, Mixture((1, 2, 8), shares[0])), atol=1e-6)


def test_weights_have_groups_and_inputs_do_not(p):
    strategy = FineGrained(groups=4)
    point = torch.from_numpy(some_logits(4))
    mixtures = mixtures_of(p.space, strategy.relaxation(point, p.space, 0.0, np.random.default_rng(0)))
    assert [tuple(m.shares.shape) for m in mixtures] == [(4, 6), (6,)] * 3
    assert torch.allclose(mixtures[1].shares, point[1, 0].softmax(0))
    assert [tuple(m.shares.shape) for m in mixtures_of(p.space, FineGrained().relaxation(point[:, :1], p.space, 0.0,
                                                       np.random.default_rng(0)))] == [(6,)] * 6  # fmt: skip


def test_the_size_of_a_layer_is_that_of_its_groups_together(p):
    """Exactly, counted weight by weight; channels of a layer differ in number from group to group."""
    strategy, logits = FineGrained(groups=5), some_logits(5)
    logits[:] = np.where(logits == logits.max(axis=2, keepdims=True), 100.0, 0.0)  # each group at one bitwidth
    step = at_work(p, strategy)
    policies = strategy.policies(torch.from_numpy(logits), p.space, 1.0)
    bits = 0.0
    for layer, group_logits in zip(p.space.network.mac_layers, logits[::2], strict=False):
        each = np.array(BITS)[group_logits.argmax(axis=1)][group_of(layer.out_channels, 5)]
        bits += each.sum() * layer.weight_count / layer.out_channels
    n_weights = sum(layer.weight_count for layer in p.space.network.mac_layers[:3])
    assert step.costs.in_bits(policies).item() == pytest.approx(bits / n_weights)
    fixed = p.price(p.space.uniform(1)).metrics()["weight_bytes"] - n_weights / 8
    expected = p.table.expected(list(policies.numpy()))["weight_bytes"]
    assert expected - fixed == pytest.approx(bits / 8)


def test_a_layer_is_offered_at_the_least_bitwidth_that_holds_the_mean_of_its_groups(p):
    options = np.zeros((6, 2, len(BITS)))
    for i, pair in enumerate([(1, 1), (1, 2), (2, 8), (3, 1), (8, 8), (4, 8)]):
        for group, bits in enumerate(pair):
            options[i, group, BITS.index(bits)] = 9.0
    likeliest = FineGrained(groups=2).likeliest(options, p.space)
    # weights of three layers with an even number of channels: means of 1, 5, 8; inputs have the first group alone
    assert [BITS[option] for option in likeliest] == [1, 1, 6, 3, 8, 4]
    logits = some_logits(1)
    assert FineGrained().likeliest(logits, p.space) == tuple(logits[:, 0].argmax(axis=1).tolist())


def test_shares_become_those_of_one_option():
    p, strategy = problem(bits=(2, 4, 8)), FineGrained(temperature=2.0, last_temperature=0.02)
    point = torch.from_numpy(some_logits(1)[:, :, :3])
    largest = []
    for progress in (0.0, 0.5, 1.0, 2.0):
        shares = strategy.policies(point, p.space, progress)
        tau = 2.0 * 0.01 ** min(progress, 1)
        assert torch.allclose(shares, (point[:, 0] / tau).softmax(dim=1))
        largest.append(shares.max(dim=1).values.min().item())
    assert largest == sorted(largest) and largest[0] < 0.5 and largest[-1] > 0.9 and largest[2] == largest[3]


# --- the smallest network of a bounded loss -------------------------------------------------------------------------


def float_loss(of, batch_size):
    network, (images, labels) = copy.deepcopy(of.network), of.data.search
    set_bits(network, None)
    network.get_submodule("11").p = 0.0
    with mode(network, training=True), torch.no_grad():
        scores = torch.cat([network(batch) for batch in images.split(batch_size)])
    return functional.cross_entropy(scores, labels).item()


def test_the_bound_is_relative_to_the_loss_in_float_measured_as_the_relaxed_one_is(p):
    network = copy.deepcopy(p.supernet.network)
    network.get_submodule("11").p = 0.0
    plain = replace(p, supernet=replace(p.supernet, network=network))
    strategy = FineGrained(bound=0.2, steps=4)
    before = copy.deepcopy(network.state_dict())
    state = strategy.init(plain, np.random.default_rng(0))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert state["float_loss"] == pytest.approx(float_loss(plain.supernet, 32), rel=1e-6)
    step = strategy.start(plain, state)
    assert step.largest_loss == pytest.approx(1.2 * state["float_loss"])
    seen = step.policy_step()
    assert seen["loss_usage"] == pytest.approx(seen["loss"] / step.largest_loss)


def test_without_limits_the_size_is_minimised_under_a_bound_and_under_limits_the_loss():
    loss, bits, point = torch.tensor(0.3), torch.tensor(3.0), torch.zeros(1)
    free, limited = problem(), problem({"energy_j": 0.5})
    for strategy, p, expected, bounded in (
        (FineGrained(), free, bits, True), (FineGrained(), limited, loss, False),
        (FineGrained(bound=0.3), limited, bits, True), (FineGrained.paper(), limited, bits, True),
    ):  # fmt: skip
        assert strategy.objective(loss, bits, point, bool(p.limits)) is expected
        step = at_work(p, strategy)
        assert (step.largest_loss is not None) == bounded
        passes = 400 * 3 * (32 + 32) + 128 * bounded  # the loss in float is measured, forwards only
        assert strategy.training_passes(p) == passes


def test_a_looser_bound_gives_a_smaller_network_whose_loss_grows_no_more_than_that():
    p = problem(input_bits=8, n_train=256, epochs=20)
    ends = []
    for bound in (0.2, 3.0):
        step = at_work(p, FineGrained(bound=bound, steps=60, steps_per_offer=15, learning_rate=0.15))
        seen = [step.advance() for _ in range(4)]
        ends.append((seen[-1]["mean_bits"], step.offer(1)[0], seen[-1]["loss"]))
        assert seen[-1]["loss"] < 1.15 * step.largest_loss
        assert step.policies().max(axis=1).min() > 0.9
    (tight, tight_arch, _), (loose, loose_arch, _) = ends
    assert loose < tight < 8
    sizes = p.costs([tight_arch, loose_arch])["weight_bytes"]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"bound": 0.0}, "bound must be positive, got 0.0"),
        ({"temperature": 0.01}, "last_temperature must be positive and at most temperature=0.01, got 0.05"),
        ({"last_temperature": 0.0}, "last_temperature must be positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"FineGrained: {message}"):
        FineGrained(**fields)
