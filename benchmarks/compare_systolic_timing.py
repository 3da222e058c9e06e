"""SCALE-Sim's folds, one after another, against overlapping ones: how much longer the array is busy, layer by layer.

python benchmarks/compare_systolic_timing.py --out benchmarks/results/compare_systolic_timing.txt
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
from measure import Report

from hwmodels import MacArray, networks
from hwmodels.systolic import Dataflow, compare_timings

LARGE = {"weight_buffer_bytes": 1 << 20, "input_buffer_bytes": 1 << 20, "output_buffer_bytes": 1 << 20}
ARRAYS = {"16x32": MacArray(), "32x32": MacArray(rows=32), "128x128": MacArray(rows=128, cols=128, **LARGE)}


def main() -> None:
    """Print the ratio of busy cycles: median and largest over layers, and that of the networks' sums."""
    report = Report("Busy cycles of the array, SCALE-Sim's timing over overlapping folds; 8 bits, batch 1")
    report(f"{'':<44}{'dense layers':^22}{'depthwise layers':^22}")
    head = f"{'layers':>7}{'median':>8}{'max':>7}"
    report(f"{'network':<14}{'dataflow':<20}{'array':>10}{head}{head}{'network':>9}")
    for name in ("resnet18", "mobilenet_v2"):
        workload = networks.NETWORKS[name]()
        groups = np.array([layer.groups for layer in workload.mac_layers])
        for dataflow in get_args(Dataflow):
            for shape, array in ARRAYS.items():
                timings = compare_timings(workload, replace(array, dataflow=dataflow))
                ratios = timings.scalesim / timings.overlapped
                parts = [
                    f"{len(some):>7}{np.median(some):>8.2f}{some.max():>7.2f}" if len(some) else f"{0:>7}{'':>15}"
                    for some in (ratios[groups == 1], ratios[groups > 1])
                ]
                whole = timings.scalesim.sum() / timings.overlapped.sum()
                report(f"{name:<14}{dataflow:<20}{shape:>10}{''.join(parts)}{whole:>9.2f}")
    report("\nBuffers of 64, 32 and 16 KiB; three of 1 MiB with 128x128.")
    report.close()


if __name__ == "__main__":
    main()
