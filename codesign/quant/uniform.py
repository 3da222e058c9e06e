"""Quantizers whose step is fitted to data, then learned or kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from codesign.quant.calibration import Method
from codesign.quant.fake_quantization import mix_quantized, step_gradient_scale
from codesign.quant.quantizer import Quantizer


class UniformQuantizer(Quantizer):
    r"""Uniform quantizer whose step is fitted to data by `calibrate`, and learned when it is trained.

    Parameters and errors as of `Quantizer`.

    Attributes
    ----------
    step : Parameter, shape () or (channels,)
        nan until `calibrate` was called. Its magnitude is what counts, so training cannot make it negative.

    Notes
    -----
    :math:`y = s \cdot \mathrm{clip}(\mathrm{round}(x / s), l, h)`; `fake_quantize` has the gradients. That of the step
    is scaled by :math:`1 / \sqrt{n h}` with the number :math:`n` of values that share it and the last level :math:`h`,
    which keeps its changes in proportion to those of the weights.

    References
    ----------
    Esser et al., "Learned step size quantization", ICLR 2020, section 2.2.
    """

    def __init__(self, bits: int, channels: int | None = None) -> None:
        super().__init__(bits, channels)
        self.step = nn.Parameter(torch.full((channels,) if channels else (), float("nan")))

    def use_step(self, step: Tensor) -> None:
        self.step.copy_(step)

    def gradient_scale(self, x: Tensor) -> float:
        return step_gradient_scale(x, self.step, self.high)


class FixedQuantizer(UniformQuantizer):
    """A `UniformQuantizer` that keeps the step that it was calibrated to."""

    def __init__(self, bits: int, channels: int | None = None) -> None:
        super().__init__(bits, channels)
        self.step.requires_grad_(False)


class LSQ(UniformQuantizer):
    r"""Learned step size quantization as published: a `UniformQuantizer` that starts at its paper's step.

    Notes
    -----
    The step starts at :math:`2 \langle |v| \rangle / \sqrt{Q_P}`, for activations those of the calibration data (the
    paper: the first batch). :math:`n` in the gradient's scale counts all values of the tensor, for activations those
    of the whole batch (the paper: the features of a layer). The paper has no rule for a step that training makes
    negative; here its magnitude counts.

    References
    ----------
    Esser et al., "Learned step size quantization", ICLR 2020, sections 2.1 and 2.2.
    """

    method: ClassVar[Method] = "lsq"


def mixed_quantize(x: Tensor, quantizers: Sequence[Quantizer], mixture: Tensor) -> Tensor:
    """The sum over quantizers of ``mixture[b] * quantizers[b](x)``.

    Parameters
    ----------
    x : Tensor
    quantizers : sequence of Quantizer
    mixture : Tensor, shape (n_quantizers,)

    Raises
    ------
    ValueError
        For a mixture of another length, or a quantizer that is not calibrated.

    Notes
    -----
    Gradients are those of the sum: of ``x``, of the mixture, and of each step, scaled as in the quantizer alone. Where
    all quantizers round ``x`` itself, it is one pass that keeps nothing but ``x``, whatever their number.
    """
    if mixture.shape != (len(quantizers),) or not quantizers:
        raise ValueError(
            f"mixed_quantize: mixture must have one number for each of {len(quantizers)} quantizers, at least one, "
            f"got shape {tuple(mixture.shape)}."
        )
    if not all(quantizer.rounds_input for quantizer in quantizers):
        return sum((m * q(x) for m, q in zip(mixture, quantizers, strict=True)), torch.zeros_like(x))
    for quantizer in quantizers:
        quantizer.require_calibrated(x)
    return mix_quantized(
        x,
        [q.step_for(x) for q in quantizers],
        [q.levels for q in quantizers],
        mixture,
        [q.gradient_scale(x) for q in quantizers],
    )
