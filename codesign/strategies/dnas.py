"""DNAS: Gumbel-softmax over the bitwidths of each layer, and a loss that is weighted by the cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codesign.space import Arch, BitwidthSpace
from codesign.strategies.policy import Floats
from codesign.strategies.relaxed_bits import Relaxation, RelaxedBits

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


@dataclass(frozen=True)
class DNAS(RelaxedBits):
    r"""Differentiable search over the weight and activation bits of each layer. See `RelaxedBits` for the others.

    Parameters
    ----------
    scale : float
        :math:`\alpha`; FBNet's.
    power : float or None
        :math:`\beta`. None: 0.6, FBNet's, where the problem has no limits; where it has, the loss is not weighted.
    units : float
        Units of cost in what one bit costs: 10 makes it about the percentage of that of 8 bits.
    temperature, cooling : float
        Of Gumbel-softmax, :math:`\tau = \tau_0 e^{-\eta\,\mathrm{epoch}}`.
    epochs, weight_epochs : int
        What the course is counted as, and how many of them train weights alone.
    decay : float
        Weight decay of the logits :math:`\theta`.

    Notes
    -----
    .. math:: L = \mathrm{CE} \cdot \alpha \log(1 + E[\mathrm{cost}])^\beta, \qquad
              m = \mathrm{softmax}((\log \mathrm{softmax}\,\theta + g) / \tau)

    with Gumbel noise :math:`g`, anew in each step. Two papers have it, with other letters: DNAS multiplies by
    :math:`\beta \log(\mathrm{cost})^\gamma`, FBNet by :math:`\alpha \log(\mathrm{LAT})^\beta` with 0.2 and 0.6.
    A logarithm of a share below 1 is negative, and its power no number, so 1 is added, and ``units`` says what the cost
    is counted in, which decides how much it weighs. The expected cost is that of the policy :math:`\mathrm{softmax}\,
    \theta`, exactly, from the cost table; the papers take that of the masks.

    The papers choose among pairs of weight and activation bits. Here both operands are drawn by themselves, and as
    a convolution is linear in both, one of :math:`\sum_k p_k Q_k(W)` and :math:`\sum_j q_j Q_j(x)` is the sum over all
    pairs with :math:`p_k q_j`: a step costs one convolution a layer, not one for each pair.

    FBNet's 90 epochs, of which the first 10 train weights alone, its temperature and its Adam (0.01, decay 5e-4) are
    what `paper` has; by default the logits learn faster, for a course of fewer steps.

    References
    ----------
    Wu et al., "Mixed precision quantization of ConvNets via differentiable neural architecture search",
    arXiv:1812.00090, 2018. Wu et al., "FBNet", CVPR 2019.
    """

    cost: str = "bitops"
    scale: float = 0.2
    power: float | None = None
    units: float = 10.0
    temperature: float = 5.0
    cooling: float = 0.045
    epochs: int = 90
    weight_epochs: int = 10
    decay: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale", "units", "temperature"):
            self._require(name, "must be positive", getattr(self, name) > 0)
        for name in ("cooling", "decay"):
            self._require(name, "must not be negative", getattr(self, name) >= 0)
        self._require("power", "must be positive", self.power is None or self.power > 0)
        self._require("weight_epochs", f"must be from 0 to below epochs={self.epochs}",
                      0 <= self.weight_epochs < self.epochs)  # fmt: skip

    @classmethod
    def paper(cls) -> Self:
        """The loss weighted by the cost whether there are limits or not, and FBNet's rate of the logits."""
        return cls(power=0.6, learning_rate=0.01)

    @property
    def first_policy_step(self) -> int:
        return self.steps * self.weight_epochs // self.epochs

    def first_point(self, space: BitwidthSpace) -> Floats:
        return np.zeros((len(space.choices), len(space.bits)))

    def relaxation(self, point: Tensor, space: BitwidthSpace, progress: float, rng: np.random.Generator) -> Relaxation:
        noise = point.new_tensor(rng.gumbel(size=tuple(point.shape)))
        tau = self.temperature * math.exp(-self.cooling * self.epochs * min(1.0, progress))
        masks = ((point.log_softmax(dim=1) + noise) / tau).softmax(dim=1)
        return Relaxation(masks, masks.new_ones(masks.shape).bool())

    def policies(self, point: Tensor, space: BitwidthSpace, progress: float) -> Tensor:
        return point.softmax(dim=1)

    def likeliest(self, point: Floats, space: BitwidthSpace) -> Arch:
        return tuple(point.argmax(axis=1).tolist())

    def objective(self, loss: Tensor, cost: Tensor, point: Tensor, limited: bool) -> Tensor:
        decay = 0.5 * self.decay * (point**2).sum()
        power = self.power if self.power is not None else 0.0 if limited else 0.6
        if power == 0:
            return loss + decay
        return loss * self.scale * (1 + self.units * cost).log() ** power + decay
