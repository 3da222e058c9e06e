"""Tables and fitted models of energy and area."""

import csv

import numpy as np
import pytest

from hwmodels import technology
from hwmodels.technology import Sram, SramModel, core, sram, sram_table

FIGURES = ("read_pj", "write_pj", "leakage_mw", "area_mm2", "access_ns")


def figures(bank: Sram) -> np.ndarray:
    return np.array([getattr(bank, name) for name in FIGURES])


def test_each_of_the_72_known_banks_gives_its_own_row():
    geometry, rows = sram_table()
    assert len(rows) == 72
    for (bank_bytes, word_bytes, ports), row in zip(geometry, rows, strict=True):
        assert figures(sram(bank_bytes, word_bytes, int(ports))).tolist() == row.tolist()


def test_leakage_is_that_of_the_cells_and_of_the_gates():
    assert sram(128, 4).leakage_mw == 0.249588 + 0.0102849


def test_errors_of_the_sram_model_are_those_that_its_docstring_states():
    geometry, rows = sram_table()
    model = SramModel(geometry, rows)
    fitted = np.array([figures(model.fitted(*bank)) for bank in geometry])
    without = [SramModel(np.delete(geometry, i, 0), np.delete(rows, i, 0)) for i in range(len(rows))]
    left_out = np.array([figures(m(*bank)) for m, bank in zip(without, geometry, strict=True)])
    stated = {  # median and largest, in percent: power law, left out
        "read_pj": (15.7, 60.1, 6.3, 30.6), "write_pj": (8.6, 30.0, 6.9, 23.4), "leakage_mw": (2.9, 11.9, 2.7, 12.1),
        "area_mm2": (12.8, 49.2, 5.6, 32.4), "access_ns": (11.7, 39.1, 6.8, 22.1),
    }  # fmt: skip
    for j, name in enumerate(FIGURES):
        errors = [np.abs(prices[:, j] / rows[:, j] - 1) * 100 for prices in (fitted, left_out)]
        found = [statistic(error) for error in errors for statistic in (np.median, np.max)]
        assert found == pytest.approx(stated[name], abs=0.06), name


@pytest.mark.parametrize("word_bytes", [0.25, 1, 2, 4, 6, 8, 16, 32])
@pytest.mark.parametrize("ports", [0, 1])
def test_a_larger_bank_costs_more_within_the_table_and_far_outside(word_bytes, ports):
    sizes = [max(word_bytes, 1) * 2 ** (k / 5) for k in range(150)]
    read, write, leakage, area, access = np.array([figures(sram(size, word_bytes, ports)) for size in sizes]).T
    for name, series in (("read", read), ("write", write), ("leakage", leakage), ("area", area), ("access", access)):
        assert (np.diff(series) > 0).all(), name
    # A bank twice as large never costs more than two and a half times as much, nor less than a shade more.
    assert (read[5:] < 2.5 * read[:-5]).all() and (area[5:] < 2.6 * area[:-5]).all()


@pytest.mark.parametrize("bank_bytes", [600, 4096, 100_000, 2**21])
@pytest.mark.parametrize("ports", [0, 1])
def test_a_wider_word_costs_more_to_move(bank_bytes, ports):
    words = [2 ** (k / 4) for k in range(-8, 25)]
    read, write, *_ = np.array([figures(sram(bank_bytes, word, ports)) for word in words]).T
    assert (np.diff(read) > 0).all() and (np.diff(write) > 0).all()


def test_a_read_write_port_costs_energy_and_area():
    for bank_bytes in (300, 1024, 5000, 2**20):
        without, with_port = figures(sram(bank_bytes, 4, 0)), figures(sram(bank_bytes, 4, 1))
        assert (with_port[[0, 1, 3]] > without[[0, 1, 3]]).all()


@pytest.mark.parametrize("geometry", [(0, 4, 0), (-8, 4, 0), (2, 4, 0), (128, 0, 0), (128, 4, -1)])
def test_an_impossible_bank_is_refused(geometry):
    with pytest.raises(ValueError, match=f"bank_bytes={geometry[0]}, word_bytes={geometry[1]}"):
        sram(*geometry)


def test_a_synthesized_core_gives_its_own_row_and_others_scale_the_4x4_row():
    # Bit Fusion synthesis table, 8/2 multipliers at 500 MHz: nW, nW, um2.
    assert core(2, 8, 8, 2).dynamic_pj_per_cycle == 3757400 / 500e6 * 1e3
    assert core(2, 8, 8, 2).area_mm2 == pytest.approx(28575.91796e-6, rel=1e-15)
    assert core(2, 8, 8, 2).leakage_mw == pytest.approx(0.940420, rel=1e-15)
    assert core(16, 32, 8, 2).dynamic_pj_per_cycle == pytest.approx(3673500 / 500e6 * 1e3 * 32, rel=1e-15)
    assert core(3, 5, 8, 2).area_mm2 == pytest.approx(27752.83558e-6 * 15 / 16, rel=1e-15)


def test_a_flexible_4x4_array_costs_what_the_synthesis_says_over_a_fixed_one():
    flexible, fixed = core(4, 4, 8, 2), core(4, 4, 8, 8)
    assert flexible.dynamic_pj_per_cycle / fixed.dynamic_pj_per_cycle == pytest.approx(2.26, abs=0.005)
    assert flexible.area_mm2 / fixed.area_mm2 == pytest.approx(3.40, abs=0.005)


def test_unknown_multipliers_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"2/2, 4/2, 4/4, 8/2, 8/8, 16/2, 16/16; got 8/4"):
        core(4, 4, 8, 4)
    with pytest.raises(ValueError, match="rows=0"):
        core(0, 4, 8, 2)


def test_energy_at_65_nm_and_1_3_v_is_the_published_check():
    assert technology.energy_factor(65, 1.3) == pytest.approx(2.604, abs=5e-4)  # Stillmaker and Baas, 2017
    assert technology.energy_scale(65, 1.3, 45, 0.9) == pytest.approx(
        (1.103 * 0.9**2 - 0.362 * 0.9 + 0.2767) / (3.755 * 1.3**2 - 4.398 * 1.3 + 1.975), rel=1e-12
    )


def test_energy_falls_with_voltage_and_with_the_node():
    nodes = (130, 90, 65, 45, 32, 20, 16, 14, 10, 7)
    at_0_9_v = [technology.energy_factor(node, 0.9) for node in nodes]
    assert at_0_9_v == sorted(at_0_9_v, reverse=True)
    assert technology.energy_factor(45, 0.8) < technology.energy_factor(45, 0.9)


def test_unknown_nodes_and_voltages_are_refused():
    with pytest.raises(ValueError, match="130, 90, 65, 45, 32, 20, 16, 14, 10, 7, got node_nm=28"):
        technology.energy_factor(28, 0.9)
    with pytest.raises(ValueError, match="voltage_v=-1"):
        technology.energy_factor(45, -1)


def test_the_budget_of_the_eyeriss_comparison_follows_from_area_scaling():
    # 12.25 mm2 at 65 nm, 5.87130177515 mm2 at 45 nm: public Bit Fusion simulator.
    assert 12.25 * technology.area_scale(65, 45) == pytest.approx(5.87130177515, rel=1e-11)


def test_integer_energies_match_the_measured_operations_they_were_fitted_to():
    measured = technology.arithmetic_pj()
    assert technology.integer_pj("mul", 8) == pytest.approx(measured["int8_mul"], rel=0.01)
    assert technology.integer_pj("mul", 32) == pytest.approx(measured["int32_mul"], rel=0.01)
    assert technology.integer_pj("add", 32) == pytest.approx(measured["int32_add"], rel=0.01)


def test_dram_figures_are_ranges_that_contain_the_default_price():
    figures_by_name = technology.dram_figures()
    assert all(0 < f.low_pj_per_bit <= f.high_pj_per_bit and f.source for f in figures_by_name.values())
    assert figures_by_name["bitfusion"].low_pj_per_bit == technology.DRAM_PJ_PER_BIT


def test_every_table_says_where_it_comes_from_and_in_which_units():
    tables = list(technology.DATA.glob("*.csv"))
    assert {"sram", "core", "dram", "scaling"} <= {path.stem for path in tables}
    for path in tables:
        lines = path.read_text().splitlines()
        comment = " ".join(line for line in lines if line.startswith("#"))
        assert "Source" in comment or "source" in lines[comment.count("#")], path.name


def test_the_tables_agree_with_the_reference_data(reference_dir):
    with open(reference_dir / "golden" / "cacti.csv") as file:
        for row in csv.DictReader(file):
            bank = sram(int(row["size_bytes"]), int(row["block_bytes"]), int(row["read_write_ports"]))
            assert bank.read_pj == pytest.approx(float(row["read_energy_nJ"]) * 1e3, rel=1e-12)
            assert bank.write_pj == pytest.approx(float(row["write_energy_nJ"]) * 1e3, rel=1e-12)
            assert bank.area_mm2 == pytest.approx(float(row["area_mm2"]), rel=1e-12)
    with open(reference_dir / "golden" / "systolic_synth.csv") as file:
        for row in csv.DictReader(file):
            array = core(int(row["N"]), int(row["M"]), int(row["pmax"]), int(row["pmin"]))
            power_nw = float(row["dynamic_power_nW"])
            assert array.dynamic_pj_per_cycle == pytest.approx(power_nw / float(row["frequency_hz"]) * 1e3, rel=1e-12)
            assert array.area_mm2 == pytest.approx(float(row["area_um2"]) * 1e-6, rel=1e-12)
