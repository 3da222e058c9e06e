import csv
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from codesign.cli import main, parser
from codesign.commands import COMMANDS
from codesign.commands.output import one_line
from codesign.trial import Trial
from hwmodels import HARDWARE, BitFusion, Layer, Workload, estimate, networks

NAMES = [command.__name__.rpartition(".")[2] for command in COMMANDS]


@pytest.fixture
def codesign(capsys, tmp_path, monkeypatch):
    """Runs one command in an empty folder; returns its exit code, output and error output."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        try:
            code = main(line.split())
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(codesign):
    """Runs one command that must be refused in one line; returns the line."""

    def run(line):
        code, _, err = codesign(line)
        assert code == 2
        error = err.splitlines()
        assert "Traceback" not in err
        assert sum("error:" in text for text in error) == 1
        return error[-1]

    return run


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_an_example_and_json(name, codesign):
    code, out, _ = codesign(f"{name} --help")
    assert code == 0
    assert f"codesign {name}" in out.partition("examples:")[2]
    assert "--json" in out


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_help_are_lines_that_the_parser_takes(name, codesign):
    examples = codesign(f"{name} --help")[1].partition("examples:\n")[2].splitlines()
    assert examples
    for line in examples:
        parser().parse_args(line.partition(">")[0].split()[1:])


def test_the_command_line_without_a_command_is_bad_input(codesign):
    assert codesign("")[0] == 2


@pytest.mark.parametrize(
    "line, named",
    [
        ("serch", "'serch'"),
        ("estimate resnet20 --hardwar bitfusion --foo 3", "--foo"),
        ("search --limit", "--limit"),
        ("search --trials x", "'x'"),
    ],
)
def test_arguments_that_no_command_takes_are_refused_in_one_line(line, named, codesign):
    code, out, err = codesign(line)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and named in err and "--help" in err


def test_a_package_that_is_not_installed_is_no_bad_input(codesign, monkeypatch, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = codesign("estimate net.onnx")
    assert code == 1
    assert err.count("\n") == 1
    assert "needs the package onnx" in err


# ----------------------------------------------------------------------------------------------------- quickstart


def test_quickstart_passes_its_options_on_and_prints_what_comes_out(codesign, monkeypatch):
    class Result:
        def __init__(self, *args, **kwargs):
            self.options = [args, kwargs]

        def to_json(self):
            return json.dumps(self.options)

    monkeypatch.setattr("codesign.quickstart.quickstart", Result)
    assert json.loads(codesign("quickstart --json")[1]) == [["runs/quickstart", 0], {}]
    line = "quickstart --out here --seed 3 --trials 40 --splits 2 --json"
    assert json.loads(codesign(line)[1]) == [["here", 3], {"n_trials": 40, "n_splits": 2}]


def test_quickstart_refuses_a_directory_of_another_configuration(codesign, monkeypatch):
    from codesign.run_directory import RunDirectoryError

    def another(*_, **__):
        raise RunDirectoryError("runs/quickstart: it holds a run with seed 0.")

    monkeypatch.setattr("codesign.quickstart.quickstart", another)
    code, _, err = codesign("quickstart --seed 1")
    assert code == 2
    assert err == "codesign: error: runs/quickstart: it holds a run with seed 0.\n"


# ------------------------------------------------------------------------------------------------------- estimate


def test_estimate_prints_the_report_of_the_simulator(codesign):
    code, out, _ = codesign("estimate resnet20 --bits w4a8")
    assert code == 0
    assert str(estimate(networks.resnet20().with_bits(4, 8), BitFusion())) in out


def test_tables_fit_a_terminal_of_80_columns(codesign):
    compare = "compare resnet20 --hardware bitfusion,stripes,loom --bits w8a8,w2a2 --equal-area"
    wide = "table vgg16 --bits 1-16 --hardware bitfusion-16bit --out t.npz"
    for line in (compare, wide, "estimate resnet50 --bits 4", "hardware list", "table resnet20 --bits 1-8 --out t.npz"):
        assert max(map(len, codesign(line)[1].splitlines())) <= 80


def test_estimate_as_json_has_totals_and_layers(codesign):
    report = estimate(networks.resnet20().with_bits(2, 4), BitFusion(objective="energy"))
    document = json.loads(codesign("estimate resnet20 --bits w2a4 --objective energy --json")[1])
    assert document["totals"]["energy_j"] == report.energy_j
    assert {"frames_per_s", "power_w", "tops_per_w", "peak_buffer_bytes", "area_mm2"} <= set(document["totals"])
    assert [row["cycles"] for row in document["layers"]] == [cost.cycles for cost in report.layers]


def test_estimate_takes_batch_shape_chip_settings_and_hand_over(codesign):
    line = "estimate resnet20 --batch 2 --input-shape 1,3,64,64 --hardware bitfusion-s --set rows=8 --resident --json"
    chip = BitFusion(
        rows=8, weight_buffer_bytes=2**17, input_buffer_bytes=2**17, output_buffer_bytes=2**17, dram_bits_per_cycle=4096
    )
    report = estimate(networks.resnet20(batch=2, input_size=64), chip, resident=True)
    assert json.loads(codesign(line)[1])["totals"]["latency_s"] == report.latency_s


def test_estimate_reads_a_chip_from_a_file(codesign, tmp_path):
    codesign_show = codesign("hardware show bitfusion-8x8")[1]
    (tmp_path / "my_chip.yaml").write_text(codesign_show)
    from_file = json.loads(codesign("estimate resnet20 --hardware my_chip.yaml --json")[1])
    assert from_file["totals"] == json.loads(codesign("estimate resnet20 --hardware bitfusion-8x8 --json")[1])["totals"]


def test_the_example_files_of_the_documentation_work(codesign):
    examples = Path(__file__).parents[2] / "docs" / "examples"
    line = f"estimate resnet18 --hardware {examples}/my_chip.yaml --set rows=32 --bits {examples}/bits.yaml --json"
    document = json.loads(codesign(line)[1])
    chip = BitFusion(
        rows=32, cols=16, weight_buffer_bytes=131072, dram_bits_per_cycle=64, clock_hz=400e6, objective="energy"
    )
    chip = dataclasses.replace(chip, energies=dataclasses.replace(chip.unit_energies, dram_pj_per_bit=4.0))
    assert document["hardware"] == repr(chip)
    bits = {row["layer"]: (row["weight_bits"], row["input_bits"]) for row in document["layers"]}
    assert (bits["conv1"], bits["layer1.0.conv1"], bits["layer4.1.conv2"]) == ((8, 8), (4, 8), (2, 4))


@pytest.mark.parametrize("entry", [{"weight": 4, "input": 8}, [4, 8], "w4a8"])
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_estimate_reads_bits_from_a_file(entry, suffix, codesign, tmp_path):
    table = {layer.name: entry for layer in networks.resnet20().mac_layers}
    table["fc"] = 8
    (tmp_path / f"bits.{suffix}").write_text(yaml.safe_dump(table) if suffix == "yaml" else json.dumps(table))
    widths = [4] * (len(table) - 1) + [8]
    report = estimate(networks.resnet20().with_bits(widths, 8), BitFusion())
    document = json.loads(codesign(f"estimate resnet20 --bits bits.{suffix} --json")[1])
    assert document["totals"]["energy_j"] == report.energy_j


def test_estimate_calls_a_factory_of_the_working_folder(codesign, tmp_path):
    (tmp_path / "made_here.py").write_text(
        "from hwmodels import Layer, Workload\n"
        "def net():\n    return Workload.sequential('mine', [Layer.linear('fc', 64, 10)])\n"
    )
    report = estimate(Workload.sequential("mine", [Layer.linear("fc", 64, 10)]), BitFusion())
    assert json.loads(codesign("estimate made_here:net --json")[1])["totals"]["latency_s"] == report.latency_s


def test_estimate_writes_csv_with_a_line_a_layer_of_each_network(codesign, tmp_path):
    assert codesign("estimate resnet20 vgg16 --csv costs.csv")[0] == 0
    rows = list(csv.DictReader((tmp_path / "costs.csv").open()))
    assert [row["layer"] for row in rows if row["network"] == "vgg16"] == [x.name for x in networks.vgg16().layers]
    assert {row["network"] for row in rows} == {"resnet20", "vgg16"}


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_estimate_draws_the_layers(suffix, codesign, tmp_path):
    assert codesign(f"estimate resnet20 --plot layers.{suffix}")[0] == 0
    assert (tmp_path / f"layers.{suffix}").stat().st_size > 1000


# -------------------------------------------------------------------------------------------------------- compare


def test_compare_as_json_has_totals_and_ratios_to_the_first(codesign):
    line = "compare resnet20 --bits w8a8,w2a2 --hardware bitfusion,bitfusion-8x8 --json"
    records = json.loads(codesign(line)[1])
    assert [(r["hardware"], r["bits"]) for r in records] == [
        (chip, bits) for chip in ("bitfusion", "bitfusion-8x8") for bits in ("w8a8", "w2a2")
    ]
    for record in records:
        for name, ratio in record["ratios"].items():
            assert ratio == pytest.approx(record["totals"][name] / records[0]["totals"][name])
    last = estimate(networks.resnet20().with_bits(2, 2), HARDWARE["bitfusion-8x8"]())
    assert records[-1]["totals"]["energy_j"] == last.energy_j


@pytest.mark.parametrize("scale", ["", "array", "chip"])
def test_compare_sizes_chips_to_the_area_of_the_first(scale, codesign):
    records = json.loads(codesign(f"compare resnet20 --bits 8 --equal-area {scale} --json")[1])
    first_mm2, *others_mm2 = (record["totals"]["area_mm2"] for record in records)
    assert others_mm2
    assert all(0.95 * first_mm2 < area_mm2 <= first_mm2 for area_mm2 in others_mm2)


def test_compare_prints_and_draws_what_a_chip_can_run_and_names_what_it_cannot(codesign, tmp_path):
    code, out, err = codesign("compare resnet20 --bits w8a8,w16a16 --hardware bitfusion --plot compare.png")
    assert code == 2
    assert "w8a8" in out
    assert "bitfusion at w16a16: Layer 'conv1'" in err
    assert (tmp_path / "compare.png").stat().st_size > 1000


# --------------------------------------------------------------------------------------------------------- pareto


def write_run(folder, trials):
    folder.mkdir()
    (folder / "trials.jsonl").write_text("".join(f"{trial.to_json()}\n" for trial in trials))


def trial(number, error, energy_j, violations=()):
    metrics = {"error": error, "energy_j": energy_j, "latency_s": 1.0}
    return Trial((number,), metrics, dict(violations), number)


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "a", [trial(0, 0.1, 3.0), trial(1, 0.2, 2.0), trial(2, 0.0, 1.0, {"energy_j": 1.0})])
    write_run(tmp_path / "b", [trial(0, 0.15, 2.5), trial(1, 0.2, 2.5)])


def test_pareto_prints_the_front_of_the_runs_together_without_infeasible_trials(codesign, runs):
    records = json.loads(codesign("pareto a b --objectives error,energy_j --json")[1])["front"]
    assert [(record["run"], record["number"]) for record in records] == [("a", 0), ("b", 0), ("a", 1)]


@pytest.mark.parametrize("objectives", ["error,energy_j", "error,latency_s,energy_j"])
def test_pareto_draws_two_or_three_objectives(objectives, codesign, runs, tmp_path):
    code, out, _ = codesign(f"pareto a b --objectives {objectives} --plot front.png")
    assert code == 0
    assert "3 of 4 feasible trials" in out
    assert (tmp_path / "front.png").stat().st_size > 1000


# ---------------------------------------------------------------------------------------------- table and hardware


@pytest.mark.parametrize("suffix", ["npz", "json", "csv"])
def test_a_table_is_written_with_its_axes_named(suffix, codesign, tmp_path):
    assert codesign(f"table resnet20 --bits 2,4 --out t.{suffix}")[0] == 0
    path = tmp_path / f"t.{suffix}"
    names = [layer.name for layer in networks.resnet20().layers]
    if suffix == "csv":
        rows = list(csv.DictReader(path.open()))
        assert len(rows) == len(names) * 2 * 2
        total_s = sum(float(r["latency_s"]) for r in rows if (r["weight_bits"], r["input_bits"]) == ("2", "4"))
    else:
        held = np.load(path) if suffix == "npz" else json.loads(path.read_text())
        assert list(held["axes"]) == ["layer", "weight_bits", "input_bits"]
        assert list(held["layer"]) == names
        total_s = np.array(held["latency_s"])[:, 0, 1].sum()
    assert total_s == pytest.approx(estimate(networks.resnet20().with_bits(2, 4), BitFusion()).latency_s)


@pytest.mark.parametrize("suffix", ["npz", "json", "csv"])
def test_a_table_is_a_chip_that_prices_the_same(suffix, codesign):
    codesign(f"table resnet20 --bits 2,4 --out t.{suffix}")
    measured = json.loads(codesign(f"estimate resnet20 --bits w2a4 --hardware t.{suffix} --json")[1])["totals"]
    report = estimate(networks.resnet20().with_bits(2, 4), BitFusion())
    assert measured["latency_s"] == pytest.approx(report.latency_s)
    assert measured["energy_j"] == pytest.approx(report.energy_j)


def test_a_table_can_be_printed_as_json(codesign):
    held = json.loads(codesign("table resnet20 --bits 8 --json")[1])
    assert np.shape(held["energy_pj"]) == (len(networks.resnet20().layers), 1, 1)


def test_hardware_lists_every_preset(codesign):
    out = codesign("hardware list")[1]
    assert all(name in out for name in HARDWARE)
    assert [record["name"] for record in json.loads(codesign("hardware list --json")[1])] == list(HARDWARE)


def test_hardware_shows_a_chip_as_json(codesign):
    held = json.loads(codesign("hardware show bitfusion --json")[1])
    assert (held["type"], held["rows"]) == ("BitFusion", BitFusion().rows)


def test_a_full_disk_is_said_with_what_to_do():
    error = OSError(28, "No space left on device", "runs/a/trials.jsonl")
    expected = "runs/a/trials.jsonl: No space left on device; make room and try again, a search with --resume"
    assert one_line(error) == expected
