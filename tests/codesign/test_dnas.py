"""DNAS: masks, temperature, the loss that the cost weights, and the steps that train weights alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_task import BITS, at_work, problem
from test_mpnas import numeric_gradient

from codesign.strategies import DNAS

LOGITS = np.random.default_rng(0).normal(size=(6, len(BITS)))


@pytest.fixture(scope="module")
def p():
    return problem()


def masks(p, strategy, progress, seed=0, logits=LOGITS):
    rng = np.random.default_rng(seed)
    return strategy.relaxation(torch.from_numpy(logits), p.space, progress, rng).shares


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0, 1.5])
def test_masks_are_softmaxes_of_noisy_logits_at_a_temperature_that_falls_over_90_epochs(p, progress):
    noise = np.random.default_rng(3).gumbel(size=LOGITS.shape)
    epoch = 90 * min(progress, 1)
    scores = (LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True)) + noise) / (5 * math.exp(-0.045 * epoch))
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    found = masks(p, DNAS(), progress, 3)
    assert found.numpy() == pytest.approx(weights / weights.sum(axis=1, keepdims=True))


def test_masks_take_each_option_as_often_as_the_policy_has_it(p):
    """At a low temperature; so the network at one bitwidth for each operand is drawn from softmax(theta)."""
    drawn = torch.stack([masks(p, DNAS(temperature=0.01), 1.0, seed) for seed in range(3000)])
    assert torch.allclose(drawn.sum(dim=2), torch.ones(3000, 6).double())
    policies = DNAS().policies(torch.from_numpy(LOGITS), p.space, 0.0)
    often = torch.nn.functional.one_hot(drawn.argmax(dim=2), len(BITS)).double().mean(dim=0)
    assert bool(((often - policies).abs() <= 5 * (policies * (1 - policies) / 3000).sqrt()).all())


def test_the_loss_is_weighted_by_the_logarithm_of_the_cost_where_there_are_no_limits():
    loss, cost, theta = (torch.tensor(value, dtype=torch.float64) for value in (0.5, 4.0, LOGITS))
    decay = 0.5 * 5e-4 * (LOGITS**2).sum()

    def objective(strategy, limited):
        return strategy.objective(loss, cost, theta, limited).item()

    weighted = 0.5 * 0.2 * math.log(1 + 10 * 4.0) ** 0.6
    assert objective(DNAS(), False) == pytest.approx(weighted + decay)
    assert objective(DNAS(), True) == pytest.approx(0.5 + decay)
    assert objective(DNAS.paper(), True) == pytest.approx(weighted + decay)
    other = DNAS(scale=0.1, power=0.9, units=3.0, decay=0.0)
    assert objective(other, False) == pytest.approx(0.5 * 0.1 * math.log(1 + 3 * 4.0) ** 0.9)
    least = torch.tensor(1e-6).double()
    assert 0 < DNAS().objective(loss, least, theta * 0, False).item() < 1e-3  # any cost has a logarithm above 0


@pytest.mark.parametrize("limits", [{}, {"energy_j": 0.4}])
def test_the_step_takes_the_gradient_of_loss_and_cost_together(limits):
    """Against finite differences of the objective, with the loss of the network as the step measured it."""
    p = problem(limits)
    step = at_work(p, DNAS(weight_epochs=0, cost="energy_j"), point=LOGITS)
    seen = {}
    step._adam = lambda gradient: seen.update(gradient=gradient)
    loss = step.policy_step()["loss"]
    batch = step._search_batch(np.random.default_rng([step.seed, 0, 5]))
    rng = np.random.default_rng([step.seed, 0, 5])
    step._search_batch(rng)
    value, by_loss = step.relaxed_loss(torch.from_numpy(LOGITS).requires_grad_(), *batch, rng)
    assert value == loss

    def objective(at, value):
        theta, value = torch.from_numpy(at), torch.tensor(value, dtype=torch.float64)
        policies = step.strategy.policies(theta, p.space, 0.0)
        total = step.strategy.objective(value, step.costs.in_bits(policies), theta, bool(limits))
        if limits:  # far over: twice the weight, as it was when the step was taken
            total = total + 2 * float(step.limit_weights[0]) * step.costs.usages(policies)[0]
        return total.item()

    through = (objective(LOGITS, loss + 1e-5) - objective(LOGITS, loss - 1e-5)) / 2e-5
    expected = through * by_loss + numeric_gradient(lambda at: objective(at, loss), LOGITS)
    assert seen["gradient"] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert np.abs(expected).max() > 1e-4


def test_the_first_epochs_train_weights_alone(p):
    strategy = DNAS(steps=18, steps_per_offer=2)
    assert strategy.first_policy_step == 2 and DNAS(steps=400).first_policy_step == 44
    assert replace(strategy, weight_epochs=0).first_policy_step == 0
    step = at_work(p, strategy)
    before = step.network.network.get_submodule("3").weight.detach().clone()
    assert step.advance() == {} and not step.point.any()
    assert not torch.equal(step.network.network.get_submodule("3").weight, before)
    assert step.advance()["loss"] > 0 and step.point.any()
    first = np.abs(step.point).max()
    assert 0.05 < first <= 2 * 0.05 * 1.01  # two steps of Adam, whose first is the whole rate


def test_both_operands_have_options_and_the_likeliest_pair_is_what_a_point_stands_for(p):
    assert DNAS().first_point(p.space).shape == (6, 6)
    assert DNAS().likeliest(LOGITS, p.space) == tuple(LOGITS.argmax(axis=1).tolist())


def test_the_preset_has_the_figures_of_fbnet():
    strategy = DNAS.paper()
    assert (strategy.scale, strategy.power, strategy.learning_rate, strategy.decay) == (0.2, 0.6, 0.01, 5e-4)
    assert (strategy.temperature, strategy.cooling, strategy.epochs, strategy.weight_epochs) == (5.0, 0.045, 90, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
        ({"power": -1.0}, "power must be positive, got -1.0"),
        ({"units": 0.0}, "units must be positive"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"cooling": -0.1}, "cooling must not be negative"),
        ({"decay": -0.1}, "decay must not be negative"),
        ({"weight_epochs": 90}, "weight_epochs must be from 0 to below epochs=90, got 90"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"DNAS: {message}"):
        DNAS(**fields)
