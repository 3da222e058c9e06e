"""Search strategies. Adding one is a file here and a line in `STRATEGIES`."""

from codesign.strategies.additive import Greedy, Milp
from codesign.strategies.base import AbstractSampler, AbstractStrategy, AbstractTrainer
from codesign.strategies.cursor import Cursor
from codesign.strategies.dnas import DNAS
from codesign.strategies.fine_grained import FineGrained
from codesign.strategies.haq import HAQ
from codesign.strategies.mpnas import MPNAS, Gumbel
from codesign.strategies.nsga2 import NSGA2
from codesign.strategies.random import Random
from codesign.strategies.reinforce import Reinforce

#: By name, for the command line and the contract tests.
STRATEGIES: dict[str, type[AbstractStrategy]] = {
    "mpnas": MPNAS,
    "gumbel": Gumbel,
    "reinforce": Reinforce,
    "random": Random,
    "nsga2": NSGA2,
    "haq": HAQ,
    "cursor": Cursor,
    "dnas": DNAS,
    "fine_grained": FineGrained,
    "milp": Milp,
    "greedy": Greedy,
}

__all__ = [
    "DNAS",
    "HAQ",
    "MPNAS",
    "NSGA2",
    "STRATEGIES",
    "AbstractSampler",
    "AbstractStrategy",
    "AbstractTrainer",
    "Cursor",
    "FineGrained",
    "Greedy",
    "Gumbel",
    "Milp",
    "Random",
    "Reinforce",
]
