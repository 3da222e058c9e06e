"""Slow twin of the mapping search: the declared map space of the default Bit Fusion model, and its closed forms.

Written from docs/bitfusion.md alone, in plain Python integers, nothing pruned. Letters are the document's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from hwmodels import BitFusion
from hwmodels.cost import INT, TRAFFIC
from hwmodels.workload import Layer

ACCUMULATOR_BITS = 32
ORDERS = ("XKC", "KXC", "XCK", "CXK", "KCX", "CKX")
KINDS = ("channel", "im2col", "packed channel", "packed im2col")
#: What each operand may keep in its buffer beyond one tile: all its tiles along these loops, in each order.
SPANS = {
    "XKC": {"weight": "KC", "input": "C", "output": ""},
    "KXC": {"weight": "C", "input": "XC", "output": ""},
    "XCK": {"weight": "KC", "input": "", "output": "K"},
    "CXK": {"weight": "K", "input": "", "output": "XK"},
    "KCX": {"weight": "", "input": "XC", "output": "X"},
    "CKX": {"weight": "", "input": "X", "output": "XK"},
}


class Mapping(NamedTuple):
    """One point of the map space: how a layer is laid on the array and in which tiles and order it runs."""

    kind: str
    order: str
    batch_outermost: bool
    lane_factor: int
    tile_g: int
    tile_n: int
    tile_k: int
    tile_c: int
    tile_p: int
    tile_q: int
    par_g: int = 1
    par_h: int = 1
    par_w: int = 1

    @property
    def packed(self) -> bool:
        return self.kind.startswith("packed")

    @property
    def gathers(self) -> bool:
        """Whether the input buffer holds gathered copies."""
        return self.kind.endswith("im2col")


class Counts(NamedTuple):
    """What a layer moves and how long the array works on it."""

    compute_cycles: int
    traffic_bits: dict[str, int]
    first_bits: int  #: DRAM traffic before the array can start
    last_bits: int  #: DRAM traffic after the array has ended

    def cycles(self, dram_bits_per_cycle: int) -> int:
        dram_bits = self.traffic_bits["dram_read"] + self.traffic_bits["dram_write"]
        first, middle, last = (
            -(-bits // dram_bits_per_cycle)
            for bits in (self.first_bits, dram_bits - self.first_bits - self.last_bits, self.last_bits)
        )
        return first + max(self.compute_cycles, middle) + last

    def energy_pj(self, chip: BitFusion) -> float:
        price = chip.unit_energies
        bits = self.traffic_bits
        return (
            self.compute_cycles * price.core_pj_per_cycle
            + sum(bits[port] * getattr(price, f"{port}_pj_per_bit") for port in TRAFFIC[:6])
            + (bits["dram_read"] + bits["dram_write"]) * price.dram_pj_per_bit
            + self.cycles(chip.dram_bits_per_cycle) * price.leakage_pj_per_cycle
        )

    def objective(self, chip: BitFusion) -> float:
        cycles = self.cycles(chip.dram_bits_per_cycle)
        if chip.objective == "latency":
            return float(cycles)
        return self.energy_pj(chip) * (cycles if chip.objective == "edp" else 1)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def pad(a: int, b: int) -> int:
    return ceil_div(a, b) * b


def tiles_of(size: int, tile: int) -> list[tuple[int, int]]:
    """The half-open intervals that tiles of one size cut an axis into."""
    return [(start, min(start + tile, size)) for start in range(0, size, tile)]


@cache
def _positions(axis: tuple[int, int, int], o0: int, o1: int) -> frozenset[int]:
    """Input rows that outputs o0..o1-1 read, the first of output 0 being row 0; ``axis``: stride, dilation, taps."""
    stride, dilation, taps = axis
    return frozenset(o * stride + tap * dilation for o in range(o0, o1) for tap in range(taps))


@cache
def _touched(axis: tuple[int, int, int], origin: int, size: int, o0: int, o1: int) -> int:
    return sum(0 <= i - origin < size for i in _positions(axis, o0, o1))


def _axis(layer: Layer, axis: int) -> tuple[int, int, int]:
    return layer.stride[axis], layer.dilation[axis], layer.kernel_size[axis]


def touched(layer: Layer, axis: int, o0: int, o1: int) -> int:
    """How many input rows (axis 0) or columns (axis 1) the outputs o0..o1-1 read, padding left out."""
    return _touched(_axis(layer, axis), layer.pads[axis][0], layer.in_size[axis], o0, o1)


def reach(layer: Layer, par_h: int, par_w: int) -> int:
    """Input positions under a patch of neighbouring output pixels, padding counted."""
    return len(_positions(_axis(layer, 0), 0, par_h)) * len(_positions(_axis(layer, 1), 0, par_w))


def capacity_bits(chip: BitFusion) -> dict[str, int]:
    """Bits of each buffer that one block may fill: half."""
    return {name: 4 * getattr(chip, f"{name}_buffer_bytes") for name in ("weight", "input", "output")}


class Blocks:
    """What parts of a layer take up of the three buffers, in bits: every bank as full as the fullest."""

    def __init__(self, layer: Layer, chip: BitFusion, mapping: Mapping) -> None:
        self.layer, self.dims, self.mapping = layer, layer.dims, mapping
        d, m = self.dims, mapping
        p_spans, q_spans = tiles_of(d.P, m.tile_p), tiles_of(d.Q, m.tile_q)
        k_sizes, c_sizes, p_sizes, q_sizes = (
            [stop - start for start, stop in spans]
            for spans in (tiles_of(d.K, m.tile_k), tiles_of(d.C, m.tile_c), p_spans, q_spans)
        )
        self.row_tiles, self.col_tiles = len(p_spans), len(q_spans)
        self.rows = [touched(layer, 0, *p) for p in p_spans]
        self.cols = [touched(layer, 1, *q) for q in q_spans]
        self.images = 1 if m.batch_outermost else d.N
        self.acc = len(c_sizes)
        self.stored_output_bits = ACCUMULATOR_BITS if self.acc > 1 else layer.output_bits

        taps = d.R * d.S
        patch_rows = [ceil_div(p, m.par_h) for p in p_sizes]
        patch_cols = [ceil_div(q, m.par_w) for q in q_sizes]
        rounds = ceil_div(m.tile_g, m.par_g)
        if m.packed:
            used = m.par_g * d.C * (reach(layer, m.par_h, m.par_w) if m.gathers else 1)
            self.lanes = self.weight_lanes = [rounds * pad(used, chip.rows)]
            if not m.gathers:
                self.weight_lanes = [self.lanes[0] * taps]
            self.columns = [chip.cols * ceil_div(d.K, chip.cols)]
        else:
            self.lanes = [pad(c * taps if m.gathers else c, chip.rows) for c in c_sizes]
            self.weight_lanes = [lanes if m.gathers else lanes * taps for lanes in self.lanes]
            self.columns = [pad(k, chip.cols) for k in k_sizes]
        self.input_pixels = (patch_rows, patch_cols) if m.gathers else (self.rows, self.cols)
        self.output_pixels = (patch_rows, patch_cols) if m.gathers else (p_sizes, q_sizes)
        self.output_rounds = rounds if m.packed else 1
        copies = d.C * (reach(layer, m.par_h, m.par_w) if m.gathers else 1)
        self.held = d.N * d.G * copies * sum(self.input_pixels[0]) * sum(self.input_pixels[1])

    def bits(self, operand: str, span: str) -> int:
        """What a block takes up: all tiles along the loops of ``span``, and the largest one along the others."""
        columns = (sum if "K" in span else max)(self.columns)
        if operand == "weight":
            return (sum if "C" in span else max)(self.weight_lanes) * columns * self.layer.weight_bits
        rows, cols = self.input_pixels if operand == "input" else self.output_pixels
        if "X" in span:
            pixels = self.images * sum(rows) * sum(cols)
        else:
            pixels = self.mapping.tile_n * max(rows) * max(cols)
        if operand == "input":
            return (sum if "C" in span else max)(self.lanes) * pixels * self.layer.input_bits
        return self.output_rounds * columns * pixels * self.stored_output_bits

    def fetched(self) -> int:
        """Elements of all input tiles."""
        return self.dims.N * self.dims.G * self.dims.C * sum(self.rows) * sum(self.cols)


def residency(layer: Layer, chip: BitFusion, mapping: Mapping) -> dict[str, str] | None:
    """Along which loops each operand keeps all its tiles in its buffer; None where not even single tiles fit."""
    blocks, capacity = Blocks(layer, chip, mapping), capacity_bits(chip)
    if any(blocks.bits(operand, "") > capacity[operand] for operand in capacity):
        return None
    keeps = {
        operand: span if blocks.bits(operand, span) <= capacity[operand] else ""
        for operand, span in SPANS[mapping.order].items()
    }
    if mapping.batch_outermost and blocks.bits("weight", "KC") <= capacity["weight"]:
        keeps["weight"] = "KC"
    return keeps


def steps(layer: Layer, chip: BitFusion, mapping: Mapping) -> int:
    """Cycles that the array computes: the table of section 3, summed over tiles."""
    m, d = mapping, layer.dims
    lanes = chip.rows * m.lane_factor
    columns = sum(ceil_div(b - a, chip.cols) for a, b in tiles_of(d.K, m.tile_k))
    groups = sum(ceil_div(b - a, m.par_g) for a, b in tiles_of(d.G, m.tile_g))
    if m.kind in ("channel", "packed channel"):
        reduction = d.R * d.S * sum(ceil_div(b - a, lanes) for a, b in tiles_of(d.C, m.tile_c))
        return groups * d.N * d.P * d.Q * columns * reduction
    if m.kind == "im2col":
        reduction = sum(ceil_div((b - a) * d.R * d.S, lanes) for a, b in tiles_of(d.C, m.tile_c))
        return groups * d.N * d.P * d.Q * columns * reduction
    return groups * patches(layer, m) * columns * ceil_div(d.C * reach(layer, m.par_h, m.par_w), lanes)


def patches(layer: Layer, mapping: Mapping) -> int:
    """Patches of ``par_h x par_w`` output pixels that the pixel tiles are cut into."""
    d = layer.dims
    rows = sum(ceil_div(b - a, mapping.par_h) for a, b in tiles_of(d.P, mapping.tile_p))
    return d.N * rows * sum(ceil_div(b - a, mapping.par_w) for a, b in tiles_of(d.Q, mapping.tile_q))


def counts(layer: Layer, chip: BitFusion, mapping: Mapping) -> Counts | None:
    """Closed form of sections 4 and 5; None where the tiles do not fit."""
    keeps = residency(layer, chip, mapping)
    if keeps is None:
        return None
    m, d, blocks = mapping, layer.dims, Blocks(layer, chip, mapping)
    wb, ib, ob, sb = layer.weight_bits, layer.input_bits, layer.output_bits, layer.stored_input_bits or layer.input_bits
    trips = {"C": blocks.acc, "K": ceil_div(d.K, m.tile_k), "X": blocks.row_tiles * blocks.col_tiles}
    trips["X"] *= ceil_div(blocks.images, m.tile_n)

    weight_trips = input_trips = 1
    spills = 0
    if m.order in ("XKC", "KXC", "XCK", "CXK") and not keeps["weight"]:
        weight_trips = trips["X"]
    if m.order in ("XKC", "KXC", "KCX", "CKX") and not keeps["input"]:
        input_trips = trips["K"]
    if m.order in ("XCK", "CXK", "KCX", "CKX") and not keeps["output"]:
        spills = blocks.acc - 1
    if m.batch_outermost and keeps["weight"] != "KC":
        weight_trips *= d.N

    weights, outputs = d.G * d.K * d.C * d.R * d.S, d.N * d.G * d.K * d.P * d.Q
    copies = m.par_h * m.par_w if m.gathers else 1
    columns = sum(ceil_div(b - a, chip.cols) for a, b in tiles_of(d.K, m.tile_k))
    if m.kind == "packed im2col":
        input_reads = d.G * patches(layer, m) * d.C * reach(layer, m.par_h, m.par_w) * columns
    else:
        input_reads = d.N * d.P * d.Q * d.G * d.C * d.R * d.S * columns
    through_output_buffer = outputs * ((blocks.acc - 1 + spills) * ACCUMULATOR_BITS + ob)
    traffic = {
        "weight_buffer_read": layer.macs * wb,
        "weight_buffer_write": weights * wb * weight_trips * copies,
        "input_buffer_read": input_reads * ib,
        "input_buffer_write": blocks.held * ib * input_trips,
        "output_buffer_read": through_output_buffer,
        "output_buffer_write": through_output_buffer,
        "dram_read": weights * wb * weight_trips
        + blocks.fetched() * sb * input_trips
        + outputs * ACCUMULATOR_BITS * spills,
        "dram_write": outputs * ACCUMULATOR_BITS * spills + outputs * ob,
    }
    first_input = m.tile_g * m.tile_n * m.tile_c * blocks.rows[0] * blocks.cols[0]
    first_weight = m.tile_g * m.tile_k * m.tile_c * d.R * d.S
    last_output = 1
    for size, tile in zip((d.G, d.N, d.K, d.P, d.Q), (m.tile_g, m.tile_n, m.tile_k, m.tile_p, m.tile_q), strict=True):
        start, stop = tiles_of(size, tile)[-1]
        last_output *= stop - start
    return Counts(steps(layer, chip, m), traffic, first_weight * wb + first_input * sb, last_output * ob)


# --- The map space of section 3 ---------------------------------------------------------------------------------------


def powers_below(size: int) -> list[int]:
    """1, 2, 4, ... below ``size``."""
    return [2**i for i in range(size.bit_length()) if 2**i < size]


def channel_tiles(size: int, unit: int) -> list[int]:
    multiples = [unit * 2**i for i in range(size.bit_length()) if unit * 2**i < size]
    return sorted({size, *multiples, *powers_below(size)})


def pixel_tiles(n: int, p: int, q: int) -> list[tuple[int, int, int]]:
    """Tiles (n, p, q): whole images, strips of rows, squares, parts of a row."""
    images = [(min(2**i, n), p, q) for i in range(n.bit_length() + 1)]
    strips = [(1, rows, q) for rows in powers_below(p)]
    edges = [2**i for i in range(max(p, q).bit_length() + 1)]
    squares = [(1, min(edge, p), min(edge, q)) for edge in edges if min(edge, p) > 1 and min(edge, q) < q]
    parts = [(1, 1, cols) for cols in powers_below(q)]
    return sorted({*images, *strips, *squares, *parts})


def lane_factor(chip: BitFusion, weight_bits: int, input_bits: int) -> int:
    """Products of one Fusion Unit when each operand runs at the narrowest setting that holds it."""
    return _operands(chip, weight_bits) * _operands(chip, input_bits)


def _operands(chip: BitFusion, bits: int) -> int:
    settings = [setting for setting in (2**i for i in range(6)) if chip.min_bits <= setting <= chip.max_bits]
    return chip.max_bits // min(setting for setting in settings if setting >= bits)


def dense_mappings(layer: Layer, chip: BitFusion) -> Iterator[Mapping]:
    d, factor = layer.dims, lane_factor(chip, layer.weight_bits, layer.input_bits)
    kinds = ["channel"] if d.R * d.S == 1 else [k for k in ("channel", "im2col") if chip.mapping in (k, "auto")]
    for kind, outermost in itertools.product(kinds, (False, True) if d.N > 1 else (False,)):
        channels = channel_tiles(d.C, chip.rows)
        if kind == "im2col":
            filling = [chip.rows * (factor >> shift) // (d.R * d.S) for shift in range(factor.bit_length())]
            channels = sorted(
                {*channels, *(c << i for c in filling if c for i in range(d.C.bit_length()) if c << i < d.C)}
            )
        for k, c in itertools.product(channel_tiles(d.K, chip.cols), channels):
            for (n, p, q), order in itertools.product(
                pixel_tiles(1 if outermost else d.N, d.P, d.Q), ORDERS if c < d.C else ORDERS[:2]
            ):
                yield Mapping(kind, order, outermost, factor, 1, n, k, c, p, q)


def packed_mappings(layer: Layer, chip: BitFusion) -> Iterator[Mapping]:
    d, factor = layer.dims, lane_factor(chip, layer.weight_bits, layer.input_bits)
    if d.G == 1 and chip.cols < 2 * d.K:
        return
    kinds = [kind for kind in KINDS[2:] if chip.mapping in (kind.removeprefix("packed "), "auto")]
    for kind, patch, shift in itertools.product(kinds, _patches(layer, chip), range(factor.bit_length())):
        pixels = patch[0] * patch[1]
        if d.G * pixels == 1 or (kind == "packed channel" and (pixels > 1 or d.G == 1)):
            continue
        lanes = d.C * (reach(layer, *patch) if kind == "packed im2col" else 1)
        wide = factor >> shift
        par_g = max(1, min(d.G, chip.cols // (d.K * pixels), chip.rows * wide // lanes))
        groups = [g for g in channel_tiles(d.G, par_g) if g >= par_g or g == 1]
        for g, (n, p, q) in itertools.product(groups, pixel_tiles(d.N, d.P, d.Q)):
            yield Mapping(kind, "XKC", False, wide, g, n, d.K, d.C, p, q, par_g, *patch)


def _patches(layer: Layer, chip: BitFusion) -> list[tuple[int, int]]:
    d = layer.dims
    rows, cols = ([2**i for i in range(12) if i == 0 or 2**i < 2 * size] for size in (d.P, d.Q))
    return [(h, w) for h, w in itertools.product(rows, cols) if h * w == 1 or d.K * h * w <= chip.cols]


def mappings(layer: Layer, chip: BitFusion) -> Iterator[Mapping]:
    """Every mapping that docs/bitfusion.md declares, those included whose tiles do not fit."""
    return itertools.chain(dense_mappings(layer, chip), packed_mappings(layer, chip))


def least(layer: Layer, chip: BitFusion, space: Iterable[Mapping] | None = None) -> tuple[float, Mapping] | None:
    """The least objective over a map space and a mapping that has it; None where nothing fits."""
    best = None
    for mapping in mappings(layer, chip) if space is None else space:
        found = counts(layer, chip, mapping)
        if found is not None and (best is None or found.objective(chip) < best[0]):
            best = found.objective(chip), mapping
    return best


def chosen(row: Iterable[int]) -> Mapping:
    """The mapping in a row of the kernel's results."""
    values = [int(v) for v in row]
    at = {name: values[i] for name, i in INT.items()}
    sizes = (
        at[name] for name in ("tile_g", "tile_n", "tile_k", "tile_c", "tile_p", "tile_q", "par_g", "par_h", "par_w")
    )
    return Mapping(
        KINDS[at["mapping"]], ORDERS[at["order"]], bool(at["batch_outermost"]), at["lane_factor"], *sizes
    )  # fmt: skip
