"""Costs of layers as they were measured, read from a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import get_args

from hwmodels.cost import LayerCost, MeasuredEnergy, UnsupportedLayer
from hwmodels.workload import Layer, Op, Workload


@dataclass(frozen=True)
class Measurement:
    """What one layer costs at one pair of bitwidths.

    Parameters
    ----------
    key : str or Layer
        The layer's name, or its shape: then every layer of that shape is covered, whatever its name.
    weight_bits, input_bits : int
    latency_s : float
    energy_pj : float or None
        None where it was not measured.

    Raises
    ------
    ValueError
        For a latency or an energy that is negative or not a number.
    """

    key: str | Layer
    weight_bits: int
    input_bits: int
    latency_s: float
    energy_pj: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.key, Layer):
            object.__setattr__(self, "key", shape_of(self.key))
        for name in ("latency_s", "energy_pj"):
            value = getattr(self, name)
            if value is None and name == "energy_pj":
                continue
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ValueError(
                    f"Measurement of {label_of(self.key)}: {name} must be at least 0, got {name}={value!r}."
                )


@dataclass(frozen=True)
class LookupTable:
    """A chip that is known by measurements alone: it prices the layers in its table and refuses all others.

    Parameters
    ----------
    name : str
    measurements : tuple of Measurement
        A layer is looked up by its shape first, then by its name, at its own bitwidths.
    free_ops : tuple of str
        Operators, such as ``"add"`` or ``"pool"``, that cost nothing where the table does not have them, since the
        measurements of their neighbours include them.

    Raises
    ------
    ValueError
        For a table without measurements, two measurements of one layer at the same bitwidths, or an unknown operator.

    Examples
    --------
    >>> layer = Layer("conv1", 3, 8, in_size=(8, 8), kernel_size=3)
    >>> board = LookupTable("board", (Measurement("conv1", weight_bits=8, input_bits=8, latency_s=2e-6),))
    >>> board.cost(layer).latency_s, board.cost(layer).energy
    (2e-06, None)
    >>> board.uncovered(Workload("net", (layer.with_bits(4, 8),)))
    ('conv1 at w4a8',)
    """

    name: str
    measurements: tuple[Measurement, ...] = field(repr=False)
    free_ops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "measurements", tuple(self.measurements))
        object.__setattr__(self, "free_ops", tuple(self.free_ops))
        if not self.measurements:
            raise ValueError(f"LookupTable {self.name!r}: it must have at least one measurement, got none.")
        unknown = sorted(set(self.free_ops) - set(get_args(Op)))
        if unknown:
            raise ValueError(
                f"LookupTable {self.name!r}: free_ops must be of {', '.join(get_args(Op))}, got {', '.join(unknown)}."
            )
        seen: set[tuple[str | Layer, int, int]] = set()
        for entry in self.measurements:
            place = (entry.key, entry.weight_bits, entry.input_bits)
            if place in seen:
                raise ValueError(
                    f"LookupTable {self.name!r}: each layer must be measured once at each pair of bitwidths, "
                    f"got {label_of(entry.key)} at w{entry.weight_bits}a{entry.input_bits} again."
                )
            seen.add(place)

    @cached_property
    def _at(self) -> dict[tuple[str | Layer, int, int], Measurement]:
        return {(entry.key, entry.weight_bits, entry.input_bits): entry for entry in self.measurements}

    @cached_property
    def _at_any_weight_bits(self) -> dict[tuple[str | Layer, int], Measurement]:
        return {(entry.key, entry.input_bits): entry for entry in reversed(self.measurements)}

    def _find(self, layer: Layer) -> Measurement | None:
        bits = (layer.weight_bits, layer.input_bits)
        found = self._at.get((shape_of(layer), *bits)) or self._at.get((layer.name, *bits))
        if found is None and not layer.is_mac:  # it has no weights: its row of any weight_bits will do
            found = self._at_any_weight_bits.get((layer.name, layer.input_bits))
        if found is None and layer.op in self.free_ops:
            return Measurement(layer.name, *bits, latency_s=0.0, energy_pj=0.0 if self.has_energy else None)
        return found

    @cached_property
    def has_energy(self) -> bool:
        """Whether every measurement has an energy."""
        return all(entry.energy_pj is not None for entry in self.measurements)

    def uncovered(self, workload: Workload) -> tuple[str, ...]:
        """Names and bitwidths of the layers that the table does not price, in order."""
        missing = (layer for layer in workload.layers if self._find(layer) is None)
        return tuple(f"{layer.name} at w{layer.weight_bits}a{layer.input_bits}" for layer in missing)

    def covers(self, workload: Workload) -> bool:
        """Whether the table prices every layer."""
        return not self.uncovered(workload)

    def cost(self, layer: Layer, resident: Sequence[str] = ()) -> LayerCost:
        """The measured cost of a layer. Its energy counts as computation, since a measurement has no parts.

        Raises
        ------
        UnsupportedLayer
            For a layer or bitwidths that the table does not have, or operands that stay on the chip.
        """
        return self.costs(Workload(layer.name, (layer,)), (tuple(resident),))[0]

    def costs(self, workload: Workload, resident: Sequence[Sequence[str]] | None = None) -> tuple[LayerCost, ...]:
        """The measured cost of every layer of a network.

        Raises
        ------
        UnsupportedLayer
            Naming all layers that the table does not have.
        """
        if any(resident or ()):
            raise UnsupportedLayer(
                f"LookupTable {self.name!r}: layers were measured with their operands in memory; "
                "leave out resident operands."
            )
        missing = self.uncovered(workload)
        if missing:
            raise UnsupportedLayer(
                f"LookupTable {self.name!r}: it must cover every layer of {workload.name!r}, but it lacks "
                f"{len(missing)} of {len(workload.layers)}: {', '.join(missing)}. Measure them, or name operators that "
                "cost nothing in free_ops."
            )
        return tuple(self._cost(layer) for layer in workload.layers)

    def _cost(self, layer: Layer) -> LayerCost:
        found = self._find(layer)
        assert found is not None  # costs() has looked
        energy = None if found.energy_pj is None else MeasuredEnergy(found.energy_pj)
        return LayerCost(latency_s=found.latency_s, energy=energy, mapping=f"measured as {label_of(found.key)}")

    @classmethod
    def from_workload(
        cls,
        name: str,
        workload: Workload,
        latency_s: Mapping[str, float],
        energy_pj: Mapping[str, float] | None = None,
        free_ops: Sequence[str] = (),
    ) -> LookupTable:
        """A table by shape, from what the layers of one network took; both mappings are by layer name."""
        entries = {
            (shape_of(layer), layer.weight_bits, layer.input_bits): Measurement(
                layer, layer.weight_bits, layer.input_bits, latency_s[layer.name],
                None if energy_pj is None else energy_pj[layer.name],
            )
            for layer in workload.layers
            if layer.name in latency_s
        }  # fmt: skip
        return cls(name, tuple(entries.values()), tuple(free_ops))

    @classmethod
    def from_file(cls, path: str | Path, free_ops: Sequence[str] = ()) -> LookupTable:
        """A table from a file.

        Parameters
        ----------
        path : path-like
            ``.csv``: a line for each measurement. ``.json`` or ``.npz``: a list or an array for each column, or the
            grid that ``codesign table`` writes. Columns are ``layer`` (a name) or those of a shape (``in_channels,
            out_channels`` and, where they differ from a 1x1 convolution of one pixel, ``op, batch, groups, in_height,
            in_width, kernel_height, stride_height, dilation_height, pad_top, pad_bottom``, and so on), ``weight_bits,
            input_bits``, a latency with its unit (``latency_s``, ``_ms``, ``_us``, ``_ns``), and, where it was
            measured, an energy (``energy_pj``, ``_nj``, ``_uj``, ``_mj``, ``_j``).
        free_ops : sequence of str
            See `LookupTable`.

        Raises
        ------
        ValueError
            For a file that cannot be read as such a table; the message names the line and the column.
        """
        from hwmodels import lookup_file

        return cls(Path(path).stem, lookup_file.read(Path(path)), tuple(free_ops))

    def to_file(self, path: str | Path) -> None:
        """Write the table as ``.csv``, ``.json`` or ``.npz``; `from_file` reads it back.

        Raises
        ------
        ValueError
            For another suffix.
        """
        from hwmodels import lookup_file

        lookup_file.write(Path(path), self.measurements)


def shape_of(layer: Layer) -> Layer:
    """What a measurement by shape depends on, beside the bitwidths: not the name, nor how outputs are stored."""
    return dataclasses.replace(
        layer, name="", weight_bits=8, input_bits=8, output_bits=8, stored_input_bits=None, reads_network_input=False
    )


def label_of(key: str | Layer) -> str:
    """A layer's name, or its shape, for people."""
    if isinstance(key, str):
        return repr(key)
    (height, width), (kernel_height, kernel_width) = key.in_size, key.kernel_size
    return (
        f"{key.op} {key.in_channels}->{key.out_channels} {kernel_height}x{kernel_width} on {height}x{width}"
        + (f", {key.groups} groups" if key.groups > 1 else "")
        + (f", batch {key.batch}" if key.batch > 1 else "")
    )
