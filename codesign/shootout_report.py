"""What a shootout found, as tables and as a plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codesign.commands.output import table
from codesign.metrics import LABELS, scaled
from codesign.pareto import hypervolume
from codesign.shootout import STRATEGIES, final_name, load_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
#: Reference point of the hypervolume: this error, and this share of the metric of the network at the widest bits.
REFERENCE = (0.9, 1.0)


@dataclass(frozen=True)
class ShootoutReport:
    """Rows of searches, and the errors of their networks on the test set.

    Parameters
    ----------
    record : mapping
        The shootout, as JSON has it.
    rows : sequence of dict
        One for each search that is done.
    finals : mapping
        By `codesign.shootout.final_name`.
    """

    record: Row
    rows: Sequence[Row]
    finals: dict[str, dict[str, float]]

    @classmethod
    def load(cls, folder: str | Path) -> ShootoutReport:
        """That of a shootout's directory.

        Raises
        ------
        ValueError
            Where it is none.
        """
        return cls(*load_rows(folder))

    @cached_property
    def strategies(self) -> list[str]:
        """Those that have searched, in the order of tables."""
        return [name for name in STRATEGIES if any(row["strategy"] == name for row in self.rows)]

    @cached_property
    def limits(self) -> list[str]:
        """What each limit is called."""
        return [", ".join(limit) for limit in self.record["limits"]]

    @cached_property
    def seeds(self) -> list[int]:
        """Those of which every strategy has all limits done."""
        return [
            seed for seed in range(self.record["seeds"])
            if sum(row["seed"] == seed for row in self.rows) == len(self.strategies) * len(self.limits)
        ]  # fmt: skip

    def error(self, kind: str, row: Row) -> float:
        """The test error of a row's network: kind "test" with the weights as given, "tuned" after equal training."""
        return self.finals.get(final_name(kind, row["arch"]), {}).get("error", math.nan)

    def values(self, strategy: str, limit: int, of: Callable[[Row], float]) -> list[float]:
        """A number of each seed."""
        found = [of(row) for row in self.rows if row["strategy"] == strategy and row["limit"] == limit]
        return [value for value in found if not math.isnan(value)]

    def hypervolumes(self, strategy: str, metric: str, kind: str = "test") -> list[float]:
        """For each seed that of error and a metric, over all limits on that metric, up to `REFERENCE`."""
        on = [i for i, limit in enumerate(self.record["limits"]) if any(t.startswith(f"{metric}=") for t in limit)]
        volumes = []
        for seed in range(self.record["seeds"]):
            rows = [r for r in self.rows if r["strategy"] == strategy and r["seed"] == seed and r["limit"] in on]
            points = np.array([[self.error(kind, r), r["metrics"][metric] / self._whole(metric)] for r in rows])
            if rows and len(rows) == len(on) and not np.isnan(points).any():
                volumes.append(float(hypervolume(points, REFERENCE)))
        return volumes

    def _whole(self, metric: str) -> float:
        return float(self.record["reference"][metric])

    # ------------------------------------------------------------------------------------------------ as text

    def __str__(self) -> str:
        n = len(self.seeds)
        parts = [
            f"{len(self.rows)} searches; medians over {n} seed{'' if n == 1 else 's'}, ranges in brackets",
            "Accuracy on the test set after the search, % (weights as given, steps calibrated):",
            self._accuracies("test"),
        ]
        if any(name.startswith("tuned") for name in self.finals):
            epochs = self.record["tune_epochs"]
            parts += [f"After equal tuning of {epochs} epoch{'s' if epochs > 1 else ''}, %:", self._accuracies("tuned")]
        objective = self.record["spec"]["objective"]
        parts += [
            f"What was minimised: {objective} on the search set",
            self._by_limit(lambda row: float(row["metrics"][objective]), "{:.4f}"),
            "What it took, for each search (medians)", self._costs(),
        ]  # fmt: skip
        return "\n\n".join(parts)

    def _accuracies(self, kind: str) -> str:
        tuned = [i for i in range(len(self.limits)) if kind == "test" or i in self.record["tune_limits"]]
        return self._by_limit(lambda row: 100 * (1 - self.error(kind, row)), "{:.2f}", tuned)

    def _by_limit(self, of: Callable[[Row], float], form: str, limits: Iterable[int] | None = None) -> str:
        limits = range(len(self.limits)) if limits is None else list(limits)
        rows = [(name, *(spread(self.values(name, i, of), form) for i in limits)) for name in self.strategies]
        return table(("strategy", *(self.limits[i] for i in limits)), rows)

    def _costs(self) -> str:
        metrics = list(dict.fromkeys(text.partition("=")[0] for limit in self.record["limits"] for text in limit))
        rows = []
        for name in self.strategies:
            mine = [row for row in self.rows if row["strategy"] == name]
            spent = ("evaluations", "image_passes", "search_s")
            rows.append((
                name,
                *(f"{np.median([row[key] for row in mine]):,.0f}" for key in spent),
                f"{100 * max(max(row['usage'].values()) for row in mine):.1f} %",
                *(spread(self.hypervolumes(name, metric), "{:.4f}") for metric in metrics),
            ))  # fmt: skip
        volumes = [f"hypervolume, {LABELS[metric][0]}" for metric in metrics]
        return table(("strategy", "evaluations", "image passes", "seconds", "most of a limit", *volumes), rows)

    # ------------------------------------------------------------------------------------------------ drawn

    def plot(self, metric: str = "energy_j", kind: str = "test", ax: Axes | None = None) -> Axes:
        """Test error against a metric: the median over seeds and their range by strategy; uniform bits in grey."""
        from codesign.plots import COLORS, GREY, MARKERS
        from codesign.plots.axes import axes_of

        ax = axes_of(ax, (7.0, 4.4))
        scale, label = scaled(metric, self._whole(metric))
        uniform = self.record.get("uniform", [])
        points = [
            (scale * one["metrics"][metric], 100 * self.finals[final_name("test", one["arch"])]["error"])
            for one in uniform if kind == "test" and final_name("test", one["arch"]) in self.finals
        ]  # fmt: skip
        if points:
            ax.plot(*zip(*points, strict=True), color=GREY, marker="s", markersize=4, label="uniform bits", zorder=1)
        on = [i for i, limit in enumerate(self.record["limits"]) if any(t.startswith(f"{metric}=") for t in limit)]
        for n, name in enumerate(self.strategies):
            found = []
            for i in on:
                errors = [100 * e for e in self.values(name, i, lambda row: self.error(kind, row))]
                costs = self.values(name, i, lambda row: float(row["metrics"][metric]))
                if errors:
                    found.append((scale * float(np.median(costs)), float(np.median(errors)), min(errors), max(errors)))
            if found:
                marker = MARKERS[(n + n // len(COLORS)) % len(MARKERS)]  # another one where colours begin again
                x, y, low, high = np.array(sorted(found)).T
                ax.errorbar(
                    x, y, (y - low, high - y), color=COLORS[n % len(COLORS)], marker=marker,
                    markersize=5, linewidth=1, capsize=2, label=name, zorder=2,
                )  # fmt: skip
        ax.set_xlabel(label)
        ax.set_ylabel("test error (%)" + ("" if kind == "test" else ", after equal tuning"))
        highest = [100 * self.error(kind, row) for row in self.rows]
        if any(not math.isnan(value) for value in highest):
            ax.set_ylim(0, min(100.0, 1.1 * float(np.nanmax(highest))))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, frameon=False)
        return ax


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the range where there are several values."""
    if not values:
        return "-"
    middle = form.format(float(np.median(values)))
    ends = f" [{form.format(min(values))}, {form.format(max(values))}]" if len(values) > 1 else ""
    return middle + ends
