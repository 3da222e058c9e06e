"""Bit Fusion, executed: real products of two-bit bricks, real buffers, and counts that equal both closed forms."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from hwmodels import BitFusion, BitFusionEnergies, InfeasibleLayer, Layer, Workload
from hwmodels.cost import TRAFFIC
from tests import bricks, naive, naive_simulator
from tests.draws import chips, layers
from tests.executed import REFERENCE, Machine, Run
from tests.plans import default_plan, reference_plan
from tests.timeline import lockstep_cycles, prefetch_cycles, tile_events

few = settings(
    max_examples=150, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip
MOST_STEPS = 700
ENERGIES = BitFusionEnergies(
    core_pj_per_cycle=100.0, weight_buffer_read_pj_per_bit=0.02, weight_buffer_write_pj_per_bit=0.03,
    input_buffer_read_pj_per_bit=0.06, input_buffer_write_pj_per_bit=0.11, output_buffer_read_pj_per_bit=0.033,
    output_buffer_write_pj_per_bit=0.073, leakage_pj_per_cycle=2.0,
)  # fmt: skip
SIGNS = tuple(itertools.product((False, True), (False, True)))


# --- The arithmetic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", SIGNS, ids=str)
@pytest.mark.parametrize(("input_bits", "weight_bits"), list(itertools.product((1, 2, 3, 4), (1, 2, 3, 4))))
def test_bricks_multiply_every_pair_of_numbers(input_bits: int, weight_bits: int, signed: tuple[bool, bool]) -> None:
    x, w = (
        np.arange(1 << bits) - (1 << (bits - 1) if has_sign else 0)
        for bits, has_sign in zip((input_bits, weight_bits), signed, strict=True)
    )
    for setting in ((4, 4), (8, 4), (8, 8)):
        x_digits = bricks.digits(x[:, None], setting[0], signed[0])
        w_digits = bricks.digits(w[None], setting[1], signed[1])
        for row in range(len(x)):
            products = bricks.fused_sums(x_digits[:, row], w_digits)
            assert (products == x[row] * w).all()


@pytest.mark.parametrize("signed", SIGNS, ids=str)
@pytest.mark.parametrize("bits", (2, 4, 8, 16))
def test_a_column_adds_the_products_of_its_lanes(bits: int, signed: tuple[bool, bool]) -> None:
    layer = Layer("dot", 40, 3, weight_bits=bits, input_bits=bits)
    x, w = bricks.operands(layer, signed, np.random.default_rng(bits))
    x, w = x.reshape(40), w.reshape(3, 40).T
    sums = bricks.fused_sums(bricks.digits(x, bits, signed[0]), bricks.digits(w, bits, signed[1]))
    assert (sums == x @ w).all()


@pytest.mark.parametrize("max_bits", (2, 4, 8, 16))
def test_every_setting_uses_all_bricks_of_a_fusion_unit(max_bits: int) -> None:
    chip = BitFusion(max_bits=max_bits, energies=ENERGIES)
    widths = [2**i for i in range(1, 5) if 2**i <= max_bits]
    for weight_bits, input_bits in itertools.product(widths, widths):
        products = chip.macs_per_unit(weight_bits, input_bits)
        assert bricks.settings(max_bits, products, input_bits, weight_bits) == (input_bits, weight_bits)
        assert products * (weight_bits // 2) * (input_bits // 2) == (max_bits // 2) ** 2


# --- The default model ------------------------------------------------------------------------------------------------


def execute(
    layer: Layer, chip: BitFusion, mapping: naive.Mapping, signed: tuple[bool, bool]
) -> tuple[Run, naive.Counts]:
    """Run a mapping on data; its outputs are the convolution and its counts the closed form."""
    expected = naive.counts(layer, chip, mapping)
    assert expected is not None
    inputs, weights = bricks.operands(layer, signed, np.random.default_rng(layer.macs))
    run = Machine(layer, default_plan(layer, chip, mapping), signed=signed).run(inputs, weights)
    sums = bricks.convolution(layer, inputs, weights)
    assert (run.sums == bricks.wrapped(sums, 32)).all()
    assert (run.outputs == bricks.wrapped(sums, layer.output_bits)).all()
    assert run.steps == expected.compute_cycles
    assert {port: run.traffic_bits[port] for port in TRAFFIC} == expected.traffic_bits
    assert run.tiles[0].load_bits == expected.first_bits
    assert run.tiles[-1].drain_bits == expected.last_bits
    blocks, keeps = naive.Blocks(layer, chip, mapping), naive.residency(layer, chip, mapping)
    for operand, span in keeps.items():
        takes_up = blocks.bits(operand, span)
        assert run.peak_bits[operand] <= takes_up if mapping.packed else run.peak_bits[operand] == takes_up
    return run, expected


def execute_choice(layer: Layer, chip: BitFusion, signed: tuple[bool, bool]) -> naive.Mapping:
    """Run the mapping that the model chose; its row is what was counted."""
    costs = chip.costs(Workload(layer.name, (layer,)))
    mapping = naive.chosen(costs.ints[0])
    run, expected = execute(layer, chip, mapping, signed)
    cost = costs[0]
    assert cost.compute_cycles == run.steps
    assert dict(cost.traffic_bits) == {port: run.traffic_bits[port] for port in TRAFFIC}
    assert cost.cycles == expected.cycles(chip.dram_bits_per_cycle)
    assert cost.energy_pj == pytest.approx(expected.energy_pj(chip), rel=1e-12)
    return mapping


def corners() -> list[tuple[Layer, BitFusion]]:
    """The layers and chips of corners.csv."""
    lines = (Path(__file__).parents[1] / "corners.csv").read_text().splitlines()
    made = []
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        at = {name: value if name == "objective" else int(value) for name, value in row.items()}
        layer = Layer(
            "corner", at["in_channels"], at["out_channels"], (at["height"], at["width"]),
            (at["kernel_h"], at["kernel_w"]), (at["stride_h"], at["stride_w"]),
            ((at["pad_top"], at["pad_bottom"]), (at["pad_left"], at["pad_right"])),
            (at["dilation_h"], at["dilation_w"]), at["groups"], at["batch"],
            weight_bits=at["weight_bits"], input_bits=at["input_bits"], output_bits=at["output_bits"],
        )  # fmt: skip
        energies = dataclasses.replace(ENERGIES, dram_pj_per_bit=float(at["dram_pj_per_bit"]))
        fields = {f.name: at[f.name] for f in dataclasses.fields(BitFusion) if f.name in at}
        made.append((layer, BitFusion(**fields, energies=energies)))
    return made


CORNERS = corners()


@pytest.mark.parametrize("number", range(len(CORNERS)))
def test_the_chosen_mapping_does_what_its_cost_says(number: int) -> None:
    execute_choice(*CORNERS[number], signed=SIGNS[number % 4])


def test_the_corner_cases_cover_the_map_space() -> None:
    seen: set[object] = set()
    for layer, chip in CORNERS:
        mapping = naive.chosen(chip.costs(Workload("corner", (layer,))).ints[0])
        expected, keeps = naive.counts(layer, chip, mapping), naive.residency(layer, chip, mapping)
        spilled = expected.traffic_bits["dram_write"] > layer.output_count * layer.output_bits
        if mapping.packed:
            seen |= {
                mapping.kind,
                "par_g" * (mapping.par_g > 1),
                "par_h" * (mapping.par_h > 1),
                "par_w" * (mapping.par_w > 1),
            }
            if mapping.lane_factor < naive.lane_factor(chip, layer.weight_bits, layer.input_bits):
                seen.add("wider setting")
        else:
            seen |= {(mapping.kind, mapping.order), "spills" * spilled, "one by one" * mapping.batch_outermost}
            seen |= {(operand, "keeps a block" if span else "keeps a tile") for operand, span in keeps.items()}
    assert seen >= set(itertools.product(("channel", "im2col"), naive.ORDERS))
    assert seen >= set(itertools.product(("weight", "input", "output"), ("keeps a block", "keeps a tile")))
    assert seen >= {
        "packed channel",
        "packed im2col",
        "par_g",
        "par_h",
        "par_w",
        "wider setting",
        "spills",
        "one by one",
    }


@few
@given(
    layers(channels=7, size=7, batch=3),
    chips(rows=5, cols=8, buffer_bytes=(16, 512)),
    st.sampled_from(SIGNS),
)
def test_any_chosen_mapping_does_what_its_cost_says(layer: Layer, chip: BitFusion, signed: tuple[bool, bool]) -> None:
    try:
        assume(3 < chip.cost(layer).compute_cycles <= MOST_STEPS)
    except InfeasibleLayer:
        assume(False)
    execute_choice(layer, chip, signed)


@few
@given(
    layers(channels=6, size=5, batch=3),
    chips(rows=4, cols=6, buffer_bytes=(16, 256)),
    st.sampled_from(SIGNS),
    st.data(),
)
def test_any_legal_mapping_computes_the_layer_and_counts_as_declared(
    layer: Layer, chip: BitFusion, signed: tuple[bool, bool], data: st.DataObject
) -> None:
    space = list(naive.mappings(layer, chip))
    mapping = space[data.draw(st.integers(0, len(space) - 1))]
    expected = naive.counts(layer, chip, mapping)
    assume(expected is not None and 3 < expected.compute_cycles <= MOST_STEPS)
    run, _ = execute(layer, chip, mapping, signed)

    # The timelines run on the same tiles, and no timeline is faster than its parts.
    tiles, bandwidth = tile_events(layer, chip, mapping), chip.dram_bits_per_cycle
    assert tiles == run.tiles
    moved = expected.traffic_bits["dram_read"] + expected.traffic_bits["dram_write"]
    assert lockstep_cycles(tiles, bandwidth) >= expected.cycles(bandwidth)
    floor = -(-expected.first_bits // bandwidth) - 1 + max(expected.compute_cycles, 0)
    assert prefetch_cycles(tiles, bandwidth) >= max(floor, moved // bandwidth)


WIDE = BitFusion(
    rows=2, cols=4, max_bits=16, weight_buffer_bytes=512, input_buffer_bytes=512, output_buffer_bytes=256,
    dram_bits_per_cycle=16, energies=ENERGIES,
)  # fmt: skip
NARROW = BitFusion(
    rows=2, cols=4, weight_buffer_bytes=128, input_buffer_bytes=128, output_buffer_bytes=128, dram_bits_per_cycle=16,
    energies=ENERGIES,
)  # fmt: skip
SHAPES = {
    "dense": Layer("dense", 5, 6, (5, 4), 3, padding=1, output_bits=32),
    "depthwise": Layer("depthwise", 5, 5, (6, 5), 3, stride=2, padding=((0, 1), (0, 1)), groups=5, output_bits=32),
    "grouped": Layer(
        "grouped", 6, 4, (4, 5), (1, 3), dilation=(1, 2), padding=(0, 2), groups=2, batch=2, output_bits=32
    ),
    "linear": Layer.linear("linear", 19, 7, batch=3, output_bits=32),
    "matmul": Layer.matmul("matmul", 4, 5, 3, count=3, output_bits=32),
}


@pytest.mark.parametrize("signed", SIGNS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("weight_bits", "input_bits"), [(2, 2), (4, 4), (8, 8), (16, 16), (2, 8), (16, 4)])
def test_outputs_are_the_convolution_at_every_width(
    shape: str, weight_bits: int, input_bits: int, signed: tuple[bool, bool]
) -> None:
    chip = WIDE if max(weight_bits, input_bits) > 8 else NARROW
    execute_choice(SHAPES[shape].with_bits(weight_bits, input_bits), chip, signed)


# --- The reference model ----------------------------------------------------------------------------------------------


def square_layers() -> st.SearchStrategy[Layer]:
    small = st.integers(1, 7)

    def build(
        c: int, k: int, size: int, kernel: int, stride: int, padding: int, batch: int, bits: tuple[int, int]
    ) -> Layer:
        size = max(size, kernel)
        return Layer(
            "square", c, k, (size, size), kernel, stride, padding, batch=batch, weight_bits=bits[0], input_bits=bits[1]
        )

    third = st.integers(1, 3)
    return st.builds(
        build,
        small,
        small,
        small,
        third,
        third,
        st.integers(0, 1),
        third,
        st.tuples(st.integers(1, 8), st.integers(1, 8)),
    )


@settings(few, max_examples=50)
@given(
    square_layers(), chips(rows=5, cols=5, buffer_bytes=(32, 1024), min_bits=2, mapping="auto", objective="latency"),
    st.booleans(), st.sampled_from(SIGNS), st.data(),
)  # fmt: skip
def test_the_reference_charges_what_the_machine_counts_under_its_rules(
    layer: Layer, drawn: BitFusion, im2col: bool, signed: tuple[bool, bool], data: st.DataObject
) -> None:
    assume(drawn.rows >= 2)  # a single lane may run input-stationary, which is not executed
    fields = {name: getattr(drawn, name) for name in drawn.__dataclass_fields__}
    chip = BitFusion(**fields | {"model": "reference", "mapping": "im2col" if im2col else "channel"})
    best = naive_simulator.least(layer, chip, im2col)
    if best is None:
        with pytest.raises(InfeasibleLayer):
            chip.cost(layer)
        return
    cycles, energy_pj, choice = best
    cost, expected = chip.cost(layer), naive_simulator.counts(layer, chip, choice)
    assert (cost.cycles, cost.compute_cycles) == (cycles, expected.compute_cycles)
    assert dict(cost.traffic_bits) == expected.traffic_bits
    assert cost.energy_pj == pytest.approx(energy_pj, rel=1e-12)

    fitting = [t for t in naive_simulator.tilings(layer, chip, im2col) if naive_simulator.counts(layer, chip, t)]
    for tiling in (choice, fitting[data.draw(st.integers(0, len(fitting) - 1))]):
        expected = naive_simulator.counts(layer, chip, tiling)
        if expected.compute_cycles > MOST_STEPS:
            continue
        inputs, weights = bricks.operands(layer, signed, np.random.default_rng(layer.macs))
        run = Machine(layer, reference_plan(layer, chip, tiling), REFERENCE, signed).run(inputs, weights)
        assert (run.outputs == bricks.wrapped(bricks.convolution(layer, inputs, weights), 32)).all()
        assert run.steps == expected.compute_cycles
        assert {port: run.traffic_bits[port] for port in TRAFFIC} == expected.traffic_bits
        assert (run.first_block_bits, run.last_block_bits) == (expected.first_bits, expected.last_bits)
        if tiling == choice:
            first, last = run.first_block_bits, run.last_block_bits
            assert cost.cycles == naive_simulator.cycles(chip, run.steps, run.traffic_bits, first, last)


def test_the_reference_prices_groups_as_layers_one_after_another() -> None:
    chip = BitFusion(
        rows=3, cols=4, weight_buffer_bytes=256, input_buffer_bytes=64, output_buffer_bytes=128, dram_bits_per_cycle=8,
        model="reference", mapping="channel", energies=ENERGIES,
    )  # fmt: skip
    grouped = Layer("grouped", 6, 9, (4, 4), 3, padding=1, groups=3, weight_bits=4, input_bits=2)
    single = Layer("single", 2, 3, (4, 4), 3, padding=1, weight_bits=4, input_bits=2)
    cycles, _, tiling = naive_simulator.least(single, chip, False)
    inputs, weights = bricks.operands(single, (True, True), np.random.default_rng(0))
    run = Machine(single, reference_plan(single, chip, tiling), REFERENCE).run(inputs, weights)
    cost = chip.cost(grouped)
    assert cost.cycles == 3 * cycles
    assert cost.compute_cycles == 3 * run.steps
    assert dict(cost.traffic_bits) == {port: 3 * run.traffic_bits[port] for port in TRAFFIC}
