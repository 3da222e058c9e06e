"""The search behind `hwmodels.reference`: every tiling and loop order, exactly, in integers.

Tiles are of b images, o x o outputs, ic and oc channels, with n_b, n_o, n_ic and n_oc trips; K is the edge of the
kernel and P of the output, S the stride, B the batch. Sizes are in bits.

What makes the exact search fast: the loops that a stream has inside the point where it stops fitting decide its
traffic. With IC and OC taken as two walls, only which of the loops B, O, O lie inside both walls, between them or
outside both matters: 36 *classes* instead of 60 distinct orders, each priced by three look-ups. The order within a
class only moves the resident sizes, so orders are walked for the few classes that can still win. A tiling is looked
at only if a lower bound of its cycles, from traffic and from computation, does not exceed the best found.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from hwmodels.cost import BOUNDS, INT, TRAFFIC
from hwmodels.workload import MAC_OPS, PACKED_COLUMNS

PARTIAL_SUM_BITS = 32
OK, INFEASIBLE, TOO_WIDE, NOT_SQUARE, TOO_LARGE = range(5)

_OC, _IC = 3, 2  # codes of the loops B, O, IC, OC in the table of orders
_ROW = {name: i for i, name in enumerate(PACKED_COLUMNS)}
_STRIDE, _DILATION, _PAD, _OP, _WEIGHT_BITS, _INPUT_BITS, _NETWORK_INPUT = (
    _ROW[name]
    for name in ("stride_h", "dilation_h", "pad_top", "op", "weight_bits", "input_bits", "reads_network_input")
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


@njit(cache=True, nogil=True)
def _ceil_div(a, b):
    return -(-a // b)


@njit(cache=True, nogil=True)
def _tile_sizes(smallest, size, tiles):
    """Columns 0 and 1: doublings of the smallest tile up to the whole size, and their trips; returns how many."""
    n, tile = 0, smallest
    while True:
        tiles[n, 0] = min(tile, size)
        tiles[n, 1] = _ceil_div(size, tiles[n, 0])
        n += 1
        if tile >= size:
            return n
        tile *= 2


@njit(cache=True, nogil=True)
def _least_resident(block, whole, capacity, n_1, n_2, n_3):
    """The least that a stream can keep: its whole, or what its innermost loop of several trips makes of a block."""
    if whole <= capacity:
        return whole
    if block * max(n_1, n_2, n_3) > capacity:
        return block
    least = whole
    for n in (n_1, n_2, n_3):
        if n > 1:
            least = min(least, block * n)
    return least


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
    chip, pj, first, classes, orders, scratch, best, best_pj,
):  # fmt: skip
    """Improve ``best`` (cycles, rank, tiling, order, traffic and resident sizes of the streams) by one tiling.

    Returns whether it did.
    """
    cap_w, cap_a, cap_u, bandwidth = chip[4], chip[5], chip[6], chip[7]
    several = (n_b > 1) + 2 * (n_o > 1) + 4 * (n_ic > 1) + 8 * (n_oc > 1)
    trips, images = scratch[:4], scratch[4:]  # arrays, since compilers index tuples slowly
    trips[0], trips[1], trips[2], trips[3] = n_b, n_o, n_ic, n_oc
    images[0], images[1], images[2] = 1, n_o, n_o * n_o
    images[3], images[4], images[5] = n_b, n_b * n_o, n_b * n_o * n_o
    all_w, all_a, all_u = weight * n_ic * n_oc, act * images[5] * n_ic, out * images[5] * n_oc
    fits_w = all_w <= cap_w
    improved = False
    limit = best[0] * bandwidth
    waits = compute * bandwidth + act + 2 * out
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
        if traffic > limit or waits + resident_w > limit:
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
            improved = True
    return improved


@njit(cache=True, nogil=True)
def _search(
    K, P, S, IC, OC, B, wb, ib, lanes, im2col, chip, pj, first, classes, orders, work, best, best_pj, result
):  # fmt: skip
    """Find the best mapping of one group of a layer: ``best`` as `_try_orders` writes it, and its tile and counts.

    Returns whether any tiling fits.
    """
    cols, cap_w, cap_a, cap_u, bandwidth = chip[1], chip[4], chip[5], chip[6], chip[7]
    taps = K * K
    bs, ps, ics, ocs, found, scratch = work
    n_bs, n_ps = _tile_sizes(1, B, bs), _tile_sizes(1, P, ps)
    n_ics, n_ocs = _tile_sizes(1, IC, ics), _tile_sizes(1 if im2col else cols, OC, ocs)
    for j in range(n_ps):  # input pixels of one channel
        ps[j, 2] = ps[j, 0] ** 2 * taps if im2col else (K + (ps[j, 0] - 1) * S) ** 2
    for j in range(n_ics):  # what one output pixel takes: lanes of weights in a fold of columns, and cycles
        ics[j, 2] = _ceil_div(taps * ics[j, 0], lanes)
        ics[j, 3] = ics[j, 2] if im2col else taps * _ceil_div(ics[j, 0], lanes)
    for j in range(n_ocs):  # folds of the output channels over the columns
        ocs[j, 2] = _ceil_div(ocs[j, 0], cols)
    if n_bs * n_ps * n_ics * n_ocs > found.shape[0]:
        found = np.empty((n_bs * n_ps * n_ics * n_ocs, 2), np.int64)

    # A bound for every tiling that fits, in bits over the DRAM interface: each stream moves at least once, and on top
    # of the computation come at least the blocks that the first and last step wait for.
    n_found, least_at = 0, 0
    least = np.int64(2**62)
    for i in range(n_bs):
        b, n_b = bs[i, 0], bs[i, 1]
        for j in range(n_ps):
            o, n_o = ps[j, 0], ps[j, 1]
            pixels, n_x = b * o * o, n_b * n_o * n_o
            out_of_fold = pixels * cols * PARTIAL_SUM_BITS
            act_of_channel = ps[j, 2] * b * ib
            if act_of_channel > cap_a or out_of_fold > cap_u:
                break
            for y in range(n_ics):
                ic, n_ic = ics[y, 0], ics[y, 1]
                act = act_of_channel * ic
                if act > cap_a:
                    break
                all_a = act * n_x * n_ic
                least_a = _least_resident(act, all_a, cap_a, n_b, n_o, n_ic)
                weight_of_channel = ics[y, 2] * lanes * wb
                compute_of_fold = n_x * pixels * n_ic * ics[y, 3]
                for z in range(n_ocs):
                    n_oc = ocs[z, 1]
                    weight, out = weight_of_channel * ocs[z, 0], out_of_fold * ocs[z, 2]
                    if weight > cap_w or out > cap_u:
                        break
                    compute = compute_of_fold * n_oc * ocs[z, 2]
                    all_w, all_u = weight * n_ic * n_oc, out * n_x * n_oc
                    least_w = all_w if all_w <= cap_w else weight
                    least_u = all_u if all_u <= cap_u else out
                    bound = max(all_w + all_a + 2 * all_u, compute * bandwidth + least_w + least_a + 2 * least_u)
                    found[n_found, 0] = bound
                    found[n_found, 1] = ((i * _MAX_TILES + j) * _MAX_TILES + y) * _MAX_TILES + z  # ascends as searched
                    if bound < least:
                        least, least_at = bound, n_found
                    n_found += 1
    if n_found == 0:
        return False

    best[0], best[2], best[3] = np.int64(2**62) // bandwidth, -1, -1
    best_pj[0] = np.inf
    for turn in range(-1, n_found):
        at = turn if turn >= 0 else least_at  # the most promising tiling first
        if found[at, 0] > best[0] * bandwidth or turn == least_at:
            continue
        tiling = found[at, 1]
        z, y = tiling % _MAX_TILES, tiling // _MAX_TILES % _MAX_TILES
        j, i = tiling // _MAX_TILES**2 % _MAX_TILES, tiling // _MAX_TILES**3
        b, n_b, o, n_o, ic, n_ic = bs[i, 0], bs[i, 1], ps[j, 0], ps[j, 1], ics[y, 0], ics[y, 1]
        oc, n_oc, folds = ocs[z, 0], ocs[z, 1], ocs[z, 2]
        pixels, n_tiles = b * o * o, n_b * n_o * n_o * n_ic * n_oc
        compute = n_tiles * pixels * folds * ics[y, 3]
        outputs = n_tiles * pixels * oc
        array_w, array_i, array_o = _buffer_reads(
            outputs * taps * ic, taps * ic, pixels, oc, outputs, lanes, cols, wb, ib, ic, taps, im2col
        )
        weight = ics[y, 2] * lanes * oc * wb
        act = ps[j, 2] * ic * b * ib
        out = pixels * folds * cols * PARTIAL_SUM_BITS
        if _try_orders(
            n_b, n_o, n_ic, n_oc, weight, act, out, compute, array_w, array_i, array_o, tiling,
            chip, pj, first, classes, orders, scratch, best, best_pj,
        ):  # fmt: skip
            result[_COMPUTE] = compute
            result[_TRAFFIC], result[_TRAFFIC + 2], result[_TRAFFIC + 4] = array_w, array_i, array_o
            result[_TILE], result[_TILE + 1], result[_TILE + 2], result[_TILE + 3] = 1, b, oc, ic
            result[_TILE + 4], result[_TILE + 5] = o, o
    return True


@njit(cache=True, nogil=True)
def _padded(smallest, size):
    """The most that equal tiles, doublings of the smallest, add up to."""
    while smallest < size:
        smallest *= 2
    return np.float64(smallest)


@njit(cache=True, nogil=True)
def _may_overflow(K, P, S, IC, OC, B, G, wb, ib, lanes, im2col, cols, bandwidth):
    """Whether some count might leave 64 bits."""
    taps, reduction, pixels = np.float64(K * K), _padded(1, IC), _padded(1, B) * _padded(1, P) ** 2
    folds = max(_padded(1, OC), _padded(cols, OC))
    columns = folds + (np.float64(OC) * cols if im2col else 0.0)
    macs = pixels * reduction * taps * folds
    largest = max(
        pixels * (reduction * taps + np.float64(IC) * lanes) * folds * wb,  # weights fetched again for every pixel
        pixels * (K + S) ** 2.0 * reduction * OC * ib,  # inputs fetched again for every output channel
        pixels * columns * IC * PARTIAL_SUM_BITS,  # partial sums fetched again for every input channel
        macs * max(wb, ib, PARTIAL_SUM_BITS, bandwidth),
    )
    if lanes < 2 or max(wb, ib) > 16:  # the measure of the stationarities is padded to lanes and columns
        largest = max(largest, pixels * taps * (reduction + np.float64(IC) * lanes) * columns * 64)
    return 4.0 * G * largest > _MAX_COUNT


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
    work = (
        np.empty((_MAX_TILES, 4), np.int64), np.empty((_MAX_TILES, 4), np.int64), np.empty((_MAX_TILES, 4), np.int64),
        np.empty((_MAX_TILES, 4), np.int64), np.empty((1024, 2), np.int64), np.empty(10, np.int64),
    )  # fmt: skip
    best = np.empty(10, np.int64)
    best_pj = np.empty(1, np.float64)
    for i in range(layers.shape[0]):
        row, out = layers[i], ints[i]
        if row[_OP] >= _N_MAC_OPS:
            continue
        wb, ib = row[_WEIGHT_BITS], row[_INPUT_BITS]
        B, OC, IC, P, K, G, S = row[0], row[1], row[2], row[3], row[5], row[7], row[_STRIDE]
        im2col = False
        if row[_OP] == _CONV:
            im2col = chip[8] == 1 or row[_NETWORK_INPUT] == 1
            if (
                row[4] != P or row[6] != K or row[8] != row[9] or row[_STRIDE + 1] != S
                or row[_DILATION] != 1 or row[_DILATION + 1] != 1
                or row[_PAD] != row[_PAD + 1] or row[_PAD] != row[_PAD + 2] or row[_PAD] != row[_PAD + 3]
            ):  # fmt: skip
                out[_STATUS] = NOT_SQUARE
                continue
        else:  # the rows of a product are its batch
            B, P, S = B * P * row[4], 1, 1
        per_unit = (widest // max(ib, narrowest)) * (widest // max(wb, narrowest))
        if per_unit == 0:
            out[_STATUS] = TOO_WIDE
            continue
        lanes = rows * per_unit
        if _may_overflow(K, P, S, IC, OC, B, G, wb, ib, lanes, im2col, cols, chip[7]):
            out[_STATUS] = TOO_LARGE
            continue
        if not _search(
            K, P, S, IC, OC, B, wb, ib, lanes, im2col, chip, pj, first, classes, orders, work, best, best_pj, out
        ):
            out[_STATUS] = INFEASIBLE
            continue
        cycles, w, a, u = best[0], best[4], best[5], best[6]
        traffic = out[_TRAFFIC : _TRAFFIC + 8]
        traffic[1], traffic[3], traffic[6], traffic[7] = w, a, w + a + u, u
        traffic[4] += u
        traffic[5] = traffic[4]
        compute = out[_COMPUTE]
        busy = np.float64(B * P * P * OC) * (IC * K * K) / (np.float64(compute) * (cols * lanes))
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
