"""The exact optimum under limits: against enumeration, on networks, and where there is none."""

import itertools
import math

import numpy as np
import pytest
from toys import network

from codesign.cost_table import CostTable, CostTerm, cost_table
from codesign.knapsack import knapsack
from codesign.nets.mobilenetv2 import MobileNetV2Space
from codesign.problem import UnreachableLimit
from codesign.space import BitwidthSpace
from codesign.terms import NotDecomposable
from hwmodels import BitFusion, networks

METRICS = ("energy_j", "latency_s", "weight_bytes")
#: Costs of real chips are as small as this.
UNITS = np.array([1e-6, 1e-3, 1e4])


def random_table(
    rng, counts=(3, 2, 4, 3, 2), scopes=((), (0,), (0, 1), (1, 2), (2, 3), (0, 2, 4), (3, 4)), misfits=0.0
):
    """Terms over none to three choices, options in random classes; a share of the combinations fits no tiling."""
    terms = []
    for scope in scopes:
        classes = tuple(np.sort(rng.integers(max(1, counts[c] - 1), size=counts[c])) for c in scope)
        values = rng.random((*(k.max() + 1 for k in classes), len(METRICS))) * UNITS
        values[rng.random(values.shape[:-1]) < misfits * bool(scope)] = math.inf
        terms.append(CostTerm(tuple(scope), classes, values))
    return CostTable(tuple(counts), METRICS, tuple(terms))


def random_objective(rng, counts, scopes=((0,), (1, 2), (3,), (0, 4))):
    return [(scope, rng.normal(size=[counts[c] for c in scope])) for scope in scopes]


def enumerated(table, objective, limits):
    """The least objective of all archs within the limits, and how many of those there are."""
    archs = np.array(list(itertools.product(*map(range, table.option_counts))))
    costs = table.price(archs)
    fits = np.isfinite(costs[METRICS[0]])
    for name, limit in limits.items():
        fits &= costs[name] <= limit
    values = sum(np.asarray(v)[tuple(archs[:, c] for c in scope)] for scope, v in objective)
    return values[fits].min(initial=math.inf), fits.sum()


def share(table, quantile):
    """Limits that a share of the archs meets, each by itself."""
    archs = np.array(list(itertools.product(*map(range, table.option_counts))))
    costs = table.price(archs)
    fits = np.isfinite(costs[METRICS[0]])
    return {name: float(np.quantile(costs[name][fits], quantile)) if fits.any() else 1.0 for name in METRICS}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("misfits", [0.0, 0.15])
def test_the_optimum_is_that_of_enumeration(seed, misfits):
    rng = np.random.default_rng(seed)
    table = random_table(rng, misfits=misfits)
    objective = random_objective(rng, table.option_counts)
    for names in (METRICS, METRICS[:1], ()):
        limits = {name: value for name, value in share(table, 0.4).items() if name in names}
        best, n_within = enumerated(table, objective, limits)
        if n_within == 0:
            with pytest.raises(UnreachableLimit):
                knapsack(table, objective, limits)
            continue
        found = knapsack(table, objective, limits)
        assert found.objective == pytest.approx(best, abs=1e-9)
        assert found.objective == pytest.approx(sum(v[tuple(found.arch[c] for c in scope)] for scope, v in objective))
        assert found.status == "optimal" and 0 <= found.gap < 1e-8
        costs = table.price([found.arch])
        assert all(costs[name][0] <= limit for name, limit in limits.items())
        assert found.usage == pytest.approx({name: costs[name][0] / limit for name, limit in limits.items()})


def test_a_limit_that_an_arch_meets_exactly_can_be_used_up_and_not_passed_by_the_last_bit():
    table = CostTable((2, 2), ("energy_j",), (CostTerm((0,), (np.arange(2),), np.array([[1e-6], [2e-6]])),
                                              CostTerm((1,), (np.arange(2),), np.array([[1e-6], [2e-6]]))))  # fmt: skip
    objective = [((0,), [3.0, 0.0]), ((1,), [2.0, 0.0])]
    all_of_it = float(table.price([(1, 1)])["energy_j"][0])
    assert knapsack(table, objective, {"energy_j": all_of_it}).arch == (1, 1)
    below = knapsack(table, objective, {"energy_j": np.nextafter(all_of_it, 0)})
    assert below.arch == (1, 0) and below.objective == 2.0 and below.gap < 1e-12


def test_an_infinite_objective_forbids_a_combination():
    table = random_table(np.random.default_rng(0), (3, 3), scopes=((0, 1),))
    values = np.array([[math.inf, 5.0, 6.0], [math.inf] * 3, [7.0, 4.0, math.inf]])
    assert knapsack(table, [((0, 1), values)], {}).arch == (2, 1)
    with pytest.raises(UnreachableLimit, match="no arch fits"):
        knapsack(table, [((0, 1), np.full((3, 3), math.inf))], {})


def test_limits_that_only_together_are_out_of_reach_are_reported_with_the_least_of_each():
    one = np.arange(2)
    table = CostTable((2,), METRICS, (CostTerm((0,), (one,), np.array([[1.0, 9.0, 1.0], [9.0, 1.0, 1.0]])),))
    objective = [((0,), [0.0, 1.0])]
    assert knapsack(table, objective, {"energy_j": 5.0}).arch == (0,)
    with pytest.raises(UnreachableLimit, match=r"energy_j <= 5 \(least alone: 1\), latency_s <= 5 \(least alone: 1\)"):
        knapsack(table, objective, {"energy_j": 5.0, "latency_s": 5.0})


def test_bad_input_is_refused():
    table = random_table(np.random.default_rng(0))
    objective = random_objective(np.random.default_rng(0), table.option_counts)
    with pytest.raises(
        ValueError, match="sums over choices, which are energy_j, latency_s, weight_bytes, got 'edp_js'"
    ):
        knapsack(table, objective, {"edp_js": 1.0})
    for limit in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="limit on energy_j must be a positive number"):
            knapsack(table, objective, {"energy_j": limit})
    for choices, values in (((1, 0), np.zeros((2, 3))), ((9,), np.zeros(3)), ((0,), np.zeros(2)), ((0, 0), np.eye(3))):
        with pytest.raises(ValueError, match="a factor of the objective must be over ascending choices"):
            knapsack(table, [(choices, values)], {})
    with pytest.raises(ValueError, match="must hold numbers"):
        knapsack(table, [((0,), [0.0, math.nan, 1.0])], {})


def test_a_program_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("codesign.knapsack.MAX_VARIABLES", 20)
    table = random_table(np.random.default_rng(0))
    with pytest.raises(NotDecomposable, match="more than 20 variables"):
        knapsack(table, [], share(table, 0.5))


def test_no_time_gives_no_arch():
    space = BitwidthSpace(networks.resnet20(), (2, 4, 6, 8))
    table = cost_table(space, BitFusion(), n_checks=0)
    limit = 0.6 * table.price([space.uniform(8)])["energy_j"][0]
    objective = [((i,), 4.0 ** -np.arange(count)) for i, count in enumerate(table.option_counts)]
    with pytest.raises(TimeoutError, match="in 0 s"):
        knapsack(table, objective, {"energy_j": limit}, time_limit_s=0.0)


@pytest.mark.parametrize(
    "space",
    [BitwidthSpace(network(3), (2, 4, 8)), MobileNetV2Space.preset("tiny", bits=(2, 8))],
    ids=["bits", "blocks"],
)
def test_the_optimum_of_a_space_of_networks_is_that_of_enumeration(space):
    rng = np.random.default_rng(3)
    table = cost_table(space, BitFusion(), n_checks=0)
    archs = np.array(list(itertools.product(*map(range, space.option_counts))))
    limits = {name: float(np.quantile(table.price(archs)[name], 0.3)) for name in METRICS}
    if isinstance(space, BitwidthSpace):
        objective = [((c, c + 1), rng.random((3, 3))) for c in range(0, len(space.choices), 2)]
    else:
        objective = [((c,), rng.random(count)) for c, count in enumerate(space.option_counts)]
    costs = table.price(archs)
    within = np.all([costs[name] <= limit for name, limit in limits.items()], axis=0)
    values = sum(v[tuple(archs[:, c] for c in scope)] for scope, v in objective)
    found = knapsack(table, objective, limits)
    assert found.objective == pytest.approx(values[within].min(), rel=1e-12) and found.gap < 1e-9
    assert tuple(archs[within][values[within].argmin()]) == found.arch
