"""Each kind of bad input: one line that names it, what must hold and what to do, and exit code 2."""

import json
import os

import pytest
import yaml

from codesign.cli import main
from codesign.trial import Trial
from hwmodels import HARDWARE, networks

FACTORIES = """
import torch
from torch import nn


class Raises(nn.Module):
    def forward(self, x):
        raise RuntimeError("no such luck")


def raises():
    return Raises()


def fails():
    raise KeyError("weights")


def number():
    return 3


def small():
    return nn.Conv2d(3, 8, 3)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return torch.linalg.inv(self.fc(x)).cumsum(0)


def unknown():
    return Unknown()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refusal(folder, capsys):
    """Runs one command that must be refused; returns the one line that says why."""

    def run(line):
        try:
            code = main(line.split())
        except SystemExit as stop:  # argparse
            code = stop.code
        err = capsys.readouterr().err
        errors = [text for text in err.splitlines() if "error:" in text]
        assert code == 2, err
        assert "Traceback" not in err
        assert len(errors) == 1, err
        return errors[0]

    return run


def holds(line, *parts):
    missing = [part for part in parts if part not in line]
    assert not missing, f"{missing} not in: {line}"


def test_an_unknown_network(refusal):
    holds(refusal("estimate mobilnet_v2"), "'mobilnet_v2'", "built-in name", "resnet18", "torchvision", "mobilenet_v2")


def test_an_unknown_preset(refusal):
    holds(refusal("estimate resnet20 --hardware bitfusoin"), "'bitfusoin'", "near 'bitfusion'", *HARDWARE)


def test_an_unknown_preset_among_several(refusal):
    holds(refusal("compare resnet20 --hardware bitfusion,bitfusoin"), "'bitfusoin'", "near 'bitfusion'")


def test_an_unknown_preset_to_show(refusal):
    holds(refusal("hardware show bitfusoin"), "'bitfusoin'", "near 'bitfusion'")


@pytest.mark.parametrize("line", ["hardware show", "hardware list bitfusion"])
def test_hardware_with_and_without_a_name(line, refusal):
    holds(refusal(line), "name must be given to show")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("preset: bitfusion\nrow: 32\n", ["chip.yaml", "'row'", "near 'rows'", "dram_bits_per_cycle"]),
        ("preset: bitfusion\nclock_mhz: 500\n", ["chip.yaml", "'clock_mhz'", "near 'clock_hz'"]),
        ("preset: bitfusion\nrows: 0\n", ["chip.yaml", "rows", "at least 1", "rows=0"]),
        ("preset: bitfusion\ninput_buffer_bytes: -4\n", ["chip.yaml", "input_buffer_bytes", "at least 1", "-4"]),
    ],
)
def test_a_bad_chip_file(text, parts, refusal, folder):
    (folder / "chip.yaml").write_text(text)
    holds(refusal("estimate resnet20 --hardware chip.yaml"), *parts)


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("rows=0", ["rows", "at least 1", "rows=0"]),
        ("rows=-3", ["rows", "at least 1", "rows=-3"]),
        ("clock_hz=-1", ["clock_hz", "positive", "-1"]),
        ("rows=many", ["rows", "integer", "'many'"]),
        ("rows=", ["'rows='", "field=value"]),
        ("size=3", ["'size'", "known are rows, cols"]),
        ("energies.dram=3", ["'dram'", "dram_pj_per_bit"]),
    ],
)
def test_a_bad_setting(setting, parts, refusal):
    holds(refusal(f"estimate resnet20 --set {setting}"), *parts)


@pytest.mark.parametrize("option", ["--batch 0", "--batch -1", "--batch two", "--input-shape 1,3,0,224"])
def test_a_size_below_one(option, refusal):
    holds(refusal(f"estimate resnet20 {option}"), option.split()[0], "at least 1")


def test_bits_that_the_array_cannot_take(refusal):
    holds(refusal("estimate resnet20 --bits w16a8"), "resnet20", "conv1", "max_bits=8", "weight_bits=16")


def test_bits_that_no_layer_can_have(refusal):
    holds(refusal("estimate resnet20 --bits w0a8"), "'w0a8'", "weight_bits", "from 1 to 32", "weight_bits=0")


@pytest.mark.parametrize("bits", ["4w8a", "bits.txt", "w4"])
def test_bits_in_another_form(bits, refusal):
    holds(refusal(f"estimate resnet20 --bits {bits}"), repr(bits), "w4a8", "{weight: 4, input: 8}")


@pytest.mark.parametrize("bits", ["8-2", "0-4", "2-64", "two"])
def test_a_range_of_bits_in_another_form(bits, refusal):
    holds(refusal(f"table resnet20 --bits {bits} --json"), repr(bits), "from 1 to 32", "2-8")


def bits_file(folder, **changes):
    table = {layer.name: [4, 8] for layer in networks.resnet20().mac_layers} | changes
    path = folder / "bits.yaml"
    path.write_text(yaml.safe_dump({name: bits for name, bits in table.items() if bits is not None}))
    return path


def test_a_bits_file_that_names_unknown_layers(refusal, folder):
    bits_file(folder, conv9=[4, 8])
    holds(refusal("estimate resnet20 --bits bits.yaml"), "'bits.yaml'", "resnet20", "unknown: conv9")


def test_a_bits_file_that_misses_layers(refusal, folder):
    bits_file(folder, fc=None)
    holds(refusal("estimate resnet20 --bits bits.yaml"), "'bits.yaml'", "resnet20", "missing: fc")


@pytest.mark.parametrize("entry", [[4], {"weight": 4}, "four", [4, 8.5], True])
def test_a_bits_file_with_an_entry_in_another_form(entry, refusal, folder):
    bits_file(folder, fc=entry)
    holds(refusal("estimate resnet20 --bits bits.yaml"), "'bits.yaml'", "'fc'", "must have", repr(entry))


@pytest.mark.parametrize(
    ("text", "part"), [("conv1: [4, 8", "valid YAML"), ("- 4", "map layer names"), (None, "readable: No such file")]
)
def test_a_bits_file_that_is_none(text, part, refusal, folder):
    if text is not None:
        (folder / "bits.yaml").write_text(text)
    holds(refusal("estimate resnet20 --bits bits.yaml"), "'bits.yaml'", part)


def layers_csv(folder, *lines):
    (folder / "layers.csv").write_text("\n".join(["name,in_channels,out_channels,in_size,kernel_size,groups", *lines]))


def test_groups_that_do_not_divide(refusal, folder):
    layers_csv(folder, "dw,32,32,8x8,3,7")
    holds(refusal("estimate layers.csv"), "layers.csv", "'dw'", "groups must divide", "groups=7", "in_channels=32")


def test_a_negative_size_in_a_table_of_layers(refusal, folder):
    layers_csv(folder, "conv,-3,32,8x8,3,1")
    holds(refusal("estimate layers.csv"), "layers.csv", "'conv'", "in_channels must be at least 1", "in_channels=-3")


def test_a_layer_that_no_tiling_fits(refusal, folder):
    layers_csv(folder, "wide,1024,32,64x64,63,1")
    capacity_bits = 8 * 65536 // 2
    holds(refusal("estimate layers.csv"), "layers.csv", "'wide'", "weight buffer", f"holds {capacity_bits} bits")


def test_a_missing_file(refusal):
    holds(refusal("estimate nowhere.csv"), "nowhere.csv", "can be read", "No such file")
    holds(refusal("estimate nowhere.onnx"), "nowhere.onnx", "can be read", "No such file")


@pytest.fixture
def onnx_file(folder):
    """Writes a convolution whose input has the given shape."""
    onnx = pytest.importorskip("onnx")

    def write(shape, name="net.onnx"):
        helper, numpy = onnx.helper, pytest.importorskip("numpy")
        weight = onnx.numpy_helper.from_array(numpy.zeros((8, 3, 3, 3), dtype=numpy.float32), "weight")
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "weight"], ["y"])],
            "net",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [weight],
        )
        onnx.save(helper.make_model(graph), folder / name)
        return folder / name

    return write


def test_dynamic_onnx_shapes(refusal, onnx_file):
    onnx_file(["batch", 3, 8, 8])
    holds(refusal("estimate net.onnx"), "net.onnx", "static shapes", "'x'", "batch", "input")


def test_missing_onnx_shapes(refusal, onnx_file):
    onnx_file(None)
    holds(refusal("estimate net.onnx"), "net.onnx", "static shapes", "'x'")


def test_a_batch_without_the_rest_of_an_onnx_shape(refusal, onnx_file):
    onnx_file(["batch", 3, 8, 8])
    holds(refusal("estimate net.onnx --batch 4"), "net.onnx", "--batch 4", "--input-shape")


def test_a_dynamic_onnx_shape_can_be_given(onnx_file, capsys):
    onnx_file(["batch", 3, 8, 8])
    assert main(["estimate", "net.onnx", "--input-shape", "1,3,8,8", "--batch", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["macs"] == 4 * 8 * 6 * 6 * 3 * 3 * 3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_onnx_file(share, refusal, onnx_file):
    path = onnx_file([1, 3, 8, 8])
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    holds(refusal("estimate net.onnx"), "net.onnx", "must be an ONNX file", "truncated")


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("estimate resnet20 --csv {}", "no/such/folder/costs.csv"),
        ("estimate resnet20 --plot {}", "no/such/folder/layers.png"),
        ("compare resnet20 --plot {}", "no/such/folder/compare.png"),
        ("table resnet20 --out {}", "no/such/folder/table.npz"),
        ("pareto runs/a --plot {}", "no/such/folder/front.png"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(line, path, refusal, monkeypatch):
    monkeypatch.setattr("hwmodels.cost.estimate", lambda *_, **__: pytest.fail("the work was begun"))
    holds(refusal(line.format(path)), path, "folder must exist", "make it first")


def test_an_output_that_is_a_folder(refusal, folder):
    (folder / "costs.csv").mkdir()
    holds(refusal("estimate resnet20 --csv costs.csv"), "'costs.csv'", "must be a file")


def test_an_output_without_permission(refusal, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs this may write anywhere
    holds(refusal("estimate resnet20 --csv costs.csv"), "'costs.csv'", "must be writable", "another place")


def test_a_run_directory_that_is_a_file(refusal, folder):
    (folder / "runs").write_text("")
    holds(refusal("quickstart --out runs/a"), "'runs/a'", "must be a folder", str(folder / "runs"))


@pytest.mark.parametrize("option", ["--seed -1", "--trials 0", "--splits 6"])
def test_a_quickstart_of_another_size(option, refusal):
    holds(refusal(f"quickstart {option}"), option.split()[0], option.split()[1])


@pytest.mark.parametrize(
    ("line", "suffixes"),
    [
        ("estimate resnet20 --csv costs.xlsx", ".csv"),
        ("estimate resnet20 --plot layers.doc", ".png, .pdf, .svg"),
        ("table resnet20 --out table.mat", ".npz, .csv, .json"),
    ],
)
def test_an_output_of_another_kind(line, suffixes, refusal):
    holds(refusal(line), line.split()[-1], f"must end in {suffixes}")


def test_a_table_that_goes_nowhere(refusal):
    holds(refusal("table resnet20"), "--out table.npz", "--json")


def test_a_plot_of_several_networks(refusal):
    holds(refusal("estimate resnet20 vgg16 --plot layers.png"), "--plot", "one network", "got 2")


def test_an_area_without_equal_area(refusal):
    holds(refusal("compare resnet20 --area-mm2 2"), "--area-mm2", "--equal-area")


@pytest.mark.parametrize("area", ["0", "-1", "nan"])
def test_an_area_that_is_none(area, refusal):
    holds(refusal(f"compare resnet20 --hardware bitfusion --equal-area --area-mm2 {area}"), "area must be", area)


def test_an_area_that_holds_no_array(refusal):
    line = refusal("compare resnet20 --hardware bitfusion --equal-area --area-mm2 0.01")
    holds(line, "at least one unit", "0.01 mm2", "Smaller buffers")


@pytest.fixture
def factories(folder):
    (folder / "factories.py").write_text(FACTORIES)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("factories:raises --input-shape 1,3,8,8", ["factories:raises", "Raises", "RuntimeError: no such luck"]),
        ("factories:fails", ["factories:fails", "without arguments", "KeyError: 'weights'"]),
        ("factories:number", ["factories:number", "torch module or a Workload", "int"]),
        ("factories:small", ["factories:small", "--input-shape"]),
        ("factories:smal", ["factories:smal", "callable 'smal'", "small"]),
        ("factories:small --input-shape 1,4,8,8", ["factories:small", "Conv2d", "(1, 4, 8, 8)"]),
        ("factories:unknown --input-shape 8,8", ["factories:unknown", "cumsum", "linalg_inv", "--ignore-unknown"]),
        ("no.such.module:net", ["no.such.module:net", "importable", "No module named 'no'"]),
    ],
)
def test_a_factory_that_gives_no_network(line, parts, refusal, factories):
    holds(refusal(f"estimate {line}"), *parts)


def test_operators_that_are_left_out_are_named(factories, caplog):
    assert main(["estimate", "factories:unknown", "--input-shape", "8,8", "--ignore-unknown"]) == 0
    holds(caplog.text, "cumsum", "linalg_inv")


@pytest.mark.parametrize("option", ["--batch 2", "--input-shape 1,3,8,8"])
def test_a_table_of_layers_has_its_sizes_already(option, refusal, folder):
    layers_csv(folder, "conv,3,32,8x8,3,1")
    holds(refusal(f"estimate layers.csv {option}"), "layers.csv", "already have their sizes", "--batch")


def test_a_built_in_network_of_another_shape(refusal):
    holds(refusal("estimate resnet20 --input-shape 1,3,32,16"), "'resnet20'", "N,3,S,S", "1,3,32,16")


@pytest.mark.parametrize("bad", ["factories:raises", "nowhere.csv", "mobilnet_v2"])
def test_one_bad_network_never_loses_the_results_of_the_others(bad, factories, capsys):
    line = f"estimate resnet20 {bad} vgg16 --input-shape 1,3,32,32 --json --csv costs.csv"
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["totals"]["network"] if "totals" in line else line["network"] for line in lines] == [
        "resnet20", bad, "vgg16",
    ]  # fmt: skip
    assert bad in lines[1]["error"]
    assert bad in err


def test_a_run_that_is_not_there(refusal):
    holds(refusal("pareto runs/nowhere"), "runs/nowhere", "no such run directory")


def test_a_run_without_the_objectives(refusal, run):
    holds(refusal("pareto run --objectives error,area_mm2"), "'run'", "area_mm2", "error, energy_j")


def test_a_run_without_feasible_trials(refusal, folder):
    write_run(folder, [Trial((0,), {"energy_j": 3.0}, {"energy_j": 0.5})])
    holds(refusal("pareto run --objectives error,energy_j"), "'run'", "feasible", "none among 1")


def test_a_plot_of_four_objectives(refusal, run):
    holds(refusal("pareto run --objectives a,b,c,d --plot front.png"), "--plot", "two or three", "'a,b,c,d'")


def write_run(folder, trials):
    (folder / "run").mkdir()
    (folder / "run" / "trials.jsonl").write_text("".join(f"{trial.to_json()}\n" for trial in trials))


@pytest.fixture
def run(folder):
    write_run(folder, [Trial((0,), {"error": 0.1, "energy_j": 3.0})])
