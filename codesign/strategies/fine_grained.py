"""Differentiable fine-grained quantization: a softmax over quantized copies, the smallest network of a bounded loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codesign.problem import Problem
from codesign.run_directory import State
from codesign.space import Arch, BitwidthSpace
from codesign.strategies.policy import Floats
from codesign.strategies.relaxed_bits import Relaxation, RelaxedBits, group_of

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


@dataclass(frozen=True)
class FineGrained(RelaxedBits):
    r"""A softmax over quantized copies of each group of channels. See `RelaxedBits` for the other parameters.

    Parameters
    ----------
    groups : int
        Groups of neighbouring output channels of each layer whose weights have shares of their own.
    bound : float or None
        By how much, relative to it, the loss may exceed that of the network in float. None: 0.1 where the problem has
        no limits; where it has, the loss is minimised under them.
    temperature, last_temperature : float
        Of the softmax; it falls exponentially, so that the shares become those of one option.

    Notes
    -----
    .. math:: \min_\alpha G(\alpha) \quad \text{s.t.} \quad L_{val}(w^*, \alpha) \le \theta, \qquad
              q_i = \sum_k \mathrm{softmax}(\alpha_i / \tau)_k \, Q_k(w_i)

    with the size :math:`G` (or another ``cost``), :math:`w^*` trained in alternation, and
    :math:`\theta = (1 + \mathrm{bound}) L_{float}`, whose :math:`L_{float}` is measured on the search set before the
    first step. The bound is kept as limits are. In the slides each weight has a softmax of its own; here a
    group of channels has.

    The cost of a layer of several groups is that of the mean of their shares, by channels: for its size that is
    exact. A layer of hardware has one bitwidth: what is offered is the least one of the space that holds the mean bits
    of its groups, each at its likeliest. With one group that is the likeliest one.

    The slides give no rates, temperatures or bound, and binary and 8 bits as the options, which are the space's.

    References
    ----------
    Slides "Differentiable fine-grained quantization", after Cheng et al., "Differentiable fine-grained quantization for
    deep neural network compression", arXiv:1810.10351, 2018.
    """

    groups: int = 1
    bound: float | None = None
    temperature: float = 1.0
    last_temperature: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("groups", "must be at least 1", self.groups >= 1)
        self._require("bound", "must be positive", self.bound is None or self.bound > 0)
        self._require("last_temperature", f"must be positive and at most temperature={self.temperature}",
                      0 < self.last_temperature <= self.temperature)  # fmt: skip

    @classmethod
    def paper(cls) -> Self:
        """The size minimised under a bound on the loss whether there are limits or not."""
        return cls(bound=0.1)

    def init(self, problem: Problem, rng: np.random.Generator) -> State:
        state = super().init(problem, rng)
        if self._bound(problem) is None:
            return state
        from codesign.strategies.relaxed_bits_training import float_loss

        return state | {"float_loss": float_loss(self._task(problem), int(state["seed"]))}

    def training_passes(self, problem: Problem) -> int:
        measured = 0 if self._bound(problem) is None else len(self._task(problem).data.search.labels)
        return super().training_passes(problem) + measured

    def _bound(self, problem: Problem) -> float | None:
        return self.bound if self.bound is not None or problem.limits else 0.1

    def largest_loss(self, problem: Problem, state: State) -> float | None:
        bound = self._bound(problem)
        return None if bound is None else (1 + bound) * float(state["float_loss"])

    def first_point(self, space: BitwidthSpace) -> Floats:
        return np.zeros((len(space.choices), self.groups, len(space.bits)))

    def relaxation(self, point: Tensor, space: BitwidthSpace, progress: float, rng: np.random.Generator) -> Relaxation:
        shares = self._shares(point, progress)
        return Relaxation(shares, shares.new_ones(len(point), len(space.bits)).bool())

    def _shares(self, point: Tensor, progress: float) -> Tensor:
        fall = (self.last_temperature / self.temperature) ** min(1.0, progress)
        shares: Tensor = (point / (self.temperature * fall)).softmax(dim=2)
        return shares

    def policies(self, point: Tensor, space: BitwidthSpace, progress: float) -> Tensor:
        sizes = point.new_tensor(self._group_sizes(space))
        policies: Tensor = (self._shares(point, progress) * sizes[:, :, None]).sum(dim=1)
        return policies

    def likeliest(self, point: Floats, space: BitwidthSpace) -> Arch:
        bits = np.array(space.bits)
        wanted = (self._group_sizes(space) * bits[point.argmax(axis=2)]).sum(axis=1)
        return tuple(np.searchsorted(bits, wanted - 1e-9).tolist())

    def _group_sizes(self, space: BitwidthSpace) -> Floats:
        """Share of the channels in each group of each choice; inputs are one group."""
        channels = {layer.name: layer.out_channels for layer in space.network.mac_layers}
        rows = []
        for choice in space.choices:
            name, _, operand = choice.name.rpartition(".")
            n = channels[name] if operand == "weight_bits" else 1
            rows.append(np.bincount(group_of(n, self.groups), minlength=self.groups) / n)
        return np.array(rows)

    def objective(self, loss: Tensor, cost: Tensor, point: Tensor, limited: bool) -> Tensor:
        return loss if limited and self.bound is None else cost
