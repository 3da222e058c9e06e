"""MAC arrays that do not fuse: fixed-point, floating-point and bit-serial, on the memory system of Bit Fusion."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hwmodels.arithmetic import NATIVE_BITS, Arithmetic, array_core
from hwmodels.bitfusion import ACCUMULATOR_BITS, BitFusionEnergies, MappingName, ObjectiveName
from hwmodels.cost import LayerCost, PackedCosts
from hwmodels.sizing import Scale, with_area
from hwmodels.technology import Sram, area_scale, energy_scale, sram
from hwmodels.workload import Layer, Workload

if TYPE_CHECKING:
    from hwmodels.array import Steps

DataflowName = Literal["no-local-reuse", "weight-stationary", "output-stationary", "input-stationary"]
TimingName = Literal["overlapped", "scalesim"]
PackingName = Literal["all", "dram", "none"]

#: Word of every SRAM bank, the narrowest of the SRAM table and that of the Bit Fusion chips.
WORD_BITS = 32
#: Technology of the tables.
TABLE_NODE_NM, TABLE_VOLTAGE_V = 45.0, 0.9

_BF_E = "as Bit Fusion's bf_e_conf.ini"


def _about(unit: str, doc: str, source: str = "choice") -> dict[str, str]:
    return {"unit": unit, "doc": doc, "source": source}


@dataclass(frozen=True)
class MacArray:
    """A dense or bit-serial MAC array with three double-buffered SRAMs and a DRAM interface.

    It has the memory system, the technology tables and the mapping search of `BitFusion`. ``docs/mac_arrays.md`` says
    what each dataflow moves.

    Parameters
    ----------
    rows, cols : int
        Units along the rows and columns. Rows take the reduction (output-stationary: output pixels), columns output
        channels (input-stationary: output pixels).
    windows : int
        Output pixels that are computed at once and share each weight; the units are ``rows * cols * windows``. More
        than one needs the dataflow "no-local-reuse". For a layer of few pixels the windows take other output channels,
        as fast as the weight buffer feeds them.
    arithmetic : {"fixed", "float", "activation-serial", "fully-serial"}
        A serial unit is a lane of one bit: of the input ("activation-serial", after Stripes), or of both operands
        ("fully-serial", after Loom).
    native_bits : int
        Operand width of a unit. A narrower operand runs at it, a wider one in several passes. Of a serial array, the
        width at which it equals the bit-parallel one, and of its parallel operand.
    dataflow : {"no-local-reuse", "weight-stationary", "output-stationary", "input-stationary"}
        Which operand waits in the array. "no-local-reuse" is that of Bit Fusion: products are summed down each column.
    timing : {"overlapped", "scalesim"}
        "overlapped": loading and draining of a fold hide behind the folds around it. "scalesim": one fold after
        another, the cycles of SCALE-Sim (`hwmodels.systolic`).
    packing : {"all", "dram", "none"}
        Where operands that do not fill a multiple of ``native_bits`` lie at their own width: in DRAM and buffers, in
        DRAM alone, or nowhere. An operand that is processed bit by bit lies at its own width unless "none".
    weight_buffer_bytes, input_buffer_bytes, output_buffer_bytes : int
        Whole buffers; half of each holds the tile in use, half the next.
    dram_bits_per_cycle : int
    clock_hz : float
    mapping : {"channel", "im2col", "auto"}
        What the reduction lanes take, as for `BitFusion`.
    objective : {"latency", "energy", "edp"}
        What the mapping of each layer minimises.
    node_nm, voltage_v : float
        Technology to which the energies and areas of the chip are brought from that of the tables, by `energy_scale`
        and `area_scale` of `hwmodels.technology`. The clock and the DRAM stay.
    energies : BitFusionEnergies, optional
        None: looked up from the tables of `hwmodels.arithmetic` and `hwmodels.technology`.

    Raises
    ------
    ValueError
        For a size that is not positive, an unknown name, a width or node without published figures, or a
        combination that has no meaning.

    Examples
    --------
    >>> eight_bits = MacArray(native_bits=8)
    >>> eight_bits.peak_macs_per_cycle(weight_bits=2, input_bits=8), eight_bits.peak_macs_per_cycle(16, 8)
    (512.0, 256.0)
    >>> eight_bits.with_area(2.0).area_mm2 <= 2.0
    True
    """

    rows: int = field(default=16, metadata=_about("units", "along the reduction", _BF_E))
    cols: int = field(default=32, metadata=_about("units", "along the output channels", _BF_E))
    windows: int = field(default=1, metadata=_about("output pixels", "computed at once, sharing each weight"))
    arithmetic: Arithmetic = field(
        default="fixed", metadata=_about("", "fixed, float, activation-serial or fully-serial")
    )
    native_bits: int = field(default=8, metadata=_about("bits", "operand width of a unit"))
    dataflow: DataflowName = field(
        default="no-local-reuse",
        metadata=_about("", "no-local-reuse, weight-stationary, output-stationary or input-stationary"),
    )
    timing: TimingName = field(default="overlapped", metadata=_about("", "overlapped or scalesim"))
    packing: PackingName = field(default="dram", metadata=_about("", "narrow operands packed in: all, dram or none"))
    weight_buffer_bytes: int = field(default=65536, metadata=_about("bytes", "weight buffer, both halves", _BF_E))
    input_buffer_bytes: int = field(default=32768, metadata=_about("bytes", "input buffer, both halves", _BF_E))
    output_buffer_bytes: int = field(default=16384, metadata=_about("bytes", "output buffer, both halves", _BF_E))
    dram_bits_per_cycle: int = field(default=192, metadata=_about("bits/cycle", "DRAM interface", _BF_E))
    clock_hz: float = field(default=500e6, metadata=_about("Hz", "clock", "that of the synthesis results"))
    mapping: MappingName = field(default="auto", metadata=_about("", "channel, im2col or auto"))
    objective: ObjectiveName = field(default="edp", metadata=_about("", "latency, energy or edp"))
    node_nm: float = field(default=TABLE_NODE_NM, metadata=_about("nm", "technology node", "that of the tables"))
    voltage_v: float = field(default=TABLE_VOLTAGE_V, metadata=_about("V", "supply voltage", "Horowitz, ISSCC 2014"))
    energies: BitFusionEnergies | None = field(
        default=None, metadata=_about("", "unit energies; none: from the tables")
    )

    def __post_init__(self) -> None:
        for name in (
            "rows", "cols", "windows", "native_bits", "weight_buffer_bytes", "input_buffer_bytes",
            "output_buffer_bytes", "dram_bits_per_cycle",
        ):  # fmt: skip
            object.__setattr__(self, name, _positive_integer(name, getattr(self, name)))
        for name in ("clock_hz", "node_nm", "voltage_v"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ValueError(f"MacArray: {name} must be a positive number, got {name}={value!r}.")
        for name, known in (
            ("arithmetic", Arithmetic), ("dataflow", DataflowName), ("timing", TimingName), ("packing", PackingName),
            ("mapping", MappingName), ("objective", ObjectiveName),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"MacArray: {name} must be one of {', '.join(get_args(known))}, got {name}={getattr(self, name)!r}."
                )
        if self.native_bits not in NATIVE_BITS[self.arithmetic]:
            raise ValueError(
                f"MacArray: native_bits must be one of {', '.join(map(str, NATIVE_BITS[self.arithmetic]))} for "
                f"arithmetic={self.arithmetic!r}, got native_bits={self.native_bits}."
            )
        if self.windows > 1 and self.systolic:
            raise ValueError(
                f"MacArray: windows must be 1 for dataflow={self.dataflow!r}, got windows={self.windows}; "
                "several need 'no-local-reuse'."
            )
        if self.timing == "scalesim" and not (self.systolic and self.arithmetic in ("fixed", "float")):
            raise ValueError(
                "MacArray: timing='scalesim' is that of a systolic array: it wants a weight-, output- or "
                "input-stationary dataflow and fixed or float arithmetic, "
                f"got dataflow={self.dataflow!r}, arithmetic={self.arithmetic!r}."
            )
        energy_scale(TABLE_NODE_NM, TABLE_VOLTAGE_V, self.node_nm, self.voltage_v)  # a node without coefficients raises

    @property
    def systolic(self) -> bool:
        """Whether an operand waits in the array."""
        return self.dataflow != "no-local-reuse"

    @cached_property
    def unit_energies(self) -> BitFusionEnergies:
        """The energies given, or those of this geometry from the tables."""
        return self.energies or _looked_up(self._geometry)[0]

    @cached_property
    def areas_mm2(self) -> dict[str, float]:
        """Area of the core and of each buffer; keys core, weight_buffer, input_buffer, output_buffer."""
        names = ("core", "weight_buffer", "input_buffer", "output_buffer")
        return dict(zip(names, _looked_up(self._geometry)[1], strict=True))

    @property
    def area_mm2(self) -> float:
        """Area of the core and the three buffers."""
        return sum(self.areas_mm2.values())

    def with_area(self, area_mm2: float, scale: Scale = "array") -> MacArray:
        """The largest such array that fits in an area; see `hwmodels.sizing.with_area`."""
        return with_area(self, area_mm2, scale)

    @property
    def handover_bits(self) -> int:
        """The largest activation that can stay on the chip between two layers: half of the input buffer."""
        return 4 * self.input_buffer_bytes

    def slices(self, bits: int) -> int:
        """Pieces of ``native_bits`` that an operand is cut into."""
        return -(-bits // self.native_bits)

    def step_cycles(self, weight_bits: int, input_bits: int) -> int:
        """Cycles in which each unit does one product; 0 for an operand that the array cannot take.

        Notes
        -----
        ``slices(weight_bits) * slices(input_bits)`` passes (fixed), ``slices(weight_bits) * input_bits``
        (activation-serial), ``weight_bits * input_bits`` (fully-serial). A floating-point operand cannot be cut.
        """
        if self.arithmetic == "float":
            return int(max(weight_bits, input_bits) <= self.native_bits)
        weight = weight_bits if self.arithmetic == "fully-serial" else self.slices(weight_bits)
        return weight * (self.slices(input_bits) if self.arithmetic == "fixed" else input_bits)

    def peak_macs_per_cycle(self, weight_bits: int, input_bits: int) -> float:
        """Multiply-accumulates that the array does in a cycle when no unit idles."""
        cycles = self.step_cycles(weight_bits, input_bits)
        return self.rows * self.cols * self.windows / cycles if cycles else 0.0

    def cost(self, layer: Layer, resident: Sequence[str] = ()) -> LayerCost:
        """Cost of one layer; ``resident`` names operands (``"input"``, ``"output"``) that stay on the chip.

        Raises
        ------
        UnsupportedLayer, InfeasibleLayer
            Naming the layer and what must hold.
        """
        from hwmodels import array

        return array.price_layer(self, layer, resident)[0]

    def costs(self, workload: Workload, resident: Sequence[Sequence[str]] | None = None) -> PackedCosts:
        """Cost of every layer of a network, each distinct layer priced once.

        Raises
        ------
        UnsupportedLayer, InfeasibleLayer
            Naming the first such layer.
        """
        from hwmodels import array

        return array.price(self, workload, resident)

    @cached_property
    def kernel_chip(self) -> NDArray[np.int64]:
        """The chip as the mapping kernel takes it; a tile may fill half of a buffer."""
        from hwmodels import mapper

        dataflow = {
            "no-local-reuse": mapper.SHARED_WEIGHTS if self.windows > 1 else mapper.REDUCTION_COLUMNS,
            "weight-stationary": mapper.WEIGHT_STATIONARY,
            "output-stationary": mapper.OUTPUT_STATIONARY,
            "input-stationary": mapper.INPUT_STATIONARY,
        }[self.dataflow]
        flavours = {"channel": 1, "im2col": 2, "auto": 3}[self.mapping]
        objective = get_args(ObjectiveName).index(self.objective)
        # The first operands enter and the last sums leave an otherwise idle array.
        fill_cycles = 2 * self.rows + self.cols - 2 if self.systolic and self.timing == "overlapped" else 0
        return np.array(
            (
                self.rows, self.cols, 4 * self.weight_buffer_bytes, 4 * self.input_buffer_bytes,
                4 * self.output_buffer_bytes, self.dram_bits_per_cycle, ACCUMULATOR_BITS, dataflow, flavours,
                objective, fill_cycles, self.windows, 1 if self.dataflow == "input-stationary" else self.cols,
            ),
            dtype=np.int64,
        )  # fmt: skip

    @cached_property
    def kernel_price(self) -> NDArray[np.float64]:
        """The unit energies as the mapping kernel takes them."""
        return np.array(dataclasses.astuple(self.unit_energies)[1:], dtype=np.float64)

    def steps(self, weight_bits: NDArray[np.int64], input_bits: NDArray[np.int64]) -> Steps:
        """What a step of the array does at these operand widths."""
        from hwmodels.array import Steps

        pairs = zip(weight_bits.tolist(), input_bits.tolist(), strict=True)
        cycles = np.array([self.step_cycles(w, i) for w, i in pairs], dtype=np.int64)
        core_pj = np.full(len(cycles), self.unit_energies.core_pj_per_cycle)
        return Steps(np.minimum(cycles, 1), cycles, core_pj)

    def run_kernel(
        self, rows: NDArray[np.int64], resident: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Price packed layers: operands at the width of the buffers, the better use of the windows, the timing."""
        from hwmodels import mac_kernel

        return mac_kernel.run(self, rows, resident)

    def held(self, layer: Layer) -> Layer:
        """The layer with its operands as wide as the buffers hold them."""
        return dataclasses.replace(
            layer,
            weight_bits=self.held_bits(layer.weight_bits, serial=self.arithmetic == "fully-serial"),
            input_bits=self.held_bits(
                layer.input_bits, serial=self.arithmetic in ("activation-serial", "fully-serial")
            ),
            stored_input_bits=None,
        )

    def held_bits(self, bits: int, serial: bool) -> int:
        """Width at which a buffer holds an operand that is processed bit by bit, or one that is not."""
        own_width = self.packing == "all" or (self.packing == "dram" and serial)
        return bits if own_width else self.slices(bits) * self.native_bits

    def describe_mapping(self, ints: list[int]) -> str:
        """The mapping of one row of results, for people: passes or serial cycles included."""
        from hwmodels import mac_kernel

        return mac_kernel.describe(self, ints)

    def refusal(self, layer: Layer) -> str:
        """Why the array cannot run the layer."""
        return (
            f"weight_bits and input_bits must be at most the array's native_bits={self.native_bits}, since a "
            f"floating-point operand cannot be cut, got weight_bits={layer.weight_bits}, input_bits={layer.input_bits}."
        )

    @property
    def _geometry(self) -> _Geometry:
        return (
            self.arithmetic, self.native_bits, self.rows, self.cols, self.windows, self.dataflow,
            self.weight_buffer_bytes, self.input_buffer_bytes, self.output_buffer_bytes,
            float(self.clock_hz), float(self.node_nm), float(self.voltage_v),
        )  # fmt: skip


_Geometry = tuple[Arithmetic, int, int, int, int, DataflowName, int, int, int, float, float, float]


def _positive_integer(name: str, value: Any) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise ValueError(f"MacArray: {name} must be an integer of at least 1, got {name}={value!r}.")
    return count


def banks(
    arithmetic: Arithmetic, native_bits: int, rows: int, cols: int, windows: int, dataflow: DataflowName
) -> tuple[int, int, int]:
    """Banks of the weight, input and output buffer: as many as the array takes words in a cycle.

    Notes
    -----
    Without local reuse every unit takes a weight of its own, every row its inputs, and every column gives an output. In
    a systolic array operands enter at the edges, inputs by row and weights by column (input-stationary: the other way
    round), and outputs leave by column. Bit Fusion's buffers follow the same rule.
    """
    weight_port_bits = 1 if arithmetic == "fully-serial" else native_bits
    input_port_bits = native_bits if arithmetic in ("fixed", "float") else 1
    if dataflow == "no-local-reuse":
        return (
            -(-rows * cols * weight_port_bits // WORD_BITS),
            rows * -(-windows * input_port_bits // WORD_BITS),
            cols,
        )
    return (rows, cols, cols) if dataflow == "input-stationary" else (cols, rows, cols)


@lru_cache(maxsize=65536)
def _looked_up(geometry: _Geometry) -> tuple[BitFusionEnergies, tuple[float, float, float, float]]:
    """Unit energies and the areas of core, weight, input and output buffer, in mm2.

    Notes
    -----
    Leakage scales from the tables' node and voltage as the energy of an operation does, for want of a better rule.
    """
    (
        arithmetic, native_bits, rows, cols, windows, dataflow, weight_bytes, input_bytes, output_bytes,
        clock_hz, node_nm, voltage_v,
    ) = geometry  # fmt: skip
    core = array_core(arithmetic, native_bits, rows, cols, windows, systolic=dataflow != "no-local-reuse")
    count = banks(arithmetic, native_bits, rows, cols, windows, dataflow)
    weight, input, output = (
        _bank(size, n, ports)
        for size, n, ports in zip((weight_bytes, input_bytes, output_bytes), count, (0, 0, 1), strict=True)
    )
    energy = energy_scale(TABLE_NODE_NM, TABLE_VOLTAGE_V, node_nm, voltage_v)
    area = area_scale(TABLE_NODE_NM, node_nm)
    leakage_mw = core.leakage_mw + sum(
        n * bank.leakage_mw for n, bank in zip(count, (weight, input, output), strict=True)
    )
    energies = BitFusionEnergies(
        core_pj_per_cycle=core.dynamic_pj_per_cycle * energy,
        weight_buffer_read_pj_per_bit=weight.read_pj / WORD_BITS * energy,
        weight_buffer_write_pj_per_bit=weight.write_pj / WORD_BITS * energy,
        input_buffer_read_pj_per_bit=input.read_pj / WORD_BITS * energy,
        input_buffer_write_pj_per_bit=input.write_pj / WORD_BITS * energy,
        output_buffer_read_pj_per_bit=output.read_pj / WORD_BITS * energy,
        output_buffer_write_pj_per_bit=output.write_pj / WORD_BITS * energy,
        leakage_pj_per_cycle=leakage_mw * 1e9 / clock_hz * energy,
    )
    areas = (core.area_mm2, *(n * bank.area_mm2 for n, bank in zip(count, (weight, input, output), strict=True)))
    return energies, tuple(mm2 * area for mm2 in areas)  # type: ignore[return-value]


def _bank(size_bytes: int, count: int, read_write_ports: int) -> Sram:
    """One of the equal banks of a buffer, of as many words as the buffer needs."""
    words = -(-8 * size_bytes // (count * WORD_BITS))
    return sram(words * WORD_BITS / 8, WORD_BITS / 8, read_write_ports)


def int_array(native_bits: int) -> MacArray:
    """16 x 32 fixed-point units in the place of Bit Fusion's Fusion Units, same buffers and DRAM interface."""
    return MacArray(native_bits=native_bits)


def fp_array(native_bits: int) -> MacArray:
    """16 x 32 floating-point units in the place of Bit Fusion's Fusion Units, same buffers and DRAM interface."""
    return MacArray(arithmetic="float", native_bits=native_bits)


def int8_systolic() -> MacArray:
    """An 8-bit weight-stationary systolic array of 16 x 32 units, with Bit Fusion's buffers and DRAM interface."""
    return MacArray(dataflow="weight-stationary")


def stripes() -> MacArray:
    """After Stripes (Judd et al., MICRO 2016): 16 windows, so that 16 x 32 positions equal 16-bit units at 16 bits."""
    return MacArray(windows=16, arithmetic="activation-serial", native_bits=16)


def loom() -> MacArray:
    """Loom of 128 16-bit equivalents (Sharify et al., DAC 2018): 16 lanes, 128 output channels, 16 windows.

    Its 32768 one-bit products a cycle are as many as those of 16 x 32 Fusion Units of 8 bits.
    """
    return MacArray(cols=128, windows=16, arithmetic="fully-serial", native_bits=16)
