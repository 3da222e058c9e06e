"""What a shootout found, as tables and as a plot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codesign.commands.output import table
from codesign.metrics import LABELS, scaled, sense
from codesign.pareto import hypervolume
from codesign.shootout import STRATEGIES, final_name, load_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
#: Reference point of the hypervolume: this error, and this share of the metric of the network that limits refer to.
REFERENCE = (0.9, 1.0)
#: What a row says that its search took, and what tables call it.
SPENT = {
    "evaluations": "evaluations", "distinct": "distinct", "image_passes": "image passes", "search_s": "seconds",
    "processor_s": "of processor",
}  # fmt: skip
#: Columns of the report.
WIDTH = 120


@dataclass(frozen=True)
class ShootoutReport:
    """Rows of searches, and the errors of their networks on the test set.

    Parameters
    ----------
    record : mapping
        The shootout, as JSON has it.
    rows : sequence of dict
        One for each search that is done, or has failed.
    finals : mapping
        By `codesign.shootout.final_name`.
    """

    record: Row
    rows: Sequence[Row]
    finals: dict[str, dict[str, Any]]

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
    def found(self) -> list[Row]:
        """Rows of searches that have found a network."""
        return [row for row in self.rows if "failed" not in row]

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
        """Those of which every strategy has all limits done, failed or not."""
        return [
            seed for seed in range(self.record["seeds"])
            if sum(row["seed"] == seed for row in self.rows) == len(self.strategies) * len(self.limits)
        ]  # fmt: skip

    def error(self, kind: str, row: Row) -> float:
        """The test error of a row's network: kind "test" with the weights as given, "tuned" after equal training."""
        return self.finals.get(final_name(kind, row["arch"]), {}).get("error", math.nan)

    def values(self, strategy: str, limit: int, of: Callable[[Row], float]) -> list[float]:
        """A number of each seed."""
        found = [of(row) for row in self.found if row["strategy"] == strategy and row["limit"] == limit]
        return [value for value in found if not math.isnan(value)]

    def limits_on(self, metric: str) -> list[int]:
        """The places of the limits on a metric."""
        return [i for i, limit in enumerate(self.record["limits"]) if any(t.startswith(f"{metric}=") for t in limit)]

    def compared(self, metric: str, kind: str = "test") -> bool:
        """Whether errors of that kind are known under limits on a metric."""
        return any(
            self.values(name, i, lambda row: self.error(kind, row))
            for name in self.strategies
            for i in self.limits_on(metric)
        )

    def hypervolumes(self, strategy: str, metric: str, kind: str = "test") -> list[float]:
        """For each seed that of error and a metric, over all limits on that metric, up to `REFERENCE`."""
        on = self.limits_on(metric)
        volumes = []
        for seed in range(self.record["seeds"]):
            rows = [r for r in self.found if r["strategy"] == strategy and r["seed"] == seed and r["limit"] in on]
            points = np.array([[self.error(kind, r), self._share(metric, r)] for r in rows])
            if rows and len(rows) == len(on) and not np.isnan(points).any():
                volumes.append(float(hypervolume(points, REFERENCE)))
        return volumes

    def _share(self, metric: str, row: Row) -> float:
        """What a row's network takes of the metric, where the one that limits refer to takes 1; less is better."""
        share = float(row["metrics"][metric]) / self._whole(metric)
        return 1 / share if sense(metric) == "max" else share

    def _whole(self, metric: str) -> float:
        return float(self.record["reference"][metric])

    # ------------------------------------------------------------------------------------------------ as text

    def __str__(self) -> str:
        n, failures = len(self.seeds), self._failures()
        failed = len(self.rows) - len(self.found)
        parts = [
            f"{len(self.found)} searches{f', and {failed} that failed' if failed else ''}; medians over {n} "
            f"seed{'' if n == 1 else 's'}, ranges in brackets",
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
            "What it took, for each search (medians); a network that is asked for again is known, so image passes\n"
            "count distinct ones. Seconds leave out networks that an earlier search of the same process had measured.",
            self._costs(),
            f"Hypervolumes, up to a test error of {100 * REFERENCE[0]:g} % and {REFERENCE[1]:g}x of what the network "
            f"{self._reference_name()} takes:",
            self._volumes(), self._total(),
            *([f"Failed, and not tried again unless asked (--retry):\n{failures}"] if failures else []),
        ]  # fmt: skip
        return "\n\n".join(parts)

    def _reference_name(self) -> str:
        bits = [one["bits"] for one in self.record.get("uniform", [])]
        return f"at {8 if 8 in bits else max(bits)} bits" if bits else "that limits refer to"

    def _failures(self) -> str:
        """What failed, each message once."""
        told: dict[str, list[str]] = {}
        for row in self.rows:
            if "failed" in row:
                name = f"{row['strategy']} under {self.limits[row['limit']]}, seed {row['seed']}"
                told.setdefault(row["failed"], []).append(name)
        for name, scores in self.finals.items():
            if "failed" in scores:
                told.setdefault(scores["failed"], []).append(name)
        return "\n".join(
            textwrap.fill(f"{'; '.join(names)}: {message}", WIDTH, subsequent_indent="    ", initial_indent="  ")
            for message, names in told.items()
        )

    def _total(self) -> str:
        """What all of it took, what failed too."""
        taken = {"searches": [(row.get("search_s", 0.0), row.get("processor_s", 0.0)) for row in self.rows]}
        for kind, name in (("test", "tests"), ("tuned", "tunings")):
            taken[name] = [
                (scores.get("wall_s", 0.0), scores.get("processor_s", 0.0))
                for final, scores in self.finals.items() if final.startswith(kind)
            ]  # fmt: skip
        taken["all"] = [pair for pairs in taken.values() for pair in pairs]
        rows = [
            (name, str(len(pairs)), *(f"{sum(seconds) / 3600:.2f}" for seconds in zip(*pairs, strict=True)))
            for name, pairs in taken.items() if pairs
        ]  # fmt: skip
        return table(("total", "number", "hours", "processor hours"), rows)

    def _accuracies(self, kind: str) -> str:
        tuned = [i for i in range(len(self.limits)) if kind == "test" or i in self.record["tune_limits"]]
        return self._by_limit(lambda row: 100 * (1 - self.error(kind, row)), "{:.2f}", tuned)

    def _by_limit(self, of: Callable[[Row], float], form: str, limits: Iterable[int] | None = None) -> str:
        limits = range(len(self.limits)) if limits is None else list(limits)
        rows = [(name, *(self._cell(name, i, of, form) for i in limits)) for name in self.strategies]
        return table(("strategy", *(self.limits[i] for i in limits)), rows)

    def _cell(self, strategy: str, limit: int, of: Callable[[Row], float], form: str) -> str:
        found = self.values(strategy, limit, of)
        failed = any(r["strategy"] == strategy and r["limit"] == limit and "failed" in r for r in self.rows)
        return "failed" if failed and not found else spread(found, form)

    def _costs(self) -> str:
        rows = []
        for name in self.strategies:
            mine = [row for row in self.found if row["strategy"] == name]
            rows.append((
                name,
                *(spread([row[key] for row in mine if key in row], "{:,.0f}", ends=False) for key in SPENT),
                f"{100 * max(max(row['usage'].values()) for row in mine):.1f} %" if mine else "-",
            ))  # fmt: skip
        return table(("strategy", *SPENT.values(), "most of a limit"), rows)

    def _volumes(self) -> str:
        metrics = list(dict.fromkeys(text.partition("=")[0] for limit in self.record["limits"] for text in limit))
        rows = [
            (name, *(spread(self.hypervolumes(name, metric), "{:.4f}") for metric in metrics))
            for name in self.strategies
        ]
        return table(("strategy", *(f"hypervolume, {LABELS[metric][0]}" for metric in metrics)), rows)

    # ------------------------------------------------------------------------------------------------ drawn

    def plot(self, metric: str = "energy_j", kind: str = "test", ax: Axes | None = None) -> Axes:
        """Test error against a metric: the median over seeds and their range by strategy; uniform bits in grey."""
        from codesign.plots import COLORS, GREY, MARKERS
        from codesign.plots.axes import axes_of

        ax = axes_of(ax, (7.0, 4.4))
        scale, label = scaled(metric, self._whole(metric))
        uniform = self.record.get("uniform", [])
        points = [
            (scale * one["metrics"][metric], 100 * self.error("test", one))
            for one in uniform if kind == "test" and not math.isnan(self.error("test", one))
        ]  # fmt: skip
        if points:
            ax.plot(*zip(*points, strict=True), color=GREY, marker="s", markersize=4, label="uniform bits", zorder=1)
        on = self.limits_on(metric)
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
        highest = [100 * self.error(kind, row) for row in self.found]
        if any(not math.isnan(value) for value in highest):
            ax.set_ylim(0, min(100.0, 1.1 * float(np.nanmax(highest))))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, frameon=False)
        return ax


def spread(values: Sequence[float], form: str, ends: bool = True) -> str:
    """The median, and with ``ends`` the range where there are several values."""
    if not values:
        return "-"
    middle = form.format(float(np.median(values)))
    return middle + (f" [{form.format(min(values))}, {form.format(max(values))}]" if ends and len(values) > 1 else "")
