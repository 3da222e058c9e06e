"""What must hold of the default Bit Fusion model for every layer and chip."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hwmodels import BitFusion, BitFusionEnergies, Layer, Workload
from hwmodels.bitfusion import bf_e
from hwmodels.cost import BUFFERS, TRAFFIC, InfeasibleLayer
from tests import naive
from tests.draws import OBJECTIVES, chips, layers, objective_of, priced

CLOSE = 1 + 1e-12
often = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def touched_elements(layer: Layer) -> int:
    """Distinct input elements that any output reads."""
    d = layer.dims
    return d.N * d.G * d.C * naive.touched(layer, 0, 0, d.P) * naive.touched(layer, 1, 0, d.Q)


@often
@given(layers(), chips())
def test_traffic_is_at_least_compulsory_and_speed_at_most_peak(layer: Layer, chip: BitFusion) -> None:
    cost = priced(chip, layer)
    stored_bits = layer.stored_input_bits or layer.input_bits
    bits = cost.traffic_bits
    inputs, weights = touched_elements(layer), layer.weight_count
    assert bits["dram_read"] >= inputs * stored_bits + weights * layer.weight_bits
    assert bits["dram_write"] >= layer.output_count * layer.output_bits
    assert bits["input_buffer_write"] >= inputs * layer.input_bits
    assert bits["weight_buffer_write"] >= weights * layer.weight_bits
    assert bits["output_buffer_write"] >= layer.output_count * layer.output_bits
    assert bits["weight_buffer_read"] == layer.macs * layer.weight_bits
    assert bits["input_buffer_read"] * chip.cols >= layer.macs * layer.input_bits
    assert cost.compute_cycles * chip.peak_macs_per_cycle(layer.weight_bits, layer.input_bits) >= layer.macs
    assert cost.cycles * chip.dram_bits_per_cycle >= bits["dram_read"] + bits["dram_write"]
    assert 0 < cost.utilization <= CLOSE


@often
@given(layers(), chips())
def test_parts_sum_to_totals(layer: Layer, chip: BitFusion) -> None:
    cost, price = priced(chip, layer), chip.unit_energies
    bits = cost.traffic_bits
    assert cost.cycles == cost.compute_cycles + cost.stall_cycles and cost.stall_cycles >= 0
    assert cost.latency_s == cost.cycles / chip.clock_hz
    parts = {
        "compute_pj": cost.compute_cycles * price.core_pj_per_cycle,
        "sram_pj": sum(bits[port] * getattr(price, f"{port}_pj_per_bit") for port in TRAFFIC[:6]),
        "dram_pj": (bits["dram_read"] + bits["dram_write"]) * price.dram_pj_per_bit,
        "leakage_pj": cost.cycles * price.leakage_pj_per_cycle,
    }
    for name, expected in parts.items():
        assert getattr(cost.energy, name) == pytest.approx(expected, rel=1e-12)
    assert cost.energy_pj == pytest.approx(sum(parts.values()), rel=1e-12)
    for name in BUFFERS:
        assert 0 <= cost.buffer_bits[name] <= 8 * getattr(chip, f"{name}_buffer_bytes")


@often
@given(layers(), chips(), st.data())
def test_more_bandwidth_fewer_bits_or_more_buffer_never_hurt(
    layer: Layer, chip: BitFusion, data: st.DataObject
) -> None:
    before = priced(chip, layer)
    kind = data.draw(st.sampled_from(("bandwidth", "bits", "bits", "buffers", "all")))
    larger, narrower = chip, layer
    if kind in ("bandwidth", "all"):
        larger = dataclasses.replace(
            larger, dram_bits_per_cycle=chip.dram_bits_per_cycle + data.draw(st.integers(1, 300))
        )
    if kind in ("buffers", "all"):
        sizes = {f"{name}_buffer_bytes": getattr(chip, f"{name}_buffer_bytes") for name in BUFFERS}
        larger = dataclasses.replace(larger, **{k: v + data.draw(st.integers(0, 2 * v)) for k, v in sizes.items()})
    if kind in ("bits", "all"):
        weight_bits, input_bits, output_bits = (
            data.draw(st.integers(1, bits)) for bits in (layer.weight_bits, layer.input_bits, layer.output_bits)
        )
        stored = layer.stored_input_bits or layer.input_bits
        narrower = dataclasses.replace(
            layer, weight_bits=weight_bits, input_bits=input_bits, output_bits=output_bits,
            stored_input_bits=data.draw(st.integers(input_bits, stored)),
        )  # fmt: skip
    after = larger.cost(narrower)  # feasible where the other was
    assert objective_of(larger, after) <= objective_of(chip, before) * CLOSE


@often
@given(layers(), chips())
def test_groups_cost_no_more_than_that_many_separate_layers(layer: Layer, chip: BitFusion) -> None:
    single = dataclasses.replace(
        layer, in_channels=layer.dims.C, out_channels=layer.dims.K, groups=1,
        **({"second_count": None} if hasattr(layer, "second_count") else {}),
    )  # fmt: skip
    whole, part = priced(chip, layer), priced(chip, single)
    times = layer.groups ** (2 if chip.objective == "edp" else 1)
    assert objective_of(chip, whole) <= times * objective_of(chip, part) * CLOSE


@often
@given(chips(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 8), st.integers(1, 8))
def test_one_group_is_the_dense_layer(chip: BitFusion, c: int, k: int, m: int, wb: int, ib: int) -> None:
    """A matmul of one pair, a 1x1 convolution over a column of pixels, and a linear layer are one product."""
    bits = {"weight_bits": wb, "input_bits": ib}
    as_matmul = priced(chip, Layer.matmul("matmul", m, c, k, count=1, **bits))
    as_conv = priced(chip, Layer("conv", c, k, in_size=(m, 1), groups=1, **bits))
    as_linear = priced(chip, Layer.linear("linear", c, k, batch=m, **bits))
    assert as_matmul.traffic_bits == as_conv.traffic_bits and as_matmul.energy == as_conv.energy
    assert as_matmul.cycles == as_conv.cycles
    if 2 * k > chip.cols:  # else pixels may lie side by side on idle columns, images not
        assert objective_of(chip, as_linear) <= objective_of(chip, as_conv) * CLOSE


@often
@given(layers(), chips())
def test_a_batch_costs_no_more_than_its_images_one_by_one(layer: Layer, chip: BitFusion) -> None:
    batch, image = priced(chip, layer), priced(chip, dataclasses.replace(layer, batch=1))
    times = layer.batch ** (2 if chip.objective == "edp" else 1)
    assert objective_of(chip, batch) <= times * objective_of(chip, image) * CLOSE


@often
@given(layers(), chips(buffer_bytes=(64, 8192)), st.sampled_from((("input",), ("output",), ("input", "output"))))
def test_what_is_handed_over_does_not_go_through_dram(layer: Layer, chip: BitFusion, resident: tuple[str, ...]) -> None:
    """DRAM moves whole sets of weights, 32-bit partial sums out and in, and what is not handed over."""
    priced(chip, layer)
    try:
        cost = chip.cost(layer, resident)
    except InfeasibleLayer:
        assume(False)
    outputs = 0 if "output" in resident else layer.output_count * layer.output_bits
    spilled = cost.traffic_bits["dram_write"] - outputs
    assert spilled >= 0 and spilled % (layer.output_count * 32) == 0
    rest = cost.traffic_bits["dram_read"] - spilled
    weights = layer.weight_count * layer.weight_bits
    if "input" in resident:
        assert rest >= weights and rest % weights == 0
    else:
        assert rest >= weights + touched_elements(layer) * (layer.stored_input_bits or layer.input_bits)


LARGE = (
    Layer("conv", 4096, 4096, (512, 512), 3, padding=1, batch=64),
    Layer("wide kernel", 512, 3, (2048, 2048), 31, padding=15, batch=16),
    Layer("depthwise", 65536, 65536, (512, 512), 5, padding=2, groups=65536, batch=32),
    Layer("grouped", 16384, 16384, (128, 128), 3, stride=2, padding=1, groups=64, batch=256),
    Layer.linear("linear", 2**20, 2**18, batch=2**14),
    Layer.matmul("attention", 2**16, 128, 2**16, count=4096),
)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("layer", LARGE, ids=lambda layer: layer.name)
def test_large_layers_are_counted_as_python_counts_them(layer: Layer, objective: str) -> None:
    chip = dataclasses.replace(bf_e(), objective=objective)
    costs = chip.costs(Workload("large", (layer,)))
    expected = naive.counts(layer, chip, naive.chosen(costs.ints[0]))
    assert max(expected.traffic_bits.values()) > 2**40
    assert dict(costs[0].traffic_bits) == expected.traffic_bits
    assert costs[0].compute_cycles == expected.compute_cycles
    assert costs[0].cycles == expected.cycles(chip.dram_bits_per_cycle)
    assert costs[0].energy_pj == pytest.approx(expected.energy_pj(chip), rel=1e-12)


def test_nothing_is_free_where_only_one_port_has_a_price() -> None:
    """Each port's energy reaches the total: with one price at a time, the energy is that port's bits."""
    layer = Layer("conv", 20, 12, (9, 7), 3, padding=1, batch=2)
    for port in TRAFFIC[:6]:
        prices = {f"{name}_pj_per_bit": float(name == port) for name in TRAFFIC[:6]}
        only = BitFusionEnergies(core_pj_per_cycle=0.0, dram_pj_per_bit=0.0, **prices)
        chip = BitFusion(rows=4, cols=4, input_buffer_bytes=256, output_buffer_bytes=256, energies=only)
        cost = chip.cost(layer)
        assert cost.energy_pj == cost.traffic_bits[port] > 0
