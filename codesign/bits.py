"""Bitwidths as a user writes them: ``w4a8``, ``8``, or a file with a line for each layer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwmodels.workload import Bits, Workload

FORMS = "w4a8 (weights, inputs), 8 (both), or a YAML or JSON file that maps layer names to {weight: 4, input: 8}"


def read_bits(source: str) -> tuple[Bits, Bits]:
    """Weight and input bitwidths.

    Parameters
    ----------
    source : str
        ``"w4a8"``; ``"8"``; or the path of a YAML or JSON file that maps the name of each MAC layer to
        ``{weight: 4, input: 8}``, ``[4, 8]``, ``"w4a8"`` or ``8``.

    Returns
    -------
    weight_bits, input_bits : int or dict of str to int
        As `hwmodels.workload.Workload.with_bits` takes them.

    Raises
    ------
    ValueError
        For text that is none of these, or a file that cannot be read as such a mapping.

    Examples
    --------
    >>> read_bits("w4a8"), read_bits("8")
    ((4, 8), (8, 8))
    """
    pair = _short(source)
    if pair is not None:
        return pair
    path = Path(source)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"Bits {source!r}: they must be {FORMS}.")
    table = _read_mapping(path)
    pairs = {str(layer): _pair(source, str(layer), value) for layer, value in table.items()}
    return {layer: w for layer, (w, _) in pairs.items()}, {layer: a for layer, (_, a) in pairs.items()}


def apply_bits(workload: Workload, source: str) -> Workload:
    """The network at the bitwidths that ``source`` describes (see `read_bits`).

    Raises
    ------
    ValueError
        Also for a file that names unknown layers or misses some.
    """
    weight_bits, input_bits = read_bits(source)
    try:
        return workload.with_bits(weight_bits, input_bits)
    except ValueError as error:
        raise ValueError(f"Bits {source!r}: {error}") from None


def _short(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"w(\d+)a(\d+)", text) or re.fullmatch(r"(\d+)", text)
    return (int(match[1]), int(match[match.lastindex or 1])) if match else None


def _read_mapping(path: Path) -> Mapping[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            table = json.loads(text)
        else:
            import yaml

            table = yaml.safe_load(text)
    except OSError as error:
        raise ValueError(f"Bits {str(path)!r}: the file must be readable: {error.strerror}.") from None
    except Exception as error:
        raise ValueError(f"Bits {str(path)!r}: the file must be valid {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(table, Mapping) or not table:
        raise ValueError(f"Bits {str(path)!r}: the file must map layer names to bitwidths, got {type(table).__name__}.")
    return table


def _pair(source: str, layer: str, value: Any) -> tuple[int, int]:
    pair: Any = None
    if isinstance(value, Mapping) and set(value) == {"weight", "input"}:
        pair = value["weight"], value["input"]
    elif isinstance(value, list) and len(value) == 2:
        pair = tuple(value)
    elif isinstance(value, str):
        pair = _short(value)
    elif isinstance(value, int):
        pair = value, value
    if pair is None or any(type(bits) is not int for bits in pair):
        raise ValueError(
            f"Bits {source!r}: layer {layer!r} must have {{weight: 4, input: 8}}, [4, 8], w4a8 or 8, got {value!r}."
        )
    return pair
