"""Arrays sized to an area."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, get_args

Chip = TypeVar("Chip")
Scale = Literal["array", "chip"]
#: Numbers of rows that `shapes` tries.
ROWS = (4, 8, 16, 32, 64, 128)
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

    def fits(rows: int, cols: int) -> bool:
        return bool(_resized(sizes, rows, cols, scale).area_mm2 <= area_mm2)

    def shape(length: int) -> tuple[int, int]:
        return max(1, round(length * sizes.rows / long_side)), max(1, round(length * sizes.cols / long_side))

    if not fits(1, 1):
        raise ValueError(
            f"{whose}: the area must hold an array of at least one unit with its buffers, which takes "
            f"{_resized(sizes, 1, 1, scale).area_mm2:.4g} mm2, got {area_mm2} mm2."
            + (" Smaller buffers, or scale='chip', need less." if scale == "array" else "")
        )
    rows, cols = shape(max(1, _largest(lambda length: fits(*shape(length)))))
    while fits(rows, cols + 1) or fits(rows + 1, cols):
        rows, cols = (rows, cols + 1) if fits(rows, cols + 1) else (rows + 1, cols)
    result: Chip = _resized(sizes, rows, cols, scale)
    return result


def shapes(chip: Chip, area_mm2: float, scale: Scale = "array", rows: Iterable[int] = ROWS) -> tuple[Chip, ...]:
    """The largest arrays of several shapes that fit in an area: that of `with_area`, then one for each of ``rows``.

    Numbers of rows of which not even one column fits are left out; what is not named here is as for `with_area`.
    """

    def widest(count: int) -> int:
        return _largest(lambda cols: bool(_resized(chip, count, cols, scale).area_mm2 <= area_mm2))

    found = [with_area(chip, area_mm2, scale)]
    found += [_resized(chip, count, cols, scale) for count in rows if (cols := widest(count))]
    return tuple(dict.fromkeys(found))


def _resized(chip: Any, rows: int, cols: int, scale: Scale) -> Any:
    """The chip with another array, and with buffers in proportion to it where the whole chip is scaled."""
    fields = {"rows": rows, "cols": cols}
    if scale == "chip":
        units = chip.rows * chip.cols
        fields |= {name: max(1, getattr(chip, name) * rows * cols // units) for name in _BUFFERS}
    return dataclasses.replace(chip, **fields)


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest length that fits, where no shorter one does not; 0 where none does."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
