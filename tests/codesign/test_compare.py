import dataclasses
import math

import pytest

from codesign.compare import MEMORY, at_equal_area, compare, plot_compare
from hwmodels import BitFusion, estimate, networks
from hwmodels.sizing import shapes

NET = networks.resnet20()
CHIPS = {"bitfusion": BitFusion(), "small": BitFusion(rows=4, cols=8, input_buffer_bytes=65536)}


def test_entries_are_the_reports_of_each_pair_chip_by_chip():
    workloads = {"w8a8": NET.with_bits(8, 8), "w2a2": NET.with_bits(2, 2)}
    entries = compare(workloads, CHIPS)
    assert [(e.hardware, e.bits) for e in entries] == [(chip, bits) for chip in CHIPS for bits in workloads]
    for entry in entries:
        assert entry.metrics() == estimate(workloads[entry.bits], CHIPS[entry.hardware]).metrics()


def test_ratios_are_quotients_of_metrics():
    first, second = compare({"w8a8": NET}, CHIPS)
    ratios = second.ratios(first)
    assert set(ratios) == {"latency_s", "energy_j", "edp_js", "area_mm2"}
    assert all(ratio == second.metrics()[name] / first.metrics()[name] for name, ratio in ratios.items())


def test_what_a_chip_cannot_run_is_an_entry_that_says_why():
    runs, fails = compare({"w8a8": NET, "w16a16": NET.with_bits(16, 16)}, {"bitfusion": BitFusion()})
    assert runs.report is not None
    assert fails.report is None
    assert "max_bits=8" in fails.problem
    assert fails.ratios(runs) == {}


def test_at_equal_area_arrays_differ_and_memory_does_not():
    sized = at_equal_area(CHIPS)
    budget_mm2 = CHIPS["bitfusion"].area_mm2
    assert sized["bitfusion"] is CHIPS["bitfusion"]
    assert all(getattr(sized["small"], field) == getattr(CHIPS["bitfusion"], field) for field in MEMORY)
    assert 0.95 * budget_mm2 < sized["small"].area_mm2 <= budget_mm2
    assert dataclasses.replace(sized["small"], cols=sized["small"].cols + 1).area_mm2 > budget_mm2


def test_at_equal_area_each_chip_takes_the_shape_of_least_edp():
    workloads = (NET.with_bits(8, 8), NET.with_bits(2, 2))

    def edp(chip):
        return math.prod(estimate(workload, chip).edp_js for workload in workloads)

    chips = {"bitfusion": BitFusion(), "square": BitFusion(rows=8, cols=8)}
    kept, best = (at_equal_area(chips, workloads=some)["square"] for some in ((), workloads))
    candidates = shapes(chips["square"], chips["bitfusion"].area_mm2)
    assert kept == candidates[0]
    assert edp(best) == pytest.approx(min(edp(chip) for chip in candidates))
    assert edp(best) < edp(kept)


def test_a_workload_that_a_chip_cannot_run_has_no_say_in_its_shape():
    runs, fails = NET.with_bits(8, 8), NET.with_bits(16, 16)
    assert at_equal_area(CHIPS, workloads=(runs, fails)) == at_equal_area(CHIPS, workloads=(runs,))
    assert at_equal_area(CHIPS, workloads=(fails,)) == at_equal_area(CHIPS)


def test_an_area_that_is_given_sizes_the_first_chip_too():
    sized = at_equal_area(CHIPS, area_mm2=2.5)
    assert all(2.3 < chip.area_mm2 <= 2.5 for chip in sized.values())
    assert sized["bitfusion"].rows * sized["bitfusion"].cols > CHIPS["bitfusion"].rows * CHIPS["bitfusion"].cols


def test_the_second_mode_scales_buffers_with_the_array():
    sized = at_equal_area({"bitfusion": BitFusion()}, "chip", area_mm2=2 * BitFusion().area_mm2)["bitfusion"]
    growth = sized.rows * sized.cols / (BitFusion().rows * BitFusion().cols)
    assert growth > 1.5
    for name in MEMORY[:3]:
        assert getattr(sized, name) == pytest.approx(getattr(BitFusion(), name) * growth, rel=1e-3)
    assert sized.dram_bits_per_cycle == BitFusion().dram_bits_per_cycle


def test_a_chip_without_an_area_has_no_equal_area():
    class Priced:
        rows = cols = 1

    with pytest.raises(ValueError, match=r"'table'.*area_mm2"):
        at_equal_area({"bitfusion": BitFusion(), "table": Priced()})


def test_the_plot_has_a_line_a_chip_through_its_points():
    entries = compare({"w8a8": NET, "w2a2": NET.with_bits(2, 2)}, CHIPS)
    lines = plot_compare(entries).get_lines()
    assert [line.get_label() for line in lines] == list(CHIPS)
    assert list(lines[1].get_ydata()) == [entry.metrics()["energy_j"] for entry in entries[2:]]
