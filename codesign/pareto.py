"""Pareto fronts and hypervolume: arrays in, arrays out.

Underneath is moocore, which carries the reference C implementations of these computations (hypervolume in
O(n log n) for two and three objectives, and for more by the algorithm of its authors) and is kept by them; what is
added here are the rules for ties, nan and infeasible points.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _points(costs: ArrayLike, feasible: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Costs as floats, and which points take part: the feasible ones that have no nan."""
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
    return points, valid


def pareto_mask(costs: ArrayLike, feasible: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Which points no other point dominates.

    A point dominates another where it is no worse in every objective and better in one. So of equal points all are
    on the front or none is. A point with a nan is not on the front and dominates nothing, and nor does an infeasible
    one. Infinities are numbers.

    Parameters
    ----------
    costs : ndarray, shape (n_points, n_objectives)
        Less is better; negate what is to be large.
    feasible : ndarray of bool, shape (n_points,), optional

    Returns
    -------
    ndarray of bool, shape (n_points,)

    Examples
    --------
    >>> pareto_mask([[1, 2], [2, 1], [2, 2], [1, 2]])
    array([ True,  True, False,  True])
    """
    import moocore

    points, valid = _points(costs, feasible)
    mask = np.zeros(len(points), dtype=bool)
    if valid.any():
        # Dominance is a matter of order alone, and moocore goes wrong on infinities: so it gets places, not values.
        places = np.column_stack([np.unique(column, return_inverse=True)[1] for column in points[valid].T])
        mask[valid] = moocore.is_nondominated(places.astype(np.float64), keep_weakly=True)
    return mask


def pareto_rank(costs: ArrayLike, feasible: ArrayLike | None = None) -> NDArray[np.int64]:
    """The front that each point is on: 0 for the Pareto front, 1 for the front of what is left without it, and so on.

    Equal points have equal rank. Points that `pareto_mask` leaves out, infeasible or with a nan, have rank -1.

    Parameters
    ----------
    costs : ndarray, shape (n_points, n_objectives)
    feasible : ndarray of bool, shape (n_points,), optional

    Returns
    -------
    ndarray of int64, shape (n_points,)
    """
    points, valid = _points(costs, feasible)
    ranks = np.full(len(points), -1, dtype=np.int64)
    left = valid.copy()
    rank = 0
    while left.any():
        front = pareto_mask(points, left)
        ranks[front] = rank
        left &= ~front
        rank += 1
    return ranks


def hypervolume(costs: ArrayLike, reference: ArrayLike, feasible: ArrayLike | None = None) -> float:
    """Volume of what the points dominate, up to a reference point.

    A point that is not better than the reference in every objective adds nothing, nor does one that is infeasible or
    has a nan; without any other point the volume is 0.

    Parameters
    ----------
    costs : ndarray, shape (n_points, n_objectives)
        Less is better.
    reference : ndarray, shape (n_objectives,)
        Finite. Quote it with the volume, which means nothing without.
    feasible : ndarray of bool, shape (n_points,), optional

    Examples
    --------
    >>> hypervolume([[1, 2], [2, 1]], reference=[3, 3])
    3.0
    """
    import moocore

    points, valid = _points(costs, feasible)
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != (points.shape[1],) or not np.isfinite(corner).all():
        raise ValueError(
            f"hypervolume: reference must be {points.shape[1]} finite numbers, got {np.asarray(reference).tolist()}."
        )
    points = points[valid & (points < corner).all(axis=1)]
    if np.isneginf(points).any():
        return math.inf
    return float(moocore.hypervolume(points, ref=corner)) if len(points) else 0.0
