"""What becomes of each ONNX operator: a layer, part of one, or nothing, and why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodels.graph import Activation, NetworkError, Pair, each
from hwmodels.workload import Op

if TYPE_CHECKING:
    from hwmodels.from_onnx import Reader

Shape = tuple[int, ...]

#: Operators that make no layer, and why. Edges of the graph pass through them.
IGNORED: dict[str, str] = {
    **each(
        """
        Identity Cast CastLike Reshape Flatten Transpose Squeeze Unsqueeze Expand Tile Concat Split Slice GatherElements
        GatherND ScatterElements ScatterND Scatter DepthToSpace SpaceToDepth Trilu ReverseSequence
        """,
        "moves data by addressing only",
    ),
    **each("BatchNormalization", "folds into the neighbouring weights"),
    **each("Dropout", "does nothing in evaluation mode"),
    **each("QuantizeLinear DynamicQuantizeLinear DequantizeLinear", "fuses with the layer before it"),
}

#: Operators that take the shape of an activation and none of its data.
CONSTANTS = frozenset({"Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike"})

#: Operators that combine their operands element by element, and the layer that they make where two or more are
#: activations. Of one activation they are a function that fuses with the layer before.
ELEMENTWISE: dict[str, Op] = {
    **each("Add Sub Sum Max Min Mean Where Clip And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual", "add"),
    **each("Mul Div Pow Mod PRelu BitwiseAnd BitwiseOr BitwiseXor BitShift", "mul"),
    **each(
        """
        Relu LeakyRelu ThresholdedRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Swish Mish Tanh Softplus Softsign
        Gelu FastGelu QuickGelu Shrink Abs Neg Sign Exp Log Sqrt Reciprocal Erf Sin Cos Tan Sinh Cosh Asin Acos Atan
        Floor Ceil Round Not BitwiseNot IsNaN IsInf
        """,
        "mul",
    ),
}

#: Operators of ONNX Runtime that are one of the standard with other inputs: its name, and where its operands stand.
CONTRIBUTED: dict[str, tuple[str, tuple[int, ...]]] = {
    "QGemm": ("Gemm", (0, 3)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearSigmoid": ("Sigmoid", (0,)),
    "QLinearLeakyRelu": ("LeakyRelu", (0,)),
    "QLinearSoftmax": ("Softmax", (0,)),
    "QLinearConcat": ("Concat", tuple(range(2, 96, 3))),
    "FusedConv": ("Conv", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1)),
}


# --- handlers: each returns what its first output holds, or None where that is what its operands held -----------------


def _ignored(reader: Reader, node: Any) -> Activation | None:
    return None


def _elementwise(reader: Reader, node: Any) -> Activation | None:
    operands = [reader.read(name) for name in node.input if reader.activation(name) is not None]
    op = ELEMENTWISE[node.op_type]
    return reader.graph.elementwise(op, reader.name(node), operands, reader.shape(node.output[0]))


def _unmoved(reader: Reader, node: Any) -> Activation | None:
    """The same elements where they are; dequantized, as wide as they were quantized."""
    return reader.activation(node.input[0])


def _window(reader: Reader, x: Shape, kernel: Sequence[int], node: Any) -> tuple[Shape, list[Pair], Shape]:
    """Stride, padding and dilation of a convolution or pooling."""
    given, axes = reader.attributes(node), len(kernel)
    stride, dilation = tuple(given.get("strides", (1,) * axes)), tuple(given.get("dilations", (1,) * axes))
    ends = given.get("pads", (0,) * 2 * axes)
    pads = list(zip(ends[:axes], ends[axes:], strict=True))
    auto = given.get("auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        for i, size in enumerate(x[2:]):
            total = max((-(-size // stride[i]) - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - size, 0)
            pads[i] = (total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2)
    return stride, pads, dilation


def _conv(reader: Reader, node: Any) -> Activation | None:
    w = node.input[3] if node.op_type == "QLinearConv" else node.input[1]
    x, weight, (out_channels, _, *kernel) = reader.read(node.input[0]), reader.activation(w), reader.shape(w)
    if len(kernel) > 2:
        reader.report(f"{node.op_type} over {len(kernel)} axes", node)
        return None
    stride, pads, dilation = _window(reader, x.shape, kernel, node)
    groups = reader.attributes(node).get("group", 1)
    return reader.graph.conv(
        reader.name(node, w), x, out_channels, kernel, stride, pads, dilation, groups, weight, reader.weight_bits(w)
    )


def _transposed_conv(reader: Reader, node: Any) -> Activation | None:
    w, groups = node.input[1], reader.attributes(node).get("group", 1)
    x, (_, out_channels, *kernel) = reader.read(node.input[0]), reader.shape(w)
    if len(kernel) > 2:
        reader.report(f"{node.op_type} over {len(kernel)} axes", node)
        return None
    return reader.graph.transposed_conv(
        reader.name(node, w), x, out_channels * groups, kernel, reader.shape(node.output[0]), groups,
        reader.weight_bits(w),
    )  # fmt: skip


def _product(reader: Reader, node: Any, a: str, b: str, s: Shape, t: Shape) -> Activation:
    """(..., m, k) by (..., k, n) of shapes ``s`` and ``t``, where either may be weights."""
    s, t = s if len(s) > 1 else (1, *s), t if len(t) > 1 else (*t, 1)
    batch = np.broadcast_shapes(s[:-2], t[:-2])
    (m, k), n, count = s[-2:], t[-1], math.prod(batch)
    shape = (*batch, m, n)
    x, y = reader.activation(a), reader.activation(b)
    weight = "" if x is not None and y is not None else a if y is not None else b
    if len(t) == 2 or (weight == b and math.prod(t[:-2]) == 1):  # one right factor for all rows
        m, count = count * m, 1
    elif len(s) == 2 or (weight == a and math.prod(s[:-2]) == 1):
        n, count = count * n, 1
    bits = reader.weight_bits(weight)
    if x is not None and y is not None:
        product = reader.graph.matmul(reader.name(node), x, y, m, k, n, count)
    elif weight == b:
        product = reader.graph.linear(reader.name(node, b), reader.read(a), k, n, m, count, bits)
    else:
        product = reader.graph.linear(reader.name(node, a), reader.read(b), k, m, n, count, bits)
    return dataclasses.replace(product, shape=shape)


def _matmul(reader: Reader, node: Any) -> Activation | None:
    a, b = node.input[0], node.input[3 if node.op_type == "QLinearMatMul" else 1]
    return _product(reader, node, a, b, reader.shape(a), reader.shape(b))


def _gemm(reader: Reader, node: Any) -> Activation | None:
    """A product plus something: a bias, or an activation to be added."""
    given, (a, b) = reader.attributes(node), node.input[:2]
    s, t = reader.shape(a), reader.shape(b)
    s, t = s[::-1] if given.get("transA") else s, t[::-1] if given.get("transB") else t
    product = _product(reader, node, a, b, s, t)
    other = reader.activation(node.input[2]) if len(node.input) > 2 else None
    if other is None:
        return product
    return reader.graph.elementwise("add", f"{reader.name(node)}.add", [product, other], product.shape)


def _einsum(reader: Reader, node: Any) -> Activation | None:
    """A contraction of two operands: indices of both that stay, that go, and of one alone."""
    equation = reader.attributes(node)["equation"].decode().replace(" ", "")
    terms, _, out = equation.partition("->")
    letters = terms.split(",")
    if len(letters) != 2 or not out or "." in equation or any(len(set(term)) < len(term) for term in letters):
        reader.report(f"Einsum {equation!r}", node)
        return None
    (a, b), (left, right) = node.input, letters
    size = dict(zip(left + right, reader.shape(a) + reader.shape(b), strict=True))

    def extent(chosen: set[str]) -> int:
        return math.prod(size[letter] for letter in chosen)

    both, stay = set(left) & set(right), set(out)
    count, k = extent(both & stay), extent(both - stay)
    m, n = extent(set(left) - both), extent(set(right) - both)
    return _product(reader, node, a, b, (count, m, k), (count, k, n))


def _attention(reader: Reader, node: Any) -> Activation | None:
    """Two products of activations around a softmax, heads of a shared key repeated."""
    q, k, v = (reader.read(name) for name in node.input[:3])
    given, name = reader.attributes(node), reader.name(node)
    heads = q.shape[1] if len(q.shape) == 4 else given["q_num_heads"]
    key_heads = k.shape[1] if len(k.shape) == 4 else given["kv_num_heads"]
    rows, columns, count = q.shape[-2], k.shape[-2], q.shape[0] * heads
    depth = q.shape[-1] if len(q.shape) == 4 else q.shape[-1] // heads
    depth_v = v.shape[-1] if len(v.shape) == 4 else v.shape[-1] // key_heads
    scores = reader.graph.matmul(f"{name}.matmul", q, k, rows, depth, columns, count)
    weights = reader.graph.rows("softmax", f"{name}.softmax", scores, columns)
    return reader.graph.matmul(f"{name}.matmul", weights, v, rows, columns, depth_v, count)


def _pool(reader: Reader, node: Any) -> Activation | None:
    x, kernel = reader.read(node.input[0]), reader.attributes(node)["kernel_shape"]
    if len(kernel) > 2:
        reader.report(f"{node.op_type} over {len(kernel)} axes", node)
        return None
    stride, pads, dilation = _window(reader, x.shape, kernel, node)
    return reader.graph.pool(reader.name(node), x, kernel, stride, pads, dilation, reader.shape(node.output[0])[2:])


def _global_pool(reader: Reader, node: Any) -> Activation | None:
    x = reader.read(node.input[0])
    return reader.graph.reduced(reader.name(node), x, range(2, len(x.shape)))


def _reduce(reader: Reader, node: Any) -> Activation | None:
    x, given = reader.read(node.input[0]), reader.attributes(node)
    axes = given.get("axes", [given["axis"]] if "axis" in given else None)
    if axes is None and len(node.input) > 1 and node.input[1]:
        axes = reader.value(node.input[1])
        if axes is None:
            raise NetworkError(
                f"from_onnx: {reader.called} must give the axes of node {node.name or node.op_type!r} as a constant, "
                "but they are computed; export it with constant folding."
            )
    return reader.graph.reduced(
        reader.name(node), x, axes or ([] if given.get("noop_with_empty_axes") else range(len(x.shape)))
    )


def _layer_norm(reader: Reader, node: Any) -> Activation | None:
    x = reader.read(node.input[0])
    axis = reader.attributes(node).get("axis", -1) % len(x.shape)
    return reader.graph.rows("norm", reader.name(node), x, math.prod(x.shape[axis:]))


def _group_norm(reader: Reader, node: Any) -> Activation | None:
    return reader.graph.whole("norm", reader.name(node), reader.read(node.input[0]))


def _softmax(reader: Reader, node: Any) -> Activation | None:
    """Before operator set 13 it flattens all axes from the given one on."""
    x, given = reader.read(node.input[0]), reader.attributes(node)
    axis = given.get("axis", -1 if reader.opset >= 13 else 1) % len(x.shape)
    features = x.shape[axis] if reader.opset >= 13 else math.prod(x.shape[axis:])
    return reader.graph.rows("softmax", reader.name(node), x, features)


def _resize(reader: Reader, node: Any) -> Activation | None:
    x, out = reader.read(node.input[0]), reader.shape(node.output[0])
    if len(x.shape) not in (3, 4) or out[:2] != x.shape[:2]:
        reader.report(f"{node.op_type} from {x.shape} to {out}", node)
        return None
    return reader.graph.resampled("resize", reader.name(node), x, out[2:])


def _gather(reader: Reader, node: Any) -> Activation | None:
    """A slice, or rows of a table: only those looked up move, when the next layer reads them."""
    return reader.graph.constant(reader.shape(node.output[0])) if reader.activation(node.input[0]) is None else None


def _pad(reader: Reader, node: Any) -> Activation | None:
    """Zeros around a map are the padding of the convolution that reads it."""
    x, given = reader.read(node.input[0]), reader.attributes(node)
    operands = [*node.input[1:], "", "", ""]
    ends = given.get("pads") or reader.value(operands[0])
    fill = reader.value(operands[1]) if operands[1] else [given.get("value", 0)]
    axes = len(x.shape)
    if (
        given.get("mode", b"constant") != b"constant"
        or fill != [0]
        or operands[2]
        or ends is None
        or axes not in (3, 4)
    ):
        return None
    (batch, channels, *pads) = [(int(ends[i]), int(ends[axes + i])) for i in range(axes)]
    if batch != (0, 0) or channels != (0, 0) or min(map(min, pads)) < 0:
        return None
    rows, columns = [(0, 0), *pads][-2:]
    return reader.graph.padded(x, (rows, columns), reader.shape(node.output[0]))


Handler = Callable[["Reader", Any], "Activation | None"]

#: Products are layers even where both operands are constants, since the network executes them.
PRODUCTS: dict[str, Handler] = {
    **each("Conv ConvInteger QLinearConv", _conv),
    **each("ConvTranspose", _transposed_conv),
    **each("MatMul MatMulInteger QLinearMatMul", _matmul),
    **each("Gemm", _gemm),
    **each("Einsum", _einsum),
    **each("Attention", _attention),
}

#: What becomes of each operator. Anything else is reported as unknown.
OPERATORS: dict[str, Handler] = {
    **dict.fromkeys(IGNORED, _ignored),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **PRODUCTS,
    **each("Identity Cast CastLike BatchNormalization Dropout", _unmoved),
    **each("QuantizeLinear DynamicQuantizeLinear DequantizeLinear", _unmoved),
    **each("Gather", _gather),
    **each("Pad", _pad),
    **each("MaxPool AveragePool LpPool", _pool),
    **each("GlobalAveragePool GlobalMaxPool GlobalLpPool", _global_pool),
    **each("ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSumExp", _reduce),
    **each("ReduceSumSquare ReduceLogSum ArgMax ArgMin", _reduce),
    **each("LayerNormalization RMSNormalization", _layer_norm),
    **each("InstanceNormalization GroupNormalization MeanVarianceNormalization LRN LpNormalization", _group_norm),
    **each("Softmax LogSoftmax", _softmax),
    **each("Resize Upsample", _resize),
}
