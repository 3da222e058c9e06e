"""NSGA-II: what survives, what is born, and that it is worth its evaluations."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from toys import Roofline, problem

from codesign.nets.mobilenetv2 import MobileNetV2Space
from codesign.pareto import hypervolume, pareto_rank
from codesign.problem import Problem
from codesign.run_directory import pack_state, unpack_state
from codesign.search import search
from codesign.strategies import NSGA2, Random
from codesign.trial import Trial
from hwmodels import BitFusion
from hwmodels.cost import LayerCost

SMALL = NSGA2(population=8)


def state_after(strategy, toy, n_batches, batch=8):
    state = strategy.init(toy, np.random.default_rng(0))
    for _ in range(n_batches):
        archs, state = strategy.ask(toy, state, batch)
        state = strategy.tell(toy, state, [toy.evaluate(arch) for arch in archs])
    return state


@pytest.mark.parametrize("limit", [None, 0.5])
def test_the_front_is_larger_than_that_of_random_search_at_the_same_evaluations(limit):
    toy = problem(limit=limit, n_layers=6)
    top = toy.price(toy.space.uniform(8)).energy_j
    found = {}
    for name, strategy in (("nsga2", SMALL), ("random", Random())):
        volumes = []
        for seed in range(3):
            trials = search(toy, strategy, 120, seed=seed, batch_size=8)
            points = [[t.metrics["error"], t.metrics["energy_j"] / top] for t in trials]
            volumes.append(hypervolume(points, [0.15, 1.0]))
        found[name] = np.median(volumes)
    assert found["nsga2"] > 1.05 * found["random"]


def test_survivors_are_of_the_lowest_ranks_of_all_that_were_seen():
    toy = problem(limit=None)
    state = state_after(SMALL, toy, 1)
    archs, waiting = SMALL.ask(toy, state, 8)
    trials = [toy.evaluate(arch) for arch in archs]
    merged = np.concatenate(
        [state["values"], [[trial.metrics["error"], trial.metrics["energy_j"]] for trial in trials]]
    )
    ranks = pareto_rank(merged)
    kept = SMALL.tell(toy, waiting, trials)["values"]
    kept_ranks = [ranks[(merged == row).all(axis=1)][0] for row in kept]
    assert sorted(kept_ranks) == sorted(ranks)[:8]


def test_children_mix_the_fields_of_their_parents_and_are_new():
    space = MobileNetV2Space.preset("tiny")
    toy = Problem(space, lambda arch: {"error": 1 / (1 + sum(arch))}, BitFusion())
    strategy = NSGA2(population=8, mutation=0.0, crossover=1.0)
    state = state_after(strategy, toy, 1)
    parents = {space.join(genes) for genes in state["genes"]}
    archs, _ = strategy.ask(toy, state, 8)
    assert len(set(archs)) == 8 and not set(archs) & parents
    for arch in archs:  # every field is that of some survivor, and no survivor has them all
        assert all(gene in state["genes"][:, i] for i, gene in enumerate(space.split(arch)))


def test_mutation_draws_about_as_many_fields_as_it_says():
    space = MobileNetV2Space.preset("cifar", width=0.25, depth=0.3)
    toy = Problem(space, None, BitFusion())
    counts = np.array(space.field_counts)
    genes = np.repeat(counts[None] // 2, 8, axis=0)
    rng = np.random.default_rng(0)
    changed = []
    for n in range(30):
        strategy = NSGA2(population=8, mutation=3.0)
        state = {**strategy.init(toy, np.random.default_rng(n)), "genes": genes, "values": rng.random((8, 2))}
        children = strategy._children(toy, state, 20, rng)
        changed += (children != genes[0]).sum(axis=1).tolist()
    # A field that is drawn anew stays as it was with probability 1 / count; children without a change are dropped.
    p = 3.0 / len(counts) * (1 - 1 / counts)
    expected = p.sum() / (1 - np.prod(1 - p))
    assert np.mean(changed) == pytest.approx(expected, rel=0.15)


def test_a_space_smaller_than_the_population_is_searched_to_its_end():
    toy = problem(limit=None, n_layers=1)
    trials = search(toy, NSGA2(population=20), 40, seed=0)
    assert len(trials) == 40 and len({trial.arch for trial in trials}) == toy.space.size


def test_what_is_traded_is_the_objective_and_the_limits_or_else_the_energy_or_the_latency():
    toy = problem(limit=None)
    assert NSGA2().traded(toy) == ("error", "energy_j")
    limited = replace(toy, limits={"latency_s": 1.0, "weight_bytes": 1e6})
    assert NSGA2().traded(limited) == ("error", "latency_s", "weight_bytes")
    assert NSGA2(objectives=("error", "edp_js")).traded(limited) == ("error", "edp_js")

    class Timed(Roofline):
        def cost(self, layer, resident=()):
            return LayerCost(super().cost(layer).latency_s, None)

    assert NSGA2().traded(replace(toy, hardware=Timed())) == ("error", "latency_s")


def test_more_of_a_rate_is_better():
    toy = problem(limit=None)
    strategy = NSGA2(population=2, objectives=("error", "frames_per_s"))
    state = strategy.init(toy, np.random.default_rng(0))
    archs = [(0,) * 6, (1,) * 6, (2,) * 6]
    trials = [
        Trial(arch, {"error": 0.1, "frames_per_s": rate}) for arch, rate in zip(archs, (5.0, 9.0, 7.0), strict=True)
    ]
    kept = strategy.tell(toy, state, trials)
    assert toy.space.join(kept["genes"][0]) == archs[1] and -9.0 in kept["values"][:, 1]


def test_a_candidate_that_is_not_a_number_gives_way_to_any_other():
    toy = problem(limit=None)
    strategy = NSGA2(population=2)
    state = strategy.init(toy, np.random.default_rng(0))
    numbers = [(0.3, 1.0), (math.nan, 0.1), (0.2, 2.0)]
    trials = [Trial((i,) * 6, {"error": e, "energy_j": j}) for i, (e, j) in enumerate(numbers)]
    kept = strategy.tell(toy, state, trials)
    assert sorted(map(tuple, kept["values"].tolist())) == [(0.2, 2.0), (0.3, 1.0)]


def test_the_state_holds_arrays_and_json_alone_and_goes_on_from_a_file():
    toy = problem()
    state = state_after(SMALL, toy, 3)
    assert {type(value) for value in state.values()} == {np.ndarray, dict}
    back = unpack_state(pack_state(state))
    assert SMALL.ask(toy, back, 8)[0] == SMALL.ask(toy, state, 8)[0]
    assert len(state["genes"]) == 8


def test_bad_settings_and_unknown_objectives_are_named():
    for settings, message in (
        ({"population": 1}, "population must be at least 2, got 1"),
        ({"objectives": ("error",)}, "objectives must be at least two"),
        ({"crossover": 1.5}, "crossover must be from 0 to 1"),
        ({"mutation": -1.0}, "mutation at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            NSGA2(**settings)
    with pytest.raises(ValueError, match="metrics of a trial, got watts; known are error, latency_s"):
        search(problem(), NSGA2(objectives=("error", "watts")), 10)


def test_pymoo_is_loaded_when_it_is_used():
    script = "import codesign.strategies, sys; print('pymoo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
