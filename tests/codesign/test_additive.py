"""Milp and greedy: what they measure, what they offer, and that a search goes on where it was killed."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from small_task import problem, task

from codesign.knapsack import knapsack
from codesign.problem import Problem
from codesign.search import search
from codesign.sensitivity import Sensitivities, layer_sensitivities, sensitivities
from codesign.strategies import Greedy, Milp, Random
from codesign.trial import best_trial
from hwmodels import BitFusion

BITS = (2, 4, 8)


@pytest.fixture(scope="module")
def small():
    return problem({"energy_j": 0.6, "weight_bytes": 0.6}, bits=BITS)


@pytest.mark.parametrize("strategy", [Milp(), Greedy()])
def test_it_measures_first_and_offers_the_best_by_the_sum_first(small, strategy):
    said = {}
    trials = search(small, strategy, 5, batch_size=5, metrics=lambda n, values: said.update(values))
    found = sensitivities(small.accuracy, small.space)
    best, _ = strategy.best(small, found.monotone())
    even = np.full((len(small.space.choices), 3), 1 / 3)
    widest = max(bits for bits in BITS if small.feasible(small.space.uniform(bits)))
    assert trials[0].arch == small.fill(best, even)
    assert small.fill(small.space.uniform(widest), even) in [trial.arch for trial in trials[:2]] and all(
        trial.feasible for trial in trials
    )
    assert len({trial.arch for trial in trials}) == 5
    assert said["layers_measured"] == len(small.space.searched) and -1 <= said["tau"] <= 1 and said["r2"] <= 1
    if isinstance(strategy, Milp):
        feasible = [a for a in itertools.product(range(3), repeat=len(small.space.choices)) if small.feasible(a)]
        raised = found.monotone()
        assert raised.predict([best])[0] == pytest.approx(raised.predict(feasible).min()) and said["gap"] <= 1e-6
        assert best == knapsack(small.table, raised.factors(small.space), small.limits).arch


def test_neighbours_come_by_their_predicted_loss_around_the_best_so_far(small):
    trials = search(small, Milp(), 6, batch_size=2)
    assert len({trial.arch for trial in trials}) == 6
    n, even = len(small.space.choices), np.full((len(small.space.choices), 3), 1 / 3)
    for first in (2, 4):
        centre = np.array(best_trial(trials[:first], "error").arch)
        near = {tuple(centre + (value - centre[c]) * np.eye(n, dtype=int)[c]) for c in range(n) for value in range(3)}
        near |= {tuple(centre + np.eye(n, dtype=int)[i] - np.eye(n, dtype=int)[j]) for i in range(n) for j in range(n)}
        inside = [arch for arch in near if min(arch) >= 0 and max(arch) < 3 and small.feasible(arch)]
        filled = {small.fill(arch, even) for arch in inside}
        assert {trial.arch for trial in trials[first : first + 2]} <= filled
    wasteful = [small.fill(trial.arch, even) != trial.arch for trial in trials]
    assert not any(wasteful)  # no operand of any candidate could have more bits within the limits


def test_milp_takes_a_limit_on_throughput_as_one_on_latency_and_refuses_products_at_once():
    free = problem(bits=BITS)
    latency_s = 0.6 * free.price(free.space.reference).latency_s
    batch = free.space.workload(free.space.reference).batch
    fast = replace(free, limits={"frames_per_s": batch / latency_s})
    found = sensitivities(free.accuracy, free.space).monotone()
    same = Milp().best(replace(free, limits={"latency_s": latency_s}), found)
    assert Milp().best(fast, found)[0] == same[0] and fast.feasible(same[0])
    Milp().check(fast)
    with pytest.raises(ValueError, match=r"limits must be on sums over layers .*, got edp_js; choose greedy"):
        Milp().check(replace(free, limits={"edp_js": 1.0}))


def test_a_budget_that_measures_nothing_is_refused():
    with pytest.raises(ValueError, match="must have at least 2 image passes each, got 10 in all"):
        Milp().spending(problem(bits=BITS), 10)


def test_greedy_takes_the_step_that_saves_most_for_what_it_loses():
    free = problem(bits=BITS)
    space = free.space
    rng = np.random.default_rng(0)
    increase = -np.sort(-rng.random((len(space.searched), 3, 3)), axis=1)
    increase = -np.sort(-increase, axis=2)
    found = Sensitivities(space.searched, space.bits, 1.0, increase)
    limit = {"macs": 1.0}
    most = free.price(space.reference).metrics()
    limit = {"energy_j": 0.5 * most["energy_j"]}
    limited = Problem(space, free.accuracy, free.hardware, limit, free.supernet)
    arch, _ = Greedy().best(limited, found)
    here = np.array([2] * len(space.choices))
    while limited.usages([here])[0, 0] > 1:
        options = []
        for c in np.flatnonzero(here):
            step = here.copy()
            step[c] -= 1
            saved = limited.usages([here])[0, 0] - limited.usages([step])[0, 0]
            options.append((saved / max(found.predict([step])[0] - found.predict([here])[0], 1e-9), -c, step))
        here = max(options, key=lambda option: option[:2])[2]
    assert arch == tuple(here) and limited.feasible(arch)


def test_a_killed_search_goes_on_to_the_same_trials(small, tmp_path):
    whole = search(small, Milp(), 9, batch_size=3)

    class Killed(Exception):
        pass

    for kill_at in (1, 3, 4):
        out = tmp_path / str(kill_at)
        seen = []

        def stop(n, values, seen=seen, kill_at=kill_at):
            seen.append(values)
            if len(seen) == kill_at:
                raise Killed

        with pytest.raises(Killed):
            search(small, Milp(), 9, out=out, batch_size=3, metrics=stop)
        again = search(small, Milp(), 9, out=out, batch_size=3, resume=True)
        assert [(t.arch, t.metrics) for t in again] == [(t.arch, t.metrics) for t in whole]


def test_what_it_spends_is_what_it_evaluates(small):
    of = small.supernet
    n_search, n_statistics = len(of.data.search.labels), len(of.statistics)
    n_layers = len(small.space.searched)
    n, apart = n_layers * (3**2 - 1) + 1 + 20, n_layers * 2 * (3 - 1) + 1 + 20
    assert Milp().training_passes(small) == n * (n_search + n_statistics)
    assert Milp(images=50, statistics=10, pairs=False).training_passes(small) == apart * (50 + 10)
    assert Milp().spending(small, n * 10**6) == Milp(images=n_search, statistics=n_statistics)
    for passes in (n * 64, n * 64 + n - 1):  # 64 images for each pair say too little
        each = passes // apart
        assert Milp().spending(small, passes) == Milp(each - each // 4, each // 4, pairs=False)
        assert Milp(statistics_share=0.5).spending(small, passes).statistics == each // 2
    assert Milp().spending(small, 2 * apart).training_passes(small) == 2 * apart
    kept = replace(of, statistics=None)
    assert Milp().spending(problem({"energy_j": 0.6}, kept), apart * 64) == Milp(images=64, pairs=False)
    calls = []
    measure = of.accuracy_on(50, 10)
    object.__setattr__(of, "_on_few", {(50, 10): lambda arch: (calls.append(arch), measure(arch))[1]})
    search(small, Milp(images=50, statistics=10), 1, batch_size=1)
    of._on_few.clear()
    assert len(calls) == n


def test_apart_a_pair_adds_what_both_operands_do(small):
    pairs = layer_sensitivities(small.accuracy, small.space, 1, 0.5)
    calls = []
    apart = layer_sensitivities(small.accuracy, small.space, 1, 0.5, lambda: calls.append(None), pairs=False)
    assert np.array_equal(apart[-1], pairs[-1]) and np.array_equal(apart[:, -1], pairs[:, -1]) and len(calls) == 4
    assert apart[0, 1] == pytest.approx(pairs[0, -1] + pairs[-1, 1])


def test_milp_is_no_worse_than_random_search_at_equal_passes():
    limited = problem({"energy_j": 0.45}, bits=BITS)
    passes = limited.supernet.evaluation_passes
    trials = search(limited, Milp(), 10, batch_size=5)
    n_random = 10 + Milp().training_passes(limited) // passes
    random = [best_trial(search(limited, Random(), n_random, seed), "loss").metrics["loss"] for seed in range(3)]
    assert best_trial(trials, "loss").metrics["loss"] <= np.median(random)


def test_another_problem_is_refused_with_what_it_needs(small):
    bare = Problem(small.space, small.accuracy, small.hardware, small.limits)
    with pytest.raises(ValueError, match="Milp: it chooses the bits of a trained network, so the problem must have"):
        search(bare, Milp(), 1)
    with pytest.raises(ValueError, match="limits must be on sums"):
        of = task(bits=BITS)
        edp = Problem(of.space, of.accuracy(), BitFusion(), {"edp_js": 1.0}, of)
        search(edp, Milp(), 1)
    with pytest.raises(ValueError, match="images must be at least 1"):
        Milp(images=0)
    with pytest.raises(ValueError, match="statistics must be at least 1"):
        Milp(statistics=0)
    with pytest.raises(ValueError, match="checks must be at least 2"):
        Greedy(checks=1)
    with pytest.raises(ValueError, match="statistics_share must be between 0 and 1, got 1"):
        Milp(statistics_share=1.0)


def test_greedy_takes_a_limit_that_is_no_sum():
    of = task(bits=BITS)
    free = Problem(of.space, of.accuracy(), BitFusion(), supernet=of)
    limit = 0.3 * free.price(of.space.reference).metrics()["edp_js"]
    limited = Problem(of.space, free.accuracy, free.hardware, {"edp_js": limit}, of)
    assert all(trial.feasible for trial in search(limited, Greedy(), 4, batch_size=4))
