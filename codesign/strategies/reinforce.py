"""REINFORCE: a policy over archs, moved along the gradient of its expected reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from codesign.problem import FIT, Problem
from codesign.run_directory import State
from codesign.space import Arch
from codesign.strategies.base import AbstractSampler, keep_rng, use_rng
from codesign.trial import Trial

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reinforce(AbstractSampler):
    r"""Policy-gradient search with an independent categorical distribution for each choice.

    Parameters
    ----------
    learning_rate : float
        Step of Adam on the logits.
    beta1, beta2 : float
        Decay of Adam's first and second moment.
    baseline : {"leave-one-out", "moving-average"}
        What a reward is compared with: the mean of the others of its batch, or the mean of earlier batches.
    baseline_decay : float
        Share of its past that the moving average keeps at each batch.
    entropy : float
        Weight of the policy's entropy, averaged over choices, in the objective at the first batch; it is in the
        unit of the reward.
    entropy_decay : float
        Factor on that weight at each batch.
    penalty : float
        Reward lost for each unit of relative excess over a limit by the arch that was drawn.

    Notes
    -----
    The policy draws archs :math:`a \sim p_\theta`. What is evaluated is :math:`P(a)`, the projection on the limits
    (`Problem.project`), so every trial is feasible and so is the answer. With objective :math:`f` and relative
    excess :math:`v` the reward is

    .. math:: R(a) = -f(P(a)) - \text{penalty} \cdot \textstyle\sum_l v_l(a),

    and as :math:`P` is a part of the reward, the estimate

    .. math:: \nabla_\theta E[R] \approx \tfrac{1}{n} \sum_i (R(a_i) - b_i) \nabla_\theta \log p_\theta(a_i)

    is unbiased: :math:`a_i` is the arch as drawn, and :math:`b_i` does not depend on it. Rewards are not normalised.
    A candidate whose objective is not a number counts as the worst seen.

    References
    ----------
    Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", Machine
    Learning 8, 1992, section 4. Leave-one-out baseline: Kool, van Hoof and Welling, "Buy 4 REINFORCE samples, get a
    baseline for free!", ICLR workshop 2019, equation 8. Adam: Kingma and Ba, ICLR 2015, algorithm 1.
    """

    learning_rate: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    baseline: Literal["leave-one-out", "moving-average"] = "leave-one-out"
    baseline_decay: float = 0.9
    entropy: float = 0.0
    entropy_decay: float = 0.98
    penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.baseline not in ("leave-one-out", "moving-average"):
            raise ValueError(f"Reinforce: baseline must be 'leave-one-out' or 'moving-average', got {self.baseline!r}.")

    def init(self, problem: Problem, rng: np.random.Generator) -> State:
        counts = problem.space.option_counts
        logits = np.full((len(counts), max(counts)), -np.inf)
        for row, count in zip(logits, counts, strict=True):
            row[:count] = 0.0
        zeros = np.zeros_like(logits)
        return {
            "logits": logits,
            "moment1": zeros,
            "moment2": zeros.copy(),
            "step": 0,
            "mean_reward": None,
            "worst": None,
            "rng": keep_rng(rng),
        }

    def ask(self, problem: Problem, state: State, n: int) -> tuple[list[Arch], State]:
        rng = use_rng(state)
        drawn = draw(state["logits"], n, rng)
        raw: list[Arch] = [tuple(int(option) for option in arch) for arch in drawn]
        excess = np.array([_excess(problem.violations(arch)) for arch in raw])
        archs = [problem.project(arch, rng) for arch in raw]
        return archs, {**state, "rng": keep_rng(rng), "drawn": drawn, "excess": excess}

    def tell(self, problem: Problem, state: State, trials: Sequence[Trial]) -> State:
        values = np.array([trial.metrics.get(problem.objective, math.nan) for trial in trials], dtype=float)
        seen = [*values[np.isfinite(values)], *([] if state["worst"] is None else [state["worst"]])]
        worst = max(seen, default=0.0)
        rewards = -np.where(np.isfinite(values), values, worst) - self.penalty * state["excess"]

        mean = float(rewards.mean())
        if self.baseline == "leave-one-out" and len(rewards) > 1:
            advantages = rewards - (rewards.sum() - rewards) / (len(rewards) - 1)
        else:
            advantages = rewards - (mean if state["mean_reward"] is None else state["mean_reward"])
        past = mean if state["mean_reward"] is None else state["mean_reward"]

        logits, step = state["logits"], state["step"]
        weight = self.entropy * self.entropy_decay**step
        gradient = policy_gradient(logits, state["drawn"], advantages)
        gradient += weight / len(logits) * entropy_gradient(logits)
        step += 1
        moment1 = self.beta1 * state["moment1"] + (1 - self.beta1) * gradient
        moment2 = self.beta2 * state["moment2"] + (1 - self.beta2) * gradient**2
        unbiased1, unbiased2 = moment1 / (1 - self.beta1**step), moment2 / (1 - self.beta2**step)
        return {
            "logits": logits + self.learning_rate * unbiased1 / (np.sqrt(unbiased2) + 1e-12),
            "moment1": moment1,
            "moment2": moment2,
            "step": step,
            "mean_reward": self.baseline_decay * past + (1 - self.baseline_decay) * mean,
            "worst": None if not seen else float(worst),
            "rng": state["rng"],
        }


def _excess(violations: dict[str, float]) -> float:
    """Total relative excess; a candidate that fits no tiling counts as one unit."""
    return sum(1.0 if name == FIT else value for name, value in violations.items())


def probabilities(logits: Floats) -> Floats:
    """Softmax along the options; an option that a choice does not have is a logit of -inf.

    Parameters
    ----------
    logits : ndarray, shape (n_choices, n_options)
    """
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def draw(logits: Floats, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Archs drawn from the policy; shape (n, n_choices)."""
    edges = probabilities(logits).cumsum(axis=1)
    uniform = rng.random((n, len(logits), 1)) * edges[:, -1:]
    return (uniform >= edges).sum(axis=2)


def policy_gradient(logits: Floats, archs: NDArray[np.int64], advantages: Floats) -> Floats:
    """Mean over archs of advantage times the gradient of the log-probability, which is onehot - p.

    Parameters
    ----------
    logits : ndarray, shape (n_choices, n_options)
    archs : ndarray of int, shape (n, n_choices)
    advantages : ndarray, shape (n,)

    Returns
    -------
    ndarray, shape (n_choices, n_options)
    """
    onehot = archs[:, :, None] == np.arange(logits.shape[1])
    return np.einsum("n,nco->co", advantages, onehot - probabilities(logits)) / len(archs)


def entropy_gradient(logits: Floats) -> Floats:
    """Gradient of the summed entropy of the choices, in nats: -p (log p + H)."""
    p = probabilities(logits)
    log_p = np.log(np.where(p > 0, p, 1.0))
    entropy = -(p * log_p).sum(axis=1, keepdims=True)
    return -p * (log_p + entropy)
