"""What every entry of STRATEGIES must keep, and the gradients of REINFORCE."""

import copy
import itertools
import math

import numpy as np
import pytest
from toys import problem

from codesign.run_directory import pack_state, unpack_state
from codesign.search import search
from codesign.strategies import STRATEGIES, AbstractSampler, Reinforce
from codesign.strategies.base import keep_rng, use_rng
from codesign.strategies.policy import draw, entropy_gradient, even_logits, policy_gradient, probabilities
from codesign.strategies.reinforce import value_usage, within_limits
from codesign.trial import Trial, best_trial

SAMPLERS = [name for name, strategy in STRATEGIES.items() if issubclass(strategy, AbstractSampler)]
each_sampler = pytest.mark.parametrize("name", SAMPLERS)


@each_sampler
def test_same_seed_same_trials_and_another_seed_others(name):
    trials = search(problem(), STRATEGIES[name](), 25, seed=1)
    assert trials == search(problem(), STRATEGIES[name](), 25, seed=1)
    assert [t.arch for t in trials] != [t.arch for t in search(problem(), STRATEGIES[name](), 25, seed=2)]


@each_sampler
def test_resumed_equals_uninterrupted(name, tmp_path):
    whole = search(problem(), STRATEGIES[name](), 33, seed=1, out=tmp_path / "whole")
    for n_trials in (4, 10, 26, 33):
        resumed = search(problem(), STRATEGIES[name](), n_trials, seed=1, out=tmp_path / "parts", resume=True)
    assert resumed == whole
    ends = [(tmp_path / run / "state.safetensors").read_bytes() for run in ("whole", "parts")]
    assert ends[0] == ends[1]


@each_sampler
def test_a_state_that_went_through_a_file_asks_for_the_same_archs(name):
    toy, strategy = problem(), STRATEGIES[name]()
    state = strategy.init(toy, np.random.default_rng(0))
    for _ in range(3):
        archs, waiting = strategy.ask(toy, unpack_state(pack_state(state)), 6)
        assert archs == strategy.ask(toy, state, 6)[0]
        state = strategy.tell(toy, waiting, [toy.evaluate(arch, i) for i, arch in enumerate(archs)])


@each_sampler
def test_ask_and_tell_leave_the_state_they_were_given_alone(name):
    toy, strategy = problem(), STRATEGIES[name]()
    state = strategy.init(toy, np.random.default_rng(0))
    before = pack_state(copy.deepcopy(state))
    archs, waiting = strategy.ask(toy, state, 6)
    assert pack_state(state) == before
    before = pack_state(copy.deepcopy(waiting))
    strategy.tell(toy, waiting, [toy.evaluate(arch) for arch in archs])
    assert pack_state(waiting) == before


@each_sampler
def test_every_arch_asked_for_is_valid_and_meets_the_limits_and_so_does_the_best(name):
    toy = problem(limit=0.35)
    trials = search(toy, STRATEGIES[name](), 40, seed=0)
    for trial in trials:
        assert toy.space.check(trial.arch) == trial.arch
        assert trial.feasible and trial.metrics["energy_j"] <= toy.limits["energy_j"]
    best = best_trial(trials)
    assert toy.price(best.arch).energy_j <= toy.limits["energy_j"]
    assert best.metrics["error"] == min(trial.metrics["error"] for trial in trials)


@each_sampler
def test_an_objective_that_is_not_a_number_does_not_stop_the_search(name):
    toy = problem()
    strategy = STRATEGIES[name]()
    state = strategy.init(toy, np.random.default_rng(0))
    for bad in ([math.nan] * 4, [math.nan, 0.2, math.inf, 0.1]):
        archs, state = strategy.ask(toy, state, 4)
        trials = [Trial(arch, {"error": value}, {}, i) for i, (arch, value) in enumerate(zip(archs, bad, strict=True))]
        state = strategy.tell(toy, state, trials)
    archs, state = strategy.ask(toy, state, 4)
    assert all(toy.space.check(arch) for arch in archs)
    assert all(
        np.isfinite(v[v > -np.inf]).all() for v in state.values() if isinstance(v, np.ndarray) and v.dtype.kind == "f"
    )


def test_a_generator_kept_goes_on_where_it_was():
    rng = np.random.default_rng(5)
    rng.random(7)
    kept = {"rng": keep_rng(rng)}
    assert (use_rng(kept).random(5) == rng.random(5)).all()


# A policy over two choices of two and three options, small enough to enumerate.
LOGITS = np.array([[0.3, -0.4, -np.inf], [0.1, 0.9, -0.5]])
ARCHS = np.array([(i, j) for i in range(2) for j in range(3)])
REWARDS = np.array([0.2, -1.0, 0.5, 2.0, 0.1, -0.3])


def policy(logits):
    p = probabilities(logits)
    return np.array([p[0, i] * p[1, j] for i, j in ARCHS])


def numeric_gradient(function, logits, eps=1e-6):
    gradient = np.zeros_like(logits)
    for i, j in np.argwhere(np.isfinite(logits)):
        step = np.zeros_like(logits)
        step[i, j] = eps
        gradient[i, j] = (function(logits + step) - function(logits - step)) / (2 * eps)
    return gradient


def test_the_expected_reinforce_estimate_is_the_gradient_of_the_expected_reward():
    exact = numeric_gradient(lambda logits: policy(logits) @ REWARDS, LOGITS)
    p = policy(LOGITS)
    expected = sum(p[k] * policy_gradient(LOGITS, ARCHS[[k]], REWARDS[[k]]) for k in range(6))
    assert np.allclose(expected, exact, atol=1e-9)


@pytest.mark.parametrize("baseline", ["leave-one-out", "moving-average"])
def test_a_step_of_the_strategy_is_unbiased_over_all_batches_of_three(baseline):
    """The mean over all batches of the change of the logits is the learning rate times the exact gradient."""
    strategy = Reinforce(baseline=baseline, entropy=0.0, learning_rate=0.5)
    toy = problem(limit=None, n_layers=1)
    exact = numeric_gradient(lambda logits: policy(logits) @ REWARDS, LOGITS)
    p = policy(LOGITS)
    state = {**strategy.init(toy, np.random.default_rng(0)), "logits": LOGITS, "mean_reward": 0.7, "mean_square": 4.0}
    state |= {"usage": np.zeros((0, 2, 3)), "base": np.zeros(0)}
    real = np.isfinite(LOGITS)
    expected, spread, plain_spread = np.zeros_like(LOGITS), 0.0, 0.0
    for batch in itertools.product(range(6), repeat=3):
        weight = math.prod(p[k] for k in batch)
        trials = [Trial((), {"error": -REWARDS[k]}) for k in batch]
        step = strategy.tell(toy, {**state, "drawn": ARCHS[list(batch)]}, trials)["logits"][real] - LOGITS[real]
        estimate = np.zeros_like(LOGITS)
        estimate[real] = step * math.sqrt(4.0) / 0.5
        plain = policy_gradient(LOGITS, ARCHS[list(batch)], REWARDS[list(batch)] + 3)
        expected += weight * estimate
        spread += weight * ((estimate - exact) ** 2).sum()
        plain_spread += weight * ((plain - exact) ** 2).sum()
    assert np.allclose(expected, exact, atol=1e-9)
    assert spread < plain_spread  # rewards that are far from zero need a baseline


def test_the_entropy_gradient_is_that_of_finite_differences():
    def entropy(logits):
        p = probabilities(logits)
        return -sum(q * math.log(q) for q in p.ravel() if q > 0)

    assert np.allclose(entropy_gradient(LOGITS), numeric_gradient(entropy, LOGITS), atol=1e-9)


def test_draws_follow_the_policy_and_never_take_an_option_that_is_not_there():
    n = 20000
    drawn = draw(LOGITS, n, np.random.default_rng(0))
    counts = np.array([(drawn == arch).all(axis=1).sum() for arch in ARCHS])
    assert counts.sum() == n
    expected = policy(LOGITS) * n
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_reinforce_finds_the_optimum_of_a_small_problem():
    toy = problem(limit=0.5, n_layers=2)
    archs = [tuple(int(i) for i in arch) for arch in np.ndindex(*toy.space.option_counts)]
    optimum = min(toy.accuracy(arch)["error"] for arch in archs if toy.feasible(arch))
    trials = search(toy, Reinforce(fill=False), 300, seed=0)  # filled up, it begins near the optimum
    assert best_trial(trials).metrics["error"] == optimum
    late = np.mean([t.metrics["error"] for t in trials[-50:]])
    assert late < 0.5 * np.mean([t.metrics["error"] for t in trials[:50]])


@pytest.mark.parametrize("fill", [True, False])
def test_reinforce_leaves_no_room_in_limits_unless_told_to(fill):
    limited = problem()
    trials = search(limited, Reinforce(fill=fill), 30, seed=1)
    even = np.where(np.isfinite(even_logits(limited.space)), 1.0, 0.0)
    full = [limited.fill(trial.arch, even / even.sum(axis=1, keepdims=True)) == trial.arch for trial in trials]
    assert all(full) == fill and all(trial.feasible for trial in trials)


def test_the_policy_within_limits_is_the_nearest_one_that_meets_them():
    usage = np.array([[[-0.3, 0.0, 0.0], [-0.2, 0.0, 0.9]]])
    base = np.array([1.2])
    moved = within_limits(LOGITS, usage, base)
    p, q = probabilities(LOGITS), probabilities(moved)
    assert base + (q * usage[0]).sum() == pytest.approx(1.0)

    def divergence(q):
        return sum(b * math.log(b / a) for a, b in zip(p.ravel(), q.ravel(), strict=True) if a > 0)

    rng = np.random.default_rng(0)
    others = [probabilities(LOGITS + rng.normal(0, 2, LOGITS.shape)) for _ in range(3000)]
    meeting = [divergence(other) for other in others if base + (other * usage[0]).sum() <= 1]
    assert len(meeting) > 100 and divergence(q) < min(meeting)


def test_a_policy_that_meets_its_limits_is_left_alone_and_several_limits_are_met_at_once():
    usage = np.array([[[-0.3, 0.0, 0.0], [-0.2, 0.0, 0.9]], [[0.4, 0.0, 0.0], [0.0, 0.3, 0.1]]])
    assert (within_limits(LOGITS, usage[:1], np.array([0.1])) == LOGITS).all()
    base = np.array([1.05, 0.7])
    q = probabilities(within_limits(LOGITS, usage, base))
    assert (base + (q * usage).sum(axis=(1, 2)) <= 1 + 1e-6).all()


def test_the_usage_of_options_adds_up_to_that_of_an_arch():
    toy = problem(limit=0.5)
    usage, base = value_usage(toy)
    rng = np.random.default_rng(0)
    for _ in range(10):
        arch = toy.space.sample(rng)
        summed = base + usage[:, range(len(arch)), arch].sum(axis=1)
        assert summed == pytest.approx(list(toy.usage(arch).values()), rel=0.15)  # outputs are stored for their reader


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ValueError, match="got 'mean'"):
        Reinforce(baseline="mean")
