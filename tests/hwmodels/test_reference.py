"""The reference Bit Fusion model against the public simulator's results and against a slow twin."""

import csv
import dataclasses
import importlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodels import BitFusion, BitFusionEnergies, InfeasibleLayer, Layer, UnsupportedLayer, Workload, estimate
from hwmodels.bitfusion import bf_8x8, bf_e, bf_s
from hwmodels.cost import LayerCost
from hwmodels.technology import read_table
from tests.naive_reference import Chip, ConvShape, price

RANKS = {
    tuple(row[place] for place in ("outermost", "second", "third", "fourth", "innermost")): int(row["rank"])
    for row in read_table("loop_orders")
}
TRAFFIC = ("wbuf_rd", "wbuf_wr", "ibuf_rd", "ibuf_wr", "obuf_rd", "obuf_wr", "dram_rd", "dram_wr")


def reference(chip: BitFusion, im2col: bool = False) -> BitFusion:
    return dataclasses.replace(chip, model="reference", mapping="im2col" if im2col else "channel")


def conv(K: int, P: int, S: int, IC: int, OC: int, B: int, input_bits: int, weight_bits: int, **fields) -> Layer:
    """A square convolution without padding that has P x P outputs."""
    return Layer(
        "conv", IC, OC, in_size=((P - 1) * S + K,) * 2, kernel_size=K, stride=S, batch=B, input_bits=input_bits,
        weight_bits=weight_bits, **fields,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- the simulator's results


def golden_rows(path: Path) -> Iterator[tuple[BitFusion, Layer, Mapping[str, str]]]:
    with open(path.parent / "config_energy.csv") as file:
        configs = {row["config"]: row for row in csv.DictReader(file)}
    with open(path) as file:
        for row in csv.DictReader(file):
            row = row | configs.get(row.get("config", ""), {})
            number = {key: int(value) for key, value in row.items() if value.isdigit()}
            energies = None
            if row.get("energy_source"):
                nj = [float(value) for key, value in row.items() if "_nJ_per_" in key]
                energies = BitFusionEnergies(*(energy * 1e3 for energy in nj))
            chip = BitFusion(
                number["N"], number["M"], number["pmax"], number["pmin"],
                *(number.get(f"{name}_bytes", number.get(name)) for name in ("wbuf", "ibuf", "obuf")),
                number.get("bw_bits_per_cycle", number.get("bw")), energies=energies,
            )  # fmt: skip
            batch, groups = number.get("batch", number.get("B")), number.get("groups", 1)
            layer = conv(
                number["K"], number["O"], number["S"], number["IC"] * groups, number["OC"] * groups, batch,
                number["abits"], number["wbits"], groups=groups,
            )  # fmt: skip
            yield reference(chip, row["im2col"] == "1"), layer, row


@pytest.mark.parametrize(
    ("file", "feasible", "infeasible"),
    [("published_sweep_305", 305, 0), ("resnet18", 1188, 0), ("resnet20_cifar", 1029, 0), ("random", 150, 8)],
)
def test_every_row_of_the_reference_data_is_met_exactly(reference_dir, file, feasible, infeasible):
    met = refused = 0
    for chip, layer, row in golden_rows(reference_dir / "golden" / f"{file}.csv"):
        if row.get("feasible") == "0":
            with pytest.raises(InfeasibleLayer):
                chip.cost(layer)
            refused += 1
            continue
        cost = chip.cost(layer)
        assert cost.cycles == int(row["cycles"])
        assert cost.stall_cycles == int(row["mem_stall_cycles"])
        assert list(cost.traffic_bits.values()) == [int(row[key]) for key in TRAFFIC]
        assert cost.energy_pj == pytest.approx(float(row["energy_nJ"]) * 1e3, rel=1e-12)
        assert cost.mapping.endswith(
            f"b{row['t_b']} o{row['t_o']} ic{row['t_ic']} oc{row['t_oc']}, order {row['order_class'] or 'none'}"
        )
        met += 1
    assert (met, refused) == (feasible, infeasible)


def random_chip(rows, cols, max_bits, dram_bits, weight_bytes, input_bytes, output_bytes, *nj) -> BitFusion:
    energies = BitFusionEnergies(*(energy * 1e3 for energy in nj))
    return BitFusion(rows, cols, max_bits, 2, weight_bytes, input_bytes, output_bytes, dram_bits, energies=energies)


# Rows of the public Bit Fusion simulator: its published AlexNet sweep (batch 16, bf_e), and random layers and arrays.
@pytest.mark.parametrize(
    ("chip", "im2col", "layer", "cycles", "stall_cycles", "traffic", "energy_nj"),
    [
        (
            bf_e(), False, conv(3, 13, 1, 384, 384, 16, 4, 4), 2436097, 403969,
            (16647192576, 5308416, 16647192576, 231211008, 231211008, 231211008, 352124928, 115605504),
            8890484.312254464,
        ),
        (
            bf_e(), False, conv(5, 27, 1, 96, 256, 16, 4, 4), 5018849, 1249,
            (41104179200, 3276800, 41104179200, 462422016, 411041792, 411041792, 671219712, 205520896),
            17749972.918784004,
        ),
        (
            bf_e(), True, conv(11, 55, 4, 3, 96, 16, 8, 8), 3746423, 406823,
            (13493145600, 282624, 13493145600, 421660800, 297369600, 297369600, 570628224, 148684800),
            12745180.069169544,
        ),
        (
            bf_e(), False, Layer.linear("fc", 8192, 1000, batch=16), 398679, 136535,
            (1073741824, 67108864, 1073741824, 1048576, 8388608, 8388608, 72351744, 4194304), 1299574.103801856,
        ),
        (
            random_chip(16, 8, 8, 128, 929, 1131, 814, 0.853456, 0.000113124, 0.000130491, 9.44357e-05, 0.000257794,
                        0.000158088, 2.46628e-05),
            True, conv(11, 3, 4, 967, 88, 16, 6, 5), 24507722, 74,
            (7413563520, 871383040, 8896276224, 2224069056, 392933376, 392933376, 3096263104, 811008),
            69809957.13503708,
        ),
        (
            random_chip(16, 8, 8, 64, 65536, 32768, 8192, 0.058776, 2.961084375e-05, 6.2890625e-05, 5.9474375e-05,
                        0.0001137040625, 4.0116875e-05, 0.000121373125),
            False, conv(1, 3, 2, 101, 36, 16, 6, 2), 7268, 5828,
            (1047168, 9216, 3141504, 87264, 350208, 350208, 280800, 184320), 7346.340916218,
        ),
    ],
    ids=["conv4_b", "conv2_a", "conv1_b", "fc3", "random 0", "random 2"],
)  # fmt: skip
def test_rows_of_the_public_simulator_are_met_exactly(chip, im2col, layer, cycles, stall_cycles, traffic, energy_nj):
    cost = reference(chip, im2col).cost(layer)
    assert (cost.cycles, cost.stall_cycles) == (cycles, stall_cycles)
    assert tuple(cost.traffic_bits.values()) == traffic
    assert cost.energy_pj == pytest.approx(energy_nj * 1e3, rel=1e-12)


# ------------------------------------------------------------------------------------------------- the slow twin


def log_uniform(low: int, high: int) -> st.SearchStrategy[int]:
    return st.floats(math.log2(low), math.log2(high + 0.999)).map(lambda x: max(low, min(high, int(2**x))))


@st.composite
def chips_and_layers(draw) -> tuple[Chip, ConvShape]:
    widest = draw(st.sampled_from([2, 4, 8, 16, 32]))
    chip = Chip(
        rows=draw(st.sampled_from([1, 2, 3, 8, 16])),
        cols=draw(st.sampled_from([1, 2, 5, 8, 32])),
        max_bits=widest,
        min_bits=draw(st.sampled_from([bits for bits in (1, 2, 4, 8) if bits <= widest])),
        weight_bytes=draw(log_uniform(8, 60_000)),
        input_bytes=draw(log_uniform(8, 60_000)),
        output_bytes=draw(log_uniform(16, 30_000)),
        dram_bits_per_cycle=draw(st.sampled_from([1, 7, 32, 192, 4096])),
        # free ports make exact ties between mappings
        energies=tuple(draw(st.one_of(st.sampled_from([0.0, 0.5]), st.floats(1e-3, 1))) for _ in range(8)),
    )
    layer = ConvShape(
        kernel=draw(st.sampled_from([1, 2, 3, 5, 7])),
        output=draw(log_uniform(1, 16)),
        stride=draw(st.sampled_from([1, 2, 3])),
        in_channels=draw(log_uniform(1, 70)),
        out_channels=draw(log_uniform(1, 70)),
        batch=draw(log_uniform(1, 9)),
        input_bits=draw(st.integers(1, widest)),
        weight_bits=draw(st.integers(1, widest)),
        im2col=draw(st.booleans()),
    )
    return chip, layer


def priced(chip: Chip, shape: ConvShape) -> LayerCost:
    """What the package says."""
    array = BitFusion(*chip[:8], energies=BitFusionEnergies(*chip.energies))
    return reference(array, shape.im2col).cost(conv(*shape[:8]))


def assert_equal_to_twin(chip: Chip, shape: ConvShape) -> None:
    slow = price(chip, shape, RANKS)
    if slow is None:
        with pytest.raises(InfeasibleLayer):
            priced(chip, shape)
        return
    cost = priced(chip, shape)
    assert (cost.cycles, cost.compute_cycles) == (slow.cycles, slow.compute)
    assert tuple(cost.traffic_bits.values()) == slow.traffic
    assert cost.energy_pj == pytest.approx(slow.energy, rel=1e-12)
    b, o, ic, oc = slow.tile
    assert cost.mapping.endswith(f"b{b} o{o} ic{ic} oc{oc}, order {slow.order_class or 'none'}")


@settings(max_examples=120, deadline=None, derandomize=True)
@given(chips_and_layers())
def test_the_pruned_search_equals_trying_every_tiling_in_every_order(case):
    assert_equal_to_twin(*case)


def test_counts_near_the_end_of_64_bits_equal_python_integers():
    chip = Chip(4, 2, 8, 2, 64, 64, 64, 1, (1.0,) * 8)
    shape = ConvShape(1, 1, 1, 2**20 - 3, 2**13 + 1, 2**18, 8, 8, False)
    assert_equal_to_twin(chip, shape)
    assert max(price(chip, shape).traffic) > 2**53


def test_a_layer_whose_counts_leave_64_bits_is_refused():
    with pytest.raises(ValueError, match=r"'fc'.* in 64 bits, got \d+ MACs"):
        reference(bf_e()).cost(Layer.linear("fc", 2**30, 2**30, batch=2**20))


# -------------------------------------------------------------------------------------------------------- rules


def test_a_grouped_layer_is_so_many_independent_layers():
    grouped = Layer("dw", 96, 192, (28, 28), kernel_size=3, padding=1, groups=96, weight_bits=4, input_bits=8)
    one = dataclasses.replace(grouped, in_channels=1, out_channels=2, groups=1)
    chip = reference(bf_e())
    together, alone = chip.cost(grouped), chip.cost(one)
    assert together.cycles == 96 * alone.cycles and together.stall_cycles == 96 * alone.stall_cycles
    assert together.traffic_bits == {port: 96 * bits for port, bits in alone.traffic_bits.items()}
    assert together.energy_pj == pytest.approx(96 * alone.energy_pj, rel=1e-12)
    assert together.utilization == alone.utilization and together.buffer_bits == alone.buffer_bits


def test_rows_of_a_product_are_its_batch():
    chip = reference(bf_e())
    linear = chip.cost(Layer.linear("fc", 64, 100, batch=48))
    assert chip.cost(Layer.matmul("qk", m=48, k=64, n=100)) == linear
    many = chip.cost(Layer.matmul("qk", m=48, k=64, n=100, count=12))
    assert many.cycles == 12 * linear.cycles
    assert reference(bf_e(), im2col=True).cost(Layer.linear("fc", 64, 100, batch=48)) == linear


def test_only_convolutions_that_read_the_networks_input_run_as_im2col():
    first = Layer("conv1", 3, 64, (224, 224), kernel_size=7, stride=2, padding=3, reads_network_input=True)
    inner = dataclasses.replace(first, reads_network_input=False)
    by_channel, by_taps = reference(bf_e()), reference(bf_e(), im2col=True)
    assert by_channel.cost(first) == by_taps.cost(first) == by_taps.cost(inner) != by_channel.cost(inner)
    fc = Layer.linear("fc", 64, 10)
    assert by_channel.cost(dataclasses.replace(fc, reads_network_input=True)) == by_channel.cost(fc)


def test_one_bit_operands_compute_as_two_bits_and_move_as_one():
    chip = reference(bf_e())
    one = chip.cost(conv(3, 14, 1, 256, 256, 1, input_bits=1, weight_bits=2))
    two = chip.cost(conv(3, 14, 1, 256, 256, 1, input_bits=2, weight_bits=2))
    assert one.compute_cycles == two.compute_cycles
    assert 2 * one.traffic_bits["input_buffer_read"] == two.traffic_bits["input_buffer_read"]


def test_operators_that_only_move_data_cost_nothing():
    pool = Layer("pool", 64, 64, (56, 56), kernel_size=2, stride=2, op="pool")
    cost = reference(bf_e()).cost(pool)
    assert cost.cycles == 0 and cost.energy_pj == 0 and not any(cost.traffic_bits.values())


def test_stalled_cycles_and_leakage_cost_nothing():
    fc = Layer.linear("fc", 4096, 4096)
    leaky = dataclasses.replace(bf_e().unit_energies, leakage_pj_per_cycle=1e6)
    cost = reference(dataclasses.replace(bf_e(), energies=leaky)).cost(fc)
    assert cost.stall_cycles > 0 and cost.energy.leakage_pj == 0
    assert cost.energy.compute_pj == pytest.approx(cost.compute_cycles * 235.104, rel=1e-12)
    assert cost.bound == "dram"


def test_parts_of_a_report_sum_to_its_total():
    layers = (
        Layer("conv1", 3, 16, (32, 32), kernel_size=3, padding=1, reads_network_input=True),
        Layer("conv2", 16, 32, (32, 32), kernel_size=3, padding=1, stride=2),
        Layer("conv3", 16, 32, (32, 32), kernel_size=3, padding=1, stride=2),
        Layer.linear("fc", 32, 10),
    )
    report = estimate(Workload.sequential("net", layers), reference(bf_s()))
    costs = [reference(bf_s()).cost(layer) for layer in layers]
    assert report.cycles == sum(cost.cycles for cost in costs)
    assert report.energy.total_pj == pytest.approx(sum(cost.energy_pj for cost in costs), rel=1e-12)
    assert list(report.layers) == costs


@pytest.mark.parametrize(
    "layer",
    [
        Layer("odd", 8, 8, (14, 28), kernel_size=3, padding=1),
        Layer("odd", 8, 8, (14, 14), kernel_size=(1, 3), padding=(0, 1)),
        Layer("odd", 8, 8, (14, 14), kernel_size=3, stride=(1, 2), padding=1),
        Layer("odd", 8, 8, (14, 14), kernel_size=3, dilation=2, padding=2),
        Layer("odd", 8, 8, (14, 14), kernel_size=2, padding=((0, 1), (0, 1))),
        Layer("odd", 8, 8, (14, 14), kernel_size=3, padding=(1, 0)),
    ],
    ids=["map", "kernel", "stride", "dilation", "sides", "axes"],
)
def test_rectangular_dilated_and_unevenly_padded_convolutions_are_refused(layer):
    with pytest.raises(
        UnsupportedLayer, match=r"Layer 'odd': model='reference' needs a square map.*use model='default'"
    ):
        reference(bf_e()).cost(layer)


def test_operands_wider_than_the_array_are_refused():
    layer = Layer("wide", 8, 8, weight_bits=8, input_bits=16)
    with pytest.raises(UnsupportedLayer, match=r"'wide': .*max_bits=8, got weight_bits=8, input_bits=16"):
        reference(bf_e()).cost(layer)
    assert reference(BitFusion(max_bits=16, weight_buffer_bytes=262144)).cost(layer).cycles > 0


def test_a_layer_that_no_tiling_fits_names_the_buffer_the_bits_needed_and_the_bits_there():
    # one fold of the columns for one channel and one kernel: 32 outputs of 32 bits
    small = dataclasses.replace(reference(bf_e()), output_buffer_bytes=100)
    with pytest.raises(
        InfeasibleLayer, match=r"'c': .*needs 1024 bits of the output buffer, and half of its 100 bytes holds 400 bits"
    ):
        small.cost(Layer("c", 64, 64, (8, 8)))
    # 81 weights padded to 16 lanes for each of 32 columns
    small = dataclasses.replace(reference(bf_e()), weight_buffer_bytes=1024)
    with pytest.raises(InfeasibleLayer, match=f"needs {96 * 32 * 8} bits of the weight buffer.*holds 4096 bits"):
        small.cost(Layer("c", 64, 64, (9, 9), kernel_size=9))
    exact = dataclasses.replace(reference(bf_e()), weight_buffer_bytes=96 * 32 * 2)
    assert exact.cost(Layer("c", 64, 64, (9, 9), kernel_size=9)).cycles > 0


def test_the_first_layer_that_cannot_run_is_named():
    layers = (Layer("a", 8, 8), Layer("b", 8, 8, (4, 5)), Layer("c", 8, 8, (4, 6)))
    with pytest.raises(UnsupportedLayer, match="Layer 'b'"):
        estimate(Workload("net", layers), reference(bf_e()))


def test_nothing_stays_on_the_chip_between_layers():
    with pytest.raises(UnsupportedLayer, match="keeps no activation on the chip"):
        reference(bf_e()).cost(Layer("a", 8, 8), resident=("input",))


def test_the_small_array_is_slower_than_the_large_one():
    layer = conv(3, 14, 1, 256, 256, 1, 8, 8)
    assert reference(bf_8x8()).cost(layer).cycles > reference(bf_e()).cost(layer).cycles


def test_a_network_takes_well_under_its_share_of_a_millisecond():
    """Ten times the time that the benchmark allows, for machines that are busy."""
    layers = [conv(k, p, 1, c, c, 16, 8, 8) for c, p in ((64, 56), (128, 28), (256, 14), (512, 7)) for k in (1, 3)]
    workload = Workload("net", tuple(dataclasses.replace(layer, name=str(i)) for i, layer in enumerate(layers)))
    chip = reference(bf_e())
    estimate(workload, chip)
    durations = []
    for _ in range(20):
        started = time.perf_counter()
        estimate(workload, chip)
        durations.append(time.perf_counter() - started)
    assert sorted(durations)[10] < 30e-3


def test_the_papers_headline_table_and_scaled_arrays_are_reproduced(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    repro = importlib.import_module("repro_bitfusion_isca18")
    lines: list[str] = []
    workloads = repro.networks()
    # geometric means over eight networks: 3.9251x the speed and 5.1165x less energy than Eyeriss
    assert repro.against_eyeriss(lines.append, workloads) == pytest.approx((3.9251, 5.1165), abs=5e-5)
    assert repro.scaled_up(lines.append, workloads) < 5e-9
    assert len(lines) > 8 + 4 * 8
