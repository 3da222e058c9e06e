import dataclasses
import logging
import math
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from toys import Roofline, RoundingError, network, problem

from codesign.metrics import quantity
from codesign.nets.mobilenetv2 import MobileNetV2Space
from codesign.problem import Problem, UnreachableLimit
from codesign.space import BitwidthSpace
from hwmodels import BitFusion


def test_a_feasible_candidate_is_evaluated_and_priced():
    toy = problem(limit=None)
    trial = toy.evaluate((0, 1, 2, 0, 1, 2), number=3, seed=5)
    report = toy.price(trial.arch)
    assert trial.metrics["energy_j"] == report.energy_j and trial.metrics["latency_s"] == report.latency_s
    assert trial.metrics["error"] == toy.accuracy(trial.arch)["error"]
    assert (trial.number, trial.seed, trial.feasible) == (3, 5, True)


def test_a_candidate_over_a_limit_is_priced_and_says_by_how_much():
    toy = problem(limit=0.5)
    trial = toy.evaluate(toy.space.uniform(8))
    assert trial.violations == pytest.approx({"energy_j": 1 / 0.5 - 1})
    assert "error" not in trial.metrics and trial.metrics["energy_j"] > toy.limits["energy_j"]


def test_a_limit_on_frames_per_s_holds_from_below():
    toy = problem(limit=None)
    fps = toy.price(toy.space.uniform(4)).frames_per_s
    fast = Problem(toy.space, toy.accuracy, toy.hardware, {"frames_per_s": fps})
    assert fast.feasible(toy.space.uniform(2)) and fast.feasible(toy.space.uniform(4))
    slow = toy.space.uniform(8)
    assert fast.violations(slow)["frames_per_s"] == pytest.approx(fps / toy.price(slow).frames_per_s - 1)


def test_a_candidate_that_fits_no_tiling_is_a_violation_and_no_exception():
    space = BitwidthSpace(network(2))
    small = Roofline(buffer_bits=4 * network(2).layers[1].weight_count)
    toy = Problem(space, RoundingError(space), small, {"energy_j": 1.0})
    assert toy.evaluate(space.uniform(4)).feasible
    trial = toy.evaluate(space.uniform(8))
    assert trial.violations == {"fit": math.inf} and not trial.feasible
    assert toy.feasible(toy.project(space.uniform(8), np.random.default_rng(0)))


def test_unknown_metrics_and_bad_limits_are_named():
    toy = problem(limit=None)
    with pytest.raises(ValueError, match=r"Roofline gives, got energy; known are latency_s, .*energy_j"):
        Problem(toy.space, toy.accuracy, toy.hardware, {"energy": 1.0})
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="must be a positive number"):
            Problem(toy.space, toy.accuracy, toy.hardware, {"energy_j": bad})
    with pytest.raises(ValueError, match="must give the objective 'loss', got error"):
        problem(limit=None, objective="loss").evaluate(toy.space.uniform(8))


def test_a_limit_below_the_cheapest_network_names_it_and_what_it_costs():
    toy = problem(limit=None)
    cheapest = toy.price(toy.space.uniform(2)).energy_j
    hopeless = Problem(toy.space, toy.accuracy, toy.hardware, {"energy_j": 0.99 * cheapest})
    said = quantity("energy_j", cheapest)
    with pytest.raises(UnreachableLimit, match=rf"energy_j = {said} .* It is 2 for all of its 6 choices"):
        hopeless.witness  # noqa: B018


def test_two_limits_are_met_at_once():
    toy = problem(limit=None)
    low, high = toy.price(toy.space.uniform(2)), toy.price(toy.space.uniform(8))
    both = {"energy_j": (low.energy_j + high.energy_j) / 2, "weight_bytes": 1.2 * low.workload.weight_bytes}
    tight = Problem(toy.space, toy.accuracy, toy.hardware, both)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert tight.feasible(tight.project(toy.space.sample(rng), rng))


def test_the_reachable_range_is_that_of_an_enumeration():
    toy = problem(limit=None, n_layers=2)
    archs = [tuple(int(i) for i in arch) for arch in np.ndindex(*toy.space.option_counts)]
    for metric in ("energy_j", "latency_s", "frames_per_s"):
        values = [toy.price(arch).metrics()[metric] for arch in archs]
        reach = toy.reachable(metric)
        assert (reach.low, reach.high) == (min(values), max(values))
        assert toy.price(reach.low_arch).metrics()[metric] == reach.low
    with pytest.raises(ValueError, match="knows latency_s"):
        toy.reachable("watts")


def test_projection_keeps_a_feasible_arch_and_moves_others_no_further_than_needed():
    toy = problem(limit=0.4)
    rng = np.random.default_rng(0)
    assert toy.project(toy.witness, rng) == toy.witness
    for _ in range(50):
        arch = toy.space.sample(rng)
        near = toy.project(arch, rng)
        assert toy.feasible(near)
        assert near == arch or not toy.feasible(arch)
        towards = np.sign(np.array(toy.witness) - np.array(arch))
        moved = np.array(near) - np.array(arch)
        assert ((moved == 0) | (np.sign(moved) == towards)).all()
        if near != arch:  # taking back the right step leaves the limits again, so some single step back does
            back = [
                tuple(int(x) for x in np.array(near) - towards * (np.arange(len(near)) == i))
                for i in np.flatnonzero(moved)
            ]
            assert any(not toy.feasible(b) for b in back)


def all_archs(space):
    return [tuple(int(i) for i in arch) for arch in np.ndindex(*space.option_counts)]


@dataclass(frozen=True)
class Contended(Roofline):
    """A chip on which a network's layers share what is not simply a sum: the longest one counts twice."""

    def costs(self, workload, resident=None):
        layers = [self.cost(layer) for layer in workload.layers]
        return [*layers, max(layers, key=lambda cost: cost.latency_s)]


def test_what_is_over_a_limit_loses_first_what_the_policy_holds_little_of():
    toy = problem(limit=0.5)
    rng = np.random.default_rng(0)
    for _ in range(10):
        start = toy.space.sample(rng)
        lowered = np.array(toy.lower(start, rng.dirichlet(np.ones(3), size=6), rng))
        assert toy.feasible(tuple(lowered)) and (lowered <= start).all()
        assert not toy.feasible(start) or tuple(lowered) == start
    start, certain = (2,) * 6, np.tile((0.0, 0.0, 1.0), (6, 1))
    certain[4] = (1.0, 0.0, 0.0)  # the rest is certain to be 2
    singles = [tuple(2 - int(i == j) for j in range(6)) for i in range(6)]
    usages = toy.usages([start, *singles])[:, 0] * toy.limits["energy_j"]
    tight = dataclasses.replace(toy, limits={"energy_j": usages[5]})
    assert tight.lower(start, certain, rng) == singles[4]
    even = np.full((6, 3), 1 / 3)
    tight = dataclasses.replace(toy, limits={"energy_j": usages[1:].min()})
    assert tight.lower(start, even, rng) == singles[int(usages[1:].argmin())]  # of equal ones what saves most
    free = problem(limit=None)
    assert free.lower(start, even, rng) == start


def test_filling_leaves_no_room_that_the_policy_would_use():
    toy = problem(limit=0.5)
    rng = np.random.default_rng(0)
    policy = rng.dirichlet(np.ones(3), size=6)
    policy[2] = (1.0, 0.0, 0.0)
    for _ in range(10):
        start = toy.project(toy.space.sample(rng), rng)
        full = np.array(toy.fill(start, policy, least=0.05))
        assert toy.feasible(tuple(full)) and (full >= start).all() and full[2] == start[2]
        for i in np.flatnonzero(full < 2):
            if policy[i, full[i] + 1 :].sum() > 0.05:
                assert not toy.feasible(tuple(full + (np.arange(6) == i)))
    assert toy.fill(start, policy, least=1.0) == start
    free = problem(limit=None)
    assert free.fill(start, policy) == start
    start = (0,) * 6
    certain = np.tile((0.0, 0.0, 1.0), (6, 1))
    singles = [tuple(int(i == j) for j in range(6)) for i in range(6)]
    shares = toy.usages(singles)[:, 0] - toy.usages([start])[0, 0]
    room = toy.limits["energy_j"] * (toy.usages([start])[0, 0] + 1.01 * shares.min())
    tight = dataclasses.replace(toy, limits={"energy_j": room})
    assert tight.fill(start, certain) == singles[int(shares.argmin())]  # of equal ones the cheapest is raised


@pytest.mark.parametrize("chip", [Roofline(), Contended(), Roofline(buffer_bits=4 * 20 * 24)])
def test_costs_are_those_of_the_simulator_with_a_table_and_without(chip):
    space = BitwidthSpace(network(2))
    toy = Problem(space, RoundingError(space), chip, {"edp_js": 1.0, "frames_per_s": 1.0})
    assert (toy.table is None) == isinstance(chip, Contended)
    archs = all_archs(space)
    costs = toy.costs(archs)
    for i, arch in enumerate(archs):
        fits = toy.violations(arch).get("fit") is None
        metrics = toy.price(arch).metrics() if fits else dict.fromkeys(costs, math.inf) | {"frames_per_s": 0.0}
        assert {name: column[i] for name, column in costs.items()} == pytest.approx(metrics, rel=1e-12)
        used = [math.inf] * 2 if not fits else [metrics["edp_js"], 1 / metrics["frames_per_s"]]
        assert toy.usages([arch])[0] == pytest.approx(used, rel=1e-12)


def test_a_cost_that_does_not_decompose_is_said_once_and_priced_one_by_one(caplog):
    space = BitwidthSpace(network(2))
    limit = {"latency_s": 1.1 * Problem(space, None, Contended()).reachable("latency_s").low}
    toy = Problem(space, RoundingError(space), Contended(), limit)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="codesign.problem"):
        rng = np.random.default_rng(0)
        for _ in range(5):
            assert toy.feasible(toy.project(space.sample(rng), rng))
    (said,) = caplog.messages
    assert "priced one by one" in said and "off by up to" in said


def test_a_limit_that_a_network_meets_to_the_last_bit_is_met():
    space = MobileNetV2Space.preset("tiny", bits=(2, 8))
    free = Problem(space, None, BitFusion())
    rng = np.random.default_rng(0)
    for _ in range(4):
        arch = space.sample(rng)
        metrics = free.price(arch).metrics()
        for name in ("energy_j", "edp_js", "frames_per_s", "weight_bytes", "area_mm2"):
            assert Problem(space, None, BitFusion(), {name: metrics[name]}).feasible(arch)
        below = Problem(space, None, BitFusion(), {"energy_j": np.nextafter(metrics["energy_j"], 0)})
        assert not below.feasible(arch)


def test_the_witness_and_the_range_of_a_sum_are_exact():
    space = MobileNetV2Space.preset("tiny", bits=(2, 8), kernel_sizes=(3, 5))
    free = Problem(space, None, BitFusion())
    archs = all_archs(space)
    for metric, costs in free.costs(archs).items():
        reach = free.reachable(metric)
        assert [reach.low, reach.high] == pytest.approx([costs.min(), costs.max()], rel=1e-12)
        if metric not in ("frames_per_s", "area_mm2"):
            tight = Problem(space, None, BitFusion(), {metric: 1.0001 * costs.min()})
            assert tight.feasible(tight.witness)


def test_what_a_worker_is_sent_holds_no_table():
    toy = problem()
    before = len(pickle.dumps(toy))
    assert toy.table is not None and toy.witness
    assert len(pickle.dumps(toy)) == before
    assert pickle.loads(pickle.dumps(toy)).evaluate(toy.witness) == toy.evaluate(toy.witness)


def test_projection_in_the_whole_mp_nas_space_meets_three_limits_and_simulates_nothing(monkeypatch):
    space = MobileNetV2Space.preset("cifar", width=0.25)
    free = Problem(space, None, BitFusion())
    limits = {name: 0.5 * free.reachable(name).high for name in ("energy_j", "latency_s", "bitops")}
    tight = Problem(space, None, BitFusion(), limits)
    assert tight.table is not None
    rng = np.random.default_rng(0)
    with monkeypatch.context() as patch:
        patch.setattr(Problem, "price", None)
        near = [tight.project(space.sample(rng), rng) for _ in range(10)]
    for arch in near:
        metrics = tight.price(arch).metrics()
        assert all(metrics[name] <= limit for name, limit in limits.items())
