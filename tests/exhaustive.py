"""The space beyond the declared one: every integer tile size and every order of the five loops over tiles.

Same machine and same charges as `tests.naive`; what is kept in each buffer is again the largest block that fits. All
tile sizes of a layer are priced at once, in arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwmodels import BitFusion
from hwmodels.cost import TRAFFIC
from hwmodels.workload import Layer
from tests import naive
from tests.naive import ACCUMULATOR_BITS, Mapping, capacity_bits, ceil_div, lane_factor, pad, reach, tiles_of, touched

Ints = NDArray[np.int64]
AXES = "NKCPQ"
RELEVANT = {"weight": "KC", "input": "NCPQ", "output": "NKPQ"}


class Axis(NamedTuple):
    """What tiles of each size make of one axis; arrays over sizes 1, 2, ..., the whole axis."""

    trips: Ints
    held: dict[
        str, tuple[Ints, Ints]
    ]  #: for each operand, what the largest tile and what all tiles take up of a buffer
    steps: Ints  #: factor of the array's steps, summed over tiles
    fetched: Ints  #: factor of the input elements, summed over tiles
    first: dict[str, Ints]  #: factors of the first tile of inputs and of weights
    last: Ints  #: factor of the last tile of outputs


def _axes(layer: Layer, chip: BitFusion, kind: str, lanes: int) -> dict[str, Axis]:
    d, gathers = layer.dims, kind == "im2col"
    taps = d.R * d.S

    def axis(name: str, size: int) -> Axis:
        cuts = [tiles_of(size, tile) for tile in range(1, size + 1)]
        sizes = [[b - a for a, b in cut] for cut in cuts]
        rows = sizes
        if name in "PQ":
            rows = [[touched(layer, "PQ".index(name), a, b) for a, b in cut] for cut in cuts]
        takes = {
            "N": {"input": sizes, "output": sizes},
            "K": {
                "weight": _each(sizes, lambda k: pad(k, chip.cols)),
                "output": _each(sizes, lambda k: pad(k, chip.cols)),
            },
            "C": {
                "weight": _each(sizes, lambda c: pad(c * taps, chip.rows) if gathers else pad(c, chip.rows) * taps),
                "input": _each(sizes, lambda c: pad(c * taps if gathers else c, chip.rows)),
            },
        }.get(name, {"input": sizes if gathers else rows, "output": sizes})
        steps = {
            "K": _each(sizes, lambda k: ceil_div(k, chip.cols)),
            "C": _each(sizes, lambda c: ceil_div(c * taps, lanes) if gathers else ceil_div(c, lanes) * taps),
        }.get(name, sizes)
        held = {
            operand: (np.array([max(t) for t in tiles]), np.array([sum(t) for t in tiles]))
            for operand, tiles in takes.items()
        }
        first = {"input": np.array([r[0] for r in rows]), "weight": np.array([s[0] for s in sizes])}
        return Axis(
            np.array([len(cut) for cut in cuts]), held, np.array([sum(s) for s in steps]),
            np.array([sum(r) for r in rows]), first, np.array([s[-1] for s in sizes]),
        )  # fmt: skip

    return {name: axis(name, size) for name, size in zip(AXES, d[:5], strict=True)}


def _each(sizes: list[list[int]], f: object) -> list[list[int]]:
    return [[f(size) for size in tiles] for tiles in sizes]


def dense_costs(layer: Layer, chip: BitFusion, kind: str, order: str) -> tuple[Ints, NDArray[np.float64]]:
    """Cycles and energy (pJ) of every integer tiling, shape (N, K, C, P, Q) over tile sizes; infinite where none fits.

    ``order`` names the five loops, outermost first; groups run outside them.
    """
    d, capacity, price = layer.dims, capacity_bits(chip), chip.unit_energies
    lanes = chip.rows * lane_factor(chip, layer.weight_bits, layer.input_bits)
    axes = _axes(layer, chip, kind, lanes)

    def along(name: str, values: Ints) -> Ints:
        return values.reshape([-1 if axis == name else 1 for axis in AXES])

    trips = {name: along(name, axes[name].trips) for name in AXES}
    widths = {
        "weight": layer.weight_bits, "input": layer.input_bits,
        "output": np.where(trips["C"] > 1, ACCUMULATOR_BITS, layer.output_bits),
    }  # fmt: skip
    fits: NDArray[np.bool_] = np.array(True)
    visits: dict[str, Ints] = {}
    for operand, relevant in RELEVANT.items():
        block = widths[operand] * np.ones([1] * 5, dtype=np.int64)
        for name in relevant:
            block = block * along(name, axes[name].held[operand][0])
        fits = fits & (block <= capacity[operand])
        stopped, again = np.array(False), np.array(1)
        for name in reversed(order):
            if name in relevant:
                one, whole = (along(name, values) for values in axes[name].held[operand])
                grown = block // np.maximum(one, 1) * whole
                stopped = stopped | ((grown > capacity[operand]) & (trips[name] > 1))
                block = np.where(stopped, block, grown)
            else:
                again = again * np.where(stopped, trips[name], 1)
        visits[operand] = again

    def product(values: dict[str, Ints]) -> Ints:
        total = np.array(1)
        for name, factor in values.items():
            total = total * along(name, factor)
        return total

    wb, ib, ob, sb = layer.weight_bits, layer.input_bits, layer.output_bits, layer.stored_input_bits or layer.input_bits
    weights, outputs = d.G * d.K * d.C * d.R * d.S, d.N * d.G * d.K * d.P * d.Q
    fetched = d.G * product({name: axes[name].fetched for name in "NCPQ"})
    held = d.G * d.C * d.N * d.P * d.Q * d.R * d.S if kind == "im2col" else fetched
    columns = along("K", axes["K"].steps)
    spills = visits["output"] - 1
    through = outputs * ((trips["C"] - 1 + spills) * ACCUMULATOR_BITS + ob)
    traffic = {
        "weight_buffer_read": layer.macs * wb,
        "weight_buffer_write": weights * wb * visits["weight"],
        "input_buffer_read": d.N * d.P * d.Q * d.G * d.C * d.R * d.S * columns * ib,
        "input_buffer_write": held * ib * visits["input"],
        "output_buffer_read": through,
        "output_buffer_write": through,
        "dram_read": weights * wb * visits["weight"]
        + fetched * sb * visits["input"]
        + outputs * ACCUMULATOR_BITS * spills,
        "dram_write": outputs * ACCUMULATOR_BITS * spills + outputs * ob,
    }
    compute = d.G * product({name: axes[name].steps for name in AXES})
    first = product({name: axes[name].first["weight"] for name in "KC"}) * d.R * d.S * wb
    first = first + product({name: axes[name].first["input"] for name in "NCPQ"}) * sb
    last = product({name: axes[name].last for name in "NKPQ"}) * ob
    middle = traffic["dram_read"] + traffic["dram_write"] - first - last
    bandwidth = chip.dram_bits_per_cycle
    cycles = -(-first // bandwidth) + np.maximum(compute, -(-middle // bandwidth)) + -(-last // bandwidth)
    energy = compute * price.core_pj_per_cycle + cycles * price.leakage_pj_per_cycle
    energy = energy + (traffic["dram_read"] + traffic["dram_write"]) * price.dram_pj_per_bit
    for port in TRAFFIC[:6]:
        energy = energy + traffic[port] * getattr(price, f"{port}_pj_per_bit")
    shape = [len(axes[name].trips) for name in AXES]
    return np.broadcast_to(np.where(fits, cycles, np.iinfo(np.int64).max), shape), np.broadcast_to(
        np.where(fits, energy, np.inf), shape
    )


def packed_mappings(layer: Layer, chip: BitFusion) -> Iterator[Mapping]:
    """Packed mappings of every integer tile, patch and number of groups at once."""
    d, factor = layer.dims, lane_factor(chip, layer.weight_bits, layer.input_bits)
    g_sizes, *pixel_sizes = (range(1, size + 1) for size in (d.G, d.N, d.P, d.Q))
    for kind, h, w in itertools.product(naive.KINDS[2:], *pixel_sizes[1:]):
        if d.G * h * w == 1 or (h * w > 1 and (kind == "packed channel" or d.K * h * w > chip.cols)):
            continue
        lanes = d.C * (reach(layer, h, w) if kind == "packed im2col" else 1)
        most = max(1, min(d.G, chip.cols // (d.K * h * w), chip.rows * factor // lanes))
        for par_g, g, n, p, q in itertools.product(range(1, most + 1), g_sizes, *pixel_sizes):
            yield Mapping(kind, "XKC", False, factor, g, n, d.K, d.C, p, q, par_g, h, w)


def least(layer: Layer, chip: BitFusion) -> float:
    """The least objective over all integer tiles and loop orders; infinite where nothing fits."""
    kinds = ("channel",) if layer.dims.R * layer.dims.S == 1 else ("channel", "im2col")
    best = float("inf")
    for kind, order in itertools.product(kinds, itertools.permutations(AXES)):
        cycles, energy = dense_costs(layer, chip, kind, "".join(order))
        if chip.objective == "latency":
            values = np.where(np.isinf(energy), np.inf, cycles)
        else:
            values = energy * (cycles if chip.objective == "edp" else 1)
        best = min(best, float(values.min()))
    found = naive.least(layer, chip, packed_mappings(layer, chip))
    return min(best, found[0]) if found else best
