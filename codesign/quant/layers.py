"""Convolution and linear layers whose weights and inputs are quantized, at a bitwidth that can be switched."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional

from codesign.quant.quantizers import Make, Quantizer, make_quantizer


class QuantizedLayer(nn.Module):
    """What `QuantConv2d` and `QuantLinear` share.

    A layer keeps one quantizer for its weight and one for its input for each bitwidth that it may run at, so no step
    is shared between bitwidths.

    Attributes
    ----------
    weight_bits, input_bits : int or None
        The bitwidths it runs at now; None is float, and so is 32, which a workload prices as such.
    weight_quantizers, input_quantizers : nn.ModuleDict
        By bitwidth.
    """

    weight: Tensor
    weight_quantizers: nn.ModuleDict
    input_quantizers: nn.ModuleDict
    weight_bits: int | None
    input_bits: int | None

    def add_quantizers(
        self, bitwidths: Iterable[int], weight: str | Make = "uniform", input: str | Make = "uniform",
        per_channel: bool = False,
    ) -> None:  # fmt: skip
        """One weight and one input quantizer for each bitwidth, to be calibrated.

        Parameters
        ----------
        bitwidths : iterable of int
        weight, input : str or callable
            As in `codesign.quant.quantize`.
        per_channel : bool
            One step for each output channel of the weight.
        """
        bitwidths, channels = sorted(set(bitwidths)), len(self.weight) if per_channel else None
        self.weight_quantizers = nn.ModuleDict(
            {str(b): make_quantizer(weight, "weight", b, channels) for b in bitwidths}
        )
        self.input_quantizers = nn.ModuleDict({str(b): make_quantizer(input, "input", b) for b in bitwidths})
        self.weight_bits = self.input_bits = None

    @property
    def weight_quantizer(self) -> Quantizer | None:
        """That of the weight at the bitwidth it runs at; None for float."""
        return None if self.weight_bits is None else self.weight_quantizers[str(self.weight_bits)]

    @property
    def input_quantizer(self) -> Quantizer | None:
        """That of the input at the bitwidth it runs at; None for float."""
        return None if self.input_bits is None else self.input_quantizers[str(self.input_bits)]

    def quantized_weight(self) -> Tensor:
        """The weight as the layer uses it."""
        quantizer = self.weight_quantizer
        return self.weight if quantizer is None else quantizer(self.weight)

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input as the layer uses it."""
        quantizer = self.input_quantizer
        return x if quantizer is None else quantizer(x)


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


def quantized_layer(
    layer: nn.Conv2d | nn.Linear, bitwidths: Iterable[int], weight: str | Make = "uniform",
    input: str | Make = "uniform", per_channel: bool = False,
) -> QuantizedLayer:  # fmt: skip
    """The quantized form of a layer; it shares the parameters. Quantizers as in `QuantizedLayer.add_quantizers`."""
    new = QUANTIZED[type(layer)].__new__(QUANTIZED[type(layer)])
    nn.Module.__init__(new)
    new.__dict__.update(layer.__dict__)
    new._modules = {}
    new.add_quantizers(bitwidths, weight, input, per_channel)
    return new
