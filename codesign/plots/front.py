"""Plots of trials: Pareto fronts of one run or of several, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codesign.metrics import scaled, sense
from codesign.pareto import attainment, pareto_mask
from codesign.plots.axes import COLORS, GREY, MARKERS, Limits, axes_of, draw_limits, tidy
from codesign.trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
#: Trials by name: those of one run, or a list of runs that differ in their seeds.
Runs = Mapping[str, Sequence[Trial] | Sequence[Sequence[Trial]]]

#: Seeds from which the spread is shown by quartiles rather than by the range.
MANY_SEEDS = 5


def plot_pareto(
    runs: Runs,
    x: str = "latency_s",
    y: str = "error",
    color: str | None = None,
    limits: Limits | None = None,
    marks: Mapping[str, Mapping[str, float]] | None = None,
    ax: Axes | None = None,
    order: Sequence[str] = (),
) -> Axes:
    """Trials of one or more runs, the front of each drawn as steps through marked points, dominated ones faint.

    Parameters
    ----------
    runs : mapping
        Trials by the name of their run; or, by the name of a strategy, a list of runs with different seeds. Of these
        the median attainment is drawn as steps, its spread (range, or quartiles of five or more) as a band where all
        of that have attained something, and the points of each seed's front small. Infeasible trials, and those that
        lack a metric, are left out.
    x, y : str
        Metrics; less is better, but for those of which more is (`codesign.metrics.sense`). The front is that of these
        two.
    color : str, optional
        A third metric, shown as colour; runs are then told apart by their markers.
    limits : mapping of float or of sequences of float, optional
        Limits by metric; those on ``x`` and ``y`` are drawn, and one on ``color`` beside the colours.
    marks : mapping, optional
        Metrics of further networks by their names, such as uniform bitwidths, drawn as labelled points.
    ax : Axes, optional
    order : sequence of str
        Names in whose order colours and markers are dealt out, so that several plots agree; other runs come after them.

    Raises
    ------
    ValueError
        Where no trial has both metrics; the message lists those there are.
    """
    metrics = (x, y) if color is None else (x, y, color)
    clouds, everything = _clouds(runs, metrics, "plot_pareto")
    named = {name: m for name, m in (marks or {}).items() if x in m and y in m}
    limits = limits or {}
    (scale_x, label_x), (scale_y, label_y) = (
        scaled(m, [*everything[:, i], *(point[m] for point in named.values())]) for i, m in enumerate((x, y))
    )
    ax = axes_of(ax, (6.4, 4.2))
    scales = np.array([scale_x, scale_y])
    shades: Any = None
    shade: dict[str, Any] = {}
    if color:
        scale_c, label_c = scaled(color, everything[:, 2])
        shade = {"vmin": scale_c * everything[:, 2].min(), "vmax": scale_c * everything[:, 2].max()}
    senses, signs = _senses((x, y))
    pairs = {name: [cloud[:, :2] * scales * signs for cloud in seeds] for name, seeds in clouds.items()}
    right = _right(pairs)
    places = {name: i for i, name in enumerate(dict.fromkeys([*order, *clouds]))}
    for name, seeds in clouds.items():
        hue, marker = COLORS[places[name] % len(COLORS)], MARKERS[places[name] % len(MARKERS)]
        _draw_steps(ax, pairs[name], right, GREY if color else hue, signs)
        fronts = [pareto_mask(cloud[:, :2], senses=senses) for cloud in seeds]
        points, front = np.concatenate(seeds), np.concatenate(fronts)
        xs, ys = scale_x * points[:, 0], scale_y * points[:, 1]
        fill = [{"c": scale_c * points[some, 2], **shade} if color else {"color": hue} for some in (~front, front)]
        ax.scatter(xs[~front], ys[~front], s=12, marker=marker, alpha=0.25, linewidths=0, zorder=2, **fill[0])
        drawn = ax.scatter(
            xs[front], ys[front], s=46 if len(seeds) == 1 else 22, marker=marker, linewidths=0.8 if color else 0.6,
            edgecolors="black" if color else "white", zorder=4, label=_label(name, fronts), **fill[1],
        )  # fmt: skip
        shades = drawn if color else None
    for name, point in named.items():
        at = scale_x * point[x], scale_y * point[y]
        ax.plot(*at, marker="*", markersize=12, color="white", markeredgecolor="black", linestyle="none", zorder=5)
        box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
        ax.annotate(name, at, xytext=(7, 7), textcoords="offset points", fontsize=8, zorder=5, bbox=box)
    draw_limits(ax, limits, x, y, scale_x, scale_y)
    ax.set(xlabel=label_x, ylabel=label_y)
    ax.margins(0.06)
    if color:
        bar = ax.figure.colorbar(shades, ax=ax, label=label_c)
        bar.outline.set_visible(False)
        for value in np.atleast_1d(limits.get(color, ())):
            bar.ax.axhline(scale_c * value, color="#B22222", linestyle="--", linewidth=1.2)
    ax.legend(frameon=True, framealpha=0.8, edgecolor="none", fontsize=8, loc="best")
    return ax


def plot_front_grid(
    runs: Runs, objectives: Sequence[str] = ("error", "latency_s", "energy_j"), limits: Limits | None = None
) -> NDArray[Any]:
    """Three objectives in three panels, one for each pair of them, on shared axes.

    Filled points are those that no point of any run dominates in all three objectives; the others are faint. The
    steps are the front of each run, or the median over its seeds, in the first objective and that of the panel.

    Parameters
    ----------
    runs, limits
        As for `plot_pareto`.
    objectives : sequence of str, length 3
        Metrics; less is better, but for those of which more is (`codesign.metrics.sense`).

    Returns
    -------
    ndarray of Axes, shape (2, 2)
        The last one holds the legend.

    Raises
    ------
    ValueError
        For another number of objectives, or where no trial has all of them.
    """
    import matplotlib.pyplot as plt

    if len(objectives) != 3:
        raise ValueError(f"plot_front_grid: there must be three objectives, got {', '.join(objectives) or 'none'}.")
    clouds, everything = _clouds(runs, objectives, "plot_front_grid")
    scales, labels = zip(*(scaled(m, everything[:, i]) for i, m in enumerate(objectives)), strict=True)
    joint = pareto_mask(everything, senses=_senses(objectives)[0])
    _, axes = plt.subplots(2, 2, figsize=(8.6, 6.6), sharex="col", layout="constrained")
    for ax, x, y in ((axes[0, 0], 1, 0), (axes[0, 1], 2, 0), (axes[1, 0], 1, 2)):
        tidy(ax)
        first = 0
        signs = _senses((objectives[x], objectives[y]))[1]
        factors = np.array([scales[x], scales[y]]) * signs
        pairs = {name: [cloud[:, (x, y)] * factors for cloud in seeds] for name, seeds in clouds.items()}
        right = _right(pairs)
        for i, (name, seeds) in enumerate(pairs.items()):
            hue, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
            if y == 0:
                _draw_steps(ax, seeds, right, hue, signs)
            points = np.concatenate(seeds) * signs
            best = joint[first : first + len(points)]
            first += len(points)
            ax.scatter(*points[~best].T, s=10, marker=marker, color=hue, alpha=0.2, linewidths=0, zorder=2)
            ax.scatter(
                *points[best].T, s=30, marker=marker, color=hue, edgecolors="black", linewidths=0.6, zorder=4,
                label=f"{name}: {best.sum()} of {len(points)}",
            )  # fmt: skip
        draw_limits(ax, limits or {}, objectives[x], objectives[y], scales[x], scales[y])
        ax.margins(0.06)
    axes[0, 0].set_ylabel(labels[0])
    axes[0, 1].set(xlabel=labels[2], ylabel=labels[0])
    axes[0, 1].tick_params(labelbottom=True)
    axes[1, 0].set(xlabel=labels[1], ylabel=labels[2])
    axes[1, 1].set_axis_off()
    title = "on the front of all runs\nin all three objectives"
    axes[1, 1].legend(
        *axes[0, 0].get_legend_handles_labels(), title=title, loc="center", frameon=False, fontsize=9,
        title_fontsize=9, alignment="left",
    )  # fmt: skip
    return np.asarray(axes)


def _clouds(runs: Runs, metrics: Sequence[str], whose: str) -> tuple[dict[str, list[Floats]], Floats]:
    """Points of each run by seed, without runs that have none, and all points in that order."""
    clouds: dict[str, list[Floats]] = {}
    seen: set[str] = set()
    for name, trials in runs.items():
        several: Any = trials if len(trials) and not isinstance(trials[0], Trial) else [trials]
        for one in several:
            seen.update(metric for trial in one for metric in trial.metrics)
            rows = [[t.metrics[m] for m in metrics] for t in one if t.feasible and all(m in t.metrics for m in metrics)]
            points = np.array(rows, dtype=float).reshape(-1, len(metrics))
            points = points[np.isfinite(points).all(axis=1)]
            if len(points):
                clouds.setdefault(name, []).append(points)
    if not clouds:
        raise ValueError(
            f"{whose}: some feasible trial must have {', '.join(metrics)}; the metrics there are: "
            f"{', '.join(sorted(seen)) or 'none'}."
        )
    return clouds, np.concatenate([cloud for seeds in clouds.values() for cloud in seeds])


def _senses(metrics: Sequence[str]) -> tuple[list[str], Floats]:
    """The senses of metrics, and the signs that make costs of them."""
    senses = [sense(metric) for metric in metrics]
    return senses, np.array([-1.0 if one == "max" else 1.0 for one in senses])


def _right(pairs: Mapping[str, Sequence[Floats]]) -> float:
    """The largest first cost on any front."""
    return float(max(pair[pareto_mask(pair), 0].max() for seeds in pairs.values() for pair in seeds))


def _draw_steps(ax: Axes, seeds: Sequence[Floats], right: float, hue: str, signs: Floats) -> None:
    """The front of a run as steps; of several, the median of their attainment, and its spread as a band.

    Points are costs; they are drawn as values again, by their signs.
    """
    at = np.unique(np.concatenate([points[pareto_mask(points), 0] for points in seeds]))
    if len(seeds) > 1:
        at = np.unique([*at, right])
    reached = np.stack([attainment(points, at) for points in seeds])
    # Of an even number the upper of the middle two, so that nothing is averaged with what is not reached.
    middle = np.sort(reached, axis=0)[len(seeds) // 2]
    there = np.isfinite(middle)
    of_x, of_y = signs
    ax.step(of_x * at[there], of_y * middle[there], where="post", color=hue, linewidth=1.3, alpha=0.8, zorder=3)
    if len(seeds) > 1:
        ends = (0.25, 0.75) if len(seeds) >= MANY_SEEDS else (0, 1)
        low, high = np.quantile(reached, ends, axis=0, method="inverted_cdf")
        whole = np.isfinite(high)
        ax.fill_between(
            of_x * at[whole], of_y * low[whole], of_y * high[whole], step="post", color=hue, alpha=0.18, linewidth=0,
            zorder=1.5,
        )  # fmt: skip


def _label(name: str, fronts: Sequence[NDArray[np.bool_]]) -> str:
    """A run and the size of its front, or the number of seeds and what is shown of them."""
    if len(fronts) == 1:
        return f"{name} (own front: {fronts[0].sum()} of {len(fronts[0])})"
    return f"{name} ({len(fronts)} seeds: median, {'quartiles' if len(fronts) >= MANY_SEEDS else 'range'})"
