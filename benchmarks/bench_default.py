"""Time of ``model="default"``: kernel and whole ``estimate()``, against ``model="reference"`` in the same process.

Also how the time grows with channels, batch and layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from measure import Report, seconds, timed

from hwmodels import BitFusion, Layer, Workload, estimate, networks, reference, reference_kernel
from hwmodels.array import run_kernel

OBJECTIVES = ("latency", "energy", "edp")
#: What the reference model may take at 8 bits, one thread; the default model may take three times as long.
REFERENCE_TARGET_S = {("mobilenet_v2", 1): 0.3e-3, ("mobilenet_v2", 16): 3e-3, ("resnet18", 1): 0.2e-3}


def kernel_of(chip: BitFusion, workload: Workload) -> Callable[[], Any]:
    """The mapping search alone, over the distinct layers."""
    rows, _ = workload.packed
    if chip.model == "default":
        nothing_resident = np.zeros(len(rows), dtype=np.int64)
        return lambda: run_kernel(chip, rows, nothing_resident)
    first, classes, orders, _ = reference.loop_orders()
    ints = np.zeros((len(rows), len(reference.INT_COLUMNS)), dtype=np.int64)
    floats = np.zeros((len(rows), len(reference.FLOAT_COLUMNS)))
    shape, pj = chip.reference_arrays
    return lambda: reference_kernel.price_layers(rows, shape, pj, first, classes, orders, ints, floats)


def estimate_of(chip: BitFusion, workload: Workload) -> Callable[[], Any]:
    """The whole way from layers to totals; the workload is a new value each time, so nothing is remembered."""

    def work() -> tuple[float, float]:
        report = estimate(dataclasses.replace(workload), chip)
        return report.latency_s, report.energy_j

    return work


def objectives(report: Report) -> None:
    """Networks, batches, bitwidths and objectives."""
    head = f"{'network':<13}{'batch':>5}{'bits':>6} {'objective':<10}{'kernel':<29}{'processor':>10}  "
    report(f"{head}{'estimate()':<29}{'x ref.':>7}{'x target':>10}")
    for name in ("mobilenet_v2", "resnet18"):
        for batch in (1, 16):
            for bits in (8, 4, 2):
                workload = networks.NETWORKS[name](batch=batch).with_bits(bits, bits)
                target_s = REFERENCE_TARGET_S.get((name, batch))
                reference_s = None
                for objective in ("reference", *OBJECTIVES):
                    chip = (
                        BitFusion(model="reference", mapping="channel", objective="latency")
                        if objective == "reference"
                        else BitFusion(objective=objective)  # type: ignore[arg-type]
                    )
                    kernel = timed(kernel_of(chip, workload), least_s=0.01)
                    whole = timed(estimate_of(chip, workload), least_s=0.01)
                    reference_s = reference_s or kernel.processor
                    to_target = f"{kernel.processor / target_s:.2f}" if target_s and bits == 8 else ""
                    report(
                        f"{name:<13}{batch:>5}{f'w{bits}a{bits}':>6} {objective:<10}{kernel!s:<29}"
                        f"{seconds(kernel.processor):>10}  {whole!s:<29}{kernel.processor / reference_s:>7.2f}"
                        f"{to_target:>10}"
                    )
    report("\nx ref.: kernel over the reference model's in this process; x target: kernel over the target of the")
    report("reference model (0.3, 3 and 0.2 ms), of which the default model may take 3. Ratios are of processor times.")


def growth(report: Report, what: str, sizes: Sequence[int], workload_of: Callable[[int], Workload]) -> None:
    """Processor time of the kernel over size, and the exponent of a power law through it."""
    report(f"\n{what}: processor time of the kernel")
    report(f"{'':>8}" + "".join(f"{objective:>12}" for objective in OBJECTIVES))
    times_s = []
    for size in sizes:
        chips = [BitFusion(objective=objective) for objective in OBJECTIVES]  # type: ignore[arg-type]
        times_s.append([timed(kernel_of(chip, workload_of(size)), 15, 0.005).processor for chip in chips])
        report(f"{size:>8}" + "".join(f"{seconds(s):>12}" for s in times_s[-1]))
    exponents = np.polyfit(np.log(sizes), np.log(times_s), 1)[0]
    report("exponent" + "".join(f"{exponent:>12.2f}" for exponent in exponents))


def chain(n_layers: int) -> Workload:
    """Distinct convolutions, their channels drawn from a fixed seed."""
    channels = 8 * np.random.default_rng(0).permutation(np.arange(1, 400))[: n_layers + 1]
    layers = [
        Layer(f"conv{i}", int(c), int(k), (28, 28), (3, 3), (1, 1), (1, 1))
        for i, (c, k) in enumerate(pairwise(channels))
    ]
    return Workload.sequential("chain", layers)


def main() -> None:
    """Run all of it."""
    report = Report("Bit Fusion, model='default': time to price a network", "scipy")
    objectives(report)
    growth(
        report, "one 3x3 convolution of 56 x 56, by its input and output channels", (16, 32, 64, 128, 256, 512, 1024),
        lambda c: Workload.sequential("conv", [Layer("conv", c, c, (56, 56), (3, 3), (1, 1), (1, 1))]),
    )  # fmt: skip
    growth(report, "MobileNetV2 by batch", (1, 4, 16, 64, 256), lambda batch: networks.mobilenet_v2(batch=batch))
    growth(report, "a chain of distinct 3x3 convolutions of 28 x 28, by its layers", (10, 30, 100, 300), chain)
    report.close()


if __name__ == "__main__":
    main()
