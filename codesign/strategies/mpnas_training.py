"""The training of a policy over networks, and of the weights that they share."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from codesign import distributed
from codesign.augment import augmentation
from codesign.precision import wide
from codesign.problem import AT_LEAST, Problem
from codesign.quant.convert import mode
from codesign.run_directory import State
from codesign.space import AbstractSpace, Arch
from codesign.strategies.base import AbstractTraining, keep_rng, use_rng
from codesign.strategies.mpnas import MPNAS
from codesign.strategies.policy import Floats, draw, entropy_gradient, even_logits, policy_gradient, probabilities
from codesign.supernet import SupernetAccuracy, SupernetTask, statistics_of
from codesign.weight_training import Stopped, WeightTrainer

logger = logging.getLogger(__name__)


class Training(AbstractTraining):
    """MP-NAS on its way."""

    def __init__(self, strategy: MPNAS, problem: Problem, state: State) -> None:
        self.strategy, self.problem = strategy, problem
        task: SupernetTask = problem.supernet
        self.data, self.seed = task.data, int(state["seed"])
        self.network = copy.deepcopy(task.network)
        if not self.network.quantized:
            self.network.calibrate(statistics_of(self.data.train))
        training = dataclasses.replace(task.training, learning_rate=strategy.weight_learning_rate)
        self.weights = WeightTrainer(
            self.network, task.data.train, training, max(1, strategy.steps * strategy.weight_steps), self.seed
        )
        self.step_number = int(state.get("step_number", 0))
        self.rng = use_rng(state)
        self.logits = np.array(state["logits"]) if "logits" in state else even_logits(problem.space)
        self.moments = np.array(state["moments"]) if "moments" in state else np.zeros((2, *self.logits.shape))
        self.limit_weights: list[float] | None = state.get("limit_weights")
        self.scaler = training.precision.scaler()
        self._told: set[str] = set()
        if "step_number" in state:
            self.scaler.load(state["scaler"])
            self.weights.load({n[8:]: value for n, value in state.items() if n.startswith("weights.")})

    def state(self) -> State:
        kept = {f"weights.{name}": value for name, value in self.weights.state().items()}
        return {
            **kept, "seed": self.seed, "rng": keep_rng(self.rng), "step_number": self.step_number,
            "logits": self.logits.copy(), "moments": self.moments.copy(), "limit_weights": self.limit_weights,
            "scaler": self.scaler.state(),
        }  # fmt: skip

    def advance(self) -> dict[str, float]:
        """Steps of weights and policy up to the next offer; means of what was measured."""
        seen: list[dict[str, float]] = []
        for _ in range(self.strategy.steps_per_offer):
            for _ in range(self.strategy.weight_steps):
                (row,) = draw(self.logits, 1, self.weights.rng(4))
                self.weights.step([self._network_arch(row)])
            seen.append(self.policy_step())
        means = {name: float(np.mean([row[name] for row in seen])) for name in seen[0]}
        skipped = self.scaler.skipped_steps + self.weights.scaler.skipped_steps
        return {**means, "skipped_steps": float(skipped)} if skipped else means

    def offer(self, n: int) -> list[Arch]:
        rows = [self.logits.argmax(axis=1), *draw(self.logits, n - 1, self.rng)]
        share = self.strategy.fill or 0.0
        even = probabilities(even_logits(self.problem.space))
        policy = (1 - share) * probabilities(self.logits) + share * even
        archs = [self.problem.lower(self.problem.space.join(row), policy, self.rng) for row in rows]
        if self.strategy.fill is None:
            return archs
        n_fields = sum(len(choice.fields) for choice in self.network.space.choices)
        policy[n_fields:] = 0.0  # a larger chip serves no network
        return [self.problem.fill(arch, policy) for arch in archs]

    def accuracy(self) -> SupernetAccuracy:
        return SupernetAccuracy(copy.deepcopy(self.network), statistics_of(self.data.train), self.data.search)

    def _network_arch(self, row: NDArray[np.int64]) -> Arch:
        return self.problem.space.network_arch(self.problem.space.join(row))

    # --- one step of the policy ---------------------------------------------------------------------------------

    def policy_step(self) -> dict[str, float]:
        """Move the logits along the gradient of the objective; what was measured on the way."""
        strategy, progress = self.strategy, min(1.0, self.step_number / self.strategy.steps)
        rng = np.random.default_rng([self.seed, self.step_number, 5])  # the same in all processes
        batch = self._search_batch(rng)
        loss, gradient = (self._relaxed if strategy.task == "gumbel" else self._sampled)(*batch, rng)
        if not math.isfinite(loss) and not self.scaler.skips:
            raise self._stopped(f"the loss must stay finite, but is {loss}")
        try:
            accepted = self.scaler.accepts(float(np.linalg.norm(gradient)))
        except FloatingPointError as error:
            raise self._stopped(str(error)) from None
        used, gradients = self.expected_usage(rng)
        if self.limit_weights is None:
            excess = np.maximum(used - 1, 0.1)
            given = strategy.limit_weight
            self.limit_weights = (loss / excess if given is None else np.full(len(used), given)).tolist()
        ramp = 0.01 + 0.99 * min(1.0, progress / strategy.ramp) if strategy.ramp > 0 else 1.0
        for weight, share, slope in zip(self.limit_weights, used, gradients, strict=True):
            if share > 1:  # the hinge
                gradient = gradient + ramp * weight * slope
        gradient = gradient - strategy.entropy * (1 - progress) * entropy_gradient(self.logits) / len(self.logits)
        if accepted:
            self._adam(gradient)
        self.step_number += 1
        return {"loss": loss} | {f"{name}_usage": float(v) for name, v in zip(self.problem.limits, used, strict=True)}

    def _stopped(self, what: str) -> Stopped:
        likeliest = self.problem.space.decode(self.problem.space.join(self.logits.argmax(axis=1)))
        return Stopped(
            f"{type(self.strategy).__name__}: {what} at policy step {self.step_number}; the likeliest network is "
            f"{likeliest}. What was kept before stays; begin another run with lower learning rates."
        )

    @property
    def temperature(self) -> float:
        """Of the relaxation at this step."""
        first, last = self.strategy.temperature, self.strategy.last_temperature
        return float(first * (last / first) ** min(1.0, self.step_number / self.strategy.steps))

    def _search_batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        images, labels = self.data.search
        size = min(self.weights.training.batch_size, len(labels))
        index = torch.from_numpy(rng.choice(len(labels), size, replace=False)).to(labels.device)
        return distributed.share(augmentation(images)(images[index], rng)), distributed.share(labels[index])

    def _relaxed(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[float, Floats]:
        """The task loss of a relaxed network, and its gradient."""
        noise = torch.from_numpy(rng.gumbel(size=self.logits.shape))
        logits = torch.from_numpy(self.logits).requires_grad_()
        masks = relax(logits, noise, self.temperature)
        with mode(self.network, training=True):
            fields = by_block(self.problem.space, masks.to(images))[: len(self.network.space.choices)]
            with self.weights.training.precision.autocast(images.device):
                scores = self.network.soft(images, fields)
            loss = functional.cross_entropy(wide(scores), labels)
        (gradient,) = torch.autograd.grad(loss * self.scaler.scale, logits)
        gradient = gradient / self.scaler.scale  # a power of two, so in float32 nothing changes
        value = loss.detach()
        distributed.average([gradient, value])
        return float(value), np.where(np.isfinite(self.logits), gradient.numpy(), 0.0)

    @torch.no_grad()
    def _sampled(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[float, Floats]:
        """The mean task loss of sampled networks, and the policy gradient."""
        rows = draw(self.logits, self.strategy.task_samples, rng)
        losses = torch.empty(len(rows), dtype=torch.float64)
        statistics = copy.deepcopy(self.network.state_dict())
        with mode(self.network, training=True):  # by the moments of the batch, which are not kept
            for i, row in enumerate(rows):
                scores = self.network(images, self._network_arch(row))
                losses[i] = functional.cross_entropy(wide(scores), labels)
        self.network.load_state_dict(statistics)
        distributed.average([losses])
        return float(losses.mean()), reinforce(self.logits, rows, losses.numpy())

    def expected_usage(self, rng: np.random.Generator) -> tuple[Floats, list[Floats]]:
        """How much of each limit the policy is expected to use, and the gradients of that."""
        limits, table = self.problem.limits, self.problem.table
        used, gradients = np.zeros(len(limits)), [np.zeros_like(self.logits) for _ in limits]
        policies = option_probabilities(self.problem.space, self.logits)
        expected = table.expected(policies) if table is not None and self.strategy.cost == "expected" else {}
        exact = [name in expected and name not in AT_LEAST and math.isfinite(expected[name]) for name in limits]
        sampled = [name for name, known in zip(limits, exact, strict=True) if not known]
        if sampled and self.strategy.cost == "expected" and not set(sampled) <= self._told:
            self._told.update(sampled)
            logger.warning("The expectation of %s is no sum over a table; REINFORCE is taken.", ", ".join(sampled))
        if sampled:
            rows = draw(self.logits, self.strategy.cost_samples, rng)
            usages = self.problem.usages([self.problem.space.join(row) for row in rows])
        for i, (name, limit) in enumerate(limits.items()):
            if exact[i]:
                used[i] = expected[name] / limit
                slopes = [slope / limit for slope in table.expected_gradient(policies, name)]
                gradients[i] = through_softmax(self.problem.space, self.logits, slopes)
            else:
                column = np.minimum(usages[:, i], 10.0)  # inf where a network fits no tiling
                used[i], gradients[i] = column.mean(), reinforce(self.logits, rows, column)
        return used, gradients

    def _adam(self, gradient: Floats, first: float = 0.9, second: float = 0.999) -> None:
        """One step of Adam on the logits."""
        n = self.step_number + 1
        self.moments[0] += (1 - first) * (gradient - self.moments[0])
        self.moments[1] += (1 - second) * (gradient**2 - self.moments[1])
        scale = np.sqrt(self.moments[1] / (1 - second**n)) + 1e-8
        self.logits = self.logits - self.strategy.learning_rate * self.moments[0] / (1 - first**n) / scale


def relax(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    r"""Gumbel-softmax along the values of each field, :math:`\mathrm{softmax}((g + \log v) / \tau)`.

    Parameters
    ----------
    logits, noise : Tensor, shape (n_fields, n_values)
        A logit of -inf has weight 0.
    temperature : float
    """
    return torch.softmax((torch.log_softmax(logits, dim=1) + noise) / temperature, dim=1)


def by_block(space: AbstractSpace, masks: Tensor) -> list[list[Tensor]]:
    """The weights of each field of each choice, without those of values that are not there."""
    rows = iter([row[:count] for row, count in zip(masks, space.field_counts, strict=True)])
    return [[next(rows) for _ in choice.fields] for choice in space.choices]


def reinforce(logits: Floats, rows: NDArray[np.int64], values: Floats) -> Floats:
    """Policy gradient of the mean of values, unbiased, with the leave-one-out baseline.

    Parameters
    ----------
    logits : ndarray, shape (n_fields, n_values)
    rows : ndarray of int, shape (n, n_fields)
        Drawn from the policy, n >= 2.
    values : ndarray, shape (n,)
    """
    others = (values.sum() - values) / (len(values) - 1)
    return policy_gradient(logits, rows, values - others)


def option_probabilities(space: AbstractSpace, logits: Floats) -> list[Floats]:
    """Probability of every option of each choice: the product over its fields."""
    p = iter([row[:count] for row, count in zip(probabilities(logits), space.field_counts, strict=True)])
    policies = []
    for choice in space.choices:
        policy = np.ones(1)
        for _ in choice.fields:
            policy = np.multiply.outer(policy, next(p)).ravel()
        policies.append(policy)
    return policies


def through_softmax(space: AbstractSpace, logits: Floats, slopes: Sequence[Floats]) -> Floats:
    """The gradient by the logits of what has the gradient ``slopes`` by the probabilities of the options.

    With the probability :math:`p_o = \\prod_f v_{f,o_f}` of an option and a softmax :math:`v_f` for each field,
    :math:`\\partial / \\partial \\theta_{fj} = \\sum_o s_o p_o ([o_f = j] - v_{fj})`.
    """
    p, gradient, row = probabilities(logits), np.zeros_like(logits), 0
    for choice, policy, slope in zip(space.choices, option_probabilities(space, logits), slopes, strict=True):
        counts = [len(values) for values in choice.fields]
        share = (policy * slope).reshape(counts)
        for axis, count in enumerate(counts):
            along = share.sum(axis=tuple(i for i in range(len(counts)) if i != axis))
            gradient[row, :count] = along - p[row, :count] * share.sum()
            row += 1
    return gradient
