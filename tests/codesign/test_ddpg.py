"""The gradients of actor and critic, and whole updates, against torch's autograd and its Adam."""

import copy

import numpy as np
import pytest
import torch

from codesign.strategies.ddpg import (
    DDPG,
    TINY,
    Layers,
    Transitions,
    actor_gradient,
    adam,
    critic_gradient,
    policy,
    value,
)

AGENT = DDPG(n_observed=5, n_hidden=12, actor_rate=3e-3, critic_rate=1e-2, discount=0.9, soft_update=0.2)


class Twin(torch.nn.Module):
    """The same network in torch, with the layers of the slow form: the critic's first one is two that are added."""

    def __init__(self, weights, n_observed, judges):
        super().__init__()
        layers = Layers.of(torch.from_numpy(weights.copy()).numpy(), n_observed + judges)
        tensor = {name: torch.from_numpy(np.array(part)) for name, part in layers._asdict().items()}
        self.judges = judges
        self.seen = torch.nn.Parameter(tensor["weight1"][:n_observed].clone())
        self.done = torch.nn.Parameter(tensor["weight1"][n_observed:].clone())
        self.bias1, self.weight2, self.bias2, self.weight3, self.bias3 = (
            torch.nn.Parameter(tensor[name]) for name in ("bias1", "weight2", "bias2", "weight3", "bias3")
        )

    def forward(self, observations, actions=None):
        hidden = observations @ self.seen + self.bias1
        if self.judges:
            hidden = hidden + actions[:, None] @ self.done
        hidden = torch.relu(torch.relu(hidden) @ self.weight2 + self.bias2)
        out = (hidden @ self.weight3 + self.bias3)[:, 0]
        return out if self.judges else torch.sigmoid(out)

    def vector(self, of=lambda parameter: parameter):
        order = (self.seen, self.done, self.bias1, self.weight2, self.bias2, self.weight3, self.bias3)
        return torch.cat([of(part).detach().reshape(-1) for part in order if part.numel()]).numpy()


def batch(rng, n=9, n_observed=5, dtype=np.float64):
    return Transitions(
        rng.normal(size=(n, n_observed)).astype(dtype),
        rng.random(n).astype(dtype),
        rng.normal(size=n).astype(dtype),
        rng.normal(size=(n, n_observed)).astype(dtype),
        rng.random(n) < 0.3,
    )


def tensors(transitions):
    return [torch.from_numpy(np.array(column)) for column in transitions]


def networks(seed=0):
    return AGENT.networks(np.random.default_rng(seed), np.float64)


def test_the_critics_gradient_is_that_of_autograd():
    (_, critic), seen = networks(), batch(np.random.default_rng(1))
    twin = Twin(critic[0], 5, judges=True)
    observations, actions, targets, *_ = tensors(seen)
    torch.nn.functional.mse_loss(twin(observations, actions), targets).backward()
    found = critic_gradient(critic[0], seen.observations, seen.actions, seen.rewards)
    assert np.allclose(found, twin.vector(lambda part: part.grad), rtol=1e-10, atol=1e-14)


def test_the_actors_gradient_through_the_critic_is_that_of_autograd():
    (actor, critic), seen = networks(), batch(np.random.default_rng(1))
    doer, judge = Twin(actor[0], 5, judges=False), Twin(critic[0], 5, judges=True)
    observations = torch.from_numpy(seen.observations)
    (-judge(observations, doer(observations)).mean()).backward()
    found = actor_gradient(actor[0], critic[0], seen.observations)
    assert np.allclose(found, doer.vector(lambda part: part.grad if part.numel() else part), rtol=1e-10, atol=1e-14)
    assert abs(found).max() > 1e-4


def test_actions_and_values_are_those_of_torch_layers():
    (actor, critic), seen = networks(), batch(np.random.default_rng(1))
    doer, judge = Twin(actor[0], 5, judges=False), Twin(critic[0], 5, judges=True)
    observations, actions, *_ = tensors(seen)
    assert np.allclose(policy(actor[0], seen.observations), doer(observations).detach())
    assert np.allclose(value(critic[0], seen.observations, seen.actions), judge(observations, actions).detach())


def test_ten_updates_are_those_of_autograd_with_torchs_adam_and_targets_that_follow():
    actor, critic = networks()
    doer, judge = Twin(actor[0], 5, judges=False), Twin(critic[0], 5, judges=True)
    far_doer, far_judge = copy.deepcopy(doer), copy.deepcopy(judge)
    doer_adam = torch.optim.Adam(doer.parameters(), lr=AGENT.actor_rate)
    judge_adam = torch.optim.Adam(judge.parameters(), lr=AGENT.critic_rate)
    start, rng = np.array(actor[0]), np.random.default_rng(1)
    for step in range(1, 11):
        seen = batch(rng)
        AGENT.update(actor, critic, seen, step)

        observations, actions, rewards, next_observations, lasts = tensors(seen)
        with torch.no_grad():
            later = far_judge(next_observations, far_doer(next_observations))
            targets = rewards + AGENT.discount * later * (~lasts)
        judge_adam.zero_grad()
        ((judge(observations, actions) - targets) ** 2).mean().backward()
        judge_adam.step()
        doer_adam.zero_grad()
        (-judge(observations, doer(observations)).mean()).backward()
        doer_adam.step()
        with torch.no_grad():
            for far, near in ((far_doer, doer), (far_judge, judge)):
                for old, new in zip(far.parameters(), near.parameters(), strict=True):
                    old.copy_((1 - AGENT.soft_update) * old + AGENT.soft_update * new)
    for network, twin, far in ((actor, doer, far_doer), (critic, judge, far_judge)):
        assert np.allclose(network[0], twin.vector(), rtol=1e-8, atol=1e-10)
        assert np.allclose(network[1], far.vector(), rtol=1e-8, atol=1e-10)
    assert abs(actor[0] - start).max() > 5 * AGENT.actor_rate


def test_in_float32_an_update_stays_float32_and_close_to_that_in_float64():
    double = networks()
    single = [network.astype(np.float32) for network in double]
    for step in range(1, 6):
        seen = batch(np.random.default_rng(step))
        AGENT.update(*double, seen, step)
        AGENT.update(
            *single, Transitions(*(np.asarray(c, bool if c.dtype == bool else np.float32) for c in seen)), step
        )
    for exact, rounded in zip(double, single, strict=True):
        assert rounded.dtype == np.float32
        assert np.allclose(exact[:2], rounded[:2], atol=1e-3)


def test_weights_start_uniform_within_the_bounds_of_their_layers_and_targets_as_copies():
    actor, critic = DDPG(10).networks(np.random.default_rng(0))
    for network, n_inputs in ((actor, 10), (critic, 11)):
        layers = Layers.of(network[0], n_inputs)
        assert layers.weight1.shape == (n_inputs, 300) and layers.weight2.shape == (300, 300)
        for part, fan_in in ((layers.weight1[:10], 10), (layers.weight2, 300), (layers.weight3, 300)):
            assert abs(part).max() <= fan_in**-0.5
            assert part.std() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)  # of a uniform distribution
        assert (network[1] == network[0]).all() and not network[2:].any()
    assert Layers.of(critic[0], 11).weight1[-1].std() == pytest.approx(3**-0.5, rel=0.1)


def test_a_moment_that_has_faded_is_zero_and_not_subnormal():
    network = np.zeros((4, 3), dtype=np.float32)
    network[2:] = 1e-20
    for step in range(1, 400):
        adam(network, np.zeros(3, dtype=np.float32), 1e-3, 0.01, step)
    assert not network[2].any()
    moments = network[2:]
    assert ((moments == 0) | (moments > TINY)).all()


def test_an_agent_learns_which_action_pays_in_which_state():
    """One step of an episode: the reward is highest where the action is the first number observed."""
    agent = DDPG(2, n_hidden=32, actor_rate=1e-3, critic_rate=3e-3)
    rng = np.random.default_rng(0)
    actor, critic = agent.networks(rng)
    for step in range(1, 1501):
        seen, done = rng.random((64, 2), dtype=np.float32), rng.random(64, dtype=np.float32)
        earned = -10 * (done - seen[:, 0]) ** 2
        agent.update(actor, critic, Transitions(seen, done, earned, seen, np.ones(64, dtype=bool)), step)
    seen = rng.random((200, 2), dtype=np.float32) * 0.8 + 0.1
    assert np.abs(policy(actor[0], seen) - seen[:, 0]).mean() < 0.08
