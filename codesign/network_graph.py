"""The graph of a quantized network: what is computed from what, and which bits each value depends on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional

from codesign.quant.byte_conv import Activation
from codesign.quant.layers import QuantizedLayer


class NotTraceable(ValueError):
    """A network whose graph cannot be read, so it must be run as a whole."""


class Chain(NamedTuple):
    """A convolution, the norm that alone reads it, if any, and the ReLU or ReLU6 that alone reads that, if any.

    Attributes
    ----------
    layer : str
        The name of the quantized layer.
    norm : str or None
        The name of the BatchNorm.
    activation : {"none", "relu", "relu6"}
    steps : tuple of int
        All of them in order; the value of the chain is that of the last one.
    """

    layer: str
    norm: str | None
    activation: Activation
    steps: tuple[int, ...]


class Source(NamedTuple):
    """The value of an earlier step, where it is an argument."""

    step: int


@dataclass(frozen=True)
class Step:
    """One operation, in the words of `torch.fx.Node`; arguments that are values of earlier steps are a `Source`."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sources: tuple[int, ...]

    def arguments(self, values: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, given the values of earlier steps."""
        return _filled(self.args, values), {name: _filled(arg, values) for name, arg in self.kwargs.items()}


@dataclass(frozen=True)
class NetworkGraph:
    """A network with its quantized layers as single steps, and nothing done in place.

    Parameters
    ----------
    steps : tuple of Step
        The first is the images, the last what the network gives.
    quantized : mapping of str
        By step the name of the quantized layer that it is.
    norms : mapping of str
        By step the name of the BatchNorm, with statistics, that it is.

    Notes
    -----
    It holds names and no modules, so it serves every copy of the network, and can be sent to other processes.
    """

    steps: tuple[Step, ...]
    quantized: Mapping[int, str]
    norms: Mapping[int, str]

    @classmethod
    def of(cls, network: nn.Module) -> NetworkGraph:
        """Read the graph of a network, which `torch.fx` does by running it on symbols.

        Raises
        ------
        NotTraceable
            For a ``forward`` that decides by what it is given, takes other than one input, uses a layer twice, or has
            norms that keep statistics in another way than BatchNorm.

        Notes
        -----
        No other thread may run a torch module meanwhile.
        """
        try:
            graph = _Tracer().trace(network)
        except Exception as error:  # whatever a forward may raise for a value that is none
            raise NotTraceable(f"NetworkGraph: the graph cannot be read: {error}") from error
        nodes = list(graph.nodes)
        number = {node: i for i, node in enumerate(nodes)}
        modules = dict(network.named_modules())
        called = {i: str(node.target) for i, node in enumerate(nodes) if node.op == "call_module"}
        quantized = {i: name for i, name in called.items() if isinstance(modules[name], QuantizedLayer)}
        with_statistics = {
            i: name
            for i, name in called.items()
            if isinstance(modules[name], nn.modules.batchnorm._NormBase) and modules[name].running_mean is not None
        }
        others = [name for name in with_statistics.values() if not isinstance(modules[name], _BATCH_NORM)]
        used = [id(modules[name]) for name in (*quantized.values(), *with_statistics.values())]
        n_inputs = sum(node.op == "placeholder" for node in nodes)
        if others or len(set(used)) < len(used) or n_inputs != 1:
            raise NotTraceable(
                "NetworkGraph: the network must have one input, use each layer once, and keep statistics in BatchNorm "
                f"alone, got {n_inputs} inputs, {len(used)} uses of {len(set(used))} layers, and {', '.join(others)}."
            )
        return cls(tuple(_step(node, number) for node in nodes), quantized, with_statistics)

    @cached_property
    def _behind(self) -> dict[str, frozenset[int]]:
        behind = {}
        for first, name in self.quantized.items():
            reached = {first}
            for i, step in enumerate(self.steps):
                if not reached.isdisjoint(step.sources):
                    reached.add(i)
            behind[name] = frozenset(reached)
        return behind

    def chains(self, network: nn.Module) -> dict[int, Chain]:
        """By their first step, what can be computed at once; the modules are those of a copy of the network."""
        modules, chains = dict(network.named_modules()), {}
        for first, name in self.quantized.items():
            if not isinstance(modules[name], nn.Conv2d):
                continue
            steps, norm, activation = [first], None, None
            follower = self._only_reader(first)
            if follower in self.norms:
                steps, norm, follower = [*steps, follower], self.norms[follower], self._only_reader(follower)
            if follower is not None:
                activation = _activation(self.steps[follower], modules)
                steps += [follower] if activation else []
            chains[first] = Chain(name, norm, activation or "none", tuple(steps))
        return chains

    def activated_sums(self, network: nn.Module) -> dict[int, Activation]:
        """The steps that are the activation of a sum which nothing else reads, so that they may overwrite it."""
        modules, found = dict(network.named_modules()), {}
        for i, step in enumerate(self.steps):
            if step.target in _SUMS and step.op == "call_function":
                follower = self._only_reader(i)
                activation = None if follower is None else _activation(self.steps[follower], modules)
                if activation:
                    found[follower] = activation
        return found

    def sums_into(self) -> dict[int, int]:
        """The steps that add two values, one of which is a norm's that nothing else reads: that one, to overwrite."""
        return {
            i: source.step
            for i, step in enumerate(self.steps)
            if step.target in _SUMS and step.op == "call_function" and not step.kwargs
            if len(step.args) == 2 and all(isinstance(term, Source) for term in step.args)
            for source in step.args
            if source.step in self.norms and self._readers[source.step] == [i]
        }

    @cached_property
    def _readers(self) -> dict[int, list[int]]:
        readers: dict[int, list[int]] = {}
        for i, step in enumerate(self.steps):
            for source in set(step.sources):
                readers.setdefault(source, []).append(i)
        return readers

    def _only_reader(self, i: int) -> int | None:
        """The step that reads nothing but a value that nothing else reads."""
        found = self._readers.get(i, [])
        return found[0] if len(found) == 1 and len(self.steps[found[0]].sources) == 1 else None

    def behind(self, layers: Iterable[str]) -> set[int]:
        """The steps whose value depends on the bits of layers."""
        return set().union(*(self._behind.get(name, frozenset()) for name in layers))

    def needed(self, wanted: Sequence[int], there: Mapping[int, Any]) -> list[int]:
        """The steps to compute for the wanted ones where some values are there, in order."""
        found: set[int] = set()
        stack = [step for step in wanted if step not in there]
        while stack:
            step = stack.pop()
            if step not in found:
                found.add(step)
                stack += [source for source in self.steps[step].sources if source not in there]
        return sorted(found)


def graph_of(network: nn.Module) -> NetworkGraph | None:
    """The graph of a network; None where it cannot be read."""
    try:
        return NetworkGraph.of(network)
    except NotTraceable:
        return None


_SUMS = (operator.add, torch.add)
_ACTIVATIONS: dict[Any, Activation] = {
    nn.ReLU: "relu", functional.relu: "relu", torch.relu: "relu", "relu": "relu",
    nn.ReLU6: "relu6", functional.relu6: "relu6",
}  # fmt: skip


def _activation(step: Step, modules: Mapping[str, nn.Module]) -> Activation | None:
    """Which one a step is; None for none of them."""
    if step.op == "call_module":
        return _ACTIVATIONS.get(type(modules[step.target]))
    return _ACTIVATIONS.get(step.target) if step.op in ("call_function", "call_method") else None


_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, torch.relu_: torch.relu,
}  # fmt: skip


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QuantizedLayer) or super().is_leaf_module(m, module_qualified_name)


def _step(node: fx.Node, number: Mapping[fx.Node, int]) -> Step:
    """A node as a step that changes none of its arguments."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: Source(number[source]))
    target: Any = node.target
    if node.op == "call_function":
        target = _OUT_OF_PLACE.get(target, target)
        kwargs = {**kwargs, "inplace": False} if kwargs.get("inplace") else kwargs
    elif node.op == "call_method" and target.endswith("_") and not target.endswith("__"):
        target = target[:-1]
    return Step(node.op, target, _plain(args), _plain(kwargs), tuple(number[n] for n in node.all_input_nodes))


def _plain(value: Any) -> Any:
    """What `torch.fx` keeps in lists and mappings of its own, as Python's."""
    if isinstance(value, Source):
        return value
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else tuple(map(_plain, value))
    if isinstance(value, slice):
        return slice(_plain(value.start), _plain(value.stop), _plain(value.step))
    return value


def _filled(value: Any, values: Mapping[int, Any]) -> Any:
    """An argument, given the values of earlier steps."""
    if isinstance(value, Source):
        return values[value.step]
    if isinstance(value, dict):
        return {name: _filled(item, values) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(item, values) for item in value)
    if isinstance(value, slice):
        return slice(*(_filled(item, values) for item in (value.start, value.stop, value.step)))
    return value
