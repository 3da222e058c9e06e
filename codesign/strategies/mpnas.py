"""MP-NAS: a policy over networks, trained with the weights that they share, under limits on their cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from codesign.problem import Problem
from codesign.run_directory import State
from codesign.strategies.base import AbstractTrainer, keep_rng

if TYPE_CHECKING:
    from codesign.strategies.mpnas_training import Training


@dataclass(frozen=True)
class MPNAS(AbstractTrainer):
    r"""Joint search of shapes and bitwidths with shared weights.

    Parameters
    ----------
    steps : int
        Policy steps, over which temperature, entropy and the weight of the limits run their course; later ones go on
        with the last values.
    steps_per_offer : int
        Policy steps between two batches of candidates that are evaluated.
    weight_steps : int
        Steps of the shared weights for each step of the policy.
    task : {"gumbel", "reinforce"}
        How the gradient of the task loss is estimated: through relaxed masks, or from sampled networks.
    cost : {"reinforce", "expected"}
        How the gradient of the expected cost is: from sampled networks, or exactly from the cost table; the latter
        falls back on the former for metrics that are no sum over a table.
    task_samples, cost_samples : int
        Networks sampled for a step, at least 2, by task="reinforce" and cost="reinforce"; with the cost table a
        sample of the cost takes a microsecond.
    learning_rate : float
        Of Adam on the logits.
    temperature, last_temperature : float
        Of Gumbel-softmax; it falls exponentially. The gradient's bias and its spread together are least near 2, where
        it begins (``benchmarks/results/gumbel_bias.md``).
    limit_weight : float or None
        :math:`\lambda` of each limit, in nats for an excess as large as the limit. None: the task loss over the excess
        of the first policy, as measured at the start, the excess taken to be at least 10 %.
    ramp : float
        Share of the steps over which :math:`\lambda` rises linearly from 1 % to all of it.
    entropy : float
        Weight of the policy's entropy (in nats, the mean over fields), which falls linearly to 0.
    weight_learning_rate : float
        Peak rate of the shared weights while they are trained on.
    fill : float or None
        What is offered is given larger values again while the limits leave room, first those that take least of it for
        their probability (`Problem.fill`), in a policy that is even to this share. So what costs little, as most skips
        do, is taken on little evidence. None: nothing is filled up.

    Notes
    -----
    .. math:: \min_\theta E_{a \sim \pi_\theta}[L(a; D_{search})]
              + \sum_j \lambda_j \max(E_{a \sim \pi_\theta}[J_j(a)] / c_j - 1, 0)

    with weights trained on :math:`D_{train}`, in alternation. The policy :math:`\pi_\theta` is an independent
    categorical distribution for each field (expansion, kernel size, skip, two bitwidths) of each block. The paper
    takes the first gradient through Gumbel-softmax, :math:`d_i = \mathrm{softmax}((g_i + \log v_i) / \tau)`, and
    the second one from samples, as a simulator has no gradient:

    .. math:: \nabla_\theta E[J] \approx \tfrac{1}{k} \sum_i (J(a_i) - b_i) \nabla_\theta \log \pi_\theta(a_i)

    with the leave-one-out baseline :math:`b_i`, and without any normalisation, which would bias it and cancel
    :math:`\lambda`.

    The slides give neither :math:`\lambda`, :math:`k`, temperatures, baseline, optimiser nor batch size: all are
    parameters here. :math:`\lambda` follows what PLiNIO does for a hinge. What is offered for evaluation is the most
    likely network and samples, each moved within the limits (`Problem.lower`), so every trial is feasible, and then
    filled up, as the hinge leaves room below a limit.

    References
    ----------
    Gong et al., "Mixed Precision Neural Architecture Search for Energy Efficient Deep Learning", ICCAD 2019. Jang, Gu
    and Poole, "Categorical reparameterization with Gumbel-softmax", ICLR 2017, equation 2. Baseline: Kool, van Hoof
    and Welling, "Buy 4 REINFORCE samples, get a baseline for free!", ICLR workshop 2019.
    """

    steps: int = 400
    steps_per_offer: int = 20
    weight_steps: int = 1
    task: Literal["gumbel", "reinforce"] = "gumbel"
    cost: Literal["reinforce", "expected"] = "reinforce"
    task_samples: int = 4
    cost_samples: int = 64
    learning_rate: float = 0.05
    temperature: float = 2.0
    last_temperature: float = 0.5
    limit_weight: float | None = None
    ramp: float = 0.5
    entropy: float = 0.01
    weight_learning_rate: float = 0.01
    fill: float | None = 0.1

    def __post_init__(self) -> None:
        for name, known in (("task", ("gumbel", "reinforce")), ("cost", ("reinforce", "expected"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{type(self).__name__}: {name} must be one of {known}, got {getattr(self, name)!r}.")
        for name, least in (("steps", 1), ("steps_per_offer", 1), ("task_samples", 2), ("cost_samples", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{type(self).__name__}: {name} must be at least {least}, got {getattr(self, name)}.")
        if not self.temperature >= self.last_temperature > 0:
            raise ValueError(
                f"{type(self).__name__}: temperatures must be positive and not rise, got {self.temperature} and then "
                f"{self.last_temperature}."
            )

    def init(self, problem: Problem, rng: np.random.Generator) -> State:
        from codesign.supernet import SupernetTask

        if not isinstance(problem.supernet, SupernetTask):
            raise ValueError(
                f"{type(self).__name__}: it trains shared weights, so the problem must have a SupernetTask as "
                f"supernet, got {type(problem.supernet).__name__}. Give one, or choose reinforce, random or nsga2."
            )
        return {"rng": keep_rng(rng), "seed": int(rng.integers(2**31))}

    def start(self, problem: Problem, state: State) -> Training:
        from codesign.strategies.mpnas_training import Training

        return Training(self, problem, state)


@dataclass(frozen=True)
class Gumbel(MPNAS):
    """MP-NAS with both gradients through the relaxation: the expected cost is exact, from the cost table.

    See `MPNAS`. Where the cost is no sum over neighbouring choices, its gradient is estimated from samples.
    """

    cost: Literal["reinforce", "expected"] = "expected"
