"""A quantized network run as hardware runs it: integer weights, integer inputs, wide accumulators, rescaling."""

from __future__ import annotations

import copy
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from codesign.quant.convert import quantized_layers
from codesign.quant.layers import QuantConv2d, QuantizedLayer, QuantLinear
from codesign.quant.quantizers import FLOAT_BITS, Integers

Arithmetic = Literal["int64", "float64"]

#: Integer types that weights are kept in, the first that is wide enough.
_TYPES = (torch.int8, torch.int16, torch.int32)
#: Whole numbers below this are exact in float64, in any order of summation.
_EXACT = 2.0**53


def to_integers(module: nn.Module, arithmetic: Arithmetic = "int64", keep_float: bool = False) -> nn.Module:
    r"""A copy of a quantized network whose quantized layers compute on integers.

    Parameters
    ----------
    module : nn.Module
        Quantized and calibrated; it is run in evaluation mode.
    arithmetic : {"int64", "float64"}
        What multiplies and sums. Units for float64 give the same integers, since sums that could reach
        :math:`2^{53}` are refused; they are faster, and there are none for int64 on most accelerators.
    keep_float : bool
        Leave quantized layers that run in float as they are instead of refusing them.

    Returns
    -------
    nn.Module
        Its convolutions and linear layers are `IntegerConv2d` and `IntegerLinear`, at the bits that ``module`` runs at
        now. What is between them (norms, activations, additions) stays in float.

    Raises
    ------
    ValueError
        For a network without quantized layers, a layer that runs in float, is not calibrated or whose sums do not
        fit, or an unknown arithmetic.

    Notes
    -----
    With :math:`x = s_x i_x` and :math:`w = s_w i_w`, :math:`\sum x w + b = s_x s_w \sum i_x i_w + b`: the sum is exact,
    and one multiplication by :math:`s_x s_w` (one for each output channel where weights have a step each) rescales it.
    A fake-quantized layer rounds each term of its sum to single precision, so on the same input both agree to about
    :math:`10^{-6}` of the largest sum. Over several layers a value may come to lie so close to the middle of two levels
    that it is rounded to the other one.
    """
    if arithmetic not in get_args(Arithmetic):
        raise ValueError(
            f"to_integers: arithmetic must be one of {', '.join(get_args(Arithmetic))}, got {arithmetic!r}."
        )
    module = copy.deepcopy(module).eval()
    layers = list(quantized_layers(module))
    if not layers:
        raise ValueError("to_integers: the network must have quantized layers, got none; quantize and calibrate it.")
    for name, layer in layers:
        in_float = [
            f"{operand} at {bits or FLOAT_BITS} bits"
            for operand, bits in (("weight", layer.weight_bits), ("input", layer.input_bits))
            if bits in (None, FLOAT_BITS)
        ]
        if in_float and not keep_float:
            raise ValueError(
                f"to_integers: layer {name!r} must have integer operands, got its {' and its '.join(in_float)}: "
                "floating point; give it fewer bits, or leave such layers in float with keep_float=True."
            )
        if not in_float:
            try:
                _make_integer(layer, arithmetic)
            except ValueError as error:
                raise ValueError(f"to_integers: layer {name!r}: {error}") from error
    return module


class IntegerLayer(QuantizedLayer):
    """What `IntegerConv2d` and `IntegerLinear` share; made by `to_integers`.

    Attributes
    ----------
    integer_weight : Tensor of int8, int16 or int32
    weight_step : Tensor, shape () or (out_channels,)
        The weight is ``weight_step * integer_weight``.
    arithmetic : {"int64", "float64"}
    """

    integer_weight: Tensor
    weight_step: Tensor
    bias: Tensor | None
    arithmetic: Arithmetic

    def accumulate(self, x: Tensor, weight: Tensor) -> Tensor:
        """The sums of products, channels along axis 1 of a map and the last axis otherwise."""
        raise NotImplementedError

    def quantized_weight(self) -> Tensor:
        """The weight that the integers stand for."""
        step = self.weight_step
        return self.integer_weight * (step.view(-1, *(1,) * (self.integer_weight.dim() - 1)) if step.dim() else step)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        values, step = doubled(self.input_quantizer.integers(x))
        dtype = torch.int64 if self.arithmetic == "int64" else torch.float64
        sums = self.accumulate(values.to(dtype), self.integer_weight.to(dtype))
        y = sums.to(torch.float64) * self._by_channel(step.double() * self.weight_step.double())
        return (y if self.bias is None else y + self._by_channel(self.bias.double())).to(x.dtype)

    def _by_channel(self, values: Tensor) -> Tensor:
        return values


class IntegerConv2d(IntegerLayer, QuantConv2d):
    """A convolution of integers."""

    def accumulate(self, x: Tensor, weight: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":  # torch pads in other ways in floating point alone; below 2^53 that is exact
            x = functional.pad(x.double(), self._reversed_padding_repeated_twice, self.padding_mode).to(x.dtype)
            padding = 0
        return functional.conv2d(x, weight, None, self.stride, padding, self.dilation, self.groups)

    def _by_channel(self, values: Tensor) -> Tensor:
        return values.view(-1, 1, 1) if values.dim() else values


class IntegerLinear(IntegerLayer, QuantLinear):
    """A linear layer of integers."""

    def accumulate(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.T


_INTEGER: dict[type[nn.Module], type[IntegerLayer]] = {QuantConv2d: IntegerConv2d, QuantLinear: IntegerLinear}


def doubled(integers: Integers) -> tuple[Tensor, Tensor]:
    """Whole numbers and a step without an offset: half steps are whole numbers of a step half as large."""
    if integers.offset:
        return 2 * integers.values + round(2 * integers.offset), integers.step / 2
    return integers.values, integers.step


def _make_integer(layer: QuantizedLayer, arithmetic: Arithmetic) -> None:
    """Turn a layer into its integer form, in place."""
    if type(layer) not in _INTEGER:
        raise ValueError(f"must be one of {', '.join(kind.__name__ for kind in _INTEGER)}, got {type(layer).__name__}.")
    values, step = doubled(layer.weight_quantizer.integers(layer.weight))
    layer.input_quantizer.require_calibrated(layer.weight)
    if 2.0 ** (layer.input_bits + 1) * float(values.abs().flatten(1).sum(1).max()) >= _EXACT:
        raise ValueError(
            f"its sums must stay below 2^53 to be exact, but can exceed it at {layer.weight_bits} bits of weights and "
            f"{layer.input_bits} of inputs."
        )
    layer.__class__ = _INTEGER[type(layer)]
    new = cast(IntegerLayer, layer)
    del new.weight
    new.weight_quantizers = nn.ModuleDict()
    reach = int(values.abs().max())
    new.register_buffer("integer_weight", values.to(next(t for t in _TYPES if reach <= torch.iinfo(t).max)))
    new.register_buffer("weight_step", step.clone())
    new.arithmetic = arithmetic
