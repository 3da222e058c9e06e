"""``codesign space`` lists the options and prices the ends of the space."""

import json

import pytest

from codesign.cli import main
from codesign.nets.mobilenetv2 import Block, MobileNetV2Space
from hwmodels import BitFusion, estimate


@pytest.fixture
def codesign(capsys):
    def run(line):
        try:
            code = main(line.split())
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_the_options_and_the_ends_of_each_metric_fit_the_terminal(codesign):
    code, out, _ = codesign("space mobilenetv2 --preset tiny --hardware bitfusion")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "2 blocks of 288 options each; 82,944 networks" in out
    assert "reference: 0-1 m6 k3 s w8a8" in out and "least latency" in out
    assert [line.split()[0] for line in out.splitlines() if "1, 3, 6" in line] == ["expansion"]


def test_the_networks_of_the_json_cost_what_it_says(codesign):
    record = json.loads(codesign("space mobilenetv2 --preset tiny --set rows=8 --json")[1])
    space, chip = MobileNetV2Space.preset("tiny"), BitFusion(rows=8)
    assert record["size"] == space.size == 288**2
    assert record["reference"]["options"] == {f"blocks.{i}": Block(6, 3, 1, 8, 8)._asdict() for i in range(2)}
    energy = record["metrics"]["energy_j"]
    for end in ("low", "high"):
        assert estimate(space.workload(energy[f"{end}_arch"]), chip).energy_j == pytest.approx(energy[end])
    assert energy["low"] < record["reference"]["metrics"]["energy_j"] <= energy["high"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("space bits", "the space must be mobilenetv2 here"),
        ("space mobilenetv2 --preset xs", "preset must be one of"),
        ("space mobilenetv2 --space-set with=1", "near 'width'"),
        ("space mobilenetv2 --hardware tpu", "must be a preset"),
        ("space mobilenetv2 --hardware-choice rows", "must be field=value,value"),
        ("space mobilenetv2 --set rows=8 --hardware-choice rows=8,16", "either set or chosen"),
    ],
)
def test_bad_input_is_named_in_one_line(line, message, codesign):
    code, _, err = codesign(line)
    assert code == 2
    assert message in err and len(err.splitlines()) == 1
