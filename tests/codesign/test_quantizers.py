"""Every quantizer: levels, order, idempotence, gradients, calibration, and what it refuses."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from codesign.quant import (
    LSQ,
    PACT,
    QUANTIZERS,
    DoReFaInputs,
    DoReFaWeights,
    FixedQuantizer,
    FloatQuantizer,
    QuantConv2d,
    UniformQuantizer,
    calibrate,
    clip_penalty,
    mixed_quantize,
    quantize,
    quantized_layers,
    recalibrate_batchnorm,
    set_bits,
)
from codesign.quant.quantizers import make_quantizer

OPERANDS = [(name, operand) for name in QUANTIZERS for operand in ("weight", "input")]
ROUNDING_INPUT = [(name, operand) for name, operand in OPERANDS if (name, operand) != ("dorefa", "weight")]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(name, operand, bits, values, channels=None):
    quantizer = make_quantizer(name, operand, bits, channels)
    quantizer.calibrate(values)
    return quantizer


# --- levels, order, idempotence ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(OPERANDS), st.integers(1, 8), st.booleans(), st.booleans(), st.integers(0, 99))
def test_levels_are_few_even_and_in_order(which, bits, signed, per_channel, seed):
    x = normal(4, 60, seed=seed) if signed else normal(4, 60, seed=seed).abs()
    quantizer = made(*which, bits, x, channels=4 if per_channel else None)
    y = quantizer(x).detach()
    integers = quantizer.integers(x)
    step = integers.step.view(-1, 1) if integers.step.dim() else integers.step
    torch.testing.assert_close(step * (integers.values + integers.offset), y, rtol=1e-6, atol=1e-7)
    for row, values in zip(y, x, strict=True):
        assert row.unique().numel() <= 2**bits
        assert (row[values.argsort()].diff() >= 0).all()  # monotone
    assert integers.values.max() - integers.values.min() <= 2**bits - 1
    if which != ("dorefa", "weight") and (bits > 1 or not signed):
        assert torch.equal(quantizer(torch.zeros(4, 1)), torch.zeros(4, 1))  # padding stays zero


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(ROUNDING_INPUT), st.integers(1, 8), st.booleans(), st.integers(0, 99))
def test_quantizing_twice_is_quantizing_once(which, bits, signed, seed):
    x = normal(300, seed=seed) if signed else normal(300, seed=seed).abs()
    quantizer = made(*which, bits, x)
    torch.testing.assert_close(quantizer(quantizer(x)), quantizer(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["uniform", "fixed", "lsq", "pact"])
def test_the_error_falls_with_bits_when_steps_are_refitted(name):
    x = normal(3000)
    errors = [(made(name, "weight", bits, x)(x) - x).square().mean() for bits in range(2, 9)]
    assert all(b < a for a, b in itertools.pairwise(errors))


def test_steps_of_channels_are_no_worse_than_one_for_all():
    x = normal(6, 200) * torch.logspace(-2, 1, 6).view(-1, 1)
    for bits in (2, 4, 8):
        one, each = (made("uniform", "weight", bits, x, channels) for channels in (None, 6))
        assert each.step.shape == (6,)
        assert ((each(x) - x).square().mean(1) <= (one(x) - x).square().mean(1) * (1 + 1e-5)).all()
        for row, step, values in zip(each(x), each.step, x, strict=True):
            alone = made("uniform", "weight", bits, values)
            torch.testing.assert_close(alone.step, step)
            torch.testing.assert_close(alone(values), row)


# --- DoReFa, as its paper has it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_dorefa_weights_are_the_papers_formula(bits):
    w, last = normal(500) * 2, 2**bits - 1
    r = w.tanh() / (2 * w.tanh().abs().max()) + 0.5
    expected = 2 * (last * r).round() / last - 1
    y = made("dorefa", "weight", bits, w)(w)
    # A value in the middle of two levels may go to the other one, since it is computed in another order.
    assert ((y - expected).abs() > 1e-6).float().mean() < 0.01
    assert y.min() == -1 or y.max() == 1
    assert y.abs().max() <= 1 and y.unique().numel() <= 2**bits


def test_dorefa_weights_of_one_bit_are_a_sign_and_a_mean():
    w = normal(50).requires_grad_()
    y = DoReFaWeights(1)(w)
    torch.testing.assert_close(y, w.sign() * w.abs().mean())
    upstream = normal(50, seed=1)
    assert torch.equal(torch.autograd.grad(y, w, upstream)[0], upstream)
    assert torch.equal(DoReFaWeights(1, scaled_sign=False)(w), w.sign())


def test_dorefa_weights_are_neither_idempotent_nor_exact_in_the_limit():
    w = normal(2000)
    errors = [(DoReFaWeights(bits)(w) - w).square().mean().item() for bits in (4, 6, 8, 12)]
    assert min(errors) > 0.5 * max(errors)
    quantizer = DoReFaWeights(6)
    assert not torch.allclose(quantizer(quantizer(w)), quantizer(w))


@pytest.mark.parametrize("bits", range(1, 9))
def test_dorefa_inputs_are_clipped_at_one(bits):
    x, last = normal(500).abs(), 2**bits - 1
    expected = (last * x.clamp(0, 1)).round() / last
    torch.testing.assert_close(made("dorefa", "input", bits, x)(x), expected)
    torch.testing.assert_close(DoReFaInputs(bits, clip=2.0)(x), 2 * (last * (x / 2).clamp(0, 1)).round() / last)


def test_weights_that_are_all_zero_stay_finite():
    for name in QUANTIZERS:
        y = made(name, "weight", 4, torch.zeros(3, 4), channels=3)(torch.zeros(3, 4))
        assert y.isfinite().all()


# --- gradients --------------------------------------------------------------------------------------------------------


def leaves(quantizer, x):
    return [x, *(p for p in quantizer.parameters() if p.requires_grad)]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_pact_has_the_papers_gradients(bits, signed):
    alpha = 0.7
    x = torch.cat([normal(200), torch.tensor([alpha, -alpha, 0.0, 6.0])])
    x = (x if signed else x.abs()).requires_grad_()
    quantizer = PACT(bits, start=alpha)
    quantizer.calibrate(x)
    upstream = normal(len(x), seed=1)
    by_x, by_alpha = torch.autograd.grad(quantizer(x), leaves(quantizer, x), upstream)
    clipped = x.detach().abs() >= quantizer.alpha.detach()
    assert torch.equal(by_x, upstream * ~clipped)
    torch.testing.assert_close(by_alpha, (upstream * x.sign() * clipped).sum().detach())


@pytest.mark.parametrize("signed", [False, True])
def test_a_fixed_step_does_not_learn_and_passes_the_gradient_within_its_range(signed):
    x = (normal(300) if signed else normal(300).abs()).requires_grad_()
    quantizer = FixedQuantizer(3)
    quantizer.calibrate(x.detach()[:100])
    quantizer(x).sum().backward()
    u = x.detach() / quantizer.step
    assert torch.equal(x.grad, ((u >= quantizer.low) & (u <= quantizer.high)).float())
    assert not quantizer.step.requires_grad


def test_learned_steps_of_channels_have_the_gradients_of_single_ones():
    x, upstream = normal(5, 40), normal(5, 40, seed=1)
    together = made("lsq", "weight", 3, x, channels=5)
    (by_steps,) = torch.autograd.grad(together(x), together.step, upstream)
    for i in range(5):
        alone = made("lsq", "weight", 3, x[i])
        (by_step,) = torch.autograd.grad(alone(x[i]), alone.step, upstream[i])
        torch.testing.assert_close(by_steps[i], by_step)


def test_dorefa_weights_have_the_gradient_of_the_function_before_rounding():
    w = normal(6, 7).double().requires_grad_()
    upstream = normal(6, 7, seed=1).double()
    for channels in (None, 6):
        quantizer = DoReFaWeights(3, channels)
        (by_w,) = torch.autograd.grad(quantizer(w), w, upstream)
        for i, j in ((0, 0), (2, 3), (5, 6)):
            h = torch.zeros_like(w)
            h[i, j] = 1e-6
            with torch.no_grad():
                slope = (quantizer.transformed(w + h) - quantizer.transformed(w - h)) / 2e-6
            torch.testing.assert_close(by_w[i, j], (slope * upstream).sum(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("which", [which for which in ROUNDING_INPUT if which[0] != "pact"])
def test_gradients_are_finite_differences_of_the_surrogate_at_frozen_rounding(which):
    """With round(u) = u + r and r frozen, the quantizer is smooth but at its clip."""
    x = (normal(60) * 0.5).double()
    quantizer = made(*which, 4, x).double()
    x = (x * 1.07).requires_grad_()  # so that no value lies at the clip
    upstream = normal(60, seed=1).double()
    inputs = leaves(quantizer, x)
    gradients = torch.autograd.grad(quantizer(x), inputs, upstream)
    low, high = quantizer.low, quantizer.high
    step = quantizer.step_for(x).detach()
    u = (x / step).detach()
    residue, inside = u.clamp(low, high).round() - u.clamp(low, high), (u > low) & (u < high)

    def surrogate(x, step):
        return step * ((x / step).clamp(low, high) + residue)

    h = 1e-6
    slope = (surrogate(x + h, step) - surrogate(x - h, step)) / (2 * h)
    assert inside.any()
    torch.testing.assert_close(gradients[0], (slope * upstream).detach(), rtol=1e-5, atol=1e-6)
    if len(gradients) > 1:
        slope = (surrogate(x, step + h) - surrogate(x, step - h)) / (2 * h)
        scale = 1 / math.sqrt(60 * high)
        torch.testing.assert_close(gradients[1], ((slope * upstream).sum() * scale).detach(), rtol=1e-5, atol=1e-6)


def test_mixtures_of_other_quantizers_are_sums_too():
    w = normal(3, 8).requires_grad_()
    mixture = torch.tensor([0.25, 0.5, 0.25], requires_grad=True)
    for name in ("dorefa", "pact"):
        quantizers = [made(name, "weight", bits, w) for bits in (2, 4, 32)]
        y = mixed_quantize(w, quantizers, mixture)
        torch.testing.assert_close(y, sum(m * q(w) for m, q in zip(mixture, quantizers, strict=True)))
    with pytest.raises(ValueError, match=r"one number for each of 2 quantizers.* got shape \(3,\)"):
        mixed_quantize(w, quantizers[:2], mixture)


def test_the_penalty_on_clips_counts_every_pact_quantizer_once():
    net = quantize(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1)), 4, input_quantizer="pact")
    assert clip_penalty(net) == 0
    calibrate(net, normal(2, 1, 3, 3))
    clips = [layer.input_quantizer.alpha.detach() for _, layer in quantized_layers(net)]
    torch.testing.assert_close(clip_penalty(net).detach(), sum(a * a for a in clips))


# --- calibration ------------------------------------------------------------------------------------------------------


def test_each_method_fits_its_step():
    x = torch.cat([normal(5000).abs(), torch.tensor([50.0])])
    steps = {}
    for method in ("minmax", "percentile", "mse", "lsq"):
        quantizer = UniformQuantizer(4)
        quantizer.calibrate(x, method)
        steps[method] = quantizer.step.item()
    assert steps["minmax"] == pytest.approx(50 / 15)
    assert steps["percentile"] == pytest.approx(x.sort().values[-1 - int(5001e-3)].item() / 15)
    assert steps["lsq"] == pytest.approx(2 * x.mean().item() / 15**0.5)
    error = {m: (x - (x / s).round().clamp(0, 15) * s).square().mean().item() for m, s in steps.items()}
    shares = [(x - (x / s).round().clamp(0, 15) * s).square().mean().item() for s in torch.arange(1, 51) / 50 * 50 / 15]
    assert error["mse"] == pytest.approx(min(shares), rel=1e-4)


def test_lsq_starts_at_its_papers_step_and_the_others_at_the_least_error():
    x = normal(500)
    lsq, uniform = LSQ(3), UniformQuantizer(3)
    lsq.calibrate(x)
    uniform.calibrate(x)
    assert lsq.step.item() == pytest.approx(2 * x.abs().mean().item() / 3**0.5)
    assert (uniform(x) - x).square().mean() <= (lsq(x) - x).square().mean()


@pytest.mark.parametrize("which", OPERANDS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_quantizer_read_back_from_its_state_is_the_same(which, per_channel):
    x, channels = normal(4, 30), 4 if per_channel else None
    quantizer, other = made(*which, 3, x, channels), make_quantizer(*which, 3, channels)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(x), quantizer(x)) and "bits=3" in repr(other)


def test_what_cannot_be_quantized_is_refused():
    for kind in (UniformQuantizer, PACT, DoReFaInputs, DoReFaWeights, LSQ):
        for bits in (0, 17, 33):
            with pytest.raises(ValueError, match=rf"{kind.__name__}: bits must be from 1 to 16, got bits={bits}"):
                kind(bits)
    with pytest.raises(ValueError, match=r"weight quantizer must be one of uniform, .*dorefa, got 'kmeans'"):
        quantize(nn.Conv2d(1, 1, 1), 4, weight_quantizer="kmeans")
    with pytest.raises(ValueError, match="method must be one of minmax, percentile, mse, lsq, got 'best'"):
        UniformQuantizer(4).calibrate(normal(5), "best")
    for kind in (UniformQuantizer, PACT):
        with pytest.raises(ValueError, match=rf"{kind.__name__}: its step must be finite .* calibrate it"):
            kind(4)(normal(5))
        for bad in (torch.empty(0), torch.tensor([1.0, float("inf")])):
            with pytest.raises(ValueError, match=f"{kind.__name__}: calibration data must hold finite values"):
                kind(4).calibrate(bad)
    with pytest.raises(ValueError, match="its step must be finite"):
        mixed_quantize(normal(5), [UniformQuantizer(2), UniformQuantizer(4)], torch.ones(2))
    with pytest.raises(ValueError, match="start must be positive and finite, got start=0"):
        PACT(4, start=0)
    with pytest.raises(ValueError, match="clip must be positive"):
        DoReFaInputs(4, clip=-1)
    with pytest.raises(ValueError, match="floating point and have no integer form"):
        FloatQuantizer().integers(normal(3))


# --- networks ---------------------------------------------------------------------------------------------------------


def test_weights_and_inputs_take_quantizers_of_their_own_and_32_bits_are_float():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(2, 3, 1), normal(4, 2, 5, 5)
    q = quantize(
        conv, (32, 4), bitwidths=(2,), weight_quantizer="dorefa", input_quantizer=lambda b, _: PACT(b, start=9.0)
    )
    calibrate(q, x)
    assert isinstance(q, QuantConv2d) and isinstance(q.weight_quantizers["2"], DoReFaWeights)
    assert q.quantized_weight() is q.weight and q.input_quantizer.alpha == 9
    set_bits(q, 32)
    assert torch.equal(q(x), conv(x))


def test_a_layer_in_two_places_stays_one_layer():
    shared = nn.Linear(3, 3)
    net = quantize(nn.Sequential(shared, nn.ReLU(), shared), 4)
    assert net[0] is net[2] and isinstance(net[0], type(quantize(shared, 4)))


def test_calibration_names_the_layer_that_the_images_miss_or_spoil():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match="but idle did not"):
        calibrate(quantize(Net(), 4), normal(2, 3))
    with pytest.raises(ValueError, match="layer '0': UniformQuantizer: calibration data must hold finite"):
        calibrate(quantize(nn.Sequential(nn.Linear(3, 3)), 4), normal(2, 3) / 0)


def test_statistics_of_any_norm_are_renewed_and_those_of_idle_ones_kept():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList([
                nn.BatchNorm2d(2, momentum=None), nn.InstanceNorm2d(2, track_running_stats=True, momentum=0.3),
                nn.GroupNorm(1, 2), nn.BatchNorm2d(2, track_running_stats=False), nn.SyncBatchNorm(2),
            ])  # fmt: skip
            self.idle = nn.BatchNorm2d(2)

        def forward(self, x):
            return sum(norm(x) for norm in self.norms[:4])

    net, x = Net().train(), normal(12, 2, 5, 5) * 3 + 1
    net(x[:2])
    net.idle.running_mean.fill_(5)
    net.norms[4].running_var.fill_(7)
    recalibrate_batchnorm(net, x, batch_size=4)
    batches = x.split(4)
    batch, instance = net.norms[0], net.norms[1]
    torch.testing.assert_close(batch.running_mean, x.mean(dim=(0, 2, 3)))
    by_batch = torch.stack([b.var(dim=(0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(batch.running_var, by_batch)
    torch.testing.assert_close(instance.running_mean, x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(instance.running_var, x.var(dim=(2, 3)).mean(0))
    assert (batch.momentum, instance.momentum) == (None, 0.3) and net.training
    assert (net.idle.running_mean == 5).all() and (net.norms[4].running_var == 7).all()
