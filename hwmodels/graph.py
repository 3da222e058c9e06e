"""A network recorded operator by operator, as the front ends see it run, into a `Workload`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hwmodels.workload import Layer, Operand, Tensor, Workload


@dataclass(frozen=True)
class Activation:
    """A value on its way between operators: elements of one or several recorded tensors.

    Parameters
    ----------
    tensors : tuple of int
        The recorded tensors that it is made of, none twice; a concatenation is made of several, since
        concatenating moves data by addressing only.
    shape : tuple of int
    """

    tensors: tuple[int, ...]
    shape: tuple[int, ...]


class Graph:
    """Collects layers and the tensors between them, in order of execution.

    Examples
    --------
    >>> graph = Graph()
    >>> image = graph.input((1, 3, 32, 32))
    >>> conv = graph.add(Layer("conv", 3, 16, in_size=(32, 32), kernel_size=3, padding=1), image)
    >>> pool = graph.add(Layer("pool", 16, 16, in_size=(32, 32), kernel_size=2, stride=2, op="pool"), conv)
    >>> graph.workload("tiny").tensors[1].consumers
    (('pool', 'input'),)
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self._tensors: list[tuple[str | None, tuple[int, ...], int]] = []
        self._readers: list[list[tuple[str, Operand]]] = []
        self._names: dict[str, int] = {}
        self._network_inputs: set[int] = set()

    def input(self, shape: Iterable[int], bits: int = 8) -> Activation:
        """An input of the network."""
        activation = self.constant(shape, bits)
        self._network_inputs.update(activation.tensors)
        return activation

    def constant(self, shape: Iterable[int], bits: int = 8) -> Activation:
        """Data that no layer writes and that is not the network's input either, such as a looked-up embedding."""
        return self._tensor(None, tuple(shape), bits)

    def add(self, layer: Layer, first: Activation, second: Activation | None = None) -> Activation:
        """Append a layer that reads ``first`` as its input and ``second`` as its second operand.

        Returns
        -------
        Activation
            What it writes, shape (batch, out_channels, height, width).
        """
        operands: tuple[tuple[Operand, Activation | None], ...] = (("input", first), ("weight", second))
        for operand, activation in operands:
            for tensor in activation.tensors if activation is not None else ():
                self._readers[tensor].append((layer.name, operand))
        self.layers.append(layer)
        return self._tensor(layer.name, (layer.batch, layer.out_channels, *layer.out_size), layer.output_bits)

    def is_network_input(self, activation: Activation) -> bool:
        """Whether an activation is made of nothing but the network's inputs."""
        return bool(activation.tensors) and self._network_inputs.issuperset(activation.tensors)

    def unique_name(self, name: str) -> str:
        """``name``, or ``name@2`` and so on where it is taken: a shared module that runs again."""
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}@{count}"

    def workload(self, name: str, batch: int = 1) -> Workload:
        """The recorded network; inputs that nothing reads are left out."""
        tensors = tuple(
            Tensor(producer, tuple(readers), shape, bits)
            for (producer, shape, bits), readers in zip(self._tensors, self._readers, strict=True)
            if producer is not None or readers
        )
        return Workload(name, tuple(self.layers), tensors, batch)

    def _tensor(self, producer: str | None, shape: tuple[int, ...], bits: int) -> Activation:
        self._tensors.append((producer, shape, bits))
        self._readers.append([])
        return Activation((len(self._tensors) - 1,), shape)
