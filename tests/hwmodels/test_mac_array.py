"""The MAC arrays: what each dataflow moves, what each arithmetic takes and costs, widths, sizes."""

import dataclasses
import itertools

import numpy as np
import pytest

from hwmodels import HARDWARE, BitFusion, MacArray, UnsupportedLayer, estimate, networks
from hwmodels.arithmetic import arithmetic_um2, array_core, serial_ratios
from hwmodels.array import run_kernel
from hwmodels.cost import INT, InfeasibleLayer
from hwmodels.mac_array import banks
from hwmodels.mapper import IM2COL, ORDERS, OUTPUT_RESIDENT, PACKED_CHANNEL
from hwmodels.technology import arithmetic_pj, core, energy_factor, energy_scale, sram
from hwmodels.workload import Layer, Workload, pack
from tests import executed_array

DATAFLOWS = ("no-local-reuse", "weight-stationary", "output-stationary", "input-stationary")
CONV = Layer("conv", 32, 64, in_size=(14, 14), kernel_size=3, padding=1)


# --- Dataflows against an executed array ------------------------------------------------------------------------------


def draw(seed: int) -> tuple[Layer, MacArray]:
    """A small layer and a small array with small buffers, so that layers are cut into tiles."""
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 1, 1, 2]))
    layer = Layer(
        f"layer{seed}", int(groups * rng.integers(1, 9)), int(groups * rng.integers(1, 9)),
        in_size=(int(rng.integers(3, 8)), int(rng.integers(3, 8))),
        kernel_size=(int(rng.integers(1, 4)), int(rng.integers(1, 4))),
        stride=int(rng.integers(1, 3)), padding=int(rng.integers(0, 2)), groups=groups,
        batch=int(rng.integers(1, 3)), weight_bits=8, input_bits=8, output_bits=int(rng.choice([4, 8])),
    )  # fmt: skip
    dataflow = DATAFLOWS[seed % 4]
    chip = MacArray(
        rows=int(rng.integers(1, 5)), cols=int(rng.integers(1, 6)), dataflow=dataflow,
        windows=int(rng.choice([1, 3, 4])) if dataflow == "no-local-reuse" else 1,
        weight_buffer_bytes=int(rng.choice([64, 256, 1024])), input_buffer_bytes=int(rng.choice([128, 512, 2048])),
        output_buffer_bytes=int(rng.choice([64, 256, 1024])), dram_bits_per_cycle=int(rng.choice([8, 64])),
        objective=str(rng.choice(["latency", "energy", "edp"])),
    )  # fmt: skip
    return layer, chip


def dense_mapping(layer: Layer, chip: MacArray) -> dict[str, int] | None:
    """The kernel's counts and tile for a layer; None where it does not run, or not one group at a time."""
    ints, _ = run_kernel(chip, pack([layer]), np.zeros(1, dtype=np.int64))
    found = {name: int(ints[0, i]) for name, i in INT.items()}
    return None if found["status"] or found["mapping"] >= PACKED_CHANNEL else found


def test_every_dataflow_computes_the_convolution_with_the_priced_cycles_reads_and_partial_sums():
    """The executed array runs the mapping that the kernel chose; its counters must show what the kernel charged."""
    checked = dict.fromkeys(DATAFLOWS, 0)
    spilled = tiled = 0
    for seed in range(160):
        layer, chip = draw(seed)
        found = dense_mapping(layer, chip)
        if found is None:
            continue
        rng = np.random.default_rng(seed)
        d = layer.dims
        inputs = rng.integers(-8, 8, (d.N, layer.in_channels, *layer.in_size))
        weights = rng.integers(-8, 8, (layer.out_channels, d.C, d.R, d.S))
        tile = {axis: found[f"tile_{axis}"] for axis in "npqkc"}
        outputs, counts = executed_array.run(chip, layer, inputs, weights, tile, found["mapping"] == IM2COL)
        np.testing.assert_array_equal(outputs, executed_array.convolve(layer, inputs, weights))

        bits = layer.output_count * layer.output_bits
        spills_bits = found["dram_write"] - bits  # whole partial sums that left the chip, at 32 bits
        assert counts.finished == layer.output_count
        assert counts.sums_read == counts.sums_written
        assert found["compute_cycles"] == counts.cycles, (layer, chip)
        assert found["weight_buffer_read"] == counts.weights_read * 8, (layer, chip)
        assert found["input_buffer_read"] == counts.inputs_read * 8, (layer, chip)
        assert found["output_buffer_write"] == counts.sums_written * 32 + bits + spills_bits, (layer, chip)
        assert found["output_buffer_read"] == counts.sums_read * 32 + bits + spills_bits, (layer, chip)
        checked[chip.dataflow] += 1
        spilled += spills_bits > 0
        tiled += any(tile[axis] < getattr(d, axis.upper()) for axis in "npqkc")
    assert min(checked.values()) >= 20, checked
    assert tiled >= 40 and spilled >= 3, (tiled, spilled)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_no_mapping_of_the_same_tiles_is_cheaper_than_the_chosen_one(dataflow):
    """Exhaustive over channel tiles, for layers whose buffers hold everything, so that the array alone decides."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        layer = Layer(
            "layer", int(rng.integers(3, 8)), int(rng.integers(3, 8)), in_size=(5, 4), kernel_size=2, weight_bits=8
        )
        chip = MacArray(
            rows=3, cols=2, dataflow=dataflow, objective="latency", weight_buffer_bytes=1 << 16,
            input_buffer_bytes=1 << 16, output_buffer_bytes=1 << 16, dram_bits_per_cycle=1 << 20,
        )  # fmt: skip
        found = dense_mapping(layer, chip)
        assert found is not None
        d = layer.dims
        zeros = np.zeros((1, layer.in_channels, *layer.in_size), np.int64), np.zeros((d.K, d.C, d.R, d.S), np.int64)
        least = min(
            executed_array.run(chip, layer, *zeros, {"n": 1, "p": d.P, "q": d.Q, "k": k, "c": c}, gathers)[1].cycles
            for k, c, gathers in itertools.product(range(1, d.K + 1), range(1, d.C + 1), (False, True))
        )
        assert found["compute_cycles"] <= least


@pytest.mark.parametrize("dataflow, windows", [("no-local-reuse", 1), ("no-local-reuse", 4), ("weight-stationary", 1)])
def test_a_depthwise_layer_is_packed_block_diagonally(dataflow, windows):
    """rows // 9 channels at once, their nine taps on the rows; a pass has an output column for each channel."""
    layer = Layer("dw", 8, 8, in_size=(9, 9), kernel_size=3, stride=3, groups=8)
    chip = MacArray(
        rows=18, cols=2, windows=windows, dataflow=dataflow, objective="latency", dram_bits_per_cycle=1 << 20
    )
    cost = chip.cost(layer)
    rounds, pixels = 8 // 2, 9
    steps = max(pixels, 18) if dataflow == "weight-stationary" else -(-pixels // windows)
    assert cost.compute_cycles == rounds * steps
    reads = {"weight-stationary": 1, "no-local-reuse": steps}[dataflow]
    assert cost.traffic_bits["weight_buffer_read"] == 8 * 9 * 8 * reads
    assert cost.traffic_bits["input_buffer_read"] == 8 * 9 * pixels * 8


def test_more_windows_never_take_longer_and_one_is_no_local_reuse():
    for layer, dram in itertools.product((CONV, Layer("dw", 32, 32, (14, 14), 3, groups=32)), (64, 1 << 16)):
        cycles = [
            MacArray(windows=n, objective="latency", dram_bits_per_cycle=dram).cost(layer).compute_cycles
            for n in (1, 2, 4, 16)
        ]
        assert cycles == sorted(cycles, reverse=True)
        assert cycles[0] >= 3 * cycles[2]


# --- Arithmetic -------------------------------------------------------------------------------------------------------


#: Whatever moves, it does not take the time.
AMPLE = {
    "objective": "latency", "dram_bits_per_cycle": 1 << 20, "weight_buffer_bytes": 1 << 22,
    "input_buffer_bytes": 1 << 22, "output_buffer_bytes": 1 << 22,
}  # fmt: skip


def compute_bound(**fields) -> MacArray:
    return MacArray(**AMPLE, **fields)


def compute_bound_preset(name: str) -> MacArray:
    return dataclasses.replace(HARDWARE[name](), **AMPLE)


@pytest.mark.parametrize("weight_bits, input_bits, passes", [(2, 2, 1), (4, 4, 1), (5, 4, 2), (8, 8, 4), (8, 9, 6)])
def test_a_fixed_array_runs_narrow_operands_at_its_width_and_wide_ones_in_passes(weight_bits, input_bits, passes):
    chip = compute_bound(native_bits=4)
    cost = chip.cost(CONV.with_bits(weight_bits, input_bits))
    assert cost.compute_cycles == passes * chip.cost(CONV.with_bits(4, 4)).compute_cycles
    assert chip.peak_macs_per_cycle(weight_bits, input_bits) == chip.rows * chip.cols / passes
    assert (f"{passes} passes of 4-bit operands" in cost.mapping) == (passes > 1)


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8, 16])
def test_stripes_takes_time_by_input_bits_and_equals_16_bit_units_at_16(bits):
    stripes = compute_bound_preset("stripes")
    cost = stripes.cost(CONV.with_bits(8, bits))
    assert cost.compute_cycles * 16 == bits * stripes.cost(CONV.with_bits(8, 16)).compute_cycles
    assert cost.compute_cycles == stripes.cost(CONV.with_bits(2, bits)).compute_cycles
    assert stripes.peak_macs_per_cycle(16, bits) == 16 * 32 * 16 / bits


@pytest.mark.parametrize("weight_bits, input_bits", [(1, 1), (2, 8), (4, 4), (8, 3), (16, 16)])
def test_loom_takes_time_by_the_product_of_both_widths(weight_bits, input_bits):
    loom = compute_bound_preset("loom")
    one = loom.cost(CONV.with_bits(1, 1)).compute_cycles
    assert loom.cost(CONV.with_bits(weight_bits, input_bits)).compute_cycles == weight_bits * input_bits * one
    assert loom.peak_macs_per_cycle(16, 16) == 128  # the configuration of the paper


@pytest.mark.parametrize("weight_bits, input_bits", [(16, 16), (8, 16), (8, 4), (2, 2)])
def test_a_fully_connected_layer_runs_at_the_rate_of_the_weight_buffer(weight_bits, input_bits):
    """Stripes gains nothing from narrow inputs there; Loom's time goes by the weight bits alone."""
    layer = Layer.linear("fc", 2048, 2048, weight_bits=weight_bits, input_bits=input_bits)
    stripes, loom = compute_bound_preset("stripes"), compute_bound_preset("loom")
    dense = compute_bound(native_bits=16)
    assert stripes.cost(layer).compute_cycles == dense.cost(layer).compute_cycles == layer.macs // (16 * 32)
    assert loom.cost(layer).compute_cycles == layer.macs // 128 * weight_bits // 16
    assert "windows take output channels" in stripes.cost(layer).mapping
    assert stripes.cost(layer).utilization == pytest.approx(input_bits / 16)


def test_a_floating_point_array_refuses_wider_operands_by_name():
    with pytest.raises(UnsupportedLayer, match=r"Layer 'conv': .* native_bits=16, .* got weight_bits=32, input_bits=8"):
        HARDWARE["fp16-array"]().cost(CONV.with_bits(32, 8))
    assert HARDWARE["fp32-array"]().cost(CONV.with_bits(32, 32)).compute_cycles > 0


# --- Widths in the memories -------------------------------------------------------------------------------------------


def test_a_narrow_operand_lies_packed_where_the_packing_says():
    """4-bit operands of an 8-bit array; all weights fit, so they and the inputs are fetched once."""
    layer = CONV.with_bits(4, 4, output_bits=4)
    traffic = {name: compute_bound(packing=name).cost(layer).traffic_bits for name in ("all", "dram", "none")}
    wide = compute_bound().cost(CONV.with_bits(8, 8, output_bits=8)).traffic_bits
    for name in ("weight_buffer_read", "weight_buffer_write", "input_buffer_read", "input_buffer_write"):
        assert traffic["all"][name] * 2 == traffic["dram"][name] == traffic["none"][name] == wide[name]
    for name in ("dram_read", "dram_write"):
        assert traffic["all"][name] * 2 == traffic["dram"][name] * 2 == traffic["none"][name] == wide[name]


def test_unpacked_weights_take_their_room_in_the_buffer():
    """2-bit weights in a buffer that holds 8 bits each: a quarter as many fit, and an infeasible tile says so."""
    held = MacArray(weight_buffer_bytes=16384, input_buffer_bytes=2048)
    packed = dataclasses.replace(held, packing="all")
    assert CONV.weight_count * 2 <= 4 * 16384 < CONV.weight_count * 8 and CONV.input_count * 8 > 4 * 2048
    costs = [chip.cost(CONV.with_bits(2, 8)) for chip in (held, packed)]
    assert max(cost.buffer_bits["weight"] for cost in costs) <= 8 * 16384
    assert costs[0].buffer_bits["weight"] % 8 == 0
    assert costs[0].traffic_bits["dram_read"] > costs[1].traffic_bits["dram_read"]
    tiny = MacArray(rows=4, cols=4, weight_buffer_bytes=64)
    assert dataclasses.replace(tiny, packing="all").cost(CONV.with_bits(2, 8)).cycles > 0
    with pytest.raises(InfeasibleLayer, match=r"needs 384 bits in half of the weight buffer, which holds 256 bits"):
        tiny.cost(CONV.with_bits(2, 8))  # 4 columns x 12 lanes of 9 taps x 8 bits


def test_serial_operands_lie_at_their_own_width():
    stripes, loom = (HARDWARE[name]().cost(CONV.with_bits(3, 5)).traffic_bits for name in ("stripes", "loom"))
    assert stripes["input_buffer_read"] % 5 == loom["input_buffer_read"] % 5 == loom["weight_buffer_read"] % 3 == 0
    assert stripes["weight_buffer_read"] % 16 == 0
    assert stripes["dram_read"] < CONV.weight_count * 8 + CONV.input_count * 8


def test_an_unpacked_activation_too_large_for_the_buffer_is_not_handed_over():
    layer = Layer("a", 64, 64, in_size=(16, 16), weight_bits=2, input_bits=2, output_bits=2)  # 16384 values
    assert layer.input_count * 2 <= 4 * 8192 < layer.input_count * 8
    small = MacArray(input_buffer_bytes=8192)
    assert dataclasses.replace(small, packing="all").cost(layer, resident=("input",)).cycles > 0
    with pytest.raises(InfeasibleLayer, match="Layer 'a'"):
        small.cost(layer, resident=("input",))
    chain = Workload.sequential("net", (layer, dataclasses.replace(layer, name="b")))
    assert estimate(chain, small, resident=True).cycles == estimate(chain, small).cycles


# --- Energy and area --------------------------------------------------------------------------------------------------


def test_fixed_units_are_priced_from_the_row_of_the_synthesis_table_that_bit_fusion_takes():
    """Flexible 8/2 against fixed 8 at 4x4: 2.26 times the energy and 3.40 times the area."""
    flexible, fixed = BitFusion(), MacArray()
    assert flexible.unit_energies.core_pj_per_cycle / fixed.unit_energies.core_pj_per_cycle == pytest.approx(
        3673500 / 1627500
    )
    assert flexible.areas_mm2["core"] / fixed.areas_mm2["core"] == pytest.approx(27752.83558 / 8171.729995)
    assert array_core("fixed", 8, 1, 1).area_mm2 == core(1, 1, 8, 8).area_mm2


def test_a_systolic_unit_has_an_accumulator_of_its_own():
    one = core(1, 1, 8, 8)
    assert array_core("fixed", 8, 16, 32, systolic=True).area_mm2 == pytest.approx(512 * one.area_mm2)
    assert MacArray(dataflow="weight-stationary").unit_energies.core_pj_per_cycle == pytest.approx(
        512 * one.dynamic_pj_per_cycle
    )


@pytest.mark.parametrize("bits, pj", [(16, 1.1 + 0.9), (32, 3.7 + 0.9)])
def test_floating_point_units_cost_a_multiplication_and_a_32_bit_addition(bits, pj):
    unit = array_core("float", bits, 1, 1)
    assert unit.dynamic_pj_per_cycle == pytest.approx(pj)
    assert arithmetic_pj()[f"fp{bits}_mul"] + arithmetic_pj()["fp32_add"] == pytest.approx(pj)
    assert unit.area_mm2 * 1e6 == pytest.approx(arithmetic_um2()[f"fp{bits}_mul"] + 4184)


def test_serial_arrays_stand_in_the_published_ratio_to_their_16_bit_equivalent():
    dense = array_core("fixed", 16, 16, 32)
    stripes = array_core("activation-serial", 16, 16, 32, windows=16)
    assert stripes.area_mm2 / dense.area_mm2 == pytest.approx(1.32)  # Judd et al., MICRO 2016
    assert stripes.dynamic_pj_per_cycle / dense.dynamic_pj_per_cycle == pytest.approx(1.92 / 1.57)
    loom = array_core("fully-serial", 16, 16, 128, windows=16)
    dense = array_core("fixed", 16, 8, 16)  # 128 units
    assert loom.dynamic_pj_per_cycle / dense.dynamic_pj_per_cycle == pytest.approx(4.38 / 3.54)  # Sharify et al.
    assert serial_ratios()["fully-serial"].power == pytest.approx(4.38 / 3.54)


def test_buffers_have_a_bank_for_each_word_that_the_array_takes_in_a_cycle():
    """With 32 operand bits a unit this is the published rule of Bit Fusion: a bank a unit, a row, a column."""
    assert banks("float", 32, 16, 32, 1, "no-local-reuse") == (16 * 32, 16, 32)
    assert banks("fixed", 8, 16, 32, 1, "no-local-reuse") == (16 * 32 * 8 // 32, 16, 32)
    assert banks("fixed", 8, 16, 32, 8, "no-local-reuse") == (16 * 32 * 8 // 32, 16 * 2, 32)
    assert banks("fully-serial", 16, 16, 128, 16, "no-local-reuse") == (16 * 128 // 32, 16, 128)
    assert banks("fixed", 8, 16, 32, 1, "weight-stationary") == (32, 16, 32)
    assert banks("fixed", 8, 16, 32, 1, "input-stationary") == (16, 32, 32)
    fp32, bit_fusion = HARDWARE["fp32-array"](), BitFusion()
    assert {**fp32.areas_mm2, "core": 0} == {**bit_fusion.areas_mm2, "core": 0}
    weight_bank = sram(65536 / 128, 4)
    assert MacArray().unit_energies.weight_buffer_read_pj_per_bit == weight_bank.read_pj / 32


def test_energies_and_areas_move_to_another_node_and_voltage():
    """Stillmaker and Baas: 65 nm at 1.3 V has the relative energy 2.604."""
    assert energy_factor(65, 1.3) == pytest.approx(2.604, abs=5e-4)
    here, there = MacArray(), MacArray(node_nm=65, voltage_v=1.3)
    factor = energy_scale(45, 0.9, 65, 1.3)
    assert factor == pytest.approx(2.604 / (1.103 * 0.9**2 - 0.362 * 0.9 + 0.2767), rel=1e-3)
    for part in dataclasses.fields(here.unit_energies):
        ratio = getattr(there.unit_energies, part.name) / getattr(here.unit_energies, part.name)
        assert ratio == pytest.approx(1 if part.name == "dram_pj_per_bit" else factor)
    assert there.area_mm2 == pytest.approx(here.area_mm2 * (65 / 45) ** 2)
    assert there.cost(CONV).cycles == here.cost(CONV).cycles


def test_given_energies_are_taken_as_they_are():
    energies = dataclasses.replace(MacArray().unit_energies, core_pj_per_cycle=1.0, dram_pj_per_bit=2.0)
    cost = MacArray(energies=energies, node_nm=7, voltage_v=0.7).cost(CONV)
    assert cost.energy.compute_pj == cost.compute_cycles
    assert cost.energy.dram_pj == 2.0 * (cost.traffic_bits["dram_read"] + cost.traffic_bits["dram_write"])


# --- Bad values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rows": 0}, "rows must be an integer of at least 1, got rows=0"),
        ({"cols": 2.5}, "cols must be an integer of at least 1, got cols=2.5"),
        ({"windows": True}, "windows must be an integer of at least 1"),
        ({"clock_hz": -1.0}, "clock_hz must be a positive number"),
        ({"voltage_v": float("nan")}, "voltage_v must be a positive number"),
        ({"dataflow": "row-stationary"}, "dataflow must be one of no-local-reuse, weight-stationary"),
        ({"arithmetic": "posit"}, "arithmetic must be one of fixed, float"),
        ({"native_bits": 3}, r"native_bits must be one of 2, 4, 8, 16 for arithmetic='fixed', got native_bits=3"),
        ({"arithmetic": "float"}, r"native_bits must be one of 16, 32 for arithmetic='float', got native_bits=8"),
        ({"windows": 4, "dataflow": "weight-stationary"}, "windows must be 1 for dataflow='weight-stationary'"),
        ({"timing": "scalesim"}, "timing='scalesim' is that of a systolic array"),
        ({"node_nm": 28}, "node_nm must be one of 130, 90, 65, 45"),
        ({"packing": "some"}, "packing must be one of all, dram, none"),
    ],
)
def test_a_bad_field_is_named_with_its_rule_and_its_value(fields, message):
    with pytest.raises(ValueError, match=message):
        MacArray(**fields)


def test_a_resident_output_saves_its_dram_write():
    rows, none = pack([CONV]), np.zeros(1, dtype=np.int64)
    for name in ("int8-array", "int8-systolic", "stripes"):
        chip = HARDWARE[name]()
        at = INT["dram_write"]
        assert run_kernel(chip, rows, none)[0][0, at] >= CONV.output_count * 8
        assert run_kernel(chip, rows, none | OUTPUT_RESIDENT)[0][0, at] == 0


def test_the_mapping_text_names_an_order_and_the_rows_of_an_output_stationary_array():
    assert any(order in MacArray().cost(CONV).mapping for order in ORDERS)
    assert MacArray(dataflow="output-stationary").cost(CONV).mapping.startswith("pixels on rows")
    pool = networks.resnet18().layers[1]
    assert pool.op == "pool" and MacArray().cost(pool).mapping == "stream"
