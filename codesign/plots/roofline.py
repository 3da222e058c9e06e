"""The roofline of a network's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codesign.metrics import prefixed
from codesign.plots.axes import COLORS, GREY, axes_of
from hwmodels.cost import BOUNDS, CostReport, LayerCost
from hwmodels.workload import Layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_roofline(report: CostReport, ax: Axes | None = None) -> Axes:
    """Speed of each MAC layer over its arithmetic intensity, under the roofs of the chip.

    A point is a layer, its area the share of the time that it takes, its colour what bounds it; depthwise and other
    grouped layers are diamonds. The level roofs are the peaks at the settings that the layers run at, the slanting one
    is the DRAM interface.

    Raises
    ------
    ValueError
        Where the chip's model counts neither cycles nor traffic.
    """
    rows = [
        (layer, cost)
        for layer, cost in zip(report.workload.layers, report.layers, strict=True)
        if layer.is_mac and cost.cycles and _dram_bits(cost)
    ]
    if not rows:
        raise ValueError(
            f"plot_roofline: layers must have cycles and DRAM traffic, but {type(report.hardware).__name__} gives none."
        )
    ax = axes_of(ax, (6.4, 4.2))
    intensity = np.array([layer.macs / (_dram_bits(cost) / 8) for layer, cost in rows])
    speed = np.array([layer.macs / cost.latency_s for layer, cost in rows])
    share = np.array([cost.latency_s for _, cost in rows]) / report.latency_s
    peaks = _peaks(rows)
    hardware: Any = report.hardware
    bandwidth = getattr(hardware, "dram_bits_per_cycle", 0) * getattr(hardware, "clock_hz", 0) / 8
    top = max([*peaks, speed.max()])
    scale, prefix = prefixed([top])
    left, right = intensity.min() / 3, max(intensity.max() * 3, 3 * top / bandwidth if bandwidth else 0)
    line = np.geomspace(left, right, 200)
    for peak, label in peaks.items():
        roof = np.minimum(peak, bandwidth * line) if bandwidth else np.full_like(line, peak)
        ax.plot(line, scale * roof, color=GREY, linewidth=1.1, zorder=1)
        ax.annotate(
            label, (right, scale * peak), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5,
            color=GREY, annotation_clip=False,
        )  # fmt: skip
    for bound, hue in zip(BOUNDS, (COLORS[0], COLORS[1], COLORS[2]), strict=True):
        label = {"compute": "compute bound", "dram": "DRAM bound", "array": "bound by the array's shape"}[bound]
        for marker, kind in (("o", False), ("D", True)):
            some = np.array([cost.bound == bound and (layer.groups > 1) == kind for layer, cost in rows])
            if some.any():
                ax.scatter(
                    intensity[some], scale * speed[some], s=20 + 900 * share[some], color=hue, alpha=0.65,
                    edgecolors="white", linewidths=0.6, label=label, marker=marker, zorder=3,
                )  # fmt: skip
                label = "_"
    if any(layer.groups > 1 for layer, _ in rows):
        ax.scatter([], [], color=GREY, marker="D", label="depthwise or grouped")
    ax.scatter([], [], color="none", label="area: share of the time")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(left, right)
    ax.set_ylim(scale * speed.min() / 3, scale * top * 2.5)
    ax.set_xlabel("arithmetic intensity (MACs per byte of DRAM traffic)")
    ax.set_ylabel(f"speed ({prefix}MAC/s)")
    ax.set_title(f"{report.workload.name} on {type(hardware).__name__}", fontsize=10)
    legend = ax.legend(frameon=False, fontsize=8, loc="lower right")
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    return ax


def _dram_bits(cost: LayerCost) -> int:
    return cost.traffic_bits.get("dram_read", 0) + cost.traffic_bits.get("dram_write", 0)


def _peaks(rows: Sequence[tuple[Layer, LayerCost]]) -> dict[float, str]:
    """MACs a second of the full array at each setting in use, and the operand widths that run at it."""
    peaks: dict[int, tuple[float, set[tuple[int, int]]]] = {}
    for layer, cost in rows:
        if cost.compute_cycles and cost.utilization and cost.cycles:
            peak = layer.macs / cost.compute_cycles / cost.utilization * cost.cycles / cost.latency_s
            key = round(100 * math.log(peak))
            peaks.setdefault(key, (peak, set()))[1].add((layer.weight_bits, layer.input_bits))
    return {
        peak: "w/a " + ", ".join(f"{w}/{a}" for w, a in sorted(widths)[:3]) + (" ..." if len(widths) > 3 else "")
        for peak, widths in peaks.values()
    }
