"""A network as a user names it, as a workload."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwmodels.workload import Workload

IMAGENET_SHAPE = (1, 3, 224, 224)


def load_network(
    source: str,
    input_shape: tuple[int, ...] | None = None,
    batch: int | None = None,
    ignore_unknown: bool = False,
) -> Workload:
    """The workload that a name or a file stands for.

    Parameters
    ----------
    source : str
        A built-in name, which loads no torch; a torchvision name; ``model.onnx``; ``layers.csv``; or
        ``package.module:factory``, a callable without arguments that returns a module or a `Workload`.
    input_shape : tuple of int, optional
        Batch first. Torchvision networks are read at (1, 3, 224, 224) where it is not given.
    batch : int, optional
        In place of the input's own.
    ignore_unknown : bool
        Leave out operators that have no price, instead of raising; the log says which.

    Raises
    ------
    ValueError
        For a source that is none of these, or that cannot be read.
    """
    if source.endswith(".onnx"):
        return _from_onnx(source, input_shape, batch, ignore_unknown)
    if source.endswith(".csv"):
        from hwmodels.from_csv import from_csv

        _takes_no_input(source, input_shape, batch)
        return from_csv(source)
    if ":" in source:
        return _from_factory(source, input_shape, batch, ignore_unknown)

    from hwmodels.networks import NETWORKS

    if source in NETWORKS:
        return _built_in(source, input_shape, batch)
    return _from_torchvision(source, input_shape, batch, ignore_unknown)


def _takes_no_input(source: str, input_shape: tuple[int, ...] | None, batch: int | None) -> None:
    if input_shape or batch:
        raise ValueError(
            f"Network {source!r}: its layers already have their sizes, so neither --input-shape nor --batch can "
            "be given; change the layers."
        )


def _from_onnx(source: str, input_shape: tuple[int, ...] | None, batch: int | None, ignore_unknown: bool) -> Workload:
    from hwmodels.from_onnx import from_onnx

    if batch and not input_shape:
        raise ValueError(
            f"Network {source!r}: --batch {batch} needs the rest of the shape; give --input-shape instead."
        )
    shape = (batch or input_shape[0], *input_shape[1:]) if input_shape else None
    return from_onnx(source, input_shape=shape, ignore_unknown=ignore_unknown)


def _built_in(name: str, input_shape: tuple[int, ...] | None, batch: int | None) -> Workload:
    from hwmodels.networks import NETWORKS

    if input_shape is None:
        return NETWORKS[name](batch=batch or 1)
    if len(input_shape) != 4 or input_shape[1] != 3 or input_shape[2] != input_shape[3]:
        raise ValueError(
            f"Network {name!r}: the input of a built-in network must have the shape N,3,S,S, got "
            f"{_commas(input_shape)}; for another one give package.module:factory."
        )
    return NETWORKS[name](batch=batch or input_shape[0], input_size=input_shape[2])


def _from_torchvision(
    name: str, input_shape: tuple[int, ...] | None, batch: int | None, ignore_unknown: bool
) -> Workload:
    from hwmodels.networks import NETWORKS

    try:
        import torch
        from torchvision import models
    except ImportError:
        raise ValueError(
            f"Network {name!r}: it must be one of {', '.join(NETWORKS)} where torchvision is not installed."
        ) from None
    known = [*NETWORKS, *models.list_models()]
    if name not in known:
        near = difflib.get_close_matches(name, set(known), n=4, cutoff=0.5)
        raise ValueError(
            f"Network {name!r}: it must be a built-in name ({', '.join(NETWORKS)}), a torchvision name, a file "
            "model.onnx or layers.csv, or package.module:factory"
            + (f"; near it are {', '.join(near)}." if near else ".")
        )
    weights = {key: None for key in ("weights", "weights_backbone") if key in _parameters(models, name)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):  # shapes alone: no weights are drawn
                module = models.get_model(name, **weights)
        except NotImplementedError:  # RegNet computes its widths with tensors
            module = models.get_model(name, **weights)
    return _trace(name, module, input_shape or IMAGENET_SHAPE, batch, ignore_unknown)


def _parameters(models: Any, name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(models.get_model_builder(name)).parameters


def _from_factory(
    source: str, input_shape: tuple[int, ...] | None, batch: int | None, ignore_unknown: bool
) -> Workload:
    from hwmodels.workload import Workload

    made = call_factory(source)
    if isinstance(made, Workload):
        _takes_no_input(source, input_shape, batch)
        return made
    if not _is_module(made):
        raise ValueError(
            f"Network {source!r}: the factory must return a torch module or a Workload, got {type(made).__name__}."
        )
    if input_shape is None:
        raise ValueError(f"Network {source!r}: the shape of a module's input must be given; add --input-shape N,C,H,W.")
    return _trace(source.partition(":")[2], made, input_shape, batch, ignore_unknown)


def call_factory(source: str) -> Any:
    """What ``package.module:factory`` returns; it is looked for in the working directory too.

    Raises
    ------
    ValueError
        Where it cannot be imported or called.
    """
    sys.path.insert(0, "")  # as for `python -m`
    try:
        return _called(source)
    finally:
        sys.path.remove("")


def _called(source: str) -> Any:
    module_name, _, attribute = source.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(
            f"Network {source!r}: its module must be importable from here, got {type(error).__name__}: {error}."
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(attribute, names, n=3) or names[:8]
        raise ValueError(
            f"Network {source!r}: {module_name} must have a callable {attribute!r}, got none"
            + (f"; it has {', '.join(near)}." if near else ".")
        )
    try:
        return factory()
    except Exception as error:
        raise ValueError(
            f"Network {source!r}: the factory must run without arguments, but it raised "
            f"{type(error).__name__}: {error}."
        ) from error


def _is_module(made: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(made, torch.nn.Module)


def _trace(name: str, module: Any, shape: tuple[int, ...], batch: int | None, ignore_unknown: bool) -> Workload:
    from hwmodels.from_torch import from_torch

    shape = (batch or shape[0], *shape[1:])
    return from_torch(module, input_shape=shape, name=name, ignore_unknown=ignore_unknown)


def _commas(shape: tuple[int, ...]) -> str:
    return ",".join(str(size) for size in shape)
