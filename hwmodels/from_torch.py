"""A torch module as a `Workload`: what it executes, followed without computing on data."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import operator
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from hwmodels.graph import Activation, Graph, NetworkError, unknown_operators_text
from hwmodels.torch_operators import CONSTANTS, OPERATORS, PRODUCTS, Call
from hwmodels.workload import MAX_BITS, Workload

logger = logging.getLogger(__name__)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator that a module executes and records it in a `Graph`.

    Operators run on tensors without data: those that come with data, weights for instance, are replaced first.
    """

    def __init__(self, module: nn.Module, fake: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.unknown: dict[str, list[str]] = {}
        self._paths = {id(child): path.replace("._orig_mod", "") for path, child in module.named_modules()}
        self._parameter_names = {id(p): name for name, p in module.named_parameters()}
        self._running: list[nn.Module] = [module]
        self._activations: dict[int, Activation] = {}
        self._parameters: dict[int, torch.Tensor] = {}  # those that constants come from
        self._alive: list[Any] = []  # ids stay those of the tensors seen
        self._fake = fake
        self._without_data: dict[int, torch.Tensor] = {}

    # --- where we are in the module ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def following_modules(self) -> Iterator[None]:
        """Keep track of the running module; after an exception it is the one that raised."""

        def enter(module: nn.Module, inputs: Any) -> None:
            if id(module) in self._paths:
                self._running.append(module)

        def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if id(module) in self._paths:
                self._running.pop()

        handles = (
            module_hooks.register_module_forward_pre_hook(enter),
            module_hooks.register_module_forward_hook(leave),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def path(self) -> str:
        """The path of the running module."""
        return str(self._paths[id(self._running[-1])])

    def name(self, operator: str, weight: torch.Tensor | None = None) -> str:
        """A layer's name: the module that owns its weight, or the running one and the operator."""
        module, path = self._running[-1], self.path
        parameter = self._parameters.get(id(weight)) if weight is not None else None
        if parameter is not None and isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            return path or operator
        if parameter is not None:
            own = [name for name, p in module.named_parameters(recurse=False) if p is parameter]
            full: str = f"{path}.{own[0]}" if own else self._parameter_names[id(parameter)]
            return full.removesuffix("weight").rstrip("._").lstrip(".") or operator
        built_in = any(c.__module__.startswith("torch.nn.modules.") for c in type(module).__mro__ if c is not nn.Module)
        if built_in and not module._modules:
            return path or operator
        return f"{path}.{operator}".lstrip(".")

    # --- activations ------------------------------------------------------------------------------------------------

    def input(self, tensor: torch.Tensor) -> None:
        """Mark a tensor as an input of the network."""
        self._put(tensor, self.graph.input(tensor.shape))

    def activation(self, tensor: Any) -> Activation | None:
        """What a tensor holds; None for weights and other constants."""
        return self._activations.get(id(tensor))

    def read(self, tensor: torch.Tensor) -> Activation:
        """The activation that a layer reads, a constant standing for itself."""
        activation = self.activation(tensor)
        if activation is None:
            activation = self.graph.constant(tensor.shape)
            self._put(tensor, activation)
        return activation

    def is_parameter(self, tensor: torch.Tensor) -> bool:
        """Whether a constant comes from a parameter of the module."""
        return id(tensor) in self._parameters

    def report(self, operator: str) -> None:
        """Note an operator that has no meaning here."""
        self.unknown.setdefault(operator, []).append(self.path)

    def _put(self, tensor: torch.Tensor, activation: Activation) -> None:
        self._alive.append(tensor)
        self._activations[id(tensor)] = activation

    # --- operators --------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(torch.Tensor, self._replace, (args, kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "prim":
            return func(*args, **kwargs)
        if namespace != "aten":
            name = func._schema.name
        elif name not in OPERATORS:
            name = name.removesuffix("_")  # in place
        if name not in OPERATORS and name not in CONSTANTS:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        self._record(name, func, args, kwargs, output)
        return output

    def _replace(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor without data that stands for one with."""
        if isinstance(tensor, FakeTensor):
            return tensor
        fake = self._without_data.get(id(tensor))
        if fake is None:
            fake = self._without_data[id(tensor)] = self._fake.from_tensor(tensor)
            self._alive.append(tensor)
            if id(tensor) in self._parameter_names:
                self._parameters[id(fake)] = tensor
        return fake

    def _record(self, operator: str, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        outputs = [x for x in tree_leaves(output) if isinstance(x, torch.Tensor)]
        sources = [x for x in map(self.activation, tensors) if x is not None]
        if not outputs:
            return
        if operator in CONSTANTS or (not sources and operator not in PRODUCTS):
            self._derive_constants(tensors, outputs)
            return
        arguments = {
            a.name: args[i] if i < len(args) else kwargs.get(a.name, a.default_value)
            for i, a in enumerate(func._schema.arguments)
        }
        handler = OPERATORS.get(operator)
        if handler is None:
            self.report(func._schema.name)
        recorded = len(self.graph.layers)
        result = handler(self, Call(operator, arguments, tensors, tuple(outputs[0].shape))) if handler else None
        self._use_bits_of_module(recorded)
        for i, tensor in enumerate(outputs):
            if result is None or i > 0:
                activation = self.graph.moved(sources if result is None else [result], tensor.shape)
            else:
                activation = dataclasses.replace(result, shape=tuple(tensor.shape))
            self._put(tensor, activation)
        if func._schema.is_mutable:
            self._write_through(outputs)

    def _use_bits_of_module(self, first: int) -> None:
        """Products recorded from ``first`` on take the bitwidths of the module that runs, where it has any."""
        for i, layer in enumerate(self.graph.layers[first:], first):
            if layer.is_mac:
                weight_bits, input_bits = (
                    bits if type(bits) is int and 1 <= bits <= MAX_BITS else own
                    for own, bits in (
                        (layer.weight_bits, getattr(self._running[-1], "weight_bits", None)),
                        (layer.input_bits, getattr(self._running[-1], "input_bits", None)),
                    )
                )
                self.graph.layers[i] = dataclasses.replace(layer, weight_bits=weight_bits, input_bits=input_bits)

    def _derive_constants(self, tensors: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """Constants computed from a parameter keep its name."""
        parameter = next((self._parameters[id(x)] for x in tensors if id(x) in self._parameters), None)
        self._alive.extend(outputs)
        if parameter is not None:
            self._parameters.update((id(x), parameter) for x in outputs)

    def _write_through(self, outputs: list[torch.Tensor]) -> None:
        """A write into a view adds to what the viewed tensor holds."""
        for tensor in outputs:
            base = tensor._base
            if base is not None:
                held = [x for x in (self.activation(base), self.activation(tensor)) if x is not None]
                self._put(base, self.graph.moved(held, base.shape))


@contextlib.contextmanager
def _left_as_it_was(module: nn.Module) -> Iterator[None]:
    """In evaluation mode inside; mode, attributes and buffers as before afterwards, and the random state too."""
    modes = {child: child.training for child in module.modules()}
    saved = [
        (child, dict(child.__dict__), dict(child._buffers), dict(child._parameters))
        for child in modes
        if not isinstance(child, torch.jit.ScriptModule)
    ]
    random_state = torch.get_rng_state()
    try:
        for child in modes:
            child.training = False
        yield
    finally:
        torch.set_rng_state(random_state)
        for child, mode in modes.items():
            child.training = mode
        for child, attributes, buffers, parameters in saved:
            for now, before in (
                (child._buffers, buffers),
                (child._parameters, parameters),
                (child.__dict__, attributes),
            ):
                now.clear()
                now.update(before)  # type: ignore[arg-type]


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Attention and recurrent layers as the operators they are made of; no log of torch's own where one fails."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    mkldnn = torch.backends.mkldnn.set_flags(False)[0]  # type: ignore[no-untyped-call]
    log = logging.getLogger(FakeTensorMode.__module__)
    log_was_off, log.disabled = log.disabled, True
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.backends.mkldnn.set_flags(mkldnn)  # type: ignore[no-untyped-call]
        log.disabled = log_was_off


def _shapes(input_shape: Sequence[int] | Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    try:
        single = all(isinstance(size, Integral) for size in input_shape)
        shapes: Any = [input_shape] if single else input_shape
        listed = [tuple(operator.index(size) for size in shape) for shape in shapes]
    except TypeError:
        listed = []
    if not listed or any(not shape or min(shape) < 1 for shape in listed):
        raise NetworkError(
            f"from_torch: input_shape must be sizes of at least 1, batch first, or one such tuple for each input, "
            f"got input_shape={input_shape!r}."
        )
    return listed


def from_torch(
    module: nn.Module,
    input_shape: Sequence[int] | Sequence[Sequence[int]],
    *,
    name: str | None = None,
    input_dtype: torch.dtype | None = None,
    ignore_unknown: bool = False,
) -> Workload:
    """The layers that a torch module executes in evaluation mode, and the activations between them.

    The module runs once on tensors that have shapes but no data, so what counts is what it executes: functional
    calls, shared modules and the products inside attention included. Weights are neither read nor moved, and the
    module, its buffers and the random state are left as they were.

    Parameters
    ----------
    module : torch.nn.Module
        On any device, ``"meta"`` included.
    input_shape : tuple of int, or one such tuple for each input
        Batch first.
    name : str, optional
        The workload's; the class name where none is given.
    input_dtype : torch.dtype, optional
        Of the inputs; that of the module's weights where none is given. Token networks want ``torch.int64``.
    ignore_unknown : bool
        Leave out the operators that have no meaning here, with a warning in the log that names them.

    Returns
    -------
    Workload
        At 8 bits, but where the module that runs has whole numbers ``weight_bits`` and ``input_bits``, as quantized
        layers do: then at those. See `Workload.with_bits`. Layers are named after the module that owns their weight,
        or the module that runs and the operator; one that runs again is ``name@2``.

    Raises
    ------
    NetworkError
        Where the module raises while it runs, for operators without a meaning here (all of them in one message),
        and for input shapes that are no shapes.

    Notes
    -----
    BatchNorm folds into the neighbouring weights, and functions of one activation fuse with the layer before it,
    sums and products with constants among them. Views, concatenation, slicing and the like move data by
    addressing (`hwmodels.torch_operators.IGNORED` has them all): a layer that reads a concatenation reads the
    tensors that it is made of. Zeros padded around a map become the padding of the convolution that reads it.
    Attention is two matmuls and a softmax.

    While the module runs, torch's own fast paths (oneDNN's among them) are off for the whole process. Other threads
    that run networks meanwhile get results that differ in their last bits: trace before they begin.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
    >>> [(layer.name, layer.macs) for layer in from_torch(net, (1, 3, 4, 4)).layers]
    [('0', 3456), ('3', 1280)]
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    called = type(module).__name__
    shapes = _shapes(input_shape)
    if any(nn.parameter.is_lazy(p) for p in module.parameters()):
        raise NetworkError(f"from_torch: the lazy layers of {called} must know their sizes; run it once on an input.")
    weight = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    trace = Recorder(module, fake)
    with _left_as_it_was(module), _plain_kernels(), trace.following_modules(), fake:
        inputs = [torch.empty(shape, dtype=input_dtype or weight.dtype, device=weight.device) for shape in shapes]
        for tensor in inputs:
            trace.input(tensor)
        try:
            with trace:
                module(*inputs)
        except Exception as error:
            where = f"its module {trace.path!r}" if trace.path else "it"
            reason = f"raised {type(error).__name__}: {error}".strip().splitlines()[0].rstrip(".")
            if isinstance(error, (DynamicOutputShapeException, DataDependentOutputException)):
                reason = f"takes shapes or decisions from data ({error.func}); give from_torch the part that does not"
            raise NetworkError(
                f"from_torch: {called} must run on input_shape={tuple(input_shape)}, but {where} {reason}."
            ) from error
    if trace.unknown:
        text = unknown_operators_text(f"from_torch: {called}", trace.unknown)
        if not ignore_unknown:
            raise NetworkError(text)
        logger.warning("%s", text)
    if not trace.graph.layers:
        raise NetworkError(f"from_torch: {called} must execute at least one layer, but nothing it executes makes one.")
    return trace.graph.workload(name or called, shapes[0][0])
