"""Cursor: two neighbours and their gradient, also where it is printed as 0; the penalty; the paper's preset."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_task import at_work, problem, task
from torch import nn
from toys import Roofline

from codesign.quant import calibrate, quantize
from codesign.space import BitwidthSpace
from codesign.strategies import Cursor
from codesign.strategies.relaxed_network import RelaxedNetwork, mixtures_of
from hwmodels.from_torch import from_torch

#: As in the paper: weights alone, from 1 to 8 bits, by DoReFa; all else in float.
PAPER = {"bits": tuple(range(1, 9)), "input_bits": 32, "pinned": 32, "quantizer": "dorefa"}


@pytest.fixture(scope="module")
def paper():
    return problem(chip=Roofline(), **PAPER)


def relaxation(strategy, cursors, space):
    return strategy.relaxation(torch.tensor(cursors).double(), space, 0.0, np.random.default_rng(0))


def space_of(bits, n_layers=3):
    net = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(n_layers)))
    return BitwidthSpace(from_torch(net, (1, 4)), bits, input_bits=8)


@pytest.mark.parametrize("strategy", [Cursor(), Cursor.paper()])
def test_a_cursor_runs_at_its_two_neighbours_in_shares_of_how_near_they_are(strategy):
    shares, takes_part = relaxation(strategy, [2.5, 4.0, 7.0], space_of((2, 4, 8)))
    assert shares.numpy() == pytest.approx(np.array([[0.75, 0.25, 0], [0, 1, 0], [0, 0.25, 0.75]]))
    assert takes_part.tolist() == [[True, True, False], [False, True, True], [False, True, True]]
    shares, takes_part = relaxation(strategy, [1.0, 8.0, 3.7], space_of(tuple(range(1, 9))))
    assert shares[0, 0] == 1 and shares[1, 7] == 1 and shares[2, 2:4].tolist() == pytest.approx([0.3, 0.7])
    assert takes_part.nonzero()[:, 1].tolist() == [0, 1, 6, 7, 2, 3]
    assert shares.sum(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_with_one_neighbour_it_runs_at_the_nearest_one():
    space = space_of((2, 4, 8))
    for strategy in (Cursor(neighbours=1), replace(Cursor.paper(), neighbours=1)):
        shares = relaxation(strategy, [2.9, 3.1, 6.1], space).shares
        assert shares.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
        assert strategy.likeliest(np.array([2.9, 3.1, 6.1]), space) == (0, 1, 2)


@pytest.mark.parametrize("cursor", [1.0, 3.0, 4.0, 7.0, 8.0, 5.3])
@pytest.mark.parametrize(
    ("neighbours", "gradient"), [(2, "difference"), (1, "difference"), (2, "printed"), (1, "printed")]
)
def test_the_gradient_is_the_difference_of_the_two_outputs_or_none_where_it_is_printed_so(neighbours, gradient, cursor):
    """A linear layer, so the output is linear in the weights: its derivative is O_(a1 + 1) - O_a1."""
    layer = nn.Linear(6, 3)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).double()
    network = quantize(nn.Sequential(layer), {"0": (8, 32)}, bitwidths=(*range(1, 9), 32), weight_quantizer="dorefa")
    calibrate(network, x.float())
    network.double()
    space = BitwidthSpace(from_torch(nn.Sequential(layer), (1, 6)), tuple(range(1, 9)), input_bits=32)
    relaxed, strategy = RelaxedNetwork(network, space), Cursor(neighbours=neighbours, gradient=gradient)
    c = torch.tensor([cursor], dtype=torch.float64, requires_grad=True)
    output = relaxed(x, mixtures_of(space, strategy.relaxation(c, space, 0.0, np.random.default_rng(0))))
    along = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).double()
    (found,) = torch.autograd.grad((output * along).sum(), c, materialize_grads=True)

    layer = network.get_submodule("0")
    low = min(math.floor(cursor), 7)
    outputs = [
        nn.functional.linear(x, layer.weight_quantizers[str(b)](layer.weight), layer.bias) for b in (low, low + 1)
    ]
    difference = ((outputs[1] - outputs[0]) * along).sum()
    whole = cursor == round(cursor)
    if gradient == "printed" and (neighbours == 1 or whole):
        assert found.item() == 0
    else:
        assert abs(difference.item()) > 1e-3 and found.item() == pytest.approx(difference.item(), rel=1e-9)
    d2 = cursor - low if neighbours == 2 else round(cursor - low)
    assert torch.allclose(output, (1 - d2) * outputs[0] + d2 * outputs[1])


def one_sided(loss, at, eps=1e-6):
    value = loss(at)
    return np.array([(loss(at + eps * row) - value) / eps for row in np.eye(len(at))])


def test_at_whole_cursors_the_gradient_of_the_loss_is_that_upwards_and_as_printed_it_is_zero(paper):
    """Equation 7: at 4 bits, where the paper begins, the cross entropy has no say."""
    images, labels = paper.supernet.data.search.images[:16].double(), paper.supernet.data.search.labels[:16]
    gradients = {}
    for name, strategy in (("fixed", Cursor()), ("paper", Cursor.paper())):
        step = at_work(paper, strategy)
        step.network.double()

        def loss(at, step=step):
            point = torch.from_numpy(at.copy()).requires_grad_()
            return step.relaxed_loss(point, images, labels, np.random.default_rng(0))

        assert (step.point == 4).all() and len(step.point) == 3
        gradients[name] = loss(step.point)[1]
        expected = one_sided(lambda at: loss(at)[0], step.point)
        between = step.point + np.array([0.3, -0.6, 1.2])
        assert loss(between)[1] == pytest.approx(one_sided(lambda at: loss(at)[0], between), rel=1e-3, abs=1e-6)
    assert gradients["fixed"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert np.abs(gradients["fixed"]).min() > 1e-6
    assert (gradients["paper"] == 0).all()


def test_as_printed_a_cursor_at_one_bit_is_held_there_whatever_that_costs(paper):
    """The penalty pushes down and the cross entropy has the gradient 0; the fixed form lets it go."""
    ends = {}
    for name, strategy in (("fixed", Cursor(penalty=0.01, balance=None)),
                           ("paper", replace(Cursor.paper(), penalty=0.01, balance=None))):  # fmt: skip
        step = at_work(paper, replace(strategy, first_bits=1.0, steps=15, steps_per_offer=15, learning_rate=0.1))
        step.advance()
        ends[name] = step.point
    assert (ends["paper"] == 1).all() and (ends["fixed"] > 1.1).any()


def test_as_printed_one_neighbour_sees_the_penalty_alone_and_goes_to_one_bit(paper):
    """The paper's Figure 1, whose text says that this variant ends at one bit for all layers."""
    strategy = replace(Cursor.paper(), neighbours=1, steps=40, steps_per_offer=40, learning_rate=0.2)
    printed, fixed = at_work(paper, strategy), at_work(paper, replace(strategy, gradient="difference"))
    printed.advance()
    fixed.advance()
    assert (printed.point == 1).all() and fixed.point.max() > 2


# --- the penalty -----------------------------------------------------------------------------------------------------


def test_the_objective_is_the_loss_and_the_mean_bits_to_a_power():
    loss, bits = torch.tensor([0.6, 3.0], dtype=torch.float64)

    def objective(limited=False, **fields):
        return Cursor(**fields).objective(loss, bits, torch.zeros(3), limited).item()

    assert objective(balance=None) == pytest.approx(0.6 + 0.25 * 3**0.3)
    assert objective() == pytest.approx(0.6 + 0.25 * 3**0.3) and 0.5 < 0.6 / (0.25 * 3**0.3) < 2
    assert objective(penalty=0.9) == pytest.approx(0.6 + 0.6 / 0.5)  # no more than twice the loss
    assert objective(penalty=0.01) == pytest.approx(0.6 + 0.6 / 2)  # no less than half of it
    assert objective(penalty=0.9, power=1.0, balance=None) == pytest.approx(0.6 + 0.9 * 3)
    assert objective(limited=True) == 0.6 == objective(penalty=0)
    assert objective(limited=True, penalty=0.25) == pytest.approx(0.6 + 0.25 * 3**0.3)
    assert Cursor.paper().objective(loss, bits, torch.zeros(3), True).item() == pytest.approx(0.6 + 0.25 * 3**0.3)


def test_its_gradient_is_that_of_equation_4_where_cursors_are_whole_too(paper):
    step = at_work(paper, Cursor(penalty=0.3, balance=None))
    sizes = np.array([layer.weight_count for layer in paper.space.network.mac_layers[:3]])
    cursors = torch.tensor([4.0, 2.7, 1.0], dtype=torch.float64, requires_grad=True)
    policies = step.strategy.policies(cursors, paper.space, 0.0)
    zero = torch.zeros((), dtype=torch.float64)
    found = step.strategy.objective(zero, step.costs.in_bits(policies), cursors, False)
    mean = sizes @ np.array([4.0, 2.7, 1.0]) / sizes.sum()
    (gradient,) = torch.autograd.grad(found, cursors)
    assert found.item() == pytest.approx(0.3 * mean**0.3)
    assert gradient.numpy() == pytest.approx(0.3 * 0.3 * mean**-0.7 * sizes / sizes.sum())


def test_any_sum_over_the_table_has_an_expectation_that_is_linear_between_two_bitwidths():
    p = problem({"latency_s": 0.5}, bits=(2, 4, 8))
    step = at_work(p, Cursor(cost="energy_j"))
    assert len(step.point) == 6  # of inputs too

    def in_bits(cursor):
        cursors = torch.full((6,), 4.0, dtype=torch.float64)
        cursors[1] = cursor
        policies = step.strategy.policies(cursors, p.space, 0.0)
        return step.costs.in_bits(policies).item(), step.costs.usages(policies).item()

    low, between, high = (np.array(in_bits(cursor)) for cursor in (4.0, 5.0, 8.0))
    assert between == pytest.approx(low + (high - low) / 4) and (low < high).all()
    simulated = p.price(p.space.uniform(4)).metrics()
    reference = p.price(p.space.uniform(8)).metrics()
    assert low[0] == pytest.approx(8 * simulated["energy_j"] / reference["energy_j"])
    assert low[1] == pytest.approx(2 * simulated["latency_s"] / reference["latency_s"])


# --- the course ------------------------------------------------------------------------------------------------------


def test_cursors_start_at_4_bits_stay_in_range_and_slow_down_on_a_cosine():
    space = space_of((2, 3))
    assert Cursor().first_point(space).tolist() == [3, 3, 3]
    assert Cursor(first_bits=2.5).first_point(space).tolist() == [2.5, 2.5, 2.5]
    assert Cursor().inside(np.array([1.0, 2.2, 9.0]), space).tolist() == [2, 2.2, 3]
    strategy = Cursor(learning_rate=0.1, last_learning_rate=0.02)
    assert [strategy.rate(t) for t in (0, 0.5, 1, 2)] == pytest.approx([0.1, 0.06, 0.02, 0.02])


def test_what_is_offered_are_rounded_cursors_and_then_either_neighbour_of_each():
    step = at_work(problem(bits=(2, 4, 8)), Cursor())
    step.point[:] = [2.5, 3.5, 7.0, 4.0, 5.0, 2.0]
    first, *others = step.offer(5)
    assert first == (0, 1, 2, 1, 1, 0)
    assert all(arch[0] < 2 and arch[1] < 2 and arch[2] > 0 and arch[3:] in ((1, 1, 0), (1, 2, 0)) for arch in others)


def test_weights_alone_are_searched_where_inputs_are_pinned(paper):
    assert len(at_work(paper, Cursor()).point) == 3
    step = at_work(paper, Cursor(steps=2, steps_per_offer=2))
    step.advance()
    layer = step.network.network.get_submodule("3")
    assert (layer.weight_bits, layer.input_bits) == (None, 32)
    of = task(input_bits=4)
    layer = RelaxedNetwork(of.network, of.space).network.get_submodule("3")
    assert (layer.weight_bits, layer.input_bits) == (None, 4)


def test_the_preset_has_what_is_printed():
    strategy = Cursor.paper()
    assert (strategy.gradient, strategy.penalty, strategy.power, strategy.balance) == ("printed", 0.25, 0.3, (0.5, 2.0))
    assert (strategy.first_bits, strategy.last_learning_rate, strategy.last_weight_learning_rate) == (4.0, 1e-4, 1e-3)
    assert Cursor().gradient == "difference" and Cursor().penalty is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"neighbours": 3}, "neighbours must be 1 or 2, got 3"),
        ({"gradient": "ste"}, "gradient must be difference or printed, got ste"),
        ({"first_bits": 0.5}, "first_bits must be a bitwidth of at least 1, got 0.5"),
        ({"penalty": -0.1}, "penalty must not be negative"),
        ({"power": 0.0}, "power must be positive"),
        ({"balance": (2.0, 0.5)}, r"balance must be two ratios that rise, got \(2.0, 0.5\)"),
        ({"last_learning_rate": 1.0}, "last_learning_rate must be from 0 to learning_rate=0.05, got 1.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"Cursor: {message}"):
        Cursor(**fields)
