"""A table of layers is the chain that it says, and says where it is wrong."""

import pytest

from hwmodels.from_csv import from_csv, to_csv
from hwmodels.graph import NetworkError
from hwmodels.networks import NETWORKS
from hwmodels.workload import Layer

HEADER = "name,in_channels,out_channels,in_size,kernel_size,stride,padding,groups,weight_bits,op\n"


@pytest.fixture
def written(tmp_path):
    """Writes a file and gives its path."""

    def write(text: str, encoding: str = "utf-8"):
        path = tmp_path / "layers.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def test_a_row_is_a_layer(written):
    path = written(HEADER + "dw,8,8,9x11,3x5,2x1,1x2,8,4,\n")
    assert from_csv(path).layers == (
        Layer("dw", 8, 8, (9, 11), (3, 5), (2, 1), (1, 2), groups=8, weight_bits=4, reads_network_input=True),
    )


def test_empty_cells_and_absent_columns_are_defaults(written):
    workload = from_csv(written("name,in_channels,out_channels,op\nfc,7,5,linear\nproj,5,3,\n"))
    assert workload.layers == (Layer.linear("fc", 7, 5), Layer("proj", 5, 3))


def test_one_number_stands_for_both_axes(written):
    (layer,) = from_csv(written(HEADER + "c,3,4,8,3,2,1,,,conv\n")).layers
    assert (layer.in_size, layer.kernel_size, layer.stride, layer.padding) == ((8, 8), (3, 3), (2, 2), (1, 1))


@pytest.mark.parametrize(
    ("cell", "pads"), [("0:1", ((0, 1), (0, 1))), ("0:1x2:0", ((0, 1), (2, 0))), ("1x0", ((1, 1), (0, 0)))]
)
def test_padding_may_differ_at_the_ends_of_an_axis(written, cell, pads):
    (layer,) = from_csv(written(HEADER + f"c,3,4,8,3,2,{cell},,,\n")).layers
    assert layer.pads == pads


def test_each_layer_reads_what_the_one_before_wrote(written):
    workload = from_csv(written(HEADER + "a,3,4,8,1,,,,,\nb,4,5,8,1,,,,,\n"))
    assert [(t.producer, t.consumers) for t in workload.tensors] == [
        (None, (("a", "input"),)), ("a", (("b", "input"),)), ("b", ()),
    ]  # fmt: skip
    assert workload.name == "layers"


def test_comments_blank_lines_and_a_byte_order_mark_are_skipped(written):
    path = written(f"# measured by hand\n\n{HEADER}# the stem\na, 3, 4, 8, 1, , , , ,\n", encoding="utf-8-sig")
    assert from_csv(path).layers[0].in_channels == 3


@pytest.mark.parametrize("name", NETWORKS)
def test_a_table_that_was_written_is_read_back(written, name):
    workload = NETWORKS[name](batch=2).with_bits(weight_bits=4, input_bits=6)
    assert from_csv(written(to_csv(workload))).layers == workload.layers


def test_uneven_padding_is_written_and_read_back(written):
    from hwmodels.workload import Workload

    layer = Layer("a", 3, 4, (8, 9), 3, 2, ((0, 1), (2, 0)), stored_input_bits=16, reads_network_input=True)
    assert from_csv(written(to_csv(Workload.sequential("uneven", [layer])))).layers == (layer,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must name its columns: name, in_channels, out_channels.*missing: 'name'"),
        ("name,in_channels\na,3\n", r"missing: 'out_channels'"),
        ("name,in_channels,out_channels,kernal_size\n", r"unknown: 'kernal_size' \(did you mean kernel_size\?\)"),
        ("name,in_channels,out_channels,name\n", r"repeated: 'name'"),
        (HEADER, r"must have one line for each layer after its header, got none"),
        (HEADER + "a,3,4\n", r"line 2: it must have 10 cells, one for each column, got 3"),
        (HEADER + "# why\na,,4,8,1,,,,,\n", r"line 3, column in_channels: it must not be empty"),
        (HEADER + "a,3,4,8,1,,,,,\nb,4,x,8,1,,,,,\n", r"line 3 \(layer 'b'\), column out_channels: .* number, got 'x'"),
        (HEADER + "a,3,4,8y8,1,,,,,\n", r"column in_size: it must be a whole number, or two such as 7x5, got '8y8'"),
        (HEADER + "a,3,4,8x8x8,1,,,,,\n", r"column in_size: .* got '8x8x8'"),
        (HEADER + "a,3,4,8,1,,1:2:3,,,\n", r"line 2: Layer 'a': padding"),
        (HEADER + "a,3,4,8,1,,,2,,\n", r"line 2: Layer 'a': groups must divide both channel counts, got groups=2"),
        (HEADER + "a,0,4,8,1,,,,,\n", r"in_channels must be at least 1, got in_channels=0"),
        (HEADER + "a,3,4,8,1,,,,99,\n", r"weight_bits must be from 1 to 32 bits, got weight_bits=99"),
        (HEADER + "a,3,4,8,1,,,,,convolution\n", r"op must be one of conv, linear, .* got op='convolution'"),
        (HEADER + "a,3,4,8,9,,,,,\n", r"the kernel must fit in the padded input"),
        (HEADER + "a,3,4,8,1,,,,,\na,4,4,8,1,,,,,\n", r"layer names must be unique, got a repeatedly"),
        ("name,in_channels,out_channels,reads_network_input\na,3,4,maybe\n", r"it must be true or false, got 'maybe'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(written, text, message):
    with pytest.raises(NetworkError, match=message) as caught:
        from_csv(written(text))
    assert "layers.csv" in str(caught.value)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path, written):
    with pytest.raises(NetworkError, match=r"nowhere.csv must be a file that can be read: No such file"):
        from_csv(tmp_path / "nowhere.csv")
    path = tmp_path / "image.csv"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(NetworkError, match=r"image.csv must be a text file in UTF-8"):
        from_csv(path)
