"""The cost of every layer of a network at every bitwidth, as arrays."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.cost import HardwareModel, estimate
from hwmodels.workload import Workload

SUFFIXES = (".npz", ".csv", ".json")
AXES = ("layer", "weight_bits", "input_bits")


@dataclass(frozen=True, eq=False)
class LayerTable:
    """Cost of each layer by weight and input bitwidth.

    Parameters
    ----------
    layer : tuple of str
        Names of the layers, in order of execution.
    weight_bits, input_bits : tuple of int
        The widths along the other two axes.
    latency_s, energy_pj : ndarray, shape (n_layers, n_weight_bits, n_input_bits)
        ``energy_pj`` is None on a chip whose energy is unknown.

    Notes
    -----
    A layer writes its outputs as wide as its consumers read them. Each entry is that of a network whose layers all
    have the same bitwidths, so a sum over the first axis is the cost of that network. Mixed widths also change
    what a layer writes; `hwmodels.cost.estimate` prices them.
    """

    layer: tuple[str, ...]
    weight_bits: tuple[int, ...]
    input_bits: tuple[int, ...]
    latency_s: NDArray[np.float64]
    energy_pj: NDArray[np.float64] | None

    def to_json(self) -> str:
        """Axes by name, and the arrays as nested lists."""
        arrays = {name: array.tolist() for name, array in self._arrays().items()}
        axes = {name: list(getattr(self, name)) for name in AXES}
        return json.dumps({"axes": AXES, **axes, **arrays})

    def save(self, path: str | Path) -> None:
        """Write the table.

        Parameters
        ----------
        path : path-like
            ``.npz``: one array for each axis and figure, and ``axes``, the names of the axes in order. ``.json``:
            the same as lists. ``.csv``: one line for each entry.

        Raises
        ------
        ValueError
            For another suffix.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".npz":
            axes = {name: np.array(getattr(self, name)) for name in AXES}
            np.savez_compressed(path, axes=np.array(AXES), **axes, **self._arrays())
        elif suffix == ".json":
            Path(path).write_text(self.to_json(), encoding="utf-8")
        elif suffix == ".csv":
            with open(path, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow([*AXES, *self._arrays()])
                writer.writerows(self._lines())
        else:
            raise ValueError(f"LayerTable: the file's name must end in {', '.join(SUFFIXES)}, got {str(path)!r}.")

    def _arrays(self) -> dict[str, NDArray[np.float64]]:
        energy = {} if self.energy_pj is None else {"energy_pj": self.energy_pj}
        return {"latency_s": self.latency_s, **energy}

    def _lines(self) -> Iterable[tuple[object, ...]]:
        arrays = [array.tolist() for array in self._arrays().values()]
        for i, layer in enumerate(self.layer):
            for j, w in enumerate(self.weight_bits):
                for k, a in enumerate(self.input_bits):
                    yield (layer, w, a, *(array[i][j][k] for array in arrays))


def layer_table(
    workload: Workload,
    hardware: HardwareModel,
    weight_bits: Sequence[int],
    input_bits: Sequence[int],
    progress: Callable[[list[tuple[int, int]]], Iterable[tuple[int, int]]] = iter,
) -> LayerTable:
    """Price every layer at every pair of bitwidths.

    Parameters
    ----------
    workload : Workload
    hardware : HardwareModel
    weight_bits, input_bits : sequence of int
    progress : callable, optional
        Given the pairs of bitwidths, it yields them and may show how far the work is, as ``tqdm`` does.

    Raises
    ------
    UnsupportedLayer, InfeasibleLayer
        From the hardware model, naming the layer.

    Examples
    --------
    >>> from hwmodels import BitFusion, networks
    >>> table = layer_table(networks.resnet20(), BitFusion(), weight_bits=(2, 8), input_bits=(8,))
    >>> table.latency_s.shape
    (30, 2, 1)
    """
    pairs = [(w, a) for w in weight_bits for a in input_bits]
    reports = [estimate(workload.with_bits(w, a), hardware) for w, a in progress(pairs)]
    shape = (len(weight_bits), len(input_bits), len(workload.layers))

    def figures(values: list[list[float]]) -> NDArray[np.float64]:
        return np.moveaxis(np.array(values, dtype=np.float64).reshape(shape), -1, 0).copy()

    latency_s = figures([[cost.latency_s for cost in report.layers] for report in reports])
    known = all(cost.energy is not None for report in reports for cost in report.layers)
    energy_pj = figures([[cost.energy_pj for cost in report.layers] for report in reports]) if known else None
    names = tuple(layer.name for layer in workload.layers)
    return LayerTable(names, tuple(weight_bits), tuple(input_bits), latency_s, energy_pj)
