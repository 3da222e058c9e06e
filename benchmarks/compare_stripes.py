"""Bit Fusion against a Stripes-like array on the networks of the Bit Fusion paper, which prints 2.6x and 3.9x.

Both have the buffers and the interface of bf_s_conf.ini and the default model's mapping search. The paper's model of
Stripes is not public. So this shows how far our serial array is from theirs, not who is right.

    python benchmarks/compare_stripes.py --out benchmarks/results/compare_stripes.txt
"""

from __future__ import annotations

from dataclasses import replace

from measure import Report
from repro_bitfusion_isca18 import geometric_mean, networks

from hwmodels import HARDWARE, estimate

#: Sharma et al., Bit Fusion, ISCA 2018, abstract: speed-up and energy reduction over Stripes.
PAPER = 2.6, 3.9


def main() -> None:
    """Print Stripes-like over Bit Fusion, network by network."""
    report = Report("Time and energy of a Stripes-like array over Bit Fusion's, batch 16")
    bit_fusion, preset = HARDWARE["bitfusion-s"](), HARDWARE["stripes"]()
    shared = ("weight_buffer_bytes", "input_buffer_bytes", "output_buffer_bytes", "dram_bits_per_cycle")
    same_grid = replace(preset, **{name: getattr(bit_fusion, name) for name in shared})
    arrays = {"same grid": same_grid, "same area": same_grid.with_area(bit_fusion.area_mm2)}
    head = "".join(f"{f'{name}, {a.rows}x{a.cols}x{a.windows}':>24}" for name, a in arrays.items())
    report(f"{'':<12}{head}\n{'network':<12}" + f"{'time':>12}{'energy':>12}" * len(arrays))
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in arrays}
    for network, workload in networks().items():
        ours = estimate(workload, bit_fusion)
        for name, array in arrays.items():
            theirs = estimate(workload, array)
            ratios[name].append((theirs.latency_s / ours.latency_s, theirs.energy_j / ours.energy_j))
        report(f"{network:<12}" + "".join(f"{some[-1][0]:>12.2f}{some[-1][1]:>12.2f}" for some in ratios.values()))
    means = [[geometric_mean([pair[i] for pair in some]) for i in (0, 1)] for some in ratios.values()]
    report(f"{'geomean':<12}" + "".join(f"{time:>12.2f}{energy:>12.2f}" for time, energy in means))
    report(f"{'paper':<12}" + f"{PAPER[0]:>12.2f}{PAPER[1]:>12.2f}" * len(arrays))
    report(f"{'ratio':<12}" + "".join(f"{time / PAPER[0]:>12.2f}{energy / PAPER[1]:>12.2f}" for time, energy in means))
    report.close()


if __name__ == "__main__":
    main()
