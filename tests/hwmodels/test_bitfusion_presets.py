"""The Bit Fusion chip as a value: presets, unit energies, areas, and what it refuses."""

import csv
import dataclasses
import time

import numpy as np
import pytest

from hwmodels import HARDWARE, BitFusion, BitFusionEnergies, Layer
from hwmodels.bitfusion import bf_8x8, bf_e, bf_e_16bit, bf_e_scaled, bf_s
from hwmodels.technology import core, sram

#: Preset and its name in the reference data.
PRESETS = {
    "bitfusion": "bf_e", "bitfusion-s": "bf_s", "bitfusion-8x8": "conf", "bitfusion-x2": "bf_e_x2",
    "bitfusion-x4": "bf_e_x4", "bitfusion-x8": "bf_e_x8", "bitfusion-16bit": "bf_e_p16",
}  # fmt: skip


def unit_energies_nj(chip: BitFusion) -> list[float]:
    return [energy * 1e-3 for energy in dataclasses.astuple(chip.unit_energies)[:8]]


# From running the public Bit Fusion simulator on bf_e_conf.ini, bf_s_conf.ini and conf.ini: nJ per cycle and per
# bit (weight, input, output buffer, read and write; DRAM), and mm2 of the core, weight, input and output buffer.
@pytest.mark.parametrize(
    ("chip", "energies_nj", "areas_mm2"),
    [
        (
            bf_e(),
            (0.235104, 2.136565625e-5, 2.891615625e-5, 5.9474375e-5, 1.137040625e-4, 3.31553125e-5, 7.30840625e-5,
             0.015),
            (0.88809073856, 0.76747776, 0.242112, 0.24330592),
        ),
        (
            bf_s(),
            (0.235104, 2.32915e-5, 3.94184375e-5, 1.997384375e-4, 1.7383375e-4, 1.2447625e-4, 1.578534375e-4, 0.015),
            (0.88809073856, 1.25986816, 0.9200976, 1.5543648),
        ),
        (
            bf_8x8(),
            (0.029388, 1.071728125e-4, 1.346909375e-4, 1.997384375e-4, 1.7383375e-4, 6.82525e-5, 1.335490625e-4, 0.015),
            (0.11101134232, 1.9238848, 0.4600488, 0.2065352),
        ),
        (
            bf_e_16bit(),
            (1.0820864, 2.9008515625e-5, 3.65590625e-5, 3.4745390625e-5, 6.8025078125e-5, 3.31553125e-5, 7.30840625e-5,
             0.015),
            (4.5216711424, 5.4524928, 0.3337312, 0.24330592),
        ),
    ],
    ids=["bf_e", "bf_s", "conf", "bf_e_p16"],
)  # fmt: skip
def test_unit_energies_and_areas_are_those_of_the_public_simulator(chip, energies_nj, areas_mm2):
    assert unit_energies_nj(chip) == pytest.approx(energies_nj, rel=1e-12)
    assert list(chip.areas_mm2.values()) == pytest.approx(areas_mm2, rel=1e-12)
    assert chip.area_mm2 == pytest.approx(sum(areas_mm2), rel=1e-12)


def test_every_preset_equals_its_configuration_in_the_reference_data(reference_dir):
    with open(reference_dir / "golden" / "config_energy.csv") as file:
        rows = {row["config"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(PRESETS.values())
    for preset, config in PRESETS.items():
        chip, row = HARDWARE[preset](), rows[config]
        shape = ("N", "M", "pmax", "pmin", "wbuf_bytes", "ibuf_bytes", "obuf_bytes", "bw_bits_per_cycle")
        assert dataclasses.astuple(chip)[:8] == tuple(int(row[key]) for key in shape)
        energies = [float(value) for key, value in row.items() if "_nJ_per_" in key]
        assert unit_energies_nj(chip) == pytest.approx(energies, rel=1e-12), preset
        areas = [float(row[f"{part}_area_mm2"]) for part in ("core", "wbuf", "ibuf", "obuf")]
        assert list(chip.areas_mm2.values()) == pytest.approx(areas, rel=1e-12), preset


def test_leakage_is_that_of_the_core_and_of_all_banks():
    chip = bf_e()
    leakage_w = 1e-3 * (
        core(16, 32, 8, 2).leakage_mw
        + 16 * 32 * sram(128, 4, 0).leakage_mw
        + 16 * sram(2048, 4, 0).leakage_mw
        + 32 * sram(512, 4, 1).leakage_mw
    )
    assert chip.unit_energies.leakage_pj_per_cycle == pytest.approx(leakage_w / 500e6 * 1e12, rel=1e-12)
    slower = dataclasses.replace(chip, clock_hz=250e6)
    assert slower.unit_energies.leakage_pj_per_cycle == pytest.approx(2 * leakage_w / 500e6 * 1e12, rel=1e-12)


def test_given_energies_replace_the_tables_but_not_the_area():
    given = BitFusionEnergies(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, dram_pj_per_bit=8.0)
    chip = BitFusion(energies=given)
    assert chip.unit_energies is given and given.leakage_pj_per_cycle == 0
    assert chip.area_mm2 == bf_e().area_mm2


def test_scaled_presets_scale_columns_and_buffers():
    chip = bf_e_scaled(4)
    assert (chip.rows, chip.cols, chip.dram_bits_per_cycle) == (16, 4 * 32, 4096)
    assert chip.weight_buffer_bytes + chip.input_buffer_bytes + chip.output_buffer_bytes == 4 * 112 * 1024


@pytest.mark.parametrize(
    ("weight_bits", "input_bits", "macs"),
    [(8, 8, 1), (8, 5, 1), (4, 8, 2), (3, 4, 4), (2, 2, 16), (1, 1, 16), (1, 7, 4), (9, 8, 0)],
)
def test_throughput_doubles_each_time_an_operand_halves(weight_bits, input_bits, macs):
    for chip in (bf_e(), BitFusion(model="reference", mapping="channel")):
        assert chip.peak_macs_per_cycle(weight_bits, input_bits) == 16 * 32 * macs


def test_the_reference_takes_quotients_where_bricks_come_in_powers_of_two():
    assert BitFusion(max_bits=16).macs_per_unit(weight_bits=5, input_bits=16) == 16 // 8
    reference = BitFusion(max_bits=16, model="reference", mapping="channel")
    assert reference.macs_per_unit(weight_bits=5, input_bits=16) == 16 // 5


def test_half_of_the_input_buffer_is_handed_over():
    assert bf_e().handover_bits == 32768 * 8 // 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "rows must be an integer of at least 1, got rows=0"),
        ({"cols": -3}, "cols must be an integer of at least 1, got cols=-3"),
        ({"rows": 2.5}, "got rows=2.5"),
        ({"rows": True}, "got rows=True"),
        ({"weight_buffer_bytes": 0}, "weight_buffer_bytes must be"),
        ({"dram_bits_per_cycle": 0}, "dram_bits_per_cycle must be"),
        ({"clock_hz": 0}, "clock_hz must be a positive number, got clock_hz=0"),
        ({"max_bits": 6}, "powers of two, got max_bits=6, min_bits=2"),
        ({"max_bits": 2, "min_bits": 4}, "min_bits must be at most max_bits"),
        ({"max_bits": 64}, "at most 32"),
        ({"mapping": "rows"}, "mapping must be one of channel, im2col, auto, got mapping='rows'"),
        ({"objective": "area"}, "objective must be one of latency, energy, edp, got objective='area'"),
        ({"model": "paper"}, "model must be one of default, reference, got model='paper'"),
        ({"model": "reference"}, "wants an explicit mapping, got mapping='auto'"),
        ({"model": "reference", "mapping": "im2col", "objective": "energy"}, "objective must be 'latency'"),
    ],
)
def test_a_chip_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BitFusion(**fields)


def test_energies_below_zero_are_refused():
    with pytest.raises(ValueError, match="dram_pj_per_bit must be a number of at least 0, got dram_pj_per_bit=-1"):
        BitFusionEnergies(1, 1, 1, 1, 1, 1, 1, dram_pj_per_bit=-1)


def test_widths_that_were_not_synthesized_need_given_energies():
    chip = BitFusion(max_bits=32)
    with pytest.raises(ValueError, match="got 32/2"):
        _ = chip.unit_energies
    assert BitFusion(max_bits=32, energies=bf_e().unit_energies).unit_energies == bf_e().unit_energies


def test_every_field_tells_its_unit_meaning_and_source():
    for owner in (BitFusion, BitFusionEnergies):
        for part in dataclasses.fields(owner):
            assert part.metadata["doc"] and part.metadata["source"], part.name
            assert "unit" in part.metadata, part.name


def test_a_chip_is_its_own_key_and_takes_numpy_integers():
    chip = BitFusion(rows=np.int64(16))
    assert chip == bf_e() and hash(chip) == hash(bf_e()) and type(chip.rows) is int


def test_ten_thousand_chips_are_built_and_priced_per_bit_in_seconds():
    started = time.perf_counter()
    chips = [BitFusion(rows=4 + i % 29, cols=4 + i % 61, input_buffer_bytes=1024 + 8 * i) for i in range(10_000)]
    least_pj = min(chip.unit_energies.input_buffer_read_pj_per_bit for chip in chips)
    assert least_pj > 0
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_prices_a_layer(name):
    layer = Layer("conv", 64, 64, in_size=(56, 56), kernel_size=3, padding=1)
    chip = dataclasses.replace(HARDWARE[name](), model="reference", mapping="channel")
    assert chip.cost(layer).cycles >= layer.macs / chip.peak_macs_per_cycle(8, 8)
