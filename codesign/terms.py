"""A space's networks as sums of terms: the layers they are made of, and the choices that decide each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codesign.space import BitwidthSpace
from hwmodels.workload import PACKED_COLUMNS, Layer, Operand, Workload, pack

#: Entries that one term may have; beyond that, its layers depend on too many choices.
MAX_ENTRIES = 100_000

#: What a network costs on any chip, as `Workload` counts it.
WORKLOAD_METRICS = ("macs", "bitops", "weight_bytes")

_WIDTHS = ("weight_bits", "input_bits", "stored_input_bits", "output_bits")
_FIELD = 6  # binary digits of one width, at most 32 bits


class NotDecomposable(ValueError):
    """The cost of a space's networks is no sum over terms of few choices."""


@dataclass(frozen=True, eq=False)
class Term:
    """The layers that a few choices decide.

    Parameters
    ----------
    choices : tuple of int
        Ascending; none for layers that every network of the space has.
    classes : tuple of ndarray of int64, shape (n_options,)
        For each of ``choices`` what these layers see of each option, counted from 0. A layer sees of its successor
        no more than the width at which its output is stored.
    layers : ndarray of int64, shape (\\*n_classes, n_layers)
        Codes of the layers for every combination of classes; -1 for no layer.
    """

    choices: tuple[int, ...]
    classes: tuple[NDArray[np.int64], ...]
    layers: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Terms:
    """A space as terms.

    Parameters
    ----------
    templates : tuple of Layer
        Shapes; the widths come with the codes.
    terms : tuple of Term
    """

    templates: tuple[Layer, ...]
    terms: tuple[Term, ...]

    def distinct_layers(self) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], ...]]:
        """The layers that occur, and where.

        Returns
        -------
        codes : ndarray of int64, shape (n_distinct,)
        index : tuple of ndarray of int64
            For each term the numbers of its layers among ``codes``, in the shape of ``layers``; -1 for no layer.
        """
        arrays = {id(term.layers): term.layers for term in self.terms}  # equal blocks share theirs
        codes, index = np.unique(np.concatenate([a.ravel() for a in arrays.values()]), return_inverse=True)
        if codes[0] < 0:
            codes, index = codes[1:], index - 1
        parts = np.split(index, np.cumsum([a.size for a in arrays.values()])[:-1])
        shaped = {key: part.reshape(a.shape) for (key, a), part in zip(arrays.items(), parts, strict=True)}
        return codes, tuple(shaped[id(term.layers)] for term in self.terms)

    def rows(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Layers as the kernels take them, as `hwmodels.workload.pack` makes them."""
        rows = pack(self.templates)[codes >> (_FIELD * len(_WIDTHS))]
        for name, bits in zip(_WIDTHS, _widths(codes), strict=True):
            rows[:, PACKED_COLUMNS.index(name)] = bits
        return rows

    def workload_costs(self, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """`WORKLOAD_METRICS` of layers; shape (n_layers, 3)."""
        counts = np.array([(layer.macs, layer.parameter_count) for layer in self.templates], dtype=np.float64)
        macs, parameters = counts[codes >> (_FIELD * len(_WIDTHS))].T
        weight_bits, input_bits, *_ = _widths(codes)
        return np.stack([macs, macs * weight_bits * input_bits, parameters * weight_bits / 8], axis=-1)

    def layer(self, code: int) -> Layer:
        """One layer as a value."""
        weight_bits, input_bits, stored, output_bits = (int(bits) for bits in _widths(np.int64(code)))
        layer = self.templates[code >> (_FIELD * len(_WIDTHS))].with_bits(weight_bits, input_bits, output_bits)
        return layer if stored == input_bits else dataclasses.replace(layer, stored_input_bits=stored)


class Templates:
    """Collects layer shapes and gives out codes of layers.

    Parameters
    ----------
    by_name : bool
        Keep layers of equal shape apart, for chips that know layers by their names.
    """

    def __init__(self, by_name: bool = False) -> None:
        self._by_name = by_name
        self._ids: dict[tuple[str, Layer], int] = {}

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The shapes, as numbered."""
        return tuple(layer for _, layer in self._ids)

    def code(
        self, layer: Layer, weight_bits: ArrayLike, input_bits: ArrayLike, stored: ArrayLike, output_bits: ArrayLike
    ) -> NDArray[np.int64]:
        """One integer for a layer at given widths, which broadcast; layers of one shape come with the same widths."""
        code = np.int64(self._ids.setdefault((layer.name if self._by_name else "", layer), len(self._ids)))
        for bits in (weight_bits, input_bits, stored, output_bits):
            code = (code << _FIELD) | np.asarray(bits, dtype=np.int64)
        return np.asarray(code)

    def codes(self, layers: Iterable[Layer], *widths: ArrayLike) -> NDArray[np.int64]:
        """Codes of several layers at the same widths, along a last axis."""
        return np.stack([self.code(layer, *widths) for layer in layers], axis=-1)


def _widths(codes: Any) -> Iterator[Any]:
    """The widths in codes, in the order of ``_WIDTHS``."""
    for i in reversed(range(len(_WIDTHS))):
        yield (codes >> (_FIELD * i)) & ((1 << _FIELD) - 1)


def bitwidth_terms(space: BitwidthSpace, by_name: bool = False) -> Terms:
    """One term for each layer of a network whose bitwidths are searched.

    Parameters
    ----------
    space : BitwidthSpace
    by_name : bool
        Keep layers of equal shape apart.

    Raises
    ------
    NotDecomposable
        Where a layer depends on too many choices, because too many layers read one activation.

    Notes
    -----
    A layer depends on its own two bitwidths and on those of all readers of what it reads and writes, since
    an activation is stored once, at the widest bitwidth that any reader asks for.
    """
    network, bits = space.network, np.array(space.bits, dtype=np.int64)
    asked = _asked(space)
    reads, writes = _stored_widths(network, asked)
    templates, terms = Templates(by_name), []
    for layer in network.layers:
        stored = reads.get((layer.name, "input"))
        if layer.is_mac:
            weight, input = frozenset([asked[layer.name, "weight"]]), frozenset([asked[layer.name, "input"]])
        else:
            input = stored or frozenset([-layer.input_bits])
            weight = reads.get((layer.name, "weight"), input)
        widths = weight, input, stored or input, writes.get(layer.name, frozenset([-layer.output_bits]))
        scope = sorted(choice for choice in frozenset.union(*widths) if choice >= 0)
        if len(bits) ** len(scope) > MAX_ENTRIES:
            raise NotDecomposable(
                f"Space of {network.name!r}: the cost of a layer must depend on few choices, but that of "
                f"{layer.name!r} depends on {len(scope)} ({len(bits)} options each): too many layers read what it "
                "reads or writes. Price candidates one by one, or search fewer layers or bitwidths."
            )
        axes = {choice: bits.reshape(-1, *(1,) * (len(scope) - 1 - i)) for i, choice in enumerate(scope)}
        columns = [reduce(np.maximum, [axes[c] if c >= 0 else np.int64(-c) for c in sorted(width)]) for width in widths]
        codes = np.broadcast_to(templates.code(layer.with_bits(1, 1, 1), *columns), (len(bits),) * len(scope))
        terms.append(Term(tuple(scope), (np.arange(len(bits)),) * len(scope), codes[..., None]))
    return Terms(templates.layers, tuple(terms))


# A width is a set of who asks for it, the widest deciding: choices, and fixed widths as negative numbers.
_Width = frozenset[int]


def _asked(space: BitwidthSpace) -> Mapping[tuple[str, Operand], int]:
    """The choice that is the width of an operand of a MAC layer, or minus its fixed width."""
    asked: dict[tuple[str, Operand], int] = {}
    for name, (weight_bits, input_bits) in space.pinned.items():
        asked[name, "weight"], asked[name, "input"] = -weight_bits, -input_bits
    for j, name in enumerate(space.searched):
        asked[name, "input"] = -(space.input_bits or 0)
        for i, operand in enumerate(space.operands):
            asked[name, operand] = len(space.operands) * j + i  # type: ignore[index]
    return asked


def _stored_widths(
    workload: Workload, asked: Mapping[tuple[str, Operand], int]
) -> tuple[dict[tuple[str, Operand], _Width], dict[str, _Width]]:
    """Width at which what each operand reads and what each layer writes is stored, as `Workload.with_bits` sets it."""
    outputs: dict[str, list[int]] = {}
    for i, tensor in enumerate(workload.tensors):
        if tensor.producer is not None:
            outputs.setdefault(tensor.producer, []).append(i)
    known: dict[int, _Width] = {}

    def stored(i: int) -> _Width:
        if i not in known:
            tensor = workload.tensors[i]
            wishes = frozenset(asked[consumer] for consumer in tensor.consumers if consumer in asked)
            if not wishes:
                wishes = frozenset().union(*(stored(j) for name, _ in tensor.consumers for j in outputs.get(name, ())))
            known[i] = wishes or frozenset([-tensor.bits])
        return known[i]

    reads: dict[tuple[str, Operand], _Width] = {}
    writes: dict[str, _Width] = {}
    for i, tensor in enumerate(workload.tensors):
        for consumer in tensor.consumers:
            reads[consumer] = reads.get(consumer, frozenset()) | stored(i)
        if tensor.producer is not None:
            writes[tensor.producer] = writes.get(tensor.producer, frozenset()) | stored(i)
    return reads, writes
