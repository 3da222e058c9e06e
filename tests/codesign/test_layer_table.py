import numpy as np
import pytest

from codesign.layer_table import layer_table
from hwmodels import BitFusion, Energy, LayerCost, estimate, networks

NET = networks.resnet20()


class LatencyOnly:
    """A chip whose energy is unknown."""

    def cost(self, layer, resident=()):
        return LayerCost(latency_s=layer.weight_bits * 1e-6 + layer.input_bits * 1e-3, energy=None)


class Priced:
    def cost(self, layer, resident=()):
        return LayerCost(latency_s=layer.macs, energy=Energy(layer.weight_bits, layer.input_bits, 0, 0))


def test_an_entry_is_the_cost_of_the_layer_at_those_bits():
    table = layer_table(NET, Priced(), weight_bits=(2, 4), input_bits=(3, 5, 7))
    fc = table.layer.index("fc")
    assert table.energy_pj[fc].tolist() == [[w + a for a in (3, 5, 7)] for w in (2, 4)]
    assert (table.latency_s[fc] == NET.layers[fc].macs).all()


@pytest.mark.parametrize(("w", "a"), [(2, 2), (4, 8), (8, 4)])
def test_a_sum_over_the_layers_is_the_network_at_those_bits(w, a):
    table = layer_table(NET, BitFusion(), (2, 4, 8), (2, 4, 8))
    report = estimate(NET.with_bits(w, a), BitFusion())
    at = (slice(None), table.weight_bits.index(w), table.input_bits.index(a))
    assert table.latency_s[at].sum() == pytest.approx(report.latency_s)
    assert table.energy_pj[at].sum() * 1e-12 == pytest.approx(report.energy_j)


def test_energy_that_is_unknown_is_not_zero(tmp_path):
    table = layer_table(NET, LatencyOnly(), (2,), (8,))
    table.save(tmp_path / "t.npz")
    assert table.energy_pj is None
    assert "energy_pj" not in np.load(tmp_path / "t.npz")


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.npz, \.csv, \.json.*t\.xlsx"):
        layer_table(NET, LatencyOnly(), (2,), (8,)).save(tmp_path / "t.xlsx")
