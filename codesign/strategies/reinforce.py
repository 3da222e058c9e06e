"""REINFORCE: a policy over archs, moved along the gradient of its expected reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from codesign.problem import Problem
from codesign.run_directory import State
from codesign.space import Arch
from codesign.strategies.base import AbstractSampler, keep_rng, use_rng
from codesign.strategies.policy import draw, entropy_gradient, even_logits, policy_gradient, probabilities
from codesign.trial import Trial

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reinforce(AbstractSampler):
    r"""Policy-gradient search with an independent categorical distribution for each field of each choice.

    Parameters
    ----------
    learning_rate : float
        Step on the logits for an advantage of typical size.
    baseline : {"leave-one-out", "moving-average"}
        What a reward is compared with: the mean of the others of its batch, or the mean of earlier batches.
    decay : float
        Share of their past that the moving averages, of rewards and of squared advantages, keep at each batch.
    entropy : float
        Weight, in advantages of typical size, of the policy's entropy (summed over fields, in nats) at the first
        batch.
    entropy_decay : float
        Factor on that weight at each batch.
    fill : bool
        Use the room that limits leave (`Problem.fill`), after the projection.

    Notes
    -----
    The policy draws archs :math:`a \sim p_\theta`. What is evaluated is the projection on the limits :math:`P(a)`
    (`Problem.project`), filled up to them (`Problem.fill`), so every trial is feasible and so is the answer. The reward
    is :math:`R(a) = -f(P(a))` with the objective :math:`f`; as :math:`P` is a part of it, the estimate

    .. math:: \nabla_\theta E[R] \approx \tfrac{1}{n} \sum_i (R(a_i) - b_i) \nabla_\theta \log p_\theta(a_i)

    is unbiased: :math:`a_i` is the arch as drawn, and :math:`b_i` does not depend on it. Its step is the learning
    rate over the root mean square of the advantages of earlier batches, so it does not depend on the unit of
    :math:`f`.

    The limits also bound the policy: after each step, and before the first, it is moved to the nearest one (in
    Kullback-Leibler divergence) whose expected use of each limit is within it. That is :math:`p \propto p_\theta
    \, e^{-\lambda c}` with the usage :math:`c` of each value, which is taken to be a sum over fields and costs
    only a few simulations. Without it most draws are over a tight limit, and their projection, which is random,
    hides what was good about them.

    A candidate whose objective is not a number counts as the worst seen.

    References
    ----------
    Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", Machine
    Learning 8, 1992, section 4. Leave-one-out baseline: Kool, van Hoof and Welling, "Buy 4 REINFORCE samples, get a
    baseline for free!", ICLR workshop 2019, equation 8. Nearest policy under linear constraints: Csiszar,
    "I-divergence geometry of probability distributions and minimization problems", Annals of Probability 3, 1975,
    theorem 3.1.
    """

    learning_rate: float = 2.0
    baseline: Literal["leave-one-out", "moving-average"] = "leave-one-out"
    decay: float = 0.9
    entropy: float = 0.01
    entropy_decay: float = 0.98
    fill: bool = True

    def __post_init__(self) -> None:
        if self.baseline not in ("leave-one-out", "moving-average"):
            raise ValueError(f"Reinforce: baseline must be 'leave-one-out' or 'moving-average', got {self.baseline!r}.")

    def init(self, problem: Problem, rng: np.random.Generator) -> State:
        usage, base = value_usage(problem)
        return {
            "logits": within_limits(even_logits(problem.space), usage, base),
            "usage": usage,
            "base": base,
            "step": 0,
            "mean_reward": None,
            "mean_square": None,
            "worst": None,
            "rng": keep_rng(rng),
        }

    def ask(self, problem: Problem, state: State, n: int) -> tuple[list[Arch], State]:
        rng = use_rng(state)
        drawn = draw(state["logits"], n, rng)
        archs = [problem.project(problem.space.join(row), rng) for row in drawn]
        if self.fill:
            policy = probabilities(state["logits"])
            archs = [problem.fill(arch, policy) for arch in archs]
        return archs, {**state, "rng": keep_rng(rng), "drawn": drawn}

    def tell(self, problem: Problem, state: State, trials: Sequence[Trial]) -> State:
        values = np.array([trial.metrics.get(problem.objective, math.nan) for trial in trials], dtype=float)
        seen = [*values[np.isfinite(values)], *([] if state["worst"] is None else [state["worst"]])]
        rewards = -np.where(np.isfinite(values), values, max(seen, default=0.0))

        mean = float(rewards.mean())
        past_mean = mean if state["mean_reward"] is None else state["mean_reward"]
        if self.baseline == "leave-one-out" and len(rewards) > 1:
            advantages = rewards - (rewards.sum() - rewards) / (len(rewards) - 1)
        else:
            advantages = rewards - past_mean
        square = float((advantages**2).mean())
        past_square = square if state["mean_square"] is None else state["mean_square"]

        logits = state["logits"]
        gradient = policy_gradient(logits, state["drawn"], advantages / max(math.sqrt(past_square), 1e-12))
        gradient += self.entropy * self.entropy_decay ** state["step"] * entropy_gradient(logits)
        return {
            "logits": within_limits(logits + self.learning_rate * gradient, state["usage"], state["base"]),
            "usage": state["usage"],
            "base": state["base"],
            "step": state["step"] + 1,
            "mean_reward": self.decay * past_mean + (1 - self.decay) * mean,
            "mean_square": self.decay * past_square + (1 - self.decay) * square,
            "worst": float(max(seen)) if seen else None,
            "rng": state["rng"],
        }


def value_usage(problem: Problem) -> tuple[Floats, Floats]:
    """How much of each limit each value of a field uses, as a sum over fields that is exact next to a middling arch.

    Returns
    -------
    usage : ndarray, shape (n_limits, n_fields, n_values)
        Change of the usage when one field of that arch takes the value; 0 for values that are not there.
    base : ndarray, shape (n_limits,)
        The usage of that arch, so that ``base + usage[:, range(n_fields), indices].sum()`` is that of an arch.
    """
    space = problem.space
    counts = space.field_counts
    middle = [count // 2 for count in counts]

    def use(rows: list[list[int]]) -> Floats:
        priced = problem.usages([space.join(row) for row in rows])
        return np.where(np.isfinite(priced), priced, 2.0)

    base = use([middle])[0]
    usage = np.zeros((len(base), len(counts), max(counts)))
    for i, count in enumerate(counts if len(base) else ()):
        rows = [[*middle[:i], value, *middle[i + 1 :]] for value in range(count)]
        usage[:, i, :count] = (use(rows) - base).T
    return usage, base


def within_limits(logits: Floats, usage: Floats, base: Floats, sweeps: int = 20) -> Floats:
    """The logits of the nearest policy that is expected to use no limit by more than all of it.

    Parameters
    ----------
    logits : ndarray, shape (n_fields, n_values)
    usage, base : ndarray
        See `value_usage`.
    sweeps : int
        Over the limits, each met in turn; one is exact for a single limit.

    Notes
    -----
    Where the sum of the least usages is itself above a limit, which happens as usage is not quite a sum, that sum
    and 2 % of the range above it take the place of the limit.
    """
    there = np.isfinite(logits)
    least = base + np.where(there, usage, np.inf).min(axis=2).sum(axis=1)
    most = base + np.where(there, usage, -np.inf).max(axis=2).sum(axis=1)
    targets = np.maximum(1.0, least + 0.02 * (most - least))
    for _ in range(1 if len(base) == 1 else sweeps):
        for costs, spare in zip(usage, targets - base, strict=True):
            logits = _tilted(logits, costs, spare)
    return logits


def _tilted(logits: Floats, costs: Floats, spare: float) -> Floats:
    """``logits - tilt * costs`` with the least ``tilt >= 0`` at which the expected costs are within ``spare``."""

    def over(tilt: float) -> bool:
        return float((probabilities(logits - tilt * costs) * costs).sum()) > spare

    if not over(0.0):
        return logits
    low, high = 0.0, 1.0
    while over(high) and high < 1e9:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if over(middle) else (low, middle)
    return logits - high * costs
