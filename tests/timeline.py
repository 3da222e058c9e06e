"""The double-buffered machine tile by tile: while a tile is computed, the next is loaded and the last one drained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hwmodels import BitFusion
from hwmodels.workload import Layer
from tests.executed import AXES, Ints, Machine, OutputTile, Run, TileEvents
from tests.naive import Mapping as LayerMapping
from tests.naive import ceil_div, touched
from tests.plans import default_plan


class Sizes(Machine):
    """The executed machine with its loops and buffers, but sizes where data would be: quick enough for real layers."""

    def run_sizes(self) -> Run:
        layer, d = self.layer, self.dims
        zero = np.zeros((), dtype=np.int64)
        return self.run(
            np.broadcast_to(zero, (d.N, layer.in_channels, *layer.in_size)),
            np.broadcast_to(zero, (layer.out_channels, d.C, d.R, d.S)),
        )

    def _fetch_weights(self, ranges: Mapping[str, range]) -> tuple[Any, int, int, Ints]:
        bits = self._count(ranges, "GKC") * self.dims.R * self.dims.S * self.layer.weight_bits
        return None, bits, bits, np.zeros(1, dtype=np.int64)

    def _fetch_inputs(self, ranges: Mapping[str, range]) -> tuple[Any, int, int, Ints]:
        elements = self._count(ranges, "GCN")
        for axis, name in enumerate("PQ"):
            elements *= touched(self.layer, axis, ranges[name].start, ranges[name].stop)
        bits = elements * (self.layer.stored_input_bits or self.layer.input_bits)
        return None, bits, bits, np.zeros(1, dtype=np.int64)

    def _output_banks(self, tile: OutputTile) -> Ints:
        return np.zeros(1, dtype=np.int64)

    def _compute(self, banks: Any, inputs: Any, out: OutputTile, ranges: Mapping[str, range], is_first: bool) -> int:
        _, par_h, par_w = self.plan.par
        patches = len(ranges["N"]) * ceil_div(len(ranges["P"]), par_h) * ceil_div(len(ranges["Q"]), par_w)
        return patches * sum(len(columns) * len(lanes) for columns, lanes in self._passes(ranges))

    @staticmethod
    def _count(ranges: Mapping[str, range], axes: str) -> int:
        return int(np.prod([len(ranges[axis]) for axis in axes], dtype=np.int64))


def tile_events(layer: Layer, chip: BitFusion, mapping: LayerMapping) -> Sequence[TileEvents]:
    """What each tile of a layer asks of the DRAM interface and of the array, in order."""
    return Sizes(layer, default_plan(layer, chip, mapping)).run_sizes().tiles


def lockstep_cycles(tiles: Sequence[TileEvents], dram_bits_per_cycle: int) -> int:
    """Cycles of a machine that looks one tile ahead, from the first bit loaded to the last one drained.

    Notes
    -----
    The time of tile i is the longer of its steps and of the transfers that share it: the load of tile i + 1 and the
    drain of tile i - 1.
    """
    loads = [*(tile.load_bits for tile in tiles[1:]), 0]
    drains = [0, *(tile.drain_bits for tile in tiles[:-1])]
    cycles = ceil_div(tiles[0].load_bits, dram_bits_per_cycle) + ceil_div(tiles[-1].drain_bits, dram_bits_per_cycle)
    for tile, load, drain in zip(tiles, loads, drains, strict=True):
        cycles += max(tile.steps, ceil_div(load + drain, dram_bits_per_cycle))
    return cycles


def prefetch_cycles(tiles: Sequence[TileEvents], dram_bits_per_cycle: int) -> int:
    """Cycles of a machine that loads whenever half of a buffer is free, from the first bit to the last one drained.

    Notes
    -----
    Each buffer has a queue of loads, and the outputs one of drains; they share the DRAM interface, which serves what is
    needed soonest. A block may be loaded once the block before the last is used up; outputs may be computed once the
    block before the last has been drained.
    """
    count, forever = len(tiles), float("inf")
    first_use: dict[str, dict[int, int]] = {operand: {} for operand in AXES}  # block: tile
    last_use: dict[int, int] = {}  # block of outputs: tile
    for i, tile in enumerate(tiles):
        for operand, block in tile.blocks.items():
            first_use[operand].setdefault(block, i)
        last_use[tile.blocks["output"]] = i
    queues = {
        operand: [[i, tile.loads[operand] / dram_bits_per_cycle] for i, tile in enumerate(tiles) if tile.loads[operand]]
        for operand in AXES
    }
    queues["drain"] = [[i, tile.drain_bits / dram_bits_per_cycle] for i, tile in enumerate(tiles) if tile.drain_bits]
    heads = dict.fromkeys(queues, 0)
    start, end, arrived, drained = ([0.0] * count for _ in range(4))
    computed, now = 0, 0.0

    def waiting(name: str) -> int:
        """The tile of the transfer at the head of a queue."""
        return queues[name][heads[name]][0] if heads[name] < len(queues[name]) else count

    def release(name: str, i: int) -> float:
        """When a transfer may start, as far as that is known."""
        if name == "drain":
            return end[i] if i < computed else forever
        before = first_use[name][tiles[i].blocks[name] - 1] if tiles[i].blocks[name] else -1
        return 0.0 if before < 0 else start[before] if before < computed else forever

    def needed(name: str, i: int) -> int:
        """The tile that cannot be computed before a transfer is done."""
        return first_use["output"].get(tiles[i].blocks["output"] + 2, count) if name == "drain" else i

    while computed < count or any(waiting(name) < count for name in queues):
        while computed < count and all(waiting(operand) > computed for operand in AXES):
            before_last = last_use.get(tiles[computed].blocks["output"] - 2, -1)
            if waiting("drain") <= before_last:
                break
            room = drained[before_last] if before_last >= 0 else 0.0
            start[computed] = max(arrived[computed], room, end[computed - 1])
            end[computed] = start[computed] + tiles[computed].steps
            computed += 1
        jobs = [(name, waiting(name)) for name in queues if waiting(name) < count]
        if not jobs:
            continue
        releases = {name: release(name, i) for name, i in jobs}
        now = max(now, min(releases.values()))
        name, i = min(
            (job for job in jobs if releases[job[0]] <= now), key=lambda job: (needed(*job), job[0] == "drain")
        )
        job = queues[name][heads[name]]
        until = min([now + job[1], *(time for time in releases.values() if time > now)])
        job[1] -= until - now
        if until - now >= 0 and job[1] <= 1e-9:
            times = drained if name == "drain" else arrived
            times[i] = max(times[i], until)
            heads[name] += 1
        now = until
    return ceil_div(int(max(end[-1], now) * 1000), 1000)
