"""Search spaces: the choices that describe a candidate, and the workload that a candidate is."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodels.cost import HardwareModel
from hwmodels.workload import MAX_BITS, Workload

#: A candidate: for each choice the index of the option taken.
Arch = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """One slot of a candidate and the options that can fill it.

    Parameters
    ----------
    name : str
        Unique in its space.
    options : tuple
        At least one, no option twice. Where they have an order, from cheap to dear.

    Raises
    ------
    ValueError
        For no options, or repeated ones.
    """

    name: str
    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options:
            raise ValueError(f"Choice {self.name!r}: it must have at least one option, got none.")
        if len(set(self.options)) < len(self.options):
            raise ValueError(f"Choice {self.name!r}: options must differ, got {self.options}.")

    @cached_property
    def fields(self) -> tuple[tuple[Any, ...], ...]:
        """The values of each field, where the options are all combinations of fields; else the options, as one field.

        Examples
        --------
        >>> import itertools
        >>> from typing import NamedTuple
        >>> class Pair(NamedTuple):
        ...     weight_bits: int
        ...     input_bits: int
        >>> Choice("fc", tuple(Pair(*pair) for pair in itertools.product((2, 4), (4, 8)))).fields
        ((2, 4), (4, 8))
        >>> Choice("fc", (2, 4)).fields
        ((2, 4),)
        """
        first = type(self.options[0])
        if issubclass(first, tuple) and hasattr(first, "_fields") and all(type(o) is first for o in self.options):
            fields = tuple(tuple(sorted(set(values))) for values in zip(*self.options, strict=True))
            if tuple(itertools.product(*fields)) == tuple(map(tuple, self.options)):
                return fields
        return (self.options,)


@dataclass(frozen=True)
class AbstractSpace(ABC):
    """A set of candidates. A concrete space gives `choices` and `workload`."""

    @property
    @abstractmethod
    def choices(self) -> tuple[Choice, ...]:
        """The slots of a candidate, in the order of an arch."""

    @abstractmethod
    def workload(self, arch: Arch) -> Workload:
        """The network that a candidate is, as a hardware model reads it."""

    def hardware(self, arch: Arch, chip: HardwareModel) -> HardwareModel:
        """The chip that a candidate runs on: ``chip``, unless the space chooses it too."""
        return chip

    def network_arch(self, arch: Arch) -> Arch:
        """The part of a candidate that says what the network is, which is all that its accuracy depends on."""
        return arch

    @cached_property
    def option_counts(self) -> tuple[int, ...]:
        """Number of options of each choice."""
        return tuple(len(choice.options) for choice in self.choices)

    @cached_property
    def field_counts(self) -> tuple[int, ...]:
        """Number of values of each field of each choice, one after the other; see `Choice.fields`."""
        return tuple(len(values) for choice in self.choices for values in choice.fields)

    @cached_property
    def field_names(self) -> tuple[str, ...]:
        """The name of each field: that of its choice, and its own where the choice has several."""
        return tuple(
            choice.name if len(choice.fields) == 1 else f"{choice.name}.{name}"
            for choice in self.choices
            for name in (type(choice.options[0])._fields if len(choice.fields) > 1 else ("",))
        )

    def split(self, arch: Sequence[int]) -> tuple[int, ...]:
        """For each field of each choice the index of its value."""
        return tuple(
            int(index)
            for choice, option in zip(self.choices, arch, strict=True)
            for index in np.unravel_index(option, [len(values) for values in choice.fields])
        )

    def join(self, indices: Sequence[int]) -> Arch:
        """The arch that `split` gives the indices of."""
        return tuple(self.join_all(np.array([indices]))[0].tolist())

    def join_all(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Many archs, shape (n, n_choices), from the indices of all fields of each, shape (n, n_fields)."""
        joined: NDArray[np.int64] = indices @ self._strides
        return joined

    @cached_property
    def _strides(self) -> NDArray[np.int64]:
        """How far an option's index goes with that of each of its fields; shape (n_fields, n_choices)."""
        strides = np.zeros((len(self.field_counts), len(self.choices)), dtype=np.int64)
        first = 0
        for i, choice in enumerate(self.choices):
            counts = [len(values) for values in choice.fields]
            for k in range(len(counts)):
                strides[first + k, i] = math.prod(counts[k + 1 :])
            first += len(counts)
        return strides

    @property
    def size(self) -> int:
        """Number of candidates, exactly."""
        return math.prod(self.option_counts)

    def sample(self, rng: np.random.Generator) -> Arch:
        """A candidate drawn uniformly."""
        return tuple(int(option) for option in rng.integers(self.option_counts))

    def check(self, arch: Sequence[int]) -> Arch:
        """The arch as a tuple of plain ints.

        Raises
        ------
        ValueError
            For a wrong length, or an index that is not an option.
        """
        counts = self.option_counts
        if len(arch) != len(counts):
            raise ValueError(
                f"{type(self).__name__}: an arch must have one index for each of the {len(counts)} choices, "
                f"got {len(arch)}."
            )
        for choice, index in zip(self.choices, arch, strict=True):
            if int(index) != index or not 0 <= index < len(choice.options):
                raise ValueError(
                    f"{type(self).__name__}: the index for choice {choice.name!r} must be an integer from 0 to "
                    f"{len(choice.options) - 1}, got {index}."
                )
        return tuple(int(index) for index in arch)

    def decode(self, arch: Sequence[int]) -> dict[str, Any]:
        """The option taken for each choice, by name."""
        return {
            choice.name: choice.options[index] for choice, index in zip(self.choices, self.check(arch), strict=True)
        }

    def encode(self, options: Mapping[str, Any]) -> Arch:
        """The arch that `decode` turns into ``options``.

        Raises
        ------
        ValueError
            For choices that are unknown or missing, or a value that is not an option.
        """
        names = [choice.name for choice in self.choices]
        unknown, missing = sorted(set(options) - set(names)), [name for name in names if name not in options]
        if unknown or missing:
            raise ValueError(
                f"{type(self).__name__}: options must name each of the {len(names)} choices; "
                f"unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}."
            )
        for choice in self.choices:
            if options[choice.name] not in choice.options:
                raise ValueError(
                    f"{type(self).__name__}: choice {choice.name!r} must be one of {choice.options}, "
                    f"got {options[choice.name]!r}."
                )
        return tuple(choice.options.index(options[choice.name]) for choice in self.choices)


@dataclass(frozen=True)
class BitwidthSpace(AbstractSpace):
    """A fixed network with two choices for each MAC layer: its weight bits and its input bits.

    Parameters
    ----------
    network : Workload
    bits : tuple of int
        The bitwidths to choose from; kept in ascending order.
    pinned : mapping from layer name to int or (int, int)
        Layers that are not searched, with the bits of both operands, or (weight bits, input bits).
    input_bits : int, optional
        Of every searched layer, so that weight bits are all there is to choose.

    Raises
    ------
    ValueError
        For a bitwidth out of range, or a pinned layer that is not a MAC layer of the network.

    Examples
    --------
    >>> from hwmodels.workload import Layer, Workload
    >>> net = Workload.sequential("net", [Layer.linear("fc1", 64, 32), Layer.linear("fc2", 32, 10)])
    >>> space = BitwidthSpace(net, bits=(2, 4, 8), pinned={"fc2": 8})
    >>> space.size, space.decode((0, 1))
    (9, {'fc1.weight_bits': 2, 'fc1.input_bits': 4})
    >>> space.layer_bits((0, 1))
    {'fc1': (2, 4), 'fc2': (8, 8)}
    """

    network: Workload
    bits: tuple[int, ...] = (2, 4, 8)
    pinned: Mapping[str, int | tuple[int, int]] = field(default_factory=dict, hash=False)
    input_bits: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", tuple(sorted(set(self.bits))))
        names = [layer.name for layer in self.network.mac_layers]
        unknown = sorted(set(self.pinned) - set(names))
        if unknown:
            raise ValueError(
                f"BitwidthSpace: pinned must name MAC layers of {self.network.name!r}, got {', '.join(unknown)}; "
                f"the layers are {', '.join(names)}."
            )
        pairs = {
            name: (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
            for name, value in self.pinned.items()
        }
        object.__setattr__(self, "pinned", pairs)
        fixed = () if self.input_bits is None else (self.input_bits,)
        for bits in (*self.bits, *fixed, *(b for pair in pairs.values() for b in pair)):
            if not 1 <= bits <= MAX_BITS:
                raise ValueError(f"BitwidthSpace: bits must be from 1 to {MAX_BITS}, got {bits}.")
        if not self.bits or len(pairs) == len(names):
            raise ValueError(
                f"BitwidthSpace: there must be something to choose, got bits={self.bits} and {len(pairs)} of the "
                f"{len(names)} MAC layers of {self.network.name!r} pinned."
            )

    @cached_property
    def searched(self) -> tuple[str, ...]:
        """The MAC layers that are not pinned, in order."""
        return tuple(layer.name for layer in self.network.mac_layers if layer.name not in self.pinned)

    @property
    def operands(self) -> tuple[str, ...]:
        """The operands whose bits are chosen."""
        return ("weight", "input") if self.input_bits is None else ("weight",)

    @cached_property
    def bitwidths(self) -> dict[str, tuple[int, ...]]:
        """Every bitwidth that a layer may run at, by the name of the layer; pinned ones too, ascending."""
        fixed = () if self.input_bits is None else (self.input_bits,)
        searched = dict.fromkeys(self.searched, tuple(sorted({*self.bits, *fixed})))
        return searched | {name: tuple(sorted(set(pair))) for name, pair in self.pinned.items()}  # type: ignore[arg-type]

    @cached_property
    def choices(self) -> tuple[Choice, ...]:  # type: ignore[override]
        """The bits of each operand that is searched, layer by layer."""
        return tuple(Choice(f"{name}.{operand}_bits", self.bits) for name in self.searched for operand in self.operands)

    def layer_bits(self, arch: Sequence[int]) -> dict[str, tuple[int, int]]:
        """(weight bits, input bits) of each MAC layer by its name, pinned ones too."""
        chosen = [self.bits[option] for option in self.check(arch)]
        n = len(self.operands)
        pairs: dict[str, Any] = {
            name: (chosen[n * i], self.input_bits or chosen[n * i + 1]) for i, name in enumerate(self.searched)
        }
        return {layer.name: pairs.get(layer.name) or self.pinned[layer.name] for layer in self.network.mac_layers}

    def uniform(self, bits: int) -> Arch:
        """The arch that has the same bitwidth everywhere but in pinned layers."""
        return self.encode({choice.name: bits for choice in self.choices})

    @property
    def reference(self) -> Arch:
        """The network at 8 bits, or the widest ones where 8 is not among them; relative limits refer to it."""
        return self.uniform(8 if 8 in self.bits else self.bits[-1])

    def workload(self, arch: Arch) -> Workload:
        """The network at the bitwidths of ``arch``."""
        bits = self.layer_bits(arch)
        return self.network.with_bits({n: w for n, (w, _) in bits.items()}, {n: a for n, (_, a) in bits.items()})
