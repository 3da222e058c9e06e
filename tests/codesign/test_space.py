import numpy as np
import pytest
from toys import network

from codesign.space import BitwidthSpace, Choice


def test_each_mac_layer_has_a_choice_of_weight_bits_and_one_of_input_bits():
    space = BitwidthSpace(network(2), bits=(8, 2, 4))
    assert [choice.name for choice in space.choices] == [
        "fc0.weight_bits", "fc0.input_bits", "fc1.weight_bits", "fc1.input_bits",
    ]  # fmt: skip
    assert space.choices[0].options == (2, 4, 8)
    assert space.size == 3**4


def test_the_size_is_exact_beyond_floats():
    assert BitwidthSpace(network(40), (2, 4, 8)).size == 3**80


def test_the_workload_has_the_bits_of_the_arch_and_stores_activations_at_what_the_consumer_asks():
    space = BitwidthSpace(network(3))
    layers = space.workload((0, 1, 2, 0, 1, 2)).layers
    assert [(layer.weight_bits, layer.input_bits) for layer in layers] == [(2, 4), (8, 2), (4, 8)]
    assert [layer.output_bits for layer in layers[:2]] == [2, 8]


def test_pinned_layers_have_no_choice_and_keep_their_bits():
    space = BitwidthSpace(network(3), pinned={"fc0": 8, "fc2": (4, 8)})
    assert space.size == 3**2
    assert space.layer_bits((0, 0)) == {"fc0": (8, 8), "fc1": (2, 2), "fc2": (4, 8)}


def test_with_fixed_input_bits_only_weight_bits_are_chosen():
    space = BitwidthSpace(network(3), (2, 4, 8), pinned={"fc2": 8}, input_bits=6)
    assert [choice.name for choice in space.choices] == ["fc0.weight_bits", "fc1.weight_bits"]
    assert space.layer_bits((0, 1)) == {"fc0": (2, 6), "fc1": (4, 6), "fc2": (8, 8)}
    assert space.bitwidths == {"fc0": (2, 4, 6, 8), "fc1": (2, 4, 6, 8), "fc2": (8,)}
    assert [layer.input_bits for layer in space.workload((0, 1)).mac_layers] == [6, 6, 8]
    with pytest.raises(ValueError, match="bits must be from 1 to"):
        BitwidthSpace(network(3), (2, 4, 8), input_bits=64)


def test_encode_undoes_decode():
    space = BitwidthSpace(network(3))
    rng = np.random.default_rng(0)
    for _ in range(20):
        arch = space.sample(rng)
        assert space.encode(space.decode(arch)) == arch
    assert space.decode(space.uniform(4)) == dict.fromkeys(space.decode(space.uniform(8)), 4)


def test_sampling_is_uniform_and_seeded():
    space = BitwidthSpace(network(2))
    draws = np.array([space.sample(np.random.default_rng(7)) for _ in range(2)])
    assert (draws[0] == draws[1]).all()
    rng = np.random.default_rng(0)
    n = 3000
    counts = np.array(
        [np.bincount(column, minlength=3) for column in np.array([space.sample(rng) for _ in range(n)]).T]
    )
    assert (abs(counts - n / 3) < 5 * np.sqrt(n * (1 / 3) * (2 / 3))).all()


@pytest.mark.parametrize("arch", [(0, 0, 0), (0, 0, 0, 3), (0, 0, 0, -1), (0, 0, 0, 0.5)])
def test_an_arch_that_is_none_is_refused(arch):
    with pytest.raises(ValueError, match="index"):
        BitwidthSpace(network(2)).decode(arch)


def test_bad_choices_and_bits_are_refused():
    with pytest.raises(ValueError, match="at least one option"):
        Choice("bits", ())
    with pytest.raises(ValueError, match="must differ"):
        Choice("bits", (2, 2))
    with pytest.raises(ValueError, match="from 1 to 32, got 64"):
        BitwidthSpace(network(), bits=(8, 64))
    with pytest.raises(ValueError, match="got fc9; the layers are fc0"):
        BitwidthSpace(network(), pinned={"fc9": 8})
    with pytest.raises(ValueError, match="something to choose"):
        BitwidthSpace(network(1), pinned={"fc0": 8})
    with pytest.raises(ValueError, match=r"unknown: oops; missing: fc0.input_bits"):
        BitwidthSpace(network(1)).encode({"fc0.weight_bits": 8, "oops": 8})
    with pytest.raises(ValueError, match="must be one of"):
        BitwidthSpace(network(1)).uniform(16)
