"""DoReFa: weights squeezed into -1 to 1, activations clipped at 1; nothing is learned or fitted."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from codesign.quant.calibration import Method
from codesign.quant.quantizer import Quantizer


class DoReFaWeights(Quantizer):
    r"""DoReFa for weights: a bounded function of them on :math:`2^k` even levels from -1 to 1.

    Parameters
    ----------
    bits, channels
        As of `Quantizer`; the largest magnitude is taken for each channel where ``channels`` is given.
    scaled_sign : bool
        At one bit: :math:`E|w|\,\mathrm{sign}(w)` as in the paper, else the plain sign, which is what the formula for
        more bits gives.

    Notes
    -----
    .. math::
        r = \frac{\tanh w}{2 \max |\tanh w|} + \frac12, \qquad
        w_q = 2\,\frac{\mathrm{round}((2^k - 1)\, r)}{2^k - 1} - 1.

    The gradient passes the rounding as if it were not there, and the function, its maximum included, by the chain rule
    (the paper does not say whether the maximum counts; as printed, it is part of the function). At one bit the gradient
    is that of the identity, and the scale, a mean over the whole tensor, counts as a constant. Levels are odd multiples
    of half a step: zero is none of them. Weights that are all zero stay zero before they are rounded.

    Quantizing twice is not quantizing once (tanh acts again), and the squeezing does not vanish with more bits.

    References
    ----------
    Zhou et al., "DoReFa-Net", arXiv:1606.06160, 2016, section 2.3.
    """

    rounds_input: ClassVar[bool] = False

    def __init__(self, bits: int, channels: int | None = None, scaled_sign: bool = True) -> None:
        super().__init__(bits, channels)
        self.scaled_sign = scaled_sign

    def _use_levels(self, signed: bool) -> None:
        last = 2.0 ** (self.bits - 1) - 0.5
        self.signed.fill_(True)
        self.low, self.high, self.offset = -last, last, 0.5

    def calibrate(self, values: Tensor, method: Method | None = None) -> None:
        """Nothing to do: the levels follow the weights."""

    def step_for(self, w: Tensor) -> Tensor:
        shape = (self.channels,) if self.channels else ()
        if self.bits == 1 and self.scaled_sign:
            return (2 * w.detach().abs().mean()).expand(shape)
        return w.new_tensor(1 / self.high).expand(shape)

    def transformed(self, x: Tensor) -> Tensor:
        if self.bits == 1:
            return x
        t = x.tanh()
        largest = t.abs().amax(dim=tuple(range(1, t.dim())), keepdim=True) if self.channels else t.abs().amax()
        return t / largest.clamp_min(torch.finfo(t.dtype).tiny)

    def forward(self, x: Tensor) -> Tensor:
        if self.bits > 1:
            return super().forward(x)
        with torch.no_grad():
            y = super().forward(x)
        return _Straight.apply(x, y)


class _Straight(torch.autograd.Function):
    """The second tensor with the gradient of the first; a sum and a difference would round the values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        return g[0], None


class DoReFaInputs(Quantizer):
    r"""DoReFa for activations: clipped from 0 to 1, on :math:`2^k` even levels.

    Parameters
    ----------
    bits, channels
        As of `Quantizer`.
    clip : float
        In place of 1.

    Notes
    -----
    :math:`y = \mathrm{round}((2^k - 1)\,\mathrm{clip}(x, 0, 1)) / (2^k - 1)`, and the gradient of the clip. The paper's
    activations are bounded functions without negative values. Data that has some is clipped from -1 to 1, in
    :math:`2^k - 2` steps, so that zero stays a level. What lies beyond the clip is lost: networks for this quantizer
    are trained with it.

    References
    ----------
    Zhou et al., "DoReFa-Net", arXiv:1606.06160, 2016, section 2.4.
    """

    symmetric: ClassVar[bool] = True

    def __init__(self, bits: int, channels: int | None = None, clip: float = 1.0) -> None:
        super().__init__(bits, channels)
        if not 0 < clip < float("inf"):
            raise ValueError(f"DoReFaInputs: clip must be positive and finite, got clip={clip}.")
        self.clip = clip
        self.register_buffer("calibrated", torch.tensor(False))

    def use_step(self, step: Tensor) -> None:
        """Nothing is fitted; calibration settles the sign."""
        self.calibrated.fill_(True)

    def step_for(self, x: Tensor) -> Tensor:
        shape = (self.channels,) if self.channels else ()
        return x.new_tensor(self.clip / self.high).expand(shape)
