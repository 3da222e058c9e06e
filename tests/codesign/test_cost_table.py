"""Cost tables: against the simulator, against enumeration, and where they must refuse."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from codesign.cost_table import METRICS, CostTable, NotDecomposable, cost_table
from codesign.nets.mobilenetv2 import Block, MobileNetV2Space, Stage
from codesign.space import AbstractSpace, BitwidthSpace, Choice
from codesign.terms import WORKLOAD_METRICS
from hwmodels import (
    HARDWARE,
    BitFusion,
    Energy,
    InfeasibleLayer,
    Layer,
    LayerCost,
    LookupTable,
    Measurement,
    UnsupportedLayer,
    Workload,
    estimate,
    networks,
    residency,
)  # fmt: skip
from hwmodels.graph import Graph

CHIP = BitFusion()


def small_space(**fields):
    """Three blocks of 2 * 1 * 2 * 2 * 2 = 16 options."""
    fields = {"expansions": (1, 3), "kernel_sizes": (3,), "bits": (2, 8)} | fields
    stages = (Stage(8, 1, 2), Stage(16, 2, 1))
    return MobileNetV2Space.preset("tiny", stages=stages, **fields)


def simulated(space, arch, hardware=CHIP):
    metrics = estimate(space.workload(arch), hardware).metrics()
    return [metrics[metric] for metric in METRICS]


def all_archs(space):
    return np.array(list(itertools.product(*map(range, space.option_counts))))


def random_policies(space, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.dirichlet(np.ones(count)) for count in space.option_counts]


@pytest.fixture(scope="module")
def small():
    space = small_space()
    return space, cost_table(space, CHIP)


def test_the_table_prices_what_the_simulator_prices_in_the_whole_mp_nas_space():
    space = MobileNetV2Space.preset("imagenet")
    table = cost_table(space, CHIP, n_checks=0)
    rng = np.random.default_rng(7)
    archs = [space.sample(rng) for _ in range(5)]
    prices = table.price(archs)
    for i, arch in enumerate(archs):
        assert [prices[metric][i] for metric in METRICS] == pytest.approx(simulated(space, arch), rel=1e-12)


@pytest.mark.parametrize("objective", ["latency", "energy", "edp"])
def test_the_table_follows_the_chips_objective(objective):
    assert cost_table(small_space(), BitFusion(objective=objective)).gap < 1e-12


def bitwidth_networks():
    """A chain, residual networks with and without convolutions in the shortcut, and shared inputs."""
    yield Workload.sequential("chain", [Layer.linear("a", 64, 32), Layer.linear("b", 32, 16), Layer.linear("c", 16, 8)])
    yield networks.resnet18(input_size=64)
    yield networks.resnet20()
    yield networks.mobilenet_v2(input_size=32)
    graph = Graph()
    x = graph.input((1, 16, 24))
    q, k, v = (graph.linear(name, x, 24, 24, rows=16) for name in "qkv")
    scores = graph.rows("softmax", "softmax", graph.matmul("scores", q, k, 16, 24, 16), 16)
    graph.linear("out", graph.matmul("mix", scores, v, 16, 16, 24), 24, 24, rows=16)
    yield graph.workload("attention")


@pytest.mark.parametrize("network", list(bitwidth_networks()), ids=lambda network: network.name)
def test_bitwidths_of_any_network_decompose(network):
    space = BitwidthSpace(network, bits=(2, 4, 8), pinned={network.mac_layers[0].name: (8, 4)})
    table = cost_table(space, CHIP, n_checks=0)
    rng = np.random.default_rng(3)
    archs = [space.sample(rng) for _ in range(10)]
    expected = np.array([simulated(space, arch) for arch in archs])
    prices = table.price(archs)
    np.testing.assert_allclose([prices[metric] for metric in METRICS], expected.T, rtol=1e-12)


def test_weight_bits_alone_decompose_too():
    space = BitwidthSpace(networks.resnet20(), (2, 4, 8), pinned={"conv1": 8}, input_bits=4)
    table, rng = cost_table(space, CHIP, n_checks=0), np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(5)]
    expected = np.array([simulated(space, arch) for arch in archs])
    np.testing.assert_allclose([table.price(archs)[metric] for metric in METRICS], expected.T, rtol=1e-12)


def test_the_pairs_of_a_chain_add_up_to_its_cost(small):
    space, table = small
    archs = all_archs(space)
    for metric in METRICS:
        first, second = table.pairs(metric)
        assert first.shape == second.shape == (16, 16)
        summed = first[archs[:, 0], archs[:, 1]] + second[archs[:, 1], archs[:, 2]]
        np.testing.assert_allclose(summed, table.price(archs)[metric], rtol=1e-12)


def test_a_block_sees_only_the_input_bits_of_the_next_one(small):
    space, table = small
    first = table.pairs("energy_j")[0]
    next_bits = np.array([option.input_bits for option in space.options])
    for bits in space.bits:
        same = first[:, next_bits == bits]
        # The pairs also hold what the last block alone costs, but not the first one's successor.
        np.testing.assert_array_equal(same, np.broadcast_to(same[:, :1], same.shape))
    assert (first[:, next_bits == 8] > first[:, next_bits == 2]).all()


def test_pairs_are_refused_where_a_term_joins_more_than_neighbours():
    table = cost_table(BitwidthSpace(networks.resnet20(), bits=(4, 8)), CHIP, n_checks=1)
    with pytest.raises(NotDecomposable, match="joins the choices"):
        table.pairs("energy_j")


@pytest.mark.parametrize("weights", [{"energy_j": 1.0}, {"latency_s": -1.0}, {"energy_j": 1e6, "bitops": -1e-6}])
def test_the_lowest_cost_is_that_of_an_enumeration(small, weights):
    space, table = small
    archs = all_archs(space)
    costs = table.price(archs)
    summed = sum(weight * costs[metric] for metric, weight in weights.items())
    arch, lowest = table.lowest(weights)
    assert lowest == pytest.approx(summed.min(), rel=1e-12)
    assert summed[(archs == arch).all(axis=1)] == pytest.approx(lowest, rel=1e-12)


def test_the_lowest_cost_is_exact_where_residual_layers_join_distant_choices():
    network = next(network for network in bitwidth_networks() if network.name == "attention")
    space = BitwidthSpace(network, bits=(2, 8), pinned={"q": 8})
    table = cost_table(space, CHIP, n_checks=1)
    assert any(np.diff(term.choices).max(initial=0) > 1 for term in table.terms)
    energies = table.price(all_archs(space))["energy_j"]
    assert table.lowest({"energy_j": 1.0})[1] == pytest.approx(energies.min(), rel=1e-12)
    assert -table.lowest({"energy_j": -1.0})[1] == pytest.approx(energies.max(), rel=1e-12)


def test_expected_cost_is_the_mean_over_all_networks(small):
    space, table = small
    policies = random_policies(space)
    archs = all_archs(space)
    probability = np.prod([policy[archs[:, i]] for i, policy in enumerate(policies)], axis=0)
    expected = table.expected(policies)
    for metric, costs in table.price(archs).items():
        assert expected[metric] == pytest.approx(probability @ costs, rel=1e-12)


def test_the_gradient_of_the_expected_cost_is_that_of_finite_differences(small):
    space, table = small
    policies = random_policies(space)
    gradients = table.expected_gradient(policies, "energy_j")
    for i, option in ((0, 0), (1, 5), (2, 15)):
        up, down = ([policy.copy() for policy in policies] for _ in range(2))
        up[i][option] += 0.1
        down[i][option] -= 0.1
        slope = (table.expected(up)["energy_j"] - table.expected(down)["energy_j"]) / 0.2  # linear in each policy
        assert gradients[i][option] == pytest.approx(slope, rel=1e-9)


def test_the_expected_cost_of_a_certain_network_is_its_cost():
    space = BitwidthSpace(networks.resnet20(), bits=(2, 4, 8))
    table = cost_table(space, CHIP, n_checks=2)
    arch = space.sample(np.random.default_rng(1))
    certain = [np.eye(3)[option] for option in arch]
    assert list(table.expected(certain).values()) == pytest.approx(simulated(space, arch), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in HARDWARE if not name.startswith("bitfusion-")])
def test_every_chip_has_a_table(name):
    chip = HARDWARE[name]()
    space = small_space()
    table = cost_table(space, chip, n_checks=3)
    assert table.metrics == METRICS and table.gap < 1e-12


def test_the_reference_model_has_a_table():
    chip = BitFusion(model="reference", mapping="channel", objective="latency")
    assert cost_table(small_space(), chip, n_checks=3).gap < 1e-12


def measured_by_name(space, costs_s):
    """A table by name, equal at all bitwidths, from seconds by name."""
    widths = list(itertools.product({*space.bits, 8}, repeat=2))
    entries = [Measurement(name, w, a, latency_s) for name, latency_s in costs_s.items() for w, a in widths]
    return LookupTable("board", tuple(entries), free_ops=("add", "pool"))


def test_layers_that_were_measured_by_name_keep_their_names():
    stages = (Stage(8, 1, 3),)  # three blocks of one shape
    space = MobileNetV2Space.preset("tiny", stages=stages, expansions=(3,), kernel_sizes=(3,), bits=(2, 8))
    names = [layer.name for layer in space.workload((0, 0, 0)).mac_layers]
    costs_s = {name: 2.0**i for i, name in enumerate(names)}
    table = cost_table(space, measured_by_name(space, costs_s))
    assert table.price([(0, 0, 0)])["latency_s"][0] == sum(costs_s.values())

    network = Workload.sequential("net", [Layer.linear("a", 8, 8), Layer.linear("b", 8, 8)])
    bitwidths = BitwidthSpace(network, bits=(2, 8))
    table = cost_table(bitwidths, measured_by_name(bitwidths, {"a": 1.0, "b": 2.0}))
    assert table.price([(0, 0, 0, 0)])["latency_s"][0] == 1.0 + 2.0


def test_a_chip_that_hands_activations_over_does_not_decompose_and_the_gap_is_said():
    class HandingOver:
        """The cost of a layer depends on whether its neighbours leave room."""

        def cost(self, layer, resident=()):
            return CHIP.cost(layer, resident)

        def costs(self, workload, resident=None):
            return CHIP.costs(workload, residency(workload, CHIP))

    with pytest.raises(NotDecomposable, match="of the simulated cost on 20 random networks") as error:
        cost_table(small_space(), HandingOver())
    # Handed-over activations skip DRAM, whose price dominates these small networks.
    assert float(re.search(r"off by up to (\S+) of", str(error.value))[1]) > 0.1


def test_a_space_without_terms_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Widths(AbstractSpace):
        choices = (Choice("width", (8, 16)),)

        def workload(self, arch):
            return Workload.sequential("net", [Layer.linear("fc", self.choices[0].options[arch[0]], 4)])

    with pytest.raises(NotDecomposable, match=r"Widths: .* method terms\(\)"):
        cost_table(Widths(), CHIP)


def test_a_layer_that_depends_on_too_many_choices_is_named():
    graph = Graph()
    x = graph.input((1, 8))
    stem = graph.linear("stem", x, 8, 8, rows=1)
    for i in range(12):
        graph.linear(f"reader{i}", stem, 8, 8, rows=1)
    with pytest.raises(NotDecomposable, match="'stem' depends on 14"):
        cost_table(BitwidthSpace(graph.workload("fan"), bits=(2, 4, 8)), CHIP)


class Slow:
    """One nanosecond a MAC, twice that for wide outputs, and no energy."""

    def cost(self, layer, resident=()):
        return LayerCost(layer.macs * 1e-9 * (2 if layer.output_bits > 4 else 1), None)


def test_a_chip_without_energy_gives_a_table_of_latency_alone():
    space = small_space()
    table = cost_table(space, Slow())
    assert table.metrics == ("latency_s", *WORKLOAD_METRICS)
    arch = space.uniform(Block(3, 3, 1, 8, 2))
    # Outputs are 2 bits wide but those of the last block and of the head, which have 8-bit readers or none.
    wide = {"blocks.2.project", "head", "classifier"}
    layers = space.workload(arch).layers
    expected = sum(layer.macs * 1e-9 * (2 if layer.name in wide else 1) for layer in layers)
    assert table.price([arch])["latency_s"][0] == pytest.approx(expected, rel=1e-12)


def test_networks_that_fit_no_tiling_cost_infinity():
    class Narrow:
        """Has no room for 8-bit weights of expansion convolutions."""

        def cost(self, layer, resident=()):
            if layer.weight_bits == 8 and layer.name.endswith("expand"):
                raise InfeasibleLayer(layer.name)
            return LayerCost(1.0, Energy(1e12, 0.0, 0.0, 0.0))

    space = small_space()
    table = cost_table(space, Narrow())
    fits, does_not = space.uniform(Block(3, 3, 0, 2, 2)), space.uniform(Block(3, 3, 0, 8, 2))
    n_layers = len(space.workload(fits).layers)
    assert table.price([fits, does_not])["energy_j"].tolist() == [n_layers, np.inf]
    certain = [np.eye(16)[option] for option in fits]
    assert table.expected(certain)["energy_j"] == n_layers
    assert table.expected(random_policies(space))["energy_j"] == np.inf


def test_operands_that_the_array_cannot_take_are_refused():
    with pytest.raises(UnsupportedLayer, match="max_bits=8"):
        cost_table(small_space(bits=(2, 16)), CHIP)


def test_small_integers_price_like_large_ones(small):
    space, table = small
    archs = all_archs(space)
    for metric in METRICS:
        np.testing.assert_array_equal(table.price(archs.astype(np.int16))[metric], table.price(archs)[metric])


def test_the_number_of_threads_changes_nothing(small):
    space, table = small
    archs = np.random.default_rng(0).integers(space.option_counts, size=(40_000, 3))
    np.testing.assert_array_equal(table.price(archs, workers=1)["energy_j"], table.price(archs, workers=3)["energy_j"])


def test_no_archs_cost_nothing(small):
    assert small[1].price(np.empty((0, 3), dtype=np.int64))["energy_j"].shape == (0,)


@pytest.mark.parametrize("bad", [[[0, 0, 16]], [[0, -1, 0]]])
def test_an_index_that_is_no_option_is_named(small, bad):
    with pytest.raises(ValueError, match=r"in row 20000"):
        small[1].price(np.concatenate([np.zeros((20_000, 3), dtype=np.int64), bad]))


@pytest.mark.parametrize("bad", [[0, 0, 0], [[0, 0]], [[0.0, 1.0, 2.0]]])
def test_archs_of_another_form_are_refused(small, bad):
    with pytest.raises(ValueError, match=r"integers of shape \(n, 3\)"):
        small[1].price(bad)


def test_policies_of_another_form_are_refused(small):
    with pytest.raises(ValueError, match="one probability for each option"):
        small[1].expected([np.ones(16)] * 2)


def test_an_unknown_metric_lists_the_known_ones(small):
    with pytest.raises(ValueError, match="latency_s, energy_j"):
        small[1].pairs("power_w")


def test_a_saved_table_is_the_same_table(small, tmp_path):
    space, table = small
    table.save(tmp_path / "table.npz")
    loaded = CostTable.load(tmp_path / "table.npz")
    assert (loaded.option_counts, loaded.metrics, loaded.gap) == (table.option_counts, table.metrics, table.gap)
    archs = all_archs(space)
    np.testing.assert_array_equal(loaded.price(archs)["energy_j"], table.price(archs)["energy_j"])


def test_a_file_that_is_no_table_is_refused(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz"):
        CostTable.load(path)
    path.write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(ValueError, match=r"other\.npz"):
        CostTable.load(path)
    np.savez(path, option_counts=np.array([{}], dtype=object))  # a pickle inside
    with pytest.raises(ValueError, match=r"other\.npz"):
        CostTable.load(path)
