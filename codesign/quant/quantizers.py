"""Uniform fake quantization: values rounded to a grid of 2^bits levels, and gradients through the rounding."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

Method = Literal["minmax", "mse"]


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.low, ctx.high = low, high
        return (x / step).round_().clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, step), low, high = ctx.saved_tensors, ctx.low, ctx.high
        scaled = x / step
        inside = (scaled >= low) & (scaled <= high)
        by_step = None
        if ctx.needs_input_grad[1]:
            level = scaled.round().clamp_(low, high)
            by_step = (gradients[0] * torch.where(inside, level - scaled, level)).sum().reshape(step.shape)
        return gradients[0] * inside, by_step, None, None


def fake_quantize(x: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    r"""Values rounded to the nearest multiple of ``step`` from ``low * step`` to ``high * step``.

    Parameters
    ----------
    x : Tensor
    step : Tensor, shape ()
    low, high : float
        First and last level, whole numbers.

    Notes
    -----
    With :math:`u = x / s`, :math:`y = s \cdot \mathrm{clip}(\mathrm{round}(u), l, h)`. Rounding has the gradient of
    the identity (straight through), so

    .. math::
        \partial y / \partial x = [l \le u \le h], \qquad
        \partial y / \partial s = \mathrm{round}(u) - u \text{ inside}, \; l \text{ below}, \; h \text{ above}.

    References
    ----------
    Bengio, Leonard and Courville, arXiv:1308.3432, 2013 (straight through); Esser et al., "Learned step size
    quantization", ICLR 2020, equations 1 to 3 and 5.
    """
    return _FakeQuantize.apply(x, step, low, high)


class UniformQuantizer(nn.Module):
    r"""Uniform quantizer of one tensor at one bitwidth; its step is fitted to data, and learned when it is trained.

    Levels are 0 to 2^bits - 1 where the calibration data has no negative value, else -2^(bits-1) to 2^(bits-1) - 1.

    Parameters
    ----------
    bits : int
        1 to 16.

    Attributes
    ----------
    step : Parameter, shape ()
        nan until `calibrate` was called.
    low, high : float
        See `fake_quantize`; the buffer ``signed`` keeps them in a state dict.

    Raises
    ------
    ValueError
        For bits out of range.

    Notes
    -----
    The gradient of the step is scaled by :math:`1 / \sqrt{n h}` with the number :math:`n` of values and the last
    level :math:`h`, which keeps its steps in proportion to those of the weights. Its magnitude is what counts, so
    training cannot make it negative.

    References
    ----------
    Esser et al., "Learned step size quantization", ICLR 2020, section 2.2.
    """

    signed: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not 1 <= bits <= 16:
            raise ValueError(f"UniformQuantizer: bits must be from 1 to 16, got bits={bits}.")
        self.bits = bits
        self.step = nn.Parameter(torch.tensor(float("nan")))
        self.register_buffer("signed", torch.tensor(False))
        self._use_levels()

    def _use_levels(self) -> None:
        if bool(self.signed):
            self.low, self.high = -(2.0 ** (self.bits - 1)), 2.0 ** (self.bits - 1) - 1
        else:
            self.low, self.high = 0.0, 2.0**self.bits - 1

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._use_levels()

    @torch.no_grad()
    def calibrate(self, values: Tensor, method: Method = "mse") -> None:
        """Fit the step to data.

        Parameters
        ----------
        values : Tensor
        method : {"minmax", "mse"}
            The smallest step that clips nothing, or that of 50 shares of it which has the least squared error.

        Raises
        ------
        ValueError
            For no values, or values that are not finite.
        """
        values = values.detach().flatten()
        if values.numel() == 0 or not bool(values.isfinite().all()):
            raise ValueError("UniformQuantizer: calibration data must hold finite values, and at least one.")
        self.signed.fill_(bool(values.min() < 0))
        self._use_levels()
        largest, smallest = values.max(), values.min()
        widest = torch.stack([v / level for v, level in ((largest, self.high), (smallest, self.low)) if level]).max()
        if not widest > 0:  # nothing but zeros: any step keeps them
            widest = values.new_tensor(1.0)
        if method == "minmax":
            self.step.copy_(widest)
            return
        shares = torch.arange(1, 51, device=values.device) / 50
        errors = torch.stack(
            [(fake_quantize(values, widest * s, self.low, self.high) - values).square().mean() for s in shares]
        )
        self.step.copy_(widest * shares[errors.argmin()])

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 / math.sqrt(x.numel() * max(self.high, 1.0))
        fixed = self.step.detach()
        step = (fixed + (self.step - fixed) * scale).abs()  # the value of the step, and its gradient scaled
        return fake_quantize(x, step, self.low, self.high)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, step={self.step.item():.4g}, levels {self.low:.0f} to {self.high:.0f}"
