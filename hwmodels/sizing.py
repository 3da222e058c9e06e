"""Arrays sized to an area."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, TypeVar, get_args

Chip = TypeVar("Chip")
Scale = Literal["array", "chip"]
_BUFFERS = ("weight_buffer_bytes", "input_buffer_bytes", "output_buffer_bytes")


def with_area(chip: Chip, area_mm2: float, scale: Scale = "array") -> Chip:
    """The chip with the largest array that fits in an area.

    Parameters
    ----------
    chip : BitFusion or MacArray
        Its ratio of rows to columns is kept as far as whole numbers allow.
    area_mm2 : float
        Budget for the array and the three buffers, which ``chip.area_mm2`` of the result does not exceed.
    scale : {"array", "chip"}
        "array" changes ``rows`` and ``cols`` alone: the buffers keep their bytes, though the number of their banks
        follows the array, and the DRAM interface its width. "chip" lets the bytes grow and shrink with the number of
        units.

    Returns
    -------
    BitFusion or MacArray
        Neither one more row nor one more column would fit.

    Raises
    ------
    ValueError
        For an unknown ``scale``, or an area that is not a number or does not hold an array of one unit.
    """
    whose = type(chip).__name__
    if scale not in get_args(Scale):
        raise ValueError(f"{whose}: scale must be one of {', '.join(get_args(Scale))}, got scale={scale!r}.")
    if not (isinstance(area_mm2, (int, float)) and 0 < area_mm2 < math.inf):
        raise ValueError(f"{whose}: the area must be a positive number of mm2, got {area_mm2!r}.")
    sizes: Any = chip
    long_side = max(sizes.rows, sizes.cols)

    def resized(rows: int, cols: int) -> Any:
        fields = {"rows": rows, "cols": cols}
        if scale == "chip":
            units = sizes.rows * sizes.cols
            fields |= {name: max(1, getattr(sizes, name) * rows * cols // units) for name in _BUFFERS}
        return dataclasses.replace(sizes, **fields)

    def fits(rows: int, cols: int) -> bool:
        return bool(resized(rows, cols).area_mm2 <= area_mm2)

    def shape(length: int) -> tuple[int, int]:
        return max(1, round(length * sizes.rows / long_side)), max(1, round(length * sizes.cols / long_side))

    if not fits(1, 1):
        raise ValueError(
            f"{whose}: the area must hold an array of at least one unit with its buffers, which takes "
            f"{resized(1, 1).area_mm2:.4g} mm2, got {area_mm2} mm2."
            + (" Smaller buffers, or scale='chip', need less." if scale == "array" else "")
        )
    low, high = 1, 2
    while fits(*shape(high)):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(*shape(middle)) else (low, middle)
    rows, cols = shape(low)
    while fits(rows, cols + 1) or fits(rows + 1, cols):
        rows, cols = (rows, cols + 1) if fits(rows, cols + 1) else (rows + 1, cols)
    result: Chip = resized(rows, cols)
    return result
