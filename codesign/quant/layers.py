"""Convolution and linear layers whose weights and inputs are quantized, at a bitwidth that can be switched."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional

from codesign.quant.quantizers import UniformQuantizer


class QuantizedLayer(nn.Module):
    """What `QuantConv2d` and `QuantLinear` share.

    A layer keeps one quantizer for its weight and one for its input for each bitwidth that it may run at, so no step
    is shared between bitwidths.

    Attributes
    ----------
    weight_bits, input_bits : int or None
        The bitwidths it runs at now; None is float.
    weight_quantizers, input_quantizers : nn.ModuleDict
        By bitwidth.
    """

    weight: Tensor
    weight_quantizers: nn.ModuleDict
    input_quantizers: nn.ModuleDict
    weight_bits: int | None
    input_bits: int | None

    def add_quantizers(self, bitwidths: Iterable[int]) -> None:
        """One weight and one input quantizer for each bitwidth, to be calibrated."""
        bitwidths = sorted(set(bitwidths))
        self.weight_quantizers = nn.ModuleDict({str(bits): UniformQuantizer(bits) for bits in bitwidths})
        self.input_quantizers = nn.ModuleDict({str(bits): UniformQuantizer(bits) for bits in bitwidths})
        self.weight_bits = self.input_bits = None

    def quantized_weight(self) -> Tensor:
        """The weight as the layer uses it."""
        return self.weight if self.weight_bits is None else self.weight_quantizers[str(self.weight_bits)](self.weight)

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input as the layer uses it."""
        return x if self.input_bits is None else self.input_quantizers[str(self.input_bits)](x)


class QuantConv2d(QuantizedLayer, nn.Conv2d):
    """A convolution with quantized weights and inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.quantized_input(x), self.quantized_weight(), self.bias)


class QuantLinear(QuantizedLayer, nn.Linear):
    """A linear layer with quantized weights and inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.quantized_input(x), self.quantized_weight(), self.bias)


#: The quantized form of each float layer.
QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}


def quantized_layer(layer: nn.Conv2d | nn.Linear, bitwidths: Iterable[int]) -> QuantizedLayer:
    """The quantized form of a layer; it shares the parameters."""
    new = QUANTIZED[type(layer)].__new__(QUANTIZED[type(layer)])
    nn.Module.__init__(new)
    new.__dict__.update(layer.__dict__)
    new._modules = {}
    new.add_quantizers(bitwidths)
    return new
