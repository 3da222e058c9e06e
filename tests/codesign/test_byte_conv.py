"""Convolutions on bytes: against the fake-quantized layer and against exact sums."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from codesign.quant import byte_conv, calibrate, compiled, kernels, quantize
from codesign.quant.byte_conv import ByteConv, bytes_are_exact

REASON = "this processor or torch does not multiply bytes exactly"
exact_bytes = pytest.mark.skipif(not bytes_are_exact(), reason=REASON)


def layer(weight_bits, input_bits, signed=False, **settings):
    """(quantized convolution, its inputs)."""
    torch.manual_seed(weight_bits * 10 + input_bits)
    quantizers = {name: settings.pop(name) for name in ("weight_quantizer", "per_channel") if name in settings}
    network = nn.Sequential(nn.Conv2d(8, 12, 3, **{"padding": 1, "bias": False, **settings}))
    x = torch.randn(5, 8, 9, 7)
    x = x if signed else x.relu()
    quantized = quantize(network, {"0": (weight_bits, input_bits)}, **quantizers)
    calibrate(quantized, x)
    return quantized[0].eval(), x


@exact_bytes
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"bias": True}, {"stride": 2}, {"dilation": 2}, {"groups": 4}, {"per_channel": True},
        {"weight_quantizer": "lsq"}, {"padding": 0},
    ],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_it_gives_what_the_fake_quantized_layer_gives_to_rounding(settings):
    for weight_bits, input_bits, signed in itertools.product((2, 5, 8), (2, 8), (False, True)):
        conv, x = layer(weight_bits, input_bits, signed, **settings)
        assert ByteConv.fits(conv)
        expected = conv(x)
        found = ByteConv(conv)(x)
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()
        assert found.is_contiguous(memory_format=torch.channels_last)


@exact_bytes
@pytest.mark.parametrize(("activation", "function"), [("relu", functional.relu), ("relu6", functional.relu6)])
@torch.no_grad()
def test_a_scale_a_shift_and_an_activation_follow_the_sum(activation, function):
    conv, x = layer(4, 4, bias=True)
    scale, shift = torch.randn(12), torch.randn(12)
    expected = function(scale[:, None, None] * conv(x) + shift[:, None, None])
    torch.testing.assert_close(ByteConv(conv)(x, scale, shift, activation), expected, rtol=1e-5, atol=1e-5)


@exact_bytes
@torch.no_grad()
def test_levels_at_odd_halves_are_doubled_where_they_fit():
    conv, x = layer(4, 8, weight_quantizer="dorefa")
    torch.testing.assert_close(ByteConv(conv)(x), conv(x), rtol=1e-5, atol=1e-5)
    assert not ByteConv.fits(layer(8, 8, weight_quantizer="dorefa")[0])  # odd numbers up to 255


@exact_bytes
def test_what_does_not_fit_is_said():
    assert not ByteConv.fits(layer(16, 8)[0]) and not ByteConv.fits(layer(8, 16)[0])
    assert not ByteConv.fits(layer(8, 8, padding_mode="reflect")[0]) and not ByteConv.fits(layer(32, 8)[0])
    conv, x = layer(8, 8)
    x[0, 0, 0, 0] = float("nan")
    assert ByteConv(conv)(x) is None
    conv.weight_bits = None
    assert not ByteConv.fits(conv)


def test_a_processor_that_overflows_is_found_out(monkeypatch):
    if not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        assert not bytes_are_exact()
        return

    def saturating(levels, step, zero, packed, scales, *others):
        return torch.ops.onednn.qconv2d_pointwise(levels.clamp(max=250), step, zero, packed, scales, *others)

    class Operators:
        qconv_prepack, qconv2d_pointwise = staticmethod(torch.ops.onednn.qconv_prepack), staticmethod(saturating)

    class Namespaces:
        onednn = Operators

    monkeypatch.setattr(byte_conv.torch, "ops", Namespaces)
    assert bytes_are_exact.__wrapped__() is False
    monkeypatch.setattr(byte_conv.torch, "ops", object())
    assert bytes_are_exact.__wrapped__() is False


@pytest.mark.parametrize("n", [1, 127, 128, 1000])
def test_bytes_are_the_levels_of_the_quantizer(n):
    rng = np.random.default_rng(n)
    x, step = rng.normal(size=n).astype(np.float32), np.float32(0.03)
    for low, high in ((0, 255), (-128, 127), (-2, 1)):
        out = np.empty(n, np.uint8)
        assert kernels.levels(x, out, step, np.float32(low), np.float32(high))
        assert (out == np.clip(np.rint(x / step), low, high) - low).all()
    for bad in (np.nan, np.inf):
        x[n // 2] = bad
        assert not kernels.levels(x, out, step, np.float32(0), np.float32(255))


def test_levels_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(compiled, "WORTH_THREADS", 1)
    x = torch.randn(3, 5, 7, 11).contiguous(memory_format=torch.channels_last)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(compiled.levels(x, 0.1, -8, 7))
    torch.set_num_threads(before)
    assert torch.equal(*found)
    assert torch.equal(found[0].float() - 8, (x / 0.1).round().clamp(-8, 7))
