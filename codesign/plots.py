"""Plots of searches and of cost reports: each returns the axes that it drew on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codesign.pareto import pareto_mask
from codesign.trial import Trial
from hwmodels.cost import BOUNDS, CostReport, LayerCost
from hwmodels.workload import Layer, Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Told apart with every kind of colour vision: Okabe and Ito, "Color universal design", 2008.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"

#: What a metric is called on an axis, and its unit; a unit that takes SI prefixes begins with "*".
LABELS = {
    "error": ("error", "%"),
    "loss": ("loss", "nats"),
    "latency_s": ("latency", "*s"),
    "energy_j": ("energy", "*J"),
    "edp_js": ("energy-delay product", "*J s"),
    "frames_per_s": ("throughput", "*frames/s"),
    "area_mm2": ("area", "mm²"),
    "macs": ("multiply-accumulates", "*MAC"),
    "bitops": ("bit operations", "*BitOP"),
    "weight_bytes": ("weights", "*B"),
}
COMPONENTS = {"compute": "compute", "sram": "SRAM", "dram": "DRAM", "leakage": "leakage"}
_PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}


def _scale(metric: str, values: Any) -> tuple[float, str]:
    """The factor that brings values of a metric to a readable size, and the axis label that goes with it."""
    name, unit = LABELS.get(metric, (metric, ""))
    if unit == "%":
        return 100.0, f"{name} (%)"
    if not unit.startswith("*"):
        return 1.0, f"{name} ({unit})" if unit else name
    factor, prefix = _prefix(values)
    return factor, f"{name} ({prefix}{unit[1:]})"


def _prefix(values: Any) -> tuple[float, str]:
    sizes = np.abs(np.asarray(values, dtype=float))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    exponent = 0 if not len(sizes) else int(np.clip(3 * math.floor(math.log10(sizes.max()) / 3), -12, 12))
    return 10.0**-exponent, _PREFIXES[exponent]


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=size, layout="constrained")
    _tidy(ax)
    return ax


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#e6e6e6", linewidth=0.7)
    ax.set_axisbelow(True)


def plot_pareto(
    runs: Mapping[str, Sequence[Trial]],
    x: str = "latency_s",
    y: str = "error",
    color: str | None = None,
    limits: Mapping[str, float] | None = None,
    marks: Mapping[str, Mapping[str, float]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Trials of one or more runs, the front of each drawn as steps through marked points, dominated ones faint.

    Parameters
    ----------
    runs : mapping
        Trials by the name of their run. Infeasible trials, and those that lack a metric, are left out.
    x, y : str
        Metrics; less is better. The front is that of these two.
    color : str, optional
        A third metric, shown as colour; runs are then told apart by their markers.
    limits : mapping of float, optional
        Limits by metric; those on ``x`` and ``y`` are drawn.
    marks : mapping, optional
        Metrics of further networks by their names, such as uniform bitwidths, drawn as labelled points.
    ax : Axes, optional

    Raises
    ------
    ValueError
        Where no trial has both metrics; the message lists those there are.
    """
    metrics = (x, y) if color is None else (x, y, color)
    clouds: dict[str, NDArray[np.float64]] = {}
    for name, trials in runs.items():
        rows = [[t.metrics[m] for m in metrics] for t in trials if t.feasible and all(m in t.metrics for m in metrics)]
        points = np.array(rows, dtype=float).reshape(-1, len(metrics))
        clouds[name] = points[np.isfinite(points).all(axis=1)]
    everything = np.concatenate([*clouds.values(), np.empty((0, len(metrics)))])
    if not len(everything):
        known = sorted({metric for trials in runs.values() for trial in trials for metric in trial.metrics})
        raise ValueError(
            f"plot_pareto: some feasible trial must have {', '.join(metrics)}; the metrics there are: "
            f"{', '.join(known) or 'none'}."
        )
    named = {name: m for name, m in (marks or {}).items() if x in m and y in m}
    limits = limits or {}
    (scale_x, label_x), (scale_y, label_y) = (
        _scale(m, [*everything[:, i], *(point[m] for point in named.values())]) for i, m in enumerate((x, y))
    )
    ax = _axes(ax, (6.4, 4.2))
    shades: Any = None
    for i, (name, points) in enumerate(clouds.items()):
        if not len(points):
            continue
        hue, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        xs, ys = scale_x * points[:, 0], scale_y * points[:, 1]
        front = pareto_mask(points[:, :2])
        order = np.argsort(xs[front], kind="stable")
        steps = {"color": GREY if color else hue, "linewidth": 1.3, "alpha": 0.8, "zorder": 3}
        ax.step(xs[front][order], ys[front][order], where="post", **steps)
        fill = [{"color": hue}, {"color": hue}]
        if color:
            scale_c, label_c = _scale(color, everything[:, 2])
            low, high = scale_c * everything[:, 2].min(), scale_c * everything[:, 2].max()
            fill = [{"c": scale_c * points[some, 2], "vmin": low, "vmax": high} for some in (~front, front)]
        edge = "black" if color else "white"
        ax.scatter(xs[~front], ys[~front], s=12, marker=marker, alpha=0.25, linewidths=0, zorder=2, **fill[0])
        label = f"{name} ({front.sum()} of {len(xs)} on the front)"
        shades = ax.scatter(
            xs[front], ys[front], s=46, marker=marker, edgecolors=edge, linewidths=0.8, zorder=4, label=label, **fill[1]
        )
    for name, point in named.items():
        at = scale_x * point[x], scale_y * point[y]
        ax.plot(*at, marker="*", markersize=12, color="white", markeredgecolor="black", linestyle="none", zorder=5)
        box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
        ax.annotate(name, at, xytext=(7, 7), textcoords="offset points", fontsize=8, zorder=5, bbox=box)
    _draw_limits(ax, limits, x, y, scale_x, scale_y)
    ax.set_xlabel(label_x)
    ax.set_ylabel(label_y)
    ax.margins(0.06)
    if color:
        bar = ax.figure.colorbar(shades, ax=ax, label=label_c)
        bar.outline.set_visible(False)
    ax.legend(frameon=True, framealpha=0.8, edgecolor="none", fontsize=8, loc="best")
    return ax


def _draw_limits(ax: Axes, limits: Mapping[str, float], x: str, y: str, scale_x: float, scale_y: float) -> None:
    style = {"color": "#B22222", "linestyle": "--", "linewidth": 1.2, "zorder": 1}
    if x in limits:
        ax.axvline(scale_x * limits[x], **style)
        ax.annotate(
            "limit", (scale_x * limits[x], 0), xycoords=("data", "axes fraction"), xytext=(4, 4),
            textcoords="offset points", ha="left", va="bottom", color=style["color"], fontsize=8,
        )  # fmt: skip
    if y in limits:
        ax.axhline(scale_y * limits[y], **style)
        ax.annotate(
            "limit", (1, scale_y * limits[y]), xycoords=("axes fraction", "data"), xytext=(-3, 3),
            textcoords="offset points", ha="right", va="bottom", color=style["color"], fontsize=8,
        )  # fmt: skip


def short_names(names: Sequence[str], longest: int = 18) -> list[str]:
    """Layer names without a first part that nearly all share, and cut in front where they are still too long.

    Examples
    --------
    >>> short_names(["net.features.0", "net.features.1.conv", "net.head"])
    ['features.0', 'features.1.conv', 'head']
    """
    names = list(names)
    while True:
        first = [name.partition(".")[0] for name in names]
        common = max(first, key=first.count)
        shorter = [name.removeprefix(f"{common}.") for name in names]
        if shorter == names or first.count(common) < 0.8 * len(names) or len(set(shorter)) < len(names):
            break
        names = shorter
    return [name if len(name) <= longest else "…" + name[-(longest - 1) :] for name in names]


def _name_layers(ax: Axes, names: Sequence[str]) -> None:
    ax.set_xticks(range(len(names)), short_names(names), rotation=90, fontsize=7 if len(names) > 30 else 8)
    ax.set_xlim(-0.8, len(names) - 0.2)
    ax.grid(False, axis="x")


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
        _tidy(ax)
    if has_energy:
        if report.energy.has_parts:
            parts = {label: [getattr(e, f"{n}_pj") * 1e-12 for e in energies] for n, label in COMPONENTS.items()}
        else:
            parts = {"measured": [energy.total_pj * 1e-12 for energy in energies]}
        scale, prefix = _prefix([energy.total_pj * 1e-12 for energy in energies])
        _stack(axes[0], {n: values for n, values in parts.items() if any(values)}, scale)
        axes[0].set_ylabel(f"energy ({prefix}J)")
        axes[0].legend(frameon=False, fontsize=8, ncols=4, loc="upper right")
    scale, prefix = _prefix([cost.latency_s for cost in costs])
    _stack(axes[-1], _times(costs), scale)
    axes[-1].set_ylabel(f"latency ({prefix}s)")
    axes[-1].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    _name_layers(axes[-1], [layer.name for layer in layers])
    for ax in axes:
        ax.grid(False, axis="x")
        ax.set_ylim(0, 1.18 * ax.get_ylim()[1])  # room for the legend
    total_s, s = _prefix([report.latency_s])
    text = f"{report.workload.name} on {type(report.hardware).__name__}: {total_s * report.latency_s:.3g} {s}s"
    if has_energy:
        total_j, j = _prefix([report.energy_j])
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
    ax = _axes(ax, (min(20.0, max(6.4, 1.5 + 0.21 * len(layers))), 3.4))
    places = range(len(layers))
    ax.bar(places, [layer.weight_bits for layer in layers], width=0.8, color=COLORS[0], label="weights")
    ax.bar(places, [-layer.input_bits for layer in layers], width=0.8, color=COLORS[4], label="inputs")
    ax.axhline(0, color="black", linewidth=0.8)
    widths = sorted({bits for layer in layers for bits in (layer.weight_bits, layer.input_bits)})
    ax.set_yticks([*(-w for w in reversed(widths)), 0, *widths], [*map(str, reversed(widths)), "0", *map(str, widths)])
    ax.set_ylim(-1.15 * widths[-1], 1.45 * widths[-1])
    ax.set_ylabel("inputs  |  weights  (bits)")
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    ax.set_title(title or workload.name, fontsize=10)
    _name_layers(ax, [layer.name for layer in layers])
    return ax


def plot_roofline(report: CostReport, ax: Axes | None = None) -> Axes:
    """Speed of each MAC layer over its arithmetic intensity, under the roofs of the chip.

    A point is a layer, its area the share of the time that it takes, its colour what bounds it. The level roofs are
    the peaks at the settings that the layers run at, the slanting one is the DRAM interface.

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
    ax = _axes(ax, (6.4, 4.2))
    intensity = np.array([layer.macs / (_dram_bits(cost) / 8) for layer, cost in rows])
    speed = np.array([layer.macs / cost.latency_s for layer, cost in rows])
    share = np.array([cost.latency_s for _, cost in rows]) / report.latency_s
    peaks = _peaks(rows)
    hardware: Any = report.hardware
    bandwidth = getattr(hardware, "dram_bits_per_cycle", 0) * getattr(hardware, "clock_hz", 0) / 8
    top = max([*peaks, speed.max()])
    scale, prefix = _prefix([top])
    left, right = intensity.min() / 3, max(intensity.max() * 3, 3 * top / bandwidth if bandwidth else 0)
    line = np.geomspace(left, right, 200)
    for peak, label in peaks.items():
        roof = np.minimum(peak, bandwidth * line) if bandwidth else np.full_like(line, peak)
        ax.plot(line, scale * roof, color=GREY, linewidth=1.1, zorder=1)
        ax.annotate(
            label, (right, scale * peak), xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=8, color=GREY
        )
    for bound, hue in zip(BOUNDS, (COLORS[0], COLORS[1], COLORS[2]), strict=True):
        some = np.array([cost.bound == bound for _, cost in rows])
        if some.any():
            size = 20 + 900 * share[some]
            label = {"compute": "compute bound", "dram": "DRAM bound", "array": "bound by the array's shape"}[bound]
            ax.scatter(
                intensity[some], scale * speed[some], s=size, color=hue, alpha=0.65, edgecolors="white",
                linewidths=0.6, label=label, zorder=3,
            )  # fmt: skip
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
        peak: "w/a " + ", ".join(f"{w}/{a}" for w, a in sorted(widths)[:4]) + (" ..." if len(widths) > 4 else "")
        for peak, widths in peaks.values()
    }


#: By name, for the command line.
PLOTS: dict[str, Callable[..., Any]] = {
    "pareto": plot_pareto,
    "layers": plot_layers,
    "bits": plot_bits,
    "roofline": plot_roofline,
}
