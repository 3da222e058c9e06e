"""Between the chips as values and the mapping kernel: pricing workloads, and sweeping many chips at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hwmodels import mapper
from hwmodels.cost import (
    FLOAT,
    FLOAT_COLUMNS,
    INT,
    INT_COLUMNS,
    HardwareModel,
    InfeasibleLayer,
    PackedCosts,
    UnsupportedLayer,
    estimate,
)
from hwmodels.workload import Layer, Workload, pack

_RESIDENT = {"input": mapper.INPUT_RESIDENT, "output": mapper.OUTPUT_RESIDENT}


class Steps(NamedTuple):
    """What one step of the array does at each layer's bitwidths; arrays of shape (n_layers,)."""

    lane_factor: NDArray[np.int64]  #: products a unit does at once, a power of two; 0 where it cannot
    serial_cycles: NDArray[np.int64]  #: cycles a step takes
    core_pj: NDArray[np.float64]  #: energy of the array in one cycle


class ArrayModel(Protocol):
    """A chip that the mapping kernel prices.

    It may also have ``run_kernel(rows, resident)`` in place of that of this file, ``describe_mapping(ints)`` in place
    of `mapper.describe`, and ``held(layer)``, the layer with its operands as wide as the buffers hold them.
    """

    @property
    def clock_hz(self) -> float: ...
    @property
    def kernel_chip(self) -> NDArray[np.int64]:
        """Columns `mapper.CHIP_COLUMNS`."""
        ...

    @property
    def kernel_price(self) -> NDArray[np.float64]:
        """Columns `mapper.PRICE_COLUMNS`."""
        ...

    def steps(self, weight_bits: NDArray[np.int64], input_bits: NDArray[np.int64]) -> Steps:
        """What a step does at these operand widths."""
        ...

    def refusal(self, layer: Layer) -> str:
        """Why ``steps`` gives a lane factor of 0 for this layer."""
        ...


def runs_kernel(model: object) -> bool:
    """Whether `run_kernel` prices layers for this hardware model."""
    return hasattr(model, "kernel_chip") and getattr(model, "model", "default") != "reference"


def run_kernel(
    model: ArrayModel, rows: NDArray[np.int64], resident: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Price packed layers as the model runs them; results have the columns `INT_COLUMNS` and `FLOAT_COLUMNS`."""
    own: Any = getattr(model, "run_kernel", None)
    if own is not None:
        results: tuple[NDArray[np.int64], NDArray[np.float64]] = own(rows, resident)
        return results
    steps = model.steps(rows[:, mapper.WEIGHT_BITS], rows[:, mapper.INPUT_BITS])
    return call_kernel(rows, steps, resident, model.kernel_chip, model.kernel_price)


def call_kernel(
    rows: NDArray[np.int64],
    steps: Steps,
    resident: NDArray[np.int64],
    chip: NDArray[np.int64],
    price: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Price packed layers; results have the columns `INT_COLUMNS` and `FLOAT_COLUMNS`."""
    ints = np.empty((len(rows), len(INT_COLUMNS)), dtype=np.int64)
    floats = np.empty((len(rows), len(FLOAT_COLUMNS)), dtype=np.float64)
    mapper.price_layers(rows, *steps, resident, chip, price, ints, floats)
    return ints, floats


def _packed_costs(
    model: ArrayModel, ints: NDArray[np.int64], floats: NDArray[np.float64], index: NDArray[np.int64]
) -> PackedCosts:
    return PackedCosts(ints, floats, index, model.clock_hz, getattr(model, "describe_mapping", mapper.describe))


def price(model: ArrayModel, workload: Workload, resident: Sequence[Sequence[str]] | None = None) -> PackedCosts:
    """Price every layer of a network, each distinct one once.

    Parameters
    ----------
    model : ArrayModel
    workload : Workload
    resident : sequence of sequences of str, optional
        For each layer the operands, of ``"input"`` and ``"output"``, that may stay on the chip. A hand-over takes room
        from other tiles, so those are made that lower the sum of the layers' objective: an exact choice, by dynamic
        programming along the layers.

    Raises
    ------
    UnsupportedLayer
        For operands wider than the array takes.
    InfeasibleLayer
        Where not even the smallest tile of an operand fits its buffer.
    """
    rows, index = workload.packed
    if resident is None:
        ints, floats = run_kernel(model, rows, np.zeros(len(rows), dtype=np.int64))
        bad = np.flatnonzero(ints[:, 0])
        if bad.size:
            _refuse(model, workload.layers[int(np.flatnonzero(index == bad[0])[0])], int(ints[bad[0], 0]))
        return _packed_costs(model, ints, floats, index)

    allowed = np.array([sum(_RESIDENT[name] for name in names) for names in resident], dtype=np.int64)
    every_flag = np.arange(4)
    ints, floats = run_kernel(model, np.repeat(rows, 4, axis=0), np.tile(every_flag, len(rows)))
    value = np.where(ints[:, 0] == mapper.OK, _objective(model, ints, floats), np.inf).reshape(-1, 4)[index]
    value[(every_flag & ~allowed[:, None]) != 0] = np.inf
    flags = _best_handovers(value)
    where = 4 * index + flags
    bad = np.flatnonzero(ints[where, 0])
    if bad.size:
        _refuse(model, workload.layers[bad[0]], int(ints[where[bad[0]], 0]))
    return _packed_costs(model, ints, floats, where)


def _objective(model: ArrayModel, ints: NDArray[np.int64], floats: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the chip minimises, for each row of results."""
    cycles = ints[:, INT["cycles"]].astype(np.float64)
    energy_pj = floats[:, FLOAT["compute_pj"] : FLOAT["leakage_pj"] + 1].sum(axis=1)
    objective = int(model.kernel_chip[mapper.CHIP_COLUMNS.index("objective")])
    values: dict[int, NDArray[np.float64]] = {
        mapper.LATENCY: cycles,
        mapper.ENERGY: energy_pj,
        mapper.EDP: cycles * energy_pj,
    }
    return values[objective]


def _best_handovers(value: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which hand-overs along a chain of layers give the least total.

    Parameters
    ----------
    value : ndarray, shape (n_layers, 4)
        Of each layer for each combination of `mapper.INPUT_RESIDENT` and `mapper.OUTPUT_RESIDENT`; inf: not possible.

    Returns
    -------
    ndarray of int64, shape (n_layers,)
        The combination that each layer takes; a layer's output stays exactly where the next one's input does.
    """
    n = len(value)
    total = np.array([0.0, np.inf])  # least total so far without and with a hand-over into the next layer
    came_from = np.zeros((n, 2), dtype=np.int64)
    for i in range(n):
        # From input state s to output state t; INPUT_RESIDENT is 1 and OUTPUT_RESIDENT is 2.
        through = total[:, None] + value[i].reshape(2, 2).T
        came_from[i] = through.argmin(axis=0)
        total = through.min(axis=0)
    flags = np.zeros(n, dtype=np.int64)
    leaves = 0
    for i in range(n - 1, -1, -1):
        enters = came_from[i, leaves]
        flags[i] = enters + 2 * leaves
        leaves = enters
    return flags


def price_layer(model: ArrayModel, layer: Layer, resident: Sequence[str] = ()) -> PackedCosts:
    """Price one layer, with exactly the given operands on the chip."""
    rows, index = Workload(layer.name, (layer,)).packed
    unknown = sorted(set(resident) - set(_RESIDENT))
    if unknown:
        raise ValueError(f"Layer {layer.name!r}: resident may name {', '.join(_RESIDENT)}, got {', '.join(unknown)}.")
    flags = np.array([sum(_RESIDENT[name] for name in set(resident))], dtype=np.int64)
    ints, floats = run_kernel(model, rows, flags)
    if ints[0, 0]:
        _refuse(model, layer, int(ints[0, 0]))
    return _packed_costs(model, ints, floats, index)


def _refuse(model: ArrayModel, layer: Layer, status: int) -> None:
    """Raise what keeps the array from running the layer."""
    if status == mapper.TOO_WIDE:
        raise UnsupportedLayer(f"Layer {layer.name!r}: {model.refusal(layer)}")
    name, operand, column = {
        mapper.NO_WEIGHT_TILE: ("weight", 0, "weight_capacity_bits"),
        mapper.NO_INPUT_TILE: ("input", 1, "input_capacity_bits"),
        mapper.NO_OUTPUT_TILE: ("output", 2, "output_capacity_bits"),
    }[status]
    held: Any = getattr(model, "held", None)
    row = pack([held(layer) if held else layer])[0]
    needed_bits = int(mapper.smallest_tile_bits(row, model.kernel_chip, operand))
    there_bits = int(model.kernel_chip[mapper.CHIP_COLUMNS.index(column)])
    raise InfeasibleLayer(
        f"Layer {layer.name!r}: its smallest tile needs {needed_bits} bits in half of the {name} buffer, "
        f"which holds {there_bits} bits; enlarge {name}_buffer_bytes."
    )


class Sweep(NamedTuple):
    """One network on many chips; arrays of shape (n_chips,). Chips that cannot run it hold nan."""

    latency_s: NDArray[np.float64]
    energy_j: NDArray[np.float64]


def sweep(workload: Workload, chips: Iterable[HardwareModel], workers: int | None = None) -> Sweep:
    """Latency and energy of one network on many chips, in parallel on the cores there are.

    Parameters
    ----------
    workload : Workload
    chips : iterable of hardware models, such as `BitFusion` or `MacArray`
    workers : int, optional
        Threads; None takes one a core.

    Returns
    -------
    Sweep
        In the order of ``chips``.
    """
    models: list[Any] = list(chips)
    rows, index = workload.packed
    times = np.bincount(index, minlength=len(rows)).astype(np.float64)
    none_resident = np.zeros(len(rows), dtype=np.int64)
    cycles_at, energy_at = INT["cycles"], slice(FLOAT["compute_pj"], FLOAT["leakage_pj"] + 1)
    result = Sweep(np.full(len(models), np.nan), np.full(len(models), np.nan))

    def part(numbers: range) -> None:
        for i in numbers:
            if not runs_kernel(models[i]):
                with contextlib.suppress(InfeasibleLayer, UnsupportedLayer):
                    report = estimate(workload, models[i])
                    result.latency_s[i], result.energy_j[i] = report.latency_s, report.energy_j
                continue
            ints, floats = run_kernel(models[i], rows, none_resident)
            if not ints[:, 0].any():
                result.latency_s[i] = times @ ints[:, cycles_at] / models[i].clock_hz
                result.energy_j[i] = (times @ floats[:, energy_at]).sum() * 1e-12

    threads = workers or os.cpu_count() or 1
    chunk = max(1, min(64, len(models) // (4 * threads)))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, [range(i, min(i + chunk, len(models))) for i in range(0, len(models), chunk)]))
    return result
