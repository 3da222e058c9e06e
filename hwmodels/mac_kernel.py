"""How a `MacArray` calls the mapping kernel: widths in the buffers, uses of the windows, SCALE-Sim's timing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwmodels import array, mapper
from hwmodels.array import Steps
from hwmodels.cost import BOUNDS, FLOAT, FLOAT_COLUMNS, INT, INT_COLUMNS
from hwmodels.systolic import scalesim_cycles
from hwmodels.workload import MAC_OPS, PACKED_COLUMNS

if TYPE_CHECKING:
    from hwmodels.mac_array import MacArray

Results = tuple[NDArray[np.int64], NDArray[np.float64]]

_AT = {name: i for i, name in enumerate(PACKED_COLUMNS)}
_CHIP = {name: i for i, name in enumerate(mapper.CHIP_COLUMNS)}
_WEIGHT_COUNTS = [INT[name] for name in ("weight_buffer_read", "weight_buffer_write", "weight_bits_used")]
_WEIGHT_PRICES = [i for i, name in enumerate(mapper.PRICE_COLUMNS) if name.startswith("weight_buffer")]
#: Added to the mapping code of a layer whose windows take output channels.
_OTHER_CHANNELS = 8


def run(chip: MacArray, rows: NDArray[np.int64], resident: NDArray[np.int64]) -> Results:
    """Price packed layers; the column ``lane_factor``, 1 for every MAC array, holds the cycles of a step instead."""
    is_mac = rows[:, _AT["op"]] < len(MAC_OPS)
    steps = chip.steps(rows[:, mapper.WEIGHT_BITS], rows[:, mapper.INPUT_BITS])
    rows, held_weight_bits = _widths(chip, rows, is_mac)
    ints, floats = _run(chip, rows, held_weight_bits, steps, resident, chip.kernel_chip)
    ints[:, INT["lane_factor"]] = steps.serial_cycles
    if chip.windows > 1 and is_mac.any():
        _use_windows_for_channels(chip, rows, held_weight_bits, steps, resident, is_mac, (ints, floats))
    # An activation that came in packed may be too wide for the buffer once it is unpacked.
    inputs = np.prod(rows[:, [_AT[name] for name in "NCGHW"]], axis=1) * rows[:, mapper.INPUT_BITS]
    ints[(resident & mapper.INPUT_RESIDENT != 0) & (inputs > chip.handover_bits), 0] = mapper.NO_INPUT_TILE
    if chip.timing == "scalesim":
        _retime(chip, rows, is_mac & (ints[:, 0] == mapper.OK), steps, resident, (ints, floats))
    return ints, floats


def _widths(
    chip: MacArray, rows: NDArray[np.int64], is_mac: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Layers with inputs as wide as the input buffer holds them, and the width of weights in the weight buffer.

    The kernel knows two widths of an input, in DRAM and in the buffer, but one of a weight: that in DRAM.
    """
    rows = rows.copy()
    serial_weight, serial_input = chip.arithmetic == "fully-serial", chip.arithmetic.endswith("serial")
    held_weight_bits = rows[:, mapper.WEIGHT_BITS].copy()
    held_weight_bits[is_mac] = _held(chip, held_weight_bits[is_mac], serial_weight)
    rows[is_mac, mapper.INPUT_BITS] = _held(chip, rows[is_mac, mapper.INPUT_BITS], serial_input)
    if chip.packing == "none":
        for column in (mapper.WEIGHT_BITS, mapper.INPUT_BITS, _AT["output_bits"], _AT["stored_input_bits"]):
            rows[:, column] = _held(chip, rows[:, column], serial=False)
        held_weight_bits = rows[:, mapper.WEIGHT_BITS]
    return rows, held_weight_bits


def _held(chip: MacArray, bits: NDArray[np.int64], serial: bool) -> NDArray[np.int64]:
    return np.array([chip.held_bits(width, serial) for width in bits.tolist()], dtype=np.int64)


def _run(
    chip: MacArray,
    rows: NDArray[np.int64],
    held_weight_bits: NDArray[np.int64],
    steps: Steps,
    resident: NDArray[np.int64],
    kernel_chip: NDArray[np.int64],
) -> Results:
    """Run the kernel, once for each ratio of a weight's width in the buffer to that in DRAM.

    A buffer that holds each weight r times as wide as it lies in DRAM holds 1/r as many, and each costs r times as much
    to read and write.
    """
    stored_bits = rows[:, mapper.WEIGHT_BITS]
    if (held_weight_bits == stored_bits).all():
        return array.call_kernel(rows, steps, resident, kernel_chip, chip.kernel_price)
    ints = np.empty((len(rows), len(INT_COLUMNS)), dtype=np.int64)
    floats = np.empty((len(rows), len(FLOAT_COLUMNS)), dtype=np.float64)
    for stored, held in sorted(set(zip(stored_bits.tolist(), held_weight_bits.tolist(), strict=True))):
        where = np.flatnonzero((stored_bits == stored) & (held_weight_bits == held))
        scaled_chip, scaled_price = kernel_chip.copy(), chip.kernel_price.copy()
        capacity = _CHIP["weight_capacity_bits"]
        scaled_chip[capacity] = kernel_chip[capacity] * stored // held
        scaled_price[_WEIGHT_PRICES] *= held / stored
        part = Steps(steps.lane_factor[where], steps.serial_cycles[where], steps.core_pj[where])
        some_ints, some_floats = array.call_kernel(
            np.ascontiguousarray(rows[where]), part, np.ascontiguousarray(resident[where]), scaled_chip, scaled_price
        )
        some_ints[:, _WEIGHT_COUNTS] = some_ints[:, _WEIGHT_COUNTS] // stored * held
        ints[where], floats[where] = some_ints, some_floats
    return ints, floats


def _use_windows_for_channels(
    chip: MacArray,
    rows: NDArray[np.int64],
    held_weight_bits: NDArray[np.int64],
    steps: Steps,
    resident: NDArray[np.int64],
    is_mac: NDArray[np.bool_],
    results: Results,
) -> None:
    """Where it is better, let the windows compute other output channels of the same pixel.

    Every unit then takes a weight of its own, and a step lasts at least until the weight buffer, which feeds
    ``rows * cols`` units in a cycle, has brought them.
    """
    port_bits = 1 if chip.arithmetic == "fully-serial" else chip.native_bits
    loading = chip.windows * -(-held_weight_bits // port_bits)
    kernel_chip = chip.kernel_chip.copy()
    kernel_chip[_CHIP["dataflow"]], kernel_chip[_CHIP["windows"]] = mapper.REDUCTION_COLUMNS, 1
    kernel_chip[_CHIP["cols"]] *= chip.windows
    slower = steps._replace(serial_cycles=np.maximum(steps.serial_cycles, loading))
    other_ints, other_floats = _run(chip, rows, held_weight_bits, slower, resident, kernel_chip)
    other_ints[:, INT["mapping"]] += _OTHER_CHANNELS
    other_ints[:, INT["lane_factor"]] = slower.serial_cycles
    # Utilization against the peak, which those steps may be too slow for.
    other_floats[:, FLOAT["utilization"]] *= steps.serial_cycles / np.maximum(slower.serial_cycles, 1)
    starved = (other_floats[:, FLOAT["utilization"]] < 0.5) & (other_ints[:, INT["bound"]] == BOUNDS.index("compute"))
    other_ints[starved, INT["bound"]] = BOUNDS.index("array")

    ints, floats = results
    better = is_mac & (_rank(chip, other_ints, other_floats) < _rank(chip, ints, floats))
    ints[better], floats[better] = other_ints[better], other_floats[better]


def _rank(chip: MacArray, ints: NDArray[np.int64], floats: NDArray[np.float64]) -> NDArray[np.float64]:
    """The objective of each layer; infinite for one that cannot run."""
    cycles, energy = ints[:, INT["cycles"]].astype(np.float64), floats[:, : FLOAT["leakage_pj"] + 1].sum(axis=1)
    rank = {"latency": cycles, "energy": energy, "edp": cycles * energy}[chip.objective]
    return np.where(ints[:, 0] == mapper.OK, rank, np.inf)


def _retime(
    chip: MacArray,
    rows: NDArray[np.int64],
    where: NDArray[np.bool_],
    steps: Steps,
    resident: NDArray[np.int64],
    results: Results,
) -> None:
    """Give mapped layers the compute cycles of SCALE-Sim; transfers overlap with those."""
    ints, floats = results
    compute = scalesim_cycles(rows, chip.rows, chip.cols, chip.dataflow) * steps.serial_cycles  # type: ignore[arg-type]
    for i in np.flatnonzero(where):
        first_bits, last_bits = exposed_bits(rows[i], ints[i], int(resident[i]))
        dram_bits = ints[i, INT["dram_read"]] + ints[i, INT["dram_write"]]
        cycles = mapper.total_cycles(first_bits, last_bits, dram_bits, compute[i], chip.dram_bits_per_cycle, 0)
        macs = np.prod(rows[i, [_AT[axis] for axis in "NKCPQRSG"]])
        utilization = macs * steps.serial_cycles[i] / (compute[i] * chip.rows * chip.cols)
        ints[i, INT["cycles"]], ints[i, INT["compute_cycles"]] = cycles, compute[i]
        ints[i, INT["bound"]] = BOUNDS.index(
            "dram" if -(-dram_bits // chip.dram_bits_per_cycle) > compute[i]
            else "compute" if utilization >= 0.5 else "array"
        )  # fmt: skip
        floats[i, FLOAT["utilization"]] = utilization
        floats[i, FLOAT["compute_pj"]] = compute[i] * steps.core_pj[i]
        floats[i, FLOAT["leakage_pj"]] = cycles * chip.unit_energies.leakage_pj_per_cycle


def exposed_bits(row: NDArray[np.int64], ints: NDArray[np.int64], resident: int) -> tuple[int, int]:
    """DRAM traffic before a mapped layer can start, and after the array has finished: its first and its last tile."""
    size = {name: int(row[_AT[name]]) for name in PACKED_COLUMNS}
    tile = {axis: int(ints[INT[f"tile_{axis}"]]) for axis in "gnkcpq"}
    first_bits = tile["g"] * tile["k"] * tile["c"] * size["R"] * size["S"] * size["weight_bits"]
    if not resident & mapper.INPUT_RESIDENT:
        touched = 1
        for edge, pad, kernel, axis, p in (("H", "pad_top", "R", "h", "p"), ("W", "pad_left", "S", "w", "q")):
            touched *= mapper.rows_touched(
                size[edge], size[pad], size[kernel], size[f"stride_{axis}"], size[f"dilation_{axis}"],
                0, min(tile[p], size[p.upper()]),
            )  # fmt: skip
        first_bits += tile["g"] * tile["n"] * tile["c"] * touched * size["stored_input_bits"]
    if resident & mapper.OUTPUT_RESIDENT:
        return first_bits, 0
    last = [mapper.last_tile(size[axis.upper()], tile[axis]) for axis in "gnkpq"]
    return first_bits, int(np.prod(last)) * size["output_bits"]


def describe(chip: MacArray, ints: list[int]) -> str:
    """The mapping of one row of results, for people."""
    at = INT["mapping"]
    other_channels, mapping = divmod(ints[at], _OTHER_CHANNELS)
    text = mapper.describe([*ints[:at], mapping, *ints[at + 1 :]])
    if mapping == mapper.STREAM:
        return text
    if chip.dataflow == "output-stationary":
        text = text.replace("channels on lanes", "pixels on rows", 1)
    if other_channels:
        text += ", windows take output channels"
    steps = ints[INT["lane_factor"]]
    if chip.arithmetic in ("activation-serial", "fully-serial"):
        return f"{text}, {steps} cycles a step"
    return text if steps == 1 else f"{text}, {steps} passes of {chip.native_bits}-bit operands"
