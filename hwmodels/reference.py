"""The Bit Fusion model of the paper's public simulator, exactly, with its oddities; ``docs/bitfusion.md`` lists them.

A layer is cut into tiles of b images, o x o outputs, ic and oc channels; K x K kernels stay whole. Tile sizes are
powers of two (oc: times the columns of the array), and the loops over the tiles run in any of 120 orders. Each stream
(weights, activations, outputs in, outputs out) keeps growing blocks of itself in its half buffer, loop by loop from the
innermost, until one does not fit; from there on every loop multiplies its DRAM traffic. The best mapping is
the least (cycles, energy). Grouped layers cost G independent layers. Operators that only move data cost nothing.

References
----------
Sharma et al., Bit Fusion, ISCA 2018, and its public simulator (hsharma35/bitfusion 04ec1c8).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwmodels.cost import FLOAT_COLUMNS, INT, INT_COLUMNS, InfeasibleLayer, PackedCosts, UnsupportedLayer
from hwmodels.reference_kernel import INFEASIBLE, NOT_SQUARE, PARTIAL_SUM_BITS, TOO_WIDE, price_layers
from hwmodels.technology import read_table
from hwmodels.workload import Layer, Workload

if TYPE_CHECKING:
    from hwmodels.bitfusion import BitFusion

_B, _O, _IC, _OC = range(4)
_LOOPS = ("B", "O", "IC", "OC")
_STATUS, _CYCLES, _MAPPING, _ORDER, _TILE = (INT[name] for name in ("status", "cycles", "mapping", "order", "tile_g"))


class LoopOrders(NamedTuple):
    """The distinct loop orders, grouped into classes of equal traffic, for each set of loops of several trips.

    Which loops have several trips is a number of four bits, bit l for loop l of B, O, IC, OC.
    """

    #: First class of each such set, and the end; shape (17,)
    first: NDArray[np.int64]
    #: Whether OC is the inner wall; what lies inside both walls, between them, outside (as 3 * B + count of O); its
    #: first order and its end; shape (n_classes, 6)
    classes: NDArray[np.int64]
    #: Loops from the innermost, -1 for none, then the rank; shape (n_orders, 6)
    orders: NDArray[np.int64]
    #: Label of each order, outermost first
    labels: tuple[str, ...]


@cache
def loop_orders() -> LoopOrders:
    """All loop orders in which loops of one trip are dropped and the two output loops are one."""
    code = {"B": _B, "OW": _O, "OH": _O, "IC": _IC, "OC": _OC}
    ranked = [
        (tuple(code[row[place]] for place in ("innermost", "fourth", "third", "second", "outermost")), int(row["rank"]))
        for row in read_table("loop_orders")
    ]
    first, labels = [0], []
    classes: list[tuple[int, ...]] = []
    orders: list[tuple[int, ...]] = []
    for several in range(16):
        rank: dict[tuple[int, ...], int] = {}
        for order, r in ranked:
            key = tuple(loop for loop in order if several >> loop & 1)
            rank[key] = min(rank.get(key, r), r)
        members: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for order in rank:
            members.setdefault(_class_of(order), []).append(order)
        for key, equals in members.items():
            classes.append((*key, len(orders), len(orders) + len(equals)))
            for order in equals:
                orders.append((*order, *(-1,) * (5 - len(order)), rank[order]))
                labels.append(">".join(_LOOPS[loop] for loop in reversed(order)) or "none")
        first.append(len(classes))
    return LoopOrders(np.array(first), np.array(classes), np.array(orders), tuple(labels))


def _class_of(order: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The inner wall, and the output loops in the three regions, of an order from the innermost."""
    walls = [loop for loop in order if loop in (_IC, _OC)]
    regions, region = [0, 0, 0], 2 - len(walls)  # a wall of one trip counts as the inner one, with nothing inside
    for loop in order:
        if loop in walls:
            region += 1
        else:
            regions[region] += 3 if loop == _B else 1
    oc_is_inner = walls[0] == _OC if len(walls) == 2 else walls == [_IC]
    return int(oc_is_inner), regions[0], regions[1], regions[2]


def costs(chip: BitFusion, workload: Workload, resident: Sequence[Sequence[str]] | None = None) -> PackedCosts:
    """Cost of every layer of a network under the reference model, each distinct layer priced once.

    Raises
    ------
    UnsupportedLayer
        For a rectangular, dilated or asymmetrically padded convolution, an operand wider than the array's, or
        operands that stay on the chip between layers.
    InfeasibleLayer
        Where not even the smallest tile fits half of the buffers.
    """
    if resident is not None and any(resident):
        raise UnsupportedLayer(
            "BitFusion: model='reference' keeps no activation on the chip between layers; use model='default'."
        )
    layers, index = workload.packed
    ints = np.zeros((len(layers), len(INT_COLUMNS)), dtype=np.int64)
    floats = np.zeros((len(layers), len(FLOAT_COLUMNS)))
    shape, pj = chip.reference_arrays
    first, classes, orders, _ = loop_orders()
    price_layers(layers, shape, pj, first, classes, orders, ints, floats)
    if ints[:, _STATUS].any():
        _refuse(chip, workload, ints[:, _STATUS][index])
    return PackedCosts(ints, floats, index, chip.clock_hz, describe)


def _refuse(chip: BitFusion, workload: Workload, status: NDArray[np.int64]) -> None:
    """Raise for the first layer that could not be priced."""
    i = int(np.flatnonzero(status)[0])
    layer, why = workload.layers[i], status[i]
    if why == INFEASIBLE:
        raise InfeasibleLayer(f"Layer {layer.name!r}: {_smallest_tile(chip, layer)}")
    if why == TOO_WIDE:
        rule = (
            f"weight_bits and input_bits must be at most the array's max_bits={chip.max_bits}, got "
            f"weight_bits={layer.weight_bits}, input_bits={layer.input_bits}; lower them or choose a wider array."
        )
    elif why == NOT_SQUARE:
        rule = (
            "model='reference' needs a square map, kernel and stride, no dilation and equal padding on all sides, got "
            f"in_size={layer.in_size}, kernel_size={layer.kernel_size}, stride={layer.stride}, "
            f"padding={layer.padding}, dilation={layer.dilation}; use model='default'."
        )
    else:
        rule = f"its counts must fit in 64 bits, got {layer.macs} MACs; split the batch."
    raise UnsupportedLayer(f"Layer {layer.name!r}: {rule}")


def _smallest_tile(chip: BitFusion, layer: Layer) -> str:
    """Which buffers the smallest tile overflows; every footprint grows with every tile size."""
    im2col = layer.op == "conv" and (chip.mapping == "im2col" or layer.reads_network_input)
    taps, lanes = layer.kernel_size[0] ** 2, chip.rows * chip.macs_per_unit(layer.weight_bits, layer.input_bits)
    out_channels = 1 if im2col else min(chip.cols, layer.out_channels // layer.groups)
    needs = {
        "weight": -(-taps // lanes) * lanes * out_channels * layer.weight_bits,
        "input": taps * layer.input_bits,
        "output": chip.cols * PARTIAL_SUM_BITS,
    }
    sizes = {"weight": chip.weight_buffer_bytes, "input": chip.input_buffer_bytes, "output": chip.output_buffer_bytes}
    short = [
        f"the smallest tile needs {bits} bits of the {name} buffer, and half of its {sizes[name]} bytes holds "
        f"{4 * sizes[name]} bits"
        for name, bits in needs.items()
        if bits > 4 * sizes[name]
    ]
    return "no tiling fits: " + "; ".join(short) + ". Enlarge the buffer or lower the bitwidths."


def describe(ints: list[int]) -> str:
    """The mapping of one row of `INT_COLUMNS`, for people."""
    if not ints[_CYCLES]:
        return "not priced"
    _, n, k, c, p, _ = ints[_TILE : _TILE + 6]
    lanes = "taps" if ints[_MAPPING] else "channels"
    return f"{lanes} on lanes, tile b{n} o{p} ic{c} oc{k}, order {loop_orders().labels[ints[_ORDER]]}"
