"""What is searched for: a space, an accuracy, a chip, and limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from codesign.space import AbstractSpace, Arch
from codesign.trial import Trial
from hwmodels.cost import CostReport, HardwareModel, InfeasibleLayer, estimate

#: Metrics of which more is better: a limit on one of them holds from below.
AT_LEAST = ("frames_per_s",)
#: Options of one choice that a descent to the cheapest network prices.
MOST_TRIED = 24
#: The name under which a candidate that fits no tiling is a violation.
FIT = "fit"


class UnreachableLimit(ValueError):
    """Limits that no network found can meet."""


class Reach(NamedTuple):
    """The range of a metric over a space, as found, and the archs at its ends."""

    low: float
    high: float
    low_arch: Arch
    high_arch: Arch


@dataclass(frozen=True, eq=False)
class Problem:
    """Find the arch with the lowest objective among those that meet every limit.

    Parameters
    ----------
    space : AbstractSpace
    accuracy : callable
        From an arch to its metrics, such as ``{"error": 0.02}``. It must be a function of the arch alone, so that
        the result depends neither on the order nor on the process in which candidates are evaluated.
    hardware : HardwareModel
    limits : mapping of float
        Largest value of any metric of `CostReport.metrics` (smallest, for those of `AT_LEAST`).
    supernet : object, optional
        Weights that candidates share, for strategies that train them.
    objective : str
        The metric to minimise, one that ``accuracy`` gives.

    Raises
    ------
    ValueError
        For a limit on an unknown metric, or one that is not a positive number.

    Notes
    -----
    Limits are hard. A candidate over a limit is priced, which costs about a millisecond, and not evaluated, which
    costs seconds; what it is worth to a strategy is the strategy's business. Strategies that propose only what
    `project` returns get an evaluation for each trial.
    """

    space: AbstractSpace
    accuracy: Callable[[Arch], Mapping[str, float]]
    hardware: HardwareModel
    limits: Mapping[str, float] = field(default_factory=dict)
    supernet: Any = None
    objective: str = "error"

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", {name: float(value) for name, value in self.limits.items()})
        for name, value in self.limits.items():
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"Problem: the limit on {name} must be a positive number, got {value}.")
        if self.limits:
            known = self._any_report().metrics()
            unknown = [name for name in self.limits if name not in known]
            if unknown:
                raise ValueError(
                    f"Problem: limits must be on metrics that {type(self.hardware).__name__} gives, got "
                    f"{', '.join(unknown)}; known are {', '.join(known)}."
                )

    def _any_report(self) -> CostReport:
        """The report of some arch that fits; the error of the last one tried where none does."""
        archs = list(self._starts())
        for arch in archs[:-1]:
            try:
                return self.price(arch)
            except InfeasibleLayer:
                continue
        return self.price(archs[-1])

    def price(self, arch: Arch) -> CostReport:
        """The cost report of a candidate, simulated in full.

        Raises
        ------
        InfeasibleLayer
            Where a layer fits no tiling.
        """
        return estimate(self.space.workload(arch), self.hardware)

    def evaluate(self, arch: Arch, number: int = 0, seed: int = 0) -> Trial:
        """Price a candidate and, where it meets the limits, evaluate it."""
        arch = self.space.check(arch)
        metrics, usage = self._priced(arch)
        violations = {name: used - 1 for name, used in usage.items() if not used <= 1}
        if not violations:
            metrics = {name: float(value) for name, value in self.accuracy(arch).items()} | metrics
            if self.objective not in metrics:
                raise ValueError(
                    f"Problem: accuracy must give the objective {self.objective!r}, got {', '.join(metrics)}."
                )
        return Trial(arch, metrics, violations, number, seed)

    def _priced(self, arch: Arch) -> tuple[dict[str, float], dict[str, float]]:
        """The metrics of a candidate, and how much of each limit it uses."""
        try:
            metrics = self.price(arch).metrics()
        except InfeasibleLayer:
            return {}, {FIT: math.inf}
        return metrics, {
            name: limit / metrics[name] if name in AT_LEAST else metrics[name] / limit
            for name, limit in self.limits.items()
        }

    def usage(self, arch: Arch) -> dict[str, float]:
        """How much of each limit a candidate uses; at most 1 where it is met."""
        return self._priced(arch)[1]

    def violations(self, arch: Arch) -> dict[str, float]:
        """By how much, relative to it, each limit that is not met is exceeded."""
        return {name: used - 1 for name, used in self.usage(arch).items() if not used <= 1}

    def feasible(self, arch: Arch) -> bool:
        """Whether a candidate meets every limit."""
        return not self.violations(arch)

    @cached_property
    def witness(self) -> Arch:
        """The arch found that uses least of its scarcest limit.

        Raises
        ------
        UnreachableLimit
            Where even that one is over a limit.
        """
        arch = self._descend(lambda usage: (max(usage.values(), default=0.0), sum(usage.values())))
        over = self.violations(arch)
        if over:
            metrics, _ = self._priced(arch)
            found = ", ".join(
                f"{name} = {metrics[name]:.4g} (limit {self.limits[name]:.4g})" if name in metrics else "no tiling"
                for name in over
            )
            raise UnreachableLimit(
                f"Problem: some network must meet every limit, but the cheapest found has {found}. It is "
                f"{_briefly(self.space.decode(arch))}. Raise the limit, or give the space cheaper options."
            )
        return arch

    def project(self, arch: Arch, rng: np.random.Generator) -> Arch:
        """A candidate near ``arch`` that meets every limit; ``arch`` itself where it does.

        Notes
        -----
        A random path leads from ``arch`` to `witness`, moving one choice by one option at each step. Bisection
        finds a point on it that meets the limits while the one before does not.
        """
        if self.feasible(arch):
            return arch
        end = np.array(self.witness)
        gaps = end - np.array(arch)
        steps = rng.permutation(np.repeat(np.arange(len(gaps)), np.abs(gaps)))

        def point(n: int) -> Arch:
            moved = np.bincount(steps[:n], minlength=len(gaps))
            return tuple(int(option) for option in np.array(arch) + np.sign(gaps) * moved)

        low, high = 0, len(steps)  # over a limit at low, within all at high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.feasible(point(middle)) else (middle, high)
        return point(high)

    def reachable(self, metric: str) -> Reach:
        """The range of a metric over the space, limits left aside, found by descent from several starts.

        Raises
        ------
        ValueError
            For an unknown metric.
        """
        known = self._any_report().metrics()
        if metric not in known:
            raise ValueError(f"Problem: reachable() knows {', '.join(known)}; got {metric!r}.")
        free = Problem(self.space, self.accuracy, self.hardware, {metric: known[metric]})
        sign = -1 if metric in AT_LEAST else 1
        ends = [
            free._descend(lambda usage, s=s: s * usage[metric] if metric in usage else math.inf) for s in (sign, -sign)
        ]
        low, high = (free.price(arch).metrics()[metric] for arch in ends)
        return Reach(low, high, *ends)

    def _starts(self) -> Iterator[Arch]:
        """Where descent may start: all first options, all last ones, and a few at random."""
        yield tuple(0 for _ in self.space.choices)
        yield tuple(count - 1 for count in self.space.option_counts)
        rng = np.random.default_rng(0)
        for _ in range(16):
            yield self.space.sample(rng)

    def _descend(self, key: Callable[[dict[str, float]], Any]) -> Arch:
        """An arch from which no change of a single choice lowers ``key`` of its usage of the limits.

        Of a choice with more than `MOST_TRIED` options as many are tried, evenly taken, the first and last among them.
        """
        best = min(self._starts(), key=lambda arch: key(self.usage(arch)))
        lowest = key(self.usage(best))
        improved = True
        while improved:
            improved = False
            for i, count in enumerate(self.space.option_counts):
                for option in {round(place) for place in np.linspace(0, count - 1, min(count, MOST_TRIED))}:
                    if option == best[i]:
                        continue
                    arch = (*best[:i], option, *best[i + 1 :])
                    value = key(self.usage(arch))
                    if value < lowest:
                        best, lowest, improved = arch, value, True
        return best


def _briefly(options: Mapping[str, Any], most: int = 6) -> str:
    """The options of an arch in few words."""
    values = list(options.values())
    if len(set(values)) == 1:
        return f"{values[0]} for all of its {len(values)} choices"
    shown = ", ".join(f"{name}={value}" for name, value in list(options.items())[:most])
    return shown + (f" and {len(options) - most} more" if len(options) > most else "")
