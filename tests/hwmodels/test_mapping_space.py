"""The mapping kernel against its declared map space, enumerated slowly, and against every integer tile."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hwmodels import BitFusion, InfeasibleLayer, Layer, Workload
from hwmodels.bitfusion import bf_e
from hwmodels.cost import TRAFFIC
from tests import exhaustive, naive
from tests.draws import OBJECTIVES, chips, layers, objective_of

some = settings(
    max_examples=120, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip


def assert_least(layer: Layer, chip: BitFusion) -> None:
    """The kernel refuses what nothing fits; else it finds the least of the declared space, and a mapping in it."""
    expected = naive.least(layer, chip)
    if expected is None:
        with pytest.raises(InfeasibleLayer):
            chip.cost(layer)
        return
    costs = chip.costs(Workload(layer.name, (layer,)))
    cost, mapping = costs[0], naive.chosen(costs.ints[0])
    assert objective_of(chip, cost) == pytest.approx(expected[0], rel=1e-12)
    assert mapping in set(naive.mappings(layer, chip))
    counts = naive.counts(layer, chip, mapping)
    assert (cost.compute_cycles, cost.cycles) == (counts.compute_cycles, counts.cycles(chip.dram_bits_per_cycle))
    assert {port: cost.traffic_bits[port] for port in TRAFFIC} == counts.traffic_bits
    peak = layer.macs / (counts.compute_cycles * chip.rows * chip.cols * mapping.lane_factor)
    assert cost.utilization == pytest.approx(peak, rel=1e-12)


@some
@given(layers(channels=12, size=8, batch=4), chips(rows=5, cols=8, buffer_bytes=(16, 1024)))
def test_nothing_in_the_declared_space_is_better(layer: Layer, chip: BitFusion) -> None:
    assert_least(layer, chip)


SHAPES = (
    Layer("dense", 20, 24, (9, 7), 3, padding=1, batch=2),
    Layer("first", 3, 16, (16, 16), 3, stride=2, padding=((0, 1), (0, 1))),
    Layer("grouped", 24, 16, (6, 6), (3, 1), padding=(1, 0), groups=4),
    Layer("depthwise", 24, 24, (11, 9), 3, padding=1, groups=24),
    Layer("dilated", 12, 12, (12, 9), 3, padding=2, dilation=2, batch=3),
    Layer("rectangular", 16, 8, (4, 13), (1, 5), padding=(0, 2)),
    Layer.linear("linear", 70, 50, batch=6),
    Layer.matmul("matmul", 9, 16, 9, count=4),
)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("layer", SHAPES, ids=lambda layer: layer.name)
def test_every_kind_of_layer_is_mapped_best(layer: Layer, objective: str) -> None:
    small = dataclasses.replace(
        bf_e(), rows=4, cols=8, weight_buffer_bytes=1024, input_buffer_bytes=512, output_buffer_bytes=512,
        dram_bits_per_cycle=24, objective=objective, energies=bf_e().unit_energies,
    )  # fmt: skip
    for weight_bits, input_bits in ((8, 8), (2, 4)):
        assert_least(layer.with_bits(weight_bits, input_bits), small)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_layers_of_real_networks_are_mapped_best(objective: str) -> None:
    from hwmodels.networks import mobilenet_v2_cifar, resnet20

    chip = dataclasses.replace(bf_e(), objective=objective)
    for network in (resnet20(), mobilenet_v2_cifar()):
        for layer in {layer for layer in network.with_bits(4, 4).layers if layer.is_mac}:
            assert_least(layer, chip)


@some
@given(st.data())
def test_the_exhaustive_search_prices_declared_mappings_as_the_closed_form_does(data: st.DataObject) -> None:
    layer = data.draw(layers(channels=6, size=5, batch=3))
    chip = data.draw(chips(rows=4, cols=6, buffer_bytes=(16, 512)))
    space = list(naive.dense_mappings(layer, chip))
    mapping = space[data.draw(st.integers(0, len(space) - 1))]
    if mapping.batch_outermost:
        order = "N" + mapping.order.replace("X", "PQ")
    else:
        order = mapping.order.replace("X", "NPQ")
    cycles, energy_pj = exhaustive.dense_costs(layer, chip, mapping.kind, order)
    at = tuple(getattr(mapping, f"tile_{axis.lower()}") - 1 for axis in exhaustive.AXES)
    counts = naive.counts(layer, chip, mapping)
    if counts is None:
        assert math.isinf(energy_pj[at])
    else:
        assert cycles[at] == counts.cycles(chip.dram_bits_per_cycle)
        assert energy_pj[at] == pytest.approx(counts.energy_pj(chip), rel=1e-12)


@settings(some, max_examples=12)
@given(layers(channels=6, size=5, batch=2), chips(rows=3, cols=5, buffer_bytes=(64, 512), mapping="auto"))
def test_no_integer_tiling_contradicts_the_declared_space(layer: Layer, chip: BitFusion) -> None:
    """The larger space holds the declared one, so its least is no worse."""
    declared, every = naive.least(layer, chip), exhaustive.least(layer, chip)
    assert np.isinf(every) if declared is None else every <= declared[0] * (1 + 1e-12)
