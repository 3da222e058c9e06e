"""Plots of searches and of cost reports: each returns the axes that it drew on."""

from collections.abc import Callable
from typing import Any

from codesign.plots.axes import COLORS, GREY, MARKERS, short_names
from codesign.plots.blocks import plot_blocks
from codesign.plots.front import plot_front_grid, plot_pareto
from codesign.plots.layers import plot_bits, plot_layers
from codesign.plots.roofline import plot_roofline
from codesign.plots.sensitivity import plot_sensitivity

#: By name.
PLOTS: dict[str, Callable[..., Any]] = {
    "pareto": plot_pareto,
    "front_grid": plot_front_grid,
    "blocks": plot_blocks,
    "layers": plot_layers,
    "bits": plot_bits,
    "roofline": plot_roofline,
    "sensitivity": plot_sensitivity,
}

__all__ = [
    "COLORS", "GREY", "MARKERS", "PLOTS", "plot_bits", "plot_blocks", "plot_front_grid", "plot_layers", "plot_pareto",
    "plot_roofline", "plot_sensitivity", "short_names",
]  # fmt: skip
