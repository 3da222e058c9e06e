"""HAQ: what it sees, how it acts, how bits are lowered to the limits, what it learns from, and that it learns."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from toys import Roofline, RoundingError, network, problem

from codesign.nets.mobilenetv2 import MobileNetV2Space
from codesign.problem import Problem
from codesign.run_directory import pack_state, unpack_state
from codesign.search import search
from codesign.space import BitwidthSpace
from codesign.strategies import HAQ, Random
from codesign.strategies.ddpg import DDPG, Transitions, policy
from codesign.strategies.enforcement import meets_limits, move_evenly, sweep_down
from codesign.strategies.haq import OBSERVED, PREVIOUS, observations, options_of, relative_bits, truncated_normal
from codesign.trial import Trial
from hwmodels.workload import Layer, Workload

SMALL = HAQ(hidden=8, warmup=2, batch=16)
NET = Workload.sequential(
    "net",
    [
        Layer("conv", 3, 8, in_size=(8, 8), kernel_size=3, stride=2, padding=1),
        Layer("depthwise", 8, 8, in_size=(4, 4), kernel_size=5, padding=2, groups=8),
        Layer.linear("fc", 128, 10),
    ],
)


def limited(space, chip, **shares):
    """A problem whose limits are shares of what the space's reference costs."""
    free = Problem(space, RoundingError(space), chip)
    top = free.price(space.reference).metrics()
    return replace(free, limits={name: share * top[name] for name, share in shares.items()})


# What it sees.


def test_the_observation_is_the_shape_of_the_layer_scaled_over_the_steps():
    weights = [8 * 3 * 9, 8 * 25, 128 * 10]
    expected = {
        "depthwise": [0, 1, 0],
        "in_channels": [0, 5 / 125, 1],
        "out_channels": [0, 0, 1],
        "stride": [1, 0.5, 0],
        "kernel_size": [0.5, 1, 0],
        "weight_count": [(count - weights[1]) / (weights[2] - weights[1]) for count in weights],
        "in_size": [1, (16 - 1) / (64 - 1), 0],
        "layer": [0, 0.5, 1],
        "previous_bits": [1, 1, 1],
        "weight_step": [1, 1, 1],
    }
    seen = observations(BitwidthSpace(NET))
    for name, values in expected.items():
        column = seen[:, OBSERVED.index(name)]
        assert column[::2] == pytest.approx(values), name
        assert (column[1::2] == (0 if name == "weight_step" else column[::2])).all(), name


def test_where_weights_alone_are_chosen_there_is_one_step_a_layer_and_pinned_layers_have_none():
    seen = observations(BitwidthSpace(NET, input_bits=8, pinned={"fc": 8}))
    assert seen.shape == (2, 10)
    assert not seen[:, OBSERVED.index("weight_step")].any()  # equal at all steps
    assert seen[:, OBSERVED.index("kernel_size")].tolist() == [0, 1]


# How it acts.


@pytest.mark.parametrize("bits", [(2, 3, 4, 5, 6, 7, 8), (1, 2, 3), (4, 5), (3, 4, 5, 6)])
def test_for_bits_without_a_gap_an_action_is_rounded_as_in_the_paper(bits):
    low, high = bits[0], bits[-1]
    for action in np.linspace(0, 1, 9973):
        exact = low - 0.5 + action * (high - low + 1)
        if (
            abs(exact % 1 - 0.5) > 1e-9
        ):  # halves, the ends among them, are rounded to even there, and may leave the range
            assert bits[options_of(action, len(bits))] == round(exact)
    assert [bits[option] for option in options_of([0.0, 1.0], len(bits))] == [low, high]


def test_bits_with_gaps_have_equal_shares_too():
    actions = (np.arange(3000) + 0.5) / 3000
    assert np.bincount(options_of(actions, 3)).tolist() == [1000, 1000, 1000]
    space = BitwidthSpace(NET, (2, 4, 8))
    assert relative_bits(space, [0.0, 0.4, 0.9]).tolist() == [2 / 8, 4 / 8, 1]


@pytest.mark.parametrize(("mean", "spread"), [(0.5, 0.5), (0.0, 0.5), (1.0, 0.1), (0.93, 0.2), (0.3, 0.01)])
def test_noise_is_that_of_a_truncated_normal_distribution(mean, spread):
    uniform = (np.arange(100_000) + 0.5) / 100_000
    drawn = truncated_normal(uniform, np.full_like(uniform, mean), np.full_like(uniform, spread))
    assert drawn.min() >= 0 and drawn.max() <= 1
    a, b = -mean / spread, (1 - mean) / spread

    def density(x):
        return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    mass = (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2))) / 2
    shift = (density(a) - density(b)) / mass
    variance = spread**2 * (1 + (a * density(a) - b * density(b)) / mass - shift**2)
    assert drawn.mean() == pytest.approx(mean + spread * shift, abs=1e-4 * spread)
    assert drawn.var() == pytest.approx(variance, rel=1e-3)


def test_noise_that_has_faded_leaves_the_actor_alone():
    ends = truncated_normal(np.array([0.01, 0.5, 0.99]), np.array([0.0, 0.4, 1.0]), np.zeros(3))
    assert ends == pytest.approx([0, 0.4, 1], abs=1e-8)


def test_the_first_episodes_are_uniform_and_the_later_ones_are_the_actors_under_noise_that_fades():
    toy = problem(limit=None)
    strategy = HAQ(hidden=8, warmup=400, noise=0.3, noise_decay=0.99)
    state = strategy.init(toy, np.random.default_rng(0))
    actions = strategy.ask(toy, state, 1600)[1]["asked"]
    early = actions[:400].ravel()
    assert early.mean() == pytest.approx(0.5, abs=0.03) and early.var() == pytest.approx(1 / 12, rel=0.1)

    seen = observations(toy.space)
    step = 4
    now = np.repeat(seen[step][None], 1600, axis=0)
    now[:, PREVIOUS] = relative_bits(toy.space, actions[:, step - 1])
    away = actions[:, step] - policy(state["actor"][0], now)
    for first, last in ((700, 800), (1000, 1100)):  # where the noise is far from the ends
        spread = 0.3 * 0.99 ** ((first + last) / 2 - 400)
        assert away[first:last].std() == pytest.approx(spread, rel=0.35)
    assert abs(away[-50:]).max() < 1e-4


# How bits are lowered.


def slowly_down(toy, arch):
    """The paper's words: last layer to first, an activation less, test, a weight less, test, as long as it is over."""
    options = list(arch)
    while not toy.feasible(tuple(options)) and any(options):
        for layer in reversed(range(len(options) // 2)):
            for choice in (2 * layer + 1, 2 * layer):
                options[choice] = max(0, options[choice] - 1)
                if toy.feasible(tuple(options)):
                    return tuple(options)
    return tuple(options)


@pytest.mark.parametrize("strategy", [HAQ(), HAQ.paper()])
def test_noise_fades_as_far_over_fewer_episodes_and_a_fifth_at_most_are_random(strategy):
    short, shorter = strategy.lasting(150), strategy.lasting(60)
    assert strategy.lasting(600) == strategy
    assert (short.warmup, shorter.warmup, strategy.lasting(1).warmup) == (20, 12, 0)
    left = strategy.noise_decay**580
    assert short.noise_decay**130 == pytest.approx(left) and shorter.noise_decay**48 == pytest.approx(left)


@pytest.mark.parametrize("bits", [(2, 4, 8), (2, 3, 4, 5, 6, 7, 8)])
def test_the_papers_enforcement_is_the_loop_in_the_papers_words(bits):
    space = BitwidthSpace(network(4), bits)
    toy, rng = limited(space, Roofline(), energy_j=0.45, latency_s=0.6), np.random.default_rng(0)
    lowered = 0
    for _ in range(50):
        arch = space.sample(rng)
        assert sweep_down(toy, arch) == slowly_down(toy, arch)
        lowered += sweep_down(toy, arch) != arch
    assert lowered > 20


def test_evenly_means_the_least_common_cut_and_that_all_is_given_back_that_the_limits_allow():
    space = BitwidthSpace(network(4), (2, 3, 4, 5, 6, 7, 8))
    toy, rng = limited(space, Roofline(), energy_j=0.45, latency_s=0.6), np.random.default_rng(0)
    lowered = 0
    for _ in range(40):
        wishes = rng.random(len(space.choices))
        arch = tuple(options_of(wishes, 7).tolist())
        found = move_evenly(toy, arch, wishes)
        if toy.feasible(arch):
            assert found == arch
            continue
        lowered += 1
        cuts = np.unique(np.concatenate([wishes - k / 7 for k in range(1, 7)]))
        alike = [tuple(options_of(np.maximum(wishes - cut, 0), 7).tolist()) for cut in cuts[cuts > 0] + 1e-12]
        least = next(other for other in alike if toy.feasible(other))
        assert toy.feasible(found) and (np.array(least) <= found).all() and (np.array(found) <= arch).all()
        for choice in np.flatnonzero(np.array(found) < arch):
            higher = (*found[:choice], found[choice] + 1, *found[choice + 1 :])
            assert not toy.feasible(higher)
    assert lowered > 20


@dataclass(frozen=True)
class Padded(Roofline):
    """Weights below 8 bits are stored with so much padding that they cost more than at 8."""

    def cost(self, layer, resident=()):
        wide = layer.weight_bits if layer.weight_bits == 8 else 16
        return super().cost(replace(layer, weight_bits=wide), resident)


@pytest.mark.parametrize(
    "strategy", [HAQ(hidden=8), HAQ(hidden=8, fill=False), HAQ.paper()], ids=["default", "unfilled", "paper"]
)
@pytest.mark.parametrize(
    ("chip", "limits"),
    [
        (Roofline(), {"energy_j": 0.5}),
        (Roofline(), {"energy_j": 0.5, "latency_s": 0.6, "weight_bytes": 0.55}),
        (Roofline(), {"latency_s": 0.5, "bitops": 0.4}),
        (Roofline(), {"frames_per_s": 2.0, "energy_j": 0.6}),
        (Roofline(buffer_bits=3000), {"energy_j": 0.9}),
        (Roofline(buffer_bits=3000), {}),
        (Padded(), {"energy_j": 1.2}),
        (Padded(), {"energy_j": 1.2, "latency_s": 1.3}),
    ],
)
def test_every_arch_asked_for_meets_all_limits(strategy, chip, limits):
    space = BitwidthSpace(network(4), (2, 4, 6, 8), pinned={"fc0": 8})
    top = Problem(space, None, Roofline()).price(space.reference).metrics()
    toy = Problem(space, None, chip, {name: share * top[name] for name, share in limits.items()})
    archs, _ = strategy.ask(toy, strategy.init(toy, np.random.default_rng(0)), 40)
    assert all(space.check(arch) == arch and toy.feasible(arch) for arch in archs)
    assert len(set(archs)) > 2 or strategy.fill  # which may leave a single one under a loose limit


def test_what_is_filled_leaves_no_room_for_another_bit_and_lowers_none():
    space = BitwidthSpace(network(4), (2, 4, 6, 8))
    toy, rng = limited(space, Roofline(), energy_j=0.45, latency_s=0.6), np.random.default_rng(0)
    raised = 0
    for _ in range(20):
        wishes = 0.6 * rng.random(len(space.choices))
        bare, filled = (replace(HAQ(), fill=fill).enforced(toy, wishes) for fill in (False, True))
        assert toy.feasible(filled) and (np.array(filled) >= bare).all()
        for choice in np.flatnonzero(np.array(filled) < 3):
            assert not toy.feasible((*filled[:choice], filled[choice] + 1, *filled[choice + 1 :]))
        raised += filled != bare
    assert raised > 10


def test_where_the_lowest_bits_are_over_a_limit_both_ways_down_go_on_to_a_network_that_is_not():
    space = BitwidthSpace(network(3), (2, 4, 8))
    toy = limited(space, Padded(), energy_j=1.1)
    assert not toy.feasible(space.uniform(2))
    asked = (1, 2, 0, 1, 2, 1)
    assert toy.feasible(sweep_down(toy, asked))
    found = move_evenly(toy, asked, (np.array(asked) + 0.5) / 3)
    assert toy.feasible(found)
    ends = np.sort([asked, toy.witness], axis=0)
    assert (ends[0] <= found).all() and (found <= ends[1]).all() and found not in (asked, toy.witness)


def test_without_a_table_candidates_are_bisected_to_the_same_arch_where_cost_is_monotone():
    space = BitwidthSpace(network(4), (2, 4, 8))
    fast = limited(space, Roofline(), energy_j=0.45)
    slow = limited(space, Roofline(), energy_j=0.45)
    slow.__dict__["table"] = None  # as for a chip whose cost does not decompose
    simulated = []
    price = slow._simulated
    object.__setattr__(slow, "_simulated", lambda arch: simulated.append(arch) or price(arch))
    slow.witness  # noqa: B018  found once, before what is counted
    rng = np.random.default_rng(0)
    for _ in range(10):
        wishes = rng.random(len(space.choices))
        arch = tuple(options_of(wishes, 3).tolist())
        simulated.clear()
        assert sweep_down(slow, arch) == sweep_down(fast, arch)
        assert len(simulated) <= 2 + math.log2(4 * len(arch))
        assert move_evenly(slow, arch, wishes) == move_evenly(fast, arch, wishes)


def test_many_archs_are_judged_as_one():
    toy = limited(BitwidthSpace(network(3), (2, 4, 8)), Roofline(), energy_j=0.5, latency_s=0.6)
    archs = np.random.default_rng(0).integers(3, size=(30, 6))
    assert meets_limits(toy, archs).tolist() == [toy.feasible(tuple(arch)) for arch in archs.tolist()]


# What it learns from.


def told(strategy, toy, values, state=None):
    state = state or strategy.init(toy, np.random.default_rng(0))
    archs, state = strategy.ask(toy, state, len(values))
    trials = [Trial(arch, {} if v is None else {toy.objective: v}) for arch, v in zip(archs, values, strict=True)]
    return state, strategy.tell(toy, state, trials)


def test_the_reward_is_the_fall_of_the_objective_whatever_its_name():
    for name in ("error", "loss"):
        toy = replace(problem(), objective=name)
        _, after = told(SMALL, toy, [0.25, 0.5])
        assert after["rewards"].tolist() == [-2.5, -5.0]
        assert after["worst"] == 0.5


def test_what_is_not_a_number_counts_as_the_worst_seen():
    toy = problem()
    _, after = told(SMALL, toy, [0.25, math.nan, 0.5, math.inf])
    assert after["rewards"].tolist() == [-2.5, -5.0, -5.0, -5.0]
    _, after = told(SMALL, toy, [None, 0.125], after)
    assert after["rewards"][-2:].tolist() == [-5.0, -1.25]
    _, after = told(SMALL, toy, [math.nan])
    assert after["rewards"].tolist() == [0.0] and after["worst"] is None


def test_nothing_is_learned_from_the_first_episodes_and_then_there_is_an_update_for_each_step():
    toy = problem()
    state, after = told(SMALL, toy, [0.3, 0.2])
    assert after["updates"] == 0 and (after["actor"] == state["actor"]).all()
    assert (after["actions"] == state["asked"]).all()
    _, later = told(SMALL, toy, [0.1, 0.2, 0.3], after)
    assert later["updates"] == 3 * len(toy.space.choices)
    _, across = told(SMALL, toy, [0.1, 0.2, 0.3])
    assert across["updates"] == len(toy.space.choices)


def test_the_memory_is_that_of_the_last_episodes():
    toy = problem()  # three layers, six steps: 7 transitions a layer are three whole episodes
    strategy = replace(SMALL, replay=7, warmup=100)
    state, rows = None, []
    for i in range(5):
        waiting, state = told(strategy, toy, [0.1 * i], state)
        rows.append(waiting["asked"][0])
    assert (state["actions"] == np.array(rows[-3:])).all()
    assert state["rewards"] == pytest.approx([-2.0, -3.0, -4.0])


def test_an_update_sees_whole_transitions_of_the_memory_less_the_moving_baseline(monkeypatch):
    toy = problem()
    batches = []
    monkeypatch.setattr(DDPG, "update", lambda self, actor, critic, batch, step: batches.append((batch, step)))
    _, after = told(replace(SMALL, baseline_rate=0.25), toy, [0.1, 0.2, 0.4])
    n_steps, seen = len(toy.space.choices), observations(toy.space)
    assert [step for _, step in batches] == list(range(1, n_steps + 1))

    whole = set()
    for actions, reward in zip(after["actions"], after["rewards"], strict=True):
        before = [1.0, *relative_bits(toy.space, actions).tolist()]
        for step in range(n_steps):
            now, then = seen[step].copy(), seen[min(step + 1, n_steps - 1)].copy()
            now[PREVIOUS], then[PREVIOUS] = before[step], before[step + 1]
            key = (tuple(now.tolist()), float(actions[step]), tuple(then.tolist()), step == n_steps - 1)
            whole.add((*key, float(reward)))
    baseline, found = None, set()
    plain = {key[:4]: key[4] for key in whole}
    for batch, _ in batches:
        columns = Transitions(*(column.tolist() for column in batch))
        keys = [(tuple(now), action, tuple(then), last) for now, action, _, then, last in zip(*columns, strict=True)]
        rewards = np.array([plain[key] for key in keys])  # a key error: a transition that never was
        mean = rewards.mean()
        baseline = mean if baseline is None else 0.75 * baseline + 0.25 * mean
        assert batch.rewards == pytest.approx(rewards - baseline, abs=1e-5)
        found |= set(keys)
    assert after["baseline"] == pytest.approx(baseline, abs=1e-5)
    assert len(found) > 0.9 * len(whole)


@pytest.mark.parametrize("strategy", [HAQ(hidden=8, warmup=5), replace(HAQ.paper(), hidden=8, warmup=5)])
def test_through_a_file_it_goes_on_bit_for_bit_and_leaves_the_state_it_was_given_alone(strategy):
    toy = problem(n_layers=4)

    def run(through):
        state = strategy.init(toy, np.random.default_rng(3))
        archs = []
        for n in (4, 3, 1, 5):
            asked, state = strategy.ask(toy, through(state), n)
            archs += asked
            before = pack_state(state)
            after = strategy.tell(toy, state, [toy.evaluate(arch) for arch in asked])
            assert pack_state(state) == before
            state = through(after)
        return archs, pack_state(state)

    assert run(lambda state: state) == run(lambda state: unpack_state(pack_state(state)))
    assert {type(value) for value in strategy.init(toy, np.random.default_rng(0)).values()} <= {
        np.ndarray, int, dict, type(None),
    }  # fmt: skip


# That it learns.


def test_at_equal_trials_it_finds_better_bits_than_random_search_does():
    toy = problem(limit=0.5, n_layers=6)
    best, late = {}, {}
    for name, strategy in (("haq", HAQ()), ("paper", replace(HAQ.paper(), hidden=64)), ("random", Random())):
        errors = [[t.metrics["error"] for t in search(toy, strategy, 80, seed=seed)] for seed in range(3)]
        best[name] = np.median([min(run) for run in errors])
        late[name] = np.median([np.mean(run[-20:]) for run in errors])
    assert best["haq"] < 0.8 * best["random"] and best["paper"] < 0.9 * best["random"]
    assert late["haq"] < 0.7 * late["random"] and late["paper"] < 0.7 * late["random"]


def test_what_the_paper_prints_is_kept_and_where_it_differs_is_known():
    paper = HAQ.paper()
    assert paper == replace(HAQ(), enforcement="sweep", fill=False, discount=1.0, noise_decay=0.99)
    assert (paper.noise, paper.noise_decay, paper.warmup, paper.replay) == (0.5, 0.99, 20, 128)
    assert (paper.actor_rate, paper.critic_rate, paper.soft_update) == (1e-4, 1e-3, 0.01)


# Bad input.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"replay": 0}, "replay must be at least 1, got 0"),
        ({"updates": -1}, "updates must be at least 1, got -1"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"noise": 0.0}, "noise must be above 0, got 0.0"),
        ({"noise_decay": 1.5}, "noise_decay must be above 0 and at most 1, got 1.5"),
        ({"reward_scale": -1.0}, "reward_scale must be above 0, got -1.0"),
        ({"actor_rate": math.nan}, "actor_rate must be above 0, got nan"),
        ({"critic_rate": math.inf}, "critic_rate must be above 0, got inf"),
        ({"soft_update": 0.0}, "soft_update must be above 0 and at most 1, got 0.0"),
        ({"baseline_rate": 2.0}, "baseline_rate must be above 0 and at most 1, got 2.0"),
        ({"discount": 1.1}, "discount must be from 0 to 1, got 1.1"),
        ({"enforcement": "hard"}, "enforcement must be 'even' or 'sweep', got 'hard'"),
    ],
)
def test_a_bad_hyperparameter_is_named(settings, message):
    with pytest.raises(ValueError, match="^HAQ: " + message):
        HAQ(**settings)


def test_a_space_without_layers_to_walk_through_is_refused():
    toy = Problem(MobileNetV2Space.preset("tiny"), None, Roofline())
    with pytest.raises(
        ValueError, match="must be a BitwidthSpace, whose layers it walks through, got MobileNetV2Space"
    ):
        HAQ().init(toy, np.random.default_rng(0))
