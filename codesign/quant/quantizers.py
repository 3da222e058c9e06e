"""Uniform fake quantization: values rounded to a grid of 2^bits levels, and gradients through the rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from codesign.quant.fake_quantization import Levels, fake_quantize, mix_quantized, step_gradient_scale

Method = Literal["minmax", "mse"]


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
        scale = step_gradient_scale(x, self.step, self.high)
        return fake_quantize(x, self.step, self.low, self.high, gradient_scale=scale)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, step={self.step.item():.4g}, levels {self.low:.0f} to {self.high:.0f}"


def mixed_quantize(x: Tensor, quantizers: Sequence[UniformQuantizer], mixture: Tensor) -> Tensor:
    """The sum over quantizers of ``mixture[b] * quantizers[b](x)``, computed in one pass and keeping only ``x``.

    Parameters
    ----------
    x : Tensor
    quantizers : sequence of UniformQuantizer
    mixture : Tensor, shape (n_quantizers,)

    Notes
    -----
    Gradients are those of the sum: of ``x``, of the mixture, and of each step, scaled as in the quantizer alone.
    """
    return mix_quantized(
        x,
        [q.step for q in quantizers],
        [Levels(q.low, q.high) for q in quantizers],
        mixture,
        [step_gradient_scale(x, q.step, q.high) for q in quantizers],
    )
