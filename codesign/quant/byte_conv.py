"""Quantized convolutions on bytes: whole numbers multiplied as such, which processors do several times as fast."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from codesign.quant import compiled
from codesign.quant.integer import doubled
from codesign.quant.layers import QuantConv2d

#: What may follow a convolution: nothing, ReLU, ReLU6.
Activation = Literal["none", "relu", "relu6"]
_POST_OPS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []), "relu": ("relu", []), "relu6": ("hardtanh", [0.0, 6.0])
}  # fmt: skip


class ByteConv:
    r"""A quantized convolution at the bits that it has now, and what of a norm and an activation follows it.

    Parameters
    ----------
    layer : QuantConv2d
        One that `fits`. What is read of it is kept.

    Notes
    -----
    With the levels :math:`i_x`, :math:`i_w` of its operands a convolution is :math:`s_x s_w \sum i_x i_w + b`, and the
    sum is exact. A norm by statistics that are known scales and shifts it by channel. So the result differs from that
    of the layer in float by the rounding of single precision, and by nothing else; behind several layers a value may
    come to lie so close to the middle of two levels that it is rounded to the other one.
    """

    def __init__(self, layer: QuantConv2d) -> None:
        quantizer = layer.input_quantizer
        assert quantizer is not None
        values, step = doubled(layer.weight_quantizer.integers(layer.weight))  # type: ignore[union-attr]
        self.low, self.high = quantizer.low, quantizer.high
        self.input_step = float(quantizer.step_for(layer.weight).detach().abs())
        self.weight_step = step.detach().abs().expand(len(values)).clone()
        self.bias = torch.zeros(len(values)) if layer.bias is None else layer.bias.detach().clone()
        self.geometry = list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups
        self.packed = torch.ops.onednn.qconv_prepack(
            values.to(torch.int8), torch.ones(len(values)), 1.0, int(-self.low), *self.geometry, None
        )
        self._no_offsets = torch.zeros(len(values), dtype=torch.int64)

    @staticmethod
    def fits(layer: QuantConv2d) -> bool:
        """Whether a convolution can run on bytes here: its bits, its padding, its place, and `bytes_are_exact`."""
        weights, inputs = layer.weight_quantizer, layer.input_quantizer
        if (
            weights is None
            or inputs is None
            or max(layer.weight_bits or 32, layer.input_bits or 32) > 8
            or layer.weight.device.type != "cpu"
            or layer.weight.dtype != torch.float32
            or isinstance(layer.padding, str)
            or layer.padding_mode != "zeros"
            or not inputs.rounds_input
            or inputs.offset
            or inputs.step_for(layer.weight).numel() != 1
        ):
            return False
        values, _ = doubled(weights.integers(layer.weight))
        return int(values.min()) >= -128 and int(values.max()) <= 127 and bytes_are_exact()

    def __call__(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, activation: Activation = "none"
    ) -> Tensor | None:
        """``activation(scale * convolution + shift)`` in float32; None where an input is not finite.

        Parameters
        ----------
        x : Tensor, shape (n, in_channels, height, width)
            In float32, not yet quantized.
        scale, shift : Tensor, shape (out_channels,), optional
        activation : {"none", "relu", "relu6"}
        """
        x = x.contiguous(memory_format=torch.channels_last)
        levels = compiled.levels(x, self.input_step, self.low, self.high)
        if levels is None:
            return None
        step, bias = self.weight_step, self.bias
        if scale is not None:
            step, bias = step * scale, bias * scale
        if shift is not None:
            bias = bias + shift
        name, numbers = _POST_OPS[activation]
        found: Tensor = torch.ops.onednn.qconv2d_pointwise(
            levels, self.input_step, int(-self.low), self.packed, step, self._no_offsets, bias, *self.geometry, 1.0, 0,
            torch.float32, name, numbers, "",
        )  # fmt: skip
        return found


@lru_cache(maxsize=1)
@torch.no_grad()
def bytes_are_exact() -> bool:
    """Whether torch multiplies bytes here, and sums the products without loss.

    Processors without instructions for it add pairs of products in 16 bits, where the largest ones overflow; and the
    operators are no public ones, so another torch may have others.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        for low, channels, groups in ((0, 64, 1), (-128, 16, 1), (0, 32, 32)):
            layer = QuantConv2d(channels, 24 if groups == 1 else channels, 3, padding=1, groups=groups)
            layer.add_quantizers((8,), "fixed", "fixed")
            layer.weight_bits = layer.input_bits = 8
            weight = torch.randint(-128, 128, layer.weight.shape, generator=generator).float()
            weight[0] = 127.0  # the largest sums
            inputs = torch.randint(low, low + 256, (3, channels, 5, 5), generator=generator).float()
            inputs[0] = low + 255.0
            layer.weight.data.copy_(weight)
            for quantizer, values in ((layer.weight_quantizer, weight), (layer.input_quantizer, inputs)):
                assert quantizer is not None
                quantizer.calibrate(values, "minmax")
                quantizer.use_step(torch.tensor(1.0))
            sums = functional.conv2d(inputs.double(), weight.double(), layer.bias.double(), padding=1, groups=groups)  # type: ignore[union-attr]
            scale = torch.randn(len(weight), generator=generator) * 9 / float(sums.abs().max())  # negative ones too
            clipped = (sums * scale.double()[:, None, None]).clamp(0, 6)
            convolution = ByteConv(layer)
            found = convolution(inputs) / sums.abs().max(), convolution(inputs, scale, activation="relu6")  # type: ignore[operator]
            for one, expected in zip(found, (sums / sums.abs().max(), clipped), strict=True):
                if (one - expected).abs().max() > 1e-5:
                    return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True
