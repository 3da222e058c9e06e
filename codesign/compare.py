"""One network at several bitwidths on several chips, side by side, at equal area where asked."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hwmodels.cost import CostReport, HardwareModel, InfeasibleLayer, UnsupportedLayer, estimate
from hwmodels.sizing import shapes
from hwmodels.workload import Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Fields of a chip that describe its memory rather than its array.
MEMORY = ("weight_buffer_bytes", "input_buffer_bytes", "output_buffer_bytes", "dram_bits_per_cycle")


@dataclass(frozen=True)
class Entry:
    """One network on one chip.

    Parameters
    ----------
    hardware, bits : str
        Names of the chip and of the bitwidths.
    report : CostReport or None
        None where the chip cannot run the network; ``problem`` then says why.
    """

    hardware: str
    bits: str
    report: CostReport | None
    problem: str = ""

    def metrics(self) -> dict[str, float]:
        """Totals of the report; empty where there is none."""
        return self.report.metrics() if self.report else {}

    def ratios(self, first: Entry) -> dict[str, float]:
        """Latency, energy, energy-delay product and area over those of another entry, where both are known."""
        ours, theirs = self.metrics(), first.metrics()
        names = ("latency_s", "energy_j", "edp_js", "area_mm2")
        return {name: ours[name] / theirs[name] for name in names if name in ours and name in theirs}


Cell = tuple[str, str]


def compare(
    workloads: Mapping[str, Workload],
    chips: Mapping[str, HardwareModel],
    progress: Callable[[list[Cell]], Iterable[Cell]] = iter,
) -> list[Entry]:
    """Price every workload on every chip.

    Parameters
    ----------
    workloads : mapping
        The network by the name of its bitwidths.
    chips : mapping
        By name.
    progress : callable, optional
        Given the pairs of names, it yields them and may show how far the work is, as ``tqdm`` does.

    Returns
    -------
    list of Entry
        Chip by chip. A layer that a chip cannot run makes an entry without a report, and no exception.
    """
    entries = []
    for chip, bits in progress([(chip, bits) for chip in chips for bits in workloads]):
        try:
            entries.append(Entry(chip, bits, estimate(workloads[bits], chips[chip])))
        except (UnsupportedLayer, InfeasibleLayer) as error:
            entries.append(Entry(chip, bits, None, str(error)))
    return entries


def at_equal_area(
    chips: Mapping[str, Any],
    scale: Literal["array", "chip"] = "array",
    area_mm2: float | None = None,
    workloads: Iterable[Workload] = (),
) -> dict[str, Any]:
    """The chips sized to one area, all with the buffers and the DRAM interface of the first.

    Parameters
    ----------
    chips : mapping
        By name; each has ``area_mm2``, ``rows``, ``cols`` and the buffers.
    scale : {"array", "chip"}
        "array": only the array of units grows or shrinks. "chip": the buffers do so with it.
    area_mm2 : float, optional
        Array and buffers together; that of the first chip where it is not given, which then stays as it is.
    workloads : iterable of Workload
        Each chip takes the one of `hwmodels.sizing.shapes` whose energy-delay product, in the geometric mean over
        these, is least. Without any it keeps its ratio of rows to columns.

    Raises
    ------
    ValueError
        For a chip without an area, such as a table of measured costs, or an area that holds no array.
    """
    for name, chip in chips.items():
        missing = [field for field in (*MEMORY, "rows", "cols", "area_mm2") if not hasattr(chip, field)]
        if missing:
            raise ValueError(
                f"Chip {name!r}: a comparison at equal area needs {', '.join(missing)}, which {type(chip).__name__} "
                "does not have; leave it out, or compare without --equal-area."
            )
    first = next(iter(chips.values()))
    memory = {field: getattr(first, field) for field in MEMORY}
    budget_mm2 = first.area_mm2 if area_mm2 is None else area_mm2
    several = tuple(workloads)
    return {
        name: chip
        if chip is first and area_mm2 is None
        else _best(shapes(dataclasses.replace(chip, **memory), budget_mm2, scale), several)
        for name, chip in chips.items()
    }


def _best(candidates: Sequence[Any], workloads: Sequence[Workload]) -> Any:
    """The chip of least energy-delay product; what a workload does not run on is no candidate for it."""
    from hwmodels.array import sweep

    edps_js = [np.multiply(*sweep(workload, candidates)) for workload in workloads]
    scores = np.log([edp_js for edp_js in edps_js if np.isfinite(edp_js).any()]).sum(axis=0)
    return candidates[int(np.nanargmin(scores))] if np.ndim(scores) else candidates[0]


def plot_compare(entries: Sequence[Entry]) -> Axes:
    """Energy against latency on logarithmic axes: a line a chip, a point for each of its bitwidths.

    Parameters
    ----------
    entries : sequence of Entry
        Those without a latency and an energy are left out.

    Returns
    -------
    matplotlib.axes.Axes
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, LogLocator

    from codesign.plots import COLORS, MARKERS

    _, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    chips: dict[str, list[tuple[float, float, str]]] = {}
    for entry in entries:
        metrics = entry.metrics()
        if "energy_j" in metrics:
            chips.setdefault(entry.hardware, []).append((metrics["latency_s"], metrics["energy_j"], entry.bits))
    styles = zip(itertools.cycle(MARKERS), itertools.cycle(COLORS), strict=False)
    for (name, points), (marker, color) in zip(chips.items(), styles, strict=False):
        latency_s, energy_j, _ = zip(*points, strict=True)
        ax.loglog(latency_s, energy_j, marker=marker, color=color, markersize=5, linewidth=1, label=name)
        for x, y, bits in points:
            ax.annotate(bits, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    ax.set(xlabel="latency", ylabel="energy")
    for axis, unit in ((ax.xaxis, "s"), (ax.yaxis, "J")):
        axis.set_major_formatter(EngFormatter(unit))
        axis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axis.set_minor_formatter(EngFormatter(unit))
    ax.tick_params(which="both", labelsize=7)
    ax.grid(alpha=0.3, which="both")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax
