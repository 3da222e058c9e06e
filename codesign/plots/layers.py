"""Plots of one network on one chip: cost by layer, and bitwidths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codesign.metrics import prefixed
from codesign.plots.axes import COLORS, axes_of, name_layers, tidy
from hwmodels.cost import CostReport, LayerCost
from hwmodels.workload import Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMPONENTS = {"compute": "compute", "sram": "SRAM", "dram": "DRAM", "leakage": "leakage"}


def _stack(ax: Axes, parts: Mapping[str, Sequence[float]], scale: float) -> None:
    """Stacked bars, one a layer."""
    base = np.zeros(len(next(iter(parts.values()))))
    for (label, values), hue in zip(parts.items(), COLORS, strict=False):
        heights = scale * np.asarray(values, dtype=float)
        ax.bar(range(len(heights)), heights, bottom=base, width=0.8, color=hue, label=label)
        base += heights


def plot_layers(report: CostReport, title: str | None = None) -> NDArray[Any]:
    """Where a network's energy and time go: a bar a layer, stacked by component above and by stalls below.

    Parameters
    ----------
    report : CostReport
        Of any chip. Where it has no energy, the first panel is left out; where it has no cycles, time is not split.

    Returns
    -------
    ndarray of Axes, shape (1,) or (2,)
    """
    import matplotlib.pyplot as plt

    layers, costs = report.workload.layers, list(report.layers)
    energies = [cost.energy for cost in costs if cost.energy is not None]
    has_energy = len(energies) == len(costs)
    rows = 1 + has_energy
    width = min(20.0, max(7.0, 1.5 + 0.21 * len(layers)))
    figure, axes = plt.subplots(
        rows, 1, figsize=(width, 1.5 + 2.2 * rows), sharex=True, squeeze=False, layout="constrained"
    )
    axes = axes[:, 0]
    for ax in axes:
        tidy(ax)
    if has_energy:
        if report.energy.has_parts:
            parts = {label: [getattr(e, f"{n}_pj") * 1e-12 for e in energies] for n, label in COMPONENTS.items()}
        else:
            parts = {"measured": [energy.total_pj * 1e-12 for energy in energies]}
        scale, prefix = prefixed([energy.total_pj * 1e-12 for energy in energies])
        _stack(axes[0], {n: values for n, values in parts.items() if any(values)}, scale)
        axes[0].set_ylabel(f"energy ({prefix}J)")
        axes[0].legend(frameon=False, fontsize=8, ncols=4, loc="upper right")
    scale, prefix = prefixed([cost.latency_s for cost in costs])
    _stack(axes[-1], _times(costs), scale)
    axes[-1].set_ylabel(f"latency ({prefix}s)")
    axes[-1].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    name_layers(axes[-1], [layer.name for layer in layers])
    for ax in axes:
        ax.grid(False, axis="x")
        ax.set_ylim(0, 1.18 * ax.get_ylim()[1])  # room for the legend
    total_s, s = prefixed([report.latency_s])
    text = f"{report.workload.name} on {type(report.hardware).__name__}: {total_s * report.latency_s:.3g} {s}s"
    if has_energy:
        total_j, j = prefixed([report.energy_j])
        text += f", {total_j * report.energy_j:.3g} {j}J"
    figure.suptitle(title or text, fontsize=10)
    return axes


def _times(costs: Sequence[LayerCost]) -> dict[str, list[float]]:
    """Seconds of each layer, split into computing and waiting where its model counts cycles."""
    if any(cost.cycles is None or cost.stall_cycles is None for cost in costs):
        return {"latency": [cost.latency_s for cost in costs]}
    stalled = [cost.latency_s * (cost.stall_cycles or 0) / max(cost.cycles or 0, 1) for cost in costs]
    return {
        "computing": [cost.latency_s - stall for cost, stall in zip(costs, stalled, strict=True)],
        "waiting for memory": stalled,
    }


def plot_bits(workload: Workload, title: str | None = None, ax: Axes | None = None) -> Axes:
    """The bitwidths of a network: weights upwards and inputs downwards, a pair of bars for each MAC layer."""
    layers = workload.mac_layers
    ax = axes_of(ax, (min(20.0, max(6.4, 1.5 + 0.21 * len(layers))), 3.4))
    places = range(len(layers))
    ax.bar(places, [layer.weight_bits for layer in layers], width=0.8, color=COLORS[0], label="weights")
    ax.bar(places, [-layer.input_bits for layer in layers], width=0.8, color=COLORS[4], label="inputs")
    ax.axhline(0, color="black", linewidth=0.8)
    widths = sorted({bits for layer in layers for bits in (layer.weight_bits, layer.input_bits)})
    ax.set_yticks([*(-w for w in reversed(widths)), 0, *widths], [*map(str, reversed(widths)), "0", *map(str, widths)])
    ax.tick_params(axis="y", labelsize=7)  # seven bitwidths each way
    ax.set_ylim(-1.15 * widths[-1], 1.45 * widths[-1])
    ax.set_ylabel("inputs  |  weights  (bits)")
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    ax.set_title(title or workload.name, fontsize=10)
    name_layers(ax, [layer.name for layer in layers])
    return ax
