"""Time to price a network on each array preset, nothing cached, and to size an array to an area.

python benchmarks/bench_arrays.py --out benchmarks/results/bench_arrays.txt
"""

from __future__ import annotations

import dataclasses
from typing import Any

from measure import Report, seconds, timed

from hwmodels import HARDWARE, estimate, networks

PRESETS = ("bitfusion", "int8-array", "int4-array", "int8-systolic", "stripes", "loom")
OTHERS: dict[str, dict[str, Any]] = {
    "output-stationary": {"dataflow": "output-stationary"},
    "input-stationary": {"dataflow": "input-stationary"},
    "scalesim timing": {"timing": "scalesim", "dataflow": "weight-stationary"},
}


def main() -> None:
    """Run all of it."""
    report = Report("Pricing networks on array presets")
    chips: dict[str, Any] = {name: HARDWARE[name]() for name in PRESETS}
    chips |= {name: dataclasses.replace(chips["int8-array"], **fields) for name, fields in OTHERS.items()}
    report(f"{'array':<20}{'network':<14}{'bits':<7}{'estimate()':<32}{'processor':>9}{'x bitfusion':>13}")
    for network in ("resnet18", "mobilenet_v2"):
        for weight_bits, input_bits in ((8, 8), (4, 8), (2, 2)):
            workload = networks.NETWORKS[network]().with_bits(weight_bits, input_bits)
            base_s = None
            for name, chip in chips.items():
                times = timed(lambda c=chip, w=workload: estimate(dataclasses.replace(w), c).energy_j, 15, least_s=0.02)
                base_s = base_s or times.processor
                report(
                    f"{name:<20}{network:<14}{f'w{weight_bits}a{input_bits}':<7}{times!s:<32}"
                    f"{seconds(times.processor):>9}{times.processor / base_s:>13.2f}"
                )
    report()
    for name, chip in chips.items():
        times = timed(lambda c=chip: c.with_area(1.37 * c.area_mm2), 15)
        report(f"{name:<20}with_area(): {times!s:<32}")
    report.close()


if __name__ == "__main__":
    main()
