"""Layers count what they compute and move; workloads carry bitwidths along their edges."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodels.networks import NETWORKS, resnet18, resnet20
from hwmodels.workload import DATA_OPS, MAC_OPS, PACKED_COLUMNS, Layer, Tensor, Workload, pack

# --- layers -----------------------------------------------------------------------------------------------------------


def test_a_convolution_counts_products_weights_and_elements():
    layer = Layer("c", 8, 12, in_size=(9, 11), kernel_size=(3, 5), stride=(2, 1), padding=(1, 0), groups=4, batch=2)
    height, width = (9 + 2 - 3) // 2 + 1, 11 - 5 + 1
    assert layer.out_size == (height, width)
    assert layer.macs == 2 * 12 * (8 // 4) * 3 * 5 * height * width
    assert layer.weight_count == layer.parameter_count == 12 * (8 // 4) * 3 * 5
    assert (layer.input_count, layer.output_count) == (2 * 8 * 9 * 11, 2 * 12 * height * width)


@given(
    size=st.integers(1, 12), kernel=st.integers(1, 4), stride=st.integers(1, 4), before=st.integers(0, 3),
    after=st.integers(0, 3), dilation=st.integers(1, 3),
)  # fmt: skip
def test_the_output_holds_every_window_that_fits(size, kernel, stride, before, after, dilation):
    reach = dilation * (kernel - 1) + 1
    positions = [start for start in range(0, size + before + after, stride) if start + reach <= size + before + after]

    def build():
        return Layer("c", 1, 1, (size, 1), (kernel, 1), (stride, 1), ((before, after), (0, 0)), (dilation, 1))

    if positions:
        assert build().out_size == (len(positions), 1)
    else:
        with pytest.raises(ValueError, match="the kernel must fit in the padded input"):
            build()


def test_a_matmul_has_an_activation_for_its_second_operand():
    layer = Layer.matmul("m", m=5, k=4, n=6, count=3)
    assert layer.macs == 3 * 5 * 4 * 6
    assert (layer.input_count, layer.weight_count, layer.output_count) == (3 * 5 * 4, 3 * 4 * 6, 3 * 5 * 6)
    assert layer.parameter_count == 0


@pytest.mark.parametrize("op", DATA_OPS)
def test_operators_that_move_data_multiply_nothing(op):
    layer = Layer("d", 4, 4, in_size=(6, 6), op=op)
    assert (layer.macs, layer.bitops, layer.parameter_count) == (0, 0, 0)
    assert layer.weight_count == (4 * 6 * 6 if op in ("add", "mul") else 0)


def test_a_broadcast_operand_is_as_large_as_it_is():
    assert Layer("s", 4, 4, in_size=(6, 6), op="mul", second_count=4).weight_count == 4
    with pytest.raises(ValueError, match=r"second_count .* is for add and mul alone"):
        Layer("c", 4, 4, second_count=4)


def test_equal_shapes_are_equal_layers_whatever_their_names():
    a, b = Layer("a", 3, 4, (8, 8), 3), Layer("b", 3, 4, (8, 8), (3, 3), padding=((0, 0), (0, 0)))
    assert a == b
    assert hash(a) == hash(b)
    assert a != dataclasses.replace(b, input_bits=4)


def test_bit_operations_are_products_by_both_widths():
    layer = Layer("c", 3, 4, (8, 8), 3, weight_bits=2, input_bits=5)
    assert layer.bitops == layer.macs * 2 * 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got in_channels=0"),
        ({"batch": -1}, "batch must be at least 1, got batch=-1"),
        ({"stride": (1, 0)}, r"stride must be at least 1 along both axes, got stride=\(1, 0\)"),
        ({"padding": (-1, 0)}, "padding must not be negative"),
        ({"padding": ((0, 0, 0), (0, 0))}, "padding must be an int or a pair of ints"),
        ({"padding": ((0, 0),)}, "padding must have one entry for each axis"),
        ({"groups": 2}, "groups must divide both channel counts, got groups=2, in_channels=3, out_channels=4"),
        ({"weight_bits": 0}, "weight_bits must be from 1 to 32 bits, got weight_bits=0"),
        ({"input_bits": 33}, "input_bits must be from 1 to 32 bits, got input_bits=33"),
        ({"stored_input_bits": 4}, "stored_input_bits must be at least input_bits"),
        ({"in_channels": 3.0}, "in_channels must be an integer, got in_channels=3.0"),
        ({"batch": True}, "batch must be an integer, got batch=True"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size must be an int or a pair of ints"),
        ({"kernel_size": 9}, "the kernel must fit in the padded input"),
        ({"op": "dense"}, "op must be one of conv, linear"),
    ],
)
def test_an_impossible_layer_says_what_must_hold(fields, message):
    with pytest.raises(ValueError, match=f"Layer 'c': {message}"):
        Layer(**{"name": "c", "in_channels": 3, "out_channels": 4, "in_size": (8, 8), **fields})


def test_packed_rows_hold_every_field_that_a_model_prices():
    layer = Layer("c", 8, 12, (9, 11), (3, 5), (2, 1), ((1, 2), (0, 3)), (1, 2), 4, 2, 3, 5, 6, "conv", 7, True)
    row = dict(zip(PACKED_COLUMNS, pack([layer])[0].tolist(), strict=True))
    assert tuple(row[letter] for letter in "NKCPQRSG") == tuple(layer.dims)
    assert [row[k] for k in ("H", "W", "stride_h", "stride_w", "dilation_h", "dilation_w")] == [9, 11, 2, 1, 1, 2]
    assert [row[f"pad_{side}"] for side in ("top", "bottom", "left", "right")] == [1, 2, 0, 3]
    assert [row[f"{k}_bits"] for k in ("weight", "input", "output", "stored_input")] == [3, 5, 6, 7]
    assert (row["op"], row["reads_network_input"], row["second_count"]) == (
        MAC_OPS.index("conv"),
        1,
        layer.weight_count,
    )


# --- workloads --------------------------------------------------------------------------------------------------------


def test_totals_are_sums_over_the_layers():
    workload = resnet18()
    assert workload.macs == sum(layer.macs for layer in workload.layers)
    assert workload.bitops == workload.macs * 8 * 8
    assert workload.with_bits(4, 8).weight_bytes == sum(layer.parameter_count for layer in workload.layers) / 2
    assert [layer.op for layer in workload.mac_layers] == ["conv"] * 20 + ["linear"]


def test_equal_layers_are_packed_once():
    rows, index = resnet18().packed
    assert len(rows) == len(set(resnet18().layers)) < len(index) == len(resnet18().layers)
    assert (rows[index] == pack(resnet18().layers)).all()


def test_a_chain_hands_each_output_to_the_next_layer():
    a, b = Layer("a", 3, 4, (8, 8), 3, batch=2), Layer("b", 4, 5, (6, 6), batch=2)
    workload = Workload.sequential("chain", [a, b])
    assert workload.tensors == (
        Tensor(None, (("a", "input"),), (2, 3, 8, 8)),
        Tensor("a", (("b", "input"),), (2, 4, 6, 6)),
        Tensor("b", (), (2, 5, 6, 6)),
    )
    assert (workload.batch, workload.tensors[0].size_bits) == (2, 2 * 3 * 8 * 8 * 8)


def diamond() -> Workload:
    """stem -> (left, right) -> sum -> head: the stem's output is read twice."""
    layers = [Layer(name, 4, 4, (6, 6)) for name in ("stem", "left", "right")]
    layers += [Layer("sum", 4, 4, (6, 6), op="add"), Layer("head", 4, 4, (6, 6))]
    shape = (1, 4, 6, 6)
    tensors = (
        Tensor(None, (("stem", "input"),), shape),
        Tensor("stem", (("left", "input"), ("right", "input")), shape),
        Tensor("left", (("sum", "input"),), shape),
        Tensor("right", (("sum", "weight"),), shape),
        Tensor("sum", (("head", "input"),), shape),
        Tensor("head", (), shape),
    )
    return Workload("diamond", tuple(layers), tensors)


def test_an_activation_is_stored_once_at_the_widest_width_asked_for():
    bits = {"stem": 8, "left": 2, "right": 6, "head": 4}
    workload = diamond().with_bits(weight_bits=3, input_bits=bits)
    stem, left, right, total, head = workload.layers
    assert [tensor.bits for tensor in workload.tensors] == [8, 6, 4, 4, 4, 8]
    assert (stem.output_bits, left.input_bits, left.stored_input_bits) == (6, 2, 6)
    assert (right.input_bits, right.stored_input_bits) == (6, None)
    assert (left.output_bits, right.output_bits) == (4, 4)  # as wide as the sum that reads them is written
    assert (total.input_bits, total.weight_bits, total.output_bits) == (4, 4, 4)
    assert head.output_bits == 8  # nobody reads it
    assert {layer.weight_bits for layer in workload.mac_layers} == {3}


def test_bits_are_one_for_all_one_a_layer_or_by_name():
    one, each = diamond().with_bits(4, 4), diamond().with_bits([4] * 4, (4, 4, 4, 4))
    assert one == each == diamond().with_bits(dict.fromkeys(("stem", "left", "right", "head"), 4), 4)


def test_both_operands_of_a_matmul_take_the_input_width_where_one_width_is_given():
    workload = Workload.sequential("attention", [Layer.matmul("qk", 5, 4, 6), Layer.linear("out", 6, 3)])
    assert [layer.weight_bits for layer in workload.with_bits(2, 8).layers] == [8, 2]
    assert [layer.weight_bits for layer in workload.with_bits([2, 2], 8).layers] == [2, 2]


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ([4, 4], "input_bits must be one int or one for each of its 4 MAC layers, got 2 values"),
        ({"stem": 4}, "must name each of its 4 MAC layers once; missing: left, right, head"),
        ({"stem": 4, "left": 4, "right": 4, "head": 4, "sum": 4}, "unknown: sum"),
        (64, "input_bits must be from 1 to 32 bits, got input_bits=64"),
    ],
)
def test_bits_that_do_not_fit_the_layers_are_refused(bits, message):
    with pytest.raises(ValueError, match=message):
        diamond().with_bits(weight_bits=8, input_bits=bits)


@given(st.lists(st.sampled_from([2, 4, 8]), min_size=20, max_size=20))
def test_no_tensor_is_narrower_than_what_reads_it(bits):
    workload = resnet20()
    workload = workload.with_bits(8, bits[: len(workload.mac_layers)])
    layers = {layer.name: layer for layer in workload.layers}
    for tensor in workload.tensors:
        for name, operand in tensor.consumers:
            layer = layers[name]
            assert tensor.bits >= (layer.input_bits if operand == "input" else layer.weight_bits)
            if operand == "input":
                assert tensor.bits == (layer.stored_input_bits or layer.input_bits)
        if tensor.producer is not None:
            assert layers[tensor.producer].output_bits == tensor.bits


def test_setting_the_bits_again_gives_the_same_workload():
    once = resnet18().with_bits(4, 4)
    assert resnet18().with_bits(2, 6).with_bits(4, 4) == once


def test_impossible_workloads_say_what_must_hold():
    a = Layer("a", 3, 4)
    with pytest.raises(ValueError, match="must have at least one layer, got none"):
        Workload("empty", ())
    with pytest.raises(ValueError, match="layer names must be unique, got a repeatedly"):
        Workload("twice", (a, a))
    with pytest.raises(ValueError, match="a tensor names layers that are not there: b"):
        Workload("loose", (a,), (Tensor("a", (("b", "input"),), (1,)),))
    with pytest.raises(ValueError, match="batch must be at least 1, got batch=0"):
        Workload("none", (a,), batch=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_workload_is_written_and_read_back(name):
    workload = NETWORKS[name](batch=2).with_bits(4, 6)
    again = Workload.from_json(workload.to_json())
    assert again == workload
    assert [layer.name for layer in again.layers] == [layer.name for layer in workload.layers]


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": 1, "layers": [{}], "tensors": [], "batch": 1}', "nonsense"])
def test_json_of_something_else_is_refused(text):
    with pytest.raises(ValueError, match=r"Workload: the JSON must be|Expecting value"):
        Workload.from_json(text)
