"""What a value is, as JSON: the configuration that a run directory keeps and is compared by."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import math
import platform
from collections.abc import Iterator, Mapping, Sequence, Set
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


def describe(value: Any) -> Any:
    """A JSON value that is equal for equal configurations.

    Parameters
    ----------
    value : object
        Dataclasses are described by their fields, arrays and tensors by a digest, functions by their name, and
        anything that has a ``describe()`` method by what that returns.

    Examples
    --------
    >>> from codesign.space import Choice
    >>> describe(Choice("bits", (2, 4)))
    {'type': 'codesign.space.Choice', 'name': 'bits', 'options': [2, 4]}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (Path, enum.Enum)):
        return str(value)
    if callable(getattr(value, "describe", None)) and not isinstance(value, type):
        return {"type": _name(type(value)), **value.describe()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": _name(type(value)), **fields}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((describe(item) for item in value), key=repr)
    if callable(getattr(value, "state_dict", None)):
        return {"type": _name(type(value)), "state": digest(*value.state_dict().values())}
    if hasattr(value, "__array__"):
        return {"type": _name(type(value)), "shape": list(value.shape), "digest": digest(value)}
    if isinstance(value, Sequence):
        return [describe(item) for item in value]
    if isinstance(value, functools.partial):
        return {
            "type": "functools.partial",
            "function": describe(value.func),
            "arguments": describe(value.args),
            "keywords": describe(value.keywords),
        }
    if hasattr(value, "__qualname__"):
        return _name(value)
    return _name(type(value))


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def digest(*arrays: Any) -> str:
    """A short hash of the bytes, shapes and types of arrays or tensors."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        array = np.ascontiguousarray(np.asarray(array.cpu() if hasattr(array, "cpu") else array))
        state.update(f"{array.dtype.str}{array.shape}".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of Python and of packages, found without importing them."""
    found = {"python": platform.python_version()}
    for package in packages or ("codesign", "numpy", "numba", "torch"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """Where two descriptions differ, one line each."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted({*there, *here}):
            yield from differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for i, (a, b) in enumerate(zip(there, here, strict=True)):
            yield from differences(a, b, f"{path}[{i}]")
    elif there != here:
        yield f"{path}: {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
