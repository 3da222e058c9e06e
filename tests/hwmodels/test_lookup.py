"""Measured tables: what they cover, what they refuse, and the files that hold them."""

import json

import numpy as np
import pytest

from codesign.layer_table import layer_table
from hwmodels import BitFusion, LookupTable, Measurement, UnsupportedLayer, estimate, networks
from hwmodels.workload import Layer, Workload

CONV = Layer("conv1", 3, 16, in_size=(32, 32), kernel_size=3, padding=1)
NETWORK = Workload.sequential("net", (CONV, Layer.linear("fc", 10, 10)))
BY_NAME = LookupTable("board", (Measurement("conv1", 8, 8, 2e-6, 30.0), Measurement("fc", 8, 8, 1e-6, 10.0)))


def test_a_network_costs_the_sum_of_its_measurements():
    report = estimate(NETWORK, BY_NAME)
    assert report.latency_s == pytest.approx(2e-6 + 1e-6)
    assert report.energy_j == pytest.approx((30.0 + 10.0) * 1e-12)
    assert BY_NAME.covers(NETWORK) and BY_NAME.uncovered(NETWORK) == ()
    assert BY_NAME.cost(CONV).cycles is None and "measured as 'conv1'" in BY_NAME.cost(CONV).mapping


def test_energy_that_was_not_measured_is_unknown_and_not_zero():
    table = LookupTable("board", (*BY_NAME.measurements[:1], Measurement("fc", 8, 8, 1e-6)))
    report = estimate(NETWORK, table)
    assert report.latency_s == pytest.approx(3e-6)
    with pytest.raises(ValueError, match="gives no energy"):
        _ = report.energy_j
    with pytest.raises(ValueError, match="gives no energy"):
        _ = table.cost(NETWORK.layers[1]).energy_pj
    assert "energy_j" not in report.metrics()


def test_all_uncovered_layers_are_named_at_once():
    narrow = NETWORK.with_bits(4, 8)
    assert BY_NAME.uncovered(narrow) == ("conv1 at w4a8", "fc at w4a8")
    with pytest.raises(UnsupportedLayer, match=r"lacks 2 of 2: conv1 at w4a8, fc at w4a8\."):
        estimate(narrow, BY_NAME)
    with pytest.raises(UnsupportedLayer, match=r"lacks 1 of 1: other at w8a8"):
        BY_NAME.cost(Layer("other", 3, 16, in_size=(32, 32)))


def test_a_measurement_by_shape_covers_every_layer_of_that_shape():
    table = LookupTable("board", (Measurement(CONV, 4, 8, 5e-6),))
    same = Layer("elsewhere", 3, 16, in_size=(32, 32), kernel_size=3, padding=1, reads_network_input=True)
    assert table.cost(same.with_bits(4, 8, output_bits=2)).latency_s == 5e-6
    with pytest.raises(UnsupportedLayer):
        table.cost(same.with_bits(8, 8))
    with pytest.raises(UnsupportedLayer):
        table.cost(Layer("conv1", 3, 16, in_size=(32, 32), kernel_size=3).with_bits(4, 8))  # not padded


def test_shape_goes_before_name():
    table = LookupTable("board", (Measurement("conv1", 8, 8, 1e-6), Measurement(CONV, 8, 8, 2e-6)))
    assert table.cost(CONV).latency_s == 2e-6


def test_operators_are_free_only_where_the_user_says_so():
    net = networks.resnet20()
    macs = {layer.name: 1e-6 for layer in net.layers if layer.is_mac}
    strict = LookupTable.from_workload("board", net, macs)
    missing = strict.uncovered(net)
    assert missing and all("w" in name for name in missing)
    with pytest.raises(UnsupportedLayer, match=rf"lacks {len(missing)} of {len(net.layers)}"):
        estimate(net, strict)
    free = LookupTable.from_workload("board", net, macs, free_ops=("add", "pool"))
    assert estimate(net, free).latency_s == pytest.approx(1e-6 * len(macs))
    with pytest.raises(ValueError, match="free_ops must be of conv, linear"):
        LookupTable("board", BY_NAME.measurements, free_ops=("relu",))


def test_operands_on_the_chip_were_not_measured():
    with pytest.raises(UnsupportedLayer, match="leave out resident operands"):
        BY_NAME.cost(CONV, resident=("input",))
    assert estimate(NETWORK, BY_NAME, resident=True).latency_s == pytest.approx(3e-6)  # nothing can be handed over


@pytest.mark.parametrize("suffix", [".csv", ".json", ".npz"])
@pytest.mark.parametrize("with_energy", [True, False])
def test_a_table_is_read_as_it_was_written(tmp_path, suffix, with_energy):
    grouped = Layer("dw", 8, 8, (9, 7), (3, 5), (2, 1), ((0, 1), (2, 2)), (1, 2), groups=8, batch=4)
    energy = 0.1 if with_energy else None
    table = LookupTable(
        "t", (Measurement(CONV, 4, 8, 1 / 3, energy), Measurement(grouped, 2, 2, 2e-9, energy),
              Measurement(Layer.linear("fc", 10, 10), 8, 8, 1e-6, energy), Measurement("head", 8, 4, 1e-5, energy)),
    )  # fmt: skip
    table.to_file(tmp_path / f"t{suffix}")
    assert LookupTable.from_file(tmp_path / f"t{suffix}") == table


def test_a_measurement_without_energy_beside_ones_with_it_survives_a_file(tmp_path):
    table = LookupTable("t", (Measurement("a", 8, 8, 1e-6, 3.0), Measurement("b", 8, 8, 1e-6)))
    for suffix in (".csv", ".json", ".npz"):
        table.to_file(tmp_path / f"t{suffix}")
        assert LookupTable.from_file(tmp_path / f"t{suffix}") == table


@pytest.mark.parametrize("suffix", [".csv", ".json", ".npz"])
def test_the_table_of_a_simulated_chip_prices_uniform_networks_as_the_chip_does(tmp_path, suffix):
    net, chip = networks.resnet20(), BitFusion()
    layer_table(net, chip, weight_bits=(2, 8), input_bits=(4, 8)).save(tmp_path / f"table{suffix}")
    table = LookupTable.from_file(tmp_path / f"table{suffix}")
    for w, a in ((2, 4), (2, 8), (8, 4), (8, 8)):
        ours, theirs = estimate(net.with_bits(w, a), table), estimate(net.with_bits(w, a), chip)
        assert ours.latency_s == pytest.approx(theirs.latency_s, rel=1e-12)
        assert ours.energy_j == pytest.approx(theirs.energy_j, rel=1e-12)
    assert not table.covers(net.with_bits(3, 8))


def test_units_are_read_from_the_column_names(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("# by hand\nlayer,weight_bits,input_bits,latency_us,energy_uj\nconv1,8,8,2.5,7\n")
    cost = LookupTable.from_file(path).cost(CONV)
    assert cost.latency_s == pytest.approx(2.5e-6) and cost.energy_pj == pytest.approx(7e6)


GOOD = "layer,weight_bits,input_bits,latency_s\n"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.txt", GOOD + "a,8,8,1", r"t\.txt': the file's name must end in \.csv, \.json, \.npz"),
        ("t.csv", GOOD, "it must have at least one measurement, got none"),
        ("t.csv", GOOD + "a,8,8", "a line has more or fewer values than the header"),
        ("t.csv", GOOD + "a,8,8,fast", r"entry 1: latency_s must be a number, got 'fast'"),
        ("t.csv", GOOD + "a,8,8,1\nb,8,8,-1", r"entry 2: .*latency_s must be at least 0, got latency_s=-1\.0"),
        ("t.csv", GOOD + "a,8,8,nan", "latency_s must be at least 0"),
        ("t.csv", GOOD + "a,8.5,8,1", r"weight_bits must be an integer, got '8\.5'"),
        ("t.csv", GOOD + "a,8,8,1\na,8,8,2", "'a' at w8a8 again"),
        ("t.csv", "layer,weight_bits,input_bits,speed\na,8,8,1", "got speed"),
        ("t.csv", "layer,weight_bits,input_bits,latency_s,latency_ms\na,8,8,1,1", "got latency_s, latency_ms"),
        ("t.csv", "weight_bits,input_bits,latency_s\n8,8,1", "lacks layer or in_channels, out_channels"),
        ("t.csv", "in_channels,out_channels,groups,weight_bits,input_bits,latency_s\n3,4,2,8,8,1", "must divide"),
        ("t.json", "[1]", "it must be a mapping from column to list, got list"),
        ("t.json", "{", "the file must be a table of measurements"),
        ("t.json", json.dumps({"layer": ["a"], "latency_s": [1, 2]}), "layer has 1, latency_s has 2"),
        ("t.json", json.dumps({"axes": ["layer"], "layer": ["a"], "latency_s": [1, 2]}), "must have the shape"),
        ("t.npz", "not a zip", "the file must be a table of measurements"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_its_line_and_its_rule(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        LookupTable.from_file(path)


def test_a_missing_file_and_a_truncated_one_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.npz': the file must be readable: No such file"):
        LookupTable.from_file(tmp_path / "none.npz")
    BY_NAME.to_file(tmp_path / "t.npz")
    whole = (tmp_path / "t.npz").read_bytes()
    (tmp_path / "t.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"t\.npz': the file must be a table"):
        LookupTable.from_file(tmp_path / "t.npz")
    with pytest.raises(ValueError, match=r"must end in \.csv, \.json, \.npz, got 't\.pkl'"):
        BY_NAME.to_file("t.pkl")


def test_an_npz_file_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz", layer=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="the file must be a table of measurements"):
        LookupTable.from_file(tmp_path / "t.npz")


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="at least one measurement"):
        LookupTable("board", ())


def test_tables_are_values():
    again = LookupTable("board", BY_NAME.measurements)
    assert again == BY_NAME and hash(again) == hash(BY_NAME) and repr(BY_NAME).startswith("LookupTable(name='board'")


def test_a_measured_total_is_not_split_into_zeros():
    network = networks.resnet20()
    priced = estimate(network, BitFusion())
    seconds = {name: cost.latency_s for name, cost in priced.by_layer().items()}
    energies = {name: cost.energy_pj for name, cost in priced.by_layer().items()}
    report = estimate(network, LookupTable.from_workload("board", network, seconds, energies))
    assert report.energy_j == pytest.approx(priced.energy_j)
    assert report.by_component() == {} and "dram" not in str(report).splitlines()[-2]
    row = next(report.rows())
    assert row["energy_pj"] > 0 and "compute_pj" not in row
