"""What a layer and a network cost: values, the protocol of a hardware model, and `estimate`."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hwmodels.workload import Layer, Workload

#: Keys of `LayerCost.traffic_bits`, in order.
TRAFFIC = (
    "weight_buffer_read",
    "weight_buffer_write",
    "input_buffer_read",
    "input_buffer_write",
    "output_buffer_read",
    "output_buffer_write",
    "dram_read",
    "dram_write",
)
BUFFERS = ("weight", "input", "output")
#: Where energy is spent.
COMPONENTS = ("compute", "sram", "dram", "leakage")
#: What keeps a layer from running faster: the multipliers, the DRAM interface, or a shape that leaves the
#: array half empty.
BOUNDS = ("compute", "dram", "array")


class UnsupportedLayer(ValueError):
    """A hardware model has no meaning for this layer."""


class InfeasibleLayer(ValueError):
    """No tiling of this layer fits the buffers of this chip."""


@dataclass(frozen=True)
class Energy:
    """Energy of one layer, in pJ, by where it is spent."""

    compute_pj: float
    sram_pj: float
    dram_pj: float
    leakage_pj: float

    @property
    def has_parts(self) -> bool:
        """Whether it is known where the energy is spent."""
        return True

    @property
    def total_pj(self) -> float:
        """Sum of the parts."""
        return self.compute_pj + self.sram_pj + self.dram_pj + self.leakage_pj

    @staticmethod
    def sum(energies: Sequence[Energy]) -> Energy:
        """The energy of several layers together; its parts are known where all of theirs are."""
        if all(energy.has_parts for energy in energies):
            return Energy(*(math.fsum(getattr(energy, f"{name}_pj") for energy in energies) for name in COMPONENTS))
        return MeasuredEnergy(math.fsum(energy.total_pj for energy in energies))


class MeasuredEnergy(Energy):
    """An energy of which only the total is known; its parts are nan, since unknown is never 0."""

    def __init__(self, total_pj: float) -> None:
        super().__init__(math.nan, math.nan, math.nan, math.nan)
        object.__setattr__(self, "_total_pj", total_pj)

    @property
    def has_parts(self) -> bool:
        """False."""
        return False

    @property
    def total_pj(self) -> float:
        """What was measured."""
        return float(self._total_pj)  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MeasuredEnergy) and self.total_pj == other.total_pj

    def __hash__(self) -> int:
        return hash(self.total_pj)

    def __repr__(self) -> str:
        return f"MeasuredEnergy({self.total_pj!r})"


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs on one chip.

    Parameters
    ----------
    latency_s : float
    energy : Energy or None
        None on a chip whose energy is unknown.
    cycles, compute_cycles, stall_cycles : int or None
        ``cycles = compute_cycles + stall_cycles``; None where the model knows only time.
    traffic_bits : mapping
        Bits that cross each port, keys `TRAFFIC`; empty where unknown.
    utilization : float or None
        MACs done per cycle of computation over the most that the array can do at the setting it runs at.
    bound : str or None
        One of `BOUNDS`.
    buffer_bits : mapping
        Bits of each buffer in use at once, both halves of a double buffer counted; keys `BUFFERS`.
    mapping : str
        How the layer is laid on the array, for people.
    """

    latency_s: float
    energy: Energy | None
    cycles: int | None = None
    compute_cycles: int | None = None
    stall_cycles: int | None = None
    traffic_bits: Mapping[str, int] = field(default_factory=dict)
    utilization: float | None = None
    bound: str | None = None
    buffer_bits: Mapping[str, int] = field(default_factory=dict)
    mapping: str = ""

    @property
    def energy_pj(self) -> float:
        """Total energy in pJ.

        Raises
        ------
        ValueError
            Where the model prices latency only.
        """
        if self.energy is None:
            raise ValueError(
                "LayerCost: this hardware model gives no energy; ask for latency, or price with a chip model."
            )
        return self.energy.total_pj


@runtime_checkable
class HardwareModel(Protocol):
    """Anything that prices a layer. A model is a frozen value: its own configuration and cache key."""

    def cost(self, layer: Layer, resident: Sequence[str] = ()) -> LayerCost:
        """Cost of one layer; ``resident`` names operands (``"input"``, ``"output"``) that stay on the chip."""
        ...


#: Columns of the integer and the float results that the array kernels write, one row a layer.
INT_COLUMNS = (
    "status", "cycles", "compute_cycles", *TRAFFIC, "weight_bits_used", "input_bits_used", "output_bits_used",
    "bound", "mapping", "order", "batch_outermost", "lane_factor",
    "tile_g", "tile_n", "tile_k", "tile_c", "tile_p", "tile_q", "par_g", "par_h", "par_w",
)  # fmt: skip
FLOAT_COLUMNS = ("compute_pj", "sram_pj", "dram_pj", "leakage_pj", "utilization")
INT = {name: i for i, name in enumerate(INT_COLUMNS)}
FLOAT = {name: i for i, name in enumerate(FLOAT_COLUMNS)}


class PackedCosts(Sequence[LayerCost]):
    """Layer costs as the kernels write them, turned into `LayerCost` values when they are looked at.

    Parameters
    ----------
    ints : ndarray of int64, shape (n_distinct, len(INT_COLUMNS))
    floats : ndarray of float64, shape (n_distinct, len(FLOAT_COLUMNS))
    row_of_layer : ndarray of int64, shape (n_layers,)
    clock_hz : float
    describe : callable
        From a row of ``ints`` to the text of ``LayerCost.mapping``.
    """

    def __init__(
        self,
        ints: NDArray[np.int64],
        floats: NDArray[np.float64],
        row_of_layer: NDArray[np.int64],
        clock_hz: float,
        describe: Any,
    ) -> None:
        self.ints, self.floats, self.row_of_layer = ints, floats, row_of_layer
        self.clock_hz, self.describe = clock_hz, describe
        self._distinct: dict[int, LayerCost] = {}

    def __len__(self) -> int:
        return len(self.row_of_layer)

    @overload
    def __getitem__(self, i: int) -> LayerCost: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[LayerCost]: ...
    def __getitem__(self, i: int | slice) -> LayerCost | Sequence[LayerCost]:
        if isinstance(i, slice):
            return tuple(self[j] for j in range(*i.indices(len(self))))
        row = int(self.row_of_layer[i])
        cost = self._distinct.get(row)
        if cost is None:
            cost = self._distinct[row] = self._build(row)
        return cost

    def _build(self, row: int) -> LayerCost:
        ints, floats = self.ints[row].tolist(), self.floats[row].tolist()
        first = INT["weight_buffer_read"]
        used = INT["weight_bits_used"]
        cycles, compute = ints[INT["cycles"]], ints[INT["compute_cycles"]]
        return LayerCost(
            latency_s=cycles / self.clock_hz,
            energy=Energy(*floats[:4]),
            cycles=cycles,
            compute_cycles=compute,
            stall_cycles=cycles - compute,
            traffic_bits=dict(zip(TRAFFIC, ints[first : first + len(TRAFFIC)], strict=True)),
            utilization=floats[FLOAT["utilization"]],
            bound=BOUNDS[ints[INT["bound"]]] if cycles else None,
            buffer_bits=dict(zip(BUFFERS, ints[used : used + len(BUFFERS)], strict=True)),
            mapping=self.describe(ints),
        )

    def total(self, column: str) -> float:
        """Sum of one column over the layers."""
        if column in INT:
            return int(self.ints[:, INT[column]][self.row_of_layer].sum())
        return float(self.floats[:, FLOAT[column]][self.row_of_layer].sum())


@dataclass(frozen=True)
class CostReport:
    """A priced network: one `LayerCost` for each layer, and their totals.

    Layers run one after another. Printing it shows a table of at most 80 columns.
    """

    workload: Workload
    hardware: HardwareModel
    layers: Sequence[LayerCost]

    @cached_property
    def cycles(self) -> int:
        """Total cycles.

        Raises
        ------
        ValueError
            Where a layer's model knows only time.
        """
        if isinstance(self.layers, PackedCosts):
            return int(self.layers.total("cycles"))
        counts = [cost.cycles for cost in self.layers]
        if any(count is None for count in counts):
            raise ValueError("CostReport: this hardware model gives time but no cycles; use latency_s.")
        return sum(count for count in counts if count is not None)

    @cached_property
    def latency_s(self) -> float:
        """Time for one run of the workload, a whole batch."""
        if isinstance(self.layers, PackedCosts):
            return self.cycles / self.layers.clock_hz
        return math.fsum(cost.latency_s for cost in self.layers)

    @cached_property
    def energy(self) -> Energy:
        """Energy by component, over all layers."""
        if isinstance(self.layers, PackedCosts):
            return Energy(*(self.layers.total(name) for name in FLOAT_COLUMNS[:4]))
        if any(cost.energy is None for cost in self.layers):
            raise ValueError("CostReport: this hardware model gives no energy; ask for latency_s, or use a chip model.")
        return Energy.sum([cost.energy for cost in self.layers if cost.energy is not None])

    @property
    def energy_j(self) -> float:
        """Energy of one run of the workload, a whole batch."""
        return self.energy.total_pj * 1e-12

    @property
    def edp_js(self) -> float:
        """Energy-delay product."""
        return self.energy_j * self.latency_s

    @property
    def frames_per_s(self) -> float:
        """Images per second."""
        return self.workload.batch / self.latency_s

    @property
    def power_w(self) -> float:
        """Average power."""
        return self.energy_j / self.latency_s

    @property
    def tops_per_w(self) -> float:
        """Tera-operations per joule; a MAC is two operations, and the bitwidths are those of the workload."""
        return 2 * self.workload.macs / self.energy_j * 1e-12

    @property
    def peak_buffer_bytes(self) -> dict[str, float]:
        """Largest use of each buffer by any layer."""
        return {
            name: max((cost.buffer_bits.get(name, 0) for cost in self.layers), default=0) / 8
            for name in BUFFERS
            if any(name in cost.buffer_bits for cost in self.layers)
        }

    @property
    def traffic_bits(self) -> dict[str, int]:
        """Bits across each port, over all layers."""
        if isinstance(self.layers, PackedCosts):
            return {key: int(self.layers.total(key)) for key in TRAFFIC}
        return {key: sum(cost.traffic_bits.get(key, 0) for cost in self.layers) for key in TRAFFIC}

    def by_component(self) -> dict[str, float]:
        """Energy in J by component; empty where only totals were measured."""
        energy = self.energy
        if not energy.has_parts:
            return {}
        return {name: getattr(energy, f"{name}_pj") * 1e-12 for name in COMPONENTS}

    def by_layer(self) -> dict[str, LayerCost]:
        """The cost of each layer by its name."""
        return {layer.name: cost for layer, cost in zip(self.workload.layers, self.layers, strict=True)}

    def _has_energy(self) -> bool:
        return isinstance(self.layers, PackedCosts) or all(cost.energy is not None for cost in self.layers)

    def metrics(self) -> dict[str, float]:
        """The totals that limits and objectives may name."""
        metrics = {"latency_s": self.latency_s, "frames_per_s": self.frames_per_s}
        if self._has_energy():
            metrics |= {"energy_j": self.energy_j, "edp_js": self.edp_js}
        area_mm2 = getattr(self.hardware, "area_mm2", None)
        if area_mm2 is not None:
            metrics["area_mm2"] = float(area_mm2)
        return metrics | {
            "macs": float(self.workload.macs),
            "bitops": float(self.workload.bitops),
            "weight_bytes": self.workload.weight_bytes,
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat record a layer; units are in the keys."""
        has_parts = self._has_energy() and self.energy.has_parts
        for layer, cost in zip(self.workload.layers, self.layers, strict=True):
            row: dict[str, Any] = {
                "layer": layer.name,
                "op": layer.op,
                "macs": layer.macs,
                "weight_bits": layer.weight_bits,
                "input_bits": layer.input_bits,
                "output_bits": layer.output_bits,
                "cycles": cost.cycles,
                "compute_cycles": cost.compute_cycles,
                "stall_cycles": cost.stall_cycles,
                "latency_s": cost.latency_s,
                "utilization": cost.utilization,
                "bound": cost.bound,
                "mapping": cost.mapping,
            }
            if cost.energy is not None:
                if has_parts:
                    row |= {f"{name}_pj": getattr(cost.energy, f"{name}_pj") for name in COMPONENTS}
                row["energy_pj"] = cost.energy.total_pj
            row |= {f"{key}_bits": value for key, value in cost.traffic_bits.items()}
            yield row

    def totals(self) -> dict[str, Any]:
        """Totals of the network; units are in the keys."""
        totals: dict[str, Any] = {"network": self.workload.name, "batch": self.workload.batch, **self.metrics()}
        if all(cost.cycles is not None for cost in self.layers):
            totals["cycles"] = self.cycles
        if self._has_energy():
            totals |= {f"{name}_j": joules for name, joules in self.by_component().items()}
            totals |= {"power_w": self.power_w, "tops_per_w": self.tops_per_w}
        totals["peak_buffer_bytes"] = self.peak_buffer_bytes
        return totals

    def to_json(self, indent: int | None = 1) -> str:
        """Chip, totals and layers as JSON."""
        return json.dumps(
            {"hardware": repr(self.hardware), "totals": self.totals(), "layers": list(self.rows())}, indent=indent
        )

    def to_csv(self) -> str:
        """One line a layer as CSV."""
        rows = list(self.rows())
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_dataframe(self) -> Any:
        """One row a layer as a pandas DataFrame; needs pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise ImportError(
                "CostReport.to_dataframe: it needs pandas; install it, or use rows() or to_csv()."
            ) from None
        return pd.DataFrame(list(self.rows()))

    def __str__(self) -> str:
        """The table for a terminal: one row a layer, a total row, and the totals below."""
        has_energy = self._has_energy()

        def line(*cells: str) -> str:
            name, *numbers, bound = cells
            widths = (5, 8, 9, 6, 5, 9)
            return (
                f"{name:<23} "
                + " ".join(f"{n:>{w}}" for n, w in zip(numbers, widths, strict=True))
                + f" {bound}".rstrip()
            )

        header = line("layer", "w/a", "MMACs", "kcycles", "stall%", "util%", "uJ" if has_energy else "us", "bound")
        lines = [header, "-" * len(header)]
        for layer, cost in zip(self.workload.layers, self.layers, strict=True):
            cycles, stalls, used = cost.cycles, cost.stall_cycles, cost.utilization
            lines.append(
                line(
                    layer.name if len(layer.name) <= 23 else "..." + layer.name[-20:],
                    f"{layer.weight_bits}/{layer.input_bits}" if layer.is_mac else f"-/{layer.input_bits}",
                    f"{layer.macs / 1e6:.2f}",
                    "-" if cycles is None else f"{cycles / 1e3:.1f}",
                    "-" if not cycles or stalls is None else f"{100 * stalls / cycles:.1f}",
                    "-" if used is None or not layer.is_mac else f"{100 * used:.1f}",
                    f"{cost.energy.total_pj * 1e-6:.3f}" if cost.energy else f"{cost.latency_s * 1e6:.3f}",
                    cost.bound or "-",
                )
            )
        lines.append("-" * len(header))
        cycles = sum(cost.cycles or 0 for cost in self.layers)
        stalls = sum(cost.stall_cycles or 0 for cost in self.layers)
        lines.append(
            line(
                "total",
                "",
                f"{self.workload.macs / 1e6:.2f}",
                f"{cycles / 1e3:.1f}" if cycles else "-",
                f"{100 * stalls / cycles:.1f}" if cycles else "-",
                "",
                f"{self.energy.total_pj * 1e-6:.1f}" if has_energy else f"{self.latency_s * 1e6:.1f}",
                "",
            )
        )
        lines.append("")
        lines.append(f"latency {_si(self.latency_s, 's')}   {self.frames_per_s:.4g} frames/s")
        if has_energy:
            parts = ", ".join(f"{name} {joules / self.energy_j:.1%}" for name, joules in self.by_component().items())
            lines.append(f"energy  {_si(self.energy_j, 'J')}" + (f"   ({parts})" if parts else ""))
            lines.append(f"power   {_si(self.power_w, 'W')}   {self.tops_per_w:.4g} TOPS/W")
        if self.peak_buffer_bytes:
            lines.append(
                "buffers "
                + ", ".join(f"{name} {_bytes(used)}" for name, used in self.peak_buffer_bytes.items())
                + " at the peak"
            )
        area_mm2 = getattr(self.hardware, "area_mm2", None)
        if area_mm2 is not None:
            lines.append(f"area    {area_mm2:.4g} mm2")
        return "\n".join(lines)


def _bytes(count: float) -> str:
    """A byte count with a binary prefix."""
    return f"{count / 1024:.4g} KiB" if count >= 1024 else f"{count:.4g} B"


def _si(value: float, unit: str) -> str:
    """A value with an SI prefix."""
    for factor, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"


def residency(workload: Workload, hardware: HardwareModel) -> tuple[tuple[str, ...], ...]:
    """Which operands of each layer stay on the chip when activations are handed over between layers.

    An activation stays where the next layer alone reads it, as its input, and where it fits in
    ``hardware.handover_bits``.

    Returns
    -------
    tuple of tuple of str
        For each layer a subset of ``("input", "output")``.
    """
    capacity_bits = getattr(hardware, "handover_bits", 0)
    order = {layer.name: i for i, layer in enumerate(workload.layers)}
    stays: list[set[str]] = [set() for _ in workload.layers]
    for tensor in workload.tensors:
        if tensor.producer is None or len(tensor.consumers) != 1:
            continue
        (consumer, operand), producer = tensor.consumers[0], order[tensor.producer]
        if operand == "input" and order[consumer] == producer + 1 and tensor.size_bits <= capacity_bits:
            stays[producer].add("output")
            stays[producer + 1].add("input")
    return tuple(tuple(sorted(names)) for names in stays)


def estimate(workload: Workload, hardware: HardwareModel, resident: bool = False) -> CostReport:
    """Price every layer of a network on a chip.

    Parameters
    ----------
    workload : Workload
    hardware : HardwareModel
    resident : bool
        Hand activations over on the chip between layers where they fit (see `residency`).

    Raises
    ------
    UnsupportedLayer, InfeasibleLayer
        From the hardware model, naming the layer.

    Examples
    --------
    >>> from hwmodels import BitFusion, estimate, networks
    >>> report = estimate(networks.resnet20().with_bits(weight_bits=4, input_bits=4), BitFusion())
    >>> report.energy_j < estimate(networks.resnet20(), BitFusion()).energy_j
    True
    """
    stays = residency(workload, hardware) if resident else None
    price = getattr(hardware, "costs", None)
    if price is not None:
        return CostReport(workload, hardware, price(workload, stays))
    if stays is None:
        return CostReport(workload, hardware, tuple(hardware.cost(layer) for layer in workload.layers))
    return CostReport(
        workload,
        hardware,
        tuple(hardware.cost(layer, names) for layer, names in zip(workload.layers, stays, strict=True)),
    )
