"""Quantize a network: exchange its layers, calibrate their steps, switch their bits."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from codesign.quant.layers import QUANTIZED, QuantizedLayer, quantized_layer
from codesign.quant.quantizers import Make, Method, Quantizer

logger = logging.getLogger(__name__)

#: Bits of both operands, or (weight bits, input bits); one for all layers, or one for each by its name.
LayerBits = int | tuple[int, int] | None
Bits = LayerBits | Mapping[str, LayerBits]


def quantize(
    module: nn.Module,
    bits: Bits,
    bitwidths: Iterable[int] = (),
    quantizer: str | Make = "uniform",
    weight_quantizer: str | Make | None = None,
    input_quantizer: str | Make | None = None,
    per_channel: bool = False,
) -> nn.Module:
    """A copy of a network with its convolutions and linear layers quantized.

    Parameters
    ----------
    module : nn.Module
    bits : int, (int, int) or mapping
        What the layers run at: bits of weights and inputs for all, or by layer name; layers that a mapping does not
        name, and those mapped to None, stay in float. 1 to 16; 32 bits are float too.
    bitwidths : iterable of int
        Further bitwidths that `set_bits` may switch to: all layers, or those that the mapping names, with None too.
    quantizer : str or callable
        A name in `QUANTIZERS`, or what makes a `Quantizer` of bits and channels (an int, or None for one step for the
        whole tensor).
    weight_quantizer, input_quantizer : str or callable, optional
        In its place, for weights or inputs alone.
    per_channel : bool
        A step for each output channel of a weight; inputs have one for the whole tensor.

    Returns
    -------
    nn.Module
        To be calibrated (`calibrate`) before it is used.

    Raises
    ------
    ValueError
        For a layer that is not there or cannot be quantized, an unknown quantizer, or bits out of range.

    Notes
    -----
    Other modules that have weights, such as transposed convolutions and attention, stay in float: a warning in the log
    names them.
    """
    module = copy.deepcopy(module)
    names = [name for name, layer in module.named_modules() if type(layer) in QUANTIZED]
    pairs = _pairs(bits, names)
    kinds = (weight_quantizer or quantizer, input_quantizer or quantizer)
    exchanged, widths = {}, set(bitwidths)
    switched = names if not isinstance(bits, Mapping) else [name for name in names if name in bits]
    for name in switched if widths else [name for name in names if pairs[name]]:
        layer = module.get_submodule(name)
        exchanged[id(layer)] = quantized_layer(layer, {*widths, *(pairs[name] or ())}, *kinds, per_channel)
    for parent in list(module.modules()):  # a layer that is used in several places stays one
        for key, child in parent._modules.items():
            parent._modules[key] = exchanged.get(id(child), child)
    module = exchanged.get(id(module), module)
    set_bits(module, {name: pairs[name] for name, _ in quantized_layers(module)})
    left = [f"{name or 'the network'} ({type(layer).__name__})" for name, layer in _not_exchangeable(module)]
    if left:
        logger.warning("quantize: only Conv2d and Linear are quantized, so these stay in float: %s.", ", ".join(left))
    return module


def _not_exchangeable(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of other kinds that have weights of two or more dimensions, norms aside, with their names."""
    for name, layer in module.named_modules():
        if type(layer) not in QUANTIZED and not isinstance(layer, (QuantizedLayer, Quantizer, *_NORMS_OF_ANY_KIND)):
            for parameter_name, parameter in layer.named_parameters(recurse=False):
                is_weight = parameter.dim() > 1 and "weight" in parameter_name
                if is_weight or sum(size > 1 for size in parameter.shape) > 1:  # scales and tokens have one such size
                    yield name, layer
                    break


def quantized_layers(module: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """The quantized layers of a network with their names."""
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLayer):
            yield name, layer


def set_bits(module: nn.Module, bits: Bits) -> None:
    """Switch a quantized network to other bits; layers that a mapping does not name run in float.

    Raises
    ------
    ValueError
        For a layer that is not there, or a bitwidth that the layer has no quantizer for.
    """
    layers = dict(quantized_layers(module))
    pairs = _pairs(bits, list(layers))
    for name, layer in layers.items():
        for width in pairs[name] or ():
            if str(width) not in layer.weight_quantizers:
                raise ValueError(
                    f"set_bits: layer {name!r} must have a quantizer for each bitwidth given, got {width}; it has "
                    f"{', '.join(layer.weight_quantizers)}. Name it in quantize(bitwidths=...)."
                )
        layer.weight_bits, layer.input_bits = pairs[name] or (None, None)


def _pairs(bits: Bits, names: list[str]) -> dict[str, tuple[int, int] | None]:
    """(weight bits, input bits) for each layer."""
    if isinstance(bits, Mapping):
        unknown = sorted(set(bits) - set(names))
        if unknown:
            raise ValueError(
                f"quantize: bits must name convolutions or linear layers, got {', '.join(unknown)}; the layers are "
                f"{', '.join(names)}."
            )
        each = {name: bits.get(name) for name in names}
    else:
        each = dict.fromkeys(names, bits)
    return {name: (value, value) if isinstance(value, int) else value for name, value in each.items()}


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode for a while."""
    before = [(layer, layer.training) for layer in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for layer, was in before:
            layer.training = was


@contextmanager
def in_float(module: nn.Module) -> Iterator[None]:
    """All layers in float for a while."""
    before = [(layer, layer.weight_bits, layer.input_bits) for _, layer in quantized_layers(module)]
    for layer, _, _ in before:
        layer.weight_bits = layer.input_bits = None
    try:
        yield
    finally:
        for layer, weight_bits, input_bits in before:
            layer.weight_bits, layer.input_bits = weight_bits, input_bits


@torch.no_grad()
def calibrate(module: nn.Module, images: Tensor, method: Method | None = None, most_values: int = 10_000) -> None:
    """Fit every step of a quantized network, for every bitwidth it may run at.

    Parameters
    ----------
    module : nn.Module
        From `quantize`. Its inputs are seen in float, so the steps do not depend on the bits it runs at now.
    images : Tensor
        One batch. It must not be of the test set.
    method : {"minmax", "percentile", "mse", "lsq"}, optional
        Each quantizer's own where none is given: "lsq" for `LSQ`, "mse" for the others.
    most_values : int
        Input values that a step is fitted to, evenly taken; weights are taken whole.

    Raises
    ------
    ValueError
        For a layer that the images do not reach or that sees values that are not finite, or an unknown method.
    """
    layers = dict(quantized_layers(module))
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].flatten()))
        for name, layer in layers.items()
    ]
    try:
        with in_float(module), mode(module, training=False):
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    unseen = [name for name in layers if name not in seen]
    if unseen:
        raise ValueError(
            f"calibrate: every quantized layer must run on the images, but {', '.join(unseen)} did not; leave it in "
            "float: quantize with bits by layer name."
        )
    for name, layer in layers.items():
        values = seen[name][:: max(1, seen[name].numel() // most_values)]
        try:
            for quantizer in layer.input_quantizers.values():
                quantizer.calibrate(values, method)
            for quantizer in layer.weight_quantizers.values():
                quantizer.calibrate(layer.weight, method)
        except ValueError as error:
            raise ValueError(f"calibrate: layer {name!r}: {error}") from error


#: Their weights are no operands of a product.
_NORMS_OF_ANY_KIND = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
