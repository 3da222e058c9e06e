"""The Bit Fusion model of the paper's public simulator, exactly, with its oddities; ``docs/bitfusion.md`` lists them.

A layer is cut into tiles of b images, o x o outputs, ic and oc channels; K x K kernels stay whole. Tile sizes are
powers of two (oc: times the columns of the array), and the loops over the tiles run in any of 120 orders. Each stream
(weights, activations, outputs in, outputs out) keeps growing blocks of itself in its half buffer, loop by loop from the
innermost, until one does not fit; from there on every loop multiplies its DRAM traffic. The best mapping is
the least (cycles, energy). Grouped layers cost G independent layers. Operators that only move data cost nothing.

What makes the exact search fast: the loops that a stream has inside the point where it stops fitting decide its
traffic. With IC and OC taken as two walls, only which of the loops B, O, O lie inside both walls, between them or outside
both matters: 36 *classes* instead of 60 distinct orders, each priced by three table look-ups. The order within a class
only moves the resident sizes, so orders are walked for the few classes that can still win.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hwmodels.cost import (
    BOUNDS,
    FLOAT_COLUMNS,
    INT,
    INT_COLUMNS,
    TRAFFIC,
    InfeasibleLayer,
    PackedCosts,
    UnsupportedLayer,
)
from hwmodels.technology import read_table
from hwmodels.workload import MAC_OPS, PACKED_COLUMNS, Layer, Workload

if TYPE_CHECKING:
    from hwmodels.bitfusion import BitFusion

PARTIAL_SUM_BITS = 32
OK, INFEASIBLE, TOO_WIDE, NOT_SQUARE, TOO_LARGE = range(5)

_B, _O, _IC, _OC = range(4)
_LOOPS = ("B", "O", "IC", "OC")
_ROW = {name: i for i, name in enumerate(PACKED_COLUMNS)}
_STRIDE, _DILATION, _PAD, _OP = _ROW["stride_h"], _ROW["dilation_h"], _ROW["pad_top"], _ROW["op"]
_WEIGHT_BITS, _INPUT_BITS, _NETWORK_INPUT = (
    _ROW[name] for name in ("weight_bits", "input_bits", "reads_network_input")
)
_N_MAC_OPS, _CONV = len(MAC_OPS), MAC_OPS.index("conv")
_STATUS, _CYCLES, _COMPUTE, _TRAFFIC, _USED, _BOUND, _MAPPING, _ORDER, _TILE = (
    INT[name]
    for name in (
        "status", "cycles", "compute_cycles", TRAFFIC[0], "weight_bits_used", "bound", "mapping", "order", "tile_g",
    )
)  # fmt: skip
_BOUND_COMPUTE, _BOUND_DRAM, _BOUND_ARRAY = range(len(BOUNDS))
_MAX_TILES = 64  # tile sizes of one loop: enough for any int64
_MAX_COUNT = 2.0**62


# --------------------------------------------------------------------------------------------------- loop orders


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
    first, classes, orders, labels = [0], [], [], []
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


# ------------------------------------------------------------------------------------------------------- kernels


@njit(cache=True, nogil=True)
def _ceil_div(a, b):
    return -(-a // b)


@njit(cache=True, nogil=True)
def _tile_sizes(smallest, size, tiles, trips):
    """Doublings of the smallest tile up to the whole size, and the trips of each; returns how many."""
    n, tile = 0, smallest
    while True:
        tiles[n] = min(tile, size)
        trips[n] = _ceil_div(size, tiles[n])
        n += 1
        if tile >= size:
            return n
        tile *= 2


@njit(cache=True, nogil=True)
def _buffer_reads(padded, reduction, pixels, out_channels, outputs, lanes, cols, wb, ib, tile, taps, im2col):
    """Bits read from the weight and input buffer, and read and written at the output buffer, by the array.

    The cheapest stationarity by the simulator's measure; ``padded`` MACs of all tiles at their full size.
    """
    if lanes >= 2 and wb <= 16 and ib <= 16:  # then output-stationary always wins
        return padded * wb, padded * ib, outputs * PARTIAL_SUM_BITS
    i = _ceil_div(out_channels, cols) * cols
    r = _ceil_div(reduction, lanes) * lanes if im2col else _ceil_div(tile, lanes) * lanes * taps
    input_stationary = r * pixels * (ib + i * (wb + 32))
    output_stationary = i * pixels * (32 + r * (ib + wb))
    weight_stationary = r * i * (wb + pixels * (ib + 32))
    if input_stationary <= output_stationary and input_stationary <= weight_stationary:
        return padded * wb, padded // out_channels * ib, padded * PARTIAL_SUM_BITS
    if output_stationary <= weight_stationary:
        return padded * wb, padded * ib, outputs * PARTIAL_SUM_BITS
    return padded // pixels * wb, padded * ib, padded * PARTIAL_SUM_BITS


@njit(cache=True, nogil=True)
def _try_orders(
    n_b, n_o, n_ic, n_oc, weight, act, out, compute, array_w, array_i, array_o, tiling,
    chip, pj, first, classes, orders, best, best_pj,
):  # fmt: skip
    """Improve ``best`` (cycles, rank, tiling, order, traffic and resident sizes of the streams) by one tiling."""
    cap_w, cap_a, cap_u, bandwidth = chip[4], chip[5], chip[6], chip[7]
    several = (n_b > 1) + 2 * (n_o > 1) + 4 * (n_ic > 1) + 8 * (n_oc > 1)
    images = (1, n_o, n_o * n_o, n_b, n_b * n_o, n_b * n_o * n_o)
    trips = (n_b, n_o, n_ic, n_oc)
    all_w, all_a, all_u = weight * n_ic * n_oc, act * images[5] * n_ic, out * images[5] * n_oc
    fits_w = all_w <= cap_w
    for k in range(first[several], first[several + 1]):
        oc_is_inner, inside, between, outside = classes[k, 0], classes[k, 1], classes[k, 2], classes[k, 3]
        inner = images[inside]
        both = inner * images[between]
        resident_w = weight * (n_oc if oc_is_inner else n_ic)
        w, a, u = all_w, all_a, all_u
        if fits_w:
            resident_w = all_w
        elif resident_w <= cap_w:
            w *= images[outside]
        else:
            resident_w = weight
            w *= images[between] * images[outside]
        if act * (inner if oc_is_inner else both * n_ic) > cap_a:
            a *= n_oc
        if out * (both * n_oc if oc_is_inner else inner) > cap_u:
            u *= n_ic
        traffic = w + a + 2 * u
        limit = best[0] * bandwidth
        if traffic > limit or compute * bandwidth + resident_w + act + 2 * out > limit:
            continue
        energy = -1.0
        for order in range(classes[k, 4], classes[k, 5]):
            resident_a, resident_u, grows_a, grows_u = act, out, True, True
            for depth in range(5):
                loop = orders[order, depth]
                if loop < 0:
                    break
                n = trips[loop]
                if grows_a and loop != _OC:
                    if resident_a * n <= cap_a:
                        resident_a *= n
                    else:
                        grows_a = False
                if grows_u and loop != _IC:
                    if resident_u * n <= cap_u:
                        resident_u *= n
                    else:
                        grows_u = False
            start = resident_w + resident_a + resident_u
            cycles = (
                max(compute, _ceil_div(traffic - start - resident_u, bandwidth))
                + _ceil_div(start, bandwidth)
                + _ceil_div(resident_u, bandwidth)
            )
            if cycles > best[0]:
                continue
            if energy < 0:
                energy = (
                    compute * pj[0] + array_w * pj[1] + w * pj[2] + array_i * pj[3] + a * pj[4]
                    + (array_o + u) * pj[5] + (array_o + u) * pj[6] + (w + a + u) * pj[7] + u * pj[7]
                )  # fmt: skip
            if cycles == best[0]:
                if energy > best_pj[0]:
                    continue
                if energy == best_pj[0] and (
                    orders[order, 5] > best[1] or (orders[order, 5] == best[1] and tiling > best[2])
                ):
                    continue
            best[0], best[1], best[2], best[3] = cycles, orders[order, 5], tiling, order
            best[4], best[5], best[6] = w, a, u
            best[7], best[8], best[9] = resident_w, resident_a, resident_u
            best_pj[0] = energy
            limit = cycles * bandwidth


@njit(cache=True, nogil=True)
def _search(
    K, O, S, IC, OC, B, wb, ib, lanes, im2col, chip, pj, first, classes, orders, work, tiles, best, best_pj, result
):  # fmt: skip
    """Find the best mapping of one group of a layer: ``best`` as `_try_orders` writes it, and its tile and counts.

    Returns whether any tiling fits.
    """
    cols, cap_w, cap_a, cap_u, bandwidth = chip[1], chip[4], chip[5], chip[6], chip[7]
    taps = K * K
    bs, os, ics, ocs = tiles[0], tiles[1], tiles[2], tiles[3]
    n_bs, n_os, n_ics, n_ocs = tiles[4], tiles[5], tiles[6], tiles[7]
    count_b, count_o = _tile_sizes(1, B, bs, n_bs), _tile_sizes(1, O, os, n_os)
    count_ic, count_oc = _tile_sizes(1, IC, ics, n_ics), _tile_sizes(1 if im2col else cols, OC, ocs, n_ocs)

    if count_b * count_o * count_ic * count_oc > work.shape[0]:
        work = np.empty((count_b * count_o * count_ic * count_oc, 2), np.int64)

    # A bound for every tiling that fits, in bits over the DRAM interface: each stream moves at least once, and on top
    # of the computation come at least the blocks that the first and last step wait for.
    found = 0
    least, least_at = np.int64(2**62), 0
    for x in range(count_b * count_o):
        b, o, n_b, n_o = bs[x // count_o], os[x % count_o], n_bs[x // count_o], n_os[x % count_o]
        pixels, n_x = b * o * o, n_b * n_o * n_o
        act_of_one = (o * o * taps if im2col else (K + (o - 1) * S) ** 2) * b * ib
        out_of_one = pixels * PARTIAL_SUM_BITS
        if act_of_one > cap_a or out_of_one * cols > cap_u:
            continue
        fewest, most = min(n_b, n_o), max(n_b, n_o)
        if fewest == 1:
            fewest = most
        for y in range(count_ic):
            ic, n_ic = ics[y], n_ics[y]
            act = act_of_one * ic
            if act > cap_a:
                break
            depth = _ceil_div(taps * ic, lanes)
            steps = depth if im2col else taps * _ceil_div(ic, lanes)
            all_a = act * n_x * n_ic
            if all_a <= cap_a:
                least_a = all_a
            elif act * max(most, n_ic) > cap_a:
                least_a = act
            else:
                least_a = act * (min(fewest, n_ic) if min(fewest, n_ic) > 1 else max(fewest, n_ic))
            for z in range(count_oc):
                oc, n_oc = ocs[z], n_ocs[z]
                weight = depth * lanes * oc * wb
                folds = _ceil_div(oc, cols)
                out = out_of_one * folds * cols
                if weight > cap_w or out > cap_u:
                    break
                compute = n_x * pixels * n_ic * steps * n_oc * folds
                all_w, all_u = weight * n_ic * n_oc, out * n_x * n_oc
                least_w = all_w if all_w <= cap_w else weight
                least_u = all_u if all_u <= cap_u else out
                bound = max(all_w + all_a + 2 * all_u, compute * bandwidth + least_w + least_a + 2 * least_u)
                tiling = (x * count_ic + y) * count_oc + z
                work[found, 0], work[found, 1] = bound, tiling
                if bound < least:
                    least, least_at = bound, found
                found += 1
    if found == 0:
        return False

    best[0], best[2], best[3] = np.int64(2**62) // bandwidth, -1, -1
    best_pj[0] = np.inf
    for i in range(-1, found):
        at = i if i >= 0 else least_at  # the most promising tiling first
        if work[at, 0] > best[0] * bandwidth or i == least_at:
            continue
        tiling = work[at, 1]
        x, y, z = tiling // (count_ic * count_oc), tiling // count_oc % count_ic, tiling % count_oc
        b, o, n_b, n_o = bs[x // count_o], os[x % count_o], n_bs[x // count_o], n_os[x % count_o]
        ic, n_ic, oc, n_oc = ics[y], n_ics[y], ocs[z], n_ocs[z]
        pixels, folds = b * o * o, _ceil_div(oc, cols)
        depth = _ceil_div(taps * ic, lanes)
        weight = depth * lanes * oc * wb
        act = (o * o * taps if im2col else (K + (o - 1) * S) ** 2) * ic * b * ib
        out = pixels * folds * cols * PARTIAL_SUM_BITS
        n_tiles = n_b * n_o * n_o * n_ic * n_oc
        compute = n_tiles * pixels * folds * (depth if im2col else taps * _ceil_div(ic, lanes))
        outputs = n_tiles * pixels * oc
        array_w, array_i, array_o = _buffer_reads(
            outputs * taps * ic, taps * ic, pixels, oc, outputs, lanes, cols, wb, ib, ic, taps, im2col
        )
        before = best[2], best[3]
        _try_orders(
            n_b, n_o, n_ic, n_oc, weight, act, out, compute, array_w, array_i, array_o, tiling,
            chip, pj, first, classes, orders, best, best_pj,
        )  # fmt: skip
        if (best[2], best[3]) != before:
            result[_COMPUTE] = compute
            result[_TRAFFIC], result[_TRAFFIC + 2], result[_TRAFFIC + 4] = array_w, array_i, array_o
            result[_TILE], result[_TILE + 1], result[_TILE + 2], result[_TILE + 3] = 1, b, oc, ic
            result[_TILE + 4], result[_TILE + 5] = o, o
    return True


@njit(cache=True, nogil=True)
def _may_overflow(K, O, S, IC, OC, B, G, wb, ib, lanes, cols, bandwidth):
    """Whether some count might leave 64 bits; tiles of powers of two are at most twice their share of the layer."""
    taps, pixels, pairs = float(K * K), 8.0 * B * O * O, 4.0 * IC * OC
    largest = max(
        pixels * pairs * (taps + lanes) * wb,  # weights fetched again for every pixel
        16.0 * B * (float(O) * (K + S)) ** 2 * pairs * ib,  # inputs fetched again for every output channel
        pixels * pairs * (2 + cols) * PARTIAL_SUM_BITS,  # partial sums fetched again for every input channel
        pixels * pairs * taps * max(64, bandwidth),
    )
    if lanes < 2 or max(wb, ib) > 16:
        largest = max(largest, pixels * pairs * taps * (2 + lanes) * (2 + cols) * 64)
    return 4 * G * largest > _MAX_COUNT


@njit(cache=True, nogil=True)
def price_layers(layers, chip, pj, first, classes, orders, ints, floats):
    """Price each layer by its best mapping.

    Parameters
    ----------
    layers : ndarray of int64, shape (n, len(PACKED_COLUMNS))
    chip : ndarray of int64, shape (9,)
        Rows, columns, widest and narrowest operand, what a tile may fill of the weight, input and output buffer in
        bits, DRAM bits per cycle, whether every convolution runs as im2col.
    pj : ndarray of float64, shape (8,)
        Energy of a cycle of the array; of a bit read from and written to the weight, input and output buffer; of a
        bit from or to DRAM.
    first, classes, orders : ndarray
        See `LoopOrders`.
    ints, floats : ndarray of zeros, shapes (n, len(INT_COLUMNS)) and (n, len(FLOAT_COLUMNS))
        Written.
    """
    rows, cols, widest, narrowest = chip[0], chip[1], chip[2], chip[3]
    tiles = np.empty((8, _MAX_TILES), np.int64)
    work = np.empty((4096, 2), np.int64)
    best = np.empty(10, np.int64)
    best_pj = np.empty(1, np.float64)
    for i in range(layers.shape[0]):
        row, out = layers[i], ints[i]
        if row[_OP] >= _N_MAC_OPS:
            continue
        wb, ib = row[_WEIGHT_BITS], row[_INPUT_BITS]
        B, OC, IC, O, K, G, S = row[0], row[1], row[2], row[3], row[5], row[7], row[_STRIDE]
        im2col = False
        if row[_OP] == _CONV:
            im2col = chip[8] == 1 or row[_NETWORK_INPUT] == 1
            if (
                row[4] != O or row[6] != K or row[8] != row[9] or row[_STRIDE + 1] != S
                or row[_DILATION] != 1 or row[_DILATION + 1] != 1
                or row[_PAD] != row[_PAD + 1] or row[_PAD] != row[_PAD + 2] or row[_PAD] != row[_PAD + 3]
            ):  # fmt: skip
                out[_STATUS] = NOT_SQUARE
                continue
        else:  # the rows of a product are its batch
            B, O, S = B * O * row[4], 1, 1
        per_unit = (widest // max(ib, narrowest)) * (widest // max(wb, narrowest))
        if per_unit == 0:
            out[_STATUS] = TOO_WIDE
            continue
        lanes = rows * per_unit
        if _may_overflow(K, O, S, IC, OC, B, G, wb, ib, lanes, cols, chip[7]):
            out[_STATUS] = TOO_LARGE
            continue
        if not _search(
            K, O, S, IC, OC, B, wb, ib, lanes, im2col, chip, pj, first, classes, orders, work, tiles, best, best_pj, out
        ):
            out[_STATUS] = INFEASIBLE
            continue
        cycles, w, a, u = best[0], best[4], best[5], best[6]
        traffic = out[_TRAFFIC : _TRAFFIC + 8]
        traffic[1], traffic[3], traffic[6], traffic[7] = w, a, w + a + u, u
        traffic[4] += u
        traffic[5] = traffic[4]
        compute = out[_COMPUTE]
        busy = np.float64(B * O * O * OC) * (IC * K * K) / (np.float64(compute) * (cols * lanes))
        out[_CYCLES] = cycles
        out[_USED], out[_USED + 1], out[_USED + 2] = 2 * best[7], 2 * best[8], 2 * best[9]
        out[_MAPPING], out[_ORDER] = im2col, best[3]
        if _ceil_div(w + a + 2 * u, chip[7]) > compute:
            out[_BOUND] = _BOUND_DRAM
        else:
            out[_BOUND] = _BOUND_COMPUTE if busy >= 0.5 else _BOUND_ARRAY
        out[_CYCLES] *= G
        out[_COMPUTE] *= G
        sram = 0.0
        for j in range(6):
            traffic[j] *= G
            sram += traffic[j] * pj[1 + j]
        traffic[6] *= G
        traffic[7] *= G
        floats[i, 0], floats[i, 1] = out[_COMPUTE] * pj[0], sram
        floats[i, 2], floats[i, 4] = traffic[6] * pj[7] + traffic[7] * pj[7], busy


# ------------------------------------------------------------------------------------------------------- results


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
