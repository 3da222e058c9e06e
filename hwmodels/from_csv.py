"""A table of layers as a `Workload`: one line a layer, columns the fields of `Layer`."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import os
from pathlib import Path
from typing import Any

from hwmodels.graph import NetworkError
from hwmodels.workload import Layer, Workload

REQUIRED = ("name", "in_channels", "out_channels")
COLUMNS = tuple(field.name for field in dataclasses.fields(Layer))
PAIRS = ("in_size", "kernel_size", "stride", "dilation")
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
KINDS = {
    **dict.fromkeys(PAIRS, "a whole number, or two such as 7x5"),
    "padding": "a whole number, or two such as 7x5 or 0:1x0:1",
    "reads_network_input": "true or false",
}


def from_csv(path: str | os.PathLike[str]) -> Workload:
    """The layers of a CSV file as a chain, each reading what the one before it wrote.

    The first line names the columns: ``name``, ``in_channels`` and ``out_channels``, and any other field of
    `Layer`. An empty cell takes the field's default. Along two axes a cell holds ``7`` or ``7x5``, rows first;
    a padding that differs at the two ends of an axis is ``0:1x0:1``, top and bottom by left and right. Lines that
    start with ``#`` are comments.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    Workload
        Named after the file. Where no column says so, the first layer, if a convolution, reads the network's
        input.

    Raises
    ------
    NetworkError
        For a file that is missing or no such table, an unknown or missing column, or a cell or layer that is
        wrong, naming the line, the layer and the column.

    Examples
    --------
    >>> import tempfile
    >>> text = "name,in_channels,out_channels,in_size,kernel_size,op\\nstem,3,8,32x32,3,\\nfc,7200,10,,,linear\\n"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "layers.csv")
    ...     _ = file.write_text(text)
    ...     [layer.macs for layer in from_csv(file).layers]
    [194400, 72000]
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NetworkError(f"from_csv: {path} must be a file that can be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise NetworkError(f"from_csv: {path} must be a text file in UTF-8.") from error
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    rows = list(csv.reader((line for _, line in lines), skipinitialspace=True))
    header = [cell.strip() for cell in rows[0]] if rows else []
    _check_header(path, header)
    if len(rows) < 2:
        raise NetworkError(f"from_csv: {path} must have one line for each layer after its header, got none.")
    layers = [
        _layer(f"from_csv: {path}, line {number}", header, row)
        for (number, _), row in zip(lines[1:], rows[1:], strict=True)
    ]
    if "reads_network_input" not in header and layers[0].op == "conv":
        layers[0] = dataclasses.replace(layers[0], reads_network_input=True)
    try:
        return Workload.sequential(path.stem, layers)
    except ValueError as error:
        raise NetworkError(f"from_csv: {path}: {error}") from error


def to_csv(workload: Workload) -> str:
    """The layers of a workload as the text of a table that `from_csv` reads; columns that say nothing are left out.

    The table holds the layers in order, and not which layer reads which tensor.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(Layer)}
    used = [
        name
        for name in COLUMNS
        if name in (*REQUIRED, "reads_network_input")
        or any(getattr(layer, name) != defaults[name] for layer in workload.layers)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(used)
    writer.writerows([_write(getattr(layer, name)) for name in used] for layer in workload.layers)
    return text.getvalue()


def _check_header(path: Path, header: list[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in REQUIRED if name not in header]
    repeated = sorted({name for name in header if header.count(name) > 1})
    for wrong, names in (("unknown", unknown), ("missing", missing), ("repeated", repeated)):
        if names:
            near = [match for name in names for match in difflib.get_close_matches(name, COLUMNS, n=1)]
            hint = f" (did you mean {', '.join(near)}?)" if near and wrong == "unknown" else ""
            raise NetworkError(
                f"from_csv: the first line of {path} must name its columns: {', '.join(REQUIRED)}, and any of "
                f"{', '.join(name for name in COLUMNS if name not in REQUIRED)}; "
                f"{wrong}: {', '.join(map(repr, names))}{hint}."
            )


def _layer(where: str, header: list[str], row: list[str]) -> Layer:
    if len(row) != len(header):
        raise NetworkError(f"{where}: it must have {len(header)} cells, one for each column, got {len(row)}.")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True) if cell.strip()}
    for name in REQUIRED:
        if name not in cells:
            raise NetworkError(f"{where}, column {name}: it must not be empty.")
    fields: dict[str, Any] = {}
    for name, cell in cells.items():
        try:
            fields[name] = _read(name, cell)
        except ValueError:
            kind = KINDS.get(name, "a whole number")
            raise NetworkError(
                f"{where} (layer {cells['name']!r}), column {name}: it must be {kind}, got {cell!r}."
            ) from None
    try:
        return Layer(**fields)
    except ValueError as error:
        raise NetworkError(f"{where}: {error}") from error


def _read(column: str, cell: str) -> Any:
    """The value of a cell; ValueError where it is none."""
    if column in ("name", "op"):
        return cell
    if column == "reads_network_input":
        if cell.lower() not in TRUTH:
            raise ValueError(cell)
        return TRUTH[cell.lower()]
    if column == "padding":
        axes = [tuple(int(end) for end in axis.split(":")) for axis in cell.lower().split("x")]
        return _both([axis * 2 if len(axis) == 1 else axis for axis in axes])
    if column in PAIRS:
        return _both([int(part) for part in cell.lower().split("x")])
    return int(cell)


def _both(values: list[Any]) -> tuple[Any, Any]:
    """Rows and columns from one value or two."""
    if len(values) not in (1, 2):
        raise ValueError(values)
    return values[0], values[-1]


def _write(value: Any) -> str:
    """A field as the text of a cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "x".join(":".join(map(str, axis)) if isinstance(axis, tuple) else str(axis) for axis in value)
    return str(value)
