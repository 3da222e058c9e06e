"""The training of weights and of the mixtures of bitwidths that they run at, in alternation."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from codesign import distributed
from codesign.cost_table import CostTable
from codesign.network_task import NetworkTask
from codesign.precision import wide
from codesign.problem import Problem
from codesign.quant.convert import mode, set_bits
from codesign.run_directory import State
from codesign.space import Arch, BitwidthSpace
from codesign.strategies.base import AbstractTraining, keep_rng, use_rng
from codesign.strategies.policy import Floats, draw
from codesign.strategies.relaxed_bits import RelaxedBits
from codesign.strategies.relaxed_network import RelaxedNetwork, mixtures_of
from codesign.weight_training import Stopped, WeightTrainer

#: How sharply a limit sets in: its force is nothing at 2 % below it.
STIFFNESS = 50.0
#: How fast the weight of a limit follows its excess, for each step.
GROWTH = 0.05


class ExpectedCost(torch.autograd.Function):
    """`CostTable.expected` of one metric, with its gradient by the policies."""

    @staticmethod
    def forward(ctx: Any, policies: Tensor, table: CostTable, metric: str) -> Tensor:
        ctx.policies, ctx.table, ctx.metric = policies.detach().numpy(), table, metric
        return policies.new_tensor(table.expected(list(ctx.policies))[metric])

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        slopes = ctx.table.expected_gradient(list(ctx.policies), ctx.metric)
        return g[0] * torch.from_numpy(np.stack(slopes)), None, None


class ExpectedCosts:
    """What a policy is expected to use and to cost.

    Parameters
    ----------
    problem : Problem
    cost : str
        A metric of its table.
    """

    def __init__(self, problem: Problem, cost: str) -> None:
        assert isinstance(problem.table, CostTable) and isinstance(problem.space, BitwidthSpace)
        self.problem, self.cost, self.table = problem, cost, _finite(problem.table)
        self.space = space = problem.space
        self._sizes = torch.tensor(
            [layer.weight_count for layer in space.network.mac_layers if layer.name in space.searched]
        ).double()
        self._weights = torch.tensor([choice.name.endswith(".weight_bits") for choice in space.choices])
        self._bits = torch.tensor(space.bits).double()

    def mean_bits(self, policies: Tensor) -> Tensor:
        """Expected bits of searched weights, the mean over weights."""
        return self._sizes @ (policies[self._weights] @ self._bits) / self._sizes.sum()

    def in_bits(self, policies: Tensor) -> Tensor:
        """The expected cost as `RelaxedBits.objective` takes it."""
        if self.cost == "weight_bytes":
            return self.mean_bits(policies)
        reference = self.space.reference
        share = self._of(policies, self.cost) / float(self.table.price([reference])[self.cost][0])
        return share * self.space.bits[reference[0]]

    def usages(self, policies: Tensor) -> Tensor:
        """The share of each limit that is used, from expected sums over the table; shape (n_limits,)."""
        shares = []
        for name, limit in self.problem.limits.items():
            if name == "frames_per_s":
                batch = self.space.network.batch
                shares.append(self._of(policies, "latency_s") * limit / batch)
            elif name == "edp_js":
                shares.append(self._of(policies, "energy_j") * self._of(policies, "latency_s") / limit)
            else:
                shares.append(self._of(policies, name) / limit)
        return torch.stack(shares) if shares else policies.new_zeros(0)

    def _of(self, policies: Tensor, metric: str) -> Tensor:
        return ExpectedCost.apply(policies, self.table, metric)  # type: ignore[no-any-return]


def _finite(table: CostTable) -> CostTable:
    """A table in which options that fit no tiling cost ten times what the dearest ones of all others do together."""
    finite = [np.where(np.isinf(term.values), 0.0, term.values) for term in table.terms]
    dear = 10 * sum(values.reshape(-1, len(table.metrics)).max(axis=0) for values in finite)
    terms = [
        term._replace(values=np.where(np.isinf(term.values), dear, values))
        for term, values in zip(table.terms, finite, strict=True)
    ]
    return dataclasses.replace(table, terms=tuple(terms))


class Weights(WeightTrainer):
    """The weights of a relaxed network on their way.

    Parameters
    ----------
    last_rate : float
        Where the learning rate ends.
    """

    def __init__(self, *args: Any, last_rate: float) -> None:
        super().__init__(*args)
        self.last_rate = last_rate

    def _schedule(self) -> float:
        last = self.last_rate / self.training.learning_rate
        return last + (1 - last) * super()._schedule()

    def _stopped(self, what: str, archs: Sequence[Any]) -> Stopped:
        return Stopped(
            f"Relaxed network: {what} at step {self.step_number} of the weights. What was kept before stays; begin "
            "another run with lower learning rates."
        )


class Training(AbstractTraining):
    """A strategy over relaxed bits on its way."""

    def __init__(self, strategy: RelaxedBits, problem: Problem, state: State) -> None:
        self.strategy, self.problem = strategy, problem
        task: NetworkTask = problem.supernet
        self.task, self.space, self.seed = task, task.space, int(state["seed"])
        self.network = RelaxedNetwork(copy.deepcopy(task.network), task.space)
        training = dataclasses.replace(task.training, learning_rate=strategy.weight_learning_rate)
        n_steps = strategy.steps * strategy.weight_steps
        self.weights = Weights(
            self.network, task.data.train, training, n_steps, self.seed, last_rate=strategy.last_weight_learning_rate
        )
        self.costs = ExpectedCosts(problem, strategy.cost)
        self.rng = use_rng(state)
        self.step_number = int(state.get("step_number", 0))
        self.point = np.array(state["point"]) if "point" in state else strategy.first_point(task.space)
        self.moments = np.array(state["moments"]) if "moments" in state else np.zeros((2, *self.point.shape))
        self.limit_weights = np.array(state["limit_weights"]) if "limit_weights" in state else None
        self.measured = {name: state[name] for name in ("float_loss",) if name in state}
        self.largest_loss = strategy.largest_loss(problem, state)
        if "step_number" in state:
            self.weights.load({n[8:]: value for n, value in state.items() if n.startswith("weights.")})

    def state(self) -> State:
        kept = {f"weights.{name}": value for name, value in self.weights.state().items()}
        if self.limit_weights is not None:
            kept["limit_weights"] = self.limit_weights.copy()
        return {
            **kept, **self.measured, "seed": self.seed, "rng": keep_rng(self.rng), "step_number": self.step_number,
            "point": self.point.copy(), "moments": self.moments.copy(),
        }  # fmt: skip

    @property
    def progress(self) -> float:
        """Share of the steps that is done."""
        return min(1.0, self.step_number / self.strategy.steps)

    def advance(self) -> dict[str, float]:
        """Steps up to the next offer, or the end; means of what was measured."""
        seen: list[dict[str, float]] = []
        for _ in range(min(self.strategy.steps_per_offer, self.strategy.steps - self.step_number)):
            for _ in range(self.strategy.weight_steps):
                self.weight_step()
            seen.append(self.policy_step() if self.step_number >= self.strategy.first_policy_step else {})
            self.step_number += 1
        names = {name for row in seen for name in row}
        return {name: float(np.mean([row[name] for row in seen if name in row])) for name in sorted(names)}

    def offer(self, n: int) -> list[Arch]:
        """The arch that the point stands for, and others drawn from the policy, within the limits and filled up.

        All differ, while there are others.
        """
        widened, policies = 0.0, self.policies()
        offered = [self._fitted(self.strategy.likeliest(self.point, self.space), policies)]
        while len(offered) < n:
            with np.errstate(divide="ignore"):
                logits = np.log((1 - widened) * policies + widened / policies.shape[1])
            arch = self._fitted(tuple(draw(logits, 1, self.rng)[0].tolist()), policies)
            if arch in offered and widened < 1:
                widened = min(1.0, widened + 0.02)
            else:
                offered.append(arch)
        return offered

    def _fitted(self, arch: Arch, policies: Floats) -> Arch:
        """A candidate near an arch that meets the limits and leaves no room in them.

        Bits are added one option at a time, first where the policy most probably has more.
        """
        if not self.problem.limits:
            return arch
        return self.problem.fill(self.problem.project(arch, self.rng), policies, least=-1.0)

    def policies(self) -> Floats:
        """Probability of each option of each choice; shape (n_choices, n_options)."""
        return self.strategy.policies(torch.from_numpy(self.point), self.space, self.progress).numpy()

    def accuracy(self) -> Callable[[Arch], Mapping[str, float]]:
        return self.task.accuracy(copy.deepcopy(self.network.network))

    # --- steps ---------------------------------------------------------------------------------------------------

    def weight_step(self) -> float:
        """Move the weights at the mixtures of now; the loss."""
        rng = self.weights.rng(4)
        relaxation = self.strategy.relaxation(torch.from_numpy(self.point), self.space, self.progress, rng)
        with _drawing(self.seed, self.weights.step_number, 6):
            loss = self.weights.step([mixtures_of(self.space, relaxation)])  # type: ignore[list-item]
        moving = [b for b in self.network.buffers() if b.is_floating_point()]
        distributed.average(moving)
        return loss

    def policy_step(self) -> dict[str, float]:
        """Move the point along the gradient of the objective; what was measured on the way."""
        strategy = self.strategy
        rng = np.random.default_rng([self.seed, self.step_number, 5])  # the same in all processes
        images, labels = self._search_batch(rng)
        point = torch.from_numpy(self.point.copy()).requires_grad_()
        loss, by_loss = self.relaxed_loss(point, images, labels, rng)
        policies = strategy.policies(point, self.space, self.progress)
        used = self.costs.usages(policies)
        value = torch.tensor(loss, dtype=torch.float64, requires_grad=True)
        if self.largest_loss is not None:
            used = torch.cat([used, value[None] / self.largest_loss])
        objective = strategy.objective(value, self.costs.in_bits(policies), point, bool(self.problem.limits))
        total = objective + self._hinge(used, objective)
        through_loss, by_cost = torch.autograd.grad(total, (value, point), materialize_grads=True)
        gradient = by_cost.numpy() + float(through_loss) * by_loss
        if not (math.isfinite(loss) and np.isfinite(gradient).all()):
            raise Stopped(
                f"{type(strategy).__name__}: the loss and its gradient must stay finite, but the loss is {loss} at "
                f"step {self.step_number}; the weights have {self.costs.mean_bits(policies).item():.2f} bits on the "
                "mean. What was kept before stays; begin another run with lower learning rates."
            )
        self._adam(gradient)
        mean_bits = float(self.costs.mean_bits(policies.detach()))
        names = [f"{name}_usage" for name in (*self.problem.limits, "loss")]
        return {
            "loss": loss, "mean_bits": mean_bits,
            **dict(zip(names, used.tolist(), strict=False)),
        }  # fmt: skip

    def relaxed_loss(
        self, point: Tensor, images: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[float, Floats]:
        """The loss of the relaxed network at a point, and its gradient."""
        relaxation = self.strategy.relaxation(point, self.space, self.progress, rng)
        with mode(self.network, training=True), _drawing(self.seed, self.step_number, 7):
            with self.weights.training.precision.autocast(images.device):
                scores = self.network(images, mixtures_of(self.space, relaxation), keep_statistics=False)
            loss = functional.cross_entropy(wide(scores), labels)
        (gradient,) = torch.autograd.grad(loss, point, materialize_grads=True)
        value = loss.detach()
        distributed.average([gradient, value])
        return float(value), gradient.numpy()

    def _hinge(self, used: Tensor, objective: Tensor) -> Tensor:
        """What limits add to the objective: each usage times the force that draws it down."""
        over = used.detach().numpy() - 1
        if self.limit_weights is None:
            given = self.strategy.limit_weight
            start = abs(float(objective.detach())) / np.maximum(over, 0.1) if given is None else given
            self.limit_weights = np.ones(len(over)) * start
        self.limit_weights = self.limit_weights * np.exp(GROWTH * np.clip(over, -1, 1))
        force = self.limit_weights * np.clip(1 + STIFFNESS * over, 0, 2)
        return torch.from_numpy(force) @ used

    def _search_batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        images, labels = self.task.data.search
        size = min(self.weights.training.batch_size, len(labels))
        index = torch.from_numpy(rng.choice(len(labels), size, replace=False)).to(labels.device)
        return distributed.share(images[index]), distributed.share(labels[index])

    def _adam(self, gradient: Floats, first: float = 0.9, second: float = 0.999) -> None:
        """One step of Adam on the point."""
        n = self.step_number - self.strategy.first_policy_step + 1
        self.moments[0] += (1 - first) * (gradient - self.moments[0])
        self.moments[1] += (1 - second) * (gradient**2 - self.moments[1])
        scale = np.sqrt(self.moments[1] / (1 - second**n)) + 1e-8
        step = self.strategy.rate(self.progress) * self.moments[0] / (1 - first**n) / scale
        self.point = self.strategy.inside(self.point - step, self.space)


@contextmanager
def _drawing(*seed: int) -> Iterator[None]:
    """What layers such as dropout draw depends on these numbers alone."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**63)))
        yield


@torch.no_grad()
def float_loss(task: NetworkTask, seed: int) -> float:
    """The loss of a network in float on the search set, in nats, with statistics of batches as in `Training`."""
    (images, labels), network, total = task.data.search, copy.deepcopy(task.network), 0.0
    set_bits(network, None)
    with mode(network, training=True), _drawing(seed, 8):
        for index in torch.split(torch.arange(len(labels)), task.training.batch_size):
            scores = network(images[index])
            total += functional.cross_entropy(wide(scores), labels[index], reduction="sum").item()
    return total / len(labels)
