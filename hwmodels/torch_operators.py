"""What becomes of each torch operator: a layer, part of one, or nothing, and why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwmodels.graph import Activation, each
from hwmodels.workload import Op

if TYPE_CHECKING:
    from hwmodels.from_torch import Recorder

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
class Call:
    """One executed operator.

    Parameters
    ----------
    operator : str
        Without its namespace, and without the underscore of one that writes in place.
    arguments : dict
        By their names in the operator's schema.
    tensors : list
        Those among the arguments, in order.
    shape : tuple of int
        Of the first output.
    """

    operator: str
    arguments: dict[str, Any]
    tensors: list[Any]
    shape: tuple[int, ...]

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]


# --- handlers: each returns what its first output holds, or None where that is what its operands held -----------------


def _ignored(trace: Recorder, call: Call) -> Activation | None:
    return None


def _unmoved(trace: Recorder, call: Call) -> Activation | None:
    """The same elements where they are."""
    return next(x for x in map(trace.activation, call.tensors) if x is not None)


def _elementwise(trace: Recorder, call: Call) -> Activation | None:
    op, operands = ELEMENTWISE[call.operator], [x for x in map(trace.activation, call.tensors) if x is not None]
    return trace.graph.elementwise(op, trace.name(op), operands, call.shape)


def _glu(trace: Recorder, call: Call) -> Activation | None:
    """One half of an activation gates the other."""
    halves = [trace.graph.moved([trace.read(call["self"])], call.shape) for _ in range(2)]
    return trace.graph.elementwise("mul", trace.name("mul"), halves, call.shape)


def _batch_norm(trace: Recorder, call: Call) -> Activation | None:
    """Folded, but where the statistics are those of the input, as in instance normalization."""
    own_statistics = any(call.arguments.get(key) for key in ("training", "train", "use_input_stats"))
    x = trace.read(call["input"])
    return trace.graph.whole("norm", trace.name("norm"), x) if own_statistics else x


def _convolution(trace: Recorder, call: Call) -> Activation | None:
    x, weight = trace.read(call["input"]), call["weight"]
    kernel, groups, name = weight.shape[2:], call["groups"], trace.name("conv", weight)
    if len(kernel) > 2:
        trace.report(f"aten::convolution over {len(kernel)} axes")
        return None
    if call["transposed"]:
        return trace.graph.transposed_conv(name, x, weight.shape[1] * groups, kernel, call.shape, groups)
    padding, stride, dilation = call["padding"], call["stride"], call["dilation"]
    return trace.graph.conv(
        name, x, weight.shape[0], kernel, stride, padding, dilation, groups, weight=trace.activation(weight)
    )


def _product(trace: Recorder, a: Any, b: Any) -> Activation:
    """(count, m, k) by (count, k, n), where either may be weights and lack axes."""
    (m, k), n = (1, a.shape[0]) if a.dim() == 1 else a.shape[-2:], b.shape[-1] if b.dim() > 1 else 1
    count = math.prod(a.shape[:-2])
    x, y = trace.activation(a), trace.activation(b)
    if x is not None and y is not None:
        return trace.graph.matmul(trace.name("matmul"), x, y, m, k, n, count)
    if y is None and (x is not None or not trace.is_parameter(a)):
        return trace.graph.linear(trace.name("linear", b), trace.read(a), k, n, rows=m, count=count)
    return trace.graph.linear(trace.name("linear", a), trace.read(b), k, m, rows=n, count=count)


def _mm(trace: Recorder, call: Call) -> Activation | None:
    return _product(trace, *_operands(call, ("self", "mat2"), ("self", "vec"), ("self", "tensor")))


def _addmm(trace: Recorder, call: Call) -> Activation | None:
    """A product plus something: a bias, or an activation to be added."""
    product = _product(trace, *_operands(call, ("mat1", "mat2"), ("batch1", "batch2"), ("mat", "vec")))
    other = trace.activation(call["self"])
    if other is None:
        return product
    return trace.graph.elementwise("add", trace.name("add"), [product, other], call.shape)


def _operands(call: Call, *names: tuple[str, str]) -> tuple[Any, Any]:
    first, second = next(pair for pair in names if pair[1] in call.arguments)
    return call[first], call[second]


def _linear(trace: Recorder, call: Call) -> Activation | None:
    """``linear`` where a backend keeps it whole."""
    weight, x = call["weight"], trace.read(call["input"])
    rows = math.prod(x.shape[:-1])
    return trace.graph.linear(trace.name("linear", weight), x, weight.shape[1], weight.shape[0], rows)


def _batched(x: Activation, axes: int) -> Activation:
    """With a batch axis, where the module ran on a single image."""
    return x if len(x.shape) > axes + 1 else dataclasses.replace(x, shape=(1, *x.shape))


def _pool(trace: Recorder, call: Call) -> Activation | None:
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


def _adaptive_pool(trace: Recorder, call: Call) -> Activation | None:
    axes = 1 if "1d" in call.operator else 2
    x = _batched(trace.read(call["self"]), axes)
    return trace.graph.resampled("pool", trace.name("pool"), x, call.shape[-axes:])


def _resize(trace: Recorder, call: Call) -> Activation | None:
    x = trace.read(call["input" if "input" in call.arguments else "self"])
    return trace.graph.resampled("resize", trace.name("resize"), x, call.shape[2:])


def _reduce(trace: Recorder, call: Call) -> Activation | None:
    x = trace.read(call["self"])
    if "other" in call.arguments:
        return _elementwise(trace, dataclasses.replace(call, operator="maximum"))
    dim = call.arguments.get("dim")
    axes = range(len(x.shape)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return trace.graph.reduced(trace.name("pool"), x, axes)


def _layer_norm(trace: Recorder, call: Call) -> Activation | None:
    x = trace.read(call["input"])
    return trace.graph.rows("norm", trace.name("norm"), x, math.prod(call["normalized_shape"]))


def _group_norm(trace: Recorder, call: Call) -> Activation | None:
    return trace.graph.whole("norm", trace.name("norm"), trace.read(call["input"]))


def _softmax(trace: Recorder, call: Call) -> Activation | None:
    x = trace.read(call["self"])
    return trace.graph.rows("softmax", trace.name("softmax"), x, x.shape[call["dim"]])


def _embedding(trace: Recorder, call: Call) -> Activation | None:
    """Rows of a table: only those looked up move, when the next layer reads them."""
    table = trace.activation(call["weight"])
    return trace.graph.constant(call.shape) if table is None else trace.graph.moved([table], call.shape)


def _pad(trace: Recorder, call: Call) -> Activation | None:
    """Zeros around a map are the padding of the convolution that reads it."""
    x, pad = trace.read(call["self"]), tuple(call["pad"])
    if len(x.shape) not in (3, 4) or len(pad) > 2 * (len(x.shape) - 2) or min(pad) < 0 or call["value"] != 0:
        return None
    cols, rows = (*pad, 0, 0, 0, 0)[0:2], (*pad, 0, 0, 0, 0)[2:4]
    return trace.graph.padded(x, (rows, cols), call.shape)


Handler = Callable[["Recorder", Call], "Activation | None"]

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
    **each("alias detach clone contiguous lift lift_fresh _to_copy _native_batch_norm_legit_no_training", _unmoved),
    **each("dropout native_dropout alpha_dropout feature_dropout bernoulli", _unmoved),
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
