"""The exact optimum of a sum over choices under limits on costs that are sums over choices too."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codesign.cost_table import CostTable
from codesign.problem import UnreachableLimit
from codesign.space import Arch
from codesign.terms import NotDecomposable

#: What the objective's range and each limit are for the solver, which takes 1e-6 for nothing.
SCALE = 1e3
#: Variables beyond which the program is not made.
MAX_VARIABLES = 1_000_000
_OPTIMAL, _TIME_LIMIT, _INFEASIBLE = 0, 1, 2  # as `scipy.optimize.milp` says it
#: Proposals that rounding let through although they are over a limit, after which the search gives up.
MAX_CUTS = 100

Floats = NDArray[np.float64]
#: Choices, ascending, and what each combination of their options is worth, shape (\\*option_counts).
Factor = tuple[Sequence[int], ArrayLike]


@dataclass(frozen=True)
class Optimum:
    """The best arch within limits, and the proof.

    Parameters
    ----------
    arch : tuple of int
    objective : float
    lower_bound : float
        No arch within the limits has less.
    usage : mapping of float
        By metric the share of its limit that is used, at most 1.
    status : {"optimal", "time limit"}
    seconds : float
    """

    arch: Arch
    objective: float
    lower_bound: float
    usage: Mapping[str, float]
    status: str
    seconds: float

    @property
    def gap(self) -> float:
        """How much less than this the true optimum may be, in units of the objective."""
        return self.objective - self.lower_bound


def knapsack(
    table: CostTable, objective: Sequence[Factor], limits: Mapping[str, float], time_limit_s: float = math.inf
) -> Optimum:
    """Minimise a sum of factors under limits on metrics of a cost table, to proven optimality.

    Parameters
    ----------
    table : CostTable
    objective : sequence of (choices, values)
        ``values[options of the choices]``, such as ``((3,), [0.5, 0.1, 0.0])``; inf forbids a combination.
    limits : mapping of float
        Largest value of any of ``table.metrics``, in its unit; any number of them at once.
    time_limit_s : float
        When to return the best found so far.

    Returns
    -------
    Optimum

    Raises
    ------
    UnreachableLimit
        Where no arch meets all limits; the message has the least that each metric can be.
    ValueError
        For a limit that is not a positive number or not on a metric of the table, or an objective that does not fit
        the choices.
    NotDecomposable
        Where terms join so many choices that the program would have more than `MAX_VARIABLES` variables.
    TimeoutError
        Where no arch within the limits was found in time.

    Notes
    -----
    The multiple-choice knapsack with products. Binary :math:`x_{c,o}` says that choice c takes option o, and for each
    term t over several choices :math:`y_{t,k} \\ge 0` that their classes are :math:`k = (k_1, k_2, \\ldots)`:

    .. math::
        \\min \\sum_t f_t \\cdot y_t \\quad \\text{with} \\quad
        \\sum_t g_{m,t} \\cdot y_t \\le L_m, \\quad \\sum_o x_{c,o} = 1, \\quad
        \\sum_{k: k_j = i} y_{t,k} = \\sum_{o \\in \\text{class } i} x_{c_j,o}.

    On a chain of choices these are flows along it, and without limits every vertex is an arch. Terms within the
    choices of another one are added to it, options between which a term makes no difference are one class, and an
    option is left out where another one adds no more to the objective and to each cost whatever the other choices.
    HiGHS solves it by branch and cut, to a gap of at most 1e-9 of the range of the objective.

    The solver lets a limit be passed by 1e-9 of it, the table does not: such an arch is excluded by
    :math:`\\sum_c x_{c,a_c} \\le n - 1`, and the rest solved again.

    References
    ----------
    Kellerer, Pferschy and Pisinger, "Knapsack Problems", Springer 2004, chapter 11. Huangfu and Hall, "Parallelizing
    the dual revised simplex method", Math. Prog. Comp. 10, 2018 (HiGHS).

    Examples
    --------
    >>> from codesign.space import BitwidthSpace
    >>> from codesign.cost_table import cost_table
    >>> from hwmodels import BitFusion, Layer, Workload
    >>> net = Workload.sequential("net", [Layer.linear("fc1", 64, 32), Layer.linear("fc2", 32, 10)])
    >>> table = cost_table(BitwidthSpace(net, bits=(2, 4, 8)), BitFusion())
    >>> loss = [((0, 1), np.add.outer([9, 3, 0], [9, 3, 0])), ((2, 3), np.add.outer([5, 2, 0], [5, 2, 0]))]
    >>> best = knapsack(table, loss, {"weight_bytes": 0.6 * (64 * 32 + 32 * 10)})
    >>> best.arch, best.objective
    ((1, 2, 2, 2), 3.0)
    """
    started = time.perf_counter()
    limits = {name: float(limit) for name, limit in limits.items()}
    _check(table, objective, limits)
    program = _Program(table, objective, limits)
    for _ in range(MAX_CUTS):
        result = program.solve(max(0.0, time_limit_s - (time.perf_counter() - started)))
        if result.status == _INFEASIBLE:
            raise UnreachableLimit(_unreachable(table, limits))
        if result.x is None and result.status == _TIME_LIMIT:
            raise TimeoutError(
                f"knapsack: an arch within the limits must be found in {time_limit_s:g} s, but none was. Give it more "
                "time, or fewer options."
            )
        if result.x is None:
            raise RuntimeError(f"knapsack: HiGHS gave up: {result.message}")
        arch = program.arch(result.x)
        costs = table.price([arch])
        usage = {name: float(costs[name][0]) / limit for name, limit in limits.items()}
        if all(costs[name][0] <= limit for name, limit in limits.items()):
            break
        program.exclude(result.x)
    else:
        raise RuntimeError(
            f"knapsack: the solver must keep the limits, but {MAX_CUTS} archs in a row were over one by rounding. Move "
            "the limit a little."
        )
    value = float(sum(np.asarray(values)[tuple(arch[c] for c in choices)] for choices, values in objective))
    status = "optimal" if result.status == _OPTIMAL else "time limit"
    return Optimum(
        arch, value, min(value, program.bound(result)), usage, status, time.perf_counter() - started
    )  # fmt: skip


def _check(table: CostTable, objective: Sequence[Factor], limits: Mapping[str, float]) -> None:
    counts = table.option_counts
    for name, limit in limits.items():
        if name not in table.metrics:
            raise ValueError(
                f"knapsack: limits must be on sums over choices, which are {', '.join(table.metrics)}, got {name!r}."
            )
        if not (limit > 0 and math.isfinite(limit)):
            raise ValueError(f"knapsack: the limit on {name} must be a positive number, got {limit}.")
    for choices, values in objective:
        choices, values = tuple(choices), np.asarray(values, dtype=np.float64)
        known = choices == tuple(sorted(set(choices))) and set(choices) <= set(range(len(counts)))
        if not known or values.shape != tuple(counts[c] for c in choices):
            raise ValueError(
                f"knapsack: a factor of the objective must be over ascending choices of 0 to {len(counts) - 1}, one "
                f"value for each combination of their options, got {choices} and values of shape {values.shape}."
            )
        if np.isnan(values).any() or (values == -math.inf).any():
            raise ValueError(f"knapsack: the objective must hold numbers, or inf, got nan or -inf at {choices}.")


def _unreachable(table: CostTable, limits: Mapping[str, float]) -> str:
    """That no arch meets all limits, and the least of each metric."""
    least = {}
    for name in limits:
        try:
            least[name] = f"{table.lowest({name: 1.0})[1]:.4g}"
        except NotDecomposable:
            least[name] = "unknown"
    found = ", ".join(f"{name} <= {limit:.4g} (least alone: {least[name]})" for name, limit in limits.items())
    return f"knapsack: some arch must meet all limits, but none does: {found or 'no arch fits'}. Raise a limit."


class _Program:
    """The mixed-integer program: one variable for each option of each choice, then those of each term."""

    def __init__(self, table: CostTable, objective: Sequence[Factor], limits: Mapping[str, float]) -> None:
        factors = list(_joint(table.option_counts, _factors(table, objective, limits)))
        self._kept = _undominated(table.option_counts, factors)
        counts = [len(kept) for kept in self._kept]
        self._first = np.cumsum([0, *counts])  # of the variables of each choice
        self._n_options = int(self._first[-1])
        self._constant = np.zeros(1 + len(limits))
        own, worths = np.zeros((self._n_options, 1 + len(limits))), []
        entries = [(np.repeat(np.arange(len(counts)), counts), np.arange(self._n_options), 1.0)]
        n_rows, n_variables = len(counts), self._n_options
        for choices, values in factors:
            if not choices:
                self._constant += values
                continue
            values = values[np.ix_(*(self._kept[c] for c in choices))]
            if len(choices) == 1:
                own[self._first[choices[0]] : self._first[choices[0] + 1]] += values
                continue
            classes, values = _classes(values)
            fits = np.isfinite(values).all(axis=-1)
            numbers = n_variables + np.arange(fits.sum())
            for choice, members, mine in zip(choices, classes, np.nonzero(fits), strict=True):
                options = np.arange(self._first[choice], self._first[choice + 1])
                entries += [(n_rows + mine, numbers, 1.0), (n_rows + members, options, -1.0)]
                n_rows += int(members.max()) + 1
            worths.append(values[fits])
            n_variables += len(numbers)
            if n_variables > MAX_VARIABLES:
                raise NotDecomposable(
                    f"knapsack: a term must join few choices, but with that on {choices} the program has more than "
                    f"{MAX_VARIABLES} variables. Search fewer options, or by another strategy."
                )
        self._allowed = np.isfinite(own).all(axis=1)
        worths.insert(0, np.where(self._allowed[:, None], own, 0.0))
        self._values = np.concatenate(worths)
        self._unit = sum(float(np.ptp(v[:, 0])) for v in worths if len(v)) / SCALE or 1.0
        self._rows, self._columns = (np.concatenate([entry[i] for entry in entries]) for i in (0, 1))
        self._signs = np.concatenate([np.full(len(rows), sign) for rows, _, sign in entries])
        self._sums = np.zeros(n_rows)
        self._sums[: len(counts)] = 1.0
        self._excluded: list[NDArray[np.int64]] = []

    def solve(self, time_limit_s: float) -> Any:
        """What `scipy.optimize.milp` makes of it."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        n, costs = len(self._values), self._values[:, 1:]
        constraints = [
            LinearConstraint(
                csr_array((self._signs, (self._rows, self._columns)), (len(self._sums), n)), self._sums, self._sums
            )
        ]
        if costs.shape[1]:
            constraints.append(LinearConstraint(csr_array(SCALE * costs.T), ub=SCALE * (1 - self._constant[1:])))
        for taken in self._excluded:
            row = csr_array((np.ones(len(taken)), (np.zeros(len(taken), dtype=int), taken)), (1, n))
            constraints.append(LinearConstraint(row, ub=len(taken) - 1))
        upper = np.ones(n)
        upper[: self._n_options] = self._allowed
        options: dict[str, Any] = {"mip_rel_gap": 0.0}
        if math.isfinite(time_limit_s):
            options["time_limit"] = time_limit_s
        return milp(
            self._values[:, 0] / self._unit, integrality=np.arange(n) < self._n_options, bounds=Bounds(0, upper),
            constraints=constraints, options=options,
        )  # fmt: skip

    def arch(self, x: Floats) -> Arch:
        """The options that a solution takes."""
        return tuple(int(kept[i]) for kept, i in zip(self._kept, self._taken(x) - self._first[:-1], strict=True))

    def exclude(self, x: Floats) -> None:
        """Forbid the arch of a solution."""
        self._excluded.append(self._taken(x))

    def bound(self, result: Any) -> float:
        """What no solution has less than, in units of the objective."""
        bound = result.mip_dual_bound
        return -math.inf if bound is None else float(bound) * self._unit + float(self._constant[0])

    def _taken(self, x: Floats) -> NDArray[np.int64]:
        """The variable of each choice that is 1."""
        return np.array([a + np.argmax(x[a:b]) for a, b in itertools.pairwise(self._first)])


def _factors(
    table: CostTable, objective: Sequence[Factor], limits: Mapping[str, float]
) -> Iterator[tuple[tuple[int, ...], Floats]]:
    """What each term adds to the objective and to the shares of the limits, shape (*option_counts, 1 + n_limits)."""
    columns = [table.metrics.index(name) for name in limits]
    for term in table.terms:
        shares = term.values[..., columns] / np.array(list(limits.values()))
        misfits = np.isinf(term.values).any(axis=-1, keepdims=True)
        worth = np.concatenate([np.where(misfits, math.inf, 0.0), shares], axis=-1)
        yield term.choices, worth[np.ix_(*term.classes)] if term.choices else worth
    for choices, values in objective:
        values = np.asarray(values, dtype=np.float64)[..., None]
        yield tuple(choices), np.concatenate([values, np.zeros((*values.shape[:-1], len(limits)))], axis=-1)


def _joint(
    counts: Sequence[int], factors: Iterable[tuple[tuple[int, ...], Floats]]
) -> Iterator[tuple[tuple[int, ...], Floats]]:
    """Factors over several choices added to one that has all of theirs; those over one choice by themselves."""
    factors = list(factors)
    widest: list[tuple[int, ...]] = []
    for choices in sorted({choices for choices, _ in factors}, key=len, reverse=True):
        if len(choices) < 2 or not any(set(choices) <= set(wider) for wider in widest):
            widest.append(choices)
    by_scope: dict[tuple[int, ...], list[tuple[tuple[int, ...], Floats]]] = {choices: [] for choices in widest}
    for choices, values in factors:
        home = choices if choices in by_scope else next(wider for wider in widest if set(choices) <= set(wider))
        by_scope[home].append((choices, values))
    for scope, members in by_scope.items():
        total = np.zeros((*(counts[c] for c in scope), members[0][1].shape[-1]))
        for choices, values in members:
            total += values.reshape([counts[c] if c in choices else 1 for c in scope] + [-1])
        yield scope, total


@np.errstate(invalid="ignore")  # inf - inf is dealt with; inf more here and less there is nan, and no proof
def _undominated(counts: Sequence[int], factors: Iterable[tuple[tuple[int, ...], Floats]]) -> list[NDArray[np.int64]]:
    """For each choice the options that no other one is as good as in everything, whatever the other choices are."""
    seen: list[list[tuple[NDArray[np.int64], Callable[[int], Floats]]]] = [[] for _ in counts]
    for choices, values in factors:
        classes, values = _classes(values)
        for axis, choice in enumerate(choices):
            rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1, values.shape[-1])
            seen[choice].append((classes[axis], lru_cache(maxsize=64)(partial(_most_more, rows))))
    kept = []
    for count, parts in zip(counts, seen, strict=True):
        alive = np.arange(count)
        for option in range(count):
            if option in alive:
                worst = np.zeros((len(alive), 1))
                for classes, most_more in parts:
                    worst = worst + most_more(classes[option])[classes[alive]]
                alive = alive[(alive == option) | ~np.all(worst <= 0, axis=-1)]
        kept.append(alive)
    return kept


def _most_more(rows: Floats, one: int) -> Floats:
    """By how much a class is above each, where it is most so; shape (n_classes, n_columns). inf and inf are equal."""
    gaps = rows[one] - rows
    return np.where(np.isnan(gaps), 0.0, gaps).max(axis=1)


def _classes(values: Floats) -> tuple[list[NDArray[np.int64]], Floats]:
    """For each choice the class of each option, options of one class being worth the same; and worth by class."""
    classes = []
    for axis in range(values.ndim - 1):
        first: dict[bytes, int] = {}
        rows = np.moveaxis(values, axis, 0)
        like = np.array([first.setdefault(row.tobytes(), i) for i, row in enumerate(rows)])
        kept, members = np.unique(like, return_inverse=True)
        classes.append(members.reshape(-1))
        values = values.take(kept, axis=axis)
    return classes, values
