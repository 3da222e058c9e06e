"""Quantize a network: exchange its layers, calibrate their steps, switch their bits, renew its batch statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from codesign.quant.layers import QUANTIZED, QuantizedLayer, quantized_layer
from codesign.quant.quantizers import Method

#: Bits of both operands, or (weight bits, input bits); one for all layers, or one for each by its name.
LayerBits = int | tuple[int, int] | None
Bits = LayerBits | Mapping[str, LayerBits]


def quantize(module: nn.Module, bits: Bits, bitwidths: Iterable[int] = ()) -> nn.Module:
    """A copy of a network with its convolutions and linear layers quantized.

    Parameters
    ----------
    module : nn.Module
    bits : int, (int, int) or mapping
        What the layers run at: bits of weights and inputs for all, or by layer name; layers that a mapping does not
        name, and those mapped to None, stay in float.
    bitwidths : iterable of int
        Further bitwidths that `set_bits` may switch to.

    Returns
    -------
    nn.Module
        To be calibrated (`calibrate`) before it is used.

    Raises
    ------
    ValueError
        For a layer that is not there or cannot be quantized.
    """
    module = copy.deepcopy(module)
    names = [name for name, layer in module.named_modules() if type(layer) in QUANTIZED]
    pairs = _pairs(bits, names)
    widths = {*bitwidths, *(width for pair in pairs.values() if pair for width in pair)}
    for name in names if bitwidths else [name for name in names if pairs[name]]:
        parent = module.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], quantized_layer(module.get_submodule(name), widths))
    set_bits(module, {name: pairs[name] for name, _ in quantized_layers(module)})
    return module


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


@torch.no_grad()
def calibrate(module: nn.Module, images: Tensor, method: Method = "mse", most_values: int = 10_000) -> None:
    """Fit every step of a quantized network, for every bitwidth it may run at.

    Parameters
    ----------
    module : nn.Module
        From `quantize`. Its inputs are seen in float, so the steps do not depend on the bits it runs at now.
    images : Tensor
        One batch. It must not be of the test set.
    method : {"minmax", "mse"}
    most_values : int
        Input values that a step is fitted to, evenly taken; weights are taken whole.
    """
    layers = dict(quantized_layers(module))
    bits = {name: (layer.weight_bits, layer.input_bits) for name, layer in layers.items()}
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].flatten()))
        for name, layer in layers.items()
    ]
    try:
        for layer in layers.values():
            layer.weight_bits = layer.input_bits = None
        with mode(module, training=False):
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.weight_bits, layer.input_bits = bits[name]
    for name, layer in layers.items():
        values = seen[name][:: max(1, seen[name].numel() // most_values)]
        for quantizer in layer.input_quantizers.values():
            quantizer.calibrate(values, method)
        for quantizer in layer.weight_quantizers.values():
            quantizer.calibrate(layer.weight, method)


@torch.no_grad()
def recalibrate_batchnorm(module: nn.Module, images: Tensor, batch_size: int = 0) -> None:
    """Replace the running statistics of every BatchNorm by those of the network as it is now.

    Parameters
    ----------
    module : nn.Module
    images : Tensor
        Not of the test set.
    batch_size : int
        0: all images at once. The statistics are the plain average over the batches.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        with mode(module, training=True):
            for batch in images.split(batch_size or len(images)):
                module(batch)
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
