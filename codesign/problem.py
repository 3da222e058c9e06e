"""What is searched for: a space, an accuracy, a chip, and limits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codesign.chip_space import ChipCostTable
from codesign.cost_table import TOLERANCE, CostTable, cost_table
from codesign.metrics import quantity
from codesign.space import AbstractSpace, Arch
from codesign.terms import WORKLOAD_METRICS, NotDecomposable
from codesign.trial import Trial
from hwmodels.cost import CostReport, HardwareModel, InfeasibleLayer, estimate

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

#: Metrics of which more is better: a limit on one of them holds from below.
AT_LEAST = ("frames_per_s",)
#: Options of one choice that a descent prices where each has to be simulated.
MOST_TRIED = 24
#: Distance of a usage from 1 up to which the simulator decides, not the table: a product of two sums errs by twice
#: the tolerance of one.
EDGE = 4 * TOLERANCE
#: Metrics that are the same to the last bit from a table: they count, or are of the chip alone.
EXACT_METRICS = (*WORKLOAD_METRICS, "area_mm2")
#: Sums over choices that tell where a metric which is none itself may be lowest.
_SUMS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "frames_per_s": (("latency_s", -1.0),),
    "edp_js": (("energy_j", 1.0), ("latency_s", 1.0)),
}
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
        From the arch of a network (`AbstractSpace.network_arch`) to its metrics, such as ``{"error": 0.02}``. It
        must be a function of the arch alone, so that the result depends neither on the order nor on the process in
        which candidates are evaluated.
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

    Where cost decomposes, `costs`, and so all that looks for networks within the limits, reads it from `table`. What
    `price` and `evaluate` say is always simulated in full, and so is every decision so close to a limit that
    rounding could turn it.
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
        unknown = [name for name in self.limits if name not in self.metrics]
        if unknown:
            raise ValueError(
                f"Problem: limits must be on metrics that {type(self.hardware).__name__} gives, got "
                f"{', '.join(unknown)}; known are {', '.join(self.metrics)}."
            )

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process is sent: the fields, and nothing that can be computed again."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that limits may name: those of the cost report of any arch that fits."""
        archs = list(self._starts())
        for arch in archs[:-1]:
            try:
                return tuple(self.price(arch).metrics())
            except InfeasibleLayer:
                continue
        return tuple(self.price(archs[-1]).metrics())

    @cached_property
    def table(self) -> CostTable | ChipCostTable | None:
        """What every choice costs; None, and a warning that says why, where cost does not decompose."""
        try:
            return cost_table(self.space, self.hardware)
        except NotDecomposable as error:
            logger.warning("No cost table, so candidates are priced one by one: %s", error)
            return None

    def price(self, arch: Arch) -> CostReport:
        """The cost report of a candidate, simulated in full.

        Raises
        ------
        InfeasibleLayer
            Where a layer fits no tiling.
        """
        return estimate(self.space.workload(arch), self.space.hardware(arch, self.hardware))

    def costs(self, archs: ArrayLike) -> dict[str, Floats]:
        """Metrics of many candidates, from the table where there is one.

        Parameters
        ----------
        archs : array_like of int, shape (n, n_choices)

        Returns
        -------
        dict
            By metric, of all `metrics`, arrays of shape (n,). A candidate that fits no tiling costs inf, and has 0
            of the metrics in `AT_LEAST`.
        """
        if self.table is None:
            return self._simulated_costs(archs)
        costs = self.table.price(np.asarray(archs))
        if "frames_per_s" in self.metrics:
            costs["frames_per_s"] = self._batch / costs["latency_s"]
        if "edp_js" in self.metrics:
            costs["edp_js"] = costs["energy_j"] * costs["latency_s"]
        return {name: costs[name] for name in self.metrics}

    def _simulated_costs(self, archs: ArrayLike) -> dict[str, Floats]:
        rows = [self._simulated(tuple(int(option) for option in arch)) for arch in np.asarray(archs)]
        misfit = {name: 0.0 if name in AT_LEAST else math.inf for name in self.metrics}
        return {name: np.array([(row or misfit)[name] for row in rows]) for name in self.metrics}

    def _simulated(self, arch: Arch) -> dict[str, float]:
        """The metrics of a candidate; none where it fits no tiling."""
        try:
            return self.price(arch).metrics()
        except InfeasibleLayer:
            return {}

    @cached_property
    def _batch(self) -> int:
        return self.space.workload(next(self._starts())).batch

    def evaluate(self, arch: Arch, number: int = 0, seed: int = 0) -> Trial:
        """Price a candidate in full and, where it meets the limits, evaluate it."""
        arch = self.space.check(arch)
        metrics = self._simulated(arch)
        violations = _over(self._usage(metrics))
        if not violations:
            metrics = {
                name: float(value) for name, value in self.accuracy(self.space.network_arch(arch)).items()
            } | metrics
            if self.objective not in metrics:
                raise ValueError(
                    f"Problem: accuracy must give the objective {self.objective!r}, got {', '.join(metrics)}."
                )
        return Trial(arch, metrics, violations, number, seed)

    def _usage(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """How much of each limit simulated metrics use."""
        if not metrics:
            return {FIT: math.inf}
        return {
            name: limit / metrics[name] if name in AT_LEAST else metrics[name] / limit
            for name, limit in self.limits.items()
        }

    def usages(self, archs: ArrayLike) -> Floats:
        """How much of each limit many candidates use; shape (n, n_limits), inf where one fits no tiling.

        Where a limit is as good as reached the candidate is simulated, so that it is judged as `evaluate` will.
        """
        archs = np.asarray(archs)
        costs = self.costs(archs)
        usages = np.empty((len(archs), len(self.limits)))
        edge = np.zeros(len(archs), dtype=bool)
        for i, (name, limit) in enumerate(self.limits.items()):
            with np.errstate(divide="ignore"):
                usages[:, i] = limit / costs[name] if name in AT_LEAST else costs[name] / limit
            if name not in EXACT_METRICS:
                edge |= abs(usages[:, i] - 1) < EDGE
        for i in np.flatnonzero(edge) if self.table is not None else ():
            used = self._usage(self._simulated(tuple(archs[i].tolist())))
            usages[i] = [used.get(name, math.inf) for name in self.limits]
        return usages

    def usage(self, arch: Arch) -> dict[str, float]:
        """How much of each limit a candidate uses; at most 1 where it is met."""
        if self.table is None:
            return self._usage(self._simulated(arch))
        if not np.isfinite(self.table.price([arch])["latency_s"][0]):
            return {FIT: math.inf}
        return dict(zip(self.limits, self.usages([arch])[0].tolist(), strict=True))

    def violations(self, arch: Arch) -> dict[str, float]:
        """By how much, relative to it, each limit that is not met is exceeded."""
        return _over(self.usage(arch))

    def feasible(self, arch: Arch) -> bool:
        """Whether a candidate meets every limit."""
        return not self.violations(arch)

    @cached_property
    def witness(self) -> Arch:
        """The arch found that uses least of its scarcest limit; exactly, for one limit on a sum over a table.

        Raises
        ------
        UnreachableLimit
            Where even that one is over a limit.
        """
        starts = [arch for name in self.limits for arch in self._optima(name, -1.0 if name in AT_LEAST else 1.0)]
        sums = {name: 1 / limit for name, limit in self.limits.items() if name not in _SUMS}

        def score(archs: NDArray[np.int64]) -> Floats:
            if not self.limits:
                return self.costs(archs)["latency_s"][:, None]
            used = self.usages(archs)
            return np.stack([used.max(axis=1), used.sum(axis=1)], axis=1)

        arch = self._descend(score, [*starts, *self._lowest(sums)])
        over = self.violations(arch)
        if over:
            metrics = self._simulated(arch)
            found = ", ".join(
                f"{name} = {quantity(name, metrics[name])} (limit {quantity(name, self.limits[name])})"
                if name in metrics
                else "no tiling"
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
        A random path leads from ``arch`` to `witness`, moving one field of one choice (`Choice.fields`) by one value
        at each step. Bisection finds a point on it that meets the limits while the one before does not.
        """
        if self.feasible(arch):
            return arch
        start = np.array(self.space.split(arch))
        gaps = np.array(self.space.split(self.witness)) - start
        steps = rng.permutation(np.repeat(np.arange(len(gaps)), np.abs(gaps)))

        def point(n: int) -> Arch:
            return self.space.join(start + np.sign(gaps) * np.bincount(steps[:n], minlength=len(gaps)))

        low, high = 0, len(steps)  # over a limit at low, within all at high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.feasible(point(middle)) else (middle, high)
        return point(high)

    def lower(self, arch: Arch, policy: Floats, rng: np.random.Generator) -> Arch:
        """A candidate below ``arch`` that meets every limit; ``arch`` itself where it does.

        Parameters
        ----------
        arch : tuple of int
        policy : ndarray, shape (n_fields, n_values)
            Probability of each value of each field (`AbstractSpace.split`).
        rng : numpy.random.Generator
            For `project`, where no smaller value of a single field helps.

        Notes
        -----
        One field at a time is lowered by one value, each time the one that loses the policy least probability for what
        it takes off the excess over the limits.
        """
        best = np.array(self.space.split(arch))
        above = np.cumsum(policy[:, ::-1], axis=1)[:, ::-1]  # of a value and larger ones
        used = self.usages([arch])[0] if self.limits else np.zeros(1)
        while _excess(used) > 0:
            down = np.flatnonzero(best > 0)
            usages = self._usages_of_steps(best, down, -1)
            saved = _excess(used) - _excess(usages)
            helps = saved > 0
            if not helps.any():
                break
            price = np.full(len(down), math.inf)
            price[helps] = above[down, best[down]][helps] / saved[helps]
            best[down[price.argmin()]] -= 1
            used = usages[price.argmin()]
        return self.project(self.space.join(best), rng)

    def fill(self, arch: Arch, policy: Floats, least: float = 0.0) -> Arch:
        """A candidate above ``arch``, which meets every limit, that makes use of the room that limits leave.

        Parameters
        ----------
        arch : tuple of int
        policy : ndarray, shape (n_fields, n_values)
            Probability of each value of each field (`AbstractSpace.split`), or what else it is worth.
        least : float
            Fields are raised where the probability of larger values is above this.

        Notes
        -----
        One field at a time is raised by one value, each time the one for which the policy gives larger values most
        probability for the share of the limits that the step takes, until no such step meets all limits.
        """
        if not self.limits:
            return arch
        best, counts = np.array(self.space.split(arch)), np.array(self.space.field_counts)
        above = np.cumsum(policy[:, ::-1], axis=1)[:, ::-1]  # of a value and larger ones
        used = self.usages([arch])[0]
        while True:
            up = np.flatnonzero(best < counts - 1)
            worth = above[up, best[up] + 1]
            up, worth = up[worth > least], worth[worth > least]
            if not up.size:
                return self.space.join(best)
            usages = self._usages_of_steps(best, up, 1)
            worth = worth / np.maximum((usages - used).max(axis=1), 1e-9)
            worth[(usages > 1).any(axis=1)] = -math.inf
            if worth.max() == -math.inf:
                return self.space.join(best)
            best[up[worth.argmax()]] += 1
            used = usages[worth.argmax()]

    def _usages_of_steps(self, values: NDArray[np.int64], fields: NDArray[np.int64], by: int) -> Floats:
        """How much of each limit candidates use that differ by one step of one field; shape (n_fields, n_limits)."""
        steps = np.repeat(values[None], len(fields), axis=0)
        steps[np.arange(len(fields)), fields] += by
        return self.usages(self.space.join_all(steps))

    def reachable(self, metric: str) -> Reach:
        """The range of a metric over the space, limits left aside; exact where it is a sum over a table.

        Elsewhere it is found by descent from several starts.

        Raises
        ------
        ValueError
            For an unknown metric.
        """
        if metric not in self.metrics:
            raise ValueError(f"Problem: reachable() knows {', '.join(self.metrics)}; got {metric!r}.")
        ends = []
        for sign in (1.0, -1.0):

            def score(archs: NDArray[np.int64], sign: float = sign) -> Floats:
                costs = self.costs(archs)
                return np.where(np.isfinite(costs["latency_s"]), sign * costs[metric], math.inf)[:, None]

            ends.append(self._descend(score, self._optima(metric, sign)))
        low, high = (self.price(arch).metrics()[metric] for arch in ends)
        return Reach(low, high, *ends)

    def _optima(self, metric: str, sign: float) -> list[Arch]:
        """The arch with the least of ``sign`` times a metric, or archs from which that is near."""
        return [
            arch for name, sense in _SUMS.get(metric, ((metric, 1.0),)) for arch in self._lowest({name: sign * sense})
        ]

    def _lowest(self, weights: Mapping[str, float]) -> list[Arch]:
        """The arch with the least weighted sum of metrics, on each chip; empty where only a search could tell."""
        if self.table is None or not weights:
            return []
        try:
            if isinstance(self.table, ChipCostTable):
                return [arch for arch, _ in self.table.lowest_by_chip(weights)]
            return [self.table.lowest(weights)[0]]
        except NotDecomposable:
            return []

    def _starts(self) -> Iterator[Arch]:
        """Where descent may start: all first options, all last ones, and a few at random."""
        yield tuple(0 for _ in self.space.choices)
        yield tuple(count - 1 for count in self.space.option_counts)
        rng = np.random.default_rng(0)
        for _ in range(16):
            yield self.space.sample(rng)

    def _descend(self, score: Callable[[NDArray[np.int64]], Floats], starts: Sequence[Arch]) -> Arch:
        """An arch from which no change of a single choice lowers its score, whose columns count in their order.

        Where candidates are simulated one by one, `MOST_TRIED` options of a choice are tried, evenly taken, the first
        and last among them.
        """

        def lowest_of(archs: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[float, ...]]:
            scores = score(archs)
            first = np.lexsort(scores.T[::-1])[0]
            return archs[first], tuple(scores[first].tolist())

        best, lowest = lowest_of(np.array([*starts, *self._starts()]))
        improved = True
        while improved:
            improved = False
            for i, count in enumerate(self.space.option_counts):
                tried = np.linspace(0, count - 1, count if self.table else min(count, MOST_TRIED)).round().astype(int)
                archs = np.repeat(best[None], len(tried), axis=0)
                archs[:, i] = tried
                arch, value = lowest_of(archs[tried != best[i]]) if len(tried) > 1 else (best, lowest)
                if value < lowest:
                    best, lowest, improved = arch, value, True
        return tuple(best.tolist())


def _excess(usages: Floats) -> Floats:
    """By how much limits are exceeded in all; shape (..., n_limits) to (...)."""
    return np.maximum(np.minimum(usages, 1e9) - 1, 0.0).sum(axis=-1)


def _over(usage: Mapping[str, float]) -> dict[str, float]:
    """By how much each limit that is not met is exceeded."""
    return {name: used - 1 for name, used in usage.items() if not used <= 1}


def _briefly(options: Mapping[str, Any], most: int = 6) -> str:
    """The options of an arch in few words."""
    values = list(options.values())
    if len(set(values)) == 1:
        return f"{values[0]} for all of its {len(values)} choices"
    shown = ", ".join(f"{name}={value}" for name, value in list(options.items())[:most])
    return shown + (f" and {len(options) - most} more" if len(options) > most else "")
