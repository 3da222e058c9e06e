"""What a search strategy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codesign.problem import Problem
from codesign.run_directory import State
from codesign.space import Arch
from codesign.trial import Trial

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class AbstractStrategy(ABC):
    """An algorithm as a value: its fields are its hyperparameters, and its state is passed in and handed back.

    A state is a dict of arrays and JSON values, and holds all that the strategy knows, its random generator too
    (`keep_rng`, `use_rng`); so it can be written after any step and read back, and a search that was killed goes on
    to the result of one that was not. A strategy never changes a state that it was given.

    There are two kinds. A *sampler* (`AbstractSampler`) is asked for archs and told their trials. A *trainer*
    (`AbstractTrainer`) trains weights and a policy, and offers archs to be evaluated between.
    """

    @abstractmethod
    def init(self, problem: Problem, rng: np.random.Generator) -> State:
        """The state before the first step. ``rng`` is the search's; the state keeps it."""

    def check(self, problem: Problem) -> None:  # noqa: B027  most can do all
        """Refuse what the strategy cannot do, from the space, the chip and the limits alone.

        Raises
        ------
        ValueError
        """

    def training_passes(self, problem: Problem) -> int:
        """Image passes of all that it trains and measures by itself; a forward pass counts 1, with its gradient 3."""
        return 0

    def spending(self, problem: Problem, passes: int) -> Self:
        """The strategy whose `training_passes` come to at most so many, and close to it."""
        return self

    def lasting(self, n_trials: int) -> Self:
        """The strategy whose schedules run their course over so many trials."""
        return self


@dataclass(frozen=True)
class AbstractSampler(AbstractStrategy):
    """A strategy that proposes archs and learns from their trials.

    Its archs should meet the limits (`Problem.project`), for a candidate over a limit is not evaluated.
    """

    @abstractmethod
    def ask(self, problem: Problem, state: State, n: int) -> tuple[list[Arch], State]:
        """The next ``n`` archs to evaluate, and the state that waits for their trials."""

    @abstractmethod
    def tell(self, problem: Problem, state: State, trials: Sequence[Trial]) -> State:
        """The state after the trials of the archs last asked for, in their order."""


class AbstractTraining(ABC):
    """A trainer at work. It holds networks and optimisers, and changes them; `state` says where it is."""

    @abstractmethod
    def advance(self) -> dict[str, float]:
        """Train up to the next offer; means of what was measured on the way, by name."""

    @abstractmethod
    def offer(self, n: int) -> list[Arch]:
        """The ``n`` archs that it would have evaluated now, within the limits; none while it has none to offer yet."""

    def tell(self, trials: Sequence[Trial]) -> None:  # noqa: B027  most have no use for them
        """The trials of the archs last offered, in their order."""

    @abstractmethod
    def accuracy(self) -> Callable[[Arch], Mapping[str, float]]:
        """What an arch is worth with the weights as they are now."""

    @abstractmethod
    def state(self) -> State:
        """All that later steps depend on, as `AbstractTrainer.start` takes it."""


@dataclass(frozen=True)
class AbstractTrainer(AbstractStrategy):
    """A strategy that trains weights which candidates share, and with them what it knows of candidates."""

    @abstractmethod
    def start(self, problem: Problem, state: State) -> AbstractTraining:
        """Go on from a state: that of `init`, or one that was kept."""


def keep_rng(rng: np.random.Generator) -> dict[str, Any]:
    """A generator as a JSON value."""
    return dict(rng.bit_generator.state)


def use_rng(state: State) -> np.random.Generator:
    """The generator that ``state["rng"]`` keeps, at the point where it was kept."""
    kept = state["rng"]
    bits = getattr(np.random, kept["bit_generator"])()
    bits.state = kept
    return np.random.Generator(bits)
