"""What Cursor, DNAS and fine-grained quantization share: the relaxed network, exact costs, limits, budget, resuming."""

import copy
import itertools
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small_task import BITS, at_work, problem, task
from test_mpnas import Contended, numeric_gradient
from tiny import killed_after
from torch import nn
from torch.nn import functional
from toys import Roofline
from toys import problem as toy_problem

from codesign.nets.mobilenetv2 import MobileNetV2Space
from codesign.problem import UnreachableLimit
from codesign.quant import calibrate, quantize, set_bits
from codesign.quant.convert import mode
from codesign.run_directory import pack_state, unpack_state
from codesign.search import search
from codesign.space import BitwidthSpace
from codesign.strategies import STRATEGIES, Cursor
from codesign.strategies.relaxed_bits import MOST_STRETCHED, Relaxation, RelaxedBits, group_of
from codesign.strategies.relaxed_bits_training import ExpectedCosts
from codesign.strategies.relaxed_network import Mixture, RelaxedNetwork, mixed, mixtures_of
from codesign.trial import best_trial, load_trials
from codesign.weight_training import Stopped
from hwmodels.from_torch import from_torch

RELAXED = {name: strategy for name, strategy in STRATEGIES.items() if issubclass(strategy, RelaxedBits)}
each = pytest.mark.parametrize("name", list(RELAXED))
#: A few steps of each, in which all that a state holds is used.
SHORT = {
    "cursor": {"steps": 8, "steps_per_offer": 2, "weight_steps": 2},
    "dnas": {"steps": 8, "steps_per_offer": 2, "epochs": 8, "weight_epochs": 1},
    "fine_grained": {"steps": 8, "steps_per_offer": 2, "groups": 3, "bound": 0.5},
}


def short(name, **changes):
    return RELAXED[name](**SHORT[name] | changes)


def test_there_are_three():
    assert set(RELAXED) == set(SHORT) == {"cursor", "dnas", "fine_grained"}


# --- the relaxed network ---------------------------------------------------------------------------------------------


def onehot(space, arch):
    shares = torch.eye(len(space.bits), dtype=torch.float64)[list(arch)]
    return mixtures_of(space, Relaxation(shares, torch.ones(shares.shape, dtype=torch.bool)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"quantizer": "dorefa"}, {"input_bits": 4}, {"quantizer": "pact"}, {"bits": (2, 8, 32), "pinned": 32}],
)
def test_a_mixture_of_one_bitwidth_is_the_network_at_these_bits_exactly(kwargs, training):
    of = task(**kwargs)
    images = of.data.search.images[:40]
    relaxed, plain = RelaxedNetwork(copy.deepcopy(of.network), of.space), copy.deepcopy(of.network)
    rng = np.random.default_rng(0)
    for arch in (of.space.uniform(of.space.bits[0]), *(of.space.sample(rng) for _ in range(4))):
        set_bits(plain, of.space.layer_bits(arch))
        scores = []
        for network, args in ((plain, ()), (relaxed, (onehot(of.space, arch),))):
            torch.manual_seed(0)  # for the dropout
            with mode(network, training):
                scores.append(network(images, *args))
        assert torch.equal(*scores)
        ours, theirs = (dict(network.named_buffers()) for network in (relaxed.network, plain))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_scores_are_those_of_the_mixed_weights_and_inputs():
    of = task(bits=(2, 4, 8))
    shares = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), size=len(of.space.choices)))
    relaxed = RelaxedNetwork(copy.deepcopy(of.network), of.space).eval()
    found = relaxed(of.data.search.images, mixtures_of(of.space, Relaxation(shares, shares > 0)))
    x, rows = of.data.search.images, iter(shares.float())
    for name, layer in copy.deepcopy(of.network).eval().named_children():
        if isinstance(layer, nn.Conv2d):
            p, q = next(rows), next(rows)
            weight = sum(
                share * layer.weight_quantizers[str(bits)](layer.weight)
                for share, bits in zip(p, (2, 4, 8), strict=True)
            )
            x = sum(share * layer.input_quantizers[str(bits)](x) for share, bits in zip(q, (2, 4, 8), strict=True))
            x = functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
        elif name == "12":  # pinned to 8 bits
            x = functional.linear(
                layer.input_quantizers["8"](x), layer.weight_quantizers["8"](layer.weight), layer.bias
            )
        else:
            x = layer(x)
    assert torch.allclose(found, x, atol=1e-5) and found.std() > 0.1


def test_one_product_of_mixtures_is_the_sum_over_all_pairs_of_bitwidths():
    """So bits of weights and of inputs can be drawn by themselves at the price of one convolution."""
    of = task(bits=(2, 4, 8))
    layer, x = of.network.get_submodule("3"), torch.randn(5, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    p, q = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.6, 0.3, 0.1])
    weight = mixed(layer.weight, layer.weight_quantizers, Mixture((2, 4, 8), p))
    one = functional.conv2d(mixed(x, layer.input_quantizers, Mixture((2, 4, 8), q)), weight)
    total = 0
    for i, j in itertools.product(range(3), repeat=2):
        bits = str((2, 4, 8)[i]), str((2, 4, 8)[j])
        quantized = layer.input_quantizers[bits[1]](x), layer.weight_quantizers[bits[0]](layer.weight)
        total = total + p[i] * q[j] * functional.conv2d(*quantized)
    assert torch.allclose(one, total, atol=1e-5)


class Counted(nn.Module):
    """A quantizer of no effect that counts its calls."""

    rounds_input = False

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x


def test_a_bitwidth_without_a_share_is_not_computed_unless_its_gradient_is_asked_for():
    quantizers = nn.ModuleDict({str(bits): Counted() for bits in (2, 4, 8)})

    def calls(shares):
        before = [quantizer.calls for quantizer in quantizers.values()]
        mixed(torch.ones(4, 3), quantizers, Mixture((2, 4, 8), shares))
        return [quantizer.calls - n for quantizer, n in zip(quantizers.values(), before, strict=True)]

    assert calls(torch.tensor([0.0, 0.3, 0.7])) == [0, 1, 1]
    assert calls(torch.tensor([0.0, 1.0, 0.0])) == [0, 1, 0]
    assert calls(torch.tensor([0.0, 1.0, 0.0]).requires_grad_()) == [1, 1, 1]
    assert calls(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5]])) == [0, 1, 1]


def test_steps_of_the_weights_keep_batch_statistics_and_those_of_the_point_do_not():
    step = at_work(problem(), short("cursor"))

    def statistics():
        return [buffer.clone() for name, buffer in step.network.named_buffers() if "running" in name]

    before = statistics()
    step.policy_step()
    assert len(before) == 6 and all(map(torch.equal, before, statistics()))
    step.weight_step()
    assert not any(map(torch.equal, before, statistics()))


def test_the_task_is_left_alone_and_candidates_are_scored_with_the_tuned_weights():
    p = problem({"energy_j": 0.5})
    before = copy.deepcopy(p.supernet.network.state_dict())
    step = at_work(p, short("dnas"))
    step.advance()
    arch = p.space.uniform(4)
    found = step.accuracy()(arch)
    assert all(torch.equal(value, before[name]) for name, value in p.supernet.network.state_dict().items())
    tuned = copy.deepcopy(step.network.network)
    assert not torch.equal(tuned.get_submodule("3").weight, p.supernet.network.get_submodule("3").weight)
    assert found == p.supernet.accuracy(tuned)(arch) != p.supernet.accuracy()(arch)


# --- gradients -------------------------------------------------------------------------------------------------------


class FrozenRounding:
    """`mixed` with the rounding errors of the first pass, which is what straight-through gradients are those of."""

    def __init__(self):
        self.errors = {}

    def __call__(self, x, quantizers, mixture):
        total = torch.zeros_like(x)
        for i, bits in enumerate(mixture.bits):
            quantizer, share = quantizers[str(bits)], mixture.shares[..., i]
            if share.dim():  # of groups of output channels
                share = share[torch.from_numpy(group_of(len(x), len(share)))].view(-1, *(1,) * (x.dim() - 1))
            step = quantizer.step.abs()
            clipped = x.clamp(quantizer.low * step, quantizer.high * step)
            error = self.errors.setdefault((id(quantizers), bits), (quantizer(x) - clipped).detach())
            total = total + share * (clipped + error)
        return total


POINTS = {
    "cursor": lambda rng, shape: rng.uniform(1.1, 7.9, size=shape),
    "dnas": lambda rng, shape: rng.normal(size=shape),
    "fine_grained": lambda rng, shape: rng.normal(size=shape),
}


def in_double(p, strategy):
    """A training in double precision: values hardly ever are where rounding decides."""
    step = at_work(p, strategy)
    step.network.double()
    return step, p.supernet.data.search.images[:8].double(), p.supernet.data.search.labels[:8]


@pytest.mark.parametrize("input_bits", [None, 32])
@each
def test_the_gradient_of_the_relaxed_loss_is_that_of_finite_differences(name, input_bits, monkeypatch):
    """At frozen noise; with inputs in float nothing but the shares decides, else rounding errors are kept."""
    p = problem(chip=Roofline(), pinned=32, bits=(1, 2, 5, 8), input_bits=input_bits)
    step, images, labels = in_double(p, short(name))
    point = POINTS[name](np.random.default_rng(1), step.point.shape)

    def loss(at):
        tensor = torch.from_numpy(at.copy()).requires_grad_()
        return step.relaxed_loss(tensor, images, labels, np.random.default_rng(5))

    value, gradient = loss(point)
    if input_bits is None:
        monkeypatch.setattr("codesign.strategies.relaxed_network.mixed", FrozenRounding())
    assert loss(point)[0] == pytest.approx(value, rel=1e-12)
    expected = numeric_gradient(lambda at: loss(at)[0], point)
    assert gradient == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert np.abs(expected).max() > 1e-4


# --- costs -----------------------------------------------------------------------------------------------------------


def policies_of(space, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(len(space.bits)), size=len(space.choices)))


@pytest.mark.parametrize("limits", [("energy_j",), ("latency_s", "weight_bytes"), ("bitops", "area_mm2")])
def test_expected_usages_are_means_over_all_networks_and_so_are_their_gradients(limits):
    p = problem(dict.fromkeys(limits, 0.6), bits=(2, 8))
    rows = np.array(list(itertools.product(range(2), repeat=len(p.space.choices))))
    assert len(rows) == 2**6
    usages = np.stack([p.costs(rows)[name] / limit for name, limit in p.limits.items()], axis=1)

    def mean(policies):
        p = policies / policies.sum(axis=1, keepdims=True)
        return p[np.arange(len(p)), rows].prod(axis=1) @ usages

    policies = policies_of(p.space).requires_grad_()
    used = ExpectedCosts(p, "weight_bytes").usages(policies)
    assert used.tolist() == pytest.approx(mean(policies.detach().numpy()).tolist())
    for i in range(len(limits)):
        (gradient,) = torch.autograd.grad(used[i], policies, retain_graph=True)
        numeric = numeric_gradient(lambda at, i=i: mean(at)[i], policies.detach().numpy())
        along = gradient.numpy() - (gradient * policies).sum(dim=1, keepdim=True).detach().numpy()  # probabilities
        assert along == pytest.approx(numeric, abs=1e-7)


def test_the_usage_of_one_network_is_what_the_problem_says_also_where_the_metric_is_no_sum():
    p = problem({"frames_per_s": 1.5, "edp_js": 0.4, "energy_j": 0.5})
    costs = ExpectedCosts(p, "energy_j")
    for seed in range(5):
        arch = p.space.sample(np.random.default_rng(seed))
        policies = torch.eye(len(BITS), dtype=torch.float64)[list(arch)]
        assert costs.usages(policies).tolist() == pytest.approx(list(p.usage(arch).values()))


def test_the_cost_in_bits_is_the_mean_of_the_weights_or_the_share_of_the_reference():
    p = problem()
    policies = policies_of(p.space)
    layers = [layer for layer in p.space.network.mac_layers if layer.name in p.space.searched]
    sizes = np.array([layer.weight_count for layer in layers])
    bits = (policies.numpy() * BITS).sum(axis=1)[::2]
    assert ExpectedCosts(p, "weight_bytes").in_bits(policies).item() == pytest.approx(sizes @ bits / sizes.sum())
    energy = p.table.expected(list(policies.numpy()))["energy_j"] / p.price(p.space.uniform(8)).energy_j
    assert ExpectedCosts(p, "energy_j").in_bits(policies).item() == pytest.approx(8 * energy)


def test_options_that_fit_no_tiling_are_dear_and_never_offered():
    chip = Roofline(buffer_bits=7000)  # the largest layer, of 1728 weights, fits up to 4 bits
    p = problem(chip=chip, bits=(2, 4, 6))
    p = replace(p, limits={"energy_j": 0.9 * p.price(p.space.uniform(4)).energy_j})
    assert np.isinf(p.costs([p.space.uniform(6)])["energy_j"]).all()
    costs = ExpectedCosts(p, "weight_bytes")
    policies = policies_of(p.space).requires_grad_()
    used = costs.usages(policies)
    (gradient,) = torch.autograd.grad(used[0], policies)
    assert used.isfinite().all() and gradient.isfinite().all()
    widest = [i for i, c in enumerate(p.space.choices) if c.name == "6.weight_bits"]
    assert gradient[widest, 2] > 5 * gradient[widest, :2].abs().max()
    fits = torch.eye(3, dtype=torch.float64)[list(p.space.uniform(4))]
    assert costs.usages(fits).item() == pytest.approx(p.usage(p.space.uniform(4))["energy_j"])
    for arch in at_work(p, short("dnas")).offer(6):
        assert p.feasible(arch)


def test_a_limit_that_is_exceeded_draws_the_policy_within_and_one_that_is_met_has_no_say():
    free, loose, tight = (
        at_work(problem(limits), Cursor(steps=40, steps_per_offer=20, penalty=0, learning_rate=0.1))
        for limits in ({}, {"energy_j": 9}, {"energy_j": 0.4})
    )
    for step in (free, loose, tight):
        step.advance()
    assert (free.point == loose.point).all()
    over = tight.policy_step()["energy_j_usage"]
    assert over < 1.1 and (tight.point < free.point).all()
    assert loose.limit_weights[0] < loose.policy_step()["loss"] / 0.1  # it fell


def test_the_weight_of_a_limit_starts_as_the_loss_over_the_excess_and_follows_the_excess():
    step = at_work(problem({"energy_j": 0.3, "weight_bytes": 0.9}), Cursor(learning_rate=1e-4))
    first = step.policy_step()
    over = np.array([first["energy_j_usage"], first["weight_bytes_usage"]]) - 1
    assert over[0] > 0.1 and over[1] < 0
    start = first["loss"] / np.array([over[0], 0.1])
    assert step.limit_weights == pytest.approx(start * np.exp(0.05 * over))
    step.policy_step()
    assert step.limit_weights[0] > start[0] * math.exp(0.05 * over[0])
    given = at_work(problem({"energy_j": 0.3}), Cursor(limit_weight=3.0))
    used = given.policy_step()["energy_j_usage"]
    assert given.limit_weights == pytest.approx([3.0 * math.exp(0.05 * (used - 1))])


# --- what is offered -------------------------------------------------------------------------------------------------


@each
def test_every_network_offered_meets_the_limits_and_leaves_no_room_in_them(name):
    p = problem({"energy_j": 0.45, "latency_s": 0.6})
    trials = search(p, short(name), 12, batch_size=6)
    for trial in trials:
        simulated = p.price(trial.arch).metrics()
        assert trial.feasible and all(simulated[metric] <= limit for metric, limit in p.limits.items())
        for i, option in enumerate(trial.arch):
            if option < len(BITS) - 1:
                assert not p.feasible((*trial.arch[:i], option + 1, *trial.arch[i + 1 :]))
    for batch in (trials[:6], trials[6:]):
        assert len({trial.arch for trial in batch}) == 6
    assert best_trial(trials).metrics["error"] == min(trial.metrics["error"] for trial in trials)


@each
def test_without_limits_the_likeliest_network_is_offered_as_it_is_and_others_after_it(name):
    step = at_work(problem(), short(name))
    step.point[:] = POINTS[name](np.random.default_rng(3), step.point.shape)
    offered = step.offer(5)
    assert offered[0] == step.strategy.likeliest(step.point, step.space)
    assert len(set(offered)) == 5
    certain = at_work(problem(bits=(2, 8)), short("dnas"))
    certain.point[:, 0] = 100.0
    assert certain.offer(1) == [(0,) * 6] and len(set(certain.offer(9))) == 9  # others are found all the same


# --- the search ------------------------------------------------------------------------------------------------------


@each
def test_same_seed_same_trials_and_another_seed_others(name):
    first, again, other = (search(problem({"energy_j": 0.5}), short(name), 8, s, batch_size=4) for s in (1, 1, 2))
    assert first == again and [t.metrics for t in first] != [t.metrics for t in other]


@each
def test_weights_and_point_see_disjoint_images_and_the_test_set_is_not_read(name):
    p = problem({"energy_j": 0.5})
    expected = search(p, short(name), 4, batch_size=4)
    data = p.supernet.data
    hidden = replace(data, test=data.test._replace(images=torch.full_like(data.test.images, math.nan)))
    assert search(replace(p, supernet=replace(p.supernet, data=hidden)), short(name), 4, batch_size=4) == expected

    step = at_work(p, short(name))
    before, point = [parameter.detach().clone() for parameter in step.network.parameters()], step.point.copy()
    step.step_number = step.strategy.first_policy_step
    step.policy_step()
    assert all(map(torch.equal, before, step.network.parameters()))
    assert not np.array_equal(step.point, point)
    point = step.point.copy()
    step.weight_step()
    assert not all(map(torch.equal, before, step.network.parameters())) and np.array_equal(step.point, point)

    for part, does in (("train", step.weight_step), ("search", step.policy_step)):
        own = getattr(data, part)
        blind = replace(data, **{part: own._replace(images=own.images * math.nan)})
        step.task = replace(p.supernet, data=blind)
        step.weights.data = blind.train
        with pytest.raises(Stopped, match="finite"):
            does()


def _search(out, name, n_trials=12, progress=None):
    p = problem({"energy_j": 0.5, "edp_js": 0.3})
    return search(p, short(name), n_trials, 3, out, batch_size=4, resume=True, progress=progress)


def _life(out, name, progress):
    _search(out, name, progress=progress)


FILES = ("trials.jsonl", "state.safetensors", "config.json")


@each
def test_a_search_killed_at_random_ends_bit_for_bit_as_one_that_was_not(name, tmp_path):
    _search(tmp_path / "whole", name)
    rng = np.random.default_rng(0)
    for calls in (3, 8):  # trials of this life, resumed ones included
        killed_after(partial(_life, tmp_path / "parts", name), calls, float(rng.random() * 0.05))
    assert 4 <= len(load_trials(tmp_path / "parts")) < 12
    _search(tmp_path / "parts", name)
    ends = [{file: (tmp_path / run / file).read_bytes() for file in FILES} for run in ("whole", "parts")]
    assert ends[0] == ends[1]
    header = ends[0]["state.safetensors"]
    names = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert {"point", "moments", "limit_weights"} <= set(names) and any(".momentum." in name for name in names)


@each
def test_a_training_goes_on_from_a_state_that_went_through_a_file(name):
    p = problem({"energy_j": 0.5})
    whole = at_work(p, short(name))
    whole.advance()
    parts = short(name).start(p, unpack_state(pack_state(whole.state())))
    torch.manual_seed(1)  # dropout draws from a step's own numbers
    measured = whole.advance()
    torch.manual_seed(2)
    assert measured == parts.advance() and whole.offer(4) == parts.offer(4)
    assert pack_state(whole.state()) == pack_state(parts.state())


@each
def test_the_learned_bits_are_no_worse_than_uniform_ones_that_cost_no_more(name):
    p = problem({"energy_j": 0.45}, n_train=256, epochs=20)
    uniform = max(bits for bits in BITS if p.feasible(p.space.uniform(bits)))
    assert uniform < 4
    step = at_work(p, RELAXED[name](steps=80, steps_per_offer=80))
    step.advance()
    tuned = step.accuracy()
    best = min(step.offer(5), key=lambda arch: tuned(arch)["error"])
    assert p.feasible(best)
    for accuracy in (p.accuracy, tuned):  # with the weights as they were, and as they are
        assert accuracy(best)["error"] <= accuracy(p.space.uniform(uniform))["error"]


def test_a_loss_that_is_not_a_number_stops(tmp_path):
    network = copy.deepcopy(task().network)
    network.get_submodule("12").bias.data.fill_(math.nan)
    p = problem({"energy_j": 0.5}, replace(task(), network=network))
    with pytest.raises(Stopped, match=r"Cursor: the loss .* is nan at step 0; the weights have 4.00 bits on the mean"):
        at_work(p, Cursor()).policy_step()
    with pytest.raises(Stopped, match="Relaxed network: the loss must be finite, but is nan at step 0 of the weights"):
        search(p, Cursor(), 4, out=tmp_path / "run")
    assert not load_trials(tmp_path / "run")


# --- budget ----------------------------------------------------------------------------------------------------------


def counted(step):
    """Images that a network sees with gradients, as they are seen."""
    seen = []
    step.network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize("batch_size", [32, 1000])
@each
def test_passes_are_counted_exactly_and_nothing_is_trained_after_the_course(name, batch_size):
    of = task()
    p = problem({"energy_j": 0.5}, replace(of, training=replace(of.training, batch_size=batch_size)))
    strategy = short(name, steps=7)
    step = at_work(p, strategy)
    seen = counted(step)
    measured = [step.advance() for _ in range(4)]
    assert step.step_number == 7 and all(row["loss"] > 0 for row in measured)
    before = pack_state(step.state())
    assert step.advance() == {} and pack_state(step.state()) == before
    at_start = len(of.data.search.labels) if name == "fine_grained" else 0
    assert strategy.training_passes(p) == 3 * sum(seen) + at_start


@each
def test_a_strategy_spends_what_it_is_given_and_offers_as_often(name):
    p, strategy = problem(), RELAXED[name](steps=40, steps_per_offer=10)
    for passes in (1_000, 12_345, 300_000):
        spending = strategy.spending(p, passes)
        one_more = replace(spending, steps=spending.steps + 1)
        assert spending.training_passes(p) <= passes < one_more.training_passes(p)
        assert math.ceil(spending.steps / spending.steps_per_offer) <= 4
        longer = min(max(1.0, 40 / spending.steps), MOST_STRETCHED)
        assert spending.learning_rate == pytest.approx(longer * strategy.learning_rate)
        assert replace(spending, steps=40, steps_per_offer=10, learning_rate=strategy.learning_rate) == strategy
    with pytest.raises(ValueError, match=r"training must be given the \d+ image passes of one step at least, got 90"):
        strategy.spending(p, 90)


# --- what is refused -------------------------------------------------------------------------------------------------


@each
def test_unreachable_limits_and_other_tasks_are_said_before_anything_is_trained(name, tmp_path):
    with pytest.raises(UnreachableLimit, match="cheapest found has energy_j"):
        search(problem({"energy_j": 1e-4}), short(name), 4, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    who = RELAXED[name].__name__
    with pytest.raises(ValueError, match=f"{who}: it tunes a trained network, so the problem must have a NetworkTask"):
        search(toy_problem(), short(name), 4)
    p = problem()
    for space in (MobileNetV2Space.preset("tiny"), replace(p.space, bits=(2, 4))):
        with pytest.raises(ValueError, match=f"{who}: the space of the problem must be that of its network, 6 choices"):
            short(name).init(replace(p, space=space), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"there must be two bitwidths to mix, got bits=\(8,\)"):
        short(name).init(problem(bits=(8,)), np.random.default_rng(0))


@each
def test_a_cost_that_is_no_sum_over_the_table_is_refused(name):
    rng = np.random.default_rng(0)
    p = problem()
    for cost in ("edp_js", "frames_per_s", "error", "joules"):
        with pytest.raises(ValueError, match=rf"cost must be a sum over the cost table of BitFusion \(.*got '{cost}'"):
            short(name, cost=cost).init(p, rng)
    with pytest.raises(ValueError, match=r"sum over the cost table of Contended \(there is none for it\)"):
        short(name).init(problem(chip=Contended()), rng)


def test_layers_and_bitwidths_that_the_network_has_no_quantizers_for_are_named():
    of = task(bits=(2, 4))
    with pytest.raises(ValueError, match="layer '0' must have a quantizer for each bitwidth given, got 3"):
        at_work(problem(of=replace(of, space=replace(of.space, bits=(2, 3)))), Cursor())
    other = from_torch(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 1, 8, 8))
    with pytest.raises(ValueError, match="must name convolutions or linear layers, got 1"):
        RelaxedNetwork(copy.deepcopy(of.network), BitwidthSpace(other, (2, 4)))


def test_a_network_with_float_layers_and_one_layer_in_two_places_is_relaxed():
    shared = nn.Linear(16, 16)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), shared, nn.ReLU(), shared, nn.Linear(16, 10))
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = quantize(net, {"1": 8, "3": 8}, bitwidths=(2, 8))
    calibrate(network, images)
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16))
    space = BitwidthSpace(from_torch(first, (1, 1, 8, 8)), (2, 8))
    relaxed = RelaxedNetwork(network, space).eval()
    found = relaxed(images, onehot(space, (0, 1, 1, 0)))
    set_bits(network, {"1": (2, 8), "3": (8, 2)})
    assert torch.equal(found, network(images))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"weight_steps": 0}, "weight_steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"last_weight_learning_rate": 0.5}, "must be from 0 to weight_learning_rate=0.01, got 0.5"),
        ({"limit_weight": -1.0}, "limit_weight must be positive"),
    ],
)
@each
def test_settings_that_mean_nothing_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=f"{RELAXED[name].__name__}: .*{message}"):
        RELAXED[name](**fields)


def test_the_rate_of_the_weights_ends_at_the_last_one():
    p = problem()
    step = at_work(p, Cursor(steps=50, weight_learning_rate=0.02, last_weight_learning_rate=0.005))
    rates = []
    for step.weights.step_number in range(51):
        rates.append(step.weights.training.learning_rate * step.weights._schedule())
    assert max(rates) == pytest.approx(0.02) and rates[-1] == pytest.approx(0.005) and rates.index(max(rates)) == 5
