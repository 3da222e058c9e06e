"""From the simulator to the searches: what every choice costs, in arrays that price millions of networks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from codesign.layer_table import LayerTable, layer_table
from codesign.min_sum import least
from codesign.space import AbstractSpace, Arch, BitwidthSpace
from codesign.terms import WORKLOAD_METRICS, NotDecomposable, Terms, bitwidth_terms
from hwmodels.array import run_kernel, runs_kernel
from hwmodels.cost import FLOAT, INT, HardwareModel, InfeasibleLayer, estimate
from hwmodels.mapper import OK

__all__ = ["CostTable", "CostTerm", "LayerTable", "NotDecomposable", "cost_table", "layer_table"]

#: What a table holds, in the units of `CostReport`; energy and area where the chip gives them.
METRICS = ("latency_s", "energy_j", *WORKLOAD_METRICS, "area_mm2")
#: Relative gap between table and simulation up to which they agree; rounding of sums leaves about 1e-15.
TOLERANCE = 1e-9

_BLOCK = 256


class CostTerm(NamedTuple):
    """Part of the cost of a network that a few choices decide."""

    choices: tuple[int, ...]  #: ascending; none for what all networks share
    classes: tuple[NDArray[np.int64], ...]  #: for each of them the class of each option
    values: NDArray[np.float64]  #: by class of each choice and metric, shape (*n_classes, n_metrics)


@dataclass(frozen=True, eq=False)
class CostTable:
    """The cost of every network of a space on a chip, as a sum over terms of few choices.

    Parameters
    ----------
    option_counts : tuple of int
        Options of each choice of the space.
    metrics : tuple of str
        What ``values`` holds, of `METRICS`.
    terms : tuple of CostTerm
        What fits no tiling costs inf.
    gap : float
        Largest relative difference from the full simulation over the networks that were compared.
    """

    option_counts: tuple[int, ...]
    metrics: tuple[str, ...]
    terms: tuple[CostTerm, ...]
    gap: float = float("nan")

    def price(self, archs: ArrayLike, workers: int | None = None) -> dict[str, NDArray[np.float64]]:
        """Cost of many networks.

        Parameters
        ----------
        archs : array_like of int, shape (n, n_choices)
        workers : int, optional
            Threads; None takes one a core.

        Returns
        -------
        dict
            By metric, arrays of shape (n,); inf for networks that fit no tiling.

        Raises
        ------
        ValueError
            For a wrong shape, numbers that are no integers, or an index that is not an option.
        """
        archs = np.ascontiguousarray(archs)
        n_choices = len(self.option_counts)
        if archs.ndim != 2 or archs.shape[1] != n_choices or archs.dtype.kind not in "iu":
            raise ValueError(
                f"CostTable: archs must be integers of shape (n, {n_choices}), got {archs.dtype} of shape "
                f"{archs.shape}."
            )
        costs = np.empty((len(archs), len(self.metrics)))

        def part(rows: slice) -> int:
            return int(_sum_terms(archs[rows], self._counts, *self._flat, costs[rows]))

        bad = [rows.start + i for rows, i in _in_threads(part, len(archs), 64 * _BLOCK, workers) if i >= 0]
        if bad:
            raise ValueError(
                f"CostTable: an arch must hold an option of each choice, of which there are {self.option_counts}, "
                f"got {archs[bad[0]].tolist()} in row {bad[0]}."
            )
        return {name: costs[:, i] for i, name in enumerate(self.metrics)}

    def expected(self, policies: Sequence[ArrayLike]) -> dict[str, float]:
        """Expected cost of a network whose choices are drawn independently, exactly.

        Parameters
        ----------
        policies : sequence of array_like, shapes (n_options,)
            Probabilities of the options of each choice.

        Returns
        -------
        dict
            By metric; inf where a network that fits no tiling can be drawn.

        Notes
        -----
        For a chain, E[cost] = sum_i p_i^T T_i p_(i+1).
        """
        drawn = self._checked(policies)
        total = np.zeros(len(self.metrics))
        for term in self.terms:
            total += _contracted(term.values, _by_class(term, drawn))
        return dict(zip(self.metrics, total.tolist(), strict=True))

    def expected_gradient(self, policies: Sequence[ArrayLike], metric: str) -> list[NDArray[np.float64]]:
        """Derivatives of `expected` by every probability; shapes (n_options,) as the policies."""
        drawn, column = self._checked(policies), self._column(metric)
        gradients = [np.zeros(count) for count in self.option_counts]
        for term in self.terms:
            weights = _by_class(term, drawn)
            for axis, choice in enumerate(term.choices):
                others = [*weights[:axis], None, *weights[axis + 1 :]]
                gradients[choice] += _contracted(term.values[..., column], others)[term.classes[axis]]
        return gradients

    def lowest(self, weights: Mapping[str, float]) -> tuple[Arch, float]:
        """The network with the least weighted sum of costs, exactly.

        Parameters
        ----------
        weights : mapping of float
            By metric; a negative one asks for the most of it.

        Returns
        -------
        arch : tuple of int
        cost : float
            The weighted sum; inf where no network fits.

        Raises
        ------
        NotDecomposable
            Where the choices are joined too closely for an exact minimum (`codesign.min_sum.least`).
        """
        columns, factors = [self._column(metric) for metric in weights], []
        for term in self.terms:
            values = term.values[..., columns]
            summed = np.where(np.isinf(values).any(axis=-1), np.inf, values @ np.array(list(weights.values())))
            factors.append((term.choices, summed[np.ix_(*term.classes)] if term.choices else summed))
        return least(self.option_counts, factors)

    def pairs(self, metric: str) -> tuple[NDArray[np.float64], ...]:
        """The table of a chain: T_i[option_i, option_(i+1)].

        Returns
        -------
        tuple of ndarray, shapes (n_options_i, n_options_(i+1))
            One for each pair of neighbours; their sum along an arch is its cost. What one choice alone decides is
            in the first pair that has it.

        Raises
        ------
        NotDecomposable
            Where a term joins choices that are not two neighbours, or the space has a single choice.
        """
        column, counts = self._column(metric), self.option_counts
        tables = [np.zeros(pair) for pair in itertools.pairwise(counts)]
        for term in self.terms:
            first = min(term.choices[0] if term.choices else 0, len(tables) - 1)
            if first < 0 or not set(term.choices) <= {first, first + 1}:
                raise NotDecomposable(
                    f"CostTable: only the costs of neighbouring choices are pairs, but a term joins the choices "
                    f"{term.choices} of {len(counts)}; use `terms`."
                )
            values = term.values[..., column][np.ix_(*term.classes)] if term.choices else term.values[column]
            tables[first] += values[:, None] if term.choices == (first,) else values
        return tuple(tables)

    def save(self, path: str | Path) -> None:
        """Write the table as ``.npz``."""
        arrays: dict[str, Any] = {
            "option_counts": np.array(self.option_counts), "metrics": np.array(self.metrics), "gap": np.array(self.gap),
        }  # fmt: skip
        for i, term in enumerate(self.terms):
            arrays[f"term{i}_choices"] = np.array(term.choices, dtype=np.int64)
            arrays[f"term{i}_values"] = term.values
            arrays |= {f"term{i}_classes{j}": classes for j, classes in enumerate(term.classes)}
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            For a file that is no cost table.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                terms = []
                while f"term{len(terms)}_choices" in arrays:
                    name = f"term{len(terms)}"
                    choices = tuple(arrays[f"{name}_choices"].tolist())
                    classes = tuple(arrays[f"{name}_classes{j}"] for j in range(len(choices)))
                    terms.append(CostTerm(choices, classes, arrays[f"{name}_values"]))
                return cls(
                    tuple(arrays["option_counts"].tolist()), tuple(arrays["metrics"].tolist()), tuple(terms),
                    float(arrays["gap"]),
                )  # fmt: skip
        except (AttributeError, BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"CostTable: {str(path)!r} must be a file that CostTable.save wrote: {error}.") from None

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return np.array(self.option_counts, dtype=np.int64)

    @cached_property
    def _flat(self) -> tuple[NDArray[Any], ...]:
        """The terms in one piece, as `_sum_terms` takes them."""
        sizes = [term.values.size // len(self.metrics) for term in self.terms]
        values = np.concatenate([term.values.reshape(-1, len(self.metrics)) for term in self.terms])
        base = np.cumsum([0, *sizes[:-1]])
        axes = [(choice, step) for term in self.terms for choice, step in _steps(term)]
        ends = np.cumsum([0] + [len(term.choices) for term in self.terms])
        steps = np.concatenate([np.empty(0, dtype=np.int64), *(step for _, step in axes)])
        start = np.cumsum([0, *(len(step) for _, step in axes[:-1])])
        return values, base, ends, np.array([choice for choice, _ in axes], dtype=np.int64), start, steps

    def _column(self, metric: str) -> int:
        if metric not in self.metrics:
            raise ValueError(f"CostTable: metric must be one of {', '.join(self.metrics)}, got {metric!r}.")
        return self.metrics.index(metric)

    def _checked(self, policies: Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
        arrays = [np.asarray(policy, dtype=np.float64) for policy in policies]
        if tuple(array.shape for array in arrays) != tuple((count,) for count in self.option_counts):
            raise ValueError(
                f"CostTable: policies must have one probability for each option, {self.option_counts}, got shapes "
                f"{[array.shape for array in arrays]}."
            )
        return arrays


def _steps(term: CostTerm) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For each choice of a term how far each option moves along its flattened values."""
    sizes = term.values.shape[:-1]
    for axis, (choice, classes) in enumerate(zip(term.choices, term.classes, strict=True)):
        yield choice, classes * int(np.prod(sizes[axis + 1 :], dtype=np.int64))


def _by_class(term: CostTerm, policies: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64] | None]:
    """Probability of each class of each choice of a term."""
    return [
        np.bincount(classes, weights=policies[choice], minlength=size)
        for choice, classes, size in zip(term.choices, term.classes, term.values.shape[:-1], strict=True)
    ]


def _contracted(values: NDArray[np.float64], weights: Sequence[NDArray[np.float64] | None]) -> NDArray[np.float64]:
    """Weighted sum along the first axes of values; an axis whose weights are None stays. 0 times inf is 0."""
    infinite = np.isinf(values)
    if infinite.any():
        finite = _contracted(np.where(infinite, 0.0, values), weights)
        return np.where(_contracted(infinite.astype(np.float64), weights) > 0, np.inf, finite)
    axis = 0
    for weight in weights:
        if weight is None:
            axis = 1
        else:
            values = np.tensordot(weight, values, axes=(0, axis))
    return values


@njit(cache=True, nogil=True)
def _sum_terms(archs, counts, values, base, ends, choices, start, steps, costs):
    """Add up the terms of each arch; the first arch with an index that is no option, -1 where all are good.

    One term after another for a block of archs, so that the values of a term stay in the processor's first cache.
    """
    entry = np.empty(_BLOCK, np.int64)
    for low in range(0, archs.shape[0], _BLOCK):
        high = min(low + _BLOCK, archs.shape[0])
        for i in range(low, high):
            for choice in range(counts.shape[0]):
                if not 0 <= archs[i, choice] < counts[choice]:
                    return i
        costs[low:high] = 0.0
        for t in range(base.shape[0]):
            entry[:] = base[t]
            for a in range(ends[t], ends[t + 1]):
                choice, first = choices[a], start[a]
                for i in range(low, high):
                    entry[i - low] += steps[first + archs[i, choice]]
            for metric in range(values.shape[1]):
                for i in range(low, high):
                    costs[i, metric] += values[entry[i - low], metric]
    return -1


def _in_threads(
    work: Callable[[slice], Any], n: int, chunk: int, workers: int | None = None
) -> list[tuple[slice, Any]]:
    """Run a kernel, which releases the interpreter's lock, over parts of ``n`` rows."""
    parts = [slice(i, min(i + chunk, n)) for i in range(0, n, chunk)]
    if len(parts) == 1:
        return [(parts[0], work(parts[0]))]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return list(zip(parts, pool.map(work, parts), strict=True))


def cost_table(
    space: AbstractSpace, hardware: HardwareModel, rng: np.random.Generator | None = None, n_checks: int = 20
) -> Any:
    """Price every layer that the networks of a space can have, and check the sum against the simulator.

    Parameters
    ----------
    space : AbstractSpace
        A `BitwidthSpace`, a space with a method ``terms(by_name) -> Terms``, or one that makes its own table by a
        method ``cost_table(hardware, n_checks)``, as a `codesign.chip_space.ChipSpace` does.
    hardware : HardwareModel
    rng : numpy.random.Generator, optional
        Draws the networks that are compared; None: a generator with seed 0.
    n_checks : int
        How many networks are simulated in full.

    Raises
    ------
    NotDecomposable
        Where the space gives no terms, a layer depends on too many choices, or table and simulation differ by more
        than `TOLERANCE`; the message has the worst gap.
    UnsupportedLayer
        From the hardware model.

    Examples
    --------
    >>> from codesign.nets.mobilenetv2 import MobileNetV2Space
    >>> from hwmodels import BitFusion
    >>> table = cost_table(MobileNetV2Space.preset("tiny"), BitFusion())
    >>> table.pairs("energy_j")[0].shape, table.gap < 1e-12
    ((288, 288), True)
    """
    if hasattr(space, "cost_table"):
        return space.cost_table(hardware, n_checks=n_checks)
    by_name = not runs_kernel(hardware)  # a chip that is known by measurements may know layers by their names
    if isinstance(space, BitwidthSpace):
        terms = bitwidth_terms(space, by_name)
    elif hasattr(space, "terms"):
        terms = space.terms(by_name)
    else:
        raise NotDecomposable(
            f"{type(space).__name__}: a cost table needs a method terms() that says which layers each choice decides."
        )
    codes, index = terms.distinct_layers()
    costs = np.zeros((len(codes) + 1, len(METRICS)))  # the last one is for -1: no layer, no cost
    costs[:-1, :2] = _layer_costs(hardware, terms, codes)
    costs[:-1, 2:-1] = terms.workload_costs(codes)
    costs[np.isinf(costs[:, 0])] = np.inf
    area_mm2 = getattr(hardware, "area_mm2", None)
    known = [not np.isnan(costs[:, 1]).any() if name == "energy_j" else name != "area_mm2" or area_mm2 is not None
             for name in METRICS]  # fmt: skip
    sums: dict[int, NDArray[np.float64]] = {}  # equal blocks share theirs
    for term, where in zip(terms.terms, index, strict=True):
        sums.setdefault(id(term.layers), costs[:, known][where].sum(axis=-2))
    cost_terms = [CostTerm(term.choices, term.classes, sums[id(term.layers)]) for term in terms.terms]
    if known[-1]:
        cost_terms.append(CostTerm((), (), np.eye(sum(known))[-1] * area_mm2))
    metrics = tuple(name for name, there in zip(METRICS, known, strict=True) if there)
    table = CostTable(space.option_counts, metrics, tuple(cost_terms))
    gap = _worst_gap(table, space, hardware, rng or np.random.default_rng(0), n_checks)
    return CostTable(table.option_counts, table.metrics, table.terms, gap)


def _layer_costs(hardware: HardwareModel, terms: Terms, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds and joules of each distinct layer; inf where it fits no tiling, nan where the chip gives no energy."""
    if not runs_kernel(hardware):
        return np.array([_layer_cost(hardware, terms, code) for code in codes.tolist()])
    rows, costs = terms.rows(codes), np.empty((len(codes), 2))
    nothing_resident = np.zeros(len(rows), dtype=np.int64)

    def part(layers: slice) -> None:
        ints, floats = run_kernel(hardware, rows[layers], nothing_resident[layers])
        costs[layers, 0] = ints[:, INT["cycles"]] / hardware.clock_hz
        costs[layers, 1] = floats[:, FLOAT["compute_pj"] : FLOAT["leakage_pj"] + 1].sum(axis=1) * 1e-12
        for i in np.flatnonzero(ints[:, INT["status"]] != OK):
            costs[layers.start + i] = _layer_cost(hardware, terms, int(codes[layers.start + i]))

    _in_threads(part, len(rows), 64)
    return costs


def _layer_cost(hardware: HardwareModel, terms: Terms, code: int) -> tuple[float, float]:
    try:
        cost = hardware.cost(terms.layer(code))
    except InfeasibleLayer:
        return np.inf, np.inf
    return cost.latency_s, cost.energy.total_pj * 1e-12 if cost.energy else np.nan


def _worst_gap(
    table: CostTable, space: AbstractSpace, hardware: HardwareModel, rng: np.random.Generator, n: int
) -> float:
    """The largest relative difference between the table and the full simulation of ``n`` random networks."""
    archs = [space.sample(rng) for _ in range(n)]
    worst, where = 0.0, ""
    summed = table.price(archs) if archs else {}
    for i, arch in enumerate(archs):
        try:
            metrics = estimate(space.workload(arch), hardware).metrics()
            simulated = {metric: metrics[metric] for metric in table.metrics}
        except InfeasibleLayer:
            simulated = dict.fromkeys(table.metrics, np.inf)
        for metric, expected in simulated.items():
            got = summed[metric][i]
            gap = 0.0 if got == expected else abs(got - expected) / expected if np.isfinite(expected) else np.inf
            if gap > worst:
                worst, where = gap, f"{metric} of {arch}: {got:.6g} from the table, {expected:.6g} simulated"
    if worst > TOLERANCE:
        raise NotDecomposable(
            f"Cost table of {type(space).__name__} on {type(hardware).__name__}: the cost of a network must be a sum "
            f"over its terms, but the table is off by up to {worst:.3g} of the simulated cost on {n} random networks "
            f"({where}). Estimate this cost from samples instead."
        )
    return float(worst)
