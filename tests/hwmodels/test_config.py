import dataclasses

import pytest

from hwmodels import HARDWARE, BitFusion, BitFusionEnergies, LookupTable, Measurement
from hwmodels.config import load_hardware, parse_settings, to_yaml

ENERGIES = BitFusionEnergies(*(float(i) for i in range(1, 10)))


def written(tmp_path, text):
    path = tmp_path / "chip.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", HARDWARE)
def test_what_is_shown_of_a_preset_is_a_file_of_an_equal_chip(name, tmp_path):
    chip = HARDWARE[name]()
    assert load_hardware(written(tmp_path, to_yaml(chip))) == chip


def test_a_chip_whose_energies_are_given_comes_back_equal(tmp_path):
    chip = BitFusion(rows=4, clock_hz=1e9, energies=ENERGIES)
    assert load_hardware(written(tmp_path, to_yaml(chip))) == chip


@pytest.mark.parametrize("name", HARDWARE)
def test_every_field_is_shown_with_its_unit_and_source(name):
    chip = HARDWARE[name]()
    comment, described = "", {}
    for line in to_yaml(chip).splitlines():
        if line.startswith("#"):
            comment += line[1:].strip() + " "
        else:
            described[line.partition(":")[0]], comment = comment, ""
    for field in dataclasses.fields(chip):
        assert field.metadata["source"], field.name
        assert f"source: {field.metadata['source']}" in " ".join(described[field.name].split())
        if field.metadata["unit"]:
            assert f"[{field.metadata['unit']}]" in described[field.name]


def test_a_file_may_start_from_a_preset(tmp_path):
    path = written(tmp_path, "preset: bitfusion-8x8\ncols: 4\n")
    assert load_hardware(path) == dataclasses.replace(HARDWARE["bitfusion-8x8"](), cols=4)


def test_a_file_may_start_from_the_defaults_of_a_type(tmp_path):
    assert load_hardware(written(tmp_path, "type: BitFusion\nclock_hz: 1e9\n")) == BitFusion(clock_hz=1e9)


def test_settings_go_over_the_file(tmp_path):
    path = written(tmp_path, "type: BitFusion\nrows: 4\ncols: 4\n")
    assert load_hardware(path, parse_settings(["rows=8", "objective=energy"])) == BitFusion(
        rows=8, cols=4, objective="energy"
    )


def test_energies_that_are_not_given_are_those_of_the_changed_chip():
    chip = load_hardware("bitfusion", {"rows": 64, "energies.dram_pj_per_bit": 4})
    assert chip.energies == dataclasses.replace(BitFusion(rows=64).unit_energies, dram_pj_per_bit=4.0)


def test_energies_that_are_given_are_kept_when_one_of_them_changes(tmp_path):
    path = written(tmp_path, to_yaml(BitFusion(energies=ENERGIES)))
    chip = load_hardware(path, {"energies.dram_pj_per_bit": 4})
    assert chip.energies == dataclasses.replace(ENERGIES, dram_pj_per_bit=4.0)


def test_a_table_of_measured_costs_is_a_chip(tmp_path):
    board = LookupTable("board", (Measurement("conv1", 8, 8, 2e-6),), free_ops=("add",))
    path = tmp_path / "board.csv"
    board.to_file(path)
    assert load_hardware(str(path), parse_settings(["free_ops=[add]"])) == board
    with pytest.raises(ValueError, match=r"board\.csv.*no field but free_ops, got rows"):
        load_hardware(str(path), {"rows": 3})
    with pytest.raises(ValueError, match=r"'board'.*open its file"):
        to_yaml(board)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("type: BitFusion\nrow: 3\n", ["'row'", "near 'rows'", "weight_buffer_bytes"]),
        ("type: BitFusion\nclock_mhz: 500\n", ["'clock_mhz'", "near 'clock_hz'"]),
        ("type: BitFusion\nenergies: {dram_nj_per_bit: 1}\n", ["'dram_nj_per_bit'", "near 'dram_pj_per_bit'"]),
        ("type: BitFusion\nrows: 0\n", ["rows", "at least 1", "rows=0"]),
        ("type: BitFusion\nrows: 1.5\n", ["rows", "integer", "1.5"]),
        ("type: BitFusion\nrows: wide\n", ["rows", "integer", "'wide'"]),
        ("type: BitFusion\nrows: yes\n", ["rows", "True"]),
        ("type: BitFusion\nclock_hz: 500 MHz\n", ["clock_hz", "valid number", "'500 MHz'"]),
        ("type: BitFusion\nclock_hz: -1\n", ["clock_hz", "positive", "-1"]),
        ("type: BitFusion\nobjective: speed\n", ["objective", "'latency', 'energy' or 'edp'", "'speed'"]),
        ("type: BitFusion\nenergies: 3\n", ["energies", "3"]),
        ("type: BitFusoin\n", ["type", "'BitFusoin'", "near 'BitFusion'"]),
        ("preset: bitfusoin\n", ["preset", "'bitfusoin'", "near 'bitfusion'"]),
        ("rows: 3\n", ["preset:", "type:"]),
        ("- 3\n", ["field: value", "list"]),
        ("rows: [3\n", ["valid YAML"]),
    ],
)
def test_a_bad_file_is_refused_by_name_with_what_must_hold(text, parts, tmp_path):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=r"^Chip ") as failure:
        load_hardware(path)
    for part in [path, *parts]:
        assert part in str(failure.value)


def test_an_unknown_preset_is_refused_with_the_nearest_and_the_known_ones():
    with pytest.raises(ValueError, match=r"Chip 'bitfusoin'.*near 'bitfusion'") as failure:
        load_hardware("bitfusoin")
    assert all(name in str(failure.value) for name in HARDWARE)


def test_a_missing_file_is_refused():
    with pytest.raises(ValueError, match=r"nowhere\.yaml.*readable: No such file"):
        load_hardware("nowhere.yaml")


@pytest.mark.parametrize("text", ["rows", "rows=", "=3", "rows=[3"])
def test_a_setting_without_field_or_value_is_refused(text):
    with pytest.raises(ValueError, match="Setting"):
        parse_settings([text])
