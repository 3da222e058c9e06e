"""MobileNetV2 on 10,000 chips in one call of ``hwmodels.array.sweep``."""

from __future__ import annotations

import os
from itertools import count
from typing import Any

import numpy as np
from measure import Report, seconds, timed

from hwmodels import BitFusion, Layer, Workload, networks
from hwmodels.array import run_kernel, sweep

N_CHIPS, TARGET_S, RUNS = 10_000, 5.0, 3


def random_chips(n: int, objective: Any, seed: int) -> list[BitFusion]:
    """Chips of all sizes; another seed gives other chips, whose unit energies are not remembered."""
    rng = np.random.default_rng(seed)

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
    report(f"chips: array 4-64 x 4-64, buffers of 16-512, 8-256 and 4-128 KiB, 32-1024 bits/cycle; seeds 0 to {RUNS}\n")
    cores = os.cpu_count() or 1
    report(f"{'':<15}{'sweep()':<34}{'wall':>11}  {f'processor / {cores} cores':>20}")
    for bits, objective in ((8, "latency"), (8, "energy"), (8, "edp"), (4, "edp"), (2, "edp")):
        workload = networks.mobilenet_v2().with_bits(bits, bits)
        runs = [random_chips(N_CHIPS, objective, seed) for seed in range(RUNS + 1)]
        times = timed(lambda runs=runs, w=workload: sweep(w, runs.pop()), RUNS)
        ratios = [f"{value / TARGET_S:.2f} of {TARGET_S:g} s" for value in (times.median, times.processor / cores)]
        report(f"w{bits}a{bits} {objective:<9} {times!s:<34}{ratios[0]:>11}  {ratios[1]:>20}")

    report("\nwhere one thread spends its time (processor time; w8a8, latency; 1,000 chips)")
    workload, chips, seeds = networks.mobilenet_v2(), random_chips(1000, "latency", 0), count(100)
    rows, _ = workload.packed
    nothing_resident = np.zeros(len(rows), dtype=np.int64)

    def new_chips() -> list[BitFusion]:
        return random_chips(1000, "latency", next(seeds))

    made = timed(new_chips, RUNS)
    arrays = timed(lambda: [(chip.kernel_chip, chip.kernel_price) for chip in new_chips()], RUNS)
    kernel = timed(lambda: [run_kernel(chip, rows, nothing_resident) for chip in chips], RUNS)
    trivial = Workload.sequential("one multiplication", [Layer.linear("fc", 1, 1)])
    rest = timed(lambda: sweep(trivial, chips, workers=1), RUNS)
    for name, part_s in (
        ("BitFusion(...) with its checks", made.processor),
        ("unit energies and arrays of a new chip", arrays.processor - made.processor),
        ("mapping search", kernel.processor),
        ("calls, sums and threads", rest.processor),
    ):
        report(f"{name:<42}{seconds(part_s / 1000):>10} a chip")
    report.close()


if __name__ == "__main__":
    main()
