"""The results of the Bit Fusion paper (Sharma et al., ISCA 2018): the paper's number, ours, and their ratio.

Time and energy of eight networks against Eyeriss on equal area, and frames per second of scaled-up arrays, from layer
shapes alone. Eyeriss' own times and energies are the paper's.

    python benchmarks/repro_bitfusion_isca18.py --out benchmarks/results/repro_bitfusion_isca18.txt
"""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

from measure import Report

from hwmodels import CostReport, Layer, Workload, estimate
from hwmodels.bitfusion import bf_e, bf_e_scaled

BATCH = 16
PUBLISHED = Path(__file__).parent / "published"
#: Printed total area of the chip in mm2, and geometric means over the networks.
AREA_MM2, SPEEDUP, ENERGY_REDUCTION = 2.14098641856, 3.9251, 5.1165


def table(name: str) -> list[dict[str, str]]:
    with open(PUBLISHED / f"bitfusion_isca18_{name}.csv", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def networks() -> dict[str, Workload]:
    """The paper's networks. An input without padding gives the same output edge, and the model asks for no more."""
    layers: dict[str, list[Layer]] = {}
    for row in table("layers"):
        kernel, output, stride = (int(row[key]) for key in ("kernel", "output", "stride"))
        layer = Layer(
            row["layer"], int(row["in_channels"]), int(row["out_channels"]),
            in_size=((output - 1) * stride + kernel,) * 2, kernel_size=kernel, stride=stride, batch=BATCH,
            weight_bits=int(row["weight_bits"]), input_bits=int(row["input_bits"]),
            op="linear" if row["layer"].endswith("MatMul") else "conv", reads_network_input=row["first"] == "1",
        )  # fmt: skip
        layers.setdefault(row["network"], []).append(layer)
    return {name: Workload(name, tuple(some), batch=BATCH) for name, some in layers.items()}


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def against_eyeriss(report: Report, workloads: dict[str, Workload]) -> tuple[float, float]:
    """Print the headline table; returns our geometric means of speed-up and energy reduction."""
    chip = replace(bf_e(), model="reference", mapping="channel")
    report(f"Chip area {AREA_MM2:.6f} mm2 printed, {chip.area_mm2:.6f} ours, ratio {chip.area_mm2 / AREA_MM2:.9f}\n")
    report(f"{'':10}{'speed-up over Eyeriss':^32}{'energy reduction':^32}")
    report(f"{'network':10}" + f"{'paper':>10}{'ours':>10}{'ratio':>12}" * 2 + "   core/sram/dram %: paper, ours")
    speedups, reductions = [], []
    for row in table("eyeriss"):
        priced: CostReport = estimate(workloads[row["network"]], chip)
        speedup = float(row["eyeriss_ms"]) / (priced.latency_s / BATCH * 1e3)
        reduction = float(row["eyeriss_nj"]) / (priced.energy_j * 1e9)
        shares = "/".join(f"{100 * part / priced.energy_j:.1f}" for part in list(priced.by_component().values())[:3])
        printed = "/".join(row[f"{part}_percent"] for part in ("core", "sram", "dram"))
        cells = ""
        for paper, ours in ((float(row["speedup"]), speedup), (float(row["energy_reduction"]), reduction)):
            cells += f"{paper:10.4f}{ours:10.4f}{ours / paper:12.6f}"
        report(f"{row['network']:10}{cells}   {printed}, {shares}")
        speedups.append(speedup)
        reductions.append(reduction)
    means = geometric_mean(speedups), geometric_mean(reductions)
    cells = ""
    for paper, ours in zip((SPEEDUP, ENERGY_REDUCTION), means, strict=True):
        cells += f"{paper:10.4f}{ours:10.4f}{ours / paper:12.6f}"
    report(f"{'geomean':10}{cells}")
    return means


def scaled_up(report: Report, workloads: dict[str, Workload]) -> float:
    """Print frames per second of the scaled arrays; returns the largest relative difference."""
    report("\nFrames per second, 4096-bit DRAM interface, columns and buffers times a factor")
    report(f"{'factor':8}{'network':10}{'paper':>16}{'ours':>16}{'ratio':>14}")
    largest = 0.0
    for row in table("scaled"):
        chip = replace(bf_e_scaled(int(row["factor"])), model="reference", mapping="channel")
        for name, workload in workloads.items():
            paper, ours = float(row[name]), estimate(workload, chip).frames_per_s
            report(f"{row['factor'] + 'x':8}{name:10}{paper:16.4f}{ours:16.4f}{ours / paper:14.9f}")
            largest = max(largest, abs(ours / paper - 1))
    return largest


def main() -> None:
    report = Report(__doc__.splitlines()[0])
    workloads = networks()
    against_eyeriss(report, workloads)
    largest = scaled_up(report, workloads)
    report(f"\nlargest relative difference in frames per second: {largest:.1e} (the paper's figures have ten digits)")
    report.close()


if __name__ == "__main__":
    main()
