"""Data, training and the accuracy of candidates."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from codesign.accuracy import evaluate
from codesign.data import N_FOLDS, Images, digits
from codesign.describe import describe
from codesign.nets.digits import BLOCKS, digits_net
from codesign.quant import calibrate, quantize, quantized_layers, recalibrate_batchnorm, set_bits
from codesign.quantized_accuracy import QuantizedAccuracy
from codesign.space import BitwidthSpace
from codesign.train import shift, train
from hwmodels.from_torch import from_torch


@pytest.fixture(scope="module")
def data():
    return digits(0)


def rows(images):
    return {image.numpy().tobytes() for image in images.images}


def test_training_search_and_test_sets_are_disjoint_and_cover_all_digits():
    for fold in range(N_FOLDS):
        parts = digits(3, fold)
        assert sum(len(part.labels) for part in parts) == 1797
        assert not rows(parts.train) & rows(parts.search) and not rows(parts.train) & rows(parts.test)
        assert not rows(parts.search) & rows(parts.test)
        assert len(parts.test.labels) in (359, 360)


def test_the_test_sets_of_the_folds_are_disjoint_and_cover_all_digits():
    tests = [rows(digits(3, fold).test) for fold in range(N_FOLDS)]
    assert sum(map(len, tests)) == len(set.union(*tests)) == 1797


def test_the_split_is_seeded_and_its_pixels_are_from_0_to_1(data):
    assert describe(digits(0)) == describe(data) != describe(digits(1))
    assert data.train.images.min() == 0 and data.train.images.max() == 1
    assert data.train.images.dtype == torch.float32 and data.train.images.shape[1:] == (1, 8, 8)
    with pytest.raises(ValueError, match="fold=5"):
        digits(0, 5)


def test_a_shift_moves_the_whole_batch_by_at_most_a_pixel():
    image = torch.zeros(2, 1, 8, 8)
    image[:, :, 3, 4] = 1
    seen = {tuple(torch.nonzero(shift(image, np.random.default_rng(s))[0, 0])[0].tolist()) for s in range(200)}
    assert seen == {(3 + dy, 4 + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}


def test_the_network_is_a_mobilenet_v2_with_depthwise_layers_and_residual_additions():
    workload = from_torch(digits_net(0).eval(), (1, 1, 8, 8))
    depthwise = [layer for layer in workload.layers if layer.groups > 1]
    assert [layer.groups for layer in depthwise] == [layer.in_channels for layer in depthwise]
    assert len(depthwise) == len(BLOCKS)
    assert sum(layer.op == "add" for layer in workload.layers) == 3
    assert all(layer.weight_count == layer.parameter_count for layer in workload.mac_layers)


def test_its_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = digits_net(7).state_dict()
    torch.manual_seed(2)
    second, other = digits_net(7).state_dict(), digits_net(8).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


def test_training_learns_and_is_repeatable(data):
    results = []
    for _ in range(2):
        net = digits_net(0)
        epochs = []
        train(net, data.train, 3, 0.01, seed=5, progress=lambda epochs=epochs: epochs.append(1))
        assert len(epochs) == 3
        recalibrate_batchnorm(net, data.train.images)  # few steps leave the running statistics behind the weights
        results.append(evaluate(net, data.search))
    assert results[0] == results[1]
    assert results[0]["error"] < 0.3  # chance is 0.9


class WithAuxiliaryHead(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        scores = self.network(x)
        return (scores, scores.detach() - 1) if self.training else scores


def test_of_several_outputs_the_first_one_is_trained(data):
    plain, several = digits_net(0), WithAuxiliaryHead(digits_net(0))
    assert train(plain, data.search, 1, 0.01, 0)[0]["loss"] == train(several, data.search, 1, 0.01, 0)[0]["loss"]
    assert all(map(torch.equal, plain.parameters(), several.parameters()))


def test_training_with_quantizers_in_the_loop_mends_what_few_bits_break(data):
    net = digits_net(0)
    train(net, data.train, 3, 0.01, seed=5)
    q = quantize(net, 3)
    calibrate(q, data.train.images[:256])
    steps = {name: layer.input_quantizers["3"].step.item() for name, layer in quantized_layers(q)}
    before = evaluate(q, data.search)["loss"]
    train(q, data.train, 2, 0.01, seed=5, bits=lambda rng: 3)
    assert evaluate(q, data.search)["loss"] < before
    assert all(layer.input_quantizers["3"].step.item() != steps[name] for name, layer in quantized_layers(q))


def test_a_loss_that_is_not_a_number_stops_training(data):
    broken = Images(data.train.images * torch.nan, data.train.labels)
    with pytest.raises(FloatingPointError, match="in epoch 0"):
        train(digits_net(0), broken, 1, 0.01, seed=0)


def test_error_and_loss_are_those_of_their_formulas():
    scores = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    found = evaluate(torch.nn.Identity(), Images(scores, torch.tensor([0, 0, 0])))
    assert found["error"] == pytest.approx(1 / 3)
    losses = [np.log(np.exp(row).sum()) - row[0] for row in scores.numpy()]
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-6)


@pytest.fixture(scope="module")
def accuracy(data):
    net = digits_net(0)
    q = quantize(net, 8, (2, 4, 8))
    calibrate(q, data.train.images[:64])
    space = BitwidthSpace(from_torch(net.eval(), (1, 1, 8, 8)))
    return QuantizedAccuracy(q, space, data.train.images[:64], Images(data.search.images[:64], data.search.labels[:64]))


def test_the_layers_of_the_space_are_those_of_the_quantized_network(accuracy):
    assert list(accuracy.space.searched) == [name for name, _ in quantized_layers(accuracy.network)]


def test_a_candidate_is_scored_at_its_own_bits_whatever_came_before_and_wherever(accuracy):
    rng = np.random.default_rng(0)
    archs = [accuracy.space.sample(rng) for _ in range(4)]
    first = [accuracy(arch) for arch in archs]
    fresh = QuantizedAccuracy(accuracy.network, accuracy.space, accuracy.statistics, accuracy.data)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fresh, reversed(archs))) == first[::-1]
    assert pickle.loads(pickle.dumps(accuracy))(archs[0]) == first[0]
    assert len({score["loss"] for score in first}) == 4


def test_a_candidate_is_evaluated_once(accuracy):
    arch = accuracy.space.uniform(4)
    first = accuracy(arch)
    accuracy._local.scores = None  # it would fail if it ran again
    assert accuracy(arch) == first
    del accuracy._local.scores


def test_the_description_tells_other_weights_and_other_images(accuracy, data):
    q = quantize(digits_net(1), 8, (2, 4, 8))
    other = QuantizedAccuracy(q, accuracy.space, accuracy.statistics, accuracy.data)
    assert describe(other)["network"] != describe(accuracy)["network"]
    assert describe(other)["data"] == describe(accuracy)["data"]
    set_bits(accuracy.network, 2)
    assert describe(accuracy) == describe(accuracy)
