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
#: What a row says that its search took, and what tables call it; of seconds the longest search is shown, as others
#: find networks measured.
SPENT = {"evaluations": "evaluations", "distinct": "distinct", "image_passes": "image passes"}
SECONDS = {"search_s": "seconds, most", "processor_s": "of processor"}
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

    def widest_uniform(self, limit: int) -> Row | None:
        """The widest uniform bits that meet a limit; None where none do, or where no search under it is known."""
        row = next((row for row in self.found if row["limit"] == limit), None)
        if row is None:
            return None
        for one in sorted(self.record.get("uniform", []), key=lambda one: -one["bits"]):
            use = [
                used * (row["metrics"][name] / one["metrics"][name]) ** (1 if sense(name) == "max" else -1)
                for name, used in row["usage"].items()
            ]
            if max(use, default=0.0) <= 1:
                return dict(one)
        return None

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
        begun = len({row["seed"] for row in self.rows})
        of = f"{n} seed{'' if n == 1 else 's'}" if begun == n else f"what is known of {begun} seeds ({n} complete)"
        parts = [
            f"{len(self.found)} searches{f', and {failed} that failed' if failed else ''}; medians over {of}, "
            "ranges in brackets",
            f"Accuracy on the test set after the search, % (weights as given, steps calibrated){self._given('test')}:",
            self._accuracies("test"),
        ]
        if any(name.startswith("tuned") for name in self.finals):
            epochs = self.record["tune_epochs"]
            parts += [
                f"After equal tuning of {epochs} epoch{'s' if epochs > 1 else ''}, %{self._given('tuned')}:",
                self._accuracies("tuned"),
            ]
        objective = self.record["spec"]["objective"]
        parts += [
            f"What was minimised: {objective} on the search set. Where weights were trained ({self._trained()}) it is "
            "that of those\nweights, and compares with nothing else.",
            self._by_limit(lambda row: float(row["metrics"][objective]), "{:.4f}"),
            "What it took, for each search (medians, and ranges of image passes). A network that is asked for again\n"
            "is known, so image passes count distinct ones. Seconds are those of the longest: others find some known.",
            self._costs(),
        ]  # fmt: skip
        if self._fronts:
            parts += [
                f"Hypervolumes, up to a test error of {100 * REFERENCE[0]:g} % and {REFERENCE[1]:g}x of what the "
                f"network {self._reference_name()} takes:",
                self._volumes(),
            ]
        parts += [
            self._total(),
            *([f"Failed, and not tried again unless asked (--retry):\n{failures}"] if failures else []),
        ]  # fmt: skip
        return "\n\n".join(parts)

    def _reference_name(self) -> str:
        bits = [one["bits"] for one in self.record.get("uniform", [])]
        return f"at {8 if 8 in bits else max(bits)} bits" if bits else "that limits refer to"

    def _given(self, kind: str) -> str:
        """The accuracy at the bits that limits refer to, and in float, and what chance makes of a difference."""
        whole = self.record.get("uniform", [])
        name = self._reference_name()
        said = []
        for one in whole:
            error = self.error(kind, one)
            if name == f"at {one['bits']} bits" and not math.isnan(error):
                said.append(f"{100 * (1 - error):.2f} {name}")
        exact = [scores["error"] for final, scores in self.finals.items() if final.startswith("float")]
        if exact and kind == "test":
            said.append(f"{100 * (1 - exact[0]):.2f} in float")
        errors = [self.error(kind, row) for row in self.found]
        known = [error for error in errors if not math.isnan(error)]
        n = self.record["spec"].get("n_test")
        if known and n:
            middle = float(np.median(known))
            said.append(f"standard error {100 * math.sqrt(middle * (1 - middle) / n):.2f}")
        return f"; {', '.join(said)}" if said else ""

    def _trained(self) -> str:
        from codesign.strategies import STRATEGIES as KINDS
        from codesign.strategies.relaxed_bits import RelaxedBits

        return ", ".join(name for name in self.strategies if issubclass(KINDS[name], RelaxedBits)) or "none here"

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
        for kind, name in ((("float", "test"), "tests"), ("tuned", "tunings")):
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
        uniform = []
        for i in tuned:
            one = self.widest_uniform(i)
            known = one is not None and not math.isnan(self.error(kind, one))
            uniform.append(f"{100 * (1 - self.error(kind, one)):.2f} at {one['bits']} bits" if one and known else "-")
        more = [("uniform", *uniform)] if any(cell != "-" for cell in uniform) else []
        return self._by_limit(lambda row: 100 * (1 - self.error(kind, row)), "{:.2f}", tuned, more)

    def _by_limit(
        self, of: Callable[[Row], float], form: str, limits: Iterable[int] | None = None,
        more: Sequence[Sequence[str]] = (),
    ) -> str:  # fmt: skip
        limits = range(len(self.limits)) if limits is None else list(limits)
        rows = [(name, *(self._cell(name, i, of, form) for i in limits)) for name in self.strategies]
        rows += [tuple(row) for row in more]
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
                *(spread([row[key] for row in mine if key in row], "{:,.0f}", key == "image_passes") for key in SPENT),
                *(f"{max((row[key] for row in mine if key in row), default=math.nan):,.0f}" for key in SECONDS),
                f"{100 * max(max(row['usage'].values()) for row in mine):.1f} %" if mine else "-",
            ))  # fmt: skip
        return table(("strategy", *SPENT.values(), *SECONDS.values(), "most of a limit"), rows)

    @property
    def _fronts(self) -> list[str]:
        """Metrics with several limits; the volume of a single point would reward leaving room."""
        metrics = dict.fromkeys(text.partition("=")[0] for limit in self.record["limits"] for text in limit)
        return [metric for metric in metrics if len(self.limits_on(metric)) > 1]

    def _volumes(self) -> str:
        rows = [
            (name, *(spread(self.hypervolumes(name, metric), "{:.4f}") for metric in self._fronts))
            for name in self.strategies
        ]
        return table(("strategy", *(f"hypervolume, {LABELS[metric][0]}" for metric in self._fronts)), rows)

    # ------------------------------------------------------------------------------------------------ drawn

    def plot(self, metric: str = "energy_j", kind: str = "test", ax: Axes | None = None) -> Axes:
        """Test error by strategy, the median over seeds and their range.

        Against a metric where there are several limits on it, with uniform bits in grey; under a single limit, one row
        for each strategy.
        """
        from codesign.plots.axes import axes_of

        ax = axes_of(ax, (7.0, 4.4))
        errors = "test error (%)" + ("" if kind == "test" else ", after equal tuning")
        draw = self._draw_front if len(self.limits_on(metric)) > 1 else self._draw_one
        draw(ax, metric, kind, errors)
        return ax

    def _series(self, metric: str, kind: str) -> dict[str, list[tuple[float, ...]]]:
        """By strategy, for each limit on a metric: its median cost, and median, least and largest error in percent.

        Strategies that found the same are one.
        """
        scale, _ = scaled(metric, self._whole(metric))
        found: dict[tuple[tuple[float, ...], ...], list[str]] = {}
        for name in self.strategies:
            points = []
            for i in self.limits_on(metric):
                errors = [100 * e for e in self.values(name, i, lambda row: self.error(kind, row))]
                costs = self.values(name, i, lambda row: float(row["metrics"][metric]))
                if errors:
                    points.append((scale * float(np.median(costs)), float(np.median(errors)), min(errors), max(errors)))
            if points:
                found.setdefault(tuple(sorted(points)), []).append(name)
        return {" = ".join(names): list(points) for points, names in found.items()}

    def _draw_front(self, ax: Axes, metric: str, kind: str, errors: str) -> None:
        from codesign.plots import COLORS, GREY, MARKERS

        scale, label = scaled(metric, self._whole(metric))
        series = self._series(metric, kind)
        uniform = [
            (scale * one["metrics"][metric], 100 * self.error(kind, one))
            for one in self.record.get("uniform", []) if not math.isnan(self.error(kind, one))
        ]  # fmt: skip
        if uniform:
            ax.plot(*zip(*uniform, strict=True), color=GREY, marker="s", markersize=4, label="uniform bits", zorder=1)
        for n, (name, points) in enumerate(series.items()):
            marker = MARKERS[(n + n // len(COLORS)) % len(MARKERS)]  # another one where colours begin again
            x, y, low, high = np.array(points).T
            ax.errorbar(
                x, y, (y - low, high - y) if (high > low).any() else None, color=COLORS[n % len(COLORS)],
                marker=marker, markersize=5, linewidth=1, capsize=2, label=name, zorder=2,
            )  # fmt: skip
        known = [value for points in series.values() for point in points for value in point[1:]]
        known += [error for _, error in uniform if known and error <= max(known)]
        if known:
            room = 0.1 * (max(known) - min(known) or 1.0)
            ax.set_ylim(max(0.0, min(known) - room), min(100.0, max(known) + room))
        ax.set_xlabel(label)
        ax.set_ylabel(errors)
        if series:
            ax.legend(fontsize=8, frameon=False)

    def _draw_one(self, ax: Axes, metric: str, kind: str, errors: str) -> None:
        from codesign.plots import GREY

        series = self._series(metric, kind)
        for n, points in enumerate(series.values()):
            _, y, low, high = points[0]
            ax.errorbar(y, n, xerr=[[y - low], [high - y]], fmt="o", color="C0", markersize=5, capsize=2, linewidth=1)
        names, on = list(series), self.limits_on(metric)
        one = self.widest_uniform(on[0]) if on else None
        if one is not None and not math.isnan(self.error(kind, one)):
            ax.axvline(100 * self.error(kind, one), color=GREY, linewidth=1)
            names.append(f"uniform {one['bits']} bits")
            ax.plot(100 * self.error(kind, one), len(series), "s", color=GREY, markersize=4)
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        ax.set_xlabel(errors)
        ax.set_title(f"under {self.limits[on[0]]}" if on else "", fontsize=10)


def spread(values: Sequence[float], form: str, ends: bool = True) -> str:
    """The median, and with ``ends`` the range where there are several values."""
    if not values:
        return "-"
    middle, low, high = (form.format(float(value)) for value in (np.median(values), min(values), max(values)))
    return middle + (f" [{low}, {high}]" if ends and len(values) > 1 and low != high else "")
