"""The mapping search that the array models share: the cheapest way to run a layer, in closed form.

A mapping says which operands meet on the array at one time (*spatial*), how a layer is cut into tiles, in which
order the tiles run, and which operand blocks stay in their buffers meanwhile. ``docs/bitfusion.md`` derives the
formulas and declares the map space; `dense_space` and `packed_space` in ``tests/naive.py`` spell it out slowly.

The kernels take scalars and arrays alone and allocate little, so one call prices thousands of layers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from hwmodels.cost import BOUNDS, BUFFERS, FLOAT_COLUMNS, INT, INT_COLUMNS, TRAFFIC
from hwmodels.workload import DATA_OPS, MAC_OPS, PACKED_COLUMNS

#: Which operand waits in the array. BitFusion streams all three and sums down a column; with shared weights it does so
#: for several output pixels (windows) at a time, and a weight that is read serves them all.
REDUCTION_COLUMNS, WEIGHT_STATIONARY, OUTPUT_STATIONARY, INPUT_STATIONARY, SHARED_WEIGHTS = range(5)
LATENCY, ENERGY, EDP = range(3)
#: Spatial mappings, by what the reduction lanes hold. In the packed ones several groups, or several neighbouring
#: output pixels, share the array block-diagonally.
CHANNEL, IM2COL, PACKED_CHANNEL, PACKED_IM2COL, STREAM = range(5)
#: Bits of ``CHIP["flavours"]``.
ALLOW_CHANNEL, ALLOW_IM2COL = 1, 2
#: Bits of ``resident``.
INPUT_RESIDENT, OUTPUT_RESIDENT = 1, 2
#: Tile loops, outermost first: X are output pixels (batch, rows, columns), K and C channels.
ORDERS = ("XKC", "KXC", "XCK", "CXK", "KCX", "CKX")
GROUPED_ORDER = "GX"
OK, NO_WEIGHT_TILE, NO_INPUT_TILE, NO_OUTPUT_TILE, TOO_WIDE = range(5)

#: Integer description of a chip, as the kernels take it.
CHIP_COLUMNS = (
    "rows", "cols", "weight_capacity_bits", "input_capacity_bits", "output_capacity_bits",
    "dram_bits_per_cycle", "accumulator_bits", "dataflow", "flavours", "objective", "fill_cycles", "windows",
    "column_banks",
)  # fmt: skip
#: Unit energies of a chip, as the kernels take them.
PRICE_COLUMNS = (
    "weight_buffer_read_pj_per_bit", "weight_buffer_write_pj_per_bit", "input_buffer_read_pj_per_bit",
    "input_buffer_write_pj_per_bit", "output_buffer_read_pj_per_bit", "output_buffer_write_pj_per_bit",
    "dram_pj_per_bit", "leakage_pj_per_cycle",
)  # fmt: skip

_ROW = {name: i for i, name in enumerate(PACKED_COLUMNS)}
_CHIP = {name: i for i, name in enumerate(CHIP_COLUMNS)}
_H, _STRIDE_H, _DILATION_H, _PAD_TOP = _ROW["H"], _ROW["stride_h"], _ROW["dilation_h"], _ROW["pad_top"]
_WB, _IB, _OB, _SB, _OP = (
    _ROW[name] for name in ("weight_bits", "input_bits", "output_bits", "stored_input_bits", "op")
)
WEIGHT_BITS, INPUT_BITS = _WB, _IB
_SECOND = _ROW["second_count"]
_N_MAC_OPS = len(MAC_OPS)
_ADD, _MUL = (_N_MAC_OPS + DATA_OPS.index(op) for op in ("add", "mul"))
_STATUS, _CYCLES, _COMPUTE, _TRAFFIC0, _USED0 = (
    INT[name] for name in ("status", "cycles", "compute_cycles", TRAFFIC[0], "weight_bits_used")
)
_BOUND, _MAPPING, _ORDER, _BATCH_OUT, _LANE = (
    INT[name] for name in ("bound", "mapping", "order", "batch_outermost", "lane_factor")
)
_TILE0, _PAR0 = INT["tile_g"], INT["par_g"]
_BOUND_COMPUTE, _BOUND_DRAM, _BOUND_ARRAY = range(len(BOUNDS))
_N_INTS, _N_FLOATS, _N_BUFFERS = len(INT_COLUMNS), len(FLOAT_COLUMNS), len(BUFFERS)
# Columns of the table of pixel tiles.
_TN, _TP, _TQ, _TRIPS, _IN_TOTAL, _IN_LARGEST, _IN_FIRST, _PIXELS, _PIXELS_LAST, _UNITS = range(10)
_MAX_TILES = 256  # enough for 31-bit sizes
HUGE = 1 << 62


@njit(cache=True, nogil=True)
def ceil_div(a, b):
    """Smallest integer not below a / b."""
    return -(-a // b)


@njit(cache=True, nogil=True)
def pad_to(a, b):
    """Smallest multiple of b not below a: what a value spread over b equal banks takes up."""
    return -(-a // b) * b


@njit(cache=True, nogil=True)
def rows_touched(size, pad, kernel, stride, dilation, start, stop):
    """Distinct input rows that output rows ``start..stop-1`` read, padding left out."""
    low = start * stride - pad
    high = (stop - 1) * stride - pad + (kernel - 1) * dilation + 1
    if dilation == 1 and stride <= kernel:
        return max(min(high, size) - max(low, 0), 0)
    count = 0
    for y in range(max(low, 0), min(high, size)):
        for r in range(kernel):
            offset = y + pad - r * dilation
            if offset % stride == 0 and start <= offset // stride < stop:
                count += 1
                break
    return count


@njit(cache=True, nogil=True)
def axis_rows(size, pad, kernel, stride, dilation, out, tile):
    """Input rows over all tiles of one axis, in the largest tile, and in the first one."""
    total = 0
    largest = 0
    first = 0
    for start in range(0, out, tile):
        rows = rows_touched(size, pad, kernel, stride, dilation, start, min(start + tile, out))
        if start == 0:
            first = rows
        total += rows
        largest = max(largest, rows)
    return total, largest, first


@njit(cache=True, nogil=True)
def last_tile(size, tile):
    """Size of the last, perhaps ragged, tile."""
    return size - (ceil_div(size, tile) - 1) * tile


@njit(cache=True, nogil=True)
def sum_ceil(size, tile, unit):
    """Sum over the tiles of one axis of ceil(tile / unit)."""
    return (ceil_div(size, tile) - 1) * ceil_div(tile, unit) + ceil_div(last_tile(size, tile), unit)


@njit(cache=True, nogil=True)
def sum_max(size, tile, scale, least):
    """Sum over the tiles of one axis of max(scale * tile, least)."""
    return (ceil_div(size, tile) - 1) * max(scale * tile, least) + max(scale * last_tile(size, tile), least)


@njit(cache=True, nogil=True)
def _pixel_units(dataflow, rows, cols, N, P, Q, n, p, q):
    """What the pixel loop adds to the cycles of a pass, over all pixel tiles (a factor; see docs).

    With `SHARED_WEIGHTS`, ``rows`` are the windows.
    """
    if dataflow == REDUCTION_COLUMNS:
        return N * P * Q
    total = 0
    for i in range(2):
        tiles_n, size_n = (ceil_div(N, n) - 1, n) if i == 0 else (1, last_tile(N, n))
        for j in range(2):
            tiles_p, size_p = (ceil_div(P, p) - 1, p) if j == 0 else (1, last_tile(P, p))
            for k in range(2):
                tiles_q, size_q = (ceil_div(Q, q) - 1, q) if k == 0 else (1, last_tile(Q, q))
                pixels = size_n * size_p * size_q
                if dataflow == WEIGHT_STATIONARY:
                    units = max(pixels, rows)
                elif dataflow in (OUTPUT_STATIONARY, SHARED_WEIGHTS):
                    units = ceil_div(pixels, rows)
                else:
                    units = ceil_div(pixels, cols)
                total += tiles_n * tiles_p * tiles_q * units
    return total


@njit(cache=True, nogil=True)
def power_tiles(size, unit, out):
    """Candidate tile sizes of one axis, largest first: the axis, ``unit`` times powers of two, powers of two."""
    count = 0
    out[count] = size
    count += 1
    a = unit
    while a * 2 < size:
        a *= 2
    b = 1
    while b * 2 < size:
        b *= 2
    while (a >= unit or b >= 1) and count < len(out):
        if a < unit or b > a:
            candidate = b
            b //= 2
        elif b < a or b < 1:
            candidate = a
            a = a // 2 if a % 2 == 0 and a // 2 >= unit else 0
        else:
            candidate = a
            a = a // 2 if a % 2 == 0 and a // 2 >= unit else 0
            b //= 2
        if 1 <= candidate < size:
            out[count] = candidate
            count += 1
    return count


@njit(cache=True, nogil=True)
def lane_tiles(size, lanes, rows, taps, out, count):
    """Append the channel tiles whose kernel positions just fill the lanes of any setting; returns the new count.

    Those of wider settings too, so that what may be chosen does not shrink when the operands do.
    """
    while lanes >= rows:
        tile = lanes // taps
        while 1 <= tile < size and count < len(out):
            out[count] = tile
            count += 1
            tile *= 2
        lanes //= 2
    return count


@njit(cache=True, nogil=True)
def axis_tiles(size, pad, kernel, stride, dilation, out, table):
    """`axis_rows` for the tile sizes 1, 2, 4, ... below ``out``, and last for ``out``; returns that last number."""
    count = 0
    tile = 1
    while tile < out:
        table[count, 0], table[count, 1], table[count, 2] = axis_rows(size, pad, kernel, stride, dilation, out, tile)
        count += 1
        tile *= 2
    table[count, 0], table[count, 1], table[count, 2] = axis_rows(size, pad, kernel, stride, dilation, out, out)
    return count


@njit(cache=True, nogil=True)
def pixel_tiles(row, rows, cols, dataflow, axes, table):
    """Candidate pixel tiles, largest first: whole images, strips of whole rows, squares, parts of a row.

    Parameters
    ----------
    row : ndarray, a row of `PACKED_COLUMNS`
    axes : ndarray of int64, shape (2, 64, 3)
        Scratch.
    table : ndarray of int64, shape (_MAX_TILES, 10)
        Filled with size along batch, rows and columns; trips; input elements of one channel over all tiles, in the
        largest and in the first tile; output pixels of the largest and the last tile; `_pixel_units`.

    Returns
    -------
    int
        Number of candidates.
    """
    N, P, Q, R, S = row[0], row[3], row[4], row[5], row[6]
    all_p = axis_tiles(row[_H], row[_PAD_TOP], R, row[_STRIDE_H], row[_DILATION_H], P, axes[0])
    all_q = axis_tiles(row[_H + 1], row[_PAD_TOP + 2], S, row[_STRIDE_H + 1], row[_DILATION_H + 1], Q, axes[1])
    count = 0
    for shape in range(4):
        limit = N if shape == 0 else (P if shape == 1 else (max(P, Q) if shape == 2 else Q))
        exponent = 0
        while 1 << exponent < limit:
            exponent += 1
        while exponent >= 0:
            size = 1 << exponent
            if shape == 0:
                n, p, q, at_p, at_q = min(size, N), P, Q, all_p, all_q
                keep = True
            elif shape == 1:
                n, p, q, at_p, at_q = 1, size, Q, exponent, all_q
                keep = size < P
            elif shape == 2:
                n, p, q, at_p, at_q = 1, min(size, P), min(size, Q), min(exponent, all_p), min(exponent, all_q)
                keep = p > 1 and q < Q
            else:
                n, p, q, at_p, at_q = 1, 1, size, 0, exponent
                keep = size < Q
            if keep and count < _MAX_TILES:
                in_p, in_q = axes[0, at_p], axes[1, at_q]
                t = table[count]
                t[_TN], t[_TP], t[_TQ] = n, p, q
                trips_n, trips_p, trips_q = ceil_div(N, n), ceil_div(P, p), ceil_div(Q, q)
                t[_TRIPS] = trips_n * trips_p * trips_q
                t[_PIXELS] = n * p * q
                t[_PIXELS_LAST] = (N - (trips_n - 1) * n) * (P - (trips_p - 1) * p) * (Q - (trips_q - 1) * q)
                t[_IN_TOTAL] = N * in_p[0] * in_q[0]
                t[_IN_LARGEST] = n * in_p[1] * in_q[1]
                t[_IN_FIRST] = n * in_p[2] * in_q[2]
                t[_UNITS] = _pixel_units(dataflow, rows, cols, N, P, Q, n, p, q)
                count += 1
            exponent -= 1
    return count


@njit(cache=True, nogil=True)
def better(objective, cycles, energy, best_cycles, best_energy):
    """Whether (cycles, energy) beats the best so far under the objective, the other one breaking ties."""
    if objective == LATENCY:
        return cycles < best_cycles or (cycles == best_cycles and energy < best_energy)
    if objective == ENERGY:
        return energy < best_energy or (energy == best_energy and cycles < best_cycles)
    edp, best_edp = cycles * energy, best_cycles * best_energy
    return edp < best_edp or (edp == best_edp and cycles < best_cycles)


@njit(cache=True, nogil=True)
def total_cycles(first, last, dram_bits, compute, bandwidth, fill_cycles):
    """Cycles of a double-buffered run: only the first tile's load and the last tile's drain are exposed."""
    middle = dram_bits - first - last
    return (
        ceil_div(first, bandwidth) + max(compute, ceil_div(middle, bandwidth)) + ceil_div(last, bandwidth) + fill_cycles
    )


@njit(cache=True, nogil=True)
def _may_win(chip, price, busy_bits, dram_bits, energy_pj, best):
    """Whether a mapping of at least these costs can beat the best one.

    ``busy_bits`` are what DRAM could move while the array computes, with what is moved before and after; leakage comes
    on top of ``energy_pj``. Rounding up only adds cycles, so this spares most candidates the integer divisions.
    """
    cycles = (max(busy_bits, dram_bits) / chip[5] + chip[10]) * (1 - 1e-12)
    return better(chip[9], cycles, energy_pj * (1 - 1e-12) + cycles * price[7], best[0], best[1])


@njit(cache=True, nogil=True)
def _offer(
    chip,
    price,
    core_pj,
    compute,
    w_read,
    w_write,
    i_read,
    i_write,
    o_port,
    dram_read,
    dram_write,
    first,
    last,
    best,
    ints,
):
    """Price one mapping from its counts; if it is the best so far, note it in ``best`` and ``ints``.

    ``o_port`` are the bits written to the output buffer, which are as many as are read from it.
    """
    objective, bandwidth, dram = chip[9], chip[5], dram_read + dram_write
    fixed_pj = (
        compute * core_pj
        + w_read * price[0]
        + w_write * price[1]
        + i_read * price[2]
        + i_write * price[3]
        + o_port * price[4]
        + o_port * price[5]
        + dram * price[6]
    )
    if not _may_win(chip, price, compute * float(bandwidth) + first + last, float(dram), fixed_pj, best):
        return False
    cycles = total_cycles(first, last, dram, compute, bandwidth, chip[10])
    energy = fixed_pj + cycles * price[7]
    if not better(objective, cycles, energy, best[0], best[1]):
        return False
    best[0], best[1] = cycles, energy
    ints[_STATUS], ints[_CYCLES], ints[_COMPUTE] = OK, cycles, compute
    ints[_TRAFFIC0], ints[_TRAFFIC0 + 1] = w_read, w_write
    ints[_TRAFFIC0 + 2], ints[_TRAFFIC0 + 3] = i_read, i_write
    ints[_TRAFFIC0 + 4], ints[_TRAFFIC0 + 5] = o_port, o_port
    ints[_TRAFFIC0 + 6], ints[_TRAFFIC0 + 7] = dram_read, dram_write
    return True


@njit(cache=True, nogil=True)
def _note_blocks(w_block, i_block, o_block, resident, chip, ints):
    """Bits in use at once: both halves of each buffer, and what is handed over in the input buffer."""
    handed_over = 0
    if resident & INPUT_RESIDENT != 0:
        handed_over += chip[3]
    if resident & OUTPUT_RESIDENT != 0:
        handed_over += chip[3]
    ints[_USED0] = 2 * w_block
    ints[_USED0 + 1] = min(2 * i_block + handed_over, 2 * chip[3])
    ints[_USED0 + 2] = 2 * o_block


@njit(cache=True, nogil=True)
def order_reuse(order, n_x, n_k, n_c, w_all, w_k, w_c, i_all, i_x, i_c, o_all, o_x, o_k):
    """How often each operand crosses the DRAM interface under a tile order.

    The flags say which blocks fit their buffer: ``w_all`` all weights, ``w_k`` one K tile over all C, ``w_c`` one C
    tile over all K; likewise for inputs (X, C) and partial sums (X, K). The mapper keeps the largest that fits.

    Returns
    -------
    weight_trips, input_trips : int
        Fetches of each weight and of each input tile.
    spills : int
        Times that each partial sum leaves the chip and comes back.
    """
    weight_trips, input_trips, spills = 1, 1, 0
    if (order in (0, 2) and not w_all) or (order == 1 and not (w_k or w_all)) or (order == 3 and not (w_c or w_all)):
        weight_trips = n_x
    if (order in (1, 4) and not i_all) or (order == 0 and not (i_x or i_all)) or (order == 5 and not (i_c or i_all)):
        input_trips = n_k
    if (order in (3, 5) and not o_all) or (order == 2 and not (o_x or o_all)) or (order == 4 and not (o_k or o_all)):
        spills = n_c - 1
    return weight_trips, input_trips, spills


@njit(cache=True, nogil=True)
def _dense(row, lane, serial, core_pj, resident, chip, price, xs, n_xs, cs, ks, best, ints):
    """Search the mappings that run one group at a time; improves ``best`` = (cycles, energy) and ``ints``."""
    N, K, C, P, Q, R, S, G = row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]
    wb, ib, ob, stored = row[_WB], row[_IB], row[_OB], row[_SB]
    rows, cols, bandwidth, wide = chip[0], chip[1], chip[5], chip[6]
    dataflow, flavours = chip[7], chip[8]
    w_cap, o_cap = chip[2], chip[4]
    in_resident, out_resident = resident & INPUT_RESIDENT != 0, resident & OUTPUT_RESIDENT != 0
    taps = R * S
    lanes = rows * lane
    weights = K * C * taps
    macs = N * G * weights * P * Q
    compulsory = G * weights * wb
    if not out_resident:
        compulsory += N * G * K * P * Q * ob
    if not in_resident:
        compulsory += G * C * xs[0, _IN_TOTAL] * stored
    least_input = xs[0, _IN_TOTAL]
    outputs = N * G * K * P * Q
    finished = outputs * ob
    least_units = xs[0, _UNITS]
    for xi in range(n_xs):
        least_units = min(least_units, xs[xi, _UNITS])
    n_ks = power_tiles(K, cols, ks)

    for flavour in range(2):
        if taps == 1 or dataflow == OUTPUT_STATIONARY:
            # One tap: both name the same mapping. Output-stationary rows are pixels, not reduction lanes.
            if flavour == IM2COL:
                continue
        elif (flavours >> flavour) & 1 == 0:
            continue
        expanded = flavour == IM2COL
        # A handed-over activation fills half of the input buffer; a gathered copy needs room beside it.
        i_cap = chip[3]
        if out_resident:
            i_cap //= 2
        if in_resident and expanded:
            i_cap = 0 if out_resident else i_cap // 2
        free_input = in_resident and not expanded
        n_cs = power_tiles(C, rows, cs)
        if expanded:
            n_cs = lane_tiles(C, rows * lane, rows, taps, cs, n_cs)
        for ci in range(n_cs):
            c = cs[ci]
            n_c = ceil_div(C, c)
            c_last = last_tile(C, c)
            if dataflow == OUTPUT_STATIONARY:
                c_units = sum_max(C, c, taps, rows)
            elif expanded:
                c_units = (n_c - 1) * ceil_div(c * taps, lanes) + ceil_div(c_last * taps, lanes)
            else:
                c_units = taps * sum_ceil(C, c, lanes)
            # Room that the c channels of a tile, and all channels tile by tile, take up in the rows' banks.
            if dataflow == OUTPUT_STATIONARY:
                c_room, all_c_room, tap_room = c, C, taps
            elif expanded:
                c_room = pad_to(c * taps, rows)
                all_c_room, tap_room = (n_c - 1) * c_room + pad_to(c_last * taps, rows), 1
            else:
                c_room = pad_to(c, rows)
                all_c_room, tap_room = (n_c - 1) * c_room + pad_to(c_last, rows), taps
            in_array = dataflow in (REDUCTION_COLUMNS, OUTPUT_STATIONARY, SHARED_WEIGHTS)
            accumulations = n_c if in_array else c_units
            out_width = wide if accumulations > 1 else ob
            for ki in range(n_ks):
                k = ks[ki]
                n_k = ceil_div(K, k)
                k_last = last_tile(K, k)
                k_room = pad_to(k, chip[12])
                all_k_room = (n_k - 1) * k_room + pad_to(k_last, chip[12])
                w_tile = k_room * c_room * tap_room * wb
                if w_tile > w_cap:
                    continue
                k_units = sum_max(K, k, 1, rows) if dataflow == INPUT_STATIONARY else sum_ceil(K, k, cols)
                column_passes = sum_ceil(K, k, cols)
                w_first = k * c * taps * wb
                i_reads = N * G * P * Q * C * taps * ib * (n_k if dataflow == INPUT_STATIONARY else column_passes)

                # No mapping with these channel tiles is cheaper than this.
                least_compute = G * least_units * k_units * c_units * serial
                least_pj = (
                    least_compute * core_pj
                    + (macs * wb * price[0] if dataflow == REDUCTION_COLUMNS else 0.0)
                    + i_reads * price[2]
                    + (outputs * (accumulations - 1) * wide + finished) * (price[4] + price[5])
                )
                least_busy = least_compute * float(bandwidth) + w_first
                low_pj = least_pj + compulsory * price[6] + G * weights * wb * price[1]
                if not _may_win(chip, price, least_busy, float(compulsory), low_pj, best):
                    continue

                w_block_all = all_k_room * all_c_room * tap_room * wb
                w_block_k = k_room * all_c_room * tap_room * wb
                w_block_c = all_k_room * c_room * tap_room * wb
                w_all, w_k, w_c = w_block_all <= w_cap, w_block_k <= w_cap, w_block_c <= w_cap
                for batch_outermost in range(2 if N > 1 else 1):
                    repeats = N if batch_outermost == 1 else 1
                    images = N // repeats
                    pixels = images * P * Q
                    o_block_all, o_block_k = all_k_room * pixels * wide, k_room * pixels * wide
                    o_all, o_k = o_block_all <= o_cap, o_block_k <= o_cap

                    # Nor with these and any pixel tile that fits: the fewest trips of each order.
                    least_x, least_tile, least_in, least_all = HUGE, HUGE, HUGE, HUGE
                    for xi in range(n_xs):
                        t = xs[xi]
                        in_tile = t[_PIXELS] if expanded else t[_IN_LARGEST]
                        fits = k_room * t[_PIXELS] * out_width <= o_cap and (
                            free_input or c_room * in_tile * ib <= i_cap
                        )
                        if fits and (batch_outermost == 0 or t[_TN] == 1):
                            least_x = min(least_x, t[_TRIPS] // repeats)
                            least_tile = min(least_tile, t[_PIXELS])
                            least_in = min(least_in, in_tile)
                            least_all = min(least_all, pixels if expanded else t[_IN_TOTAL] // repeats)
                    if least_x == HUGE:
                        continue
                    i_all = free_input or all_c_room * least_all * ib <= i_cap
                    i_x = free_input or all_c_room * least_in * ib <= i_cap
                    i_c = free_input or c_room * least_all * ib <= i_cap
                    o_x = all_k_room * least_tile * wide <= o_cap
                    hopeful = False
                    for order in range(2 if n_c == 1 else 6):
                        w_trips, i_trips, spills = order_reuse(
                            order, least_x, n_k, n_c, w_all, w_k, w_c, i_all, i_x, i_c, o_all, o_x, o_k
                        )
                        w_fill = G * weights * wb * (1 if w_all else repeats * w_trips)
                        spilled = outputs * spills * wide
                        low_dram = w_fill + 2 * spilled + (0 if out_resident else finished)
                        if not in_resident:
                            low_dram += G * C * least_input * stored * i_trips
                        low_pj = least_pj + low_dram * price[6] + w_fill * price[1] + spilled * (price[4] + price[5])
                        if _may_win(chip, price, least_busy, float(low_dram), low_pj, best):
                            hopeful = True
                            break
                    if not hopeful:
                        continue

                    for xi in range(n_xs):
                        t = xs[xi]
                        if batch_outermost == 1 and t[_TN] > 1:
                            continue
                        tile = t[_PIXELS]
                        o_tile = k_room * tile * out_width
                        if o_tile > o_cap:
                            continue
                        n_x = t[_TRIPS] // repeats
                        in_total = t[_IN_TOTAL] // repeats
                        # Elements that a channel, or a channel and kernel position, has in the buffer.
                        if expanded:
                            in_tile, in_all, in_fill = tile, pixels, pixels * taps
                        else:
                            in_tile, in_all, in_fill = t[_IN_LARGEST], in_total, in_total
                        i_tile = c_room * in_tile * ib
                        if not free_input and i_tile > i_cap:
                            continue
                        i_block_all, i_block_x = all_c_room * in_all * ib, all_c_room * in_tile * ib
                        i_block_c = c_room * in_all * ib
                        i_all, i_x = free_input or i_block_all <= i_cap, free_input or i_block_x <= i_cap
                        i_c = free_input or i_block_c <= i_cap
                        o_block_x = all_k_room * tile * wide
                        o_x = o_block_x <= o_cap
                        x_units = t[_UNITS] // repeats
                        compute = G * repeats * x_units * k_units * c_units * serial
                        if dataflow == REDUCTION_COLUMNS:
                            w_reads = macs * wb
                        elif dataflow == WEIGHT_STATIONARY:
                            w_reads = G * repeats * n_x * weights * wb
                        else:
                            w_reads = G * repeats * x_units * weights * wb
                        first = w_first + (0 if in_resident else c * t[_IN_FIRST] * stored)
                        last = 0 if out_resident else k_last * t[_PIXELS_LAST] * ob
                        # What every order costs: all but weight and input trips and spills.
                        busy_bits = compute * float(bandwidth) + first + last
                        common_pj = (
                            compute * core_pj
                            + w_reads * price[0]
                            + i_reads * price[2]
                            + (outputs * (accumulations - 1) * wide + finished) * (price[4] + price[5])
                        )
                        for order in range(2 if n_c == 1 else 6):
                            w_trips, i_trips, spills = order_reuse(
                                order, n_x, n_k, n_c, w_all, w_k, w_c, i_all, i_x, i_c, o_all, o_x, o_k
                            )
                            w_fill = G * weights * wb * (1 if w_all else repeats * w_trips)
                            i_fill = 0 if free_input else G * repeats * C * in_fill * ib * i_trips
                            i_raw = G * repeats * C * in_total * i_trips
                            gathered = i_raw * ib if in_resident and expanded else 0
                            spilled = outputs * spills * wide
                            dram_read = w_fill + (0 if in_resident else i_raw * stored) + spilled
                            dram_write = spilled + (0 if out_resident else finished)
                            order_pj = (
                                common_pj
                                + w_fill * price[1]
                                + i_fill * price[3]
                                + spilled * (price[4] + price[5])
                                + (dram_read + dram_write) * price[6]
                            )
                            if not _may_win(chip, price, busy_bits, float(dram_read + dram_write), order_pj, best):
                                continue
                            if _offer(
                                chip, price, core_pj, compute,
                                w_reads, w_fill, i_reads + gathered, i_fill + (finished if out_resident else 0),
                                outputs * (accumulations - 1 + spills) * wide + finished,
                                dram_read, dram_write, first, last, best, ints,
                            ):  # fmt: skip
                                ints[_MAPPING], ints[_ORDER], ints[_LANE] = flavour, order, lane
                                ints[_BATCH_OUT] = batch_outermost
                                a = _TILE0
                                ints[a], ints[a + 1], ints[a + 2], ints[a + 3] = 1, t[_TN], k, c
                                ints[a + 4], ints[a + 5] = t[_TP], t[_TQ]
                                ints[_PAR0], ints[_PAR0 + 1], ints[_PAR0 + 2] = 1, 1, 1
                                # The smallest blocks with which these trips come out.
                                w_block, i_block, o_block = w_tile, i_tile, o_tile
                                if w_all and (repeats > 1 or (n_x > 1 and order in (0, 2))):
                                    w_block = w_block_all
                                elif n_x > 1 and w_k and order == 1:
                                    w_block = w_block_k
                                elif n_x > 1 and w_c and order == 3:
                                    w_block = w_block_c
                                if n_k > 1 and i_x and order == 0:
                                    i_block = i_block_x
                                elif n_k > 1 and i_all and order in (1, 4):
                                    i_block = i_block_all
                                elif n_k > 1 and i_c and order == 5:
                                    i_block = i_block_c
                                if n_c > 1 and spills == 0 and order == 2:
                                    o_block = o_block_x
                                elif n_c > 1 and spills == 0 and order == 4:
                                    o_block = o_block_k
                                elif n_c > 1 and spills == 0 and order in (3, 5):
                                    o_block = o_block_all
                                if free_input:
                                    i_block = 0
                                _note_blocks(w_block, i_block, o_block, resident, chip, ints)


@njit(cache=True, nogil=True)
def _packings(row, lane, serial, chip, table):
    """Ways to share the array between groups and output pixels, the fastest first.

    Parameters
    ----------
    table : ndarray of int64, shape (_MAX_TILES, 8)
        Filled with least cycles, flavour, lane factor, pixel rows and columns, groups at once, array passes of a step,
        and input positions under the patch.

    Returns
    -------
    int
        Number of packings.
    """
    N, K, C, P, Q, R, S, G = row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]
    cols, flavours = chip[1], chip[8]
    count = 0
    widest = lane
    while lane >= 1:
        lanes = chip[0] * lane
        for flavour in range(2):
            if (flavours >> flavour) & 1 == 0 or (flavour == CHANNEL and G == 1):
                continue
            h = 1
            while h == 1 or (flavour == IM2COL and h // 2 < P and K * h <= cols):
                reach_h = rows_touched(1 << 40, 0, R, row[_STRIDE_H], row[_DILATION_H], 0, h)
                w = 1
                while w == 1 or (flavour == IM2COL and w // 2 < Q and K * h * w <= cols):
                    if (G > 1 or h * w > 1) and count < _MAX_TILES:
                        reach = reach_h * rows_touched(1 << 40, 0, S, row[_STRIDE_H + 1], row[_DILATION_H + 1], 0, w)
                        used_lanes = C * reach if flavour == IM2COL else C
                        together = max(1, min(G, cols // (K * h * w), lanes // used_lanes))
                        rounds = ceil_div(used_lanes, lanes)
                        wider_together = max(1, min(G, cols // (K * h * w), 2 * lanes // used_lanes))
                        if lane < widest and rounds == ceil_div(used_lanes, 2 * lanes) and together == wider_together:
                            w *= 2  # the next narrower setting gives the same
                            continue
                        passes = rounds * (1 if flavour == IM2COL else R * S) * ceil_div(K, cols)
                        steps = N * ceil_div(P, h) * ceil_div(Q, w)
                        if chip[7] == SHARED_WEIGHTS:
                            steps = ceil_div(steps, chip[11])
                        steps *= ceil_div(G, together)
                        least = steps * passes * serial
                        at = count
                        while at > 0 and table[at - 1, 0] > least:
                            table[at] = table[at - 1]
                            at -= 1
                        t = table[at]
                        t[0], t[1], t[2], t[3], t[4] = least, flavour, lane, h, w
                        t[5], t[6], t[7] = together, passes, reach
                        count += 1
                    w *= 2
                h *= 2
        lane //= 2
    return count


@njit(cache=True, nogil=True)
def _packed(row, lane, serial, core_pj, resident, chip, price, xs, n_xs, sizes, groups, packings, best, ints):
    """Search the mappings that pack groups or output pixels on the array; improves ``best`` and ``ints``.

    Column blocks belong to different groups or neighbouring pixels; weights off the blocks are zero and their units
    idle. A tile holds whole groups, all their channels, so tiles run group by group with each group's weights kept.
    """
    N, K, C, P, Q, R, S, G = row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]
    wb, ib, ob, stored = row[_WB], row[_IB], row[_OB], row[_SB]
    rows, cols, bandwidth, wide = chip[0], chip[1], chip[5], chip[6]
    dataflow = chip[7]
    w_cap, o_cap = chip[2], chip[4]
    in_resident, out_resident = resident & INPUT_RESIDENT != 0, resident & OUTPUT_RESIDENT != 0
    taps = R * S
    weights = K * C * taps
    macs = N * G * weights * P * Q
    outputs = N * G * K * P * Q
    finished = outputs * ob
    column_passes = ceil_div(K, cols)
    pixel_rows = chip[11] if dataflow == SHARED_WEIGHTS else rows
    dram_write = 0 if out_resident else finished
    least_dram = G * weights * wb + dram_write + (0 if in_resident else G * C * xs[0, _IN_TOTAL] * stored)

    for i in range(_packings(row, lane, serial, chip, packings)):
        least, flavour, packed_lane, h, w = (
            packings[i, 0],
            packings[i, 1],
            packings[i, 2],
            packings[i, 3],
            packings[i, 4],
        )
        together, passes, reach = packings[i, 5], packings[i, 6], packings[i, 7]
        expanded = flavour == IM2COL
        accumulations = passes // column_passes if dataflow == WEIGHT_STATIONARY else 1
        out_width = wide if accumulations > 1 else ob
        o_port = outputs * (accumulations - 1) * wide + finished
        w_fill = G * weights * h * w * wb
        low_pj = least * core_pj + least_dram * price[6] + o_port * (price[4] + price[5]) + w_fill * price[1]
        if dataflow == REDUCTION_COLUMNS:
            low_pj += macs * wb * price[0]
        if not _may_win(chip, price, least * float(bandwidth), float(least_dram), low_pj, best):
            continue
        i_cap = chip[3]
        if out_resident:
            i_cap //= 2
        if in_resident and expanded:
            i_cap = 0 if out_resident else i_cap // 2
        free_input = in_resident and not expanded
        row_room = pad_to(together * C * (reach if expanded else 1), rows)
        column_room = pad_to(K * h * w * together, chip[12])
        n_gs = 0
        least_units, fewest_groups = HUGE, G
        for gi in range(power_tiles(G, together, sizes)):
            g = sizes[gi]
            rounds = ceil_div(g, together)
            if (g == 1 or g >= together) and rounds * column_room * row_room * (1 if expanded else taps) * wb <= w_cap:
                group = groups[n_gs]
                group[0], group[1], group[2], group[3] = g, rounds, sum_ceil(G, g, together), last_tile(G, g)
                least_units, fewest_groups = min(least_units, group[2]), min(fewest_groups, g)
                n_gs += 1
        for xi in range(n_xs if n_gs > 0 else 0):
            t = xs[xi]
            n, p, q = t[_TN], t[_TP], t[_TQ]
            steps_in_tile = n * ceil_div(p, h) * ceil_div(q, w)
            steps = N * sum_ceil(P, p, h) * sum_ceil(Q, q, w)
            if expanded:
                in_tile, in_fill, out_tile = steps_in_tile, steps * reach, steps_in_tile
            else:
                in_tile, in_fill, out_tile = t[_IN_LARGEST], t[_IN_TOTAL], t[_PIXELS]
            step_cycles = steps
            w_reads = macs * wb
            if dataflow != REDUCTION_COLUMNS:
                patches_p, patches_q = sum_ceil(P, p, h), sum_ceil(Q, q, w)
                step_cycles = _pixel_units(
                    dataflow, pixel_rows, cols, N, patches_p, patches_q, n, ceil_div(p, h), ceil_div(q, w)
                )
                w_reads = w_fill * (step_cycles if dataflow == SHARED_WEIGHTS else t[_TRIPS])
            i_reads = G * steps * C * (reach if expanded else taps) * column_passes * ib
            i_raw = 0 if in_resident else G * C * t[_IN_TOTAL] * stored
            gathered = G * C * t[_IN_TOTAL] * ib if in_resident and expanded else 0
            i_fill = (0 if free_input else G * C * in_fill * ib) + (finished if out_resident else 0)
            dram_read = G * weights * wb + i_raw
            common_pj = (
                w_reads * price[0]
                + w_fill * price[1]
                + (i_reads + gathered) * price[2]
                + i_fill * price[3]
                + o_port * (price[4] + price[5])
                + (dram_read + dram_write) * price[6]
            )
            first_of_group = weights * wb + (0 if in_resident else C * t[_IN_FIRST] * stored)
            tile_cycles = step_cycles * passes * serial
            busy_bits = least_units * tile_cycles * float(bandwidth) + fewest_groups * first_of_group
            low_pj = common_pj + least_units * tile_cycles * core_pj
            if not _may_win(chip, price, busy_bits, float(dram_read + dram_write), low_pj, best):
                continue
            for gi in range(n_gs):
                g, rounds = groups[gi, 0], groups[gi, 1]
                i_block = 0 if free_input else rounds * row_room * in_tile * ib
                o_block = rounds * column_room * out_tile * out_width
                if i_block > i_cap or o_block > o_cap:
                    continue
                compute = groups[gi, 2] * tile_cycles
                first = g * first_of_group
                last = 0 if out_resident else groups[gi, 3] * K * t[_PIXELS_LAST] * ob
                busy_bits = compute * float(bandwidth) + first + last
                if not _may_win(
                    chip, price, busy_bits, float(dram_read + dram_write), common_pj + compute * core_pj, best
                ):
                    continue
                if _offer(
                    chip, price, core_pj, compute, w_reads, w_fill, i_reads + gathered, i_fill, o_port,
                    dram_read, dram_write, first, last, best, ints,
                ):  # fmt: skip
                    w_block = rounds * column_room * row_room * (1 if expanded else taps) * wb
                    ints[_MAPPING], ints[_ORDER], ints[_LANE] = PACKED_CHANNEL + flavour, 0, packed_lane
                    ints[_BATCH_OUT] = 0
                    a = _TILE0
                    ints[a], ints[a + 1], ints[a + 2], ints[a + 3], ints[a + 4], ints[a + 5] = g, n, K, C, p, q
                    ints[_PAR0], ints[_PAR0 + 1], ints[_PAR0 + 2] = together, h, w
                    _note_blocks(w_block, i_block, o_block, resident, chip, ints)


@njit(cache=True, nogil=True)
def _stream(row, resident, chip, price, ints):
    """Price an operator that only moves activations: one pass, a column's post-processing unit an element a cycle.

    Returns
    -------
    cycles : int
    energy_pj : float
    """
    N, P, Q, R, S = row[0], row[3], row[4], row[5], row[6]
    channels_in, channels_out = row[2] * row[7], row[1] * row[7]
    wb, ib, ob, stored = row[_WB], row[_IB], row[_OB], row[_SB]
    in_resident, out_resident = resident & INPUT_RESIDENT != 0, resident & OUTPUT_RESIDENT != 0
    height = axis_rows(row[_H], row[_PAD_TOP], R, row[_STRIDE_H], row[_DILATION_H], P, P)[0]
    width = axis_rows(row[_H + 1], row[_PAD_TOP + 2], S, row[_STRIDE_H + 1], row[_DILATION_H + 1], Q, Q)[0]
    inputs = N * channels_in * height * width
    second = row[_SECOND] if row[_OP] == _ADD or row[_OP] == _MUL else 0
    outputs = N * channels_out * P * Q
    dram_read = (0 if in_resident else inputs * stored) + second * wb
    dram_write = 0 if out_resident else outputs * ob
    loaded = inputs * ib + second * wb
    compute = ceil_div(max(inputs, outputs), chip[1])
    cycles = max(compute, ceil_div(dram_read + dram_write, chip[5]))
    ints[_STATUS], ints[_CYCLES], ints[_COMPUTE] = OK, cycles, compute
    a = _TRAFFIC0
    ints[a], ints[a + 1] = 0, 0
    ints[a + 2] = loaded
    ints[a + 3] = loaded - (inputs * ib if in_resident else 0) + (outputs * ob if out_resident else 0)
    ints[a + 4], ints[a + 5] = outputs * ob, outputs * ob
    ints[a + 6], ints[a + 7] = dram_read, dram_write
    ints[_USED0], ints[_USED0 + 1], ints[_USED0 + 2] = 0, min(loaded, 2 * chip[3]), min(outputs * ob, 2 * chip[4])
    ints[_MAPPING], ints[_ORDER], ints[_LANE], ints[_BATCH_OUT] = STREAM, 0, 1, 0
    for i in range(6):
        ints[_TILE0 + i] = 0
    for i in range(3):
        ints[_PAR0 + i] = 1
    ints[_BOUND] = _BOUND_DRAM if cycles > compute else _BOUND_COMPUTE


@njit(cache=True, nogil=True)
def smallest_tile_bits(row, chip, operand):
    """Room that one output of one channel needs in a buffer: 0 weights, 1 inputs, 2 outputs."""
    taps, rows, cols = row[5] * row[6], chip[0], chip[12]
    if chip[7] == OUTPUT_STATIONARY:
        reach = taps
    elif chip[8] & ALLOW_IM2COL != 0 or taps == 1:
        reach = pad_to(taps, rows)
    else:
        reach = taps * rows
    if operand == 0:
        return cols * reach * row[_WB]
    return reach * row[_IB] if operand == 1 else cols * row[_OB]


@njit(cache=True, nogil=True)
def _what_does_not_fit(row, chip):
    """The first buffer that has no room for the smallest tile of a layer that has no mapping."""
    if smallest_tile_bits(row, chip, 0) > chip[2]:
        return NO_WEIGHT_TILE
    if smallest_tile_bits(row, chip, 2) > chip[4]:
        return NO_OUTPUT_TILE
    return NO_INPUT_TILE


@njit(cache=True, nogil=True)
def price_layers(layers, lane_factor, serial_cycles, core_pj, resident, chip, price, ints, floats):
    """Price each layer by its best mapping.

    Parameters
    ----------
    layers : ndarray of int64, shape (n, len(PACKED_COLUMNS))
    lane_factor : ndarray of int64, shape (n,)
        Products that one unit does in a cycle at the layer's bitwidths, a power of two.
    serial_cycles : ndarray of int64, shape (n,)
        Cycles that one such step takes (bit-serial arrays, operands in several passes).
    core_pj : ndarray of float64, shape (n,)
        Energy of the array in a cycle in which it computes.
    resident : ndarray of int64, shape (n,)
        `INPUT_RESIDENT` and `OUTPUT_RESIDENT` bits.
    chip : ndarray of int64, shape (len(CHIP_COLUMNS),)
        Capacities are what one tile may fill: half of a double buffer. ``column_banks`` are the output channels that
        have banks of their own at one time: the columns, or 1 where columns are pixels.
    price : ndarray of float64, shape (len(PRICE_COLUMNS),)
    ints, floats : ndarray, shapes (n, len(INT_COLUMNS)) and (n, len(FLOAT_COLUMNS))
        Written.
    """
    xs = np.empty((_MAX_TILES, 10), np.int64)
    axes = np.empty((2, 64, 3), np.int64)
    groups = np.empty((128, 4), np.int64)
    packings = np.empty((_MAX_TILES, 8), np.int64)
    cs = np.empty(128, np.int64)
    ks = np.empty(128, np.int64)
    best = np.empty(2, np.float64)
    rows, cols = chip[0], chip[1]
    windows = chip[11] if chip[7] == SHARED_WEIGHTS else 1
    for i in range(layers.shape[0]):
        row, out = layers[i], ints[i]
        if row[_OP] >= _N_MAC_OPS:
            _stream(row, resident[i], chip, price, out)
            floats[i, 0] = 0.0
            floats[i, 4] = 0.0
        elif lane_factor[i] < 1:
            out[_STATUS] = TOO_WIDE
            continue
        else:
            K, C, G, taps = row[1], row[2], row[7], row[5] * row[6]
            n_xs = pixel_tiles(row, windows if chip[7] == SHARED_WEIGHTS else rows, cols, chip[7], axes, xs)
            best[0], best[1] = np.inf, np.inf
            lane, serial, core = lane_factor[i], serial_cycles[i], core_pj[i]
            packs = chip[7] in (REDUCTION_COLUMNS, WEIGHT_STATIONARY, SHARED_WEIGHTS)
            if packs and (G > 1 or cols >= 2 * K):
                _packed(row, lane, serial, core, resident[i], chip, price, xs, n_xs, cs, groups, packings, best, out)
            _dense(row, lane, serial, core, resident[i], chip, price, xs, n_xs, cs, ks, best, out)
            if best[0] == np.inf:
                out[_STATUS] = _what_does_not_fit(row, chip)
                continue
            macs = row[0] * G * K * C * row[3] * row[4] * taps
            floats[i, 0] = out[_COMPUTE] * core_pj[i]
            floats[i, 4] = macs * serial_cycles[i] / (out[_COMPUTE] * (rows * cols * windows * lane_factor[i]))
            dram_cycles = ceil_div(out[_TRAFFIC0 + 6] + out[_TRAFFIC0 + 7], chip[5])
            if dram_cycles > out[_COMPUTE]:
                out[_BOUND] = _BOUND_DRAM
            else:
                out[_BOUND] = _BOUND_COMPUTE if floats[i, 4] >= 0.5 else _BOUND_ARRAY
        sram = 0.0
        for j in range(6):
            sram += out[_TRAFFIC0 + j] * price[j]
        floats[i, 1] = sram
        floats[i, 2] = (out[_TRAFFIC0 + 6] + out[_TRAFFIC0 + 7]) * price[6]
        floats[i, 3] = out[_CYCLES] * price[7]


def describe(ints: list[int]) -> str:
    """The mapping of one row of `INT_COLUMNS`, for people."""
    mapping = ints[_MAPPING]
    if mapping == STREAM:
        return "stream"
    g, n, k, c, p, q = ints[_TILE0 : _TILE0 + 6]
    tile = f"tile g{g} n{n} k{k} c{c} p{p} q{q}"
    if mapping in (PACKED_CHANNEL, PACKED_IM2COL):
        par_g, par_h, par_w = ints[_PAR0 : _PAR0 + 3]
        lanes = "channels" if mapping == PACKED_CHANNEL else "taps"
        return f"{lanes} on lanes, {par_g} groups x {par_h}x{par_w} pixels at once, {tile}, order {GROUPED_ORDER}"
    order = ("N" if ints[_BATCH_OUT] else "") + ORDERS[ints[_ORDER]]
    return f"{'channels' if mapping == CHANNEL else 'taps'} on lanes, {tile}, order {order}"
