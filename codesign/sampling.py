"""Which candidates a step of shared weights trains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from codesign.space import AbstractSpace, Arch

Freedom = float | NDArray[np.float64]


def uniform(space: AbstractSpace, rng: np.random.Generator, freedom: Freedom = 1.0) -> list[Arch]:
    """One candidate, each field of which is drawn with a probability, and else has its last value."""
    counts = np.array(space.field_counts)
    drawn, last = rng.integers(counts), counts - 1
    return [space.join(np.where(rng.random(len(counts)) < freedom, drawn, last))]


def sandwich(space: AbstractSpace, rng: np.random.Generator, freedom: Freedom = 1.0) -> list[Arch]:
    """The largest and the smallest, of last and of first values, and two more."""
    ends = [space.join([count - 1 for count in space.field_counts]), space.join([0] * len(space.field_counts))]
    return [*ends, *(uniform(space, rng, freedom)[0] for _ in range(2))]


def fair(space: AbstractSpace, rng: np.random.Generator, freedom: Freedom = 1.0) -> list[Arch]:
    """Candidates among which each value of a field occurs equally often, up to one."""
    counts = space.field_counts
    n = max(counts)
    columns = [np.concatenate([rng.permutation(count) for _ in range(-(-n // count))])[:n] for count in counts]
    rows = np.stack(columns, axis=1)
    rows = np.where(rng.random(rows.shape) < freedom, rows, np.array(counts) - 1)
    return [space.join(row) for row in rows]


def coherent(space: AbstractSpace, rng: np.random.Generator, freedom: Freedom = 1.0) -> list[Arch]:
    """One candidate whose choices resemble each other.

    Fields of one name, such as the expansion of every block, are drawn together: with the given probability they are
    released, and else have their last value everywhere. Where they are, a value is drawn for all of them, from which
    every second one departs.
    """
    counts, kinds = np.array(space.field_counts), [name.rpartition(".")[2] for name in space.field_names]
    _, first, kind = np.unique(kinds, return_index=True, return_inverse=True)
    free = np.broadcast_to(freedom, counts.shape)[first]
    released, common = rng.random(len(first)) < free, rng.random(len(first))
    own = rng.integers(counts)
    drawn = np.where(rng.random(len(counts)) < 0.5, (common[kind] * counts).astype(np.int64), own)
    return [space.join(np.where(released[kind], drawn, counts - 1))]


SAMPLING: dict[str, Callable[..., list[Arch]]] = {
    "uniform": uniform, "coherent": coherent, "sandwich": sandwich, "fair": fair
}  # fmt: skip
