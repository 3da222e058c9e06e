"""Bits that are over a limit, lowered until they meet all: in the order of HAQ, or all wishes alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codesign.problem import Problem
from codesign.space import Arch

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]


def swept(problem: Problem, arch: Arch) -> Arch:
    """The first arch within the limits on HAQ's way down; ``arch`` itself where it is.

    Notes
    -----
    The way goes from the last choice to the first, so from the inputs of the last layer to its weights and on to
    the layer before, each going down by one option where it can, and then round again. Where it ends over a limit,
    as it may since cost is not monotone in bits, it goes on from there up to `Problem.witness`.

    Where each candidate has to be simulated (`Problem.table`), bisection finds a point of the way that is within
    while the one before is not; else it is the first of all.

    References
    ----------
    Wang, Liu, Lin, Lin and Han, "HAQ: Hardware-Aware Automated Quantization with Mixed Precision", CVPR 2019,
    section 3.3; the order is that of the authors' program.
    """
    return _first_within(problem, _descent(problem, arch, np.array(arch, dtype=float), 1.0))


def levelled(problem: Problem, arch: Arch, wishes: Floats) -> Arch:
    """The arch within the limits that is left when all wishes are cut by the same amount; ``arch`` where it is within.

    Parameters
    ----------
    problem : Problem
        Its choices have the same number of options each.
    arch : tuple of int
        What the wishes come to: each option has an equal share of [0, 1].
    wishes : ndarray, shape (n_choices,)

    Notes
    -----
    The amount is the least at which the options that the wishes then come to meet every limit; of choices whose
    wishes fall to another option at the same amount, the last goes first. Then what the limits do not ask for is
    given back: choice by choice, the highest wish first, the highest option up to the one in ``arch`` is taken that
    the limits allow. A bit whose loss gained nothing, or did harm, as happens since cost is not monotone in bits, is
    so not lost. The way down ends at `Problem.witness`, and is searched, as that of `swept`.
    """
    found = _first_within(problem, _descent(problem, arch, wishes, 1 / problem.space.option_counts[0]))
    within = np.array(found)
    for choice in np.argsort(-wishes, kind="stable"):
        higher = np.arange(arch[choice], within[choice], -1)
        if len(higher):
            tried = np.repeat(within[None], len(higher), axis=0)
            tried[:, choice] = higher
            within = np.concatenate([tried[meets_limits(problem, tried)], within[None]])[0]
    return tuple(within.tolist())


def meets_limits(problem: Problem, archs: Integers) -> NDArray[np.bool_]:
    """Which of many archs fit and meet every limit; shape (n,)."""
    if problem.limits:
        return (problem.usages(archs) <= 1).all(axis=1)
    return np.isfinite(problem.costs(archs)["latency_s"])


def _descent(problem: Problem, arch: Arch, heights: Floats, step: float) -> Integers:
    """Archs from ``arch`` down to the lowest options, one option at a time, and up again to the witness.

    A choice leaves its option k when all heights have been cut by its own minus k steps.
    """
    falls = [(height - k * step, choice) for choice, height in enumerate(heights) for k in range(arch[choice], 0, -1)]
    down = [choice for _, choice in sorted(falls, key=lambda fall: (fall[0], -fall[1]))]
    up = np.repeat(np.arange(len(arch)), problem.witness)
    moves = np.zeros((1 + len(down) + len(up), len(arch)), dtype=np.int64)
    moves[0] = arch
    moves[np.arange(1, 1 + len(down)), down] = -1
    moves[np.arange(1 + len(down), len(moves)), up] = 1
    return moves.cumsum(axis=0)


def _first_within(problem: Problem, path: Integers) -> Arch:
    """The first arch of a path within the limits; its last is."""
    low, high = 0, len(path) - 1  # over a limit at low, within all at high
    if meets_limits(problem, path[:1])[0]:
        high = low
    at_once = high if problem.table is not None else 1
    while high - low > 1:
        points = np.unique(np.linspace(low, high, at_once + 2).round().astype(int)).tolist()
        good = meets_limits(problem, path[points[1:-1]])
        first = int(good.argmax()) if good.any() else len(good)
        low, high = points[first], points[first + 1]
    return tuple(path[high].tolist())
