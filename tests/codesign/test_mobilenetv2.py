"""The MobileNetV2 space: its options, its shapes, and the networks that it stands for."""

import numpy as np
import pytest

from codesign.nets.mobilenetv2 import PRESETS, Block, MobileNetV2Space, Stage
from hwmodels import BitFusion
from hwmodels.cost import estimate


def by_name(space, block_or_arch):
    """Layers of a network by name; of the uniform one for a block."""
    arch = space.uniform(block_or_arch) if isinstance(block_or_arch, Block) else block_or_arch
    workload = space.workload(arch)
    return {layer.name: layer for layer in workload.layers}


def test_the_space_of_mp_nas_has_22_blocks_of_288_options():
    space = MobileNetV2Space.preset("imagenet")
    assert space.option_counts == (2 * 3 * 3 * 4 * 4,) * (1 + 2 + 4 + 4 + 4 + 5 + 2)
    assert space.size == 288**22


def test_stages_have_the_channels_strides_and_counts_of_mp_nas():
    shapes = MobileNetV2Space.preset("imagenet").block_shapes
    channels = [16] + [24] * 2 + [32] * 4 + [64] * 4 + [128] * 4 + [160] * 5 + [256] * 2
    assert [shape.out_channels for shape in shapes] == channels
    assert [shape.in_channels for shape in shapes] == [32, *channels[:-1]]
    strides = {0: 2, 3: 2, 7: 2, 15: 2}  # first blocks of the stages of 16, 32, 64 and 160 channels
    assert [shape.stride for shape in shapes] == [strides.get(i, 1) for i in range(22)]
    assert [shape.size for shape in shapes] == [112] + [56] * 3 + [28] * 4 + [14] * 8 + [7] * 6


def test_for_cifar_the_maps_shrink_in_the_stages_of_32_64_and_160_channels():
    shapes = MobileNetV2Space.preset("cifar").block_shapes
    assert [i for i, shape in enumerate(shapes) if shape.stride == 2] == [3, 7, 15]
    assert (shapes[0].size, shapes[-1].size) == (32, 4)


def test_stem_head_and_classifier_have_8_bits():
    layers = by_name(MobileNetV2Space.preset("imagenet"), Block(6, 3, 1, 2, 4))
    for name in ("stem", "head", "classifier"):
        assert (layers[name].weight_bits, layers[name].input_bits) == (8, 8)
    assert layers["stem"].in_size == (224, 224) and layers["stem"].out_size == (112, 112)
    assert (layers["head"].in_channels, layers["head"].out_channels) == (256, 1280)
    assert (layers["classifier"].in_channels, layers["classifier"].out_channels) == (1280, 1000)


def test_a_block_expands_filters_each_channel_and_projects():
    layers = by_name(MobileNetV2Space.preset("imagenet"), Block(6, 5, 0, 4, 8))
    expand, depthwise, project = (layers[f"blocks.3.{role}"] for role in ("expand", "depthwise", "project"))
    assert (expand.in_channels, expand.out_channels, expand.kernel_size) == (24, 6 * 24, (1, 1))
    assert (depthwise.groups, depthwise.out_channels, depthwise.kernel_size) == (6 * 24, 6 * 24, (5, 5))
    assert depthwise.out_size == (28, 28)
    assert (project.in_channels, project.out_channels) == (6 * 24, 32)
    assert all((layer.weight_bits, layer.input_bits) == (4, 8) for layer in (expand, depthwise, project))


def test_expansion_1_has_no_expansion_convolution():
    layers = by_name(MobileNetV2Space.preset("imagenet"), Block(1, 3, 0, 8, 8))
    assert "blocks.0.expand" not in layers
    assert layers["blocks.3.depthwise"].in_channels == 24


def test_no_skip_leaves_no_addition():
    layers = by_name(MobileNetV2Space.preset("imagenet"), Block(3, 3, 0, 8, 8))
    assert all(layer.is_mac or name == "pool" for name, layer in layers.items())


def test_every_block_can_have_a_skip_and_it_averages_where_the_stride_is_2():
    layers = by_name(MobileNetV2Space.preset("imagenet"), Block(3, 3, 1, 8, 8))
    assert [name for name in layers if name.endswith(".add")] == [f"blocks.{i}.add" for i in range(22)]
    assert [name for name in layers if name.endswith(".pool")] == [f"blocks.{i}.pool" for i in (0, 3, 7, 15)]
    assert layers["blocks.0.pool"].out_channels == 16  # the first 16 of 32 channels stay
    assert layers["blocks.3.pool"].out_channels == 24  # the 8 added channels are zero


def test_what_leaves_a_block_is_stored_at_the_next_blocks_input_bits():
    space = MobileNetV2Space.preset("cifar")
    options = [Block(6, 3, i % 2, 8, (2, 4, 6, 8)[i % 4]) for i in range(22)]
    arch = tuple(space.options.index(option) for option in options)
    workload = space.workload(arch)
    layers = {layer.name: layer for layer in workload.layers}
    for i in range(22):
        leaves = layers[f"blocks.{i}.add"] if options[i].skip else layers[f"blocks.{i}.project"]
        assert leaves.output_bits == (options[i + 1].input_bits if i < 21 else 8)
        assert layers[f"blocks.{i}.expand"].output_bits == options[i].input_bits
        if options[i].skip:
            added = layers[f"blocks.{i}.add"]
            assert {added.input_bits, added.weight_bits} <= {options[i].input_bits, leaves.output_bits}
    assert layers["stem"].output_bits == options[0].input_bits


def test_every_activation_is_written_once_and_read_by_someone():
    space = MobileNetV2Space.preset("cifar")
    workload = space.workload(space.uniform(Block(6, 3, 1, 8, 4)))
    producers = [tensor.producer for tensor in workload.tensors if tensor.producer]
    assert sorted(producers) == sorted(layer.name for layer in workload.layers)
    assert [tensor.producer for tensor in workload.tensors if not tensor.consumers] == ["classifier"]
    # What enters a block of stride 1 is read by its first convolution and by its addition.
    entering = next(tensor for tensor in workload.tensors if tensor.producer == "blocks.0.add")
    assert set(entering.consumers) == {("blocks.1.expand", "input"), ("blocks.1.add", "weight")}


def test_all_options_of_a_block_are_different_networks():
    space = MobileNetV2Space.preset("tiny")
    networks = {space.workload((option, 0)).layers for option in range(len(space.options))}
    assert len(networks) == 288


def test_the_macs_of_the_widest_network_are_those_of_the_formula():
    space = MobileNetV2Space.preset("imagenet")
    macs = 9 * 3 * 32 * 112**2 + 256 * 1280 * 7**2 + 1280 * 1000
    for _, c_in, c_out, size, stride in space.block_shapes:
        hidden, out = 6 * c_in, size // stride
        macs += c_in * hidden * size**2 + hidden * 49 * out**2 + hidden * c_out * out**2
    assert space.workload(space.uniform(Block(6, 7, 1, 8, 8))).macs == macs


@pytest.mark.parametrize(("width", "channels"), [(0.25, (8, 8, 64)), (0.5, (16, 8, 128)), (2.0, (64, 32, 512))])
def test_width_scales_channels_to_multiples_of_eight(width, channels):
    space = MobileNetV2Space.preset("imagenet", width=width)
    shapes = space.block_shapes
    assert (shapes[0].in_channels, shapes[0].out_channels, shapes[-1].out_channels) == channels
    head = by_name(space, Block(1, 3, 0, 2, 2))["head"]
    assert head.out_channels == 1280 * max(1, width)


def test_half_the_depth_is_eleven_blocks_and_no_stage_is_empty():
    space = MobileNetV2Space.preset("cifar", width=0.25, depth=0.5)
    assert len(space.choices) == 11
    assert len(MobileNetV2Space.preset("cifar", depth=0.01).choices) == 7


def test_batch_multiplies_macs_and_the_report_counts_images():
    one, four = (MobileNetV2Space.preset("tiny", batch=batch) for batch in (1, 4))
    block = Block(3, 3, 1, 8, 8)
    report = estimate(four.workload(four.uniform(block)), BitFusion())
    assert report.workload.macs == 4 * one.workload(one.uniform(block)).macs
    assert report.frames_per_s == 4 / report.latency_s


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_networks_that_the_chip_runs(preset):
    space = MobileNetV2Space.preset(preset)
    rng = np.random.default_rng(0)
    assert estimate(space.workload(space.sample(rng)), BitFusion()).energy_j > 0


def test_odd_maps_are_halved_rounding_up_on_both_branches():
    space = MobileNetV2Space(input_size=7, stem_stride=1, stages=(Stage(8, 2, 1), Stage(16, 1, 1)))
    layers = by_name(space, Block(1, 3, 1, 8, 8))
    assert layers["blocks.0.pool"].out_size == layers["blocks.0.project"].out_size == (4, 4)
    assert layers["blocks.1.depthwise"].in_size == (4, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width must be positive"),
        ({"kernel_sizes": (3, 4)}, "kernel_sizes must be odd"),
        ({"bits": (2, 33)}, "bits must be from 1 to 32"),
        ({"skips": (2,)}, "skips must be 0 or 1"),
        ({"expansions": ()}, "expansions must be positive, at least one"),
        ({"stages": (Stage(16, 0, 1),)}, "stages must have positive numbers"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        MobileNetV2Space(**fields)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="imagenet, tiny-imagenet, cifar, tiny"):
        MobileNetV2Space.preset("mnist")
