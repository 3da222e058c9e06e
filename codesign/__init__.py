"""Which network, at which bits? Spaces, strategies, the search loop, and quantized training.

Names are imported when they are used, so that ``import codesign`` loads neither torch nor plotting.
"""

import sys
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
    "load_run": "run_spec",
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
    value = getattr(import_module(f"codesign.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(ModuleType):
    """Keeps ``codesign.search`` the function: importing a submodule binds its name in the package."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
