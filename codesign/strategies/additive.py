"""Bits by sensitivities that are taken to add up: the exact optimum of that model, or its greedy one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codesign.cost_table import CostTable
from codesign.problem import Problem
from codesign.run_directory import State
from codesign.space import Arch, BitwidthSpace
from codesign.strategies.base import AbstractTrainer, AbstractTraining, keep_rng, use_rng
from codesign.trial import Trial

if TYPE_CHECKING:
    from codesign.network_task import NetworkTask
    from codesign.sensitivity import Sensitivities

Integers = NDArray[np.int64]
#: Images that a loss says something on, those for BatchNorm statistics included.
FEWEST = 200


@dataclass(frozen=True)
class AbstractAdditive(AbstractTrainer):
    """A strategy that measures how much each layer loses at each pair of bitwidths, and takes the losses to add up.

    Parameters
    ----------
    images, statistics : int, optional
        The first so many images of the search set are what sensitivities are measured on, and so many of those that
        BatchNorm statistics are renewed on; None: all.
    pairs : bool
        Measure each pair of bitwidths of a layer; else weights and inputs apart
        (`codesign.sensitivity.layer_sensitivities`).
    monotone : bool
        Take fewer bits never to lose less (`Sensitivities.monotone`). Measured on few images, some seem to gain, and
        the least sum then lies where no limit asks for it.
    checks : int
        Random candidates on which it is measured how additive the sensitivities are; at least 2.
    statistics_share : float
        Of the images that a measurement can afford (`spending`), those for BatchNorm statistics. More where layers have
        few pixels an image, so that their statistics are noisy.

    Notes
    -----
    First the sensitivities are measured, layer by layer, and nothing is offered meanwhile. Then comes the best
    candidate by their sum, and the widest uniform bits within the limits, both filled up (`Problem.fill`); after them
    those that differ from the best one evaluated so far in one bitwidth, or in one
    that is raised by a step and one that is lowered, by their predicted loss. Those are what the sum may have wrong.
    """

    images: int | None = None
    statistics: int | None = None
    pairs: bool = True
    monotone: bool = True
    checks: int = 20
    statistics_share: float = 0.25

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0 < self.statistics_share < 1:
            raise ValueError(f"{name}: statistics_share must be between 0 and 1, got {self.statistics_share}.")
        for field in ("images", "statistics"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"{name}: {field} must be at least 1, got {getattr(self, field)}.")
        if self.checks < 2:
            raise ValueError(f"{name}: checks must be at least 2, got {self.checks}.")

    @abstractmethod
    def best(self, problem: Problem, found: Sensitivities) -> tuple[Arch, dict[str, float]]:
        """The arch that the sensitivities promise most of within the limits, and what is to be said of it."""

    def init(self, problem: Problem, rng: np.random.Generator) -> State:
        self.check(problem)
        task_of(problem, type(self).__name__)
        return {"rng": keep_rng(rng)}

    def start(self, problem: Problem, state: State) -> AbstractTraining:
        return _Training(self, problem, state)

    def training_passes(self, problem: Problem) -> int:
        return self._measurements(problem) * sum(self.measured_on(problem))

    def spending(self, problem: Problem, passes: int) -> AbstractAdditive:
        """With as many images as the passes allow, `statistics_share` of them for BatchNorm statistics.

        Where that are fewer than `FEWEST` for each pair of bitwidths, weights and inputs are measured apart.
        """
        if passes // self._measurements(problem) < FEWEST and self.pairs:
            return dataclasses.replace(self, pairs=False).spending(problem, passes)
        each = passes // self._measurements(problem)
        if each < 2:
            raise ValueError(
                f"{type(self).__name__}: its {self._measurements(problem)} measurements must have at least 2 image "
                f"passes each, got {passes} in all."
            )
        most_images, most_statistics = dataclasses.replace(self, images=None, statistics=None).measured_on(problem)
        statistics = max(1, min(int(each * self.statistics_share), most_statistics)) if most_statistics else 0
        images = max(1, min(each - statistics, most_images))
        return dataclasses.replace(self, images=images, statistics=statistics or None)

    def measured_on(self, problem: Problem) -> tuple[int, int]:
        """How many images of the search set, and how many for statistics, a measurement takes."""
        task = task_of(problem, type(self).__name__)
        there = len(task.data.search.labels), 0 if task.statistics is None else len(task.statistics)
        images, statistics = (
            n if most is None else min(n, most) for n, most in zip(there, (self.images, self.statistics), strict=True)
        )
        return images, statistics

    def _measurements(self, problem: Problem) -> int:
        space: BitwidthSpace = problem.space  # type: ignore[assignment]
        n_bits, n_operands = len(space.bits), len(space.operands)
        each = n_bits**n_operands - 1 if self.pairs else n_operands * (n_bits - 1)
        return len(space.searched) * each + 1 + self.checks


@dataclass(frozen=True)
class Milp(AbstractAdditive):
    """The multiple-choice knapsack of the sensitivities under all limits at once, solved to proven optimality.

    See `AbstractAdditive`, and `codesign.knapsack.knapsack` for the program. It needs costs that decompose, and limits
    on sums: latency, energy, bytes, MACs, BitOPs.
    """

    def check(self, problem: Problem) -> None:
        if not isinstance(problem.table, CostTable):
            raise ValueError("Milp: costs must be sums over a cost table, but here they are not; choose greedy.")
        others = [name for name in problem.limits if name not in problem.table.metrics and name != "frames_per_s"]
        if others:
            raise ValueError(
                f"Milp: limits must be on sums over layers ({', '.join(problem.table.metrics)}), got "
                f"{', '.join(others)}; choose greedy."
            )

    def best(self, problem: Problem, found: Sensitivities) -> tuple[Arch, dict[str, float]]:
        from codesign.knapsack import knapsack

        assert isinstance(problem.table, CostTable)
        limits = dict(problem.limits)
        if "frames_per_s" in limits:  # from below, which is one on the latency from above
            batch = problem.space.workload(problem.space.reference).batch
            limits["latency_s"] = min(limits.get("latency_s", math.inf), batch / limits.pop("frames_per_s"))
        optimum = knapsack(problem.table, found.factors(problem.space), limits)  # type: ignore[arg-type]
        arch = optimum.arch
        if not problem.feasible(arch):  # by what rounding makes of the full simulation
            arch = problem.project(arch, np.random.default_rng(0))
        return arch, {"gap": optimum.gap, "predicted_loss": found.base_loss + optimum.objective}


@dataclass(frozen=True)
class Greedy(AbstractAdditive):
    """From the widest bits down, each time the step that saves most of the scarcest limit for what it loses.

    See `AbstractAdditive`. It needs no table, and takes limits on any metric.
    """

    def best(self, problem: Problem, found: Sensitivities) -> tuple[Arch, dict[str, float]]:
        space: BitwidthSpace = problem.space  # type: ignore[assignment]
        arch = np.array([len(space.bits) - 1] * len(space.choices))
        while problem.limits and arch.any():
            usage = problem.usages([arch])[0]
            if (usage <= 1).all():
                break
            steps = np.array([arch - unit for unit in np.eye(len(arch), dtype=np.int64)[arch > 0]])
            scarcest = int(usage.argmax())
            saved = usage[scarcest] - problem.usages(steps)[:, scarcest]
            lost = found.predict(steps) - found.predict([arch])
            # What loses nothing comes first; where costs are not monotone in bits a step may save nothing.
            worth = np.where(saved > 0, saved / np.maximum(lost, 1e-9), -math.inf)
            if not np.isfinite(worth).any():
                worth = -lost
            arch = steps[int(worth.argmax())]
        chosen: Arch = tuple(int(option) for option in arch)
        chosen = problem.project(chosen, np.random.default_rng(0))
        return chosen, {"predicted_loss": float(found.predict([chosen])[0])}


class _Training(AbstractTraining):
    """Measures, and then offers."""

    def __init__(self, strategy: AbstractAdditive, problem: Problem, state: State) -> None:
        self.strategy, self.problem = strategy, problem
        self.space: BitwidthSpace = problem.space  # type: ignore[assignment]
        task = task_of(problem, type(strategy).__name__)
        self._measure = task.accuracy_on(*strategy.measured_on(problem))
        self._accuracy = problem.accuracy
        self.rng = use_rng(state)
        n_bits, n_operands = len(self.space.bits), len(self.space.operands)
        unknown = np.full((len(self.space.searched), n_bits, n_bits if n_operands == 2 else 1), math.nan)
        self.increase: NDArray[np.float64] = np.array(state.get("increase", unknown))
        self.base_loss: float | None = state.get("base_loss")
        self.seen: set[Arch] = {tuple(row) for row in state.get("seen", [])}
        self.centre: Arch | None = tuple(state["centre"]) if state.get("centre") else None
        self.least: float = math.inf if state.get("least") is None else float(state["least"])

    def state(self) -> State:
        return {
            "rng": keep_rng(self.rng), "increase": self.increase.copy(), "base_loss": self.base_loss,
            "seen": sorted(map(list, self.seen)), "centre": None if self.centre is None else list(self.centre),
            "least": self.least if math.isfinite(self.least) else None,
        }  # fmt: skip

    @property
    def measured(self) -> Sensitivities:
        """The losses as they were measured."""
        from codesign.sensitivity import Sensitivities

        return Sensitivities(self.space.searched, self.space.bits, float(self.base_loss or 0.0), self.increase)

    @property
    def found(self) -> Sensitivities:
        """The losses as they are taken to be."""
        return self.measured.monotone() if self.strategy.monotone else self.measured

    def advance(self) -> dict[str, float]:
        from codesign.sensitivity import additivity, layer_sensitivities, widest_loss

        if self.centre is not None:
            return {}
        if self.base_loss is None:
            self.base_loss = widest_loss(self._measure, self.space)
        unknown = [i for i, values in enumerate(self.increase) if np.isnan(values).any()]
        if unknown:
            self.increase[unknown[0]] = layer_sensitivities(
                self._measure, self.space, unknown[0], self.base_loss, pairs=self.strategy.pairs
            )
            return {"layers_measured": float(len(self.increase) - len(unknown) + 1)}
        archs = [self.space.sample(self.rng) for _ in range(self.strategy.checks)]
        check = additivity(self.measured, self._measure, self.space, archs)
        arch, said = self.strategy.best(self.problem, self.found)
        self.centre = self._filled(arch)
        return {"r2": check.r2, "tau": check.tau, **said}

    def offer(self, n: int) -> list[Arch]:
        if self.centre is None:
            return []
        first = [self.centre, *self._uniform()] if not self.seen else []
        archs = list(dict.fromkeys(first))[:n]
        archs += itertools.islice(self._neighbours(self.centre, self.seen | set(archs)), n - len(archs))
        while len(archs) < n:  # all neighbours are known
            archs.append(self._filled(self.problem.project(self.space.sample(self.rng), self.rng)))
        return archs

    def _uniform(self) -> list[Arch]:
        """The widest uniform bits within the limits, filled up; none where even the narrowest are over one."""
        for bits in reversed(self.space.bits):
            if self.problem.feasible(self.space.uniform(bits)):
                return [self._filled(self.space.uniform(bits))]
        return []

    def _filled(self, arch: Arch) -> Arch:
        """The arch with the room that limits leave used, first where more bits promise most for it."""
        n_operands = len(self.space.operands)
        increase = self.found.increase
        alone = [increase[:, :, -1], increase[:, -1, :]][:n_operands]  # (n_layers, n_bits), the other at its widest
        losses = np.stack(alone, axis=1).reshape(len(self.space.choices), -1)
        gains = np.concatenate([np.zeros((len(losses), 1)), losses[:, :-1] - losses[:, 1:]], axis=1)
        return self.problem.fill(arch, gains, least=-math.inf)

    def _neighbours(self, centre: Arch, taken: set[Arch]) -> Iterable[Arch]:
        """Archs within the limits near one, filled up, that were not evaluated, by their predicted loss."""
        here, counts = np.array(centre), np.array(self.space.option_counts)
        units = np.eye(len(here), dtype=np.int64)
        single = [here + (option - here[c]) * units[c] for c in range(len(here)) for option in range(counts[c])]
        up, down = units[here < counts - 1], units[here > 0]
        pairs = (here + up[:, None] - down[None]).reshape(-1, len(here))
        archs = np.unique(np.concatenate([np.array(single), pairs]), axis=0)
        feasible = (self.problem.usages(archs) <= 1).all(axis=1)
        archs = archs[feasible & (archs != here).any(axis=1)]
        taken = taken | {centre}
        for i in np.argsort(self.found.predict(archs), kind="stable") if len(archs) else ():
            arch = self._filled(tuple(int(option) for option in archs[i]))
            if arch not in taken:
                taken.add(arch)
                yield arch

    def tell(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self.seen.add(trial.arch)
            value = trial.metrics.get(self.problem.objective, math.nan)
            if trial.feasible and value < self.least:
                self.least, self.centre = value, trial.arch

    def accuracy(self) -> Callable[[Arch], Mapping[str, float]]:
        return self._accuracy


def task_of(problem: Problem, whose: str) -> NetworkTask:
    """The trained network of a problem.

    Raises
    ------
    ValueError
        Where the problem has none.
    """
    from codesign.network_task import NetworkTask

    task: Any = problem.supernet
    if not isinstance(task, NetworkTask) or not isinstance(problem.space, BitwidthSpace):
        raise ValueError(
            f"{whose}: it chooses the bits of a trained network, so the problem must have a BitwidthSpace and a "
            f"NetworkTask as supernet, got {type(problem.space).__name__} and {type(task).__name__}."
        )
    return task
