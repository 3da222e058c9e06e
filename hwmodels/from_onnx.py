"""An ONNX file as a `Workload`, with the bitwidths of its quantized operators."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodels.graph import Activation, Graph, NetworkError, Pair, each, unknown_operators_text
from hwmodels.workload import Op, Workload

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)
Shape = tuple[int, ...]

#: Operators that make no layer, and why. Edges of the graph pass through them.
IGNORED: dict[str, str] = {
    **each(
        """
        Identity Cast CastLike Reshape Flatten Transpose Squeeze Unsqueeze Expand Tile Concat Split Slice GatherElements
        GatherND ScatterElements ScatterND Scatter DepthToSpace SpaceToDepth Trilu ReverseSequence Compress Optional
        """,
        "moves data by addressing only",
    ),
    **each("BatchNormalization", "folds into the neighbouring weights"),
    **each("Dropout", "does nothing in evaluation mode"),
    **each("QuantizeLinear DynamicQuantizeLinear", "fuses with the layer before it"),
}

#: Operators that take the shape of an activation and none of its data.
CONSTANTS = frozenset({"Shape", "Size", "ConstantOfShape", "EyeLike"})

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


class _Reader:
    """Goes through the nodes of a graph with known shapes and records them in a `Graph`."""

    def __init__(self, model: onnx.ModelProto, called: str, bits: int) -> None:
        import onnx

        self.graph = Graph(bits)
        self.called = called
        self.unknown: dict[str, list[str]] = {}
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
        self._shapes: dict[str, Shape] = {}
        self._types: dict[str, int] = {}
        self._values: dict[str, onnx.TensorProto] = {}
        self._activations: dict[str, Activation | None] = {"": None}
        self._origin: dict[str, str] = {}  # the initializer that a constant comes from
        self._constant_bits: dict[str, int] = {}
        self._type_name = onnx.TensorProto.DataType.Name
        for info in (*model.graph.value_info, *model.graph.input, *model.graph.output):
            tensor = info.type.tensor_type
            dims = [dim.dim_value for dim in tensor.shape.dim]
            self._types[info.name] = tensor.elem_type
            if tensor.HasField("shape") and all(dim > 0 for dim in dims):
                self._shapes[info.name] = tuple(dims)
        for value in model.graph.initializer:
            self._keep(value.name, value)
            self._origin[value.name] = value.name
        for info in model.graph.input:
            if info.name not in self._activations:
                self._activations[info.name] = self.graph.input(self._shapes[info.name])
        for node in model.graph.node:
            self._record(node)

    def _keep(self, name: str, value: onnx.TensorProto) -> None:
        self._values[name], self._activations[name] = value, None
        self._shapes[name], self._types[name] = tuple(value.dims), value.data_type

    # --- what a node sees -------------------------------------------------------------------------------------------

    def shape(self, name: str) -> Shape:
        """The shape of a tensor.

        Raises
        ------
        NetworkError
            Where neither the file nor shape inference knows it.
        """
        if name not in self._shapes:
            raise NetworkError(
                f"from_onnx: {self.called} must have static shapes, but that of tensor {name!r} is unknown after shape "
                "inference; give input_shape, or export the network with fixed shapes."
            )
        return self._shapes[name]

    def activation(self, name: str) -> Activation | None:
        """What a tensor holds, at the width of its type where that is quantized; None for constants."""
        x, bits = self._activations[name], self.quantized_bits(name)
        return x if x is None or bits is None else dataclasses.replace(x, bits=bits)

    def read(self, name: str) -> Activation:
        """The activation that a layer reads, a constant standing for itself."""
        x = self.activation(name)
        if x is None:
            x = self._activations[name] = self.graph.constant(self.shape(name))
        return x

    def quantized_bits(self, name: str) -> int | None:
        """The width of a tensor's type; None for floats of 16 bits or more, and for accumulators."""
        found = re.match(r"(?:U?INT|FLOAT)(\d+)", self._type_name(self._types.get(name, 0)))
        bits = int(found[1]) if found else 32
        return bits if bits <= 8 or (bits == 16 and "INT16" in self._type_name(self._types[name])) else None

    def weight_bits(self, name: str) -> int:
        """The width of a constant operand: that of its type, or of the type that it was dequantized from."""
        return self.quantized_bits(name) or self._constant_bits.get(name, self.graph.bits)

    def value(self, name: str) -> list[Any] | None:
        """The numbers of a small constant; None for one that is computed."""
        from onnx import numpy_helper

        stored = self._values.get(name)
        return None if stored is None else list(numpy_helper.to_array(stored).reshape(-1).tolist())

    def name(self, node: onnx.NodeProto, weight: str = "") -> str:
        """A layer's name: its weight's as the exporter keeps it, or the node's."""
        stem, found, _ = self._origin.get(weight, "").partition(".weight")
        return stem if found and stem else node.name or f"{node.op_type}:{node.output[0]}"

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _record(self, node: onnx.NodeProto) -> None:
        missing = [name for name in node.input if name not in self._activations]
        if missing:
            raise NetworkError(
                f"from_onnx: {self.called} must be a sorted graph, but node {node.name or node.op_type!r} reads "
                f"{', '.join(map(repr, missing))}, which nothing before it writes."
            )
        operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        sources = [x for x in map(self.activation, node.input) if x is not None]
        if operator in CONSTANTS or (not sources and operator not in PRODUCTS):
            self._derive_constants(node)
            return
        handler = OPERATORS.get(operator)
        if handler is None:
            self.unknown.setdefault(operator, []).append(node.name)
        result = handler(self, node) if handler else None
        for i, name in enumerate(node.output):
            held = sources if result is None else [result]
            shape = self._shapes.get(name, max(held, key=lambda x: x.count).shape)
            if result is None or i > 0:
                self._activations[name] = self.graph.moved(held, shape)
            else:
                self._activations[name] = dataclasses.replace(result, shape=shape)
            self._shapes.setdefault(name, shape)
        if node.op_type == "DynamicQuantizeLinear":
            self._activations.update(dict.fromkeys(node.output[1:]))

    def _derive_constants(self, node: onnx.NodeProto) -> None:
        """Constants computed from an initializer keep its name, and the width that it was stored at."""
        for name in node.output:
            self._activations[name] = None
            for source in node.input[:1]:
                self._constant_bits[name] = self.weight_bits(source)
                if source in self._origin:
                    self._origin[name] = self._origin[source]
                if node.op_type in ("Identity", "Cast") and source in self._values:
                    self._values[name] = self._values[source]
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                self._keep(node.output[0], attribute.t)


# --- handlers: each returns what its first output holds, or None where that is what its operands held -----------------


def _ignored(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    return None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _elementwise(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    operands = [x for x in map(reader.activation, node.input) if x is not None]
    op = ELEMENTWISE[node.op_type]
    return reader.graph.elementwise(op, reader.name(node), operands, reader.shape(node.output[0]))


def _dequantize(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    """The same activation, as wide as it was quantized."""
    return reader.activation(node.input[0])


def _window(x: Shape, kernel: Sequence[int], node: onnx.NodeProto) -> tuple[Shape, list[Pair], Shape]:
    """Stride, padding and dilation of a convolution or pooling."""
    given, axes = _attributes(node), len(kernel)
    stride, dilation = tuple(given.get("strides", (1,) * axes)), tuple(given.get("dilations", (1,) * axes))
    ends = given.get("pads", (0,) * 2 * axes)
    pads = list(zip(ends[:axes], ends[axes:], strict=True))
    auto = given.get("auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        for i, size in enumerate(x[2:]):
            total = max((-(-size // stride[i]) - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - size, 0)
            pads[i] = (total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2)
    return stride, pads, dilation


def _conv(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    w = node.input[3] if node.op_type == "QLinearConv" else node.input[1]
    x, weight, (out_channels, _, *kernel) = reader.read(node.input[0]), reader.activation(w), reader.shape(w)
    if len(kernel) > 2:
        reader.unknown.setdefault(f"{node.op_type} over {len(kernel)} axes", []).append(node.name)
        return None
    stride, pads, dilation = _window(x.shape, kernel, node)
    groups = _attributes(node).get("group", 1)
    return reader.graph.conv(
        reader.name(node, w), x, out_channels, kernel, stride, pads, dilation, groups, weight, reader.weight_bits(w)
    )


def _transposed_conv(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    w, groups = node.input[1], _attributes(node).get("group", 1)
    x, (_, out_channels, *kernel) = reader.read(node.input[0]), reader.shape(w)
    if len(kernel) > 2:
        reader.unknown.setdefault(f"{node.op_type} over {len(kernel)} axes", []).append(node.name)
        return None
    return reader.graph.transposed_conv(
        reader.name(node, w), x, out_channels * groups, kernel, reader.shape(node.output[0]), groups,
        reader.weight_bits(w),
    )  # fmt: skip


def _product(reader: _Reader, node: onnx.NodeProto, a: str, b: str, s: Shape, t: Shape) -> Activation:
    """(..., m, k) by (..., k, n) of shapes ``s`` and ``t``, where either may be weights."""
    s, t = s if len(s) > 1 else (1, *s), t if len(t) > 1 else (*t, 1)
    (m, k), n, count = s[-2:], t[-1], math.prod(np.broadcast_shapes(s[:-2], t[:-2]))
    x, y = reader.activation(a), reader.activation(b)
    weight = "" if x is not None and y is not None else a if y is not None else b
    if len(t) == 2 or (weight == b and math.prod(t[:-2]) == 1):  # one right factor for all rows
        m, count = count * m, 1
    elif len(s) == 2 or (weight == a and math.prod(s[:-2]) == 1):
        n, count = count * n, 1
    if x is not None and y is not None:
        return reader.graph.matmul(reader.name(node), x, y, m, k, n, count)
    bits = reader.weight_bits(weight)
    if weight == b:
        return reader.graph.linear(reader.name(node, b), reader.read(a), k, n, m, count, bits)
    return reader.graph.linear(reader.name(node, a), reader.read(b), k, m, n, count, bits)


def _matmul(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    a, b = node.input[0], node.input[3 if node.op_type == "QLinearMatMul" else 1]
    return _product(reader, node, a, b, reader.shape(a), reader.shape(b))


def _gemm(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    """A product plus something: a bias, or an activation to be added."""
    given, (a, b) = _attributes(node), node.input[:2]
    s, t = reader.shape(a), reader.shape(b)
    s, t = s[::-1] if given.get("transA") else s, t[::-1] if given.get("transB") else t
    product = _product(reader, node, a, b, s, t)
    other = reader.activation(node.input[2]) if len(node.input) > 2 else None
    if other is None:
        return product
    product = dataclasses.replace(product, shape=(s[0], t[1]))
    return reader.graph.elementwise("add", f"{reader.name(node)}.add", [product, other], product.shape)


def _einsum(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    """A contraction of two operands: indices of both that stay, that go, and of one alone."""
    equation = _attributes(node)["equation"].decode().replace(" ", "")
    terms, _, out = equation.partition("->")
    letters = terms.split(",")
    if len(letters) != 2 or not out or "." in equation or any(len(set(term)) < len(term) for term in letters):
        reader.unknown.setdefault(f"Einsum {equation!r}", []).append(node.name)
        return None
    (a, b), (left, right) = node.input, letters
    size = dict(zip(left + right, reader.shape(a) + reader.shape(b), strict=True))

    def extent(chosen: set[str]) -> int:
        return math.prod(size[letter] for letter in chosen)

    both, stay = set(left) & set(right), set(out)
    count, k = extent(both & stay), extent(both - stay)
    m, n = extent(set(left) - both), extent(set(right) - both)
    return _product(reader, node, a, b, (count, m, k), (count, k, n))


def _attention(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    """Two products of activations around a softmax, heads of a shared key repeated."""
    q, k, v = (reader.read(name) for name in node.input[:3])
    given, name = _attributes(node), reader.name(node)
    heads = q.shape[1] if len(q.shape) == 4 else given["q_num_heads"]
    key_heads = k.shape[1] if len(k.shape) == 4 else given["kv_num_heads"]
    rows, columns, count = q.shape[-2], k.shape[-2], q.shape[0] * heads
    depth = q.shape[-1] if len(q.shape) == 4 else q.shape[-1] // heads
    depth_v = v.shape[-1] if len(v.shape) == 4 else v.shape[-1] // key_heads
    scores = reader.graph.matmul(f"{name}.matmul", q, k, rows, depth, columns, count)
    weights = reader.graph.rows("softmax", f"{name}.softmax", scores, columns)
    return reader.graph.matmul(f"{name}.matmul", weights, v, rows, columns, depth_v, count)


def _pool(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    x, kernel = reader.read(node.input[0]), _attributes(node)["kernel_shape"]
    if len(kernel) > 2:
        reader.unknown.setdefault(f"{node.op_type} over {len(kernel)} axes", []).append(node.name)
        return None
    stride, pads, dilation = _window(x.shape, kernel, node)
    return reader.graph.pool(reader.name(node), x, kernel, stride, pads, dilation, reader.shape(node.output[0])[2:])


def _global_pool(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    x = reader.read(node.input[0])
    return reader.graph.reduced(reader.name(node), x, range(2, len(x.shape)))


def _reduce(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    x, given = reader.read(node.input[0]), _attributes(node)
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


def _layer_norm(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    x = reader.read(node.input[0])
    axis = _attributes(node).get("axis", -1) % len(x.shape)
    return reader.graph.rows("norm", reader.name(node), x, math.prod(x.shape[axis:]))


def _group_norm(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    return reader.graph.whole("norm", reader.name(node), reader.read(node.input[0]))


def _softmax(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    """Before operator set 13 it flattens all axes from the given one on."""
    x, given = reader.read(node.input[0]), _attributes(node)
    axis = given.get("axis", -1 if reader.opset >= 13 else 1) % len(x.shape)
    features = x.shape[axis] if reader.opset >= 13 else math.prod(x.shape[axis:])
    return reader.graph.rows("softmax", reader.name(node), x, features)


def _resize(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    x, out = reader.read(node.input[0]), reader.shape(node.output[0])
    if len(x.shape) not in (3, 4) or out[:2] != x.shape[:2]:
        reader.unknown.setdefault(f"{node.op_type} from {x.shape} to {out}", []).append(node.name)
        return None
    return reader.graph.resampled("resize", reader.name(node), x, out[2:])


def _gather(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    """A slice, or rows of a table: only those looked up move, when the next layer reads them."""
    return reader.graph.constant(reader.shape(node.output[0])) if reader.activation(node.input[0]) is None else None


def _pad(reader: _Reader, node: onnx.NodeProto) -> Activation | None:
    """Zeros around a map are the padding of the convolution that reads it."""
    x, given = reader.read(node.input[0]), _attributes(node)
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


Handler = Callable[[_Reader, "onnx.NodeProto"], "Activation | None"]

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
    **each("DequantizeLinear", _dequantize),
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


# --- the file -------------------------------------------------------------------------------------------------------


def _load(source: str | os.PathLike[str] | onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The model without its weights, as far as the file keeps them apart, and what to call it."""
    import onnx

    if isinstance(source, onnx.ModelProto):
        model, called = onnx.ModelProto(), source.graph.name or "the model"
        model.CopyFrom(source)
        return model, called
    path = Path(source)
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise NetworkError(f"from_onnx: {path} must be a file that can be read: {error.strerror or error}.") from error
    except Exception as error:
        raise NetworkError(f"from_onnx: {path} must be an ONNX file; it is truncated or something else.") from error
    if not model.graph.node or not model.graph.output:
        raise NetworkError(f"from_onnx: {path} must be an ONNX file with a graph; it is truncated or something else.")
    return model, str(path)


def _lighten(model: onnx.ModelProto) -> None:
    """Leave out the data of the weights, which shape inference would copy."""
    for value in model.graph.initializer:
        if math.prod(value.dims) > 1024:
            kept = (value.name, list(value.dims), value.data_type)
            value.Clear()
            value.name, value.data_type = kept[0], kept[2]
            value.dims.extend(kept[1])
            value.data_location = value.EXTERNAL


def _standardize(model: onnx.ModelProto) -> None:
    """Operators of ONNX Runtime as those of the standard that they extend."""
    for node in model.graph.node:
        if node.domain == "com.microsoft" and node.op_type in CONTRIBUTED:
            operator, places = CONTRIBUTED[node.op_type]
            operands = [node.input[i] for i in places if i < len(node.input)]
            del node.input[:]
            node.input.extend(operands)
            node.op_type, node.domain = operator, ""
        elif node.domain == "com.microsoft" and node.op_type in OPERATORS:
            node.domain = ""


def _text(dims: Sequence[Any]) -> str:
    return "(" + ", ".join(str(dim) for dim in dims) + ")"


def _fix_inputs(
    model: onnx.ModelProto, called: str, input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None
) -> None:
    """Give every input of the network a static shape."""
    weights = {value.name for value in model.graph.initializer}
    inputs = {info.name: info for info in model.graph.input if info.name not in weights}
    if not inputs:
        raise NetworkError(f"from_onnx: {called} must have an input, but its graph has none.")
    given: dict[str, Sequence[int]] = {}
    if isinstance(input_shape, Mapping):
        unknown = sorted(set(input_shape) - set(inputs))
        if unknown:
            raise NetworkError(
                f"from_onnx: input_shape must name inputs of {called}, which are {', '.join(inputs)}; "
                f"got {', '.join(unknown)}."
            )
        given = dict(input_shape)
    elif input_shape is not None:
        given = {next(iter(inputs)): input_shape}
    for name, info in inputs.items():
        tensor = info.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
        if name in given:
            shape = [int(size) for size in given[name]]
            if min(shape, default=0) < 1 or (tensor.HasField("shape") and len(shape) != len(dims)):
                raise NetworkError(
                    f"from_onnx: input_shape for input {name!r} of {called} must be {len(dims)} sizes of at least 1, "
                    f"as in {_text(dims)}, got {_text(shape)}."
                )
            tensor.shape.Clear()
            for size in shape:
                tensor.shape.dim.add().dim_value = size
        elif not tensor.HasField("shape") or any(isinstance(dim, str) or dim < 1 for dim in dims):
            example = [dim if isinstance(dim, int) and dim > 0 else 1 for dim in dims] or [1, 3, 224, 224]
            how = _text(example) if len(inputs) == 1 else f"{{{name!r}: {_text(example)}}}"
            raise NetworkError(
                f"from_onnx: the inputs of {called} must have static shapes, but input {name!r} is {_text(dims)}; "
                f"give its shape, for instance input_shape={how}."
            )
    if given:
        del model.graph.value_info[:]
        for info in model.graph.output:
            info.type.tensor_type.ClearField("shape")


def from_onnx(
    source: str | os.PathLike[str] | onnx.ModelProto,
    *,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    name: str | None = None,
    float_bits: int = 8,
    ignore_unknown: bool = False,
) -> Workload:
    """The layers of an ONNX network and the activations between them.

    Parameters
    ----------
    source : path or onnx.ModelProto
        Weights kept in files beside it are not read.
    input_shape : tuple of int, or mapping from input to tuple of int, optional
        For inputs of dynamic shape, or in place of the shapes in the file; a tuple is that of the first input.
    name : str, optional
        The workload's; the file's where none is given.
    float_bits : int
        Bitwidth of operands that the file does not quantize. Floating-point types say nothing of the width that
        a network could be quantized to, so it is 8 unless asked, as for every other source.
    ignore_unknown : bool
        Leave out the operators that have no meaning here, with a warning in the log that names them.

    Returns
    -------
    Workload
        With the bitwidths of integer types of 2, 4, 8 and 16 bits: those of quantized operators (``QLinearConv``,
        ``ConvInteger``, ``QLinearMatMul``, ``MatMulInteger``), and those that ``DequantizeLinear`` reads before a
        ``Conv``, ``Gemm`` or ``MatMul``. Layers are named after their weight where the exporter kept its name,
        and after the node otherwise.

    Raises
    ------
    ImportError
        Without the package onnx.
    NetworkError
        For a file that is missing, truncated or something else; for dynamic or missing shapes; and for operators
        without a meaning here, all of them in one message.

    Notes
    -----
    Operators become layers by the rules of `hwmodels.from_torch`, so the export of a torch network is the same
    workload. What an exporter has already computed, from constants alone, is no longer there to be counted.
    """
    try:
        from onnx import inliner, shape_inference
    except ImportError as error:
        raise ImportError("from_onnx needs the package onnx: pip install onnx, or the extra 'onnx'.") from error
    model, called = _load(source)
    _fix_inputs(model, called, input_shape)
    _lighten(model)
    if model.functions:
        model = inliner.inline_local_functions(model)
    _standardize(model)
    model = shape_inference.infer_shapes(model, data_prop=True)
    reader = _Reader(model, called, float_bits)
    if reader.unknown:
        text = unknown_operators_text(f"from_onnx: {called}", reader.unknown)
        if not ignore_unknown:
            raise NetworkError(text)
        logger.warning("%s", text)
    if not reader.graph.layers:
        raise NetworkError(f"from_onnx: {called} must have at least one layer, but none of its nodes makes one.")
    weights = {value.name for value in model.graph.initializer}
    first = next(info.name for info in model.graph.input if info.name not in weights)
    stem = model.graph.name if called == (model.graph.name or "the model") else Path(called).stem
    return reader.graph.workload(name or stem or "onnx", reader.shape(first)[0] if reader.shape(first) else 1)
