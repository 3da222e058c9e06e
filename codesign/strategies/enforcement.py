"""Bits that are over a limit, brought within all: in the order of HAQ, or all wishes alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codesign.problem import Problem
from codesign.space import Arch

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]


def sweep_down(problem: Problem, arch: Arch) -> Arch:
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
    section 3, on resource constraints; the order is that of the authors' program.
    """
    rounds = max(arch)
    down = [(c, -1) for r in range(rounds) for c in reversed(range(len(arch))) if arch[c] > r]
    up = [(c, 1) for c, option in enumerate(problem.witness) for _ in range(option)]
    return _first_within(problem, arch, [*down, *up])


def move_evenly(problem: Problem, arch: Arch, wishes: Floats) -> Arch:
    """The arch within the limits that is left of wishes when all give way alike; ``arch`` itself where it is within.

    Parameters
    ----------
    problem : Problem
        Its choices have the same number of options each.
    arch : tuple of int
        What the wishes come to: each option has an equal share of [0, 1].
    wishes : ndarray, shape (n_choices,)

    Notes
    -----
    All wishes move towards the options of `Problem.witness`, which mostly are the lowest, by the same amount: the
    least at which what they then come to meets every limit. Of choices that change at the same amount the last goes
    first. Then what the limits do not ask for is given back: choice by choice, the highest wish first, the option
    nearest to that of ``arch`` is taken that the limits allow. So no bit is lost that saved nothing, or whose loss
    did harm, as happens since cost is not monotone in bits.

    The way to the witness is searched as that of `sweep_down`.
    """
    n_options = problem.space.option_counts[0]
    moves = []
    for choice, (option, goal, wish) in enumerate(zip(arch, problem.witness, wishes.tolist(), strict=True)):
        moves += [(wish - k / n_options, -choice, -1) for k in range(option, goal, -1)]
        moves += [(k / n_options - wish, -choice, 1) for k in range(option + 1, goal + 1)]
    within = np.array(_first_within(problem, arch, [(-choice, way) for _, choice, way in sorted(moves)]))
    for choice in np.argsort(-wishes, kind="stable"):
        asked, left = arch[choice], within[choice]
        if left != asked:
            tried = np.repeat(within[None], abs(asked - left) + 1, axis=0)
            tried[:, choice] = np.arange(asked, left + np.sign(left - asked), np.sign(left - asked))
            within = tried[meets_limits(problem, tried).argmax()]
    return tuple(within.tolist())


def meets_limits(problem: Problem, archs: Integers) -> NDArray[np.bool_]:
    """Which of many archs fit and meet every limit; shape (n,)."""
    if problem.limits:
        return (problem.usages(archs) <= 1).all(axis=1)
    return np.isfinite(problem.costs(archs)["latency_s"])


def _first_within(problem: Problem, arch: Arch, moves: Iterable[tuple[int, int]]) -> Arch:
    """The first arch within the limits from ``arch`` on by moves (choice, change of its option) to one that is."""
    changes = np.array([(0, 0), *moves])
    path = np.zeros((len(changes), len(arch)), dtype=np.int64)
    path[np.arange(len(path)), changes[:, 0]] = changes[:, 1]
    path = path.cumsum(axis=0) + arch

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
