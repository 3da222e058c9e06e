"""What each departure of the default Bit Fusion model from the public simulator is worth.

Each row undoes one departure alone and prices ResNet-18 and MobileNetV2 (batch 1, the paper's 45 nm chip) again.
"search" rows search the mappings again under the changed rule; "recount" rows keep the mapping and change the count.

    python benchmarks/departures.py
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from hwmodels import BitFusion, Layer, LayerCost, Workload, estimate, mapper, networks
from hwmodels.cost import INT_COLUMNS, PackedCosts

CHIP = BitFusion()
Totals = tuple[float, float]  # cycles, energy in J


def priced(workload: Workload, resident: bool = False) -> Totals:
    report = estimate(workload, CHIP, resident=resident)
    return report.cycles, report.energy_j


def recounted(workload: Workload, change: Callable[..., tuple[float, float]]) -> Totals:
    """Totals where ``change(layer, cost)`` gives extra DRAM bits and extra energy in pJ beside that of DRAM."""
    report = estimate(workload, CHIP)
    energies = CHIP.unit_energies
    cycles, energy_pj = 0.0, 0.0
    for layer, cost in zip(workload.layers, report.layers, strict=True):
        dram_bits, extra_pj = change(layer, cost)
        dram_cycles = (cost.traffic_bits["dram_read"] + cost.traffic_bits["dram_write"]) / CHIP.dram_bits_per_cycle
        busy = max(cost.compute_cycles, dram_cycles)
        more = max(cost.compute_cycles, dram_cycles + dram_bits / CHIP.dram_bits_per_cycle) - busy
        cycles += cost.cycles + more
        energy_pj += cost.energy_pj + extra_pj + dram_bits * energies.dram_pj_per_bit
        energy_pj += more * energies.leakage_pj_per_cycle
    return cycles, energy_pj * 1e-12


def one_group_at_a_time(workload: Workload) -> Totals:
    """Without packings: the taps of one channel on the lanes, one channel a pass."""
    rows, index = workload.packed
    steps = CHIP.steps(rows[:, mapper.WEIGHT_BITS], rows[:, mapper.INPUT_BITS])
    chip, price = CHIP.kernel_chip, CHIP.kernel_price
    report = estimate(workload, CHIP)
    xs, axes = np.empty((256, 10), np.int64), np.empty((2, 64, 3), np.int64)
    cycles, energy_pj = np.zeros(len(rows)), np.zeros(len(rows))
    for i, row in enumerate(rows):
        layer = int(np.flatnonzero(index == i)[0])
        if not workload.layers[layer].is_mac:
            cycles[i], energy_pj[i] = report.layers[layer].cycles, report.layers[layer].energy_pj
            continue
        n_xs = mapper.pixel_tiles(row, CHIP.rows, CHIP.cols, mapper.REDUCTION_COLUMNS, axes, xs)
        best, out = np.full(2, np.inf), np.zeros(len(INT_COLUMNS), np.int64)
        scratch = np.empty(128, np.int64), np.empty(128, np.int64)
        args = row, steps.lane_factor[i], steps.serial_cycles[i], steps.core_pj[i], 0, chip, price, xs, n_xs
        mapper._dense(*args, *scratch, best, out)
        cycles[i], energy_pj[i] = best
    return float(cycles[index].sum()), float(energy_pj[index].sum() * 1e-12)


def wide_outputs(workload: Workload) -> Workload:
    layers = tuple(dataclasses.replace(x, output_bits=32) if x.is_mac else x for x in workload.layers)
    return Workload(workload.name, layers, workload.tensors, workload.batch)


def first_visit(layer, cost):
    return (layer.output_count * 32 if layer.is_mac else 0), 0.0


def unshared_inputs(layer, cost):
    extra_bits = layer.macs * layer.input_bits - cost.traffic_bits["input_buffer_read"] if layer.is_mac else 0
    return 0, extra_bits * CHIP.unit_energies.input_buffer_read_pj_per_bit


def full_tiles(workload: Workload) -> Totals:
    """Every tile charged at the size of an inner one, its halo beyond the map included."""
    costs = estimate(workload, CHIP).layers
    assert isinstance(costs, PackedCosts)

    def change(layer: Layer, cost: LayerCost) -> tuple[float, float]:
        if not layer.is_mac:
            return 0.0, 0.0
        row = dict(zip(INT_COLUMNS, costs.ints[costs.row_of_layer[workload.layers.index(layer)]].tolist(), strict=True))
        (height, width), d = layer.in_size, layer.dims
        tile = row["tile_n"], row["tile_p"], row["tile_q"]
        trips = math.prod(-(-size // part) for size, part in zip((d.N, d.P, d.Q), tile, strict=True))
        span = [
            (part - 1) * stride + (kernel - 1) * dilation + 1
            for part, stride, kernel, dilation in zip(
                tile[1:], layer.stride, layer.kernel_size, layer.dilation, strict=True
            )
        ]
        inputs_bits = cost.traffic_bits["dram_read"] - layer.weight_count * layer.weight_bits
        once = d.N * height * width
        more_inputs = max(trips * tile[0] * span[0] * span[1] / once - 1, 0) * min(
            inputs_bits, once * layer.in_channels * 8
        )
        more_outputs = (trips * math.prod(tile) / (d.N * d.P * d.Q) - 1) * layer.output_count * layer.output_bits
        return more_inputs + more_outputs, 0.0

    return recounted(workload, change)


def exposed_blocks(workload: Workload) -> Totals:
    """The first load and the last store of whole resident blocks charged one after the other."""
    report = estimate(workload, CHIP)
    cycles, energy_pj = 0.0, 0.0
    for cost in report.layers:
        used, dram_bits = cost.buffer_bits, cost.traffic_bits["dram_read"] + cost.traffic_bits["dram_write"]
        exposed_bits = min(sum(used.values()) / 2, dram_bits)
        bandwidth = CHIP.dram_bits_per_cycle
        layer_cycles = exposed_bits / bandwidth + max(cost.compute_cycles, (dram_bits - exposed_bits) / bandwidth)
        layer_cycles = max(layer_cycles, cost.cycles)
        cycles += layer_cycles
        energy_pj += cost.energy_pj + (layer_cycles - cost.cycles) * CHIP.unit_energies.leakage_pj_per_cycle
    return cycles, energy_pj * 1e-12


def wider_settings(workload: Workload) -> int:
    """Layers that run at a wider setting than their operands need."""
    costs = estimate(workload, CHIP).layers
    assert isinstance(costs, PackedCosts)
    lanes = costs.ints[costs.row_of_layer, INT_COLUMNS.index("lane_factor")]
    most = [CHIP.macs_per_unit(layer.weight_bits, layer.input_bits) if layer.is_mac else 1 for layer in workload.layers]
    return int((lanes < np.array(most)).sum())


def without(share: str) -> Callable[[Workload], Totals]:
    def totals(workload: Workload) -> Totals:
        report = estimate(workload, CHIP)
        if share == "leakage":
            return report.cycles, report.energy_j - report.energy.leakage_pj * 1e-12
        kept = [cost for layer, cost in zip(workload.layers, report.layers, strict=True) if layer.is_mac]
        return sum(cost.cycles for cost in kept), sum(cost.energy_pj for cost in kept) * 1e-12

    return totals


ROWS: dict[str, Callable[[Workload], Totals]] = {
    "default model": priced,
    "one group on the array at a time (search)": one_group_at_a_time,
    "outputs stored at 32 bits (search)": lambda w: priced(wide_outputs(w)),
    "outputs fetched on their first visit (recount)": lambda w: recounted(w, first_visit),
    "an input-buffer read for every MAC (recount)": lambda w: recounted(w, unshared_inputs),
    "tiles and halos charged in full (recount)": full_tiles,
    "whole blocks exposed, not first and last tiles (recount)": exposed_blocks,
    "no leakage": without("leakage"),
    "pooling and additions free": without("data operators"),
    "activations handed over on the chip (resident=True)": lambda w: priced(w, resident=True),
}


def main() -> None:
    for bits in (8, 2):
        for name in ("resnet18", "mobilenet_v2"):
            workload = networks.NETWORKS[name]().with_bits(bits, bits)
            base = priced(workload)
            print(f"\n{name} w{bits}a{bits}\n{'':<57}{'kcycles':>10}{'x':>8}{'uJ':>10}{'x':>8}")
            for label, totals in ROWS.items():
                cycles, energy_j = totals(workload)
                print(
                    f"{label:<57}{cycles / 1e3:>10.0f}{cycles / base[0]:>8.2f}"
                    f"{energy_j * 1e6:>10.0f}{energy_j / base[1]:>8.2f}"
                )
            print(f"{wider_settings(workload)} layers run at a wider setting than their operands need")
            report = estimate(workload, BitFusion(model="reference", mapping="channel"))
            print(
                f"{'reference model':<57}{report.cycles / 1e3:>10.0f}{report.cycles / base[0]:>8.2f}"
                f"{report.energy_j * 1e6:>10.0f}{report.energy_j / base[1]:>8.2f}"
            )


if __name__ == "__main__":
    main()
