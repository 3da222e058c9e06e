"""Random search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codesign.problem import Problem
from codesign.run_directory import State
from codesign.space import Arch
from codesign.strategies.base import AbstractSampler, keep_rng, use_rng
from codesign.trial import Trial


@dataclass(frozen=True)
class Random(AbstractSampler):
    """Archs drawn uniformly and moved within the limits.

    A candidate over a limit goes along a random path towards the cheapest network until it is within
    (`Problem.project`), so each evaluation is of a feasible network, and of one that uses its limit well: a
    stronger opponent than rejection, and the one that any strategy has to beat at the same number of evaluations.
    """

    def init(self, problem: Problem, rng: np.random.Generator) -> State:
        return {"rng": keep_rng(rng)}

    def ask(self, problem: Problem, state: State, n: int) -> tuple[list[Arch], State]:
        rng = use_rng(state)
        archs = [problem.project(problem.space.sample(rng), rng) for _ in range(n)]
        return archs, {"rng": keep_rng(rng)}

    def tell(self, problem: Problem, state: State, trials: Sequence[Trial]) -> State:
        return state
