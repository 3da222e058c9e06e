"""Deep deterministic policy gradient, its gradients in closed form: an actor and a critic as plain arrays."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

Floats = NDArray[np.floating[Any]]

#: Rows of an array that holds a network: its weights, those of its slowly moving copy, and Adam's two moments.
ROWS = ("weights", "target", "mean", "square")
#: Adam's decay rates and the term that keeps its division from failing (Kingma and Ba, ICLR 2015, algorithm 1).
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
#: Moments below it are 0: those of units that never fire would otherwise end as subnormal numbers, which are slow.
TINY = 1e-30


class Transitions(NamedTuple):
    """What was seen, done, earned, and seen next, ``n`` times."""

    observations: Floats  #: shape (n, n_observed)
    actions: Floats  #: in [0, 1], shape (n,)
    rewards: Floats  #: shape (n,)
    next_observations: Floats  #: shape (n, n_observed)
    lasts: NDArray[np.bool_]  #: whether the episode ended there, shape (n,)


class Layers(NamedTuple):
    """The three fully connected layers of a network, as views of one vector.

    The second number of a network is its hidden units, in both of its hidden layers.
    """

    weight1: Floats  #: shape (n_inputs, n_hidden)
    bias1: Floats
    weight2: Floats  #: shape (n_hidden, n_hidden)
    bias2: Floats
    weight3: Floats  #: shape (n_hidden, 1)
    bias3: Floats

    @classmethod
    def of(cls, vector: Floats, n_inputs: int) -> Layers:
        """The layers that a vector of `size` numbers holds."""
        n = _hidden(len(vector), n_inputs)
        end1 = n_inputs * n
        end2 = end1 + n + n * n
        return cls(
            vector[:end1].reshape(n_inputs, n),
            vector[end1 : end1 + n],
            vector[end1 + n : end2].reshape(n, n),
            vector[end2 : end2 + n],
            vector[end2 + n : end2 + 2 * n].reshape(n, 1),
            vector[end2 + 2 * n :],
        )

    def forward(self, inputs: Floats) -> tuple[Floats, Floats, Floats]:
        """Activations of both hidden layers, rectified, and the outputs of shape (n,)."""
        hidden1 = inputs @ self.weight1
        hidden1 += self.bias1
        np.maximum(hidden1, 0, out=hidden1)
        hidden2 = hidden1 @ self.weight2
        hidden2 += self.bias2
        np.maximum(hidden2, 0, out=hidden2)
        return hidden1, hidden2, (hidden2 @ self.weight3 + self.bias3)[:, 0]

    def hidden_gradients(self, hidden1: Floats, hidden2: Floats, outputs: Floats) -> tuple[Floats, Floats]:
        """Gradients before the rectifiers, from those of the outputs."""
        gradient2 = outputs[:, None] * self.weight3[:, 0]
        gradient2 *= hidden2 > 0
        gradient1 = gradient2 @ self.weight2.T
        gradient1 *= hidden1 > 0
        return gradient1, gradient2

    def backward(self, inputs: Floats, hidden1: Floats, hidden2: Floats, outputs: Floats) -> Floats:
        """Gradient of the whole vector, from those of the outputs."""
        gradient1, gradient2 = self.hidden_gradients(hidden1, hidden2, outputs)
        vector = np.empty(sum(part.size for part in self), dtype=self.weight1.dtype)
        parts = Layers.of(vector, len(self.weight1))
        np.matmul(inputs.T, gradient1, out=parts.weight1)
        gradient1.sum(axis=0, out=parts.bias1)
        np.matmul(hidden1.T, gradient2, out=parts.weight2)
        gradient2.sum(axis=0, out=parts.bias2)
        np.matmul(hidden2.T, outputs[:, None], out=parts.weight3)
        parts.bias3[0] = outputs.sum()
        return vector


def size(n_inputs: int, n_hidden: int) -> int:
    """Numbers of a network."""
    return n_inputs * n_hidden + n_hidden + n_hidden * n_hidden + n_hidden + n_hidden + 1


def _hidden(n_numbers: int, n_inputs: int) -> int:
    """The hidden units n of a network of so many numbers: n^2 + (n_inputs + 3) n + 1 = n_numbers."""
    half = (n_inputs + 3) / 2
    return round(math.sqrt(half**2 + n_numbers - 1) - half)


def policy(actor: Floats, observations: Floats) -> Floats:
    """Actions in [0, 1], shape (n,): the actor's output through a sigmoid."""
    return _sigmoid(Layers.of(actor, observations.shape[1]).forward(observations)[2])


def value(critic: Floats, observations: Floats, actions: Floats) -> Floats:
    """What the critic expects of actions, shape (n,)."""
    inputs = np.concatenate([observations, actions[:, None]], axis=1)
    return Layers.of(critic, inputs.shape[1]).forward(inputs)[2]


def critic_gradient(critic: Floats, observations: Floats, actions: Floats, targets: Floats) -> Floats:
    """Gradient of the mean square of value minus target by the critic's numbers."""
    inputs = np.concatenate([observations, actions[:, None]], axis=1)
    layers = Layers.of(critic, inputs.shape[1])
    hidden1, hidden2, values = layers.forward(inputs)
    return layers.backward(inputs, hidden1, hidden2, (values - targets) * (2 / len(targets)))


def actor_gradient(actor: Floats, critic: Floats, observations: Floats) -> Floats:
    """Gradient by the actor's numbers of minus the mean value of its own actions."""
    layers = Layers.of(actor, observations.shape[1])
    hidden1, hidden2, outputs = layers.forward(observations)
    actions = _sigmoid(outputs)

    inputs = np.concatenate([observations, actions[:, None]], axis=1)
    judge = Layers.of(critic, inputs.shape[1])
    judged1, judged2, values = judge.forward(inputs)
    falls = np.full_like(values, -1 / len(values))
    by_action = judge.hidden_gradients(judged1, judged2, falls)[0] @ judge.weight1[-1]
    return layers.backward(observations, hidden1, hidden2, by_action * actions * (1 - actions))


def _sigmoid(x: Floats) -> Floats:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


@dataclass(frozen=True)
class DDPG:
    r"""An actor that says what to do, in one number from 0 to 1, and a critic that says what it is worth.

    Parameters
    ----------
    n_observed : int
        Numbers of an observation.
    n_hidden : int
        Units of each of the two hidden layers, of the actor and of the critic.
    actor_rate, critic_rate : float
        Learning rates of Adam.
    discount : float
        Worth of a reward one step later.
    soft_update : float
        Share of the way that the targets go towards the networks at each update.

    Notes
    -----
    With the actor :math:`\mu`, the critic :math:`Q`, and their targets :math:`\mu', Q'`, one update is a step of
    Adam on each of

    .. math::
        L_Q &= \tfrac{1}{n} \sum_i \big(Q(s_i, a_i) - r_i - \gamma Q'(s'_i, \mu'(s'_i))\big)^2 \\
        L_\mu &= -\tfrac{1}{n} \sum_i Q(s_i, \mu(s_i)),

    where the second term of the target is left out at the end of an episode, and then
    :math:`\theta' \leftarrow \theta' + \tau (\theta - \theta')` for both targets.

    A network is one array with the rows `ROWS`, so that a step of Adam and of its target is one pass over memory;
    its type, float32 or float64, is the precision of the arithmetic.

    References
    ----------
    Lillicrap et al., "Continuous control with deep reinforcement learning", ICLR 2016, algorithm 1.
    """

    n_observed: int
    n_hidden: int = 300
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    discount: float = 1.0
    soft_update: float = 0.01

    def networks(self, rng: np.random.Generator, dtype: DTypeLike = np.float32) -> tuple[Floats, Floats]:
        """An actor and a critic with random weights.

        Returns
        -------
        actor, critic : ndarray, shape (4, n_numbers)

        Notes
        -----
        Weights and biases are uniform up to 1 / sqrt(inputs of the layer). In the critic the action has a first
        layer of its own, with the one input, added to that of the observation.
        """
        actor = np.zeros((len(ROWS), size(self.n_observed, self.n_hidden)), dtype=dtype)
        critic = np.zeros((len(ROWS), size(self.n_observed + 1, self.n_hidden)), dtype=dtype)
        for network, n_inputs in ((actor, self.n_observed), (critic, self.n_observed + 1)):
            layers = Layers.of(network[0], n_inputs)
            fan_ins = (self.n_observed, self.n_observed, *(4 * (self.n_hidden,)))
            for part, fan_in in zip(layers, fan_ins, strict=True):
                part[...] = rng.uniform(-1, 1, part.shape) / math.sqrt(fan_in)
            if network is critic:
                layers.weight1[-1] = rng.uniform(-1, 1, self.n_hidden)
                layers.bias1[...] += rng.uniform(-1, 1, self.n_hidden)
            network[1] = network[0]
        return actor, critic

    def update(self, actor: Floats, critic: Floats, batch: Transitions, step: int) -> None:
        """Update both networks in place; ``step`` counts from 1."""
        expected = value(critic[1], batch.next_observations, policy(actor[1], batch.next_observations))
        targets = batch.rewards + np.where(batch.lasts, 0, self.discount * expected).astype(expected.dtype)
        gradient = critic_gradient(critic[0], batch.observations, batch.actions, targets)
        adam(critic, gradient, self.critic_rate, self.soft_update, step)
        gradient = actor_gradient(actor[0], critic[0], batch.observations)
        adam(actor, gradient, self.actor_rate, self.soft_update, step)


def on_one_thread() -> AbstractContextManager[Any]:
    """A context in which linear algebra stays on the thread that asks for it.

    Products this small gain little from a second one, and where other work has the processor they wait for it,
    a hundred times as long as they take. Nor do results then depend on how many threads there are.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def adam(network: Floats, gradient: Floats, rate: float, soft_update: float, step: int) -> None:
    """One step of Adam on a network, and its target's step after it, in place; ``step`` counts from 1."""
    unbiased = math.sqrt(1 - BETA2**step)  # the bias of both moments as one factor on the rate and one on eps
    rate = rate * unbiased / (1 - BETA1**step)
    scalars = np.array([rate, EPS * unbiased, 1 - BETA1, 1 - BETA2, soft_update, TINY], dtype=network.dtype)
    _adam(*network, gradient, *scalars)


@njit(cache=True, nogil=True, error_model="numpy")
def _adam(weights, targets, means, squares, gradient, rate, eps, rate1, rate2, soft_update, tiny):
    for i in range(len(weights)):
        mean = means[i] + rate1 * (gradient[i] - means[i])
        square = squares[i] + rate2 * (gradient[i] * gradient[i] - squares[i])
        means[i] = mean if abs(mean) > tiny else 0
        squares[i] = square if square > tiny else 0
        weights[i] -= rate * means[i] / (np.sqrt(squares[i]) + eps)
        targets[i] += soft_update * (weights[i] - targets[i])
