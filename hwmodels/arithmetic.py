"""What the multipliers and adders of a MAC array cost: fixed-point, floating-point and bit-serial, at 45 nm."""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

from hwmodels.technology import Core, arithmetic_pj, core, read_table

Arithmetic = Literal["fixed", "float", "activation-serial", "fully-serial"]

#: Widths of a unit for which there is a published price.
NATIVE_BITS: dict[str, tuple[int, ...]] = {
    "fixed": (2, 4, 8, 16),
    "float": (16, 32),
    "activation-serial": (2, 4, 8, 16),
    "fully-serial": (2, 4, 8, 16),
}


class SerialRatios(NamedTuple):
    """A bit-serial accelerator relative to the bit-parallel one of equal peak at ``native_bits``."""

    speedup: float
    energy_efficiency: float
    area: float

    @property
    def power(self) -> float:
        """Average power: what is faster by more than it saves energy draws more."""
        return self.speedup / self.energy_efficiency


@cache
def serial_ratios() -> dict[str, SerialRatios]:
    """The published ratios by arithmetic (``data/serial.csv``)."""
    return {
        row["arithmetic"]: SerialRatios(*(float(row[name]) for name in SerialRatios._fields))
        for row in read_table("serial")
    }


@cache
def arithmetic_um2() -> dict[str, float]:
    """Area of one operator at 45 nm by name, such as ``fp16_mul`` (``data/arithmetic_area.csv``)."""
    return {row["operation"]: float(row["area_um2"]) for row in read_table("arithmetic_area")}


def array_core(
    arithmetic: Arithmetic, native_bits: int, rows: int, cols: int, windows: int = 1, systolic: bool = False
) -> Core:
    """Energy per cycle, leakage and area of the arithmetic of an array at 45 nm.

    Parameters
    ----------
    arithmetic : {"fixed", "float", "activation-serial", "fully-serial"}
    native_bits : int
        Operand width of a unit; of a serial one, of the bit-parallel unit that it stands in for.
    rows, cols, windows : int
        Their product are the units: multipliers, or the bit lanes of a serial array.
    systolic : bool
        Every unit adds to a partial sum of its own, or passes one on (weight-, output- and input-stationary). Otherwise
        the products of a column and window go through adders to one accumulator.

    Returns
    -------
    Core

    Raises
    ------
    ValueError
        For an arithmetic or a width without a published price.

    Notes
    -----
    *fixed*: the synthesized array of the Bit Fusion table of that shape, or its 4x4 row per unit, as `core` prices Bit
    Fusion; a systolic array takes the 1x1 row, which has an accumulator of its own.

    *float*: multiplication and addition by Horowitz (ISSCC 2014), the sum in 32 bits; area by
    ``data/arithmetic_area.csv``. They leave pipeline registers out. Leakage is that of 16-bit fixed-point units
    of the same area.

    *serial*: ``rows cols windows`` lanes do the work of as many bit-parallel units divided by ``native_bits``
    (activation-serial) or its square (fully-serial), at the published ratios of power and area to those
    units. The ratios are those of whole chips at 16 bits; other widths extrapolate them.

    Examples
    --------
    >>> eight_bits = array_core("fixed", 8, rows=16, cols=32)
    >>> round(eight_bits.dynamic_pj_per_cycle / (16 * 32), 4)
    0.2034
    >>> round(array_core("float", 32, rows=1, cols=1).dynamic_pj_per_cycle, 4)
    4.6
    """
    if native_bits not in NATIVE_BITS.get(arithmetic, ()):
        known = "; ".join(f"{name} of {', '.join(map(str, widths))} bits" for name, widths in NATIVE_BITS.items())
        raise ValueError(f"array_core: there are prices for {known}; got {arithmetic} of {native_bits} bits.")
    units = rows * cols * windows
    if arithmetic == "float":
        mul, add = f"fp{native_bits}_mul", "fp32_add"
        area_mm2 = units * (arithmetic_um2()[mul] + arithmetic_um2()[add]) * 1e-6
        silicon = core(4, 4, 16, 16)
        leakage_mw = silicon.leakage_mw / silicon.area_mm2 * area_mm2
        return Core(units * (arithmetic_pj()[mul] + arithmetic_pj()[add]), leakage_mw, area_mm2)
    if arithmetic == "fixed" and not systolic:
        return core(rows, cols * windows, native_bits, native_bits)
    one = core(1, 1, native_bits, native_bits) if systolic else _scaled(core(4, 4, native_bits, native_bits), 1 / 16)
    if arithmetic == "fixed":
        return _scaled(one, units)
    ratios = serial_ratios()[arithmetic]
    equals = units / native_bits ** (1 if arithmetic == "activation-serial" else 2)
    return Core(
        one.dynamic_pj_per_cycle * equals * ratios.power,
        one.leakage_mw * equals * ratios.area,
        one.area_mm2 * equals * ratios.area,
    )


def _scaled(unit: Core, times: float) -> Core:
    return Core(unit.dynamic_pj_per_cycle * times, unit.leakage_mw * times, unit.area_mm2 * times)
