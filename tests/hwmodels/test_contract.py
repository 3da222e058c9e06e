"""What holds of every chip in `HARDWARE`, by properties over drawn layers."""

import copy
import dataclasses
import itertools
import pickle
from functools import cache

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hwmodels import HARDWARE, BitFusion, BitFusionEnergies, InfeasibleLayer, MacArray, estimate, networks
from hwmodels.array import sweep
from hwmodels.cost import BOUNDS, BUFFERS, TRAFFIC, HardwareModel, LayerCost, UnsupportedLayer
from hwmodels.workload import Layer

often = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
names = st.sampled_from(sorted(HARDWARE))


@cache
def chip_of(name: str, objective: str = "edp"):
    return dataclasses.replace(HARDWARE[name](), objective=objective)


@st.composite
def layers(draw) -> Layer:
    """Convolutions, depthwise and grouped ones, linear layers and products of activations, of any shape and width."""
    bits = {name: draw(st.integers(1, 8)) for name in ("weight_bits", "input_bits", "output_bits")}
    kind = draw(st.sampled_from(("conv", "grouped", "linear", "matmul")))
    if kind == "linear":
        return Layer.linear("l", draw(st.integers(1, 600)), draw(st.integers(1, 600)), draw(st.integers(1, 9)), **bits)
    if kind == "matmul":
        m, k, n, count = (draw(st.integers(1, size)) for size in (60, 90, 60, 6))
        return Layer.matmul("m", m, k, n, count, **bits)
    groups = draw(st.integers(2, 48)) if kind == "grouped" else 1
    channels = st.integers(1, 3 if kind == "grouped" else 90)
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    return Layer(
        kind, groups * draw(channels), groups * draw(channels),
        in_size=(kernel[0] + draw(st.integers(0, 30)), kernel[1] + draw(st.integers(0, 30))), kernel_size=kernel,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), padding=draw(st.integers(0, 2)),
        groups=groups, batch=draw(st.integers(1, 3)), **bits,
    )  # fmt: skip


def priced(chip: HardwareModel, layer: Layer, *resident: str) -> LayerCost:
    try:
        return chip.cost(layer, resident)
    except InfeasibleLayer:
        assume(False)
        raise


@often
@given(names, layers())
def test_parts_sum_to_totals(name: str, layer: Layer) -> None:
    chip = chip_of(name)
    cost, price = priced(chip, layer), chip.unit_energies
    assert cost.cycles == cost.compute_cycles + cost.stall_cycles and cost.stall_cycles >= 0
    assert cost.latency_s == pytest.approx(cost.cycles / chip.clock_hz, rel=1e-12)
    energy = cost.energy
    assert energy.total_pj == pytest.approx(cost.energy_pj) and min(dataclasses.astuple(energy)) >= 0
    assert energy.compute_pj == pytest.approx(cost.compute_cycles * price.core_pj_per_cycle)
    assert energy.sram_pj == pytest.approx(
        sum(cost.traffic_bits[port] * getattr(price, f"{port}_pj_per_bit") for port in TRAFFIC[:6])
    )
    dram_bits = cost.traffic_bits["dram_read"] + cost.traffic_bits["dram_write"]
    assert energy.dram_pj == pytest.approx(dram_bits * price.dram_pj_per_bit)
    assert energy.leakage_pj == pytest.approx(cost.cycles * price.leakage_pj_per_cycle)
    assert set(cost.traffic_bits) == set(TRAFFIC) and set(cost.buffer_bits) == set(BUFFERS) and cost.bound in BOUNDS


@often
@given(names, layers())
def test_no_layer_beats_the_peak_the_interface_or_its_compulsory_traffic(name: str, layer: Layer) -> None:
    """At its narrowest: every operand in DRAM at its own width, read or written once."""
    chip = chip_of(name)
    cost = priced(chip, layer)
    peak = chip.peak_macs_per_cycle(layer.weight_bits, layer.input_bits)
    assert cost.compute_cycles >= layer.macs / peak * (1 - 1e-12)
    assert 0 < cost.utilization <= 1 + 1e-12
    traffic = cost.traffic_bits
    touched = 1
    for axis in (0, 1):
        reads = {
            o * layer.stride[axis] + tap * layer.dilation[axis] - layer.pads[axis][0]
            for o in range(layer.out_size[axis])
            for tap in range(layer.kernel_size[axis])
        }
        touched *= sum(0 <= i < layer.in_size[axis] for i in reads)
    inputs = layer.batch * layer.in_channels * touched
    assert traffic["dram_read"] >= inputs * layer.input_bits + layer.weight_count * layer.weight_bits
    assert traffic["dram_write"] >= layer.output_count * layer.output_bits
    assert cost.cycles * chip.dram_bits_per_cycle >= traffic["dram_read"] + traffic["dram_write"]
    for buffer in BUFFERS:
        least = int(buffer != "input" or inputs > 0)  # outputs that see nothing but padding read no input
        assert least <= cost.buffer_bits[buffer] <= 8 * getattr(chip, f"{buffer}_buffer_bytes")
        assert traffic[f"{buffer}_buffer_read"] >= least and traffic[f"{buffer}_buffer_write"] >= least


@often
@given(names, layers(), st.sampled_from(("latency", "energy", "edp")), st.data())
def test_fewer_bits_never_worsen_the_objective(name: str, layer: Layer, objective: str, data) -> None:
    chip = chip_of(name, objective)
    fewer = {bits: data.draw(st.integers(1, getattr(layer, bits))) for bits in ("weight_bits", "input_bits")}
    before, after = priced(chip, layer), chip.cost(dataclasses.replace(layer, **fewer))
    rank = {
        "latency": lambda cost: cost.cycles,
        "energy": lambda cost: cost.energy_pj,
        "edp": lambda cost: cost.cycles * cost.energy_pj,
    }[objective]
    assert rank(after) <= rank(before) * (1 + 1e-12)


@often
@given(names, layers())
def test_the_objective_that_is_asked_for_is_the_one_that_is_least(name: str, layer: Layer) -> None:
    costs = {objective: priced(chip_of(name, objective), layer) for objective in ("latency", "energy", "edp")}
    assert min(cost.cycles for cost in costs.values()) == costs["latency"].cycles
    least_pj = min(cost.energy_pj for cost in costs.values())
    assert costs["energy"].energy_pj <= least_pj * (1 + 1e-12)
    least_edp = min(cost.energy_pj * cost.cycles for cost in costs.values())
    assert costs["edp"].energy_pj * costs["edp"].cycles <= least_edp * (1 + 1e-12)


@often
@given(names, layers())
def test_a_resident_operand_stays_off_the_dram_interface(name: str, layer: Layer) -> None:
    chip = chip_of(name)
    assume(layer.input_count * 32 <= chip.handover_bits)
    alone, held = priced(chip, layer), priced(chip, layer, "input", "output")
    assert held.traffic_bits["dram_write"] <= alone.traffic_bits["dram_write"] - layer.output_count * layer.output_bits
    assert held.traffic_bits["dram_read"] >= layer.weight_count * layer.weight_bits


@pytest.mark.parametrize("name", HARDWARE)
def test_a_layer_costs_alone_what_it_costs_in_its_network(name):
    chip, workload = HARDWARE[name](), networks.mobilenet_v2().with_bits(4, 6)
    report = estimate(workload, chip)
    for layer, cost in zip(workload.layers, report.layers, strict=True):
        assert chip.cost(layer) == cost
    assert report.cycles == sum(cost.cycles for cost in report.layers)
    assert report.energy_j == pytest.approx(sum(cost.energy_pj for cost in report.layers) * 1e-12)
    swept = sweep(workload, [chip])
    assert swept.latency_s[0] == pytest.approx(report.latency_s, rel=1e-12)
    assert swept.energy_j[0] == pytest.approx(report.energy_j, rel=1e-12)


@pytest.mark.parametrize("name", HARDWARE)
def test_a_chip_is_a_value(name):
    """Equal copies, equal hashes, a repr that evaluates, no field that can be set; pickling is for worker processes."""
    chip, again = HARDWARE[name](), HARDWARE[name]()
    assert chip is not again and chip == again and hash(chip) == hash(again) and repr(chip) == repr(again)
    assert isinstance(chip, HardwareModel)
    _ = chip.area_mm2, chip.unit_energies  # whatever these cache is no part of the value
    known = {"BitFusion": BitFusion, "BitFusionEnergies": BitFusionEnergies, "MacArray": MacArray}
    assert eval(repr(chip), known) == again
    assert copy.deepcopy(chip) == again and pickle.loads(pickle.dumps(chip)) == again
    assert dataclasses.replace(chip, rows=chip.rows + 1) != chip
    with pytest.raises(dataclasses.FrozenInstanceError):
        chip.rows = 3


@pytest.mark.parametrize("name", HARDWARE)
def test_every_field_says_what_it_is_and_where_its_value_comes_from(name):
    chip = HARDWARE[name]()
    for field in dataclasses.fields(chip):
        assert set(field.metadata) == {"unit", "doc", "source"} and field.metadata["doc"] and field.metadata["source"]
    assert type(chip).__doc__ and HARDWARE[name].__doc__


@pytest.mark.parametrize("name", HARDWARE)
def test_areas_are_positive_and_sum(name):
    chip = HARDWARE[name]()
    assert set(chip.areas_mm2) == {"core", "weight_buffer", "input_buffer", "output_buffer"}
    assert min(chip.areas_mm2.values()) > 0
    assert chip.area_mm2 == pytest.approx(sum(chip.areas_mm2.values()))


@pytest.mark.parametrize("name", HARDWARE)
def test_unknown_resident_operands_are_refused(name):
    with pytest.raises(ValueError, match="Layer 'conv': resident may name input, output, got weights"):
        HARDWARE[name]().cost(Layer("conv", 3, 8, in_size=(8, 8)), resident=("weights",))


@pytest.mark.parametrize("name", HARDWARE)
def test_operands_are_refused_or_priced_at_every_width(name):
    chip = HARDWARE[name]()
    for weight_bits, input_bits in itertools.product((1, 7, 16, 32), repeat=2):
        layer = Layer("conv", 8, 8, in_size=(8, 8), weight_bits=weight_bits, input_bits=input_bits)
        if chip.peak_macs_per_cycle(weight_bits, input_bits):
            assert chip.cost(layer).compute_cycles >= 1
        else:
            with pytest.raises(UnsupportedLayer, match=f"Layer 'conv': .*weight_bits={weight_bits}"):
                chip.cost(layer)
