"""Tables of measured layer costs as files."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwmodels.lookup import Measurement
from hwmodels.workload import Layer

SUFFIXES = (".csv", ".json", ".npz")
_SECONDS = {"latency_s": 1.0, "latency_ms": 1e-3, "latency_us": 1e-6, "latency_ns": 1e-9}
_PICOJOULES = {"energy_pj": 1.0, "energy_nj": 1e3, "energy_uj": 1e6, "energy_mj": 1e9, "energy_j": 1e12}
_BITS = ("weight_bits", "input_bits")
#: Columns that describe a shape; a plain 1x1 convolution of one pixel needs the channels alone.
_SHAPE = (
    "op", "batch", "in_channels", "out_channels", "groups", "in_height", "in_width", "kernel_height", "kernel_width",
    "stride_height", "stride_width", "dilation_height", "dilation_width",
    "pad_top", "pad_bottom", "pad_left", "pad_right",
)  # fmt: skip
_NEEDED_SHAPE = ("in_channels", "out_channels")


def read(path: Path) -> tuple[Measurement, ...]:
    """The measurements in a file; see `LookupTable.from_file`."""
    whose = f"Table {str(path)!r}"
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{whose}: the file's name must end in {', '.join(SUFFIXES)}.")
    try:
        rows = list(_READERS[path.suffix.lower()](path))
    except OSError as error:
        raise ValueError(f"{whose}: the file must be readable: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError, EOFError, csv.Error, zipfile.BadZipFile) as error:
        raise ValueError(f"{whose}: the file must be a table of measurements: {error}") from None
    if not rows:
        raise ValueError(f"{whose}: it must have at least one measurement, got none.")
    known = {"layer", *_BITS, *_SHAPE, *_SECONDS, *_PICOJOULES}
    unknown = sorted(set(rows[0]) - known)
    if unknown:
        raise ValueError(
            f"{whose}: its columns must be of {', '.join(sorted(known))}; got {', '.join(map(str, unknown))}."
        )
    return tuple(_measurement(f"{whose}, entry {i}", row) for i, row in enumerate(rows, start=1))


def write(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write measurements; see `LookupTable.to_file`."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"LookupTable: the file's name must end in {', '.join(SUFFIXES)}, got {str(path)!r}.")
    rows = [_row(entry) for entry in measurements]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix.lower() == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return
    lists = {name: [row.get(name, "") for row in rows] for name in columns}
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps(lists, indent=1), encoding="utf-8")
    else:
        arrays: dict[str, Any] = {name: np.array(_uniform(column)) for name, column in lists.items()}
        np.savez_compressed(path, **arrays)


def _row(entry: Measurement) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": entry.key} if isinstance(entry.key, str) else _shape_columns(entry.key)
    row |= {"weight_bits": entry.weight_bits, "input_bits": entry.input_bits, "latency_s": entry.latency_s}
    return row if entry.energy_pj is None else row | {"energy_pj": entry.energy_pj}


def _shape_columns(layer: Layer) -> dict[str, Any]:
    (top, bottom), (left, right) = layer.pads
    return {
        "op": layer.op, "batch": layer.batch, "in_channels": layer.in_channels, "out_channels": layer.out_channels,
        "groups": layer.groups, "in_height": layer.in_size[0], "in_width": layer.in_size[1],
        "kernel_height": layer.kernel_size[0], "kernel_width": layer.kernel_size[1],
        "stride_height": layer.stride[0], "stride_width": layer.stride[1],
        "dilation_height": layer.dilation[0], "dilation_width": layer.dilation[1],
        "pad_top": top, "pad_bottom": bottom, "pad_left": left, "pad_right": right,
    }  # fmt: skip


def _uniform(column: list[Any]) -> list[Any]:
    """A column as one type: text where an entry is missing."""
    return [str(value) for value in column] if "" in column else column


def _measurement(whose: str, row: Mapping[str, Any]) -> Measurement:
    given = {name: value for name, value in row.items() if value not in ("", None)}
    latencies, energies = [n for n in given if n in _SECONDS], [n for n in given if n in _PICOJOULES]
    if len(latencies) != 1 or len(energies) > 1:
        raise ValueError(
            f"{whose}: it must have one of {', '.join(_SECONDS)} and at most one of {', '.join(_PICOJOULES)}, "
            f"got {', '.join([*latencies, *energies]) or 'none'}."
        )
    bits = [_integer(whose, name, given.get(name)) for name in _BITS]
    latency_s = _number(whose, latencies[0], given) * _SECONDS[latencies[0]]
    energy_pj = _number(whose, energies[0], given) * _PICOJOULES[energies[0]] if energies else None
    try:
        return Measurement(_key(whose, given), bits[0], bits[1], latency_s, energy_pj)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(whose) else f"{whose}: {error}") from None


def _key(whose: str, given: Mapping[str, Any]) -> str | Layer:
    if "layer" in given:
        return str(given["layer"])
    missing = [name for name in _NEEDED_SHAPE if name not in given]
    if missing:
        raise ValueError(f"{whose}: it must name a layer or have a shape; it lacks layer or {', '.join(missing)}.")
    size = {name: _integer(whose, name, given[name]) for name in _SHAPE if name != "op" and name in given}

    def pair(name: str, default: int) -> tuple[int, int]:
        return size.get(f"{name}_height", default), size.get(f"{name}_width", default)

    return Layer(
        whose, size["in_channels"], size["out_channels"], pair("in", 1), pair("kernel", 1), pair("stride", 1),
        ((size.get("pad_top", 0), size.get("pad_bottom", 0)), (size.get("pad_left", 0), size.get("pad_right", 0))),
        pair("dilation", 1), size.get("groups", 1), size.get("batch", 1), op=str(given.get("op", "conv")),  # type: ignore[arg-type]
    )  # fmt: skip


def _integer(whose: str, name: str, value: Any) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"{whose}: {name} must be an integer, got {value!r}.")
    return int(number)


def _number(whose: str, name: str, given: Mapping[str, Any]) -> float:
    try:
        return float(given[name])
    except (TypeError, ValueError):
        raise ValueError(f"{whose}: {name} must be a number, got {given[name]!r}.") from None


def _read_csv(path: Path) -> Iterable[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            if None in row or None in row.values():
                raise ValueError(
                    f"a line has more or fewer values than the header: {', '.join(map(str, row.values()))}."
                )
            yield row


def _read_json(path: Path) -> Iterator[dict[str, Any]]:
    return _from_columns(json.loads(path.read_text(encoding="utf-8")))


def _read_npz(path: Path) -> Iterator[dict[str, Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return _from_columns({name: arrays[name].tolist() for name in arrays.files})


def _from_columns(columns: Any) -> Iterator[dict[str, Any]]:
    """Rows of a mapping from column to list, or of a grid: its ``axes`` and an array over them for each figure."""
    if not isinstance(columns, Mapping):
        raise TypeError(f"it must be a mapping from column to list, got {type(columns).__name__}.")
    columns = dict(columns)
    axes = columns.pop("axes", None)
    if axes is None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(", ".join(f"{name} has {length}" for name, length in lengths.items()) + ".")
        return iter([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    ticks = [columns.pop(axis) for axis in axes]
    grids = {name: np.asarray(grid) for name, grid in columns.items()}
    shape = tuple(len(tick) for tick in ticks)
    for name, grid in grids.items():
        if grid.shape != shape:
            raise ValueError(f"{name} must have the shape {shape} of its axes {', '.join(axes)}, got {grid.shape}.")
    return iter(
        [
            {
                **{axis: tick[i] for axis, tick, i in zip(axes, ticks, at, strict=True)},
                **{name: grid[at].item() for name, grid in grids.items()},
            }
            for at in np.ndindex(*shape)
        ]
    )


_READERS = {".csv": _read_csv, ".json": _read_json, ".npz": _read_npz}
