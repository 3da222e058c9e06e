"""Search strategies. Adding one is a file here and a line in `STRATEGIES`."""

from codesign.strategies.base import AbstractSampler, AbstractStrategy
from codesign.strategies.random import Random
from codesign.strategies.reinforce import Reinforce

#: By name, for the command line and the contract tests.
STRATEGIES: dict[str, type[AbstractStrategy]] = {"random": Random, "reinforce": Reinforce}

__all__ = ["STRATEGIES", "AbstractSampler", "AbstractStrategy", "Random", "Reinforce"]
