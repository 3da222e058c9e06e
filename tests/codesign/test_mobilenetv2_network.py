"""The torch modules of the MobileNetV2 space are the networks that it prices."""

import dataclasses

import numpy as np
import pytest
import torch

from codesign.nets.mobilenetv2 import Block, MobileNetV2Space, Stage
from codesign.nets.mobilenetv2_network import skip
from codesign.quant import calibrate, quantized_layers
from hwmodels import BitFusion, estimate
from hwmodels.from_torch import from_torch

TINY = MobileNetV2Space.preset("tiny")
SPACES = {
    "tiny": TINY,
    "tiny, two images, odd maps": MobileNetV2Space.preset("tiny", batch=2, input_size=9),
    "cifar at width 0.25": MobileNetV2Space.preset("cifar", width=0.25),
    "widths that shrink": MobileNetV2Space.preset("tiny", stages=(Stage(16, 1, 2), Stage(8, 2, 2)), expansions=(1, 2)),
}


def image(space, n=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n or space.batch, space.in_channels, space.input_size, space.input_size, generator=generator)


def assert_the_same_workload(traced, stated):
    names = [layer.name for layer in stated.layers]
    assert [layer.name for layer in traced.layers] == names
    for mine, given in zip(traced.layers, stated.layers, strict=True):
        assert dataclasses.asdict(mine) == dataclasses.asdict(given)
    assert traced.tensors == stated.tensors and traced.batch == stated.batch


def archs(space, n, seed=0):
    rng = np.random.default_rng(seed)
    return [space.smallest, space.largest, *(space.sample(rng) for _ in range(n))]


@pytest.mark.parametrize(("name", "n"), [("tiny", 3), ("tiny, two images, odd maps", 2), ("widths that shrink", 3)])
def test_tracing_a_small_network_gives_the_workload_of_its_arch(name, n):
    space = SPACES[name]
    for arch in archs(space, n):
        assert_the_same_workload(from_torch(space.build(arch), image(space).shape), space.workload(arch))


@pytest.mark.parametrize("preset", ["imagenet", "cifar at width 0.25"])
def test_tracing_a_network_of_22_blocks_gives_the_workload_of_its_arch(preset):
    space = SPACES.get(preset) or MobileNetV2Space.preset(preset)
    arch = space.sample(np.random.default_rng(1))
    assert_the_same_workload(from_torch(space.build(arch), image(space).shape), space.workload(arch))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["imagenet", "tiny-imagenet", "cifar"])
def test_tracing_many_networks_of_22_blocks_gives_the_workloads_of_their_archs(preset):
    space = MobileNetV2Space.preset(preset)
    for arch in archs(space, 6, seed=2):
        assert_the_same_workload(from_torch(space.build(arch), image(space).shape), space.workload(arch))


def test_a_traced_network_costs_on_the_chip_what_its_arch_does():
    arch = TINY.sample(np.random.default_rng(3))
    traced = from_torch(TINY.build(arch), image(TINY).shape)
    assert estimate(traced, BitFusion()).metrics() == estimate(TINY.workload(arch), BitFusion()).metrics()


def test_layers_run_at_the_bits_of_their_block_and_the_ends_at_8():
    arch = TINY.encode({"blocks.0": Block(1, 3, 1, 2, 6), "blocks.1": Block(6, 5, 0, 4, 2)})
    bits = {name: (layer.weight_bits, layer.input_bits) for name, layer in quantized_layers(TINY.build(arch))}
    assert bits == {
        **dict.fromkeys(("stem", "head", "classifier"), (8, 8)),
        **dict.fromkeys(("blocks.0.depthwise", "blocks.0.project"), (2, 6)),
        **dict.fromkeys(("blocks.1.expand", "blocks.1.depthwise", "blocks.1.project"), (4, 2)),
    }


def test_weights_depend_on_the_seed_alone():
    arch, images = TINY.largest, image(TINY, 4)
    one, again, other = (TINY.build(arch, seed=seed) for seed in (1, 1, 2))
    for network in (one, again, other):
        calibrate(network, images)
        network.eval()
    assert torch.equal(one(images), again(images))
    assert not torch.equal(one(images), other(images))


@pytest.mark.parametrize("quantizer_bits", [2, 8])
def test_a_calibrated_network_gives_finite_scores_and_gradients_to_every_parameter(quantizer_bits):
    images = image(TINY, 16)
    for expansion in (1, 6):
        network = TINY.build(TINY.uniform(Block(expansion, 5, 1, quantizer_bits, quantizer_bits)))
        calibrate(network, images)
        network.train()
        scores = network(images)
        assert scores.shape == (16, 10) and bool(scores.isfinite().all())
        scores.square().mean().backward()
        layers = dict(quantized_layers(network))
        run = {f"{name}.weight_quantizers.{layer.weight_bits}.step" for name, layer in layers.items()}
        run |= {f"{name}.input_quantizers.{layer.input_bits}.step" for name, layer in layers.items()}
        for name, parameter in network.named_parameters():
            if name in run or not name.endswith(".step"):
                assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


def test_the_skip_averages_pads_and_drops_without_parameters():
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).reshape(2, 3, 5, 5)
    pool = torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    wider = skip(x, 4, pool)
    assert wider.shape == (2, 4, 3, 3) and not wider[:, 3].any()
    assert wider[0, 0, 0, 0] == x[0, 0, :2, :2].mean() and wider[1, 2, 2, 2] == x[1, 2, 4, 4]
    assert torch.equal(skip(x, 2, None), x[:, :2])
    assert skip(x, 3, None) is x


def test_the_skip_carries_the_quantized_input_of_the_block():
    """With a block that computes nothing, what leaves it is its input on the grid of its input quantizer."""
    network = TINY.build(TINY.uniform(Block(3, 3, 1, 8, 2)))
    calibrate(network, image(TINY, 16))
    block = network.blocks[0].eval()
    torch.nn.init.zeros_(block.project.weight)
    x = torch.randn(4, 8, 8, 8)
    assert torch.equal(block(x), block.expand.quantized_input(x))
    assert len(block(x).unique()) <= 2**2
