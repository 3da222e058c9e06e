"""What the gradient methods over the bits of a trained network share: layers that run at a mixture of bitwidths."""

from __future__ import annotations

import bisect
import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from codesign.problem import Problem
from codesign.run_directory import State
from codesign.space import Arch, BitwidthSpace
from codesign.strategies.base import AbstractTrainer, keep_rng
from codesign.strategies.policy import Floats

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from codesign.network_task import NetworkTask
    from codesign.strategies.relaxed_bits_training import Training


class Relaxation(NamedTuple):
    """The mixtures that a network runs at, choice by choice."""

    shares: Tensor  #: of each option, shape (n_choices, n_options), or (n_choices, n_groups, n_options)
    takes_part: Tensor  #: bool, shape (n_choices, n_options): others have neither a share nor a gradient


#: How many times as long the steps of the point become where there are fewer of them.
MOST_STRETCHED = 10.0


@dataclass(frozen=True)
class RelaxedBits(AbstractTrainer):
    r"""Base of strategies that learn bitwidths and weights of a trained network by gradients, in alternation.

    A searched layer computes with :math:`\sum_k p_k Q_k(W)` and :math:`\sum_k q_k Q_k(x)`, sums over the bitwidths of
    the space with shares :math:`p, q` that depend on what is learned, the *point*: cursors or logits. Weights take
    steps on the training set, the point on the search set. What is expected of a cost is exact, from the cost table,
    for shares are probabilities of options too.

    Parameters
    ----------
    steps : int
        Steps of the point, over which all that changes runs its course. Nothing is trained after it.
    steps_per_offer : int
        Of them between two batches of candidates that are evaluated.
    weight_steps : int
        Steps of the weights before each step of the point.
    learning_rate : float
        Of Adam on the point, at the start.
    weight_learning_rate, last_weight_learning_rate : float
        Peak of the rate of the weights, and where its cosine ends.
    cost : str
        What is to be low where the problem has no limits: a metric that is a sum over the cost table, such as
        "weight_bytes", "bitops", "energy_j" or "latency_s".
    limit_weight : float or None
        Of each limit at the start, in nats for using 100 % more than it. None: the objective over the excess of the
        first policy, which is taken to be at least 10 %.

    Notes
    -----
    Where the problem has limits, the default is to minimise the loss under them, and a cost beside that only where one
    is asked for: what is saved below a limit is worth nothing.

    With :math:`u_j` the share of a limit that the policy is expected to use, the gradient has the term
    :math:`\lambda_j \,\mathrm{clip}(1 + \kappa (u_j - 1), 0, 2) \nabla u_j`: a hinge that bends over :math:`1/\kappa`
    of the limit. Its weight follows the excess, :math:`\lambda_j \leftarrow \lambda_j e^{\eta (u_j - 1)}`. A fixed one
    is either without effect or drowns the loss: what the loss of a trained network is at the start says nothing about
    what it is at few bits.

    What is offered for evaluation is the arch that the point stands for and archs drawn from the policy, each moved
    within the limits (`Problem.project`) and then given bits again for as long as the limits leave room, so every trial
    is feasible. Candidates are evaluated with the weights as they are then.

    Batch statistics are those of the batch while training; only steps of the weights keep them.
    """

    steps: int = 400
    steps_per_offer: int = 20
    weight_steps: int = 1
    learning_rate: float = 0.05
    weight_learning_rate: float = 0.01
    last_weight_learning_rate: float = 1e-3
    cost: str = "weight_bytes"
    limit_weight: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "steps_per_offer", "weight_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self._name}: {name} must be at least 1, got {getattr(self, name)}.")
        self._require("learning_rate", "must be positive", self.learning_rate > 0)
        rule = f"must be from 0 to weight_learning_rate={self.weight_learning_rate}"
        fits = 0 <= self.last_weight_learning_rate <= self.weight_learning_rate
        self._require("last_weight_learning_rate", rule, fits)
        self._require("limit_weight", "must be positive", self.limit_weight is None or self.limit_weight > 0)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _require(self, name: str, rule: str, holds: bool) -> None:
        if not holds:
            raise ValueError(f"{self._name}: {name} {rule}, got {getattr(self, name)}.")

    # --- what a concrete strategy is -------------------------------------------------------------------------------

    @abstractmethod
    def first_point(self, space: BitwidthSpace) -> Floats:
        """Where the search begins; an array of float64."""

    @abstractmethod
    def relaxation(self, point: Tensor, space: BitwidthSpace, progress: float, rng: np.random.Generator) -> Relaxation:
        """The mixtures at a point when a share ``progress`` of the steps is done, differentiable."""

    @abstractmethod
    def policies(self, point: Tensor, space: BitwidthSpace, progress: float) -> Tensor:
        """Probability of each option of each choice, differentiable; shape (n_choices, n_options)."""

    @abstractmethod
    def likeliest(self, point: Floats, space: BitwidthSpace) -> Arch:
        """The arch that a point stands for."""

    @abstractmethod
    def objective(self, loss: Tensor, cost: Tensor, point: Tensor, limited: bool) -> Tensor:
        """What is minimised but for limits.

        Parameters
        ----------
        loss : Tensor
            Cross entropy of the relaxed network, in nats.
        cost : Tensor
            The expected cost, in bits: the mean bits of searched weights where it is "weight_bytes", else its share of
            the cost of the reference (`BitwidthSpace.reference`) times the bits of that.
        point : Tensor
        limited : bool
            Whether the problem has limits.
        """

    def inside(self, point: Floats, space: BitwidthSpace) -> Floats:
        """The nearest point that means something."""
        return point

    def rate(self, progress: float) -> float:
        """The learning rate of the point."""
        return self.learning_rate

    def largest_loss(self, problem: Problem, state: State) -> float | None:
        """A limit on the loss itself, in nats."""
        return None

    @property
    def first_policy_step(self) -> int:
        """Steps at the start in which weights alone are trained."""
        return 0

    # --- as a trainer ----------------------------------------------------------------------------------------------

    def check(self, problem: Problem) -> None:
        table = problem.table
        if table is None or self.cost not in table.metrics:
            known = "there is none for it" if table is None else f"it has {', '.join(table.metrics)}"
            raise ValueError(
                f"{self._name}: cost must be a sum over the cost table of {type(problem.hardware).__name__} "
                f"({known}), for its gradient is taken, got {self.cost!r}. Choose another cost, or a sampler."
            )
        bits = getattr(problem.space, "bits", ())
        if len(bits) == 1:
            raise ValueError(f"{self._name}: there must be two bitwidths to mix, got bits={bits}.")

    def init(self, problem: Problem, rng: np.random.Generator) -> State:
        self.check(problem)
        self._task(problem)
        return {"rng": keep_rng(rng), "seed": int(rng.integers(2**31))}

    def start(self, problem: Problem, state: State) -> Training:
        from codesign.strategies.relaxed_bits_training import Training

        self._task(problem)
        return Training(self, problem, state)

    def _task(self, problem: Problem) -> NetworkTask:
        from codesign.network_task import NetworkTask

        task = problem.supernet
        if not isinstance(task, NetworkTask):
            raise ValueError(
                f"{self._name}: it tunes a trained network, so the problem must have a NetworkTask as supernet, got "
                f"{type(task).__name__}. Give one, or choose reinforce, random or nsga2."
            )
        if problem.space != task.space:
            raise ValueError(
                f"{self._name}: the space of the problem must be that of its network, {len(task.space.choices)} "
                f"choices of bits, got a {type(problem.space).__name__} of {len(problem.space.choices)} choices."
            )
        return task

    # --- budget ----------------------------------------------------------------------------------------------------

    def training_passes(self, problem: Problem) -> int:
        task = self._task(problem)
        train, search = (
            min(task.training.batch_size, len(part.labels)) for part in (task.data.train, task.data.search)
        )
        return 3 * (train * self.weight_steps * self.steps + search * (self.steps - self.first_policy_step))

    def spending(self, problem: Problem, passes: int) -> Self:
        """With the most steps that so many image passes allow, and as many offers over its course as before.

        Where steps are fewer, they are longer in proportion, at most `MOST_STRETCHED` times, so that the point can go
        as far.

        Raises
        ------
        ValueError
            Where they do not allow a single one.
        """
        one = dataclasses.replace(self, steps=1, steps_per_offer=1).training_passes(problem)
        if passes < one:
            raise ValueError(
                f"{self._name}: its training must be given the {one} image passes of one step at least, got {passes}."
            )

        def spent(steps: int) -> int:
            return dataclasses.replace(self, steps=steps).training_passes(problem)

        most = 2  # each step costs something, so that doubling gets there
        while spent(most) <= passes:
            most *= 2
        steps = bisect.bisect_right(range(1, most), passes, key=spent)
        offers = math.ceil(self.steps / self.steps_per_offer)
        longer = min(max(1.0, self.steps / steps), MOST_STRETCHED)
        return dataclasses.replace(
            self, steps=steps, steps_per_offer=math.ceil(steps / offers), learning_rate=self.learning_rate * longer
        )


def group_of(n_channels: int, n_groups: int) -> NDArray[np.int64]:
    """The group of each channel: neighbours share one, and all are as large, up to one channel.

    Examples
    --------
    >>> group_of(5, 2).tolist()
    [0, 0, 0, 1, 1]
    """
    return np.arange(n_channels) * n_groups // n_channels
