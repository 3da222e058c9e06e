"""Cursor: one continuous bitwidth for each layer, which computes with its two neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from codesign.space import Arch, BitwidthSpace
from codesign.strategies.policy import Floats
from codesign.strategies.relaxed_bits import Relaxation, RelaxedBits

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


@dataclass(frozen=True)
class Cursor(RelaxedBits):
    r"""Cursor-based adaptive quantization. See `RelaxedBits` for the other parameters.

    Parameters
    ----------
    neighbours : {2, 1}
        Bitwidths that a layer mixes. 1: it runs at the nearest one.
    gradient : {"difference", "printed"}
        Of the mixture at a cursor :math:`c` between :math:`a_1` and :math:`a_2`. "difference":
        :math:`(O_{a_2} - O_{a_1}) / (a_2 - a_1)` everywhere, with one neighbour too. "printed": that of the
        formulas, which is 0 at a bitwidth itself, and with one neighbour everywhere.
    first_bits : float
        Where each cursor begins, in bits; taken into the range of the space.
    last_learning_rate : float
        Where the cosine of the cursors' rate ends.
    penalty : float or None
        :math:`\lambda`. None: 0.25, the paper's, where the problem has no limits, and 0 where it has some.
    power : float
        :math:`\gamma`.
    balance : (float, float) or None
        Least and largest ratio of the two parts of the objective; :math:`\lambda` is changed where it is left. None:
        any.

    Notes
    -----
    .. math:: L = \mathrm{CE} + \lambda \left(\frac{\sum_i S_i c_i}{\sum_i S_i}\right)^\gamma, \qquad
              O = d_1 O_{a_1} + d_2 O_{a_2}

    with :math:`a_1` the largest bitwidth of the space that is not above :math:`c` and has one after it,
    :math:`d_2 = (c - a_1) / (a_2 - a_1)` and :math:`d_1 = 1 - d_2`. As a convolution is linear in its weights, it is
    one with :math:`d_1 W_{a_1} + d_2 W_{a_2}`. The two shares are a policy over options, so any sum over the cost table
    has an expectation that is linear between two bitwidths of one layer: with another ``cost`` the bracket is its
    share of that of 8 bits, times 8. Where the space chooses the bits of inputs too, they have cursors of their own.

    The paper is unsound in three places; `paper` has what is printed of the first. The weights
    :math:`\mathrm{relu}(1 - |c - q_j|)` of its equation 7 have the gradient 0 at a whole cursor, where all cursors
    begin, and where one that has come to the least bitwidth is held for good, as the penalty pushes it no way but down.
    Its equation 8 doubles the output there, and the bracket of equation 9 is misplaced; both are taken as equation 7.
    Not given are the rates at the start, the batch and the cursors' optimiser, which is Adam here as the text suggests.

    Weights are quantized as the network was made: for the paper's DoReFa ``quantize(..., weight_quantizer="dorefa")``,
    inputs at 32 bits, and the first and last layer pinned to 32.

    References
    ----------
    "Cursor-based adaptive quantization for deep neural network", ICLR 2020 submission, sections 3.3, 3.4 and 4.
    """

    last_learning_rate: float = 1e-4
    neighbours: int = 2
    gradient: Literal["difference", "printed"] = "difference"
    first_bits: float = 4.0
    penalty: float | None = None
    power: float = 0.3
    balance: tuple[float, float] | None = (0.5, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("last_learning_rate", f"must be from 0 to learning_rate={self.learning_rate}",
                      0 <= self.last_learning_rate <= self.learning_rate)  # fmt: skip
        self._require("neighbours", "must be 1 or 2", self.neighbours in (1, 2))
        self._require("gradient", "must be difference or printed", self.gradient in ("difference", "printed"))
        self._require("first_bits", "must be a bitwidth of at least 1", 1 <= self.first_bits < math.inf)
        self._require("penalty", "must not be negative", self.penalty is None or self.penalty >= 0)
        self._require("power", "must be positive", self.power > 0)
        self._require("balance", "must be two ratios that rise", self.balance is None or
                      0 < self.balance[0] <= self.balance[1])  # fmt: skip

    @classmethod
    def paper(cls) -> Self:
        """As printed: equation 7 with its gradient, and the penalty on the size whether there are limits or not."""
        return cls(gradient="printed", penalty=0.25)

    def first_point(self, space: BitwidthSpace) -> Floats:
        return self.inside(np.full(len(space.choices), float(self.first_bits)), space)

    def inside(self, point: Floats, space: BitwidthSpace) -> Floats:
        return np.clip(point, space.bits[0], space.bits[-1])

    def rate(self, progress: float) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.last_learning_rate + (self.learning_rate - self.last_learning_rate) * cosine

    def relaxation(self, point: Tensor, space: BitwidthSpace, progress: float, rng: np.random.Generator) -> Relaxation:
        low, d2, options = self._between(point, space)
        shares = self.policies(point, space, progress)
        if self.neighbours == 1:
            nearest = (options == low + (d2 > 0.5)).to(shares)
            shares = nearest + (shares - shares.detach()) * (self.gradient == "difference")
        elif self.gradient == "printed":
            shares = (1 - (low + d2 - options).abs()).relu()
        return Relaxation(shares, (options == low) | (options == low + 1))

    def policies(self, point: Tensor, space: BitwidthSpace, progress: float) -> Tensor:
        low, d2, options = self._between(point, space)
        return (options == low) * (1 - d2) + (options == low + 1) * d2

    @staticmethod
    def _between(cursors: Tensor, space: BitwidthSpace) -> tuple[Tensor, Tensor, Tensor]:
        """The option a_1 of each cursor, d_2, and all options."""
        bits, c = cursors.new_tensor(space.bits), cursors[:, None]
        low = (bits[1:-1] <= c).sum(dim=1, keepdim=True)
        return low, (c - bits[low]) / (bits[low + 1] - bits[low]), bits.new_tensor(range(len(bits)))

    def likeliest(self, point: Floats, space: BitwidthSpace) -> Arch:
        return tuple(int(abs(np.array(space.bits) - cursor).argmin()) for cursor in point)

    def objective(self, loss: Tensor, cost: Tensor, point: Tensor, limited: bool) -> Tensor:
        penalty = self.penalty if self.penalty is not None else 0.0 if limited else 0.25
        if penalty == 0:
            return loss
        part = cost**self.power
        if self.balance is not None:
            least, largest = self.balance
            ratio = float(loss.detach() / part.detach())
            penalty = min(max(penalty, ratio / largest), ratio / least)
        return loss + penalty * part
