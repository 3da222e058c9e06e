"""Arrays sized to an area."""

import dataclasses
import math

import pytest

from hwmodels import HARDWARE, BitFusion, MacArray
from hwmodels.sizing import shapes

SIZED = [name for name, make in HARDWARE.items() if hasattr(make(), "with_area")]
BUFFERS = ("weight_buffer_bytes", "input_buffer_bytes", "output_buffer_bytes")


def test_every_array_preset_can_be_sized():
    assert set(SIZED) == set(HARDWARE)


@pytest.mark.parametrize("scale", ["array", "chip"])
@pytest.mark.parametrize("name", SIZED)
def test_a_budget_is_kept_and_used_to_within_a_row_and_a_column(name, scale):
    chip = HARDWARE[name]()
    for budget in (0.7, 1.0, 1.7, 4.2):
        area_mm2 = budget * chip.area_mm2
        try:
            sized = chip.with_area(area_mm2, scale)
        except ValueError:
            assert scale == "array" and budget < 1
            continue
        units = chip.rows * chip.cols

        def at(rows: int, cols: int, chip=chip, units=units):
            fields = {"rows": rows, "cols": cols}
            if scale == "chip":
                fields |= {buffer: max(1, getattr(chip, buffer) * rows * cols // units) for buffer in BUFFERS}
            return dataclasses.replace(chip, **fields)

        assert sized == at(sized.rows, sized.cols)
        assert sized.area_mm2 <= area_mm2
        assert at(sized.rows + 1, sized.cols).area_mm2 > area_mm2
        assert at(sized.rows, sized.cols + 1).area_mm2 > area_mm2


@pytest.mark.parametrize("name", SIZED)
def test_its_own_area_gives_the_chip_itself(name):
    chip = HARDWARE[name]()
    assert chip.with_area(chip.area_mm2) == chip
    assert chip.with_area(chip.area_mm2, "chip") == chip


def test_scaling_the_array_keeps_buffers_and_dram_and_about_the_shape():
    chip = MacArray()
    larger = chip.with_area(3.0)
    assert all(getattr(larger, name) == getattr(chip, name) for name in (*BUFFERS, "dram_bits_per_cycle", "clock_hz"))
    assert larger.cols / larger.rows == pytest.approx(2, rel=0.1)
    assert larger.areas_mm2["core"] / chip.areas_mm2["core"] == pytest.approx(larger.rows * larger.cols / 512)


def test_scaling_the_chip_scales_buffers_with_the_units():
    chip, larger = BitFusion(), BitFusion().with_area(8.0, "chip")
    grown = larger.rows * larger.cols / (chip.rows * chip.cols)
    for name in BUFFERS:
        assert getattr(larger, name) == math.floor(getattr(chip, name) * grown)
    assert larger.dram_bits_per_cycle == chip.dram_bits_per_cycle


def test_dense_units_are_more_than_fusion_units_on_the_same_area():
    """8-bit units take 1 / 3.40 of the area of Fusion Units, and their weight buffer needs fewer banks."""
    budget = BitFusion().area_mm2
    dense = MacArray().with_area(budget)
    assert dense.rows * dense.cols > 3.2 * 512
    assert MacArray(native_bits=4).with_area(budget).rows > dense.rows


@pytest.mark.parametrize("area_mm2", [0, -1.0, math.inf, math.nan, "2"])
def test_an_area_that_is_no_positive_number_is_refused(area_mm2):
    with pytest.raises(ValueError, match="MacArray: the area must be a positive number of mm2"):
        MacArray().with_area(area_mm2)


def test_an_area_that_the_buffers_alone_exceed_is_refused_with_what_they_take():
    with pytest.raises(
        ValueError, match=r"BitFusion: the area must hold .* takes 0\.\d+ mm2, got 0\.3 mm2\..* scale='chip'"
    ):
        BitFusion().with_area(0.3)
    assert BitFusion().with_area(0.3, "chip").area_mm2 <= 0.3


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="BitFusion: scale must be one of array, chip, got scale='both'"):
        BitFusion().with_area(2.0, "both")


@pytest.mark.parametrize("scale", ["array", "chip"])
def test_shapes_are_the_largest_arrays_of_their_rows_and_the_first_keeps_the_ratio(scale):
    chip, area_mm2 = MacArray(), 2.5
    first, *others = shapes(chip, area_mm2, scale, rows=(8, 64, 100_000))
    assert first == chip.with_area(area_mm2, scale)
    assert [sized.rows for sized in others] == [8, 64]
    for sized in others:
        factor = (sized.cols + 1) / sized.cols
        wider = {"cols": sized.cols + 1}
        if scale == "chip":
            wider |= {name: int(getattr(sized, name) * factor) for name in BUFFERS}
        assert sized.area_mm2 <= area_mm2 < dataclasses.replace(sized, **wider).area_mm2
