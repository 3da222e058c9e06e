"""A torch module as a `Workload`: what it executes, followed without computing on data."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

from hwmodels.graph import Activation, Graph, NetworkError, each, unknown_operators_text
from hwmodels.workload import Op, Workload

logger = logging.getLogger(__name__)

#: Operators that make no layer, and why. Edges of the graph pass through them.
IGNORED: dict[str, str] = {
    **each(
        """
        view _unsafe_view reshape _reshape_alias view_as alias detach clone contiguous copy lift lift_fresh _to_copy
        _conj resolve_conj t transpose permute swapaxes movedim squeeze unsqueeze flatten unflatten expand
        repeat repeat_interleave tile broadcast_to select slice narrow split split_with_sizes unsafe_split unbind
        unsafe_chunk chunk as_strided cat stack diagonal index index_put index_select gather scatter slice_scatter
        select_scatter take_along_dim take roll flip rot90 tril triu pad reflection_pad1d reflection_pad2d
        replication_pad1d replication_pad2d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
        im2col unfold fill zero real imag view_as_real view_as_complex
        """,
        "moves data by addressing only",
    ),
    **each("dropout native_dropout alpha_dropout feature_dropout bernoulli", "does nothing in evaluation mode"),
    **each("_native_batch_norm_legit_no_training", "folds into the neighbouring weights"),
}

#: Operators that take the shape of an activation and none of its data.
CONSTANTS = frozenset({"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}) | {
    f"new_{kind}" for kind in ("zeros", "ones", "empty", "full", "empty_strided")
}

#: Operators that combine their operands element by element, and the layer that they make where two or more are
#: activations. Of one activation they are a function that fuses with the layer before.
ELEMENTWISE: dict[str, Op] = {
    **each("add sub rsub maximum minimum fmax fmin where masked_fill clamp eq ne lt le gt ge", "add"),
    **each("logical_and logical_or bitwise_and bitwise_or bitwise_xor", "add"),
    **each("mul div addcmul addcdiv lerp pow floor_divide remainder fmod atan2 copysign prelu _prelu_kernel", "mul"),
    **each(
        """
        relu relu6 leaky_relu rrelu rrelu_with_noise elu selu celu gelu silu mish hardswish hardsigmoid hardtanh
        sigmoid log_sigmoid_forward tanh softplus softshrink hardshrink threshold clamp_min
        clamp_max neg abs sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal erf erfc sin cos tan
        sinh cosh asin acos atan floor ceil round trunc frac nan_to_num logical_not bitwise_not isnan isinf isfinite
        fake_quantize_per_tensor_affine fake_quantize_per_channel_affine
        fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
        """,
        "mul",
    ),
}


@dataclass(frozen=True)
class _Call:
    """One executed operator: its name, its arguments by their names in the schema, the shape that it gives."""

    operator: str
    arguments: dict[str, Any]
    shape: tuple[int, ...]

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator that a module executes and records it in a `Graph`.

    Operators run on tensors without data: those that come with data, weights for instance, are replaced first.
    """

    def __init__(self, module: nn.Module, fake: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.unknown: dict[str, list[str]] = {}
        self._paths = {id(child): path for path, child in module.named_modules()}
        self._parameter_names = {id(p): name for name, p in module.named_parameters()}
        self._running: list[nn.Module] = [module]
        self._activations: dict[int, Activation] = {}
        self._parameters: dict[int, torch.Tensor] = {}  # where a constant comes from
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

    def _put(self, tensor: torch.Tensor, activation: Activation) -> None:
        self._alive.append(tensor)
        self._activations[id(tensor)] = activation

    # --- operators --------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(torch.Tensor, self._replace, (args, kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        operator = name if namespace == "aten" else func._schema.name
        if namespace == "prim":
            return func(*args, **kwargs)
        if operator not in OPERATORS:
            operator = operator.removesuffix("_")  # in place
        if operator not in OPERATORS and operator not in CONSTANTS:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        self._record(operator, func, args, kwargs, output)
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
            self.unknown.setdefault(func._schema.name, []).append(self.path)
        result = handler(self, _Call(operator, arguments, tuple(outputs[0].shape))) if handler else None
        for i, tensor in enumerate(outputs):
            if result is None or i > 0:
                activation = self.graph.moved(sources if result is None else [result], tensor.shape)
            else:
                activation = dataclasses.replace(result, shape=tuple(tensor.shape))
            self._put(tensor, activation)
        if func._schema.is_mutable:
            self._write_through(outputs)

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


# --- handlers: each returns what its first output holds, or None where that is what its operands held -----------------


def _ignored(trace: _Recorder, call: _Call) -> Activation | None:
    return None


def _in_place(trace: _Recorder, call: _Call) -> Activation | None:
    """The same elements where they are."""
    operands = [trace.activation(x) for x in tree_leaves(call.arguments) if isinstance(x, torch.Tensor)]
    return next(x for x in operands if x is not None)


def _elementwise(trace: _Recorder, call: _Call) -> Activation | None:
    operands = [trace.activation(x) for x in tree_leaves(call.arguments) if isinstance(x, torch.Tensor)]
    op = ELEMENTWISE[call.operator]
    return trace.graph.elementwise(op, trace.name(op), [x for x in operands if x is not None], call.shape)


def _glu(trace: _Recorder, call: _Call) -> Activation | None:
    """One half of an activation gates the other."""
    halves = [trace.graph.moved([trace.read(call["self"])], call.shape) for _ in range(2)]
    return trace.graph.elementwise("mul", trace.name("mul"), halves, call.shape)


def _batch_norm(trace: _Recorder, call: _Call) -> Activation | None:
    """Folded, but where the statistics are those of the input, as in instance normalization."""
    own_statistics = any(call.arguments.get(key) for key in ("training", "train", "use_input_stats"))
    x = trace.read(call["input"])
    return trace.graph.whole("norm", trace.name("norm"), x) if own_statistics else x


def _convolution(trace: _Recorder, call: _Call) -> Activation | None:
    x, weight = trace.read(call["input"]), call["weight"]
    kernel, groups, name = weight.shape[2:], call["groups"], trace.name("conv", weight)
    if len(kernel) > 2:
        trace.unknown.setdefault(f"aten::convolution over {len(kernel)} axes", []).append(trace.path)
        return None
    if call["transposed"]:
        return trace.graph.transposed_conv(name, x, weight.shape[1] * groups, kernel, call.shape, groups)
    padding, stride, dilation = call["padding"], call["stride"], call["dilation"]
    return trace.graph.conv(
        name, x, weight.shape[0], kernel, stride, padding, dilation, groups, weight=trace.activation(weight)
    )


def _product(trace: _Recorder, a: torch.Tensor, b: torch.Tensor) -> Activation:
    """(count, m, k) by (count, k, n), where either may be weights and lack axes."""
    (m, k), n = (1, a.shape[0]) if a.dim() == 1 else a.shape[-2:], b.shape[-1] if b.dim() > 1 else 1
    count = math.prod(a.shape[:-2])
    x, y = trace.activation(a), trace.activation(b)
    if x is not None and y is not None:
        return trace.graph.matmul(trace.name("matmul"), x, y, m, k, n, count)
    if y is None and (x is not None or id(a) not in trace._parameters):
        return trace.graph.linear(trace.name("linear", b), trace.read(a), k, n, rows=m, count=count)
    return trace.graph.linear(trace.name("linear", a), trace.read(b), k, m, rows=n, count=count)


def _mm(trace: _Recorder, call: _Call) -> Activation | None:
    return _product(trace, *_operands(call, ("self", "mat2"), ("self", "vec"), ("self", "tensor")))


def _addmm(trace: _Recorder, call: _Call) -> Activation | None:
    """A product plus something: a bias, or an activation to be added."""
    product = _product(trace, *_operands(call, ("mat1", "mat2"), ("batch1", "batch2"), ("mat", "vec")))
    other = trace.activation(call["self"])
    if other is None:
        return product
    return trace.graph.elementwise("add", trace.name("add"), [product, other], call.shape)


def _operands(call: _Call, *names: tuple[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = next(pair for pair in names if pair[1] in call.arguments)
    return call[first], call[second]


def _linear(trace: _Recorder, call: _Call) -> Activation | None:
    """``linear`` where a backend keeps it whole."""
    weight, x = call["weight"], trace.read(call["input"])
    rows = math.prod(x.shape[:-1])
    return trace.graph.linear(trace.name("linear", weight), x, weight.shape[1], weight.shape[0], rows)


def _batched(x: Activation, axes: int) -> Activation:
    """With a batch axis, where the module ran on a single image."""
    return x if len(x.shape) > axes + 1 else dataclasses.replace(x, shape=(1, *x.shape))


def _pool(trace: _Recorder, call: _Call) -> Activation | None:
    axes = len(call["kernel_size"]) if call.operator.endswith(("1d", "1d_with_indices")) else 2
    x = _batched(trace.read(call["self"]), axes)
    both = {key: _spread(call.arguments.get(key), axes) for key in ("kernel_size", "stride", "padding", "dilation")}
    return trace.graph.pool(
        trace.name("pool"), x, both["kernel_size"], both["stride"], both["padding"] or (0,) * axes,
        both["dilation"] or (1,) * axes, call.shape[-axes:],
    )  # fmt: skip


def _spread(values: Sequence[int] | int | None, axes: int) -> tuple[int, ...]:
    """One number for each axis; none where the argument is left out."""
    listed = (values,) if isinstance(values, int) else tuple(values or ())
    return listed * axes if len(listed) == 1 else listed


def _adaptive_pool(trace: _Recorder, call: _Call) -> Activation | None:
    axes = 1 if "1d" in call.operator else 2
    x = _batched(trace.read(call["self"]), axes)
    return trace.graph.resampled("pool", trace.name("pool"), x, call.shape[-axes:])


def _resize(trace: _Recorder, call: _Call) -> Activation | None:
    x = trace.read(call["input" if "input" in call.arguments else "self"])
    return trace.graph.resampled("resize", trace.name("resize"), x, call.shape[2:])


def _reduce(trace: _Recorder, call: _Call) -> Activation | None:
    x = trace.read(call["self"])
    if "other" in call.arguments:
        return _elementwise(trace, dataclasses.replace(call, operator="maximum"))
    dim = call.arguments.get("dim")
    axes = range(len(x.shape)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return trace.graph.reduced(trace.name("pool"), x, axes)


def _layer_norm(trace: _Recorder, call: _Call) -> Activation | None:
    x = trace.read(call["input"])
    return trace.graph.rows("norm", trace.name("norm"), x, math.prod(call["normalized_shape"]))


def _group_norm(trace: _Recorder, call: _Call) -> Activation | None:
    return trace.graph.whole("norm", trace.name("norm"), trace.read(call["input"]))


def _softmax(trace: _Recorder, call: _Call) -> Activation | None:
    x = trace.read(call["self"])
    return trace.graph.rows("softmax", trace.name("softmax"), x, x.shape[call["dim"]])


def _embedding(trace: _Recorder, call: _Call) -> Activation | None:
    """Rows of a table: only those looked up move, when the next layer reads them."""
    table = trace.activation(call["weight"])
    return trace.graph.constant(call.shape) if table is None else trace.graph.moved([table], call.shape)


def _pad(trace: _Recorder, call: _Call) -> Activation | None:
    """Zeros around a map are the padding of the convolution that reads it."""
    x, pad = trace.read(call["self"]), tuple(call["pad"])
    if len(x.shape) not in (3, 4) or len(pad) > 2 * (len(x.shape) - 2) or min(pad) < 0 or call["value"] != 0:
        return None
    cols, rows = (*pad, 0, 0, 0, 0)[0:2], (*pad, 0, 0, 0, 0)[2:4]
    return trace.graph.padded(x, (rows, cols), call.shape)


Handler = Callable[[_Recorder, _Call], Activation | None]

#: Products are layers even where both operands are constants, since the module executes them.
PRODUCTS: dict[str, Handler] = {
    **each("convolution", _convolution),
    **each("mm bmm mv dot", _mm),
    **each("addmm addmv baddbmm", _addmm),
    **each("linear", _linear),
}

#: What becomes of each operator. Anything else is reported as unknown.
OPERATORS: dict[str, Handler] = {
    **dict.fromkeys(IGNORED, _ignored),
    **each("alias detach clone contiguous lift lift_fresh _to_copy _native_batch_norm_legit_no_training", _in_place),
    **each("dropout native_dropout alpha_dropout feature_dropout bernoulli", _in_place),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **PRODUCTS,
    **each("glu", _glu),
    **each("constant_pad_nd", _pad),
    **each("embedding", _embedding),
    **each("native_batch_norm _native_batch_norm_legit cudnn_batch_norm _batch_norm_impl_index", _batch_norm),
    **each("native_layer_norm _fused_rms_norm", _layer_norm),
    **each("native_group_norm", _group_norm),
    **each("_softmax _log_softmax _safe_softmax", _softmax),
    **each("max_pool1d max_pool2d max_pool2d_with_indices avg_pool1d avg_pool2d", _pool),
    **each("_adaptive_avg_pool2d adaptive_avg_pool1d adaptive_max_pool2d", _adaptive_pool),
    **each("mean sum amax amin max min argmax argmin var std var_mean std_mean prod logsumexp any all", _reduce),
    **each("linalg_vector_norm", _reduce),
    **each("upsample_nearest1d upsample_nearest2d _upsample_nearest_exact1d _upsample_nearest_exact2d", _resize),
    **each("upsample_linear1d upsample_bilinear2d upsample_bicubic2d", _resize),
    **each("_upsample_bilinear2d_aa _upsample_bicubic2d_aa", _resize),
}


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
    shapes: Any = [input_shape] if all(isinstance(size, int) for size in input_shape) else input_shape
    listed = [tuple(int(size) for size in shape) for shape in shapes]
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
        At 8 bits; see `Workload.with_bits`. Layers are named after the module that owns their weight, or the
        module that runs and the operator; one that runs again is ``name@2``.

    Raises
    ------
    NetworkError
        Where the module raises while it runs, for operators without a meaning here (all of them in one message),
        and for input shapes that are no shapes.

    Notes
    -----
    BatchNorm folds into the neighbouring weights and functions of one activation fuse with the layer before it,
    sums and products with constants among them. Views, concatenation, slicing and the like (`IGNORED`) move data
    by addressing: a layer that reads a concatenation reads the tensors that it is made of. Zeros padded around a
    map become the padding of the convolution that reads it. Attention is two matmuls and a softmax.

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
    trace = _Recorder(module, fake)
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
