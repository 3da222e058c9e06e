"""The exact minimum of a sum of functions of few choices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codesign.space import Arch
from codesign.terms import NotDecomposable

#: Entries of the largest table that elimination may make.
MAX_JOINT = 2_000_000

Factor = tuple[tuple[int, ...], NDArray[np.float64]]


def least(option_counts: Sequence[int], factors: Sequence[Factor]) -> tuple[Arch, float]:
    """The arch with the least sum of factors, and that sum.

    Parameters
    ----------
    option_counts : sequence of int
    factors : sequence of (choices, values)
        ``choices`` ascending; ``values`` of shape ``(option_counts[choice], ...)``. inf forbids a combination.

    Raises
    ------
    NotDecomposable
        Where a choice is joined with so many others that a table of `MAX_JOINT` entries does not hold them.

    Notes
    -----
    Choices are eliminated in order: the factors that have choice i are added up, and their minimum over it, as a
    function of the other choices that they have, takes their place,

    .. math:: m_i(x) = \\min_{a_i} \\sum_{f \\ni i} f(a_i, x).

    On a chain this is dynamic programming, m_(i+1)(a_(i+1)) = min over a_i of m_i(a_i) + T_i(a_i, a_(i+1)). The
    options are then read off backwards.
    """
    waiting, decided = list(factors), []
    for i, count in enumerate(option_counts):
        here = [factor for factor in waiting if i in factor[0]]
        waiting = [factor for factor in waiting if i not in factor[0]]
        joined = sorted({choice for choices, _ in here for choice in choices} - {i})
        shape = (count, *(option_counts[choice] for choice in joined))
        if np.prod(shape, dtype=float) > MAX_JOINT:
            raise NotDecomposable(
                f"An exact minimum needs choices that are joined with few others, but choice {i} is joined with "
                f"{len(joined)}, {np.prod(shape, dtype=float):.3g} combinations."
            )
        total = np.zeros(shape)
        for choices, values in here:
            axes = [choices.index(choice) for choice in (i, *joined) if choice in choices]
            spread = [n if choice in choices else 1 for choice, n in zip((i, *joined), shape, strict=True)]
            total += values.transpose(axes).reshape(spread)
        decided.append((joined, total.argmin(axis=0)))
        waiting.append((tuple(joined), total.min(axis=0)))
    arch = [0] * len(option_counts)
    for i in reversed(range(len(arch))):
        joined, best = decided[i]
        arch[i] = int(best[tuple(arch[choice] for choice in joined)])
    return tuple(arch), float(sum(values for _, values in waiting))
