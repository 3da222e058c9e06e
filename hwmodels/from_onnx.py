"""An ONNX file as a `Workload`, with the bitwidths of its quantized operators."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodels.graph import Activation, Graph, NetworkError, unknown_operators_text
from hwmodels.onnx_operators import CONSTANTS, CONTRIBUTED, OPERATORS, PRODUCTS, Shape
from hwmodels.workload import Workload

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

#: Constants of at most this many elements are computed where shapes may depend on them.
SMALL = 1024


class Reader:
    """Goes through the nodes of a graph, infers shapes as it goes, and records layers in a `Graph`."""

    def __init__(self, model: onnx.ModelProto, called: str, inputs: Mapping[str, Shape], bits: int) -> None:
        from onnx import TensorProto, helper

        self.graph = Graph(bits)
        self.called = called
        self.unknown: dict[str, list[str]] = {}
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
        self._type_name = TensorProto.DataType.Name
        self._types: dict[str, onnx.TypeProto] = {}
        self._failures: dict[str, str] = {}  # why shape inference did not succeed
        self._values: dict[str, onnx.TensorProto] = {}  # small constants
        self._activations: dict[str, Activation | None] = {"": None}
        self._origin: dict[str, str] = {}  # the initializer that a constant comes from
        self._constant_bits: dict[str, int] = {}
        self._stated: dict[str, onnx.TypeProto] = {}  # what the file says, where its own input shapes are taken
        if all(_static(info.type.tensor_type) in (inputs.get(info.name), None) for info in model.graph.input):
            self._stated = {info.name: info.type for info in (*model.graph.value_info, *model.graph.output)}
        for value in model.graph.initializer:
            self._keep(value.name, value)
            self._origin[value.name] = value.name
        for info in model.graph.input:
            if info.name in inputs:
                elem_type = info.type.tensor_type.elem_type
                self._types[info.name] = helper.make_tensor_type_proto(elem_type, inputs[info.name])
                self._activations[info.name] = self.graph.input(inputs[info.name])
        for node in model.graph.node:
            standard = _standardized(node)
            self._record(standard, contributed=standard is not node)

    def _keep(self, name: str, value: onnx.TensorProto) -> None:
        """A constant: its type, and its numbers where shapes may depend on them."""
        from onnx import helper

        self._activations[name] = None
        self._types[name] = helper.make_tensor_type_proto(value.data_type, list(value.dims))
        if math.prod(value.dims) <= SMALL and value.data_location != value.EXTERNAL:
            self._values[name] = value

    # --- what a node sees -------------------------------------------------------------------------------------------

    def shape(self, name: str) -> Shape:
        """The shape of a tensor.

        Raises
        ------
        NetworkError
            Where neither the file nor shape inference knows it.
        """
        shape = self._known_shape(name)
        if shape is None:
            reason = self._failures.get(name)
            raise NetworkError(
                f"from_onnx: {self.called} must have static shapes, but that of tensor {name!r} is unknown after shape "
                f"inference{f' ({reason})' if reason else ''}; give input_shape, or export it with fixed shapes."
            )
        return shape

    def _known_shape(self, name: str) -> Shape | None:
        return _static(self._types[name].tensor_type) if name in self._types else None

    def activation(self, name: str) -> Activation | None:
        """What a tensor holds, at the width of its type where that is quantized; None for constants."""
        x, bits = self._activations[name], self.quantized_bits(name)
        return x if x is None or bits is None else dataclasses.replace(x, bits=bits)

    def read(self, name: str) -> Activation:
        """The activation that a layer reads, a constant standing for itself, its shape known for certain."""
        x = self.activation(name)
        if x is None:
            x = self._activations[name] = self.graph.constant(self.shape(name))
        return dataclasses.replace(x, shape=self.shape(name))

    def quantized_bits(self, name: str) -> int | None:
        """The width of a tensor's type; None for floats of 16 bits or more, and for accumulators."""
        if name not in self._types:
            return None
        found = re.match(r"(U?INT|FLOAT)(\d+)", self._type_name(self._types[name].tensor_type.elem_type))
        widest = {"INT": 16, "UINT": 16, "FLOAT": 8}
        return int(found[2]) if found and int(found[2]) <= widest[found[1]] else None

    def weight_bits(self, name: str) -> int:
        """The width of a constant operand: that of its type, or of the type that it was dequantized from."""
        return self.quantized_bits(name) or self._constant_bits.get(name, self.graph.bits)

    def value(self, name: str) -> list[Any] | None:
        """The numbers of a small constant; None for one that is computed."""
        from onnx import numpy_helper

        stored = self._values.get(name)
        return None if stored is None else list(numpy_helper.to_array(stored).reshape(-1).tolist())

    @staticmethod
    def attributes(node: onnx.NodeProto) -> dict[str, Any]:
        """The attributes that a node states, by name."""
        from onnx import helper

        return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}

    def name(self, node: onnx.NodeProto, weight: str = "") -> str:
        """A layer's name: its weight's as the exporter keeps it, or the node's."""
        stem, found, _ = self._origin.get(weight, "").partition(".weight")
        return stem if found and stem else node.name or f"{node.op_type}:{node.output[0]}"

    def report(self, operator: str, node: onnx.NodeProto) -> None:
        """Note an operator that has no meaning here."""
        self.unknown.setdefault(operator, []).append(node.name)

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _record(self, node: onnx.NodeProto, contributed: bool) -> None:
        from onnx import TensorProto, helper

        missing = [name for name in node.input if name not in self._activations]
        if missing:
            raise NetworkError(
                f"from_onnx: {self.called} must be a sorted graph, but node {node.name or node.op_type!r} reads "
                f"{', '.join(map(repr, missing))}, which nothing before it writes."
            )
        self._infer(node, contributed)
        operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        read = node.input[:1] if node.op_type == "CastLike" else node.input
        sources = [x for x in map(self.activation, read) if x is not None]
        if operator in CONSTANTS or (not sources and operator not in PRODUCTS):
            self._derive_constants(node)
            return
        handler = OPERATORS.get(operator)
        if handler is None:
            self.report(operator, node)
        result = handler(self, node) if handler else None
        if handler is None and self._known_shape(node.output[0]) is None:  # left out: its output is like its input
            self._types[node.output[0]] = helper.make_tensor_type_proto(TensorProto.FLOAT, sources[0].shape)
        for i, name in enumerate(node.output):
            held, bits = sources if result is None else [result], self.quantized_bits(name)
            shape = self._known_shape(name) or max(held, key=lambda x: x.count).shape
            if result is None or i > 0:
                activation = self.graph.moved(held, shape)
            else:
                activation = dataclasses.replace(result, shape=shape)
            self._activations[name] = activation if bits is None else self.graph.quantized(activation, bits)
        if node.op_type == "DynamicQuantizeLinear":  # scale and zero point
            self._activations.update(dict.fromkeys(node.output[1:]))

    def _infer(self, node: onnx.NodeProto, contributed: bool) -> None:
        """Types of what a node writes, from types and small constants that it reads.

        Contributed operators take types that the standard does not allow, and give that of their operand.
        """
        from onnx import TensorProto, defs, helper, shape_inference

        types = {name: self._types[name] for name in node.input if name in self._types}
        values = {name: self._values[name] for name in node.input if name in self._values}
        quantizes = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if contributed and not quantizes:
            types = {name: helper.make_tensor_type_proto(TensorProto.FLOAT, self._known_shape(name)) for name in types}
        opset = defs.onnx_opset_version() if contributed else self.opset
        inferred: dict[str, onnx.TypeProto] = {}
        try:
            schema = defs.get_schema(node.op_type, opset, node.domain)
            imports = [helper.make_opsetid("", opset)]
            inferred = shape_inference.infer_node_outputs(schema, node, types, values, opset_imports=imports)
        except Exception as error:
            reason = f"{node.op_type}: {str(error).strip() or type(error).__name__}".splitlines()[0]
            reason = next((self._failures[name] for name in node.input if name in self._failures), reason)
            self._failures.update(dict.fromkeys(node.output, reason))
        if contributed and not quantizes:
            for tensor in inferred.values():
                tensor.tensor_type.elem_type = self._types[node.input[0]].tensor_type.elem_type
        self._types.update(inferred)
        for name in node.output:
            if self._known_shape(name) is None and name in self._stated:
                self._types[name] = self._stated[name]

    def _derive_constants(self, node: onnx.NodeProto) -> None:
        """Constants computed from an initializer keep its name, and the width that it was stored at."""
        from onnx import numpy_helper

        for name in node.output:
            self._activations[name] = None
            for source in node.input[:1]:
                self._constant_bits[name] = self.weight_bits(source)
                if source in self._origin:
                    self._origin[name] = self._origin[source]
        read = [name for name in node.input if name]
        if node.op_type == "Constant":
            kind, value = next(iter(self.attributes(node).items()))
            self._keep(node.output[0], value if kind == "value" else numpy_helper.from_array(np.asarray(value)))
        elif node.op_type == "Shape" and self._known_shape(read[0]) is not None:
            given = self.attributes(node)
            axes = slice(given.get("start", 0), given.get("end"))
            self._keep(node.output[0], numpy_helper.from_array(np.array(self.shape(read[0])[axes], dtype=np.int64)))
        elif all(name in self._values for name in read):
            small = math.prod(self._known_shape(node.output[0]) or (SMALL,)) <= SMALL
            for name, value in zip(node.output, self._compute(node, read) if small else (), strict=False):
                self._keep(name, numpy_helper.from_array(value))

    def _compute(self, node: onnx.NodeProto, read: list[str]) -> list[np.ndarray[Any, Any]]:
        """What a node makes of small constants: arithmetic on shapes."""
        from onnx import helper, numpy_helper, reference

        types = [helper.make_value_info(name, self._types[name]) for name in dict.fromkeys(read)]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "constants", types, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        values = {name: numpy_helper.to_array(self._values[name]) for name in read}
        try:
            return [np.asarray(x) for x in reference.ReferenceEvaluator(model).run(None, values)]
        except Exception as error:
            logger.debug("%s stays unknown: %s", node.output[0], error)
            return []


def _static(tensor: onnx.TypeProto.Tensor) -> Shape | None:
    """The shape of a type; None where it is unknown in part."""
    known = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
    return tuple(dim.dim_value for dim in tensor.shape.dim) if known else None


def _standardized(node: onnx.NodeProto) -> onnx.NodeProto:
    """An operator of ONNX Runtime as the one of the standard that it extends."""
    from onnx import NodeProto, defs

    operator, places = CONTRIBUTED.get(node.op_type, (node.op_type, range(len(node.input))))
    if node.domain != "com.microsoft" or operator not in OPERATORS or Reader.attributes(node).get("channels_last"):
        return node
    known = defs.get_schema(operator).attributes if defs.has(operator) else ()
    standard = NodeProto(op_type=operator, name=node.name, output=node.output)
    standard.input.extend(node.input[i] for i in places if i < len(node.input))
    standard.attribute.extend(attribute for attribute in node.attribute if attribute.name in known)
    return standard


# --- the file -------------------------------------------------------------------------------------------------------


def _load(source: str | os.PathLike[str] | onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The model, without weights that are kept in other files, and what to call it."""
    import onnx

    if isinstance(source, onnx.ModelProto):
        return source, source.graph.name or "the model"
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


def _text(dims: Sequence[Any]) -> str:
    return "(" + ", ".join(str(dim) for dim in dims) + ")"


def _input_shapes(
    model: onnx.ModelProto, called: str, input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None
) -> dict[str, Shape]:
    """The shape of every input of the network."""
    weights = {value.name for value in model.graph.initializer}
    inputs = {info.name: info.type.tensor_type for info in model.graph.input if info.name not in weights}
    if not inputs:
        raise NetworkError(f"from_onnx: {called} must have an input, but its graph has none.")
    given: Mapping[str, Sequence[int]] = {}
    if isinstance(input_shape, Mapping):
        given = input_shape
    elif input_shape is not None:
        given = {next(iter(inputs)): input_shape}
    if not set(given) <= set(inputs):
        raise NetworkError(
            f"from_onnx: input_shape must name inputs of {called}, which are {', '.join(inputs)}; "
            f"got {', '.join(sorted(set(given) - set(inputs)))}."
        )
    shapes = {}
    for name, tensor in inputs.items():
        dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
        stated = _text(dims) if tensor.HasField("shape") else "of unknown rank"
        if name not in given and (not tensor.HasField("shape") or any(isinstance(d, str) or d < 1 for d in dims)):
            known = [dim if isinstance(dim, int) and dim > 0 else 1 for dim in dims] or [1, 3, 224, 224]
            example, option = _text(known), ",".join(map(str, known))
            raise NetworkError(
                f"from_onnx: the inputs of {called} must have static shapes, but input {name!r} is {stated}; give its "
                f"shape, for instance input_shape={example if len(inputs) == 1 else f'{{{name!r}: {example}}}'}"
                + (f", or --input-shape {option}." if len(inputs) == 1 else ".")
            )
        shape = tuple(int(size) for size in given.get(name, dims))
        if min(shape, default=1) < 1 or (tensor.HasField("shape") and len(shape) != len(dims)):
            raise NetworkError(
                f"from_onnx: input_shape for input {name!r} of {called} must be sizes of at least 1, one for each of "
                f"{stated}, got {_text(shape)}."
            )
        shapes[name] = shape
    return shapes


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
        from onnx import inliner
    except ImportError as error:
        raise ImportError("from_onnx needs the package onnx: pip install onnx, or the extra 'onnx'.") from error
    model, called = _load(source)
    inputs = _input_shapes(model, called, input_shape)
    reader = Reader(inliner.inline_local_functions(model) if model.functions else model, called, inputs, float_bits)
    if reader.unknown:
        text = unknown_operators_text(f"from_onnx: {called}", reader.unknown)
        if not ignore_unknown:
            raise NetworkError(text)
        logger.warning("%s", text)
    if not reader.graph.layers:
        raise NetworkError(f"from_onnx: {called} must have at least one layer, but none of its nodes makes one.")
    stem = model.graph.name if isinstance(source, type(model)) else Path(called).stem
    first = next(iter(inputs.values()))
    return reader.graph.workload(name or stem or "onnx", first[0] if first else 1)
