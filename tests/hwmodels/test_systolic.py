"""SCALE-Sim's cycles, and how the default timing of a systolic array stands to them."""

import csv
from typing import get_args

import numpy as np
import pytest

from hwmodels import MacArray, networks
from hwmodels.systolic import Dataflow, matrix_sizes, scalesim_cycles
from hwmodels.workload import Layer, Workload, pack

NAMES = {"ws": "weight-stationary", "os": "output-stationary", "is": "input-stationary"}


def layer_of(row: dict[str, str]) -> Layer:
    size = {key: int(value) for key, value in row.items() if key != "dataflow"}
    return Layer(
        "layer", size["in_channels"], size["out_channels"], in_size=(size["in_h"], size["in_w"]),
        kernel_size=(size["k_h"], size["k_w"]), stride=size["stride"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "dataflow, rows, cols, in_h, in_w, k, channels, filters, stride, cycles",
    [
        ("ws", 8, 8, 5, 6, 3, 48, 24, 1, 5507),
        ("ws", 8, 8, 17, 6, 1, 3, 1, 1, 123),
        ("ws", 8, 8, 17, 6, 5, 3, 1, 2, 359),
        ("ws", 8, 8, 10, 8, 5, 20, 24, 2, 6425),
    ],
)
def test_some_layers_take_the_cycles_that_scalesim_printed(
    dataflow, rows, cols, in_h, in_w, k, channels, filters, stride, cycles
):
    """SCALE-Sim 3.0, run on random layers without padding."""
    layer = Layer("layer", channels, filters, in_size=(in_h, in_w), kernel_size=k, stride=stride)
    chip = MacArray(rows=rows, cols=cols, dataflow=NAMES[dataflow], timing="scalesim")
    cost = chip.cost(layer)
    assert cost.compute_cycles == cycles
    assert cost.cycles >= cycles and cost.cycles == cost.compute_cycles + cost.stall_cycles
    assert cost.energy.compute_pj == pytest.approx(cycles * chip.unit_energies.core_pj_per_cycle)
    assert cost.energy.leakage_pj == pytest.approx(cost.cycles * chip.unit_energies.leakage_pj_per_cycle)


def test_every_recorded_layer_takes_scalesims_cycles(reference_dir):
    with open(reference_dir / "golden" / "scalesim_systolic.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 135 and {row["dataflow"] for row in rows} == set(NAMES)
    for row in rows:
        chip = MacArray(
            rows=int(row["rows"]), cols=int(row["cols"]), dataflow=NAMES[row["dataflow"]], timing="scalesim"
        )
        layer = layer_of(row)
        assert chip.cost(layer).compute_cycles == int(row["compute_cycles"]), row
        pixels, channels, reduction = (int(size[0]) for size in matrix_sizes(pack([layer])))
        assert pixels == int(row["out_h"]) * int(row["out_w"])
        assert (channels, reduction) == (int(row["out_channels"]), layer.dims.C * layer.dims.R * layer.dims.S)


def test_a_stride_that_does_not_divide_rounds_the_output_up_as_scalesim_does():
    layer = Layer("layer", 1, 1, in_size=(6, 6), kernel_size=5, stride=2)
    assert layer.out_size == (1, 1)
    assert int(matrix_sizes(pack([layer]))[0][0]) == 2 * 2


def test_groups_run_one_after_another():
    grouped, one = Layer("dw", 8, 8, (9, 9), 3, groups=8), Layer("conv", 1, 1, (9, 9), 3)
    for dataflow in get_args(Dataflow):
        cycles = scalesim_cycles(pack([grouped, one]), 16, 16, dataflow)
        assert cycles[0] == 8 * cycles[1]


@pytest.mark.parametrize("dataflow", get_args(Dataflow))
def test_folds_that_overlap_take_the_longer_of_work_and_loading(dataflow):
    """Folds of T steps on R rows: each max(T, R) and 2 R + C - 2 at the ends, against 2 R + C + T - 2 a fold (or R)."""
    rows, cols = 8, 4
    layer = Layer.linear("fc", 32, 24, batch=20)
    along = {"weight": (32, 24, 20), "output": (20, 24, 32), "input": (32, 20, 24)}[dataflow.split("-")[0]]
    folds, time = -(-along[0] // rows) * -(-along[1] // cols), along[2]
    ample = {"dram_bits_per_cycle": 1 << 20, "objective": "latency"}
    overlapped = MacArray(rows=rows, cols=cols, dataflow=dataflow, **ample).cost(layer)
    serial = MacArray(rows=rows, cols=cols, dataflow=dataflow, timing="scalesim", **ample).cost(layer)
    assert overlapped.compute_cycles == folds * max(time, rows)
    load = rows if dataflow == "output-stationary" else 2 * rows
    assert serial.compute_cycles == folds * (load + cols + time - 2) - 1
    transfers = 2  # the first tile in, the last tile out, a cycle each
    assert overlapped.stall_cycles == 2 * rows + cols - 2 + transfers
    assert serial.stall_cycles == transfers
    assert overlapped.traffic_bits == serial.traffic_bits


def test_transfers_hide_behind_scalesims_cycles_and_show_where_they_are_longer():
    layer = Layer.linear("fc", 512, 512)  # every weight is used once
    for bits_per_cycle in (8, 64, 1 << 20):
        chip = MacArray(dataflow="weight-stationary", timing="scalesim", dram_bits_per_cycle=bits_per_cycle)
        cost = chip.cost(layer)
        dram_bits = cost.traffic_bits["dram_read"] + cost.traffic_bits["dram_write"]
        assert cost.cycles >= max(cost.compute_cycles, dram_bits / bits_per_cycle)
        assert cost.cycles <= cost.compute_cycles + dram_bits // bits_per_cycle + 3
        assert cost.bound == ("dram" if dram_bits / bits_per_cycle > cost.compute_cycles else "array")


@pytest.mark.parametrize("dataflow", get_args(Dataflow))
def test_overlapping_saves_cycles_on_every_layer_of_a_network(dataflow):
    """The gap that docs/mac_arrays.md states is a gap in one direction, stride-2 rounding included."""
    workload: Workload = networks.resnet18()
    overlapped, serial = (
        MacArray(dataflow=dataflow, timing=timing, objective="latency").costs(workload)
        for timing in ("overlapped", "scalesim")
    )
    macs = [i for i, layer in enumerate(workload.layers) if layer.is_mac]
    ratios = np.array([serial[i].compute_cycles / overlapped[i].compute_cycles for i in macs])
    assert (ratios > 1).all() and np.median(ratios) < 4
