"""Pareto fronts and hypervolume: arrays in, arrays out.

Underneath is moocore, which carries the reference C implementations of these computations (hypervolume in
O(n log n) for two and three objectives, and for more by the algorithm of its authors) and is kept by them; what is
added here are the rules for ties, nan, infeasible points and objectives of which more is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: What is better of an objective: less of it, or more.
SENSES = ("min", "max")


def _signs(senses: Sequence[str] | None, n_objectives: int) -> NDArray[np.float64]:
    """The factor on each objective after which less is better."""
    if senses is None:
        return np.ones(n_objectives)
    if isinstance(senses, str) or len(senses) != n_objectives or not set(senses) <= set(SENSES):
        raise ValueError(f"pareto: senses must be {n_objectives} times 'min' or 'max', got {senses!r}.")
    return np.array([1.0 if sense == "min" else -1.0 for sense in senses])


def _points(
    costs: ArrayLike, feasible: ArrayLike | None, senses: Sequence[str] | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Costs as floats of which less is better, and which points take part: the feasible ones that have no nan."""
    points = np.asarray(costs, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(
            f"pareto: costs must have shape (n_points, n_objectives), n_objectives >= 1, got {points.shape}."
        )
    valid = ~np.isnan(points).any(axis=1)
    if feasible is not None:
        mask = np.asarray(feasible, dtype=bool)
        if mask.shape != (len(points),):
            raise ValueError(f"pareto: feasible must have shape ({len(points)},), got {mask.shape}.")
        valid &= mask
    return points * _signs(senses, points.shape[1]), valid


def pareto_mask(
    costs: ArrayLike, feasible: ArrayLike | None = None, senses: Sequence[str] | None = None
) -> NDArray[np.bool_]:
    """Which points no other point dominates.

    A point dominates another where it is no worse in every objective and better in one. So of equal points all are
    on the front or none is. A point with a nan is not on the front and dominates nothing, and nor does an infeasible
    one. Infinities are numbers.

    Parameters
    ----------
    costs : ndarray, shape (n_points, n_objectives)
    feasible : ndarray of bool, shape (n_points,), optional
    senses : sequence of {"min", "max"}, length n_objectives, optional
        Whether less or more of each objective is better; less, by default.

    Returns
    -------
    ndarray of bool, shape (n_points,)

    Examples
    --------
    >>> pareto_mask([[1, 2], [2, 1], [2, 2], [1, 2]])
    array([ True,  True, False,  True])
    >>> pareto_mask([[1, 2], [2, 1], [2, 2]], senses=["min", "max"])
    array([ True, False, False])
    """
    import moocore

    points, valid = _points(costs, feasible, senses)
    mask = np.zeros(len(points), dtype=bool)
    if valid.any():
        # Dominance is a matter of order alone, and moocore goes wrong on infinities: so it gets places, not values.
        places = np.column_stack([np.unique(column, return_inverse=True)[1] for column in points[valid].T])
        mask[valid] = moocore.is_nondominated(places.astype(np.float64), keep_weakly=True)
    return mask


def pareto_rank(
    costs: ArrayLike, feasible: ArrayLike | None = None, senses: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """The front that each point is on: 0 for the Pareto front, 1 for the front of what is left without it, and so on.

    Equal points have equal rank. Points that `pareto_mask` leaves out, infeasible or with a nan, have rank -1.

    Parameters
    ----------
    costs, feasible, senses
        As for `pareto_mask`.

    Returns
    -------
    ndarray of int64, shape (n_points,)
    """
    points, valid = _points(costs, feasible, senses)
    ranks = np.full(len(points), -1, dtype=np.int64)
    left = valid.copy()
    rank = 0
    while left.any():
        front = pareto_mask(points, left)
        ranks[front] = rank
        left &= ~front
        rank += 1
    return ranks


def hypervolume(
    costs: ArrayLike, reference: ArrayLike, feasible: ArrayLike | None = None, senses: Sequence[str] | None = None
) -> float:
    """Volume of what the points dominate, up to a reference point.

    A point that is not better than the reference in every objective adds nothing, nor does one that is infeasible or
    has a nan; without any other point the volume is 0.

    Parameters
    ----------
    costs : ndarray, shape (n_points, n_objectives)
    reference : ndarray, shape (n_objectives,)
        Finite. Quote it with the volume, which means nothing without.
    feasible, senses
        As for `pareto_mask`.

    Examples
    --------
    >>> hypervolume([[1, 2], [2, 1]], reference=[3, 3])
    3.0
    """
    import moocore

    points, valid = _points(costs, feasible, senses)
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != (points.shape[1],) or not np.isfinite(corner).all():
        raise ValueError(
            f"hypervolume: reference must be {points.shape[1]} finite numbers, got {np.asarray(reference).tolist()}."
        )
    corner = corner * _signs(senses, points.shape[1])
    points = points[valid & (points < corner).all(axis=1)]
    if np.isneginf(points).any():
        return math.inf
    return float(moocore.hypervolume(points, ref=corner)) if len(points) else 0.0


def attainment(costs: ArrayLike, at: ArrayLike) -> NDArray[np.float64]:
    """The least second objective among the points whose first is at most ``at``; infinite where there is none.

    Its median over runs that differ in their seeds is the median attainment surface of their strategy: half of the
    runs reach what lies on it.

    Parameters
    ----------
    costs : ndarray, shape (n_points, 2)
        Less is better. Points with a nan are left out.
    at : ndarray, shape (n,)

    Returns
    -------
    ndarray, shape (n,)

    References
    ----------
    Fonseca and Fleming, "On the performance assessment and comparison of stochastic multiobjective optimizers",
    PPSN IV, 1996, section 3.

    Examples
    --------
    >>> attainment([[1, 5], [3, 2], [2, 6]], at=[0, 1, 2, 3])
    array([inf,  5.,  5.,  2.])
    """
    points, valid = _points(costs, None, None)
    if points.shape[1] != 2:
        raise ValueError(f"attainment: costs must have shape (n_points, 2), got {points.shape}.")
    points = points[valid]
    points = points[np.argsort(points[:, 0], kind="stable")]
    lowest = np.concatenate([[np.inf], np.minimum.accumulate(points[:, 1])])
    return np.asarray(lowest[np.searchsorted(points[:, 0], np.asarray(at, dtype=np.float64), side="right")])
