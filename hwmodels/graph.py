"""A network recorded operator by operator, as the front ends see it run, into a `Workload`.

Every front end turns its operators into calls of the methods of `Graph`, so the same network gives the same layers
whichever way it comes in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hwmodels.workload import Layer, Op, Operand, Tensor, Workload

T = TypeVar("T")
Pair = tuple[int, int]


class NetworkError(ValueError):
    """A network that cannot be turned into a workload."""


def each(operators: str, value: T) -> dict[str, T]:
    """The same value for each of the operators named: part of a front end's table."""
    return dict.fromkeys(operators.split(), value)


def unknown_operators_text(network: str, places: Mapping[str, Sequence[str]]) -> str:
    """One message for all the operators that a front end does not know, each with where it is used."""
    listed = []
    for operator, where in sorted(places.items()):
        first = list(dict.fromkeys(f"'{place}'" for place in where if place))
        inside = f" (in {', '.join(first[:3])}{' ...' if len(first) > 3 else ''})" if first else ""
        listed.append(f"{operator}{inside}")
    return (
        f"{network} has {len(listed)} operator{'s' if len(listed) > 1 else ''} without a cost: {'; '.join(listed)}. "
        "They must be left out to go on: ignore_unknown=True, or --ignore-unknown."
    )


@dataclass(frozen=True)
class Activation:
    """A value on its way between operators: elements of one or several recorded tensors.

    Parameters
    ----------
    tensors : tuple of int
        The recorded tensors that it is made of, none twice; a concatenation is made of several, since
        concatenating moves data by addressing only.
    shape : tuple of int
        As the network sees it: after views, slicing and concatenation.
    bits : int
        The width at which the network itself quantizes it, or that of its graph.
    layout : int
        Changes whenever elements move. Two activations of the same tensors and layout are functions of the
        same elements at the same places.
    pads : pair of (int, int), optional
        Zeros around rows and columns that the next convolution or pooling takes as its padding.
    """

    tensors: tuple[int, ...]
    shape: tuple[int, ...]
    bits: int
    layout: int = 0
    pads: tuple[Pair, Pair] | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Graph:
    """Collects layers and the tensors between them, in order of execution.

    The methods return the activation that the new layer writes. A name that is taken becomes ``name@2`` and so
    on: a shared module that runs again.

    Parameters
    ----------
    bits : int
        Width of operands that the network does not quantize itself.

    Examples
    --------
    >>> graph = Graph()
    >>> image = graph.input((1, 3, 32, 32))
    >>> conv = graph.conv("conv", image, 16, kernel_size=(3, 3), padding=(1, 1))
    >>> pool = graph.pool("pool", conv, kernel_size=(2, 2), stride=(2, 2))
    >>> graph.workload("tiny").tensors[1].consumers
    (('pool', 'input'),)
    """

    def __init__(self, bits: int = 8) -> None:
        self.bits = bits
        self.layers: list[Layer] = []
        self._tensors: list[tuple[str | None, tuple[int, ...]]] = []
        self._stored_bits: list[int] = []
        self._readers: list[list[tuple[str, Operand]]] = []
        self._names: dict[str, int] = {}
        self._network_inputs: set[int] = set()
        self._layouts = 0

    # --- activations ------------------------------------------------------------------------------------------------

    def input(self, shape: Iterable[int]) -> Activation:
        """An input of the network."""
        activation = self.constant(shape)
        self._network_inputs.update(activation.tensors)
        return activation

    def constant(self, shape: Iterable[int]) -> Activation:
        """Data that no layer writes and that is not the network's input either, such as a looked-up embedding."""
        return self._tensor(None, tuple(shape))

    def moved(self, activations: Iterable[Activation], shape: Iterable[int]) -> Activation:
        """The same elements at other places: a view, a slice, a concatenation, a permutation."""
        sources = tuple(activations)
        self._layouts += 1
        tensors = tuple(dict.fromkeys(tensor for source in sources for tensor in source.tensors))
        bits = max((source.bits for source in sources), default=self.bits)
        return Activation(tensors, tuple(shape), bits, self._layouts)

    def padded(self, x: Activation, pads: tuple[Pair, Pair], shape: Iterable[int]) -> Activation:
        """Zeros around rows and columns."""
        if x.pads is not None:
            pads = (_sum(x.pads[0], pads[0]), _sum(x.pads[1], pads[1]))
        return dataclasses.replace(self.moved([x], shape), pads=pads)

    def quantized(self, x: Activation, bits: int) -> Activation:
        """The same activation at the width at which the network stores it."""
        for tensor in x.tensors:
            self._stored_bits[tensor] = bits
        return dataclasses.replace(x, bits=bits)

    # --- layers that multiply ---------------------------------------------------------------------------------------

    def conv(
        self,
        name: str,
        x: Activation,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int | Pair] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        weight: Activation | None = None,
        weight_bits: int | None = None,
    ) -> Activation:
        """A convolution over one or two axes; over one it is a map of height 1."""
        batch, channels, in_size, pads = _padded_image(x, padding)
        layer = Layer(
            name, channels, out_channels, in_size, _pair(kernel_size), _pair(stride), pads, _pair(dilation), groups,
            batch, weight.bits if weight else weight_bits or self.bits, x.bits,
            reads_network_input=self._reads_network_input(x),
        )  # fmt: skip
        return self.add(layer, x, weight)

    def transposed_conv(
        self,
        name: str,
        x: Activation,
        out_channels: int,
        kernel_size: Sequence[int],
        shape: Sequence[int],
        groups: int = 1,
        weight_bits: int | None = None,
    ) -> Activation:
        """A transposed convolution, as the 1x1 convolution that computes all its products.

        Its MACs and weights are exact. Its output is exact where the stride equals the kernel; where windows
        overlap, the layer writes the products that are still to be summed.
        """
        batch, channels, in_size = _image(x.shape)
        products = out_channels * math.prod(kernel_size)
        layer = Layer(
            name, channels, products, in_size, groups=groups, batch=batch, weight_bits=weight_bits or self.bits,
            input_bits=x.bits, reads_network_input=self._reads_network_input(x),
        )  # fmt: skip
        return self.add(layer, x, shape=shape)

    def linear(
        self,
        name: str,
        x: Activation,
        in_features: int,
        out_features: int,
        rows: int,
        count: int = 1,
        weight_bits: int | None = None,
    ) -> Activation:
        """A product with ``count`` matrices of weights, each over ``rows`` rows."""
        return self.add(
            Layer(name, in_features * count, out_features * count, groups=count, batch=rows, op="linear",
                  weight_bits=weight_bits or self.bits, input_bits=x.bits),
            x,
        )  # fmt: skip

    def matmul(self, name: str, a: Activation, b: Activation, m: int, k: int, n: int, count: int = 1) -> Activation:
        """``count`` products of two activations, (m, k) and (k, n)."""
        return self.add(Layer.matmul(name, m, k, n, count, input_bits=a.bits, weight_bits=b.bits), a, b)

    # --- layers that move or combine activations --------------------------------------------------------------------

    def pool(
        self,
        name: str,
        x: Activation,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int | Pair] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        out_size: Sequence[int] | None = None,
    ) -> Activation:
        """Pooling; windows that ``out_size`` counts beyond the edge are written as padding after it.

        A 1x1 window at stride 1 does nothing and makes no layer.
        """
        batch, channels, in_size, (rows, columns) = _padded_image(x, padding)
        kernel, dilate, step, pads = _pair(kernel_size), _pair(dilation), _pair(stride or kernel_size), [rows, columns]
        if kernel == step == (1, 1) and pads == [(0, 0), (0, 0)]:
            return x
        if out_size is not None:
            for axis, out in enumerate(_pair(out_size)):
                reach = (out - 1) * step[axis] + dilate[axis] * (kernel[axis] - 1) + 1
                missing = reach - in_size[axis] - sum(pads[axis])
                pads[axis] = (pads[axis][0], pads[axis][1] + max(missing, 0))
        layer = Layer(name, channels, channels, in_size, kernel, step, (pads[0], pads[1]), dilate, 1, batch, op="pool")
        return self.add(layer, x)

    def resampled(self, op: Op, name: str, x: Activation, out_size: Sequence[int]) -> Activation:
        """Adaptive pooling or interpolation to a given size, one that is there already making no layer.

        An axis that shrinks takes windows of in - (out - 1) * stride elements, stride = in // out: the whole axis
        for one output, in / out elements where that is whole. An axis that grows is written as padded.
        """
        batch, channels, in_size = _image(x.shape)
        kernel, stride, pads = [1, 1], [1, 1], [(0, 0), (0, 0)]
        for axis, (size, out) in enumerate(zip(in_size, _pair(out_size), strict=True)):
            if out == 1:
                kernel[axis] = size
            elif out < size:
                stride[axis] = size // out
                kernel[axis] = size - (out - 1) * stride[axis]
            else:
                pads[axis] = (0, out - size)
        if in_size == _pair(out_size):
            return x
        layer = Layer(
            name, channels, channels, in_size, _pair(kernel), _pair(stride), (pads[0], pads[1]), batch=batch, op=op
        )
        return self.add(layer, x)

    def reduced(self, name: str, x: Activation, axes: Iterable[int]) -> Activation:
        """A mean, a sum or a maximum along axes: pooling over all of them."""
        gone = sorted({axis % len(x.shape) for axis in axes})
        window = [x.shape[axis] for axis in gone]
        batch = 1 if 0 in gone else x.shape[0]
        kept = x.count // (batch * math.prod(window))
        size = (window[0], math.prod(window[1:])) if window else (1, 1)
        if size == (1, 1):
            return x
        return self.add(Layer(name, kept, kept, size, kernel_size=size, batch=batch, op="pool"), x)

    def rows(self, op: Op, name: str, x: Activation, features: int) -> Activation:
        """A softmax or a normalization along ``features`` elements, for each of the others."""
        return self.add(Layer(name, features, features, batch=x.count // features, op=op), x)

    def whole(self, op: Op, name: str, x: Activation) -> Activation:
        """An operator that reads and writes the whole activation, such as a normalization over groups."""
        batch, channels, size = _elements(x.shape)
        return self.add(Layer(name, channels, channels, size, batch=batch, op=op), x)

    def elementwise(self, op: Op, name: str, operands: Sequence[Activation], shape: Sequence[int]) -> Activation:
        """A combination of activations, element by element; the largest is the first operand.

        Functions of one activation alone, ``x * sigmoid(x)`` for instance, fuse with what computes it and make no
        layer. Each further activation makes one.
        """
        distinct = list({(x.tensors, x.layout): x for x in reversed(operands)}.values())[::-1]
        distinct.sort(key=lambda x: x.count, reverse=True)
        result = distinct[0]
        batch, channels, size = _elements(shape)
        for other in distinct[1:]:
            fewer = other.count if other.count < math.prod(shape) else None
            result = self.add(
                Layer(name, channels, channels, size, batch=batch, op=op, second_count=fewer), result, other
            )
        return dataclasses.replace(result, shape=tuple(shape))

    # --- the record -------------------------------------------------------------------------------------------------

    def add(
        self, layer: Layer, first: Activation, second: Activation | None = None, shape: Sequence[int] | None = None
    ) -> Activation:
        """Append a layer that reads ``first`` as its input and ``second`` as its second operand.

        Returns
        -------
        Activation
            What it writes, of ``shape``; (batch, out_channels, height, width) where none is given.
        """
        taken = self._names[layer.name] = self._names.get(layer.name, 0) + 1
        if taken > 1:
            layer = dataclasses.replace(layer, name=f"{layer.name}@{taken}")
        operands: tuple[tuple[Operand, Activation | None], ...] = (("input", first), ("weight", second))
        for operand, activation in operands:
            for tensor in activation.tensors if activation is not None else ():
                self._readers[tensor].append((layer.name, operand))
        self.layers.append(layer)
        return self._tensor(layer.name, tuple(shape or (layer.batch, layer.out_channels, *layer.out_size)))

    def workload(self, name: str, batch: int = 1) -> Workload:
        """The recorded network; inputs that nothing reads are left out.

        Layers that ask for other than 8 bits set the widths of the tensors, as in `Workload.with_bits`.
        """
        tensors = tuple(
            Tensor(producer, tuple(readers), shape, bits)
            for (producer, shape), readers, bits in zip(self._tensors, self._readers, self._stored_bits, strict=True)
            if producer is not None or readers
        )
        workload = Workload(name, tuple(self.layers), tensors, batch)
        weight_bits = [layer.weight_bits for layer in workload.mac_layers]
        input_bits = [layer.input_bits for layer in workload.mac_layers]
        if {*weight_bits, *input_bits, *self._stored_bits} <= {8}:
            return workload
        return workload.with_bits(weight_bits, input_bits)

    def _reads_network_input(self, x: Activation) -> bool:
        """Whether an activation is made of nothing but the network's inputs."""
        return bool(x.tensors) and self._network_inputs.issuperset(x.tensors)

    def _tensor(self, producer: str | None, shape: tuple[int, ...]) -> Activation:
        self._tensors.append((producer, shape))
        self._stored_bits.append(self.bits)
        self._readers.append([])
        return Activation((len(self._tensors) - 1,), shape, self.bits)


def differences(a: Workload, b: Workload) -> list[str]:
    """How two workloads differ, names aside: their layers in order, and who reads which tensor as what.

    Returns
    -------
    list of str
        One line a difference; empty where the workloads are the same network.
    """
    lines = [] if len(a.layers) == len(b.layers) else [f"{len(a.layers)} and {len(b.layers)} layers"]
    for x, y in zip(a.layers, b.layers, strict=False):
        if x != y:
            fields = [f.name for f in dataclasses.fields(Layer) if f.compare]
            parts = [f"{f} {getattr(x, f)} and {getattr(y, f)}" for f in fields if getattr(x, f) != getattr(y, f)]
            lines.append(f"layer {x.name} and {y.name}: {', '.join(parts)}")
    if not lines:
        in_a, in_b = _edges(a), _edges(b)
        lines += [f"only in the first: {edge}" for edge in sorted(in_a - in_b, key=str)]
        lines += [f"only in the second: {edge}" for edge in sorted(in_b - in_a, key=str)]
    return lines


def _edges(workload: Workload) -> set[tuple[Any, ...]]:
    """Tensors with the positions of layers in place of their names."""
    position: dict[str | None, int] = {layer.name: i for i, layer in enumerate(workload.layers)}
    return {
        (position.get(t.producer, -1), tuple(sorted({(position[name], operand) for name, operand in t.consumers})),
         t.count, t.bits)
        for t in workload.tensors
    }  # fmt: skip


def _pair(values: Sequence[int]) -> Pair:
    """Rows and columns; one value is columns of a map of height 1."""
    pair = (1, *values)[-2:]
    return int(pair[0]), int(pair[1])


def _pads(values: Sequence[int | Pair]) -> tuple[Pair, Pair]:
    """((top, bottom), (left, right)) from one number or pair for each axis."""
    pairs = [value if isinstance(value, tuple) else (int(value), int(value)) for value in values]
    rows, cols = ((0, 0), *pairs)[-2:]
    return rows, cols


def _sum(a: Pair, b: Pair) -> Pair:
    return a[0] + b[0], a[1] + b[1]


def _image(shape: Sequence[int]) -> tuple[int, int, Pair]:
    """Batch, channels and map of (N, C, H, W) or (N, C, L)."""
    return shape[0], shape[1], _pair(shape[2:])


def _padded_image(x: Activation, padding: Sequence[int | Pair]) -> tuple[int, int, Pair, tuple[Pair, Pair]]:
    """Batch, channels and map without the zeros around it, and all padding together."""
    batch, channels, (height, width) = _image(x.shape)
    rows, columns = _pads(padding)
    around = x.pads or ((0, 0), (0, 0))
    in_size = (height - sum(around[0]), width - sum(around[1]))
    return batch, channels, in_size, (_sum(rows, around[0]), _sum(columns, around[1]))


def _elements(shape: Sequence[int]) -> tuple[int, int, Pair]:
    """Batch, channels and map that hold any shape; (rows, features) up to three axes."""
    if len(shape) <= 3:
        return math.prod(shape[:-1]), math.prod(shape[-1:]), (1, 1)
    return shape[0], shape[1], (shape[2], math.prod(shape[3:]))
