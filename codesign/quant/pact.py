"""PACT: a learned clip."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from codesign.quant.quantizer import Quantizer


class PACT(Quantizer):
    r"""Parameterized clipping activation: values are clipped at a learned bound, then rounded.

    Parameters
    ----------
    bits, channels
        As of `Quantizer`.
    start : float, optional
        The clip to begin with, whatever the data; the paper starts high, at 10 for instance. None: that of least
        squared error on the calibration data, or what `calibrate` is told.

    Attributes
    ----------
    alpha : Parameter, shape () or (channels,)
        The clip; nan until `calibrate` was called.

    Notes
    -----
    With :math:`k` bits, in :math:`2^k - 1` steps,

    .. math::
        y = \mathrm{clip}(x, 0, \alpha), \quad
        y_q = \mathrm{round}\left(y \cdot \frac{2^k - 1}{\alpha}\right) \frac{\alpha}{2^k - 1}, \quad
        \frac{\partial y_q}{\partial \alpha} = [x \ge \alpha], \quad
        \frac{\partial y_q}{\partial x} = [0 \le x < \alpha].

    Rounding contributes nothing to the gradient of :math:`\alpha`, unlike in learned step sizes. The paper covers
    activations that follow a ReLU. Data with negative values gets :math:`\mathrm{clip}(x, -\alpha, \alpha)` in
    :math:`2^k - 2` steps, so that zero stays a level, and :math:`\partial y_q / \partial \alpha = \pm 1` where
    :math:`|x| \ge \alpha`; one bit is :math:`\alpha\,\mathrm{sign}(x)`. The paper quantizes weights as DoReFa does;
    this class takes weights too, as signed data.

    :math:`\alpha` wants an L2 penalty of its own (`clip_penalty`) instead of weight decay, not both.

    References
    ----------
    Choi et al., "PACT: Parameterized clipping activation for quantized neural networks", arXiv:1805.06085, 2018,
    equations 1 to 3 and section 3.
    """

    symmetric: ClassVar[bool] = True
    clipped_only: ClassVar[bool] = True

    def __init__(self, bits: int, channels: int | None = None, start: float | None = None) -> None:
        super().__init__(bits, channels)
        if start is not None and not 0 < start < float("inf"):
            raise ValueError(f"PACT: start must be positive and finite, got start={start}.")
        self.start = start
        self.alpha = nn.Parameter(torch.full((channels,) if channels else (), float("nan")))

    @property
    def step(self) -> Tensor:  # type: ignore[override]
        """Distance of neighbouring levels."""
        return self.alpha / self.high

    def use_step(self, step: Tensor) -> None:
        self.alpha.copy_(step * self.high if self.start is None else torch.full_like(step, self.start))


def clip_penalty(module: nn.Module) -> Tensor:
    r"""The sum of :math:`\alpha^2` over the `PACT` quantizers of a network, for the loss; 0 where it has none.

    The paper weighs it like the weights' decay. Quantizers that are not calibrated do not count.
    """
    clips = [q.alpha for q in module.modules() if isinstance(q, PACT)]
    return sum((a.square().sum() for a in clips if bool(a.isfinite().all())), torch.zeros(()))
