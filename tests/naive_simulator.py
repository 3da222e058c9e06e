"""Slow twin of the public Bit Fusion simulator: its closed forms for any tiling and loop order, and their least.

Written from a prose specification of the simulator; its numbered oddities are kept. Letters: b, o, ic, oc are tile
edges, K the square kernel's edge, M the columns of the array, L the lanes of its rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from hwmodels import BitFusion
from hwmodels.cost import TRAFFIC
from hwmodels.workload import Layer
from tests.naive import Counts, capacity_bits, ceil_div

LOOPS = ("B", "OW", "OH", "IC", "OC")
RELEVANT = {"weight": {"IC", "OC"}, "input": {"B", "OW", "OH", "IC"}, "output": {"B", "OW", "OH", "OC"}}
PARTIAL_SUM_BITS = 32


class Tiling(NamedTuple):
    """Tile edges, and the loops over tiles, outermost first."""

    b: int
    o: int
    ic: int
    oc: int
    order: tuple[str, ...]
    im2col: bool


def trips(layer: Layer, tiling: Tiling) -> dict[str, int]:
    d = layer.dims
    n_o = ceil_div(d.P, tiling.o)
    return {
        "B": ceil_div(d.N, tiling.b), "OW": n_o, "OH": n_o, "IC": ceil_div(d.C, tiling.ic),
        "OC": ceil_div(d.K, tiling.oc),
    }  # fmt: skip


def footprints(layer: Layer, chip: BitFusion, tiling: Tiling) -> dict[str, int]:
    """Bits of one tile of each operand."""
    b, o, ic, oc, _, im2col = tiling
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    lanes = chip.rows * chip.macs_per_unit(layer.weight_bits, layer.input_bits)
    window = o * o * kernel * kernel if im2col else (kernel + (o - 1) * stride) ** 2
    return {
        "weight": ceil_div(kernel * kernel * ic, lanes) * lanes * oc * layer.weight_bits,
        "input": window * ic * b * layer.input_bits,
        "output": o * o * ceil_div(oc, chip.cols) * chip.cols * b * PARTIAL_SUM_BITS,
    }


def promoted(layer: Layer, chip: BitFusion, tiling: Tiling) -> dict[str, set[str]]:
    """For each operand, the loops along which its buffer keeps all tiles: inner ones, as long as they fit."""
    n, sizes, capacity = trips(layer, tiling), footprints(layer, chip, tiling), capacity_bits(chip)
    spans: dict[str, set[str]] = {}
    for operand, size in sizes.items():
        spans[operand] = set()
        for loop in reversed(tiling.order):
            if loop in RELEVANT[operand]:
                size *= n[loop]
                if size > capacity[operand]:
                    break
            spans[operand].add(loop)
    return spans


def counts(layer: Layer, chip: BitFusion, tiling: Tiling) -> Counts | None:
    """Closed form; None where the tiles do not fit."""
    d, n, sizes, capacity = layer.dims, trips(layer, tiling), footprints(layer, chip, tiling), capacity_bits(chip)
    if any(sizes[operand] > capacity[operand] for operand in sizes):
        return None
    b, o, ic, oc, order, im2col = tiling
    pa, pw = layer.input_bits, layer.weight_bits
    volume, resident = dict(sizes), dict(sizes)
    for operand in sizes:
        promoting = True
        for loop in reversed(order):
            if promoting and loop not in RELEVANT[operand]:
                continue
            volume[operand] *= n[loop]
            promoting = promoting and volume[operand] <= capacity[operand]
            if promoting:
                resident[operand] = volume[operand]

    tiles = n["B"] * n["OW"] * n["OH"] * n["IC"] * n["OC"]
    taps = d.R * d.S
    lanes = chip.rows * chip.macs_per_unit(pw, pa)
    pixels, reduction = b * o * o, taps * ic
    padded_oc = ceil_div(oc, chip.cols) * chip.cols
    padded_reduction = ceil_div(reduction, lanes) * lanes if im2col else ceil_div(ic, lanes) * lanes * taps
    output_stationary = padded_oc * pixels * (PARTIAL_SUM_BITS + padded_reduction * (pa + pw))
    input_stationary = padded_reduction * pixels * (pa + padded_oc * (pw + PARTIAL_SUM_BITS))
    weight_stationary = padded_reduction * padded_oc * (pw + pixels * (pa + PARTIAL_SUM_BITS))
    assert output_stationary < min(input_stationary, weight_stationary), "not output-stationary: not modelled here"

    macs, moved = tiles * oc * pixels * reduction, volume["output"]
    step_chunks = ceil_div(reduction, lanes) if im2col else taps * ceil_div(ic, lanes)
    traffic = {
        "weight_buffer_read": macs * pw,
        "weight_buffer_write": volume["weight"],
        "input_buffer_read": macs * pa,
        "input_buffer_write": volume["input"],
        "output_buffer_read": tiles * oc * pixels * PARTIAL_SUM_BITS + moved,
        "output_buffer_write": tiles * oc * pixels * PARTIAL_SUM_BITS + moved,
        "dram_read": volume["weight"] + volume["input"] + moved,
        "dram_write": moved,
    }
    return Counts(
        tiles * pixels * ceil_div(oc, chip.cols) * step_chunks, traffic, sum(resident.values()), resident["output"]
    )


def cycles(
    chip: BitFusion, compute_cycles: int, traffic_bits: Mapping[str, int], first_bits: int, last_bits: int
) -> int:
    """The simulator's stall rule applied to counts, wherever they come from."""
    bandwidth = chip.dram_bits_per_cycle
    middle_bits = traffic_bits["dram_read"] + traffic_bits["dram_write"] - first_bits - last_bits
    stall_cycles = max(0, ceil_div(middle_bits, bandwidth) - compute_cycles)
    return compute_cycles + stall_cycles + ceil_div(first_bits, bandwidth) + ceil_div(last_bits, bandwidth)


def energy_pj(chip: BitFusion, found: Counts) -> float:
    """Computation, six ports and DRAM; leakage is never charged."""
    price, bits = chip.unit_energies, found.traffic_bits
    ports = sum(bits[port] * getattr(price, f"{port}_pj_per_bit") for port in TRAFFIC[:6])
    dram = (bits["dram_read"] + bits["dram_write"]) * price.dram_pj_per_bit
    return found.compute_cycles * price.core_pj_per_cycle + ports + dram


def tilings(layer: Layer, chip: BitFusion, im2col: bool) -> Iterator[Tiling]:
    """All candidates, with the loop orders that differ."""
    d = layer.dims
    unit = 1 if im2col else chip.cols
    edges = (
        _edges(d.N, 1), _edges(d.P, 1), _edges(d.C, 1), _edges(d.K, unit),
    )  # fmt: skip
    for b, o, ic, oc in itertools.product(*edges):
        for order in itertools.permutations(LOOPS):
            if order.index("OW") < order.index("OH"):
                yield Tiling(b, o, ic, oc, order, im2col)


def _edges(size: int, unit: int) -> list[int]:
    return sorted({min(unit * 2**k, size) for k in range((ceil_div(size, unit) - 1).bit_length() + 1)})


def least(layer: Layer, chip: BitFusion, im2col: bool) -> tuple[int, float, Tiling] | None:
    """The least (cycles, energy), and a tiling that has it; None where nothing fits."""
    best = None
    for tiling in tilings(layer, chip, im2col):
        found = counts(layer, chip, tiling)
        if found is None:
            continue
        key = (
            cycles(chip, found.compute_cycles, found.traffic_bits, found.first_bits, found.last_bits),
            energy_pj(chip, found),
            tiling,
        )
        best = key if best is None or key < best else best
    return best
