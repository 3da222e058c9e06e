"""Scores of a quantized network at one assignment of bits after another, of which only what changed is computed."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from codesign.accuracy import device_of, pixel_by_pixel, scores_of
from codesign.data import Images
from codesign.network_graph import Chain, NetworkGraph, Step
from codesign.quant.byte_conv import ByteConv
from codesign.quant.convert import mode, quantized_layers, set_bits
from codesign.quant.layers import QuantConv2d, QuantizedLayer
from codesign.quant.norm_statistics import Renewal, match_batchnorm, moments, norm_references, recalibrate_batchnorm

LayerBits = Mapping[str, tuple[int, int]]

#: Images that go through the network together: few enough for a layer's maps to stay near the processor.
CHUNK = 250
#: Bytes of activations that are kept from one assignment to the next.
MOST_BYTES = 2 * 2**30


def scorer(
    network: nn.Module, graph: NetworkGraph | None, images: Tensor, statistics: Tensor | None = None,
    renewal: Renewal = "match",
) -> Callable[[LayerBits], Tensor]:  # fmt: skip
    """From bits by layer to scores: `IncrementalNetwork`, or `WholeNetwork` where there is no graph."""
    if graph is None:
        return WholeNetwork(network, images, statistics, renewal)
    return IncrementalNetwork(network, graph, images, statistics, renewal)


class WholeNetwork:
    """Runs the whole network for each assignment; the slow twin of `IncrementalNetwork`, with its parameters."""

    def __init__(
        self, network: nn.Module, images: Tensor, statistics: Tensor | None = None, renewal: Renewal = "match"
    ) -> None:
        self._network, self._images = copy.deepcopy(network), images
        self._statistics = None if statistics is None else pixel_by_pixel(statistics.to(device_of(network)))
        matched = self._statistics is not None and renewal == "match"
        self._references = norm_references(self._network, self._statistics) if matched else None

    @torch.no_grad()
    def __call__(self, bits: LayerBits) -> Tensor:
        set_bits(self._network, dict(bits))
        if self._references is not None:
            match_batchnorm(self._network, self._statistics, self._references)
        elif self._statistics is not None:
            recalibrate_batchnorm(self._network, self._statistics)
        return scores_of(self._network, Images(self._images, torch.empty(0)))


class IncrementalNetwork:
    """A quantized network that keeps its activations, and computes again only what a change of bits reaches.

    Parameters
    ----------
    network : nn.Module
        Quantized and calibrated for every bitwidth that will be asked for. It is left alone.
    graph : NetworkGraph
        Of this network, or of a copy of it.
    images : Tensor
        What scores are wanted for.
    statistics : Tensor, optional
        Images by which BatchNorm statistics follow the bits, for each assignment, all at once. None: they stay.
    renewal : {"match", "renew"}
        How they do: `codesign.quant.match_batchnorm`, for a network with the statistics that it was trained with, or
        `codesign.quant.recalibrate_batchnorm`.
    most_bytes : int
        Of activations that are kept: the smallest ones first, where not all fit.
    on_bytes : bool
        Run convolutions of at most 8 bits as `ByteConv`, with the norm and the activation behind them, where the
        processor can.

    Notes
    -----
    A value in the graph depends on the bits of the layers before it. Between two assignments only the values behind
    a layer whose bits changed are computed, from the inputs of quantized layers that were kept: little where the last
    layers change, all of the network where the first one does. Quantized weights are kept for each bitwidth. Scores
    are those of `WholeNetwork`, to rounding where convolutions run on bytes, and a function of the assignment alone,
    whatever came before.

    Dropout is off while statistics are renewed.
    """

    def __init__(
        self, network: nn.Module, graph: NetworkGraph, images: Tensor, statistics: Tensor | None = None,
        renewal: Renewal = "match", most_bytes: int = MOST_BYTES, on_bytes: bool = True,
    ) -> None:  # fmt: skip
        self._network, self._graph, self._most_bytes = copy.deepcopy(network).eval(), graph, most_bytes
        place = device_of(network)
        self._modules = dict(self._network.named_modules())
        self._layers = dict(quantized_layers(self._network))
        for module in self._modules.values():
            if getattr(module, "inplace", False):  # it would overwrite what is kept
                module.inplace = False
        if statistics is not None:
            for name in graph.norms.values():
                self._modules[name].momentum = None  # renewed, they are those of the images, and of nothing before
        self._chunks = [pixel_by_pixel(chunk.to(place)) for chunk in images.split(CHUNK)]
        self._statistics = None if statistics is None else pixel_by_pixel(statistics.to(place))
        matched = self._statistics is not None and renewal == "match"
        self._references = norm_references(self._network, self._statistics) if matched else None
        self._bits: dict[str, tuple[int | None, int | None]] = {}
        self._weights: dict[tuple[str, int | None], Tensor] = {}
        self._byte_convs: dict[tuple[str, int | None, int | None], ByteConv | None] = {}
        self._chains = graph.chains(self._network) if on_bytes else {}
        self._sums_into = graph.sums_into()
        self._activated_sums = graph.activated_sums(self._network)
        self._kept_of_chunks: list[dict[int, Any]] = [{} for _ in self._chunks]
        self._kept_of_statistics: dict[int, Any] = {}
        self._keep: frozenset[int] | None = None

    @torch.no_grad()
    def __call__(self, bits: LayerBits) -> Tensor:
        """What the network gives for each image at the bits of each layer; shape (n, classes).

        Raises
        ------
        ValueError
            For a layer that is not there, or a bitwidth that it has no quantizer for.
        """
        set_bits(self._network, dict(bits))
        now = {name: (layer.weight_bits, layer.input_bits) for name, layer in self._layers.items()}
        changed = [name for name, pair in now.items() if self._bits.get(name) != pair]
        dirty = self._graph.behind(changed) if self._bits else set(range(len(self._graph.steps)))
        self._bits = {}  # until all of it is computed, what is kept is of no assignment
        if self._keep is None:
            self._keep = self._affordable()
        if self._statistics is not None:
            norms = [step for step in self._graph.norms if step in dirty]
            self._run(self._statistics, self._kept_of_statistics, dirty, norms, renewing=True)
        last = [len(self._graph.steps) - 1]
        scores = [
            self._run(chunk, kept, dirty, last) for chunk, kept in zip(self._chunks, self._kept_of_chunks, strict=True)
        ]
        self._bits = now
        return torch.cat(scores)

    def _affordable(self) -> frozenset[int]:
        """The inputs of quantized layers that are kept: all, or the smallest ones that fit into the memory."""
        sizes: dict[int, int] = {}
        one, values = self._chunks[0][:1], {}
        for i, step in enumerate(self._graph.steps):
            values[i] = self._value(i, step, values, one)
            for source in step.sources if i in self._graph.quantized else ():
                if isinstance(values[source], Tensor):
                    sizes[source] = values[source].nbytes
        n_images = sum(map(len, self._chunks)) + (0 if self._statistics is None else len(self._statistics))
        kept, total = [], 0
        for i in sorted(sizes, key=lambda i: sizes[i]):
            total += sizes[i] * n_images
            if total > self._most_bytes:
                break
            kept.append(i)
        return frozenset(kept)

    def _run(
        self, images: Tensor, kept: dict[int, Any], dirty: set[int], wanted: Sequence[int],
        renewing: bool = False,
    ) -> Any:  # fmt: skip
        """Compute the wanted steps from what is kept and clean; the value of the last one."""
        for i in [i for i in kept if i in dirty]:
            del kept[i]
        todo = self._graph.needed(wanted, kept)
        last_use = {source: i for i in todo for source in self._graph.steps[i].sources}
        values, chained = dict(kept), set[int]()
        for i in todo:
            step = self._graph.steps[i]
            if i in self._chains and not renewing:
                chain = self._chains[i]
                found = self._chained(chain, values[step.sources[0]])
                if found is not None:
                    values[chain.steps[-1]] = found
                    chained.update(chain.steps)
            if i in self._activated_sums:
                high = 6.0 if self._activated_sums[i] == "relu6" else None
                values[i] = values[step.sources[0]].clamp_(0.0, high)
            elif i in self._sums_into:
                values[i] = _add_into(values[self._sums_into[i]], [values[source] for source in step.sources])
            elif i not in chained:
                values[i] = self._value(i, step, values, images, renewing)
            if i in (self._keep or ()):
                kept[i] = values[i]
            for source in step.sources:
                if last_use[source] == i:
                    values.pop(source, None)
        return values.get(wanted[-1]) if wanted else None

    def _chained(self, chain: Chain, x: Tensor) -> Tensor | None:
        """The value of a chain by a convolution on bytes; None where it cannot be had so."""
        convolution = self._byte_conv(chain.layer)
        if convolution is None:
            return None
        if chain.norm is None:
            return convolution(x, activation=chain.activation)
        norm = self._modules[chain.norm]
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean * scale
        return convolution(x, scale, shift if norm.bias is None else shift + norm.bias, chain.activation)

    def _byte_conv(self, name: str) -> ByteConv | None:
        """A convolution on bytes at the bits it has now; None where it does not fit."""
        layer = self._layers[name]
        key = name, layer.weight_bits, layer.input_bits
        if key not in self._byte_convs:
            fits = isinstance(layer, QuantConv2d) and ByteConv.fits(layer)
            self._byte_convs[key] = ByteConv(layer) if fits else None  # type: ignore[arg-type]
        return self._byte_convs[key]

    def _value(self, i: int, step: Step, values: Mapping[int, Any], images: Tensor, renewing: bool = False) -> Any:
        """What a step gives. With ``renewing`` the statistics of BatchNorm follow its input, and are kept."""
        if step.op == "placeholder":
            return images
        args, kwargs = step.arguments(values)
        if step.op == "output":
            return args[0]
        if step.op == "get_attr":
            return operator.attrgetter(step.target)(self._network)
        if step.op == "call_method":
            return getattr(args[0], step.target)(*args[1:], **kwargs)
        if step.op == "call_function":
            return step.target(*args, **kwargs)
        module = self._modules[step.target]
        if isinstance(module, QuantizedLayer):
            convolution = self._byte_conv(step.target) if self._chains else None
            found = None if convolution is None else convolution(args[0])
            if found is not None:
                return found
            x, weight = module.quantized_input(args[0]), self._weight(step.target, module)
            if isinstance(module, QuantConv2d):
                return module._conv_forward(x, weight, module.bias)
            return functional.linear(x, weight, module.bias)
        if renewing and i in self._graph.norms and self._references is None:
            with mode(module, training=True):
                module.reset_running_stats()
                return module(*args)
        if renewing and i in self._graph.norms:
            self._references[step.target].correct(module, *moments(args[0], module.eps))
        return module(*args, **kwargs)

    def _weight(self, name: str, layer: QuantizedLayer) -> Tensor:
        """The quantized weight of a layer at the bits it has now."""
        key = name, layer.weight_bits
        if key not in self._weights:
            self._weights[key] = layer.quantized_weight()
        return self._weights[key]


def _add_into(place: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """The sum of two values, of which ``place`` is one, over that one where the sum has its shape."""
    first, second = terms * 2 if len(terms) == 1 else terms
    other = second if place is first else first
    return place.add_(other) if place.shape == other.shape and place.dtype == other.dtype else first + second
