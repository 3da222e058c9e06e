"""Quantize a network: exchange its layers, calibrate their steps, switch their bits, renew its batch statistics."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


@torch.no_grad()
def recalibrate_batchnorm(module: nn.Module, images: Tensor, batch_size: int = 0) -> None:
    """Replace the running statistics of every norm by those of the network as it is now.

    Parameters
    ----------
    module : nn.Module
        Norms with statistics are BatchNorm, on one process or several, and InstanceNorm that tracks them; others, such
        as LayerNorm, have none. A norm that does not run keeps its own.
    images : Tensor
        Not of the test set.
    batch_size : int
        0: all images at once. The statistics are the plain average over the batches.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _NORMS) and norm.running_mean is not None]
    before = [
        (norm.momentum, {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}) for norm in norms
    ]
    batches = images.split(batch_size or len(images))
    hooks = [norm.register_forward_pre_hook(_average) for norm in norms if not isinstance(norm, _BATCH_NORM)]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # BatchNorm's word for a cumulative average
        with mode(module, training=True):
            for batch in batches:
                module(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (momentum, buffers) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not norm.num_batches_tracked:
                for name, buffer in buffers.items():
                    getattr(norm, name).copy_(buffer)


@torch.no_grad()
def unfold_batchnorm(module: nn.Module, images: Tensor, batch_size: int = 64) -> tuple[str, ...]:
    r"""Take BatchNorm that was folded into the layers before it out of them again, so that it can be renewed.

    A norm that was folded is left as the identity: means of 0, variances of one value. Renewing its statistics, or
    training with those of batches, would undo what was folded. Here it is given the statistics of images, and factors
    with which the function of the network stays as it is:

    .. math:: \gamma' = a \sqrt{v + \epsilon}, \quad \beta' = b + a m, \quad \text{where the norm was} \quad
              x \mapsto a x + b

    and :math:`m`, :math:`v` are mean and variance of its inputs. Where networks come with their norms folded, what
    renewed statistics mend of the errors of few bits is lost without it.

    Parameters
    ----------
    module : nn.Module
        In float. Norms that have statistics of their own are left alone, and those that have no factors, or do not run.
    images : Tensor
        Not of the test set.
    batch_size : int
        Images that run together.

    Returns
    -------
    tuple of str
        The norms that were taken out.
    """
    folded: dict[str, Any] = {name: norm for name, norm in module.named_modules() if _is_folded(norm)}
    sums: dict[str, list[Tensor]] = {name: [] for name in folded}

    def measure(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found = torch.var_mean(args[0], [0, *range(2, args[0].dim())], correction=0)
            variance, mean = (value.double() for value in found)
            count = args[0].numel() / args[0].shape[1]
            sums[name].append(count * torch.stack([torch.ones_like(mean), mean, variance + mean**2]))

        return hook

    hooks = [norm.register_forward_pre_hook(measure(name)) for name, norm in folded.items()]
    try:
        with mode(module, training=False):
            for batch in images.split(batch_size) if folded else ():
                module(batch)
    finally:
        for handle in hooks:
            handle.remove()
    ran = tuple(name for name in folded if sums[name])
    for name in ran:
        norm = folded[name]
        count, mean, square = torch.stack(sums[name]).sum(dim=0)
        mean, variance = mean / count, (square / count - (mean / count) ** 2).clamp_min(0)
        a = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        norm.bias += a * (mean - norm.running_mean)
        norm.weight.copy_(a * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    return ran


def _is_folded(norm: nn.Module) -> bool:
    """Whether a module is a BatchNorm whose statistics say nothing."""
    if not isinstance(norm, _BATCH_NORM) or norm.running_mean is None or not norm.affine:
        return False
    return bool((norm.running_mean == 0).all() and (norm.running_var == norm.running_var[0]).all())


#: Their weights are no operands of a product.
_NORMS_OF_ANY_KIND = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_NORMS, _BATCH_NORM = nn.modules.batchnorm._NormBase, nn.modules.batchnorm._BatchNorm


def _average(norm: nn.Module, _: object) -> None:
    """The momentum that averages this batch with those before; InstanceNorm does not count them itself."""
    norm.num_batches_tracked += 1
    norm.momentum = 1.0 / int(norm.num_batches_tracked)
