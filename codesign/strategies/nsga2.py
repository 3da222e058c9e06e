"""NSGA-II: an evolving set of networks that trade one objective for another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codesign.problem import AT_LEAST, Problem
from codesign.run_directory import State
from codesign.space import Arch
from codesign.strategies.base import AbstractSampler, keep_rng, use_rng
from codesign.trial import Trial

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class NSGA2(AbstractSampler):
    """Non-dominated sorting, crowding distance and binary tournaments, by pymoo's operators.

    Parameters
    ----------
    population : int
        Candidates that survive. The first so many are drawn at random.
    objectives : tuple of str, optional
        Metrics to trade. None: the problem's objective, and the metrics under limits or, without limits, the energy
        (the latency on a chip whose energy is unknown).
    crossover : float
        Probability that two parents are crossed, each of their fields changing sides with probability 1/2.
    mutation : float
        Fields of a child, on average, that are drawn anew.

    Raises
    ------
    ValueError
        For a population below two, a single objective, or a rate out of range.

    Notes
    -----
    Genes are the fields of the options (`AbstractSpace.split`), so that a block's kernel is inherited without its
    bitwidths. A child over a limit is moved within (`Problem.project`) before it is evaluated, and its genes are those
    of the network that was: a network over a limit is not evaluated, so it has no error to rank it by, and ranking by
    violation alone would spend trials on none. Random search has the same projection, so what is compared is the
    search. Children that are copies of survivors or of each other are replaced.

    The state is the surviving genes and objectives and a generator; pymoo's objects are made from it at each step, as
    they could only be kept as pickles. A candidate whose objective is not a number counts as the worst.

    References
    ----------
    Deb, Pratap, Agarwal and Meyarivan, "A fast and elitist multiobjective genetic algorithm: NSGA-II", IEEE
    Transactions on Evolutionary Computation 6, 2002. Blank and Deb, "pymoo: Multi-Objective Optimization in Python",
    IEEE Access 8, 2020.
    """

    population: int = 20
    objectives: tuple[str, ...] | None = None
    crossover: float = 0.9
    mutation: float = 1.0

    def __post_init__(self) -> None:
        if self.objectives is not None:
            object.__setattr__(self, "objectives", tuple(self.objectives))
            if len(set(self.objectives)) < 2:
                raise ValueError(f"NSGA2: objectives must be at least two, got {self.objectives}.")
        if self.population < 2:
            raise ValueError(f"NSGA2: population must be at least 2, got {self.population}.")
        if not (0 <= self.crossover <= 1 and self.mutation >= 0):
            raise ValueError(
                "NSGA2: crossover must be from 0 to 1 and mutation at least 0, got "
                f"crossover={self.crossover}, mutation={self.mutation}."
            )

    def traded(self, problem: Problem) -> tuple[str, ...]:
        """The metrics that are traded in a problem."""
        cost = "energy_j" if "energy_j" in problem.metrics else "latency_s"
        return self.objectives or tuple(dict.fromkeys((problem.objective, *(problem.limits or (cost,)))))

    def init(self, problem: Problem, rng: np.random.Generator) -> State:
        n_genes, n_objectives = len(problem.space.field_counts), len(self.traded(problem))
        empty = {"genes": np.empty((0, n_genes), dtype=np.int64), "values": np.empty((0, n_objectives))}
        return {**empty, "rng": keep_rng(rng)}

    def ask(self, problem: Problem, state: State, n: int) -> tuple[list[Arch], State]:
        rng, space = use_rng(state), problem.space
        archs: list[Arch] = []
        if len(state["genes"]) >= self.population:
            archs = [space.join(genes) for genes in self._children(problem, state, n, rng)]
        taken = {space.join(genes) for genes in state["genes"]} | set(archs)
        for _ in range(20 * n):  # at random: the first population, and what mating failed to make anew
            if len(archs) == n:
                break
            arch = problem.project(space.sample(rng), rng)
            if arch not in taken:
                archs.append(arch)
                taken.add(arch)
        archs += [problem.project(space.sample(rng), rng) for _ in range(n - len(archs))]  # a space too small
        return archs, {**state, "rng": keep_rng(rng)}

    def tell(self, problem: Problem, state: State, trials: Sequence[Trial]) -> State:
        from pymoo.core.population import Population
        from pymoo.core.problem import Problem as Ranked
        from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

        names, rng = self.traded(problem), use_rng(state)
        known = {*problem.metrics, problem.objective}
        for trial in trials:
            missing = [name for name in names if name not in trial.metrics and name not in known]
            if trial.feasible and missing:
                raise ValueError(
                    f"NSGA2: objectives must be metrics of a trial, got {', '.join(missing)}; known are "
                    f"{', '.join(trial.metrics)}."
                )
        told = [problem.space.split(trial.arch) for trial in trials]
        genes = np.concatenate([state["genes"], np.array(told, dtype=np.int64).reshape(len(told), -1)])
        signs = np.array([-1.0 if name in AT_LEAST else 1.0 for name in names])
        values = np.concatenate([state["values"], [[t.metrics.get(name, math.nan) for name in names] for t in trials]])
        values[len(state["values"]) :] *= signs
        values[~np.isfinite(values).all(axis=1)] = math.nan
        population = Population.new("X", genes, "F", _ranked(values), "row", np.arange(len(genes)))
        ranked = Ranked(n_var=genes.shape[1], n_obj=len(names))
        n_survive = min(self.population, len(genes))
        rows = RankAndCrowding().do(ranked, population, n_survive=n_survive, random_state=rng).get("row").astype(int)
        return {"genes": genes[rows], "values": values[rows], "rng": keep_rng(rng)}

    def _children(self, problem: Problem, state: State, n: int, rng: np.random.Generator) -> Integers:
        """Genes of up to ``n`` new candidates within the limits; shape (n_children, n_genes)."""
        from pymoo.algorithms.moo.nsga2 import binary_tournament
        from pymoo.core.duplicate import DefaultDuplicateElimination
        from pymoo.core.mating import Mating
        from pymoo.core.population import Population
        from pymoo.core.problem import Problem as Varied
        from pymoo.core.repair import Repair
        from pymoo.core.variable import Integer
        from pymoo.operators.crossover.ux import UniformCrossover
        from pymoo.operators.mutation.rm import ChoiceRandomMutation
        from pymoo.operators.selection.tournament import TournamentSelection
        from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

        class Project(Repair):
            def _do(self, _: Any, X: NDArray[Any], **kwargs: Any) -> Integers:
                space = problem.space
                return np.array([space.split(problem.project(space.join(genes), rng)) for genes in X], dtype=np.int64)

        counts = problem.space.field_counts
        varied = Varied(
            vars={i: Integer(bounds=(0, n - 1)) for i, n in enumerate(counts)}, n_obj=state["values"].shape[1]
        )
        survivors = Population.new("X", state["genes"].copy(), "F", _ranked(state["values"]))
        survivors = RankAndCrowding().do(varied, survivors, n_survive=len(survivors), random_state=rng)
        mating = Mating(
            TournamentSelection(func_comp=binary_tournament),
            UniformCrossover(prob=self.crossover),
            ChoiceRandomMutation(prob_var=min(1.0, self.mutation / len(counts))),
            repair=Project(),
            eliminate_duplicates=DefaultDuplicateElimination(),
            n_max_iterations=20,
        )
        algorithm = SimpleNamespace(tournament_type="comp_by_dom_and_crowding", random_state=rng)
        children = mating.do(varied, survivors, n, random_state=rng, algorithm=algorithm)
        return np.array([child.X for child in children], dtype=np.int64).reshape(-1, len(counts))


def _ranked(values: Floats) -> Floats:
    """Values that can be ranked: rows that are not numbers become the worst of each objective."""
    bad = np.isnan(values).any(axis=1)
    worst = values[~bad].max(axis=0, initial=-math.inf) if (~bad).any() else np.zeros(values.shape[1])
    return np.where(bad[:, None], worst, values)
