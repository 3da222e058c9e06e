"""MobileNetV2 on 10,000 chips in one call of ``hwmodels.array.sweep``."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from measure import Report, seconds, timed

from hwmodels import BitFusion, networks
from hwmodels.array import run_kernel, sweep

N_CHIPS, TARGET_S, SEED = 10_000, 5.0, 0


def random_chips(n: int, objective: Any) -> list[BitFusion]:
    """Chips of all sizes; every one a new value, so that no unit energy is remembered."""
    rng = np.random.default_rng(SEED)

    def sizes(low: int, high: int) -> list[int]:
        return (low * 2 ** rng.uniform(0, np.log2(high / low), n)).astype(int).tolist()

    columns = zip(
        sizes(4, 64), sizes(4, 64), sizes(2**14, 2**19), sizes(2**13, 2**18), sizes(2**12, 2**17), sizes(32, 1024),
        strict=True,
    )  # fmt: skip
    return [
        BitFusion(
            rows=rows, cols=cols, weight_buffer_bytes=weight, input_buffer_bytes=input, output_buffer_bytes=output,
            dram_bits_per_cycle=dram, objective=objective,
        )
        for rows, cols, weight, input, output, dram in columns
    ]  # fmt: skip


def main() -> None:
    """Run all of it."""
    report = Report(f"MobileNetV2 on {N_CHIPS:,} chips in one call of hwmodels.array.sweep", "scipy")
    report(f"chips: array 4-64 x 4-64, buffers of 16-512, 8-256 and 4-128 KiB, 32-1024 bits/cycle; seed {SEED}\n")
    sweep(networks.mobilenet_v2(), random_chips(2, "latency"))
    cores = os.cpu_count() or 1
    report(f"{'':<15}{'sweep()':<34}{'wall':>11}  {f'processor / {cores} cores':>20}")
    for bits in (8, 4, 2):
        workload = networks.mobilenet_v2().with_bits(bits, bits)
        for objective in ("latency", "energy", "edp"):
            runs = [random_chips(N_CHIPS, objective) for _ in range(4)]
            times = timed(lambda runs=runs, w=workload: sweep(w, runs.pop()), runs=len(runs) - 1)
            ratios = [f"{value / TARGET_S:.2f} of {TARGET_S:g} s" for value in (times.median, times.processor / cores)]
            report(f"w{bits}a{bits} {objective:<9} {times!s:<34}{ratios[0]:>11}  {ratios[1]:>20}")

    report("\nwhere one thread spends its time (processor time; w8a8, latency; 1,000 chips)")
    workload, chips = networks.mobilenet_v2(), random_chips(1000, "latency")
    rows, _ = workload.packed
    nothing_resident = np.zeros(len(rows), dtype=np.int64)
    whole = timed(lambda: sweep(workload, random_chips(1000, "latency"), workers=1), runs=3)
    made = timed(lambda: random_chips(1000, "latency"), runs=3)
    arrays = timed(lambda: [(c.kernel_chip, c.kernel_price) for c in random_chips(1000, "latency")], runs=3)
    kernel = timed(lambda: [run_kernel(chip, rows, nothing_resident) for chip in chips], runs=3)
    for name, part_s in (
        ("BitFusion(...) with its checks", made.processor),
        ("unit energies and arrays of a new chip", arrays.processor - made.processor),
        ("mapping search", kernel.processor),
        ("sums and threads", whole.processor - arrays.processor - kernel.processor),
    ):
        report(f"{name:<42}{seconds(part_s / 1000):>10} a chip")
    report.close()


if __name__ == "__main__":
    main()
