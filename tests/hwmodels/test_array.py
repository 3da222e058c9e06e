"""Pricing whole networks and many chips: `hwmodels.array`."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from hwmodels import HARDWARE, BitFusion, InfeasibleLayer, Layer, UnsupportedLayer, Workload, estimate, networks
from hwmodels.array import _best_handovers, sweep
from hwmodels.cost import residency


def test_a_sweep_gives_what_estimate_gives_for_each_chip() -> None:
    workload = networks.resnet20().with_bits(4, 8)
    chips = [BitFusion(rows=rows, cols=cols, dram_bits_per_cycle=64) for rows in (4, 16) for cols in (8, 32)]
    result = sweep(workload, chips, workers=2)
    reports = [estimate(workload, chip) for chip in chips]
    np.testing.assert_allclose(result.latency_s, [report.latency_s for report in reports], rtol=1e-12)
    np.testing.assert_allclose(result.energy_j, [report.energy_j for report in reports], rtol=1e-12)


def test_a_sweep_goes_on_past_a_chip_that_cannot_run_the_network() -> None:
    chips = [BitFusion(), replace(BitFusion(), max_bits=4, weight_buffer_bytes=8192), BitFusion()]
    result = sweep(networks.resnet20().with_bits(8, 8), chips)
    assert np.isnan(result.latency_s).tolist() == [False, True, False]
    assert result.energy_j[0] == result.energy_j[2]


def test_hand_overs_are_the_best_of_all_combinations() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        n = int(rng.integers(1, 7))
        value = rng.random((n, 4))
        value[rng.random((n, 4)) < 0.3] = np.inf
        value[:, 0] = rng.random(n)
        totals = [
            sum(value[i, before + 2 * after] for i, (before, after) in enumerate(itertools.pairwise((0, *kept, 0))))
            for kept in itertools.product((0, 1), repeat=n - 1)
        ]
        flags = _best_handovers(value)
        assert value[np.arange(n), flags].sum() == pytest.approx(min(totals))
        assert ((flags[:-1] >= 2) == (flags[1:] % 2 == 1)).all()


@pytest.mark.parametrize("objective", ["latency", "energy"])
def test_hand_overs_never_make_a_network_worse(objective: str) -> None:
    chip = BitFusion(objective=objective)
    workload = networks.mobilenet_v2().with_bits(4, 4)
    metric = {"latency": "cycles", "energy": "energy_j"}[objective]
    apart, together = estimate(workload, chip), estimate(workload, chip, resident=True)
    assert getattr(together, metric) < getattr(apart, metric)
    assert together.traffic_bits["dram_write"] < apart.traffic_bits["dram_write"]


def test_an_activation_stays_only_where_the_next_layer_alone_reads_it_and_it_fits() -> None:
    small = Layer("a", 4, 4, in_size=(8, 8))
    chain = Workload.sequential("chain", [small, replace(small, name="b"), replace(small, name="c")])
    assert residency(chain, BitFusion()) == (("output",), ("input", "output"), ("input",))
    tight = BitFusion(input_buffer_bytes=2 * 4 * 8 * 8 - 2)
    assert residency(chain, tight) == ((), (), ())


def test_a_layer_handed_over_moves_its_activations_once_through_the_input_buffer() -> None:
    layer = Layer("a", 16, 32, in_size=(8, 8), kernel_size=3, padding=1)
    chip = BitFusion(mapping="channel")
    apart, stays = chip.cost(layer), chip.cost(layer, resident=("input", "output"))
    weights_bits = layer.weight_count * layer.weight_bits
    assert stays.traffic_bits["dram_read"] == weights_bits
    assert stays.traffic_bits["dram_write"] == 0
    assert stays.traffic_bits["input_buffer_write"] == layer.output_count * layer.output_bits
    assert apart.traffic_bits["dram_write"] == layer.output_count * layer.output_bits


def test_operands_wider_than_the_array_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedLayer, match=r"'fc'.*max_bits=8.*weight_bits=16"):
        BitFusion().cost(Layer.linear("fc", 8, 8, weight_bits=16))


@pytest.mark.parametrize(
    ("buffer", "size_bytes", "needed_bits"),
    [("weight", 64, 32 * 16 * 8), ("input", 16, 16 * 8), ("output", 64, 32 * 16)],
)
def test_a_layer_without_a_tiling_names_the_buffer_and_both_sizes(
    buffer: str, size_bytes: int, needed_bits: int
) -> None:
    """The smallest tile fills one word of every bank: 16 x 32 weights, 16 inputs (one 4x4 window), 32 outputs."""
    chip = replace(BitFusion(), energies=BitFusion().unit_energies, **{f"{buffer}_buffer_bytes": size_bytes})
    layer = Layer("conv", 3, 8, in_size=(8, 8), kernel_size=4, output_bits=16)
    told = rf"'conv'.* {needed_bits} bits.*{buffer} buffer.* {4 * size_bytes} bits.*{buffer}_buffer_bytes"
    with pytest.raises(InfeasibleLayer, match=told):
        chip.cost(layer)


def test_resident_operands_must_be_known() -> None:
    with pytest.raises(ValueError, match="input, output, got weights"):
        BitFusion().cost(Layer("a", 4, 4), resident=("weights",))


@pytest.mark.parametrize("name", sorted(HARDWARE))
def test_a_sweep_gives_what_estimate_gives_on_every_chip(name: str) -> None:
    workload, chip = networks.resnet20(), HARDWARE[name]()
    workload = workload.with_bits(2, 2) if name.startswith("int2") else workload
    result, report = sweep(workload, [chip]), estimate(workload, chip)
    assert result.latency_s[0] == pytest.approx(report.latency_s, rel=1e-12)
    assert result.energy_j[0] == pytest.approx(report.energy_j, rel=1e-12)


def test_a_sweep_prices_reference_chips_by_the_reference() -> None:
    chip = BitFusion(model="reference", mapping="channel")
    result, report = sweep(networks.resnet20(), [chip, BitFusion()]), estimate(networks.resnet20(), chip)
    assert result.latency_s[0] == report.latency_s and result.energy_j[0] == pytest.approx(report.energy_j, rel=1e-12)
    assert result.latency_s[1] < result.latency_s[0]


def test_energies_must_be_all_the_prices() -> None:
    with pytest.raises(ValueError, match=r"energies must be a BitFusionEnergies or None, got energies=3"):
        BitFusion(energies=3)  # type: ignore[arg-type]
