import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from codesign.pareto import attainment, hypervolume, pareto_mask, pareto_rank

# Few distinct values, so that ties are common.
VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.5, math.inf, math.nan])
FINITE = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 3.0])


def clouds(values, most=12):
    return st.tuples(st.integers(0, most), st.integers(1, 4)).flatmap(
        lambda shape: arrays(float, shape, elements=values)
    )


def naive_mask(costs, feasible):
    """By the definition, pair by pair."""
    n = len(costs)
    valid = [feasible[i] and not any(math.isnan(v) for v in costs[i]) for i in range(n)]

    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [valid[i] and not any(valid[j] and dominates(costs[j], costs[i]) for j in range(n)) for i in range(n)]


def naive_hypervolume(costs, reference):
    """By inclusion and exclusion over all subsets of boxes."""
    boxes = [p for p in costs if not np.isnan(p).any() and (p < reference).all()]
    total = 0.0
    for size in range(1, len(boxes) + 1):
        for some in itertools.combinations(boxes, size):
            total += (-1) ** (size + 1) * np.prod(reference - np.max(some, axis=0))
    return total


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_the_mask_is_that_of_the_definition(data):
    costs = data.draw(clouds(VALUES))
    feasible = data.draw(arrays(bool, len(costs)))
    assert pareto_mask(costs, feasible).tolist() == naive_mask(costs, feasible)
    assert pareto_mask(costs).tolist() == naive_mask(costs, [True] * len(costs))


@settings(deadline=None)
@given(clouds(VALUES), st.randoms())
def test_permuting_the_points_permutes_the_mask_and_the_ranks(costs, random):
    order = list(range(len(costs)))
    random.shuffle(order)
    assert (pareto_mask(costs[order]) == pareto_mask(costs)[order]).all()
    assert (pareto_rank(costs[order]) == pareto_rank(costs)[order]).all()


@settings(deadline=None)
@given(clouds(VALUES))
def test_each_rank_is_dominated_by_the_one_before_and_the_first_is_the_front(costs):
    ranks = pareto_rank(costs)
    assert ((ranks == 0) == pareto_mask(costs)).all()
    assert ((ranks == -1) == np.isnan(costs).any(axis=1)).all()
    for rank in range(1, ranks.max(initial=0) + 1):
        before, here = costs[ranks == rank - 1], costs[ranks == rank]
        assert all(((before <= point).all(axis=1) & (before < point).any(axis=1)).any() for point in here)
        assert pareto_mask(here).all()


@settings(deadline=None)
@given(clouds(FINITE, most=6))
def test_the_hypervolume_is_that_of_the_union_of_boxes(costs):
    reference = np.full(costs.shape[1], 2.5)
    assert hypervolume(costs, reference) == pytest.approx(naive_hypervolume(costs, reference))


@settings(deadline=None)
@given(clouds(VALUES))
def test_the_hypervolume_grows_with_points_and_is_that_of_the_front(costs):
    costs = np.where(np.isinf(costs), 9.0, costs)
    reference = np.full(costs.shape[1], 3.0)
    volumes = [hypervolume(costs[:n], reference) for n in range(len(costs) + 1)]
    assert volumes[0] == 0.0
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(volumes))
    assert hypervolume(costs[pareto_mask(costs)], reference) == pytest.approx(volumes[-1])


@settings(deadline=None)
@given(clouds(FINITE, most=6), st.data())
def test_more_is_better_is_less_of_the_negative(costs, data):
    senses = data.draw(st.lists(st.sampled_from(["min", "max"]), min_size=costs.shape[1], max_size=costs.shape[1]))
    signs = np.array([1 if sense == "min" else -1 for sense in senses])
    assert (pareto_mask(costs, senses=senses) == pareto_mask(costs * signs)).all()
    assert (pareto_rank(costs, senses=senses) == pareto_rank(costs * signs)).all()
    reference = np.full(costs.shape[1], 1.5)
    assert hypervolume(costs, reference, senses=senses) == hypervolume(costs * signs, reference * signs)


@settings(deadline=None)
@given(arrays(float, st.tuples(st.integers(0, 8), st.just(2)), elements=VALUES), arrays(float, 5, elements=FINITE))
def test_attainment_is_the_best_at_each_place(costs, at):
    naive = [min((y for x, y in costs if x <= place and not math.isnan(y)), default=math.inf) for place in at]
    assert attainment(costs, at).tolist() == naive


def test_infeasible_points_neither_show_nor_hide_others():
    costs = [[0, 0], [1, 1], [2, 0.5]]
    assert pareto_mask(costs, [False, True, True]).tolist() == [False, True, True]
    assert pareto_rank(costs, [False, True, True]).tolist() == [-1, 0, 0]
    assert hypervolume(costs, [3, 3], [False, True, True]) == pytest.approx(2 * 2 + 1 * 2.5 - 1 * 2)


def test_no_points_have_an_empty_front():
    assert pareto_mask(np.empty((0, 2))).shape == (0,)
    assert hypervolume(np.empty((0, 2)), [1, 1]) == 0.0


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        pareto_mask([1, 2, 3])
    with pytest.raises(ValueError, match="feasible must have shape"):
        pareto_mask([[1, 2]], [True, False])
    with pytest.raises(ValueError, match="2 finite numbers"):
        hypervolume([[1, 2]], [1])
    with pytest.raises(ValueError, match="2 finite numbers"):
        hypervolume([[1, 2]], [1, math.inf])
    with pytest.raises(ValueError, match="2 times 'min' or 'max'"):
        pareto_mask([[1, 2]], senses=["min", "least"])
    with pytest.raises(ValueError, match=r"shape \(n_points, 2\)"):
        attainment([[1, 2, 3]], [1])
