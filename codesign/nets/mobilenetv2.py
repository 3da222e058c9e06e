"""The MobileNetV2 space of MP-NAS: shapes and bitwidths of every block, chosen together."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from codesign.space import AbstractSpace, Arch, Choice
from codesign.terms import Templates, Term, Terms
from hwmodels.graph import Activation, Graph
from hwmodels.workload import MAX_BITS, Layer, Workload

if TYPE_CHECKING:
    from torch import nn

Bits = tuple[int, ...]

#: Bitwidth of the stem, the head and the classifier.
FIXED_BITS = 8


class Block(NamedTuple):
    """An option of one block: an inverted residual with its bitwidths."""

    expansion: int  #: hidden channels over input channels; 1: no expansion convolution
    kernel_size: int  #: of the depthwise convolution
    skip: int  #: 1: the block's input is added to its output
    weight_bits: int  #: of the block's convolutions
    input_bits: int  #: of the block's convolutions


class Stage(NamedTuple):
    """Blocks of equal width; the first one has the stride."""

    channels: int
    stride: int
    blocks: int


class BlockShape(NamedTuple):
    """What the options of a block have in common."""

    batch: int
    in_channels: int
    out_channels: int
    size: int
    stride: int


def _stages(strides: Sequence[int]) -> tuple[Stage, ...]:
    """The seven stages of MP-NAS with the strides of a data set."""
    widths, blocks = (16, 24, 32, 64, 128, 160, 256), (1, 2, 4, 4, 4, 5, 2)
    return tuple(Stage(*stage) for stage in zip(widths, strides, blocks, strict=True))


#: Fields of `MobileNetV2Space` by data set. Stages of MP-NAS (ICCAD 2019); for CIFAR the maps shrink later. Tiny
#: ImageNet's images are twice as large, which the stem undoes. "tiny" is for tests: two blocks, 82,944 networks.
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {},
    "tiny-imagenet": {"input_size": 64, "classes": 200, "stages": _stages((1, 1, 2, 2, 1, 2, 1))},
    "cifar": {"input_size": 32, "classes": 10, "stem_stride": 1, "stages": _stages((1, 1, 2, 2, 1, 2, 1))},
    "tiny": {
        "input_size": 8, "in_channels": 1, "classes": 10, "stem_channels": 8, "stem_stride": 1, "head_channels": 32,
        "stages": (Stage(8, 1, 1), Stage(16, 2, 1)),
    },
}  # fmt: skip


@dataclass(frozen=True)
class MobileNetV2Space(AbstractSpace):
    """Inverted residual blocks, each with its expansion, kernel size, skip and two bitwidths to choose.

    Parameters
    ----------
    input_size, in_channels, classes, batch : int
        The square input image, the classifier's outputs, and how many images are priced together.
    stem_channels, stem_stride, head_channels : int
    stages : tuple of Stage
    width : float
        Factor on all channel counts, which are rounded to multiples of 8. The head takes no factor below 1.
    depth : float
        Factor on the number of blocks of each stage, rounded, at least one.
    expansions, kernel_sizes, skips, bits : tuple of int
        What each block chooses from.

    Raises
    ------
    ValueError
        For a size, a factor or an option that is not positive, an even kernel, or a bitwidth out of range.

    Notes
    -----
    One choice a block, whose options are all `Block` values: 2 * 3 * 3 * 4 * 4 = 288 of them. Stem, head and classifier
    have 8 bits. Bitwidths are stored as in `Workload.with_bits`: what leaves a block is stored once, at the next
    block's ``input_bits``, and the skip of that block reads it as wide.

    The skip has no parameters. Where the stride is 2 it averages 2 x 2 pixels; where channels are added they are
    zero, and where they are removed the first ones stay.

    References
    ----------
    Gong et al., "Mixed Precision Neural Architecture Search for Energy Efficient Deep Learning", ICCAD 2019. Widths are
    scaled as in Sandler et al., "MobileNetV2", CVPR 2018, section 5.

    Examples
    --------
    >>> space = MobileNetV2Space.preset("imagenet")
    >>> len(space.choices), len(space.options), f"{space.size:.2e}"
    (22, 288, '1.28e+54')
    >>> round(space.workload(space.uniform(Block(6, 3, 1, 8, 8))).macs / 1e6)
    529
    """

    input_size: int = 224
    in_channels: int = 3
    classes: int = 1000
    batch: int = 1
    stem_channels: int = 32
    stem_stride: int = 2
    head_channels: int = 1280
    stages: tuple[Stage, ...] = _stages((2, 1, 2, 2, 1, 2, 1))
    width: float = 1.0
    depth: float = 1.0
    expansions: tuple[int, ...] = (1, 3, 6)
    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    skips: tuple[int, ...] = (0, 1)
    bits: tuple[int, ...] = (2, 4, 6, 8)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(Stage(*stage) for stage in self.stages))
        sizes = ("input_size", "in_channels", "classes", "batch", "stem_channels", "stem_stride", "head_channels")
        for name in (*sizes, "width", "depth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"MobileNetV2Space: {name} must be positive, got {name}={getattr(self, name)}.")
        if not self.stages or min(min(stage) for stage in self.stages) < 1:
            raise ValueError(f"MobileNetV2Space: stages must have positive numbers, got stages={self.stages}.")
        rules = {
            "expansions": ("positive", lambda value: value > 0),
            "kernel_sizes": ("odd", lambda value: value % 2 == 1 and value > 0),
            "skips": ("0 or 1", lambda value: value in (0, 1)),
            "bits": (f"from 1 to {MAX_BITS}", lambda value: 1 <= value <= MAX_BITS),
        }
        for name, (rule, holds) in rules.items():
            values = tuple(sorted(set(getattr(self, name))))
            if not values or not all(holds(value) for value in values):
                raise ValueError(f"MobileNetV2Space: {name} must be {rule}, at least one, got {getattr(self, name)}.")
            object.__setattr__(self, name, values)

    @classmethod
    def preset(cls, name: str, **fields: Any) -> MobileNetV2Space:
        """The space for a data set, some fields replaced.

        Raises
        ------
        ValueError
            For an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"MobileNetV2Space: preset must be one of {', '.join(PRESETS)}, got {name!r}.")
        return cls(**{**PRESETS[name], **fields})

    @cached_property
    def options(self) -> tuple[Block, ...]:
        """The options of every block; the last field changes fastest."""
        values = (self.expansions, self.kernel_sizes, self.skips, self.bits, self.bits)
        return tuple(Block(*block) for block in itertools.product(*values))

    @cached_property
    def choices(self) -> tuple[Choice, ...]:  # type: ignore[override]
        """One for each block."""
        return tuple(Choice(f"blocks.{i}", self.options) for i in range(len(self.block_shapes)))

    @cached_property
    def block_shapes(self) -> tuple[BlockShape, ...]:
        """Channels, map and stride of each block."""
        channels, size = self.stem_out, -(-self.input_size // self.stem_stride)
        shapes = []
        for stage in self.stages:
            for i in range(max(1, round(stage.blocks * self.depth))):
                out_channels, stride = _scaled(stage.channels, self.width), stage.stride if i == 0 else 1
                shapes.append(BlockShape(self.batch, channels, out_channels, size, stride))
                channels, size = out_channels, -(-size // stride)
        return tuple(shapes)

    def uniform(self, block: Block) -> Arch:
        """The arch whose blocks are all the same."""
        return self.encode({choice.name: block for choice in self.choices})

    @cached_property
    def reference(self) -> Arch:
        """MobileNetV2 itself at the widest bits, to which relative limits refer."""
        block = Block(self.expansions[-1], self.kernel_sizes[0], self.skips[-1], self.bits[-1], self.bits[-1])
        return self.uniform(block)

    @cached_property
    def largest(self) -> Arch:
        """The last value of every field, everywhere."""
        return tuple(len(self.options) - 1 for _ in self.choices)

    @cached_property
    def smallest(self) -> Arch:
        """The first value of every field, everywhere."""
        return tuple(0 for _ in self.choices)

    @property
    def stem_out(self) -> int:
        """Channels that leave the stem."""
        return _scaled(self.stem_channels, self.width)

    @property
    def head_out(self) -> int:
        """Channels that leave the head."""
        return _scaled(self.head_channels, max(1.0, self.width))

    def blocks(self, arch: Sequence[int]) -> tuple[Block, ...]:
        """The option taken for each block."""
        return tuple(self.options[i] for i in self.check(arch))

    def build(self, arch: Sequence[int], seed: int = 0, **quantizers: Any) -> nn.Module:
        """The network of ``arch`` as a torch module, quantized; tracing it gives `workload`.

        Parameters
        ----------
        arch : sequence of int
        seed : int
            Of the weights.
        quantizers
            Passed on to `codesign.quant.quantize`.

        Returns
        -------
        nn.Module
            Of images of shape (n, in_channels, input_size, input_size). Calibrate it before use.
        """
        from codesign.nets.mobilenetv2_network import MobileNetV2
        from codesign.quant import quantize

        blocks = self.blocks(arch)
        return quantize(MobileNetV2(self, blocks, seed), self.layer_bits(arch), **quantizers)

    def layer_bits(self, arch: Sequence[int]) -> dict[str, tuple[int, int]]:
        """(weight bits, input bits) of each convolution and linear layer by its name."""
        bits = dict.fromkeys(("stem", "head", "classifier"), (FIXED_BITS, FIXED_BITS))
        for i, block in enumerate(self.blocks(arch)):
            roles = ("expand", "depthwise", "project")[block.expansion == 1 :]
            bits |= {f"blocks.{i}.{role}": (block.weight_bits, block.input_bits) for role in roles}
        return bits

    def workload(self, arch: Arch) -> Workload:
        """The network with the blocks of ``arch``."""
        graph = Graph()
        x = self._stem(graph)
        for i, (shape, block) in enumerate(zip(self.block_shapes, self.blocks(arch), strict=True)):
            x = _add_block(graph, f"blocks.{i}", x, shape, block)
        self._head(graph, x)
        bits = self.layer_bits(arch)
        weight_bits, input_bits = ({name: pair[i] for name, pair in bits.items()} for i in (0, 1))
        return graph.workload("mobilenetv2", self.batch).with_bits(weight_bits, input_bits)

    def terms(self, by_name: bool = False) -> Terms:
        """The layers of each block by its option and by the width at which the next block stores what leaves it.

        Parameters
        ----------
        by_name : bool
            Keep the layers of all blocks apart, each under its name, also where their shapes are equal.
        """
        templates = Templates(by_name)
        n_options, n_bits, last = len(self.options), len(self.bits), len(self.block_shapes) - 1
        own, seen = np.arange(n_options), np.arange(n_options) % n_bits  # the input bits change fastest
        stem, head = self._ends()
        terms = [
            Term((0,), (seen,), templates.codes(stem, FIXED_BITS, FIXED_BITS, FIXED_BITS, np.array(self.bits))),
            Term((), (), templates.codes(head, *(FIXED_BITS,) * 4)),
        ]
        known: dict[tuple[str, BlockShape, Bits], NDArray[np.int64]] = {}
        for i, shape in enumerate(self.block_shapes):
            name, next_bits = f"blocks.{i}" if by_name else "blocks", self.bits if i < last else (FIXED_BITS,)
            key = name, shape, next_bits
            if key not in known:
                known[key] = self._block_codes(templates, *key)
            if i < last:
                terms.append(Term((i, i + 1), (own, seen), known[key]))
            else:
                terms.append(Term((i,), (own,), known[key][:, 0]))
        return Terms(templates.layers, tuple(terms))

    def _stem(self, graph: Graph) -> Activation:
        image = graph.input((self.batch, self.in_channels, self.input_size, self.input_size))
        return _conv(graph, "stem", image, self.stem_out, 3, self.stem_stride)

    def _head(self, graph: Graph, x: Activation) -> None:
        x = _conv(graph, "head", x, self.head_out, 1)
        x = graph.resampled("pool", "pool", x, (1, 1))
        graph.linear("classifier", x, x.shape[1], self.classes, rows=self.batch)

    def _ends(self) -> tuple[list[Layer], list[Layer]]:
        """The layers before and after the blocks."""
        stem, head = Graph(), Graph()
        self._stem(stem)
        shape = self.block_shapes[-1]
        size = -(-shape.size // shape.stride)
        self._head(head, head.constant((self.batch, shape.out_channels, size, size)))
        return stem.layers, head.layers

    def _block_codes(self, templates: Templates, name: str, shape: BlockShape, next_bits: Bits) -> NDArray[np.int64]:
        """Codes of a block's layers; shape (n_options, len(next_bits), len(_ROLES))."""
        weight, input, output = np.ix_(self.bits, self.bits, next_bits)
        counts = [len(values) for values in (self.expansions, self.kernel_sizes, self.skips, self.bits, self.bits)]
        codes = np.full((*counts, len(next_bits), len(_ROLES)), -1)
        for i, expansion in enumerate(self.expansions):
            graph = Graph()
            x = graph.constant((shape.batch, shape.in_channels, shape.size, shape.size))
            _add_block(graph, name, x, shape, Block(expansion, self.kernel_sizes[0], 1, FIXED_BITS, FIXED_BITS))
            layers = {layer.name.removeprefix(f"{name}."): layer for layer in graph.layers}
            # The operands of the addition are what the block computed, and its input, averaged or as it is stored.
            widths = {
                "expand": (weight, input, input, input),
                "depthwise": (weight, input, input, input),
                "project": (weight, input, input, output),
                "pool": (input, input, input, output),
                "add": (output if "pool" in layers else input, output, output, output),
            }
            for role, layer in layers.items():
                codes[i, ..., _ROLES.index(role)] = templates.code(layer, *widths[role])
            for j, kernel in enumerate(self.kernel_sizes):
                layer = dataclasses.replace(layers["depthwise"], kernel_size=kernel, padding=kernel // 2)
                codes[i, j, ..., _ROLES.index("depthwise")] = templates.code(layer, *widths["depthwise"])
        for s, skip in enumerate(self.skips):
            if not skip:
                codes[:, :, s, ..., _ROLES.index("pool") :] = -1
        return codes.reshape(len(self.options), len(next_bits), len(_ROLES))


_ROLES = ("expand", "depthwise", "project", "pool", "add")


def _add_block(graph: Graph, name: str, x: Activation, shape: BlockShape, block: Block) -> Activation:
    """Append an inverted residual block; the parts are named after their role."""
    y, hidden = x, shape.in_channels * block.expansion
    if block.expansion > 1:
        y = _conv(graph, f"{name}.expand", y, hidden, 1)
    y = _conv(graph, f"{name}.depthwise", y, hidden, block.kernel_size, shape.stride, groups=hidden)
    y = _conv(graph, f"{name}.project", y, shape.out_channels, 1)
    if not block.skip:
        return y
    if shape.out_channels < shape.in_channels:
        x = graph.moved([x], (*x.shape[:1], shape.out_channels, *x.shape[2:]))
    if shape.stride > 1:
        steps = (shape.stride, shape.stride)
        x = graph.pool(f"{name}.pool", x, steps, steps, out_size=y.shape[2:])
    if x.shape != y.shape:
        x = graph.moved([x], y.shape)
    return graph.elementwise("add", f"{name}.add", (y, x), y.shape)


def _conv(
    graph: Graph, name: str, x: Activation, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> Activation:
    """A convolution padded so that stride 1 keeps the size."""
    pad = kernel // 2
    return graph.conv(name, x, out_channels, (kernel, kernel), (stride, stride), (pad, pad), groups=groups)


def _scaled(channels: int, width: float) -> int:
    """A channel count times ``width``: a multiple of 8 near it, not below nine tenths of it; as it is for 1."""
    if width == 1:
        return channels
    target = channels * width
    rounded = max(8, 8 * int(target / 8 + 0.5))
    return rounded if rounded >= 0.9 * target else rounded + 8
