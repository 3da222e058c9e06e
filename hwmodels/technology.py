"""What arithmetic, on-chip memory and DRAM cost in energy and area, each figure from a cited table in ``data/``.

Everything is at 45 nm unless it says otherwise; `energy_scale` leads to other nodes and voltages.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"

#: Energy per DRAM bit that the published Bit Fusion results use; `dram_figures` has the spread of other sources.
DRAM_PJ_PER_BIT = 15.0


def read_table(name: str) -> list[dict[str, str]]:
    """Rows of ``data/<name>.csv`` as text, comment lines left out."""
    with open(DATA / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


# ---------------------------------------------------------------------------------------------------------- SRAM


@dataclass(frozen=True)
class Sram:
    """One SRAM bank at 45 nm: energies of one word-wide access, leakage, area and access time."""

    read_pj: float
    write_pj: float
    leakage_mw: float
    area_mm2: float
    access_ns: float


class SramModel:
    r"""An `Sram` for any geometry, from a table of known banks.

    Parameters
    ----------
    geometry : ndarray, shape (n_banks, 3)
        Bank bytes, word bytes and read-write ports of the known banks.
    figures : ndarray, shape (n_banks, 5)
        The fields of `Sram` of each.

    Notes
    -----
    Each figure is a power law of the geometry, fitted by least squares to the logarithms, times a correction:

    .. math:: E = c \cdot \mathrm{bank}^\alpha \, \mathrm{word}^\beta \, \gamma^{\mathrm{ports}} \cdot e^{r}

    where :math:`r` is the residual of the fit at the known banks, interpolated linearly in the logarithms of bank
    and word, and kept as it is beyond the last known bank. So a known bank gives its own row; between
    known banks the figure lies between theirs; outside the table it follows the power law.

    Relative error, median and largest, at the 72 banks of ``data/sram.csv``; "left out" is the error at a bank that
    was taken out of the table before the fit, the ends of the table included:

    ============  ================  ================
    figure        power law         left out
    ============  ================  ================
    read          15.7 %, 60.1 %     6.3 %, 30.6 %
    write          8.6 %, 30.0 %     6.9 %, 23.4 %
    leakage        2.9 %, 11.9 %     2.7 %, 12.1 %
    area          12.8 %, 49.2 %     5.6 %, 32.4 %
    access time   11.7 %, 39.1 %     6.8 %, 22.1 %
    ============  ================  ================
    """

    def __init__(self, geometry: NDArray[np.float64], figures: NDArray[np.float64]) -> None:
        x, y = _sram_coordinates(geometry), np.log(figures)
        self.power_law: NDArray[Any] = np.linalg.lstsq(x, y, rcond=None)[0]
        residual = y - x @ self.power_law
        self.known = {tuple(key): Sram(*row) for key, row in zip(geometry.tolist(), figures.tolist(), strict=True)}
        #: ports -> log2 word -> (log2 banks, residuals at them), each ascending
        self.residuals: dict[float, dict[float, tuple[list[float], list[list[float]]]]] = {}
        for i in np.lexsort((x[:, 1], x[:, 2], x[:, 3])):
            _, bank, word, ports = x[i].tolist()
            banks, rows = self.residuals.setdefault(ports, {}).setdefault(word, ([], []))
            banks.append(bank)
            rows.append(residual[i].tolist())

    def fitted(self, bank_bytes: float, word_bytes: float, read_write_ports: float = 0) -> Sram:
        """The power law alone, without the correction from the known banks."""
        x = _sram_coordinates(np.array([[bank_bytes, word_bytes, read_write_ports]]))
        return Sram(*np.exp(x @ self.power_law)[0].tolist())

    def __call__(self, bank_bytes: float, word_bytes: float, read_write_ports: int = 0) -> Sram:
        """The bank's figures; the known row where there is one."""
        known = self.known.get((bank_bytes, word_bytes, read_write_ports))
        if known is not None:
            return known
        bank, word = math.log2(bank_bytes), math.log2(word_bytes)
        ports = min(self.residuals, key=lambda known_ports: abs(known_ports - read_write_ports))
        by_word = self.residuals[ports]
        at_words = [_interpolate(bank, banks, rows) for banks, rows in by_word.values()]
        residual = _interpolate(word, list(by_word), at_words)
        law = self.power_law.tolist()
        x = (1.0, bank, word, float(read_write_ports))
        return Sram(*(math.exp(sum(x[j] * law[j][i] for j in range(4)) + residual[i]) for i in range(len(residual))))


def _sram_coordinates(geometry: NDArray[np.float64]) -> NDArray[np.float64]:
    """One, log2 of bank, log2 of word, ports; shape (n, 4)."""
    return np.column_stack((np.ones(len(geometry)), np.log2(geometry[:, :2]), geometry[:, 2]))


def _interpolate(x: float, knots: Sequence[float], rows: Sequence[Sequence[float]]) -> Sequence[float]:
    """Rows interpolated linearly at x, constant outside the knots."""
    right = bisect_right(knots, x)
    if right == 0 or right == len(knots):
        return rows[max(right - 1, 0)]
    share = (x - knots[right - 1]) / (knots[right] - knots[right - 1])
    return [low + share * (high - low) for low, high in zip(rows[right - 1], rows[right], strict=True)]


def sram_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The known banks of ``data/sram.csv``.

    Returns
    -------
    geometry : ndarray, shape (72, 3)
        Bank bytes, word bytes, read-write ports.
    figures : ndarray, shape (72, 5)
        The fields of `Sram`. Leakage is that of the cells and of the gates together.
    """
    rows = [{key: float(value) for key, value in row.items()} for row in read_table("sram")]
    geometry = [[row[key] for key in ("bank_bytes", "word_bytes", "read_write_ports")] for row in rows]
    figures = [
        [
            row["read_nj"] * 1e3, row["write_nj"] * 1e3, row["leakage_mw"] + row["gate_leakage_mw"],
            row["area_mm2"], row["access_ns"],
        ]
        for row in rows
    ]  # fmt: skip
    return np.array(geometry), np.array(figures)


@cache
def _sram_model() -> SramModel:
    return SramModel(*sram_table())


@lru_cache(maxsize=65536)
def sram(bank_bytes: float, word_bytes: float, read_write_ports: int = 0) -> Sram:
    """Energy, leakage, area and access time of one SRAM bank at 45 nm.

    Parameters
    ----------
    bank_bytes, word_bytes : float
        Size of the bank and of the word that one access moves.
    read_write_ports : int
        Ports beside the exclusive read and the exclusive write port that every bank has.

    Returns
    -------
    Sram
        The row of ``data/sram.csv`` (CACTI 7) where there is one, otherwise `SramModel`, which states its error.

    Raises
    ------
    ValueError
        For a size that is not positive, or a word wider than its bank.

    Examples
    --------
    >>> sram(128, 4).read_pj
    0.683701
    >>> sram(128, 4).read_pj < sram(200, 4).read_pj < sram(256, 4).read_pj
    True
    """
    if not (bank_bytes > 0 and word_bytes > 0 and bank_bytes >= word_bytes and read_write_ports >= 0):
        raise ValueError(
            "sram: bank_bytes must be at least word_bytes, and both positive, with read_write_ports at least 0; "
            f"got bank_bytes={bank_bytes}, word_bytes={word_bytes}, read_write_ports={read_write_ports}."
        )
    return _sram_model()(bank_bytes, word_bytes, read_write_ports)


# ---------------------------------------------------------------------------------------------------------- core


@dataclass(frozen=True)
class Core:
    """A synthesized array of multipliers at 45 nm, accumulators and pipeline registers included."""

    dynamic_pj_per_cycle: float
    leakage_mw: float
    area_mm2: float


@cache
def _core_table() -> dict[tuple[int, int, int, int], Core]:
    table = {}
    for row in read_table("core"):
        key = (int(row["max_bits"]), int(row["min_bits"]), int(row["rows"]), int(row["cols"]))
        table[key] = Core(
            float(row["dynamic_nw"]) / float(row["frequency_hz"]) * 1e3,
            float(row["leakage_nw"]) * 1e-6,
            float(row["area_um2"]) * 1e-6,
        )
    return table


def core_widths() -> tuple[tuple[int, int], ...]:
    """The pairs (max_bits, min_bits) of which `core` knows the price; equal ones are fixed-width multipliers."""
    return tuple(sorted({(max_bits, min_bits) for max_bits, min_bits, _, _ in _core_table()}))


@lru_cache(maxsize=65536)
def core(rows: int, cols: int, max_bits: int, min_bits: int) -> Core:
    """Energy per cycle, leakage and area of an array of rows x cols multipliers at 45 nm.

    Parameters
    ----------
    rows, cols : int
    max_bits, min_bits : int
        Widest operand of one multiplier and the width down to which it splits; equal for a fixed-width array.

    Returns
    -------
    Core
        The row of ``data/core.csv`` of that shape; otherwise the 4x4 row scaled by rows x cols / 16, as the public
        Bit Fusion simulator does.

    Raises
    ------
    ValueError
        For a shape that is not positive, or widths that were not synthesized.

    Examples
    --------
    >>> round(core(16, 32, max_bits=8, min_bits=2).dynamic_pj_per_cycle, 9)
    235.104
    """
    if rows < 1 or cols < 1:
        raise ValueError(f"core: rows and cols must be at least 1, got rows={rows}, cols={cols}.")
    table = _core_table()
    exact = table.get((max_bits, min_bits, rows, cols))
    if exact is not None:
        return exact
    unit = table.get((max_bits, min_bits, 4, 4))
    if unit is None:
        known = ", ".join(f"{widest}/{narrowest}" for widest, narrowest in core_widths())
        raise ValueError(
            f"core: max_bits/min_bits must be one of the synthesized multipliers, {known}; got {max_bits}/{min_bits}."
        )
    count = rows * cols
    return Core(unit.dynamic_pj_per_cycle * count / 16, unit.leakage_mw * count / 16, unit.area_mm2 * count / 16)


# ------------------------------------------------------------------------------------- arithmetic, DRAM, scaling


@cache
def arithmetic_pj() -> dict[str, float]:
    """Energy of one operation at 45 nm and 0.9 V by name, such as ``fp16_mul`` (Horowitz, ISSCC 2014)."""
    return {row["operation"]: float(row["energy_pj"]) for row in read_table("arithmetic")}


@cache
def _polynomials() -> dict[str, tuple[float, float]]:
    return {
        row["operation"]: (float(row["quadratic_pj"]), float(row["linear_pj"]))
        for row in read_table("arithmetic_polynomials")
    }


def integer_pj(operation: str, bits: float) -> float:
    """Energy of an integer ``"mul"`` or ``"add"`` of two operands of ``bits`` bits at 45 nm, in pJ.

    Notes
    -----
    Polynomials in the bitwidth that QKeras fits to Horowitz, ISSCC 2014.

    Examples
    --------
    >>> round(integer_pj("mul", 8), 4), integer_pj("add", 32)
    (0.2, 0.1)
    """
    quadratic, linear = _polynomials()[operation]
    return quadratic * bits**2 + linear * bits


@dataclass(frozen=True)
class DramFigure:
    """Published energy of one DRAM bit, as a range, and who says so."""

    low_pj_per_bit: float
    high_pj_per_bit: float
    source: str


@cache
def dram_figures() -> dict[str, DramFigure]:
    """Published energies per DRAM bit by name; they differ by 3.5x and more."""
    return {
        row["name"]: DramFigure(float(row["low_pj_per_bit"]), float(row["high_pj_per_bit"]), row["source"])
        for row in read_table("dram")
    }


@cache
def _scaling() -> dict[float, tuple[float, float, float]]:
    return {float(row["node_nm"]): (float(row["a"]), float(row["b"]), float(row["c"])) for row in read_table("scaling")}


def energy_factor(node_nm: float, voltage_v: float) -> float:
    r"""Energy of an operation in a technology, relative; only ratios mean something.

    Raises
    ------
    ValueError
        For a node without coefficients, or a voltage that is not positive.

    Notes
    -----
    .. math:: E(V) = a V^2 + b V + c

    with coefficients per node.

    References
    ----------
    Stillmaker and Baas, Scaling equations for the accurate prediction of CMOS device performance from 180 nm to 7 nm,
    Integration 58, 2017.

    Examples
    --------
    >>> round(energy_factor(65, 1.3), 3)
    2.604
    """
    coefficients = _scaling().get(node_nm)
    if coefficients is None:
        known = ", ".join(f"{node:g}" for node in _scaling())
        raise ValueError(f"energy_factor: node_nm must be one of {known}, got node_nm={node_nm}.")
    if voltage_v <= 0:
        raise ValueError(f"energy_factor: voltage_v must be positive, got voltage_v={voltage_v}.")
    a, b, c = coefficients
    return a * voltage_v**2 + b * voltage_v + c


def energy_scale(from_nm: float, from_v: float, to_nm: float, to_v: float) -> float:
    """By how much an energy changes from one node and voltage to another (see `energy_factor`).

    Examples
    --------
    >>> energy_scale(45, 0.9, 45, 0.9)
    1.0
    """
    return energy_factor(to_nm, to_v) / energy_factor(from_nm, from_v)


def area_scale(from_nm: float, to_nm: float) -> float:
    """By how much an area changes between nodes: the square of their ratio.

    Notes
    -----
    The rule by which the Bit Fusion paper brings Eyeriss from 65 to 45 nm.
    """
    return (to_nm / from_nm) ** 2
