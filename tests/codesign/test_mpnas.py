"""MP-NAS: its two gradients against enumeration and finite differences, the hinge on limits, and the run."""

import itertools
import json
import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny import SPACE, few, in_double, killed_after, trained
from torch.nn import functional
from toys import problem as toy_problem

from codesign.chip_space import ChipSpace
from codesign.nets.mobilenetv2 import MobileNetV2Space
from codesign.nets.mobilenetv2_supernet import Supernet
from codesign.precision import Precision
from codesign.problem import Problem, UnreachableLimit
from codesign.search import search
from codesign.strategies import MPNAS, STRATEGIES, Gumbel
from codesign.strategies.mpnas_training import by_block, option_probabilities, reinforce, relax, through_softmax
from codesign.strategies.policy import draw, even_logits, policy_gradient, probabilities
from codesign.supernet import SupernetAccuracy, SupernetTask
from codesign.trial import best_trial, load_trials
from codesign.weight_training import Stopped, SupernetTraining
from hwmodels import BitFusion

TRAINERS = [name for name, strategy in STRATEGIES.items() if issubclass(strategy, MPNAS)]
each_trainer = pytest.mark.parametrize("name", TRAINERS)
SHORT = {"steps": 8, "steps_per_offer": 2}
#: Two blocks of 2 * 1 * 1 * 2 * 2 options: 64 networks, which can all be computed.
SMALL = MobileNetV2Space.preset("tiny", expansions=(1, 3), kernel_sizes=(3,), skips=(1,), bits=(2, 8))


def problem(limits=None, space=SPACE, chip=None, network=None):
    """Limits are fractions of what the reference network uses."""
    network, data = network or trained(), few()
    free = Problem(space, SupernetAccuracy(network, data.train.images[:64], data.search), chip or BitFusion())
    of = free.price(space.reference).metrics()
    limits = {name: share * of[name] for name, share in (limits or {}).items()}
    return replace(free, limits=limits, supernet=SupernetTask(network, data, SupernetTraining(batch_size=32)))


def training(task, strategy=None, **state):
    strategy = strategy or MPNAS(**SHORT)
    return strategy.start(task, strategy.init(task, np.random.default_rng(0)) | state)


def some_logits(space, seed=0):
    return even_logits(space) + np.random.default_rng(seed).normal(size=(len(space.field_counts), 1)) * np.arange(
        max(space.field_counts)
    )


def numeric_gradient(function, logits, eps=1e-6):
    gradient = np.zeros_like(logits)
    for index in np.argwhere(np.isfinite(logits)):
        step = np.zeros_like(logits)
        step[tuple(index)] = eps
        gradient[tuple(index)] = (function(logits + step) - function(logits - step)) / (2 * eps)
    return gradient


# --- REINFORCE against enumeration -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def enumerated():
    """All networks of two blocks: field indices, task losses of shared weights, and shares of the energy limit."""
    network, data = trained(SMALL).train(), few()
    rows = np.array(list(itertools.product(*(range(count) for count in SMALL.field_counts))))
    with torch.no_grad():
        losses = [
            functional.cross_entropy(network(data.search.images, SMALL.join(row)), data.search.labels) for row in rows
        ]
    task = problem({"energy_j": 0.5}, SMALL, network=trained(SMALL))
    return rows, np.array(losses, dtype=float), task.usages([SMALL.join(row) for row in rows])[:, 0]


def shares(logits, rows):
    """Probability of each network."""
    return probabilities(logits)[np.arange(rows.shape[1]), rows].prod(axis=1)


@pytest.mark.parametrize("what", ["task loss", "energy"])
def test_reinforce_is_unbiased_and_its_baseline_makes_it_vary_less(enumerated, what):
    """Over all pairs of networks of a two-block space, in the shares in which the policy draws them."""
    rows, losses, energies = enumerated
    values, logits = losses if what == "task loss" else energies, some_logits(SMALL)
    p = shares(logits, rows)
    assert len(rows) == (2 * 2 * 2) ** 2 and p.sum() == pytest.approx(1)
    exact = numeric_gradient(lambda at: shares(at, rows) @ values, logits)
    mean, square, plain_mean, plain_square = np.zeros_like(logits), 0.0, np.zeros_like(logits), 0.0
    for i, j in itertools.product(range(len(rows)), repeat=2):
        pair, weight = [i, j], p[i] * p[j]
        estimate = reinforce(logits, rows[pair], values[pair])
        plain = policy_gradient(logits, rows[pair], values[pair])
        mean, square = mean + weight * estimate, square + weight * (estimate**2).sum()
        plain_mean, plain_square = plain_mean + weight * plain, plain_square + weight * (plain**2).sum()
    spread = values.std()
    assert np.abs(exact).max() > 0.01 * spread
    assert mean == pytest.approx(exact, abs=1e-6 * spread) and plain_mean == pytest.approx(exact, abs=1e-6 * spread)
    variance, plain_variance = square - (exact**2).sum(), plain_square - (exact**2).sum()
    print(f"variance of the gradient of the {what}: {variance:.4g} with the baseline, {plain_variance:.4g} without")
    assert 0 < variance < plain_variance


@pytest.mark.parametrize("k", [2, 5])
def test_the_sampled_task_gradient_is_reinforce_over_networks_drawn_from_the_policy(k):
    step = training(problem(), MPNAS(**SHORT, task="reinforce", task_samples=k), logits=some_logits(SPACE))
    images, labels = few().search
    rows = draw(step.logits, k, np.random.default_rng(9))
    network = trained().train()
    with torch.no_grad():
        losses = [functional.cross_entropy(network(images, SPACE.join(row)), labels).item() for row in rows]
    before = [tensor.clone() for tensor in step.network.state_dict().values()]
    loss, gradient = step._sampled(images, labels, np.random.default_rng(9))
    assert loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert gradient == pytest.approx(reinforce(step.logits, rows, np.array(losses)), rel=1e-4, abs=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, step.network.state_dict().values(), strict=True))


# --- Gumbel-softmax against finite differences ---------------------------------------------------------------------


class FrozenRounding:
    """Quantizers whose rounding errors are those of the first pass: what their gradients are straight through.

    A quantizer is piecewise constant. The gradients that are learned with are those of a function that is not: of the
    clipped value plus the rounding error, as it was.
    """

    def __init__(self, network):
        self.errors = {}
        for name, bank in network.named_modules():
            if type(bank).__name__ == "Quantizers":
                bank.forward = partial(self.quantize, name, bank)

    def quantize(self, name, bank, x, mixture):
        if not isinstance(mixture, torch.Tensor):
            bits, mixture = [str(mixture)], [1.0]
        else:
            bits = list(bank.by_bits)
        total = 0.0
        for share, width in zip(mixture, bits, strict=True):
            quantizer = bank.by_bits[width]
            step = quantizer.step.abs()
            clipped = x.clamp(quantizer.low * step, quantizer.high * step)
            if (name, width) not in self.errors:
                self.errors[name, width] = (quantizer(x) - clipped).detach()
            total = total + share * (clipped + self.errors[name, width])
        return total


@pytest.mark.parametrize("temperature", [0.5, 5.0])
def test_the_gradient_through_the_relaxation_is_that_of_finite_differences_at_frozen_noise(temperature):
    images, labels = few().search.images[:8].double(), few().search.labels[:8]
    noise = torch.from_numpy(np.random.default_rng(4).gumbel(size=even_logits(SPACE).shape))

    def loss(network, logits):
        masks = relax(logits, noise, temperature)
        return functional.cross_entropy(network.soft(images, by_block(SPACE, masks)), labels)

    logits = torch.from_numpy(some_logits(SPACE)).requires_grad_()
    found = loss(in_double(trained()).train(), logits)
    (gradient,) = torch.autograd.grad(found, logits)
    frozen = in_double(trained()).train()
    FrozenRounding(frozen)
    with torch.no_grad():
        assert loss(frozen, logits).item() == pytest.approx(found.item(), rel=1e-12)
        expected = numeric_gradient(lambda at: loss(frozen, torch.from_numpy(at)).item(), logits.detach().numpy())
    real = np.isfinite(expected) & np.isfinite(logits.detach().numpy())
    assert np.abs(expected).max() > 1e-4
    assert gradient.numpy()[real] == pytest.approx(expected[real], rel=1e-5, abs=1e-8)


def test_the_relaxed_step_takes_that_gradient_and_none_for_values_that_are_not_there():
    step = training(problem(), logits=some_logits(SPACE))
    images, labels = few().search
    loss, gradient = step._relaxed(images, labels, np.random.default_rng(9))
    noise = torch.from_numpy(np.random.default_rng(9).gumbel(size=step.logits.shape))
    logits = torch.from_numpy(step.logits).requires_grad_()
    masks = relax(logits, noise, step.temperature).float()
    again = functional.cross_entropy(trained().train().soft(images, by_block(SPACE, masks)), labels)
    (expected,) = torch.autograd.grad(again, logits)
    real = np.isfinite(step.logits)
    assert loss == pytest.approx(again.item(), rel=1e-6)
    assert gradient[real] == pytest.approx(expected.numpy()[real], rel=1e-4, abs=1e-7)
    assert not gradient[~real].any()


def test_relaxed_masks_are_a_softmax_over_the_values_and_draw_each_with_its_probability():
    logits = torch.from_numpy(some_logits(SPACE))
    noise = torch.from_numpy(np.random.default_rng(0).gumbel(size=(4000, *logits.shape)))
    drawn = torch.stack([relax(logits, one, 0.1) for one in noise])
    assert torch.allclose(drawn.sum(dim=2), torch.ones(drawn.shape[:2], dtype=torch.float64))
    p = torch.softmax(logits, dim=1)
    often = torch.nn.functional.one_hot(drawn.argmax(dim=2), logits.shape[1]).double().mean(dim=0)
    assert bool(((often - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt()).all())
    assert not drawn[:, torch.isinf(logits)].any()


def test_the_temperature_falls_exponentially_from_the_first_to_the_last():
    step = training(problem(), MPNAS(**SHORT, temperature=4.0, last_temperature=0.25))
    found = []
    for step.step_number in (0, 4, 8, 20):
        found.append(step.temperature)
    assert found == pytest.approx([4.0, 1.0, 0.25, 0.25])


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["energy_j", "latency_s", "weight_bytes"])
def test_the_gradient_of_the_expected_cost_is_that_of_finite_differences(metric):
    task = problem()
    logits = some_logits(SPACE)

    def expected(at):
        return task.table.expected(option_probabilities(SPACE, at))[metric]

    slopes = task.table.expected_gradient(option_probabilities(SPACE, logits), metric)
    scale = expected(logits)
    numeric = numeric_gradient(lambda at: expected(at) / scale, logits)
    assert through_softmax(SPACE, logits, slopes) / scale == pytest.approx(numeric, abs=1e-8)
    assert np.abs(numeric).max() > 1e-3


def test_the_expected_usage_is_the_mean_over_all_networks(enumerated):
    rows, _, energies = enumerated
    task = problem({"energy_j": 0.5}, SMALL, network=trained(SMALL))
    logits = some_logits(SMALL)
    step = training(task, Gumbel(**SHORT), logits=logits)
    used, (gradient,) = step.expected_usage(np.random.default_rng(0))
    assert used[0] == pytest.approx(shares(logits, rows) @ energies)
    assert gradient == pytest.approx(numeric_gradient(lambda at: shares(at, rows) @ energies, logits), abs=1e-8)


def test_samples_estimate_the_same_usage_and_gradient(enumerated):
    rows, _, energies = enumerated
    task, logits = problem({"energy_j": 0.5}, SMALL, network=trained(SMALL)), some_logits(SMALL)
    n = 20_000
    used, (gradient,) = training(task, MPNAS(**SHORT, cost_samples=n), logits=logits).expected_usage(
        np.random.default_rng(0)
    )
    p = shares(logits, rows)
    spread = math.sqrt(p @ energies**2 - (p @ energies) ** 2)
    assert used[0] == pytest.approx(p @ energies, abs=5 * spread / math.sqrt(n))
    exact = numeric_gradient(lambda at: shares(at, rows) @ energies, logits)
    assert gradient == pytest.approx(exact, abs=5 * spread / math.sqrt(n))
    assert np.abs(exact).max() > 5 * spread / math.sqrt(n)


@dataclass(frozen=True)
class Contended(BitFusion):
    """A chip on which the cost of a network is no sum over its layers: the longest one counts twice."""

    def costs(self, workload, resident=None):
        layers = [self.cost(layer) for layer in workload.layers]
        return [*layers, max(layers, key=lambda cost: cost.latency_s)]


@pytest.mark.parametrize(("limits", "chip"), [({"energy_j": 0.5}, Contended()), ({"edp_js": 0.3}, BitFusion())])
def test_where_the_cost_is_no_sum_over_a_table_it_is_estimated_from_samples_and_said_so(limits, chip, caplog):
    task, logits = problem(limits, SMALL, chip, trained(SMALL)), some_logits(SMALL)
    assert (task.table is None) == isinstance(chip, Contended)
    strategy = Gumbel(**SHORT, cost_samples=50)
    used, (gradient,) = training(task, strategy, logits=logits).expected_usage(np.random.default_rng(3))
    rows = draw(logits, 50, np.random.default_rng(3))
    usages = task.usages([SMALL.join(row) for row in rows])[:, 0]
    assert used[0] == usages.mean() and (gradient == reinforce(logits, rows, usages)).all()
    trials = search(task, strategy, 4, batch_size=4)
    assert all(trial.feasible for trial in trials)
    assert sum("REINFORCE is taken" in record.message for record in caplog.records) == 2  # for two trainings


def test_a_limit_that_the_policy_meets_has_no_say():
    free, loose, tight = (
        training(problem(limits), Gumbel(**SHORT)) for limits in ({}, {"energy_j": 9}, {"energy_j": 0.3})
    )
    for step in (free, loose, tight):
        for _ in range(3):
            step.policy_step()
    assert (free.logits == loose.logits).all()
    assert not np.allclose(free.logits, tight.logits)


@pytest.mark.parametrize("strategy", [Gumbel, MPNAS])
def test_a_limit_that_the_policy_is_over_draws_it_within(strategy):
    task = problem({"energy_j": 0.4, "latency_s": 0.8}, SMALL, network=trained(SMALL))
    step = training(task, strategy(steps=25, learning_rate=0.3, entropy=0.0))
    seen = [step.policy_step() for _ in range(25)]
    assert seen[0]["energy_j_usage"] > 1.2
    expected = task.table.expected(option_probabilities(SMALL, step.logits))
    assert all(expected[name] / limit < 1.05 for name, limit in task.limits.items())


def test_the_weight_of_a_limit_is_the_loss_over_the_excess_at_the_start_unless_it_is_given():
    task = problem({"energy_j": 0.3, "weight_bytes": 1.0})
    step = training(task, Gumbel(**SHORT))
    first = step.policy_step()
    expected = [first["loss"] / (first["energy_j_usage"] - 1), first["loss"] / 0.1]
    assert step.limit_weights == pytest.approx(expected)
    step.policy_step()
    assert step.limit_weights == pytest.approx(expected)
    given = training(task, Gumbel(**SHORT, limit_weight=3.0))
    given.policy_step()
    assert given.limit_weights == [3.0, 3.0]


# --- the search ------------------------------------------------------------------------------------------------------


@each_trainer
def test_every_network_offered_meets_the_limits_by_a_full_simulation_and_the_likeliest_comes_first(name):
    task = problem({"energy_j": 0.35, "latency_s": 0.7})
    trials = search(task, STRATEGIES[name](**SHORT), 12, batch_size=4)
    for trial in trials:
        simulated = task.price(trial.arch).metrics()
        assert trial.feasible and all(simulated[metric] <= limit for metric, limit in task.limits.items())
        assert {metric: trial.metrics[metric] for metric in task.limits} == {m: simulated[m] for m in task.limits}
    step = training(problem())
    step.logits[:] = some_logits(SPACE)
    assert step.offer(3)[0] == SPACE.join(step.logits.argmax(axis=1))
    assert best_trial(trials).metrics["error"] == min(trial.metrics["error"] for trial in trials)


def test_what_is_next_to_free_is_offered_against_a_policy_that_holds_little_of_it():
    """A policy for small blocks without skips, and a limit with some room: skips come before what costs more."""
    logits = np.where(np.isfinite(even_logits(SPACE)), -6.0 * np.arange(even_logits(SPACE).shape[1]), -np.inf)
    skips = {}
    for fill in (None, 0.1):
        step = training(problem({"energy_j": 0.4}), MPNAS(**SHORT, fill=fill))
        step.logits = logits.copy()
        skips[fill] = [block.skip for block in SPACE.blocks(step.offer(1)[0])]
    assert not any(skips[None]) and all(skips[0.1])


@each_trainer
def test_same_seed_same_trials_and_another_seed_others(name):
    first, again, other = (
        search(problem({"energy_j": 0.5}), STRATEGIES[name](**SHORT), 8, s, batch_size=4) for s in (1, 1, 2)
    )
    assert first == again and [t.arch for t in first] != [t.arch for t in other]


def test_weights_and_policy_see_disjoint_images_and_the_test_set_is_not_read():
    task = problem({"energy_j": 0.5})
    expected = search(task, MPNAS(**SHORT), 4, batch_size=4)
    data = few()
    hidden = replace(data, test=data.test._replace(images=torch.full_like(data.test.images, float("nan"))))
    changed = replace(task, supernet=replace(task.supernet, data=hidden))
    assert search(changed, MPNAS(**SHORT), 4, batch_size=4) == expected

    step = training(task)
    before, logits = [p.detach().clone() for p in step.network.parameters()], step.logits.copy()
    step.policy_step()
    assert all(torch.equal(a, b) for a, b in zip(before, step.network.parameters(), strict=True))
    assert not np.array_equal(step.logits, logits)


def _search(out, n_trials=16, progress=None, name="mpnas"):
    # a limit on edp_js, so that costs are sampled too
    task = problem({"energy_j": 0.5, "edp_js": 0.3})
    return search(task, STRATEGIES[name](**SHORT), n_trials, 3, out, batch_size=4, resume=True, progress=progress)


def _life(out, progress):
    _search(out, progress=progress)


FILES = ("trials.jsonl", "state.safetensors", "config.json")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    _search(out)
    return {name: (out / name).read_bytes() for name in FILES}


def test_a_search_killed_at_random_ends_bit_for_bit_as_one_that_was_not(tmp_path, uninterrupted):
    rng = np.random.default_rng(0)
    for calls in (2, 5, 7, 10, 12):  # trials of this life, resumed ones included
        killed_after(partial(_life, tmp_path), calls, float(rng.random() * 0.05))
    assert 4 <= len(load_trials(tmp_path)) < 16
    _search(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == uninterrupted


def test_a_search_whose_state_is_damaged_goes_on_from_the_one_before(tmp_path, uninterrupted):
    _search(tmp_path, 12)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    _search(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == uninterrupted


def test_a_loss_that_is_not_a_number_stops_and_keeps_what_was_there(tmp_path):
    _search(tmp_path, 8)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    network = trained()
    network.classifier.bias.data.fill_(math.nan)
    step = training(problem(network=network))
    with pytest.raises(
        Stopped, match=r"loss must stay finite, but is nan at policy step 0; the likeliest network is .*blocks"
    ):
        step.policy_step()
    with pytest.raises(Stopped, match="the loss must be finite, but is nan at step 0 for blocks"):
        search(problem(network=network), MPNAS(**SHORT), 8, out=tmp_path / "other", batch_size=4)
    assert not load_trials(tmp_path / "other")
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before


def test_in_float16_a_policy_gradient_that_overflows_is_left_out_and_counted():
    task = problem({"energy_j": 0.5})
    half = replace(task.supernet, training=replace(task.supernet.training, precision=Precision("float16")))
    step = training(replace(task, supernet=half))
    step.scaler.scale = 2.0**127  # times a loss above 2 it is inf
    before = step.logits.copy()
    step.policy_step()
    assert (step.logits == before).all() and step.step_number == 1
    assert (step.scaler.skipped_steps, step.scaler.scale) == (1, 2.0**126)
    step.scaler.scale = 2.0**10
    step.policy_step()
    assert (step.logits != before).any() and step.advance()["skipped_steps"] >= 1
    again = training(replace(task, supernet=half), **step.state())
    assert again.scaler.state() == step.scaler.state()


def test_the_scale_of_the_loss_changes_no_bit_of_the_policy_in_float32():
    task, moved = problem({"energy_j": 0.5}), []
    for scale in (1.0, 2.0**8):
        step = training(task)
        step.scaler.scale = scale
        step.policy_step()
        moved.append(step.logits)
    np.testing.assert_allclose(*moved, rtol=1e-5)


def test_a_state_holds_no_pickle_and_all_that_goes_on(uninterrupted):
    data = uninterrupted["state.safetensors"]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {"logits", "moments"} <= set(header) and any(name.startswith("weights.momentum.") for name in header)
    assert (
        b"pickle" not in data
        and json.loads(json.loads(header["__metadata__"]["state"])[1])["step_number"] == SHORT["steps"]
    )


def test_the_chip_is_chosen_with_the_network():
    space = ChipSpace(SPACE, {"rows": (8, 16), "cols": (8, 16)})
    network, data = trained(), few()
    accuracy = SupernetAccuracy(network, data.train.images[:64], data.search)
    free = Problem(space, accuracy, BitFusion(), supernet=SupernetTask(network, data, SupernetTraining(batch_size=32)))
    area = BitFusion(rows=8, cols=16).area_mm2 * 1.01
    trials = search(replace(free, limits={"area_mm2": area}), Gumbel(**SHORT), 8, batch_size=4)
    chips = [space.hardware(trial.arch, BitFusion()) for trial in trials]
    assert all(trial.feasible and chip.area_mm2 <= area for trial, chip in zip(trials, chips, strict=True))


def test_weights_that_were_never_quantized_are_calibrated_first():
    step = training(problem(network=Supernet(SPACE)))
    assert step.network.quantized and math.isfinite(step.policy_step()["loss"])


@pytest.mark.parametrize("task", ["gumbel", "reinforce"])
def test_the_policy_moves_to_the_better_networks(task):
    """Where the channels of an expansion carry nothing, it ends without one."""
    network = trained(SMALL)
    for block in network.blocks:
        block.project.weight.data[:, block.hidden(3)] = 5.0  # the same sum for every output
    strategy = MPNAS(steps=25, task=task, task_samples=8, learning_rate=0.3, entropy=0.0)
    step = training(problem(space=SMALL, network=network), strategy)
    for _ in range(25):
        step.policy_step()
    expansions = [row for row, name in enumerate(SMALL.field_names) if name.endswith("expansion")]
    assert len(expansions) == 2 and (probabilities(step.logits)[expansions, 0] > 0.7).all()


def test_unreachable_limits_and_missing_supernets_are_said_before_anything_is_trained(tmp_path):
    with pytest.raises(UnreachableLimit, match="cheapest found has energy_j"):
        search(problem({"energy_j": 1e-4}), MPNAS(**SHORT), 4, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="Gumbel: it trains shared weights, so the problem must have a SupernetTask"):
        search(toy_problem(), Gumbel(), 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "darts"}, "task must be one of .*got 'darts'"),
        ({"cost": "none"}, "cost must be one of"),
        ({"task_samples": 1}, "task_samples must be at least 2, got 1"),
        ({"temperature": 0.1}, "must be positive and not rise, got 0.1 and then 0.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MPNAS(**fields)
