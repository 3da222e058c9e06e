"""Bit Fusion: an array of multipliers that split into narrower ones, after Sharma et al., ISCA 2018."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hwmodels.cost import LayerCost, PackedCosts
from hwmodels.sizing import Scale, with_area
from hwmodels.technology import DRAM_PJ_PER_BIT, Sram, core, sram
from hwmodels.workload import Layer, Workload

if TYPE_CHECKING:
    from hwmodels.array import Steps

MappingName = Literal["channel", "im2col", "auto"]
ObjectiveName = Literal["latency", "energy", "edp"]
ModelName = Literal["default", "reference"]

#: Width of a partial sum, and of a word of the output buffer.
ACCUMULATOR_BITS = 32

_PAPER = "Sharma et al., Bit Fusion, ISCA 2018"
_BF_E = f"{_PAPER}; bf_e_conf.ini of its public simulator"


def _about(unit: str, doc: str, source: str) -> dict[str, str]:
    """Metadata of a field, from which the command line prints it."""
    return {"unit": unit, "doc": doc, "source": source}


@dataclass(frozen=True)
class BitFusionEnergies:
    """What one cycle of the array and one bit across each port cost.

    Raises
    ------
    ValueError
        For an energy that is negative or not a number.
    """

    core_pj_per_cycle: float = field(metadata=_about("pJ/cycle", "the whole array, while it computes", "given"))
    weight_buffer_read_pj_per_bit: float = field(metadata=_about("pJ/bit", "reading the weight buffer", "given"))
    weight_buffer_write_pj_per_bit: float = field(metadata=_about("pJ/bit", "writing the weight buffer", "given"))
    input_buffer_read_pj_per_bit: float = field(metadata=_about("pJ/bit", "reading the input buffer", "given"))
    input_buffer_write_pj_per_bit: float = field(metadata=_about("pJ/bit", "writing the input buffer", "given"))
    output_buffer_read_pj_per_bit: float = field(metadata=_about("pJ/bit", "reading the output buffer", "given"))
    output_buffer_write_pj_per_bit: float = field(metadata=_about("pJ/bit", "writing the output buffer", "given"))
    dram_pj_per_bit: float = field(
        default=DRAM_PJ_PER_BIT, metadata=_about("pJ/bit", "moving a bit from or to DRAM", _PAPER)
    )
    leakage_pj_per_cycle: float = field(
        default=0.0, metadata=_about("pJ/cycle", "leakage of the array and the buffers", "given")
    )

    def __post_init__(self) -> None:
        for name, energy in vars(self).items():
            if not (isinstance(energy, (int, float)) and 0 <= energy < math.inf):
                raise ValueError(f"BitFusionEnergies: {name} must be a number of at least 0, got {name}={energy!r}.")

    @property
    def values(self) -> tuple[float, ...]:
        """The energies in the order of the fields."""
        return tuple(vars(self).values())


@dataclass(frozen=True)
class BitFusion:
    """A Bit Fusion chip: an array of Fusion Units, three double-buffered SRAMs and a DRAM interface.

    Rows of the array take input channels, columns give output channels. A Fusion Unit multiplies two operands of
    ``max_bits``, or several pairs of narrower ones at once. The defaults are the paper's 45 nm chip.

    Parameters
    ----------
    rows, cols : int
        Fusion Units along the reduction and along the output channels.
    max_bits, min_bits : int
        Widest operand of a Fusion Unit and the width of its bricks, in bits; powers of two up to 32.
    weight_buffer_bytes, input_buffer_bytes, output_buffer_bytes : int
        Whole buffers; half of each holds the tile in use, half the next.
    dram_bits_per_cycle : int
        Width of the DRAM interface.
    clock_hz : float
    mapping : {"channel", "im2col", "auto"}
        What the reduction lanes take: input channels at one kernel position after another, or input channels and
        kernel positions together. "auto" is the better of them for each layer.
    objective : {"latency", "energy", "edp"}
        What the mapping of each layer minimises; the rest breaks ties. The energy-delay product by default, since the
        last fraction of a percent of cycles can cost half of the energy. The reference model has "latency" alone.
    model : {"default", "reference"}
        "reference" reproduces the paper's public simulator (see `hwmodels.reference`).
    energies : BitFusionEnergies, optional
        None: looked up from the synthesis and SRAM tables of `hwmodels.technology`.

    Raises
    ------
    ValueError
        For a size that is not positive, bits that are no powers of two, an unknown name, or a combination that the
        reference model does not have.

    Examples
    --------
    >>> chip = BitFusion(rows=16, cols=32)
    >>> chip.peak_macs_per_cycle(weight_bits=2, input_bits=8)
    2048
    >>> round(chip.unit_energies.core_pj_per_cycle, 3)
    235.104
    """

    rows: int = field(default=16, metadata=_about("Fusion Units", "along the reduction (input channels)", _BF_E))
    cols: int = field(default=32, metadata=_about("Fusion Units", "along the output channels", _BF_E))
    max_bits: int = field(default=8, metadata=_about("bits", "widest operand of a Fusion Unit", _BF_E))
    min_bits: int = field(default=2, metadata=_about("bits", "operand width of one brick", _BF_E))
    weight_buffer_bytes: int = field(default=65536, metadata=_about("bytes", "weight buffer, both halves", _BF_E))
    input_buffer_bytes: int = field(default=32768, metadata=_about("bytes", "input buffer, both halves", _BF_E))
    output_buffer_bytes: int = field(default=16384, metadata=_about("bytes", "output buffer, both halves", _BF_E))
    dram_bits_per_cycle: int = field(default=192, metadata=_about("bits/cycle", "DRAM interface", _BF_E))
    clock_hz: float = field(default=500e6, metadata=_about("Hz", "clock", _PAPER))
    mapping: MappingName = field(default="auto", metadata=_about("", "channel, im2col or auto", "choice"))
    objective: ObjectiveName = field(default="edp", metadata=_about("", "latency, energy or edp", "choice"))
    model: ModelName = field(default="default", metadata=_about("", "default or reference", "choice"))
    energies: BitFusionEnergies | None = field(
        default=None, metadata=_about("", "unit energies; none: from the tables", "choice")
    )

    def __post_init__(self) -> None:
        for name in (
            "rows", "cols", "max_bits", "min_bits", "weight_buffer_bytes", "input_buffer_bytes",
            "output_buffer_bytes", "dram_bits_per_cycle",
        ):  # fmt: skip
            object.__setattr__(self, name, _positive_integer(name, getattr(self, name)))
        if not (isinstance(self.clock_hz, (int, float)) and 0 < self.clock_hz < math.inf):
            raise ValueError(f"BitFusion: clock_hz must be a positive number, got clock_hz={self.clock_hz!r}.")
        widths = f"got max_bits={self.max_bits}, min_bits={self.min_bits}."
        if self.max_bits & (self.max_bits - 1) or self.min_bits & (self.min_bits - 1):
            raise ValueError(f"BitFusion: max_bits and min_bits must be powers of two, {widths}")
        if not self.min_bits <= self.max_bits <= 32:
            raise ValueError(f"BitFusion: min_bits must be at most max_bits, and max_bits at most 32, {widths}")
        for name, known in (("mapping", MappingName), ("objective", ObjectiveName), ("model", ModelName)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"BitFusion: {name} must be one of {', '.join(get_args(known))}, "
                    f"got {name}={getattr(self, name)!r}."
                )
        if self.energies is not None and not isinstance(self.energies, BitFusionEnergies):
            raise ValueError(
                f"BitFusion: energies must be a BitFusionEnergies or None, got energies={self.energies!r}; "
                "give every price by name, BitFusionEnergies(core_pj_per_cycle=..., ...)."
            )
        if self.model == "reference" and self.mapping == "auto":
            raise ValueError(
                "BitFusion: model='reference' wants an explicit mapping, got mapping='auto'; "
                "choose 'channel' (im2col where a convolution reads the network's input) or 'im2col'."
            )
        if self.model == "reference":
            if self.objective == "energy":
                raise ValueError(
                    "BitFusion: model='reference' minimises cycles, then energy; objective must be 'latency', "
                    "got objective='energy'. Other objectives need model='default'."
                )
            object.__setattr__(self, "objective", "latency")

    @cached_property
    def unit_energies(self) -> BitFusionEnergies:
        """The energies given, or those of this geometry from the synthesis and SRAM tables.

        Raises
        ------
        ValueError
            Where no Fusion Unit of these widths was synthesized.
        """
        return self.energies or _looked_up(self._geometry, float(self.clock_hz))[0]

    @cached_property
    def areas_mm2(self) -> dict[str, float]:
        """Area at 45 nm of the core and of each buffer; keys core, weight_buffer, input_buffer, output_buffer.

        Raises
        ------
        ValueError
            Where no Fusion Unit of these widths was synthesized.
        """
        names = ("core", "weight_buffer", "input_buffer", "output_buffer")
        return dict(zip(names, _looked_up(self._geometry, float(self.clock_hz))[1], strict=True))

    @property
    def area_mm2(self) -> float:
        """Area at 45 nm of the core and the three buffers."""
        return sum(self.areas_mm2.values())

    def with_area(self, area_mm2: float, scale: Scale = "array") -> BitFusion:
        """The largest such array that fits in an area; see `hwmodels.sizing.with_area`."""
        return with_area(self, area_mm2, scale)

    @property
    def handover_bits(self) -> int:
        """The largest activation that can stay on the chip between two layers: half of the input buffer."""
        return 4 * self.input_buffer_bytes

    def macs_per_unit(self, weight_bits: int, input_bits: int) -> int:
        """Multiplications that one Fusion Unit does in a cycle; 0 for an operand wider than ``max_bits``.

        Notes
        -----
        The product over both operands of ``max_bits // setting``. The setting is the narrowest that holds the operand,
        ``min_bits`` times a power of two; the reference model takes ``max(bits, min_bits)`` itself, which differs
        for 16-bit units alone.
        """
        return self._per_operand(weight_bits) * self._per_operand(input_bits)

    def _per_operand(self, bits: int) -> int:
        setting = self.min_bits
        while setting < bits:
            setting *= 2
        return self.max_bits // (max(bits, self.min_bits) if self.model == "reference" else setting)

    def peak_macs_per_cycle(self, weight_bits: int, input_bits: int) -> int:
        """Multiply-accumulates that the array does in a cycle when no Fusion Unit idles."""
        return self.rows * self.cols * self.macs_per_unit(weight_bits, input_bits)

    def cost(self, layer: Layer, resident: Sequence[str] = ()) -> LayerCost:
        """Cost of one layer; ``resident`` names operands (``"input"``, ``"output"``) that stay on the chip.

        Raises
        ------
        UnsupportedLayer, InfeasibleLayer
            Naming the layer and what must hold.
        """
        if self.model == "reference":
            return self.costs(Workload(layer.name, (layer,)), (tuple(resident),))[0]
        from hwmodels import array

        return array.price_layer(self, layer, resident)[0]

    def costs(self, workload: Workload, resident: Sequence[Sequence[str]] | None = None) -> PackedCosts:
        """Cost of every layer of a network, each distinct layer priced once.

        Raises
        ------
        UnsupportedLayer, InfeasibleLayer
            Naming the first such layer.
        """
        # The kernels import numba, which a program that only builds or lists chips need not wait for.
        if self.model == "reference":
            from hwmodels import reference

            return reference.costs(self, workload, resident)
        from hwmodels import array

        return array.price(self, workload, resident)

    @cached_property
    def reference_arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The chip and its unit energies as the reference kernel takes them."""
        shape = (
            self.rows, self.cols, self.max_bits, self.min_bits, 4 * self.weight_buffer_bytes,
            4 * self.input_buffer_bytes, 4 * self.output_buffer_bytes, self.dram_bits_per_cycle,
            self.mapping == "im2col",
        )  # fmt: skip
        return np.array(shape, dtype=np.int64), np.array(self.unit_energies.values[:8], dtype=np.float64)

    @cached_property
    def kernel_chip(self) -> NDArray[np.int64]:
        """The chip as the mapping kernel takes it; a tile may fill half of a buffer."""
        flavours = {"channel": 1, "im2col": 2, "auto": 3}[self.mapping]
        objective = get_args(ObjectiveName).index(self.objective)
        return np.array(
            (
                self.rows, self.cols, 4 * self.weight_buffer_bytes, 4 * self.input_buffer_bytes,
                4 * self.output_buffer_bytes, self.dram_bits_per_cycle, ACCUMULATOR_BITS, 0, flavours, objective, 0, 1,
                self.cols,
            ),
            dtype=np.int64,
        )  # fmt: skip

    @cached_property
    def kernel_price(self) -> NDArray[np.float64]:
        """The unit energies as the mapping kernel takes them."""
        return np.array(self.unit_energies.values[1:], dtype=np.float64)

    def steps(self, weight_bits: NDArray[np.int64], input_bits: NDArray[np.int64]) -> Steps:
        """What a step of the array does at these operand widths.

        Notes
        -----
        An operand runs at the narrowest setting that holds it: ``min_bits`` times a power of two.
        """
        from hwmodels.array import Steps

        products = self._products[np.minimum(weight_bits, 33)] * self._products[np.minimum(input_bits, 33)]
        return Steps(
            products,
            np.ones(len(products), dtype=np.int64),
            np.full(len(products), self.unit_energies.core_pj_per_cycle),
        )

    @cached_property
    def _products(self) -> NDArray[np.int64]:
        """How many operands of each width, 0 to 33 bits, one operand of ``max_bits`` makes room for; 0: too wide."""
        products = np.zeros(34, dtype=np.int64)
        setting = self.max_bits
        while setting >= self.min_bits:
            products[: setting + 1] = self.max_bits // setting
            setting //= 2
        return products

    def refusal(self, layer: Layer) -> str:
        """Why the array cannot run the layer."""
        return (
            f"weight_bits and input_bits must be at most the array's max_bits={self.max_bits}, "
            f"got weight_bits={layer.weight_bits}, input_bits={layer.input_bits}; lower them or choose a wider array."
        )

    @property
    def _geometry(self) -> tuple[int, int, int, int, int, int, int]:
        return (
            self.rows, self.cols, self.max_bits, self.min_bits,
            self.weight_buffer_bytes, self.input_buffer_bytes, self.output_buffer_bytes,
        )  # fmt: skip


def _positive_integer(name: str, value: Any) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise ValueError(f"BitFusion: {name} must be an integer of at least 1, got {name}={value!r}.")
    return count


@lru_cache(maxsize=65536)
def _looked_up(
    geometry: tuple[int, int, int, int, int, int, int], clock_hz: float
) -> tuple[BitFusionEnergies, tuple[float, float, float, float]]:
    """Unit energies and the areas of core, weight, input and output buffer, in mm2.

    Notes
    -----
    The weight buffer has a bank for each Fusion Unit, the input buffer one for each row, the output buffer one for each
    column. A word of weights or inputs feeds every brick of a Fusion Unit: ``max_bits ** 2 / min_bits`` bits. The
    output buffer has a read-write port beside the read and the write port that all have.

    References
    ----------
    Sharma et al., Bit Fusion, ISCA 2018, and its public simulator.
    """
    rows, cols, max_bits, min_bits, weight_bytes, input_bytes, output_bytes = geometry
    array = core(rows, cols, max_bits, min_bits)
    word_bits = max_bits**2 // min_bits
    weight = _bank(weight_bytes, rows * cols, word_bits, 0)
    input = _bank(input_bytes, rows, word_bits, 0)
    output = _bank(output_bytes, cols, ACCUMULATOR_BITS, 1)
    leakage_mw = array.leakage_mw + (
        rows * cols * weight.leakage_mw + rows * input.leakage_mw + cols * output.leakage_mw
    )
    energies = BitFusionEnergies(
        core_pj_per_cycle=array.dynamic_pj_per_cycle,
        weight_buffer_read_pj_per_bit=weight.read_pj / word_bits,
        weight_buffer_write_pj_per_bit=weight.write_pj / word_bits,
        input_buffer_read_pj_per_bit=input.read_pj / word_bits,
        input_buffer_write_pj_per_bit=input.write_pj / word_bits,
        output_buffer_read_pj_per_bit=output.read_pj / ACCUMULATOR_BITS,
        output_buffer_write_pj_per_bit=output.write_pj / ACCUMULATOR_BITS,
        leakage_pj_per_cycle=leakage_mw * 1e9 / clock_hz,
    )
    areas_mm2 = array.area_mm2, rows * cols * weight.area_mm2, rows * input.area_mm2, cols * output.area_mm2
    return energies, areas_mm2


def _bank(size_bytes: int, banks: int, word_bits: int, read_write_ports: int) -> Sram:
    """One of the equal banks of a buffer, of as many words as the buffer needs."""
    words = -(-8 * size_bytes // (banks * word_bits))
    return sram(words * word_bits / 8, word_bits / 8, read_write_ports)


def bf_e() -> BitFusion:
    """The 45 nm chip that the paper compares with Eyeriss (bf_e_conf.ini): 16 x 32 Fusion Units, 112 KiB of SRAM."""
    return BitFusion()


def bf_s() -> BitFusion:
    """The chip that the paper compares with Stripes (bf_s_conf.ini): as bf_e, 384 KiB of SRAM, a wide interface."""
    return BitFusion(
        weight_buffer_bytes=131072, input_buffer_bytes=131072, output_buffer_bytes=131072, dram_bits_per_cycle=4096
    )


def bf_8x8() -> BitFusion:
    """A small chip (conf.ini of the public simulator): 8 x 8 Fusion Units, 336 KiB of SRAM."""
    return BitFusion(
        rows=8, cols=8, weight_buffer_bytes=262144, input_buffer_bytes=65536, output_buffer_bytes=16384,
        dram_bits_per_cycle=128,
    )  # fmt: skip


def bf_e_scaled(factor: int) -> BitFusion:
    """bf_e with ``factor`` times the columns and buffers and a 4096-bit interface, as in the paper's GPU comparison."""
    return BitFusion(
        cols=32 * factor, weight_buffer_bytes=65536 * factor, input_buffer_bytes=32768 * factor,
        output_buffer_bytes=16384 * factor, dram_bits_per_cycle=4096,
    )  # fmt: skip


def bf_e_low_bandwidth() -> BitFusion:
    """bf_e with an eighth of its DRAM interface, so that nearly every layer waits for it; not a published chip."""
    return BitFusion(dram_bits_per_cycle=24)


def bf_e_few_units() -> BitFusion:
    """bf_e with a sixteenth of its Fusion Units, so that hardly any layer waits for DRAM; not a published chip."""
    return BitFusion(rows=8, cols=4)


def bf_e_16bit() -> BitFusion:
    """bf_e of 16-bit Fusion Units, its weight buffer widened with them; not a published chip."""
    return BitFusion(max_bits=16, weight_buffer_bytes=262144)
