"""An ONNX file is the network that it was exported from, at the bitwidths of its types."""

import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest

from hwmodels.graph import NetworkError, differences
from hwmodels.networks import resnet18
from hwmodels.workload import Layer

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from hwmodels.from_onnx import from_onnx  # noqa: E402
from hwmodels.onnx_operators import IGNORED  # noqa: E402

FLOAT, U8, I8, I32, I64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64


def weight(name, shape, dtype=FLOAT):
    """An initializer of zeros."""
    if dtype in (TensorProto.INT4, TensorProto.UINT4, getattr(TensorProto, "INT2", -1)):
        bits = 2 if dtype == getattr(TensorProto, "INT2", -1) else 4
        return helper.make_tensor(name, dtype, shape, bytes(-(-int(np.prod(shape)) * bits // 8)), raw=True)
    return helper.make_tensor(
        name, dtype, shape, np.zeros(shape, helper.tensor_dtype_to_np_dtype(dtype)).tobytes(), raw=True
    )


def vector(name, values, dtype=np.int64):
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def network(nodes, inputs, weights=(), opset=21, domains=(), outputs=1, functions=()):
    """A model whose nodes are ``(operator, reads, writes, attributes)`` and whose output the last node writes."""
    made = [
        helper.make_node(op, reads, writes, name=f"n{i}", **attributes)
        for i, (op, reads, writes, attributes) in enumerate(nodes)
    ]
    graph = helper.make_graph(
        made,
        "network",
        [helper.make_tensor_value_info(name, dtype, shape) for name, dtype, shape in inputs],
        [helper.make_empty_tensor_value_info(name) for name in made[-1].output[:outputs]],
        list(weights),
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions))


def image(shape=(1, 3, 8, 8), dtype=FLOAT):
    return [("x", dtype, shape)]


def edges(workload) -> dict:
    return {tensor.producer: tensor.consumers for tensor in workload.tensors}


def conv(**attributes):
    return ("Conv", ["x", "w"], ["y"], attributes)


# --- the export of a torch network is the same workload ---------------------------------------------------------------


def small(name):
    """A network of each kind that exports in seconds, and the size of its image."""
    models = pytest.importorskip("torchvision").models
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    window, patch = (
        {"window_size": [4, 4], "num_classes": 5},
        {"patch_size": [4, 4], "embed_dim": 16, "num_heads": [2, 4]},
    )
    v2 = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return {
        "resnet18": lambda: (models.resnet18(), 64),
        "squeezenet1_1": lambda: (models.squeezenet1_1(), 64),
        "mobilenet_v3_small": lambda: (models.mobilenet_v3_small(), 64),
        "shufflenet": lambda: (models.ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 64], num_classes=5), 64),
        "vit": lambda: (models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5), 32),
        "swin": lambda: (SwinTransformer(**patch, **window, depths=[2, 1]), 48),
        "swin_v2": lambda: (SwinTransformer(**patch, **window, depths=[2, 1], **v2), 48),
        "convnext": lambda: (
            models.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=5),
            32,
        ),
        "maxvit": lambda: (models.MaxVit((32, 32), 16, 4, [16], [1], 8, 0.0, num_classes=5), 32),
    }[name]()


def export(module, shape, path, **options):
    """Write a file; skip where torch's newer exporter does not manage, before it became the default."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module.eval(), (torch.zeros(shape),), str(path), verbose=False, **options)
    except torch.onnx.OnnxExporterError as error:
        if version >= (2, 9):
            raise
        pytest.skip(f"torch {torch.__version__} does not export this network: {error}".splitlines()[0])
    return path


@pytest.mark.parametrize("name", ["shufflenet", "vit", "swin", "convnext", "maxvit"])
def test_an_export_is_the_same_workload(name, tmp_path):
    from hwmodels.from_torch import from_torch

    module, size = small(name)
    path = export(module, (2, 3, size, size), tmp_path / "model.onnx", dynamo=True)
    assert differences(from_torch(module, (2, 3, size, size)), from_onnx(path)) == []


def test_an_export_that_folds_no_constants_keeps_the_layers_on_constants(tmp_path):
    """Swin V2 computes its position bias from a constant table; an optimizing exporter does so in advance."""
    from hwmodels.from_torch import from_torch

    module, size = small("swin_v2")
    path = export(module, (1, 3, size, size), tmp_path / "model.onnx", dynamo=True, optimize=False)
    assert differences(from_torch(module, (1, 3, size, size)), from_onnx(path)) == []


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "vit"])
def test_exports_by_torchscript_are_the_same_workload(name, tmp_path):
    from hwmodels.from_torch import from_torch

    module, size = small(name)
    path = export(module, (1, 3, size, size), tmp_path / "model.onnx", dynamo=False)
    assert differences(from_torch(module, (1, 3, size, size)), from_onnx(path)) == []


def torchvision_names():
    try:
        from torchvision import models
    except ImportError:
        return []
    return [*models.list_models(models), *models.list_models(models.segmentation)]


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision_names())
def test_the_export_of_every_torchvision_network_is_the_same_workload(name, tmp_path):
    from torchvision import models

    from hwmodels.from_torch import from_torch

    options = {"weights_backbone": None} if name in models.list_models(models.segmentation) else {}
    module, size = models.get_model(name, weights=None, **options), 299 if name == "inception_v3" else 224
    path = export(
        module, (1, 3, size, size), tmp_path / "model.onnx", dynamo=True, optimize=not name.startswith("swin_v2")
    )
    assert differences(from_torch(module, (1, 3, size, size)), from_onnx(path)) == []


def test_layers_keep_the_names_that_the_exporter_keeps(tmp_path):
    module, _ = small("resnet18")
    path = export(module, (1, 3, 224, 224), tmp_path / "net.onnx", dynamo=True)
    workload = from_onnx(path)
    assert [layer.name for layer in workload.mac_layers] == [layer.name for layer in resnet18().mac_layers]
    assert differences(workload, resnet18()) == []
    assert (workload.name, workload.batch) == ("net", 1)


def test_a_difference_is_told_by_field_and_by_edge():
    a = from_onnx(network([conv()], image(), [weight("w", (4, 3, 3, 3))]))
    b = from_onnx(network([conv(strides=[2, 2])], image(), [weight("w", (4, 3, 3, 3))]))
    assert differences(a, a) == []
    assert differences(a, b) == ["layer n0 and n0: stride (1, 1) and (2, 2)"]
    add = [conv(), ("Add", ["y", "y2"], ["z"], {})]
    twice = network(
        [add[0], ("Conv", ["x", "v"], ["y2"], {}), add[1]],
        image(),
        [weight("w", (4, 3, 1, 1)), weight("v", (4, 3, 1, 1))],
    )
    swapped = onnx.ModelProto()
    swapped.CopyFrom(twice)
    swapped.graph.node[2].input[:] = ["y2", "y"]
    assert len(differences(from_onnx(twice), from_onnx(swapped))) == 4  # two edges on either side


# --- products ---------------------------------------------------------------------------------------------------------


def test_a_convolution_keeps_its_geometry():
    attributes = {"strides": [2, 1], "pads": [1, 2, 0, 3], "dilations": [1, 2], "group": 2}
    model = network([conv(**attributes)], image((2, 4, 9, 11)), [weight("w", (6, 2, 3, 5))])
    (layer,) = from_onnx(model).layers
    assert layer == Layer(
        "n0", 4, 6, (9, 11), (3, 5), (2, 1), ((1, 0), (2, 3)), (1, 2), groups=2, batch=2, reads_network_input=True
    )


@pytest.mark.parametrize(
    ("auto_pad", "pads"),
    [("SAME_UPPER", ((0, 1), (0, 1))), ("SAME_LOWER", ((1, 0), (1, 0))), ("VALID", ((0, 0), (0, 0)))],
)
def test_automatic_padding_is_resolved(auto_pad, pads):
    """A 3x3 window at stride 2 over 8 outputs ceil(8 / 2) needs (4 - 1) 2 + 3 - 8 = 1 zero."""
    model = network([conv(auto_pad=auto_pad, strides=[2, 2])], image(), [weight("w", (4, 3, 3, 3))])
    assert from_onnx(model).layers[0].pads == pads


def test_padding_before_a_convolution_is_the_convolutions():
    model = network(
        [("Pad", ["x", "pads"], ["p"], {}), ("Conv", ["p", "w"], ["y"], {"strides": [2, 2]})],
        image(), [vector("pads", [0, 0, 2, 0, 0, 0, 1, 1]), weight("w", (4, 3, 3, 3))],
    )  # fmt: skip
    (layer,) = from_onnx(model).layers
    assert (layer.in_size, layer.pads, layer.out_size) == ((8, 8), ((2, 1), (0, 1)), (5, 4))


def test_a_convolution_over_one_axis_is_a_map_of_height_one():
    model = network([conv(pads=[1, 1])], image((2, 3, 9)), [weight("w", (4, 3, 3))])
    (layer,) = from_onnx(model).layers
    assert (layer.in_size, layer.kernel_size, layer.padding) == ((1, 9), (1, 3), (0, 1))


def test_a_transposed_convolution_has_its_macs():
    model = network([("ConvTranspose", ["x", "w"], ["y"], {"strides": [2, 2]})], image(), [weight("w", (3, 5, 2, 2))])
    workload = from_onnx(model)
    assert workload.macs == 8 * 8 * 3 * 5 * 2 * 2
    assert workload.tensors[-1].shape == (1, 5, 16, 16)


@pytest.mark.parametrize(
    ("operator", "attributes", "x", "w", "expected"),
    [
        ("Gemm", {}, (4, 6), (6, 5), (6, 5, 4)),
        ("Gemm", {"transA": 1, "transB": 1}, (6, 4), (5, 6), (6, 5, 4)),
        ("MatMul", {}, (2, 4, 6), (6, 5), (6, 5, 2 * 4)),
        ("MatMul", {}, (6,), (6, 5), (6, 5, 1)),
    ],
)
def test_a_product_with_weights_is_linear(operator, attributes, x, w, expected):
    (layer,) = from_onnx(network([(operator, ["x", "w"], ["y"], attributes)], image(x), [weight("w", w)])).layers
    in_features, out_features, rows = expected
    assert layer == Layer.linear("", in_features, out_features, batch=rows)


def test_weights_may_come_first_and_differ_by_pair():
    left = network([("MatMul", ["w", "x"], ["y"], {})], image((2, 6, 3)), [weight("w", (5, 6))])
    assert from_onnx(left).layers == (Layer.linear("", 6, 5, batch=2 * 3),)
    pairs = network([("MatMul", ["x", "w"], ["y"], {})], image((2, 4, 6)), [weight("w", (2, 6, 5))])
    (layer,) = from_onnx(pairs).layers
    assert (layer.op, layer.groups, layer.batch, layer.macs, layer.parameter_count) == (
        "linear",
        2,
        4,
        2 * 4 * 6 * 5,
        60,
    )


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((2, 3, 4, 6), (2, 3, 6, 5), (4, 6, 5, 6)),
        ((2, 1, 4, 6), (1, 3, 6, 5), (4, 6, 5, 6)),  # broadcast
        ((2, 4, 6), (6, 5), (2 * 4, 6, 5, 1)),  # one right factor for all rows
    ],
)
def test_products_of_activations_are_one_group_a_pair(a, b, expected):
    model = network([("MatMul", ["x", "z"], ["y"], {})], [("x", FLOAT, a), ("z", FLOAT, b)])
    workload = from_onnx(model)
    m, k, n, count = expected
    assert workload.layers == (Layer.matmul("", m, k, n, count),)
    assert [tensor.consumers for tensor in workload.tensors[:2]] == [(("n0", "input"),), (("n0", "weight"),)]


@pytest.mark.parametrize(
    ("equation", "expected"), [("bhid,bhjd->bhij", (5, 4, 6, 6)), ("bhid, bhjd -> bhji", (5, 4, 6, 6))]
)
def test_einsum_of_two_operands_is_a_product(equation, expected):
    inputs = [("x", FLOAT, (2, 3, 5, 4)), ("z", FLOAT, (2, 3, 6, 4))]
    model = network([("Einsum", ["x", "z"], ["y"], {"equation": equation})], inputs)
    assert from_onnx(model).layers == (Layer.matmul("", *expected),)


def test_attention_is_two_products_and_a_softmax():
    inputs = [("q", FLOAT, (1, 4, 6, 8)), ("k", FLOAT, (1, 2, 7, 8)), ("v", FLOAT, (1, 2, 7, 9))]
    workload = from_onnx(network([("Attention", ["q", "k", "v"], ["y"], {})], inputs, opset=23))
    assert [layer.op for layer in workload.layers] == ["matmul", "softmax", "matmul"]
    assert [layer.macs for layer in workload.mac_layers] == [4 * 6 * 8 * 7, 4 * 6 * 7 * 9]


# --- bitwidths --------------------------------------------------------------------------------------------------------


def test_floats_are_eight_bits_unless_asked():
    model = network([conv()], image(), [weight("w", (4, 3, 3, 3))])
    assert [(w.weight_bits, w.input_bits) for w in from_onnx(model).layers] == [(8, 8)]
    assert [(w.weight_bits, w.input_bits) for w in from_onnx(model, float_bits=16).layers] == [(16, 16)]


QUANTIZED = {
    "QLinearConv": (
        ("QLinearConv", ["x", "s", "xz", "w", "s", "wz", "s", "xz"], ["y"], {}),
        [weight("w", (4, 3, 3, 3), I8), weight("wz", (), I8)], (1, 3, 8, 8),
    ),
    "ConvInteger": (("ConvInteger", ["x", "w"], ["y"], {}), [weight("w", (4, 3, 3, 3), I8)], (1, 3, 8, 8)),
    "QLinearMatMul": (
        ("QLinearMatMul", ["x", "s", "xz", "w", "s", "wz", "s", "xz"], ["y"], {}),
        [weight("w", (6, 5), I8), weight("wz", (), I8)], (4, 6),
    ),
    "MatMulInteger": (("MatMulInteger", ["x", "w"], ["y"], {}), [weight("w", (6, 5), I8)], (4, 6)),
}  # fmt: skip


@pytest.mark.parametrize("operator", QUANTIZED)
def test_quantized_operators_have_the_widths_of_their_types(operator):
    node, weights, shape = QUANTIZED[operator]
    common = [weight("s", ()), weight("xz", (), U8)]
    (layer,) = from_onnx(network([node], image(shape, U8), [*weights, *common]), float_bits=16).layers
    assert layer.op == ("conv" if "Conv" in operator else "linear")
    assert (layer.weight_bits, layer.input_bits) == (8, 8)
    assert layer.macs == (6 * 6 * 4 * 27 if layer.op == "conv" else 4 * 6 * 5)


WIDTHS = [
    pytest.param(TensorProto.INT4, TensorProto.UINT8, 4, 8, 21, id="w4a8"),
    pytest.param(TensorProto.INT8, TensorProto.UINT16, 8, 16, 21, id="w8a16"),
    pytest.param(TensorProto.UINT4, TensorProto.UINT4, 4, 4, 21, id="w4a4"),
    pytest.param(
        getattr(TensorProto, "INT2", 0), TensorProto.INT8, 2, 8, 25, id="w2a8",
        marks=pytest.mark.skipif(not hasattr(TensorProto, "INT2"), reason="this onnx has no 2-bit type"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("weight_type", "input_type", "weight_bits", "input_bits", "opset"), WIDTHS)
@pytest.mark.parametrize("operator", ["Conv", "MatMul", "Gemm"])
def test_quantize_and_dequantize_around_an_operator_give_its_widths(
    operator, weight_type, input_type, weight_bits, input_bits, opset
):
    shape, w = ((1, 3, 8, 8), (4, 3, 3, 3)) if operator == "Conv" else ((4, 6), (6, 5))
    nodes = [
        ("QuantizeLinear", ["x", "s", "xz"], ["xq"], {}),
        ("DequantizeLinear", ["xq", "s", "xz"], ["xd"], {}),
        ("DequantizeLinear", ["w", "s", "wz"], ["wd"], {}),
        (operator, ["xd", "wd"], ["c"], {}),
        ("Relu", ["c"], ["r"], {}),
        ("QuantizeLinear", ["r", "s", "xz"], ["rq"], {}),
        ("DequantizeLinear", ["rq", "s", "xz"], ["y"], {}),
    ]
    weights = [
        weight("w", w, weight_type),
        weight("s", ()),
        weight("xz", (), input_type),
        weight("wz", (), weight_type),
    ]
    workload = from_onnx(network(nodes, image(shape), weights, opset=opset), float_bits=32)
    (layer,) = workload.layers
    assert (layer.weight_bits, layer.input_bits) == (weight_bits, input_bits)
    assert workload.tensors[0].bits == input_bits


def test_an_activation_is_stored_at_the_widest_width_that_is_read():
    """One tensor quantized twice: to 8 bits for one consumer and to 4 bits for another."""
    nodes = [("Conv", ["x", "a"], ["c"], {})]
    for i, kind in enumerate(("8", "4")):
        nodes += [
            ("QuantizeLinear", ["c", "s", f"z{kind}"], [f"q{i}"], {}),
            ("DequantizeLinear", [f"q{i}", "s", f"z{kind}"], [f"d{i}"], {}),
            ("Conv", [f"d{i}", "b"], [f"y{i}"], {}),
        ]
    nodes.append(("Add", ["y0", "y1"], ["y"], {}))
    weights = [weight("a", (4, 3, 1, 1)), weight("b", (4, 4, 1, 1)), weight("s", ())]
    weights += [weight("z8", (), U8), weight("z4", (), TensorProto.UINT4)]
    workload = from_onnx(network(nodes, image(), weights))
    first, wide, narrow, _ = workload.layers
    assert (first.output_bits, wide.input_bits, narrow.input_bits, narrow.stored_input_bits) == (8, 8, 4, 8)


def test_dynamic_quantization_makes_no_layer_of_its_scales():
    nodes = [
        ("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], {}),
        ("MatMulInteger", ["q", "w", "zero"], ["i"], {}),
        ("Cast", ["i"], ["f"], {"to": FLOAT}),
        ("Mul", ["scale", "s"], ["both"], {}),
        ("Mul", ["f", "both"], ["y"], {}),
    ]
    model = network(nodes, image((4, 6)), [weight("w", (6, 5), I8), weight("s", ())])
    assert from_onnx(model, float_bits=16).layers == (Layer.linear("", 6, 5, batch=4, output_bits=16),)


def test_operators_of_onnx_runtime_are_those_of_the_standard():
    """They take types that the standard does not, and came before its own."""
    domain = {"domain": "com.microsoft"}
    nodes = [
        ("QLinearGlobalAveragePool", ["x", "s", "xz", "s", "xz"], ["p"], {**domain, "channels_last": 0}),
        ("Flatten", ["p"], ["f"], {}),
        ("QGemm", ["f", "s", "xz", "w", "s", "wz", "", "s", "xz"], ["a"], domain),
        ("QGemm", ["f", "s", "xz", "w", "s", "wz", "", "s", "xz"], ["b"], domain),
        ("QLinearAdd", ["a", "s", "xz", "b", "s", "xz", "s", "xz"], ["y"], domain),
    ]
    weights = [weight("w", (6, 5), I8), weight("s", ()), weight("xz", (), U8), weight("wz", (), I8)]
    model = network(nodes, image((4, 6, 3, 3), U8), weights, domains=["com.microsoft"], opset=13)
    workload = from_onnx(model, float_bits=16)
    assert [layer.op for layer in workload.layers] == ["pool", "linear", "linear", "add"]
    assert {(layer.input_bits, layer.output_bits) for layer in workload.layers} == {(8, 8)}
    assert edges(workload)["n2"] == (("n4", "input"),)


def test_four_bit_weights_may_come_before_the_standard_had_them():
    domain = {"domain": "com.microsoft"}
    nodes = [("DequantizeLinear", ["w", "s", "wz"], ["wd"], domain), ("Conv", ["x", "wd"], ["y"], {})]
    weights = [weight("w", (4, 3, 3, 3), TensorProto.INT4), weight("s", ()), weight("wz", (), TensorProto.INT4)]
    (layer,) = from_onnx(network(nodes, image(), weights, domains=["com.microsoft"], opset=13)).layers
    assert (layer.weight_bits, layer.input_bits) == (4, 8)


def test_a_function_of_one_activation_fuses_between_quantizers_too():
    nodes = [
        ("Conv", ["x", "w"], ["c"], {}),
        ("QuantizeLinear", ["c", "s", "z"], ["q"], {}),
        ("DequantizeLinear", ["q", "s", "z"], ["d"], {}),
        ("Sigmoid", ["d"], ["g"], {}),
        ("QuantizeLinear", ["g", "s", "z"], ["gq"], {}),
        ("DequantizeLinear", ["gq", "s", "z"], ["gd"], {}),
        ("Mul", ["d", "gd"], ["y"], {}),
    ]
    model = network(nodes, image(), [weight("w", (4, 3, 1, 1)), weight("s", ()), weight("z", (), U8)])
    assert [layer.name for layer in from_onnx(model).layers] == ["n0"]


# --- what makes no layer, and what does -------------------------------------------------------------------------------


def test_batch_norm_folds_and_activations_fuse():
    nodes = [
        ("Conv", ["x", "w"], ["c"], {}),
        ("BatchNormalization", ["c", "b", "b", "b", "b"], ["n"], {}),
        ("Sigmoid", ["n"], ["g"], {}),
        ("Mul", ["n", "g"], ["h"], {}),
        ("Add", ["h", "b1"], ["y"], {}),
    ]
    model = network(nodes, image(), [weight("w", (4, 3, 3, 3)), weight("b", (4,)), weight("b1", (4, 1, 1))])
    assert [layer.name for layer in from_onnx(model).layers] == ["n0"]


def test_shapes_computed_in_the_graph_are_followed():
    """x.view(x.shape[0], -1), as an exporter writes it that folds nothing."""
    nodes = [
        ("Shape", ["x"], ["shape"], {}),
        ("Gather", ["shape", "zero"], ["batch"], {}),
        ("Unsqueeze", ["batch", "axis"], ["row"], {}),
        ("Concat", ["row", "rest"], ["target"], {"axis": 0}),
        ("Reshape", ["x", "target"], ["flat"], {}),
        ("MatMul", ["flat", "w"], ["y"], {}),
    ]
    constants = [vector("zero", 0), vector("axis", [0]), vector("rest", [-1]), weight("w", (3 * 8 * 8, 5))]
    assert from_onnx(network(nodes, image((2, 3, 8, 8)), constants)).layers == (Layer.linear("", 192, 5, batch=2),)


@pytest.mark.parametrize("opset", [12, 13])
def test_softmax_follows_its_operator_set(opset):
    """Before 13 it flattens all axes from the given one on."""
    model = network([("Softmax", ["x"], ["y"], {"axis": 1})], image((2, 3, 4)), opset=opset)
    (layer,) = from_onnx(model).layers
    assert (layer.in_channels, layer.batch) == ((3 * 4, 2) if opset == 12 else (3, 2 * 4))


@pytest.mark.parametrize(
    ("node", "extra", "window"),
    [
        (("MaxPool", ["x"], ["y"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}), [], (3, 3)),
        (("AveragePool", ["x"], ["y"], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}), [], (3, 3)),
        (("GlobalAveragePool", ["x"], ["y"], {}), [], (8, 8)),
        (("ReduceMean", ["x", "axes"], ["y"], {"keepdims": 0}), [vector("axes", [2, 3])], (8, 8)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) and isinstance(value[0], str) else "",
)
def test_pooling_keeps_its_window(node, extra, window):
    model = network([node], image(), extra)
    (layer,) = from_onnx(model).layers
    assert (layer.op, layer.kernel_size) == ("pool", window)


def test_a_lookup_reads_only_the_rows_looked_up():
    model = network(
        [("Gather", ["table", "x"], ["e"], {}), ("MatMul", ["e", "w"], ["y"], {})],
        [("x", I64, (1, 7))], [weight("table", (1000, 4)), weight("w", (4, 6))],
    )  # fmt: skip
    workload = from_onnx(model)
    assert workload.layers == (Layer.linear("", 4, 6, batch=7),)
    assert [tensor.count for tensor in workload.tensors if tensor.producer is None] == [7 * 4]


def test_local_functions_are_followed_inside():
    function = helper.make_function(
        "local",
        "Block",
        ["a", "b"],
        ["c"],
        [helper.make_node("Conv", ["a", "b"], ["c"])],
        [helper.make_opsetid("", 21)],
    )
    nodes = [("Block", ["x", "w"], ["y"], {"domain": "local"})]
    model = network(nodes, image(), [weight("w", (4, 3, 3, 3))], domains=["local"], functions=[function])
    assert from_onnx(model).macs == 6 * 6 * 4 * 27


def test_every_ignored_operator_says_why():
    assert all(reason for reason in IGNORED.values())


# --- shapes -----------------------------------------------------------------------------------------------------------


def dynamic():
    nodes = [conv(), ("Flatten", ["y"], ["f"], {}), ("Relu", ["f"], ["r"], {})]
    return network(nodes, image(("batch", 3, "height", 8)), [weight("w", (4, 3, 3, 3))])


def test_dynamic_inputs_are_named_with_the_way_out():
    with pytest.raises(NetworkError) as caught:
        from_onnx(dynamic())
    message = str(caught.value)
    assert "input 'x' is (batch, 3, height, 8)" in message
    assert "input_shape=(1, 3, 1, 8)" in message


@pytest.mark.parametrize("given", [(2, 3, 8, 8), {"x": (2, 3, 8, 8)}])
def test_a_shape_can_be_given_for_dynamic_inputs(given):
    workload = from_onnx(dynamic(), input_shape=given)
    assert (workload.macs, workload.batch) == (2 * 6 * 6 * 4 * 27, 2)


def test_a_shape_can_be_given_in_place_of_the_files():
    model = network([conv()], image(), [weight("w", (4, 3, 3, 3))])
    assert from_onnx(model, input_shape=(5, 3, 10, 10)).macs == 5 * 8 * 8 * 4 * 27


@pytest.mark.parametrize("given", [(2, 3, 8), (2, 3, 0, 8), (), {"x": (1,)}])
def test_a_shape_that_does_not_fit_is_refused(given):
    with pytest.raises(NetworkError, match=r"one for each of \(batch, 3, height, 8\)"):
        from_onnx(dynamic(), input_shape=given)


def test_an_input_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(NetworkError, match=r"which are x; got image\."):
        from_onnx(dynamic(), input_shape={"image": (1, 3, 8, 8)})


def test_shapes_that_cannot_be_inferred_name_the_tensor_and_the_reason():
    model = network([("Reshape", ["x", "s"], ["r"], {}), ("MatMul", ["r", "w"], ["y"], {})],
                    [*image((2, 6)), ("s", I64, (2,))], [weight("w", (6, 5))])  # fmt: skip
    with pytest.raises(NetworkError, match="tensor 'r' is unknown after shape inference"):
        from_onnx(model)
    nodes = [("Concat", ["x", "w"], ["c"], {"axis": 0}), ("Softmax", ["c"], ["s"], {}), ("Add", ["s", "c"], ["y"], {})]
    model = network(nodes, image((2, 7)), [weight("w", (6, 5))])
    with pytest.raises(NetworkError, match=r"tensor 'c' is unknown after shape inference \(Concat: .*dimension"):
        from_onnx(model)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(network([conv()], image(), [weight("w", (400, 3, 3, 3))]), path)
    return path


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(NetworkError, match=r"nowhere.onnx must be a file that can be read: No such file"):
        from_onnx(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved, part):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(part * len(data))])
    with pytest.raises(NetworkError, match=r"model.onnx must be an ONNX file"):
        from_onnx(saved)


def test_a_file_of_something_else_is_refused(saved):
    saved.write_text("layer,in_channels\nconv1,3\n")
    with pytest.raises(NetworkError, match="must be an ONNX file"):
        from_onnx(saved)


def test_weights_in_another_file_are_not_needed(saved):
    model = onnx.load(saved)
    path = saved.with_name("light.onnx")
    onnx.save(model, path, save_as_external_data=True, location="light.data", size_threshold=0)
    (saved.parent / "light.data").unlink()
    assert from_onnx(path) == from_onnx(saved, name="light")


def test_a_model_in_memory_is_left_as_it_was():
    model = dynamic()
    before = model.SerializeToString()
    from_onnx(model, input_shape=(1, 3, 8, 8))
    assert model.SerializeToString() == before


def test_all_unknown_operators_are_named_at_once(caplog):
    nodes = [
        ("CumSum", ["x", "axis"], ["a"], {}),
        ("Mystery", ["a"], ["b"], {"domain": "elsewhere"}),
        ("Conv", ["b", "w"], ["y"], {}),
        ("NonZero", ["y"], ["z"], {}),
    ]
    model = network(nodes, image(), [vector("axis", 2), weight("w", (4, 3, 3, 3))], domains=["elsewhere"])
    with pytest.raises(NetworkError) as caught:
        from_onnx(model)
    for expected in (
        "3 operators",
        "CumSum (in 'n0')",
        "elsewhere::Mystery (in 'n1')",
        "NonZero",
        "ignore_unknown=True",
    ):
        assert expected in str(caught.value)
    with caplog.at_level(logging.WARNING, logger="hwmodels"):
        assert [layer.name for layer in from_onnx(model, ignore_unknown=True).layers] == ["n2"]
    assert "elsewhere::Mystery" in caplog.text


def test_a_convolution_over_volumes_is_reported():
    model = network([conv()], image((1, 3, 5, 5, 5)), [weight("w", (4, 3, 3, 3, 3))])
    with pytest.raises(NetworkError, match=r"Conv over 3 axes \(in 'n0'\)"):
        from_onnx(model)


def test_a_graph_that_reads_what_nobody_writes_is_refused():
    model = network([("Conv", ["nobody", "w"], ["y"], {})], image(), [weight("w", (4, 3, 3, 3))])
    with pytest.raises(NetworkError, match="node 'n0' reads 'nobody', which nothing before it writes"):
        from_onnx(model)


def test_a_network_without_inputs_or_layers_is_refused():
    with pytest.raises(NetworkError, match="must have an input"):
        from_onnx(network([("Relu", ["w"], ["y"], {})], [], [weight("w", (4,))]))
    with pytest.raises(NetworkError, match="must have at least one layer"):
        from_onnx(network([("Relu", ["x"], ["y"], {})], image()))


def test_without_the_package_the_extra_is_named():
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "import hwmodels.from_onnx as f\n"
        "try: f.from_onnx('model.onnx')\n"
        "except ImportError as error: assert \"the extra 'onnx'\" in str(error), error\n"
        "else: raise SystemExit('it was imported')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
