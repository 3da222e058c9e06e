"""A network and the chip that runs it, chosen together."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codesign.cost_table import CostTable, cost_table
from codesign.space import AbstractSpace, Arch, Choice
from hwmodels.cost import HardwareModel
from hwmodels.workload import Workload


@dataclass(frozen=True)
class ChipSpace(AbstractSpace):
    """A space of networks with fields of the chip as further choices.

    Parameters
    ----------
    network_space : AbstractSpace
    fields : mapping from name to tuple
        Fields of the chip, a dataclass, and the values to choose from. What is not named stays as in the chip given.

    Raises
    ------
    ValueError
        For no fields, or a field without values or with repeated ones.

    Examples
    --------
    >>> from codesign.nets.mobilenetv2 import MobileNetV2Space
    >>> from hwmodels import BitFusion
    >>> space = ChipSpace(MobileNetV2Space.preset("tiny"), {"rows": (8, 16, 32), "dram_bits_per_cycle": (64, 192)})
    >>> space.hardware((0, 0, 2, 1), BitFusion(cols=16)) == BitFusion(rows=32, cols=16, dram_bits_per_cycle=192)
    True
    """

    network_space: AbstractSpace
    fields: Mapping[str, tuple[Any, ...]] = field(hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", {name: tuple(values) for name, values in self.fields.items()})
        if not self.fields:
            raise ValueError("ChipSpace: it must have at least one field of the chip to choose, got none.")
        self.choices  # noqa: B018  raises where a field has no values, or repeated ones

    @cached_property
    def choices(self) -> tuple[Choice, ...]:  # type: ignore[override]
        """Those of the network, then one for each field of the chip."""
        return (*self.network_space.choices, *(Choice(f"chip.{name}", v) for name, v in self.fields.items()))

    def network_arch(self, arch: Arch) -> Arch:
        """The arch of the network alone."""
        return self.network_space.network_arch(tuple(arch)[: -len(self.fields)])

    def chip_options(self, arch: Sequence[int]) -> dict[str, Any]:
        """The fields of the chip that a candidate chooses."""
        options = tuple(arch)[-len(self.fields) :]
        return {name: values[i] for (name, values), i in zip(self.fields.items(), options, strict=True)}

    def workload(self, arch: Arch) -> Workload:
        """The network of a candidate."""
        return self.network_space.workload(tuple(arch)[: -len(self.fields)])

    def hardware(self, arch: Arch, chip: HardwareModel) -> HardwareModel:
        """``chip`` with the fields that a candidate chooses.

        Raises
        ------
        ValueError
            For a field that the chip does not have, or a value that it refuses.
        """
        known = [f.name for f in dataclasses.fields(chip)] if dataclasses.is_dataclass(chip) else []
        unknown = [name for name in self.fields if name not in known]
        if unknown:
            raise ValueError(
                f"ChipSpace: the choices must be fields of {type(chip).__name__}, got {', '.join(unknown)}; "
                f"known are {', '.join(known) or 'none'}."
            )
        base = self.network_space.hardware(tuple(arch)[: -len(self.fields)], chip)
        return dataclasses.replace(base, **self.chip_options(arch))  # type: ignore[type-var]

    def cost_table(self, hardware: HardwareModel, n_checks: int = 20) -> ChipCostTable:
        """One table for each chip; see `codesign.cost_table.cost_table`."""
        counts = tuple(len(values) for values in self.fields.values())
        network = (0,) * len(self.network_space.choices)
        chips = [self.hardware((*network, *options), hardware) for options in np.ndindex(*counts)]
        return ChipCostTable(counts, tuple(cost_table(self.network_space, chip, n_checks=n_checks) for chip in chips))


@dataclass(frozen=True, eq=False)
class ChipCostTable:
    """The cost of every network on every chip: a `CostTable` for each chip, behind the same methods.

    Parameters
    ----------
    chip_counts : tuple of int
        Options of each choice of the chip; they are the last choices of an arch.
    tables : tuple of CostTable
        For all combinations of these options, the last one changing fastest.
    """

    chip_counts: tuple[int, ...]
    tables: tuple[CostTable, ...]

    @property
    def option_counts(self) -> tuple[int, ...]:
        """Options of each choice, the network's first."""
        return (*self.tables[0].option_counts, *self.chip_counts)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What all chips give."""
        return self.tables[0].metrics

    @property
    def gap(self) -> float:
        """The largest of the tables' gaps."""
        return max(table.gap for table in self.tables)

    def price(self, archs: ArrayLike, workers: int | None = None) -> dict[str, NDArray[np.float64]]:
        """Cost of many candidates; see `CostTable.price`."""
        archs = np.ascontiguousarray(archs)
        counts, n_network = self.option_counts, len(self.tables[0].option_counts)
        if archs.ndim != 2 or archs.shape[1] != len(counts) or archs.dtype.kind not in "iu":
            raise ValueError(
                f"ChipCostTable: archs must be integers of shape (n, {len(counts)}), got {archs.dtype} of shape "
                f"{archs.shape}."
            )
        chips = archs[:, n_network:]
        bad = np.flatnonzero(((chips < 0) | (chips >= self.chip_counts)).any(axis=1))
        if len(bad):
            raise ValueError(
                f"ChipCostTable: an arch must hold an option of each choice, of which there are {counts}, got "
                f"{archs[bad[0]].tolist()} in row {bad[0]}."
            )
        numbers = np.ravel_multi_index(tuple(chips.T), self.chip_counts)
        costs = {metric: np.empty(len(archs)) for metric in self.metrics}
        for number in np.unique(numbers):
            rows = np.flatnonzero(numbers == number)
            for metric, values in self.tables[number].price(archs[rows, :n_network], workers).items():
                costs[metric][rows] = values
        return costs

    def expected(self, policies: Sequence[ArrayLike]) -> dict[str, float]:
        """Expected cost of a candidate whose choices are drawn independently, exactly; see `CostTable.expected`.

        Notes
        -----
        The network is drawn independently of the chip h, so E[cost] = sum_h p(h) E[cost on h].
        """
        network, chip = self._parted(policies)
        total = dict.fromkeys(self.metrics, 0.0)
        for table, options in self._by_chip():
            probability = math.prod(float(p[i]) for p, i in zip(chip, options, strict=True))
            if probability != 0:
                for metric, value in table.expected(network).items():
                    total[metric] += probability * value
        return total

    def expected_gradient(self, policies: Sequence[ArrayLike], metric: str) -> list[NDArray[np.float64]]:
        """Derivatives of `expected` by every probability; shapes (n_options,) as the policies."""
        network, chip = self._parted(policies)
        gradients = [np.zeros(count) for count in self.option_counts]
        for table, options in self._by_chip():
            probabilities = [float(p[i]) for p, i in zip(chip, options, strict=True)]
            whole = math.prod(probabilities)
            if whole != 0:
                for gradient, part in zip(gradients, table.expected_gradient(network, metric), strict=False):
                    gradient += whole * part
            for axis, option in enumerate(options):
                others = math.prod(probabilities[:axis] + probabilities[axis + 1 :])
                if others != 0:
                    gradients[len(network) + axis][option] += others * table.expected(network)[metric]
        return gradients

    def lowest(self, weights: Mapping[str, float]) -> tuple[Arch, float]:
        """The candidate with the least weighted sum of costs, exactly; see `CostTable.lowest`."""
        return min(self.lowest_by_chip(weights), key=lambda found: found[1])

    def lowest_by_chip(self, weights: Mapping[str, float]) -> list[tuple[Arch, float]]:
        """The same for each chip."""
        found = []
        for table, options in self._by_chip():
            arch, cost = table.lowest(weights)
            found.append(((*arch, *options), cost))
        return found

    def _by_chip(self) -> Iterator[tuple[CostTable, tuple[int, ...]]]:
        return zip(self.tables, itertools.product(*map(range, self.chip_counts)), strict=True)

    def _parted(self, policies: Sequence[ArrayLike]) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """The policies of the network, which its tables check, and those of the chip."""
        arrays = [np.asarray(policy, dtype=np.float64) for policy in policies]
        if tuple(array.shape for array in arrays) != tuple((count,) for count in self.option_counts):
            raise ValueError(
                f"ChipCostTable: policies must have one probability for each option, {self.option_counts}, got shapes "
                f"{[array.shape for array in arrays]}."
            )
        n_network = len(self.tables[0].option_counts)
        return arrays[:n_network], arrays[n_network:]
