"""Shapes and bitwidths of a network's layers; nothing here knows of hardware."""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Op = Literal["conv", "linear", "matmul", "pool", "add", "mul", "norm", "softmax", "resize"]
Operand = Literal["input", "weight"]

#: Operators that multiply and accumulate. ``weight_bits`` of a matmul is its second operand's.
MAC_OPS: tuple[Op, ...] = ("conv", "linear", "matmul")
#: Operators that only move or combine activations. They take activations as wide as they are stored.
DATA_OPS: tuple[Op, ...] = ("pool", "add", "mul", "norm", "softmax", "resize")
#: Operators whose second operand is an activation too.
TWO_OPERAND_OPS: tuple[Op, ...] = ("matmul", "add", "mul")

MAX_BITS = 32
#: Layers with more MACs or inputs than this many bits hold are refused: their traffic could pass 63 bits.
MAX_COUNT_BITS = 55


class LoopDims(NamedTuple):
    """The loop bounds of a layer in Timeloop's letters; K and C are per group."""

    N: int  #: batch
    K: int  #: output channels of one group
    C: int  #: input channels of one group
    P: int  #: output rows
    Q: int  #: output columns
    R: int  #: kernel rows
    S: int  #: kernel columns
    G: int  #: groups


Padding = tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]


def _pair(layer: str, name: str, value: Any) -> tuple[int, int]:
    """Two plain ints from an int or a pair of ints."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"Layer {layer!r}: {name} must be an int or a pair of ints, got {name}={value!r}.")
    return _integer(layer, name, pair[0]), _integer(layer, name, pair[1])


def _integer(layer: str, name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError(f"Layer {layer!r}: {name} must be an integer, got {name}={value!r}.")
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"Layer {layer!r}: {name} must be an integer, got {name}={value!r}.") from None


def _padding(layer: str, value: Any) -> Padding:
    """Canonical padding: ``(rows, columns)`` where symmetric, else ``((top, bottom), (left, right))``."""
    if isinstance(value, (tuple, list)) and any(isinstance(v, (tuple, list)) for v in value):
        if len(value) != 2:
            raise ValueError(f"Layer {layer!r}: padding must have one entry for each axis, got padding={value!r}.")
        rows, cols = _pair(layer, "padding", value[0]), _pair(layer, "padding", value[1])
        return (rows[0], cols[0]) if rows[0] == rows[1] and cols[0] == cols[1] else (rows, cols)
    return _pair(layer, "padding", value)


@dataclass(frozen=True)
class Layer:
    """One operator of a network: its shape and its bitwidths, in PyTorch's words.

    Parameters
    ----------
    name : str
        Unique in its workload; not compared, so equal shapes are equal layers.
    in_channels, out_channels : int
        Over all groups.
    in_size : (int, int)
        Input height and width, in elements, without padding.
    kernel_size, stride, padding, dilation : int or (int, int)
        As in ``torch.nn.Conv2d``. ``padding`` may be ``((top, bottom), (left, right))``.
    groups : int
        Must divide both channel counts. A batched matmul has one group for each matrix pair.
    batch : int
        Images for a convolution, rows of the input for a linear layer.
    weight_bits, input_bits, output_bits : int
        Operand widths in bits, 1 to 32. For an operator with two activation operands ``weight_bits`` is
        the second operand's.
    op : str
        One of `MAC_OPS` or `DATA_OPS`.
    stored_input_bits : int, optional
        Width at which the input lies in DRAM, where another consumer of the same tensor asks for more than
        ``input_bits``; the layer narrows it while it loads. None: stored at ``input_bits``.
    reads_network_input : bool
        Whether the input is the network's own input. The reference Bit Fusion model maps such convolutions
        as im2col.
    second_count : int, optional
        Elements of the second operand of an addition or a product that broadcasts it. None: as many as of the first.

    Raises
    ------
    ValueError
        For a size below one, a bitwidth out of range, groups that do not divide the channels, or a kernel
        larger than its padded input.

    Examples
    --------
    >>> layer = Layer("conv1", 3, 64, in_size=(224, 224), kernel_size=7, stride=2, padding=3)
    >>> layer.out_size, layer.macs
    ((112, 112), 118013952)
    """

    name: str = field(compare=False)
    in_channels: int
    out_channels: int
    in_size: tuple[int, int] = (1, 1)
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    batch: int = 1
    weight_bits: int = 8
    input_bits: int = 8
    output_bits: int = 8
    op: Op = "conv"
    stored_input_bits: int | None = None
    reads_network_input: bool = False
    second_count: int | None = None

    def __post_init__(self) -> None:
        name = self.name
        put = object.__setattr__
        for key in ("in_channels", "out_channels", "groups", "batch"):
            value = _integer(name, key, getattr(self, key))
            if value < 1:
                raise ValueError(f"Layer {name!r}: {key} must be at least 1, got {key}={value}.")
            put(self, key, value)
        for key in ("in_size", "kernel_size", "stride", "dilation"):
            pair = _pair(name, key, getattr(self, key))
            if min(pair) < 1:
                raise ValueError(f"Layer {name!r}: {key} must be at least 1 along both axes, got {key}={pair}.")
            put(self, key, pair)
        put(self, "padding", _padding(name, self.padding))
        if min(min(edges) for edges in self.pads) < 0:
            raise ValueError(f"Layer {name!r}: padding must not be negative, got padding={self.padding}.")
        for key in ("weight_bits", "input_bits", "output_bits", "stored_input_bits"):
            if key == "stored_input_bits" and self.stored_input_bits is None:
                continue
            bits = _integer(name, key, getattr(self, key))
            if not 1 <= bits <= MAX_BITS:
                raise ValueError(f"Layer {name!r}: {key} must be from 1 to {MAX_BITS} bits, got {key}={bits}.")
            put(self, key, bits)
        if self.op not in MAC_OPS + DATA_OPS:
            raise ValueError(f"Layer {name!r}: op must be one of {', '.join(MAC_OPS + DATA_OPS)}, got op={self.op!r}.")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"Layer {name!r}: groups must divide both channel counts, got groups={self.groups}, "
                f"in_channels={self.in_channels}, out_channels={self.out_channels}."
            )
        if self.second_count is not None and (self.second_count < 1 or self.op not in ("add", "mul")):
            raise ValueError(
                f"Layer {name!r}: second_count must be at least 1 and is for add and mul alone, got "
                f"second_count={self.second_count}, op={self.op!r}."
            )
        if self.stored_input_bits is not None and self.stored_input_bits < self.input_bits:
            raise ValueError(
                f"Layer {name!r}: stored_input_bits must be at least input_bits, got "
                f"stored_input_bits={self.stored_input_bits}, input_bits={self.input_bits}."
            )
        if min(self.out_size) < 1:
            raise ValueError(
                f"Layer {name!r}: the kernel must fit in the padded input, got kernel_size={self.kernel_size}, "
                f"dilation={self.dilation}, in_size={self.in_size}, padding={self.padding}."
            )

    @classmethod
    def linear(cls, name: str, in_features: int, out_features: int, batch: int = 1, **bits: Any) -> Layer:
        """A fully connected layer over ``batch`` rows."""
        return cls(name, in_features, out_features, batch=batch, op="linear", **bits)

    @classmethod
    def matmul(cls, name: str, m: int, k: int, n: int, count: int = 1, **bits: Any) -> Layer:
        """``count`` independent products of an (m, k) and a (k, n) activation."""
        return cls(name, k * count, n * count, in_size=(m, 1), groups=count, op="matmul", **bits)

    @property
    def pads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Padding as ``((top, bottom), (left, right))``."""
        rows, cols = self.padding
        return (
            rows if isinstance(rows, tuple) else (rows, rows),
            cols if isinstance(cols, tuple) else (cols, cols),
        )

    @cached_property
    def out_size(self) -> tuple[int, int]:
        """Output height and width, rounded down as PyTorch does."""
        (h, w), (top_bottom, left_right) = self.in_size, self.pads
        (r, s), (stride_h, stride_w), (dilation_h, dilation_w) = self.kernel_size, self.stride, self.dilation
        return (
            (h + sum(top_bottom) - dilation_h * (r - 1) - 1) // stride_h + 1,
            (w + sum(left_right) - dilation_w * (s - 1) - 1) // stride_w + 1,
        )

    @property
    def dims(self) -> LoopDims:
        """Loop bounds in Timeloop's letters."""
        groups = self.groups
        return LoopDims(
            self.batch,
            self.out_channels // groups,
            self.in_channels // groups,
            *self.out_size,
            *self.kernel_size,
            groups,
        )

    @property
    def is_mac(self) -> bool:
        """Whether the operator multiplies and accumulates."""
        return self.op in MAC_OPS

    @property
    def macs(self) -> int:
        """Multiply-accumulates; 0 for an operator that only moves data."""
        if not self.is_mac:
            return 0
        n, k, c, p, q, r, s, g = self.dims
        return n * g * k * c * p * q * r * s

    @property
    def weight_count(self) -> int:
        """Elements of the second operand: weights, or the second activation; 0 where there is none."""
        if self.op in ("add", "mul"):
            return self.input_count if self.second_count is None else self.second_count
        if not self.is_mac:
            return 0
        return self.out_channels * (self.in_channels // self.groups) * self.kernel_size[0] * self.kernel_size[1]

    @property
    def parameter_count(self) -> int:
        """Stored weights, biases left out; 0 where the second operand is an activation."""
        return self.weight_count if self.op in ("conv", "linear") else 0

    @property
    def input_count(self) -> int:
        """Elements of the input activation, padding left out."""
        return self.batch * self.in_channels * self.in_size[0] * self.in_size[1]

    @property
    def output_count(self) -> int:
        """Elements of the output activation."""
        return self.batch * self.out_channels * self.out_size[0] * self.out_size[1]

    @property
    def bitops(self) -> int:
        """MACs times both operand widths."""
        return self.macs * self.weight_bits * self.input_bits

    @cached_property
    def packed(self) -> tuple[int, ...]:
        """The layer as the kernels take it, columns `PACKED_COLUMNS`; equal where layers are.

        Raises
        ------
        ValueError
            For a layer so large that its counts could pass 63 bits.
        """
        g = self.groups
        (r, s), (h, w), (p, q) = self.kernel_size, self.in_size, self.out_size
        (top, bottom), (left, right) = self.pads
        second = self.weight_count
        # The largest counts are bits moved again for every MAC, both ways.
        if max(self.batch * second * p * q, self.batch * self.in_channels * h * w).bit_length() > MAX_COUNT_BITS:
            raise ValueError(
                f"Layer {self.name!r}: it must have fewer than 2**{MAX_COUNT_BITS} MACs and inputs, so that its "
                f"costs can be counted in 64 bits, got {self.macs} MACs and {self.input_count} inputs; split it."
            )
        return (
            self.batch, self.out_channels // g, self.in_channels // g, p, q, r, s, g, h, w,
            *self.stride, *self.dilation, top, bottom, left, right,
            self.weight_bits, self.input_bits, self.output_bits, self.stored_input_bits or self.input_bits,
            _OP_CODE[self.op], self.reads_network_input, second,
        )  # fmt: skip

    def with_bits(self, weight_bits: int, input_bits: int, output_bits: int | None = None) -> Layer:
        """The same layer at other bitwidths."""
        return dataclasses.replace(
            self,
            weight_bits=weight_bits,
            input_bits=input_bits,
            output_bits=self.output_bits if output_bits is None else output_bits,
            stored_input_bits=None,
        )


@dataclass(frozen=True)
class Tensor:
    """An activation: who writes it, who reads it, and how wide it is stored.

    Parameters
    ----------
    producer : str or None
        The layer that writes it; None for an input of the network.
    consumers : tuple of (str, str)
        The layers that read it, each with the operand it reads it as: ``"input"`` or ``"weight"``.
    shape : tuple of int
        Elements along each axis, the batch first.
    bits : int
        Stored once, at the widest bitwidth that any consumer asks for.
    """

    producer: str | None
    consumers: tuple[tuple[str, Operand], ...]
    shape: tuple[int, ...]
    bits: int = 8

    @property
    def count(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def size_bits(self) -> int:
        """Stored size in bits."""
        return self.count * self.bits


#: Columns of `Workload.packed`, the form in which the kernels take layers.
PACKED_COLUMNS = (
    "N", "K", "C", "P", "Q", "R", "S", "G", "H", "W",
    "stride_h", "stride_w", "dilation_h", "dilation_w", "pad_top", "pad_bottom", "pad_left", "pad_right",
    "weight_bits", "input_bits", "output_bits", "stored_input_bits", "op", "reads_network_input",
    "second_count",
)  # fmt: skip
_OP_CODE = {op: code for code, op in enumerate(MAC_OPS + DATA_OPS)}


def pack(layers: Iterable[Layer]) -> NDArray[np.int64]:
    """Layers as rows of integers, columns `PACKED_COLUMNS`; shape (n_layers, n_columns)."""
    return _rows([layer.packed for layer in layers])


def _rows(packed: Collection[tuple[int, ...]]) -> NDArray[np.int64]:
    flat = np.fromiter(chain.from_iterable(packed), np.int64, len(packed) * len(PACKED_COLUMNS))
    return flat.reshape(len(packed), len(PACKED_COLUMNS))


Bits = int | Sequence[int] | Mapping[str, int]


@dataclass(frozen=True)
class Workload:
    """A network as a graph of layers and the activations between them.

    Parameters
    ----------
    name : str
    layers : tuple of Layer
        In order of execution, names unique.
    tensors : tuple of Tensor
        Every activation that a layer reads or writes. `Workload.sequential` makes them for a plain chain.
    batch : int
        Images processed by one run of the layers.

    Raises
    ------
    ValueError
        For repeated layer names, or a tensor that names an unknown layer.
    """

    name: str
    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...] = ()
    batch: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "tensors", tuple(self.tensors))
        if not self.layers:
            raise ValueError(f"Workload {self.name!r}: it must have at least one layer, got none.")
        if self.batch < 1:
            raise ValueError(f"Workload {self.name!r}: batch must be at least 1, got batch={self.batch}.")
        names = [layer.name for layer in self.layers]
        known = set(names)
        if len(known) < len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(
                f"Workload {self.name!r}: layer names must be unique, got {', '.join(repeated)} repeatedly."
            )
        for tensor in self.tensors:
            ends = {tensor.producer, *(name for name, _ in tensor.consumers)} - {None}
            unknown = sorted(str(end) for end in ends - known)
            if unknown:
                raise ValueError(
                    f"Workload {self.name!r}: a tensor names layers that are not there: {', '.join(unknown)}."
                )

    @classmethod
    def sequential(cls, name: str, layers: Iterable[Layer], batch: int | None = None) -> Workload:
        """A chain: each layer reads what the one before it wrote, and the first reads the network's input."""
        ordered = tuple(layers)
        tensors: list[Tensor] = []
        for i, layer in enumerate(ordered):
            if i == 0:
                shape: tuple[int, ...] = (layer.batch, layer.in_channels, *layer.in_size)
                tensors.append(Tensor(None, ((layer.name, "input"),), shape, layer.input_bits))
            readers: tuple[tuple[str, Operand], ...] = ((ordered[i + 1].name, "input"),) if i + 1 < len(ordered) else ()
            shape = (layer.batch, layer.out_channels, *layer.out_size)
            tensors.append(Tensor(layer.name, readers, shape, layer.output_bits))
        return cls(name, ordered, tuple(tensors), batch=batch or (ordered[0].batch if ordered else 1))

    @cached_property
    def mac_layers(self) -> tuple[Layer, ...]:
        """The layers that have bitwidths to choose: convolutions, linear layers, matmuls."""
        return tuple(layer for layer in self.layers if layer.is_mac)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the network."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bitops(self) -> int:
        """MACs times both operand widths."""
        return sum(layer.bitops for layer in self.layers)

    @property
    def weight_bytes(self) -> float:
        """Size of the stored weights in bytes, biases left out."""
        return sum(layer.parameter_count * layer.weight_bits for layer in self.layers) / 8

    @cached_property
    def packed(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Distinct layers as rows of `PACKED_COLUMNS`, and for each layer the row it is.

        Returns
        -------
        rows : ndarray of int64, shape (n_distinct, n_columns)
        index : ndarray of int64, shape (n_layers,)
        """
        position: dict[tuple[int, ...], int] = {}
        index = [position.setdefault(layer.packed, len(position)) for layer in self.layers]
        return _rows(position), np.array(index, dtype=np.int64)

    def to_json(self, indent: int | None = None) -> str:
        """Layers and tensors as JSON, fields at their defaults left out."""
        layers = [
            {f.name: getattr(layer, f.name) for f in dataclasses.fields(Layer) if getattr(layer, f.name) != f.default}
            for layer in self.layers
        ]
        tensors = [dataclasses.asdict(tensor) for tensor in self.tensors]
        return json.dumps({"name": self.name, "batch": self.batch, "layers": layers, "tensors": tensors}, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """The workload that `to_json` wrote.

        Raises
        ------
        ValueError
            For text that is something else.
        """
        try:
            record = json.loads(text)
            layers = tuple(Layer(**fields) for fields in record["layers"])
            tensors = tuple(
                Tensor(
                    t["producer"],
                    tuple((name, operand) for name, operand in t["consumers"]),
                    tuple(t["shape"]),
                    t["bits"],
                )
                for t in record["tensors"]
            )
            return cls(record["name"], layers, tensors, record["batch"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"Workload: the JSON must be that of a workload, but {error!r} came up.") from error

    def _per_layer(self, what: str, bits: Bits) -> list[int]:
        """One bitwidth for each MAC layer."""
        names = [layer.name for layer in self.mac_layers]
        if isinstance(bits, Mapping):
            unknown, missing = sorted(set(bits) - set(names)), [name for name in names if name not in bits]
            if unknown or missing:
                raise ValueError(
                    f"Workload {self.name!r}: {what} must name each of its {len(names)} MAC layers once; "
                    + "; ".join(
                        f"{word}: {', '.join(some[:8])}{' ...' if len(some) > 8 else ''}"
                        for word, some in (("unknown", unknown), ("missing", missing))
                        if some
                    )
                    + "."
                )
            return [int(bits[name]) for name in names]
        if isinstance(bits, (int, np.integer)):
            return [int(bits)] * len(names)
        if len(bits) != len(names):
            raise ValueError(
                f"Workload {self.name!r}: {what} must be one int or one for each of its {len(names)} MAC layers, "
                f"got {len(bits)} values."
            )
        return [int(b) for b in bits]

    def with_bits(self, weight_bits: Bits, input_bits: Bits) -> Workload:
        """The same network at other bitwidths.

        Parameters
        ----------
        weight_bits, input_bits : int, sequence or mapping
            One int for all, one for each MAC layer in order, or a mapping from MAC-layer name. A matmul of
            two activations takes ``input_bits`` for both operands where ``weight_bits`` is one int.

        Returns
        -------
        Workload
            Every activation is stored once, at the widest bitwidth that any MAC consumer asks for; one that
            only data operators read is stored as wide as what they write. Layers get ``output_bits`` and
            ``stored_input_bits`` from that; data operators take what is stored. An activation that nobody
            reads keeps its width.

        Raises
        ------
        ValueError
            For a wrong number of values, unknown or missing layer names, or a bitwidth out of range.
        """
        weights = self._per_layer("weight_bits", weight_bits)
        inputs = self._per_layer("input_bits", input_bits)
        asked: dict[tuple[str, str], int] = {}
        for layer, w, a in zip(self.mac_layers, weights, inputs, strict=True):
            asked[layer.name, "input"] = a
            uniform = isinstance(weight_bits, (int, np.integer))
            asked[layer.name, "weight"] = a if layer.op == "matmul" and uniform else w
        stored = self._stored_bits(asked)

        read: dict[tuple[str, str], int] = {}
        written: dict[str, int] = {}
        for tensor, bits in zip(self.tensors, stored, strict=True):
            if tensor.producer is not None:
                written[tensor.producer] = max(bits, written.get(tensor.producer, 0))
            for consumer in tensor.consumers:
                read[consumer] = max(bits, read.get(consumer, 0))
        layers = []
        for layer in self.layers:
            out = written.get(layer.name, layer.output_bits)
            lies_at = read.get((layer.name, "input"))
            if layer.is_mac:
                a = asked[layer.name, "input"]
                new = layer.with_bits(asked[layer.name, "weight"], a, out)
                if lies_at is not None and lies_at > a:
                    new = dataclasses.replace(new, stored_input_bits=lies_at)
            else:
                a = lies_at or layer.input_bits
                new = layer.with_bits(read.get((layer.name, "weight"), a), a, out)
            layers.append(new)
        tensors = tuple(dataclasses.replace(t, bits=b) for t, b in zip(self.tensors, stored, strict=True))
        return Workload(self.name, tuple(layers), tensors, self.batch)

    def _stored_bits(self, asked: Mapping[tuple[str, str], int]) -> list[int]:
        """Stored width of each tensor, given what the MAC layers ask for."""
        outputs: dict[str, list[int]] = {}
        for i, tensor in enumerate(self.tensors):
            if tensor.producer is not None:
                outputs.setdefault(tensor.producer, []).append(i)
        order = {layer.name: i for i, layer in enumerate(self.layers)}
        stored = [tensor.bits for tensor in self.tensors]
        # Consumers come later in execution order, so what a data operator writes is settled before what it reads.
        last_first = sorted(
            range(len(self.tensors)), key=lambda i: order.get(self.tensors[i].producer or "", -1), reverse=True
        )
        for i in last_first:
            consumers = self.tensors[i].consumers
            wishes = [asked[consumer] for consumer in consumers if consumer in asked]
            if not wishes:
                wishes = [stored[j] for name, _ in consumers for j in outputs.get(name, ())]
            if wishes:
                stored[i] = max(wishes)
        return stored
