"""Which network, at which bits? Spaces, strategies, the search loop, and quantized training.

Names are imported when they are used, so that ``import codesign`` loads neither torch nor plotting.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

_HOME = {
    "AbstractSpace": "space",
    "Arch": "space",
    "BitwidthSpace": "space",
    "ChipSpace": "chip_space",
    "MobileNetV2Space": "nets.mobilenetv2",
    "Choice": "space",
    "Trial": "trial",
    "best_trial": "trial",
    "load_trials": "trial",
    "Problem": "problem",
    "UnreachableLimit": "problem",
    "search": "search",
    "RunDirectoryError": "run_directory",
    "STRATEGIES": "strategies",
    "AbstractSampler": "strategies",
    "AbstractStrategy": "strategies",
    "AbstractTrainer": "strategies",
    "Gumbel": "strategies",
    "MPNAS": "strategies",
    "NSGA2": "strategies",
    "Random": "strategies",
    "Reinforce": "strategies",
    "pareto_mask": "pareto",
    "pareto_rank": "pareto",
    "hypervolume": "pareto",
    "load_data": "data",
    "load_run": "run",
    "plot_pareto": "plots",
    "plot_front_grid": "plots",
    "plot_blocks": "plots",
    "plot_layers": "plots",
    "plot_bits": "plots",
    "plot_roofline": "plots",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME)  # noqa: PLE0605  one table of names, not two


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'codesign' has no attribute {name!r}")
    home = import_module(f"codesign.{_HOME[name]}")
    value = home if name == _HOME[name] else getattr(home, name)
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Named(ModuleType):
    """A module that bears the name of the function in it, and is called as that function.

    Python binds a submodule in its package when it is imported, and it reads ``from codesign import search`` and
    ``import codesign.search as s`` in the same way, from there. So what is there must serve as both.
    """

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.__dict__[self.__name__.rpartition(".")[2]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, (self.__name__,)


class _Package(ModuleType):
    """Makes ``codesign.search`` callable as soon as the submodule is bound."""

    def __setattr__(self, name: str, value: Any) -> None:
        if _HOME.get(name) == name and isinstance(value, ModuleType):
            value.__class__ = _Named
            value.__qualname__ = name
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
