"""Bit-flexible or dense on equal area? Bit Fusion against fixed-width and bit-serial arrays, uniform bits and mixed.

Every array has the area of Bit Fusion's 45 nm chip, and its DRAM interface. "array": the array is scaled, the buffers
keep their size. "chip": buffers are scaled with it. Each array takes the shape, of those with its preset's ratio or a
power of two of rows and as many columns as fit, that has the least energy-delay product over all workloads.

    python benchmarks/compare_equal_area.py --out benchmarks/results/compare_equal_area.txt
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import Report

from hwmodels import HARDWARE, BitFusion, MacArray, Workload, networks
from hwmodels.array import sweep
from hwmodels.sizing import shapes

RESULTS = Path(__file__).parent / "results"
SEED = 0
#: DRAM interfaces: that of the chip, and one four times as wide at the low end of LPDDR4 (``hwmodels/data/dram.csv``).
NARROW, WIDE = (192, 15.0), (768, 4.0)
Results = dict[str, tuple[Any, np.ndarray]]
METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "latency": lambda costs: costs[:, 0],
    "energy": lambda costs: costs[:, 1],
    "EDP": lambda costs: costs.prod(axis=1),
}
REFERENCE = BitFusion()
ARRAYS: dict[str, Any] = {
    "Bit Fusion 8/2": REFERENCE,
    "16-bit": HARDWARE["int16-array"](),
    "8-bit": HARDWARE["int8-array"](),
    "8-bit weight-stat.": HARDWARE["int8-systolic"](),
    "8-bit output-stat.": MacArray(dataflow="output-stationary"),
    "4-bit": HARDWARE["int4-array"](),
    "2-bit": HARDWARE["int2-array"](),
    "Stripes-like": HARDWARE["stripes"](),
    "Loom-like": HARDWARE["loom"](),
}


def workloads() -> dict[tuple[str, str], Workload]:
    """Both networks at uniform bits, and with bits drawn for each layer and operand, 8 in the first and last layer."""
    found = {}
    for name in ("resnet18", "mobilenet_v2"):
        network = networks.NETWORKS[name]()
        for bits in (8, 4, 2):
            found[name, f"w{bits}a{bits}"] = network.with_bits(bits, bits)
        drawn = np.random.default_rng(SEED).choice((2, 4, 8), size=(2, len(network.mac_layers)))
        drawn[:, [0, -1]] = 8
        found[name, "mixed"] = network.with_bits(*drawn.tolist())
    return found


def with_dram(chip: Any, bits_per_cycle: int, pj_per_bit: float) -> Any:
    """The chip at another DRAM interface."""
    energies = replace(chip.unit_energies, dram_pj_per_bit=pj_per_bit)
    return replace(chip, dram_bits_per_cycle=bits_per_cycle, energies=energies)


def best_shape(chips: Sequence[Any], several: dict[tuple[str, str], Workload]) -> tuple[Any, np.ndarray]:
    """The chip of least energy-delay product, geometric mean over workloads; its latency and energy, shape (n, 2)."""
    found = [sweep(workload, chips) for workload in several.values()]
    latency_s, energy_j = (np.stack([getattr(one, name) for one in found]) for name in ("latency_s", "energy_j"))
    best = int(np.nanargmin(np.log(latency_s * energy_j).sum(axis=0)))
    return chips[best], np.stack([latency_s[:, best], energy_j[:, best]], axis=1)


def compare(report: Report, scale: Any, dram: tuple[int, float], several: dict[tuple[str, str], Workload]) -> Results:
    """Size every array, price it and print the table."""
    area_mm2 = REFERENCE.area_mm2
    results = {
        name: best_shape([with_dram(one, *dram) for one in shapes(chip, area_mm2, scale)], several)
        for name, chip in ARRAYS.items()
    }
    base = results["Bit Fusion 8/2"][1]
    report(f"--- scale={scale!r}, DRAM {dram[0]} bits/cycle at {dram[1]:g} pJ/bit")
    report(
        "Bit Fusion: "
        + ", ".join(
            f"{net} {bits} {ms:.2f} ms {mj:.2f} mJ" for (net, bits), (ms, mj) in zip(several, base * 1e3, strict=True)
        )
    )
    report(f"{'':<30}{'ResNet-18':^32}{'MobileNetV2':^32}")
    head = "".join(f"{bits:>8}" for _, bits in several)
    for metric, column in METRICS.items():
        report(f"{metric:<21}{'array':>9}{head}")
        for name, (chip, costs) in results.items():
            ratios = column(costs) / column(base)
            report(f"{name:<21}{f'{chip.rows}x{chip.cols}':>9}" + "".join(f"{ratio:>8.2f}" for ratio in ratios))
    report()
    return results


def records(
    scale: str, dram: tuple[int, float], results: Results, several: dict[tuple[str, str], Workload]
) -> Iterator[dict[str, Any]]:
    """One flat record for each array and workload."""
    base = results["Bit Fusion 8/2"][1]
    for name, (chip, costs) in results.items():
        for (network, bits), cost, other in zip(several, costs, base, strict=True):
            yield {
                "scale": scale, "dram_bits_per_cycle": dram[0], "dram_pj_per_bit": dram[1], "array": name,
                "rows": chip.rows, "cols": chip.cols, "area_mm2": f"{chip.area_mm2:.4f}", "network": network,
                "bits": bits, "latency_s": f"{cost[0]:.6g}", "energy_j": f"{cost[1]:.6g}",
                "latency_ratio": f"{cost[0] / other[0]:.4f}", "energy_ratio": f"{cost[1] / other[1]:.4f}",
            }  # fmt: skip


def main() -> None:
    """Print, save and draw the comparison."""
    report = Report("Arrays on the area of Bit Fusion's 45 nm chip")
    report(f"area {REFERENCE.area_mm2:.3f} mm2, 500 MHz, batch 1, mixed bits drawn from 2, 4, 8 with seed {SEED}")
    report("latency, energy and their product (EDP) relative to Bit Fusion: below 1 is better than it\n")
    several = workloads()
    rows: list[dict[str, Any]] = []
    for scale, dram in (("array", NARROW), ("chip", NARROW), ("array", WIDE)):
        results = compare(report, scale, dram, several)
        rows += records(scale, dram, results, several)
        if (scale, dram) == ("array", NARROW):
            draw(results, several)
    with open(RESULTS / "compare_equal_area.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    report.close()


def draw(results: Results, several: dict[tuple[str, str], Workload]) -> None:
    """Latency and energy of each array relative to Bit Fusion, a panel for each network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {"resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2"}
    base = results["Bit Fusion 8/2"][1]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, sharey="row", layout="constrained")
    markers = itertools.cycle("osD^v<>P")
    styles = {name: next(markers) for name in results if name != "Bit Fusion 8/2"}
    for column, (network, title) in enumerate(titles.items()):
        places = [i for i, (name, _) in enumerate(several) if name == network]
        labels = [bits for name, bits in several if name == network]
        for row, what in enumerate(("latency", "energy")):
            axis = axes[row, column]
            axis.axhline(1.0, color="black", linewidth=1, label="Bit Fusion 8/2")
            for name, marker in styles.items():
                ratios = results[name][1][places, row] / base[places, row]
                (line,) = axis.plot(labels[:-1], ratios[:-1], marker=marker, linewidth=1, label=name)
                axis.plot(labels[-1:], ratios[-1:], marker=marker, color=line.get_color())
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(f"{what} / Bit Fusion's")
            if row == 0:
                axis.set_title(title)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle("Arrays on equal area, same buffers and DRAM interface: below 1 is better than Bit Fusion")
    figure.savefig(RESULTS / "compare_equal_area.png", dpi=120)


if __name__ == "__main__":
    main()
