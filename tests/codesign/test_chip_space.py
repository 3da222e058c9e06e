"""Network and chip chosen together: costs are those of each combination, and limits on the area hold."""

import itertools
import math

import numpy as np
import pytest
from toys import Roofline, RoundingError, network

from codesign.chip_space import ChipSpace
from codesign.cost_table import cost_table
from codesign.limits import parse_limits
from codesign.nets.mobilenetv2 import Block, MobileNetV2Space
from codesign.problem import Problem, UnreachableLimit
from codesign.search import search
from codesign.space import BitwidthSpace
from codesign.strategies import Random, Reinforce
from hwmodels import BitFusion, estimate

NETWORKS = MobileNetV2Space.preset("tiny", bits=(2, 8), kernel_sizes=(3,), expansions=(1, 3))
FIELDS = {"rows": (8, 16, 32), "dram_bits_per_cycle": (64, 192)}
CHIP = BitFusion(cols=16)


@pytest.fixture(scope="module")
def space():
    return ChipSpace(NETWORKS, FIELDS)


@pytest.fixture(scope="module")
def table(space):
    return cost_table(space, CHIP)


def chip_of(arch):
    return BitFusion(
        cols=16, rows=FIELDS["rows"][arch[-2]], dram_bits_per_cycle=FIELDS["dram_bits_per_cycle"][arch[-1]]
    )


def all_archs(space):
    return np.array(list(itertools.product(*map(range, space.option_counts))))


def test_the_choices_are_those_of_the_network_and_of_the_chip(space):
    assert space.size == NETWORKS.size * 3 * 2
    arch = (3, 5, 2, 0)
    assert space.network_arch(arch) == (3, 5)
    assert space.decode(arch) == NETWORKS.decode((3, 5)) | {"chip.rows": 32, "chip.dram_bits_per_cycle": 64}
    assert space.hardware(arch, CHIP) == chip_of(arch)
    assert space.workload(arch) == NETWORKS.workload((3, 5))


def test_the_cost_of_every_chip_is_that_of_estimate(space, table):
    problem = Problem(space, None, CHIP)
    rng = np.random.default_rng(0)
    archs = [(*NETWORKS.sample(rng), *chip) for chip in np.ndindex(3, 2) for _ in range(2)]
    costs = problem.costs(archs)
    for i, arch in enumerate(archs):
        expected = estimate(NETWORKS.workload(arch[:-2]), chip_of(arch)).metrics()
        assert {name: column[i] for name, column in costs.items()} == pytest.approx(expected, rel=1e-12)
        assert problem.price(arch).metrics() == expected
    assert table.gap < 1e-12


def test_expected_cost_and_its_gradient_are_those_of_an_enumeration(space, table):
    rng = np.random.default_rng(1)
    policies = [rng.dirichlet(np.ones(count)) for count in space.option_counts]
    archs = all_archs(space)
    probability = np.prod([policy[archs[:, i]] for i, policy in enumerate(policies)], axis=0)
    costs = table.price(archs)
    for metric, value in table.expected(policies).items():
        assert value == pytest.approx(probability @ costs[metric], rel=1e-12)
    for metric in ("energy_j", "area_mm2"):
        for i, gradient in enumerate(table.expected_gradient(policies, metric)):
            taken = [archs[:, i] == option for option in range(len(gradient))]
            given = np.array([probability[t] @ costs[metric][t] for t in taken]) / policies[i]  # E[cost | option]
            # What all options have in common is no matter: probabilities sum to one.
            centred, expected = gradient - policies[i] @ gradient, given - policies[i] @ given
            np.testing.assert_allclose(centred, expected, rtol=1e-9, atol=1e-12 * given.max())


def test_the_lowest_cost_is_that_of_an_enumeration(space, table):
    costs = table.price(all_archs(space))
    for weights in ({"energy_j": 1.0}, {"latency_s": 1.0}, {"latency_s": 1e3, "area_mm2": 1.0}):
        summed = sum(weight * costs[metric] for metric, weight in weights.items())
        arch, cost = table.lowest(weights)
        assert cost == pytest.approx(summed.min(), rel=1e-12)
        assert sum(weight * table.price([arch])[metric][0] for metric, weight in weights.items()) == pytest.approx(cost)


def error_of(arch):
    """Falls with the options of the network; knows nothing of a chip."""
    assert len(arch) == len(NETWORKS.choices)
    return {"error": sum(1 / (1 + option) for option in arch)}


@pytest.mark.parametrize("strategy", [Random(), Reinforce(fill=False)])
def test_searches_choose_the_chip_within_limits_on_area_and_latency(space, strategy):
    areas = [BitFusion(cols=16, rows=rows).area_mm2 for rows in FIELDS["rows"]]
    fast = estimate(NETWORKS.workload((0, 0)), chip_of((0, 0, 1, 1))).latency_s
    limits = {"area_mm2": areas[1], "latency_s": 1.5 * fast}
    trials = search(Problem(space, error_of, CHIP, limits), strategy, 30, seed=0)
    for trial in trials:
        report = estimate(NETWORKS.workload(trial.arch[:-2]), chip_of(trial.arch))
        assert trial.feasible and report.latency_s <= limits["latency_s"]
        assert trial.metrics["area_mm2"] == chip_of(trial.arch).area_mm2 <= areas[1]
    assert {trial.arch[-2] for trial in trials} <= {0, 1}
    assert len({trial.arch for trial in trials}) > 10


def test_an_area_that_no_chip_has_is_unreachable(space):
    smallest = BitFusion(cols=16, rows=8).area_mm2
    with pytest.raises(UnreachableLimit, match=r"area_mm2 = .* \(limit"):
        search(Problem(space, error_of, CHIP, {"area_mm2": 0.9 * smallest}), Random(), 3)


def test_chip_choices_on_a_chip_without_a_kernel():
    networks = BitwidthSpace(network(2))
    space = ChipSpace(networks, {"dram_pj_per_bit": (1.0, 4.0)})
    toy = Problem(space, RoundingError(networks), Roofline())
    arch = (*networks.uniform(4), 0)
    assert toy.costs([arch])["energy_j"][0] == pytest.approx(
        estimate(networks.workload(arch[:-1]), Roofline(dram_pj_per_bit=1.0)).energy_j, rel=1e-12
    )
    assert toy.evaluate(arch).metrics["error"] == RoundingError(networks)(arch[:-1])["error"]


def test_factors_in_limits_refer_to_the_network_on_the_chip_that_was_given(space):
    uniform = NETWORKS.uniform(Block(3, 3, 1, 8, 8))
    limits = parse_limits(["energy_j=0.5x"], Problem(space, None, CHIP), uniform)
    assert limits == {"energy_j": 0.5 * estimate(NETWORKS.workload(uniform), CHIP).energy_j}


def test_fields_that_a_chip_does_not_have_and_values_that_it_refuses_are_named():
    arch = (0, 0, 0)
    with pytest.raises(ValueError, match="fields of BitFusion, got row; known are rows, cols"):
        Problem(ChipSpace(NETWORKS, {"row": (8,)}), None, CHIP).price(arch)
    with pytest.raises(ValueError, match="max_bits and min_bits must be powers of two"):
        Problem(ChipSpace(NETWORKS, {"max_bits": (7,)}), None, CHIP).price(arch)
    with pytest.raises(ValueError, match="at least one field"):
        ChipSpace(NETWORKS, {})
    with pytest.raises(ValueError, match="options must differ"):
        ChipSpace(NETWORKS, {"rows": (8, 8)})


def test_archs_and_policies_of_another_form_are_refused(space, table):
    with pytest.raises(ValueError, match=r"integers of shape \(n, 4\)"):
        table.price([[0, 0, 0]])
    for bad in ([0, 0, 3, 0], [0, 0, 0, -1]):
        with pytest.raises(ValueError, match=r"an option of each choice.* in row 1"):
            table.price([[0, 0, 0, 0], bad])
    with pytest.raises(ValueError, match="one probability for each option"):
        table.expected([np.ones(2)])


def test_a_chip_that_cannot_run_a_network_costs_infinity_only_where_it_is_drawn():
    networks = BitwidthSpace(network(2))
    space = ChipSpace(networks, {"buffer_bits": (4 * 24 * 20, 10**9)})
    toy = Problem(space, RoundingError(networks), Roofline())
    wide = networks.uniform(8)
    assert toy.costs([(*wide, 0), (*wide, 1)])["energy_j"].tolist() == [math.inf, toy.price((*wide, 1)).energy_j]
    certain = [np.eye(3)[option] for option in wide]
    assert toy.table.expected([*certain, [0.0, 1.0]])["energy_j"] == pytest.approx(toy.price((*wide, 1)).energy_j)
    assert toy.table.expected([*certain, [0.5, 0.5]])["energy_j"] == math.inf
