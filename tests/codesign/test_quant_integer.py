"""Quantized networks on integers against fake-quantized ones and against sums written out."""

import itertools

import pytest
import torch
from torch import nn

from codesign.quant import QUANTIZERS, calibrate, quantize, quantized_layers, recalibrate_batchnorm, set_bits
from codesign.quant.convert import mode
from codesign.quant.integer import IntegerConv2d, IntegerLinear, to_integers

IMAGES = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(1))


class Small(nn.Module):
    """MobileNetV2 in small: an inverted residual with a linear bottleneck, so later inputs are signed."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.expand, self.depthwise = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 5, padding=2, groups=24)
        self.project, self.project_norm = nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, dilation=2, padding="valid", groups=4)
        self.circular = nn.Conv2d(16, 8, 3, padding=1, padding_mode="circular")
        self.classifier = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.project_norm(self.project(self.depthwise(self.expand(x).clamp(0, 6)).clamp(0, 6)))
        return self.classifier(self.circular(self.grouped(x)).mean(dim=(2, 3)))


def small(bits=4, **options):
    torch.manual_seed(0)
    net = quantize(Small(), bits, **options)
    calibrate(net, IMAGES)
    recalibrate_batchnorm(net, IMAGES)
    return net.eval()


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_outputs_are_the_fake_quantized_ones_to_rounding(quantizer, per_channel):
    for bits in (1, (8, 3), (2, 8)):
        net = small(bits, quantizer=quantizer, per_channel=per_channel)
        for expected, layer in inputs_and_outputs(net):  # layer by layer: single precision, relative to the largest
            x, y = expected
            with torch.no_grad():
                difference = (to_integers(layer)(x) - y).abs().max()
            assert difference <= 2e-6 * y.abs().max() * x[0].numel() ** 0.5
        with torch.no_grad():
            y = net(IMAGES)
            assert (to_integers(net)(IMAGES) - y).abs().max() <= 1e-5 * y.abs().max()


def inputs_and_outputs(net):
    """((input, output), layer) of every quantized layer on the images."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda layer, args, y: seen.append(((args[0], y), layer)))
        for _, layer in quantized_layers(net)
    ]
    with torch.no_grad():
        net(IMAGES)
    for hook in hooks:
        hook.remove()
    return seen


def test_a_layer_is_the_written_out_sum_of_products_of_integers():
    torch.manual_seed(0)
    net = quantize(nn.Conv2d(4, 6, 2, groups=2, stride=2, padding=1), (3, 5), per_channel=True)
    x = torch.randn(1, 4, 3, 3)
    calibrate(net, x)
    integer = to_integers(net)
    a, w = net.input_quantizer.integers(x), integer.integer_weight
    assert w.dtype == torch.int8 and a.values.dtype == torch.int64 and a.offset == 0
    padded = nn.functional.pad(a.values, (1, 1, 1, 1)).tolist()[0]
    for k, p, q in itertools.product(range(6), range(2), range(2)):
        total = sum(
            padded[k // 3 * 2 + c][2 * p + r][2 * q + s] * int(w[k, c, r, s])
            for c, r, s in itertools.product(range(2), repeat=3)
        )
        expected = total * a.step * net.weight_quantizer.step[k] + net.bias[k]
        torch.testing.assert_close(integer(x)[0, k, p, q], expected.detach())


def test_operands_are_whole_numbers_within_their_bits():
    net = to_integers(small((3, 5)))
    layers = dict(quantized_layers(net))
    assert {type(layer) for layer in layers.values()} == {IntegerConv2d, IntegerLinear}
    for layer in layers.values():
        assert layer.integer_weight.dtype == torch.int8
        assert layer.integer_weight.min() >= -(2**2) and layer.integer_weight.max() <= 2**2 - 1
        assert not any(p.shape == layer.integer_weight.shape for p in layer.parameters())  # no float weight is left
    assert not net.training


def test_units_for_floating_point_give_the_same_integers():
    net = small((8, 8), quantizer="lsq")
    assert torch.equal(to_integers(net, "float64")(IMAGES), to_integers(net)(IMAGES))


def test_the_network_itself_is_left_alone_and_signed_inputs_have_negative_integers():
    net = small(4)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with mode(net, training=True):
        integer = to_integers(net)
        assert net.training
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    x = torch.tensor([-0.3, 0.3]).view(1, 2, 1, 1).repeat(1, 4, 1, 1)
    assert integer.grouped.input_quantizer.integers(x).values.min() < 0
    assert torch.equal(integer.grouped.quantized_input(x), net.grouped.quantized_input(x))
    assert torch.allclose(integer.grouped.quantized_weight(), net.grouped.quantized_weight())


def test_one_layer_alone_and_wide_integers_work():
    torch.manual_seed(0)
    net = quantize(nn.Linear(20, 3), 16)
    x = torch.randn(5, 20)
    calibrate(net, x, "minmax")
    integer = to_integers(net)
    assert integer.integer_weight.dtype == torch.int16
    torch.testing.assert_close(integer(x), net(x).detach(), rtol=1e-5, atol=1e-5)


def test_layers_without_an_integer_form_are_named():
    with pytest.raises(ValueError, match="must have quantized layers, got none"):
        to_integers(nn.Conv2d(1, 1, 1))
    net = quantize(Small(), 4, bitwidths=(4, 32))
    calibrate(net, IMAGES)
    set_bits(net, {name: (4, 32) if name == "grouped" else 4 for name, _ in quantized_layers(net)})
    with pytest.raises(ValueError, match="layer 'grouped' must have integer operands, got its input at 32 bits"):
        to_integers(net)
    kept = to_integers(net.eval(), keep_float=True)
    assert not isinstance(kept.grouped, IntegerConv2d) and isinstance(kept.stem, IntegerConv2d)
    torch.testing.assert_close(kept(IMAGES), net(IMAGES), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="layer 'stem': UniformQuantizer: its step must be finite"):
        to_integers(quantize(Small(), 4))
    with pytest.raises(ValueError, match="arithmetic must be one of int64, float64, got 'int8'"):
        to_integers(net, "int8")
    with pytest.raises(ValueError, match="layer 'stem' must have a quantizer for each bitwidth given, got 2"):
        set_bits(to_integers(small(4)), 2)
