"""Quantizers and quantized networks against closed forms."""

import copy

import pytest
import torch
from torch import nn

from codesign.quant import (
    QuantConv2d,
    QuantLinear,
    UniformQuantizer,
    calibrate,
    fake_quantize,
    match_batchnorm,
    norm_references,
    quantize,
    quantized_layers,
    recalibrate_batchnorm,
    set_bits,
    unfold_batchnorm,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


IMAGES = torch.rand(32, 2, 6, 6, generator=generator(1))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_values_are_multiples_of_the_step_on_at_most_two_to_the_bits_levels(bits, signed):
    x = torch.randn(5000, generator=generator())
    x = x if signed else x.abs()
    quantizer = UniformQuantizer(bits)
    quantizer.calibrate(x)
    levels = quantizer(x) / quantizer.step
    if signed and bits == 1:  # a scaled sign
        assert torch.equal(levels, x.sign() / 2)
        return
    assert torch.equal(levels.round(), levels) or torch.allclose(levels.round(), levels, atol=1e-4)
    levels = levels.round()
    assert levels.unique().numel() <= 2**bits
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    assert low <= levels.min() and levels.max() <= high


def test_a_value_goes_to_the_nearest_level():
    x = torch.linspace(-3, 3, 1001)
    step, low, high = torch.tensor(0.37), -4.0, 3.0
    levels = step * torch.arange(low, high + 1)
    nearest = (x[:, None] - levels).abs().min(dim=1).values
    assert torch.allclose((fake_quantize(x, step, low, high) - x).abs(), nearest, atol=1e-6)


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_quantizing_twice_is_quantizing_once(method):
    x = torch.randn(1000, generator=generator())
    for bits in (2, 4, 8):
        quantizer = UniformQuantizer(bits)
        quantizer.calibrate(x, method)
        assert torch.equal(quantizer(quantizer(x)), quantizer(x))


def test_the_mean_error_falls_with_bits_and_mse_is_no_worse_than_minmax():
    x = torch.randn(4000, generator=generator())
    errors = {}
    for method in ("minmax", "mse"):
        for bits in range(2, 9):
            quantizer = UniformQuantizer(bits)
            quantizer.calibrate(x, method)
            errors[method, bits] = (quantizer(x) - x).square().mean().item()
    for bits in range(2, 8):
        assert errors["mse", bits + 1] < errors["mse", bits] <= errors["minmax", bits]


def test_minmax_clips_nothing():
    for x in (torch.tensor([-3.0, 1.0]), torch.tensor([0.5, 3.0]), torch.tensor([-1.0, 5.0])):
        quantizer = UniformQuantizer(4)
        quantizer.calibrate(x, "minmax")
        assert quantizer.low * quantizer.step <= x.min() + 1e-6 and x.max() <= quantizer.high * quantizer.step + 1e-6


def test_the_gradient_is_one_inside_the_range_and_zero_outside():
    step, low, high = torch.tensor(0.25), -8.0, 7.0
    x = torch.linspace(-3, 3, 401, requires_grad=True)
    upstream = torch.randn(401, generator=generator())
    fake_quantize(x, step, low, high).backward(upstream)
    inside = (x >= low * step) & (x <= high * step)
    assert torch.equal(x.grad, upstream * inside)
    assert inside.any() and not inside.all()


def test_the_gradient_of_the_step_is_that_of_learned_step_sizes():
    x = torch.randn(300, generator=generator(), dtype=torch.float64) * 3
    step = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(300, generator=generator(1), dtype=torch.float64)
    fake_quantize(x, step, -4.0, 3.0).backward(upstream)
    u = (x / step).detach()
    expected = torch.where(u < -4, -4.0, torch.where(u > 3, 3.0, u.round() - u))
    assert torch.allclose(step.grad, (upstream * expected).sum())


def test_a_quantizer_learns_its_step_with_a_gradient_scaled_by_values_and_levels():
    x = torch.randn(300, generator=generator())
    quantizer = UniformQuantizer(3)
    quantizer.calibrate(x)
    step = quantizer.step.detach().clone().requires_grad_()
    fake_quantize(x, step, -4.0, 3.0).square().sum().backward()
    quantizer(x).square().sum().backward()
    assert torch.allclose(quantizer.step.grad, step.grad / (300 * 3) ** 0.5)
    assert torch.equal(quantizer(x), fake_quantize(x, step, -4.0, 3.0))


def test_only_data_with_negative_values_gets_a_signed_quantizer():
    quantizer = UniformQuantizer(4)
    quantizer.calibrate(torch.tensor([0.0, 1.0]))
    assert (quantizer.low, quantizer.high) == (0, 15)
    quantizer.calibrate(torch.tensor([-0.1, 1.0]))
    assert (quantizer.low, quantizer.high) == (-8, 7)


def test_a_quantizer_read_back_from_its_state_is_the_same():
    quantizer = UniformQuantizer(4)
    quantizer.calibrate(torch.randn(100, generator=generator()))
    other = UniformQuantizer(4)
    other.load_state_dict(quantizer.state_dict())
    x = torch.randn(50, generator=generator(2))
    assert torch.equal(other(x), quantizer(x)) and other.low == -8


def test_zeros_stay_zeros_and_bad_data_is_refused():
    quantizer = UniformQuantizer(2)
    quantizer.calibrate(torch.zeros(10))
    assert torch.equal(quantizer(torch.zeros(10)), torch.zeros(10))
    for bad in (torch.empty(0), torch.tensor([1.0, float("nan")])):
        with pytest.raises(ValueError, match="finite values"):
            quantizer.calibrate(bad)
    with pytest.raises(ValueError, match="bits=0"):
        UniformQuantizer(0)


def test_a_quantized_layer_is_the_layer_on_quantized_operands():
    net = network()
    q = quantize(net, (4, 8))
    calibrate(q, IMAGES)
    conv = q[0]
    assert isinstance(conv, QuantConv2d) and isinstance(q[6], QuantLinear)
    x, w = conv.input_quantizers["8"](IMAGES), conv.weight_quantizers["4"](net[0].weight)
    assert torch.equal(conv(IMAGES), nn.functional.conv2d(x, w, padding=1))
    assert conv.quantized_weight().unique().numel() <= 2**4


def test_the_original_is_left_alone_and_float_bits_give_its_outputs():
    net = network().eval()
    before = copy.deepcopy(net.state_dict())
    q = quantize(net, 2).eval()
    calibrate(q, IMAGES)
    set_bits(q, None)
    assert torch.equal(q(IMAGES), net(IMAGES))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert isinstance(net[0], nn.Conv2d) and not isinstance(net[0], QuantConv2d)


def test_bits_can_be_given_by_layer_and_layers_left_in_float():
    q = quantize(network(), {"0": (2, 8), "6": 4})
    assert [(name, layer.weight_bits, layer.input_bits) for name, layer in quantized_layers(q)] == [
        ("0", 2, 8),
        ("6", 4, 4),
    ]
    q = quantize(network(), {"0": 8, "6": None}, bitwidths=(2, 4))
    assert [(n, layer.weight_bits) for n, layer in quantized_layers(q)] == [("0", 8), ("6", None)]
    assert type(q[3]) is nn.Conv2d


class WithHelpers(nn.Module):
    """A head that training alone runs, and a layer whose weight is read where it does not run."""

    def __init__(self):
        super().__init__()
        self.conv, self.aux, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3), nn.Linear(4, 3)
        self.mix = nn.Linear(4, 4)

    def forward(self, x):
        x = self.conv(x).relu().mean(dim=(2, 3))
        if self.training:
            self.aux(x)
        return self.fc(nn.functional.linear(x, self.mix.weight))


def test_layers_that_a_mapping_does_not_name_need_not_run_to_be_calibrated():
    q = quantize(WithHelpers(), {"conv": 8, "fc": 8}, bitwidths=(2, 4))
    calibrate(q, IMAGES)
    set_bits(q, {"conv": 2, "fc": (4, 8)})
    assert q(IMAGES).isfinite().all() and type(q.aux) is type(q.mix) is nn.Linear
    with pytest.raises(ValueError, match="but aux, mix did not; leave it in float: quantize with bits by layer name"):
        calibrate(quantize(WithHelpers(), 8), IMAGES)


def test_modules_with_weights_that_cannot_be_quantized_are_named_in_one_warning(caplog):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.table = nn.Parameter(torch.ones(3, 1, 1)), nn.Parameter(torch.ones(3, 2))

    net = nn.ModuleDict({
        "one": nn.Conv1d(2, 2, 1), "up": nn.ConvTranspose2d(2, 2, 2), "words": nn.Embedding(3, 2),
        "norm": nn.LayerNorm((3, 3)), "table": Scale(), "fine": nn.Linear(2, 2), "prelu": nn.PReLU(2),
    })  # fmt: skip
    quantize(net, {"fine": 4})
    named = "one (Conv1d), up (ConvTranspose2d), words (Embedding), table (Scale)."
    assert [record.getMessage() for record in caplog.records] == [
        f"quantize: only Conv2d and Linear are quantized, so these stay in float: {named}"
    ]
    caplog.clear()
    quantize(nn.MultiheadAttention(4, 2), 4)
    assert "the network (MultiheadAttention), out_proj" in caplog.records[0].getMessage()
    caplog.clear()
    quantize(network(), 8, bitwidths=(2,), per_channel=True)
    assert not caplog.records


def test_one_step_for_each_layer_and_bitwidth():
    q = quantize(network(), 8, bitwidths=(2, 4))
    calibrate(q, IMAGES)
    for _, layer in quantized_layers(q):
        steps = [layer.weight_quantizers[b].step.item() for b in ("2", "4", "8")]
        assert steps[0] > steps[1] > steps[2] > 0


def test_inputs_after_a_linear_layer_are_signed_and_after_a_relu_they_are_not():
    q = quantize(network(), 4)
    calibrate(q, IMAGES)
    lows = {name: layer.input_quantizers["4"].low for name, layer in quantized_layers(q)}
    assert lows == {"0": 0.0, "3": 0.0, "6": -8.0}  # layer 3 reads a ReLU, layer 6 a convolution without one


def test_calibration_does_not_depend_on_the_bits_that_are_set_and_keeps_them():
    a, b = quantize(network(), 2, (2, 8)), quantize(network(), 8, (2, 8))
    calibrate(a, IMAGES)
    calibrate(b, IMAGES)
    assert all(torch.equal(a.state_dict()[k], v) for k, v in b.state_dict().items())
    assert {layer.weight_bits for _, layer in quantized_layers(a)} == {2}


def test_recalibrated_statistics_are_those_of_the_data_averaged_over_batches():
    net = network()
    net[1].running_mean.fill_(7.0)
    weights = copy.deepcopy(list(net.parameters()))
    recalibrate_batchnorm(net, IMAGES, batch_size=8)
    x = net[0](IMAGES)
    assert torch.allclose(net[1].running_mean, x.mean(dim=(0, 2, 3)), atol=1e-6)
    by_batch = torch.stack([part.var(dim=(0, 2, 3)) for part in x.split(8)])
    assert torch.allclose(net[1].running_var, by_batch.mean(dim=0), atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert net[1].momentum == nn.BatchNorm2d(4).momentum and net.training


def folded(net, eps=0.0):
    """A network of `network` with its norm folded into the convolution before it, and the identity in its place."""
    net = copy.deepcopy(net).eval()
    net[0] = nn.utils.fuse_conv_bn_eval(net[0], net[1])
    net[1] = nn.BatchNorm2d(4).eval()
    net[1].running_var.fill_(1 - eps)
    return net


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("batch_size", [32, 7])
def test_batchnorm_taken_out_has_the_statistics_of_images_and_the_function_stays(eps, batch_size):
    net = network()
    recalibrate_batchnorm(net, IMAGES)
    net = folded(net, eps)
    before, inputs = net(IMAGES), net[0](IMAGES)
    assert unfold_batchnorm(net, IMAGES, batch_size) == ("1",)
    assert torch.allclose(net(IMAGES), before, atol=1e-6)
    assert torch.allclose(net[1].running_mean, inputs.mean(dim=(0, 2, 3)), atol=1e-6)
    assert torch.allclose(net[1].running_var, inputs.var(dim=(0, 2, 3), correction=0), atol=1e-6)
    assert unfold_batchnorm(net, IMAGES) == ()  # it has statistics of its own now


def test_a_folded_norm_can_be_renewed_once_it_is_taken_out():
    net = network()
    recalibrate_batchnorm(net, IMAGES)
    net.eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.3, 2.0, 1.0, 0.5]))
        net[1].bias.copy_(torch.tensor([0.5, 0.0, -1.0, 2.0]))
        right, lost = net(IMAGES), folded(net)
        recalibrate_batchnorm(lost, IMAGES)
        kept = folded(net)
        unfold_batchnorm(kept, IMAGES)
        kept[0].weight *= 0.9  # an error that renewed statistics mend
        kept[0].bias *= 0.9
        recalibrate_batchnorm(kept, IMAGES)
    assert torch.allclose(kept(IMAGES), right, atol=2e-3)
    assert not torch.allclose(lost(IMAGES), right, atol=2e-2)


def trained():
    """A network whose norm holds other statistics than these images have, as after augmentation."""
    net, rng = network().eval(), generator(2)
    net[1].running_mean.copy_(torch.randn(4, generator=rng))
    net[1].running_var.copy_(0.5 + torch.rand(4, generator=rng))
    return net.requires_grad_(False)


def test_matched_statistics_do_not_move_where_nothing_is_quantized():
    net = trained()
    mean, variance = net[1].running_mean.clone(), net[1].running_var.clone()
    match_batchnorm(net, IMAGES, norm_references(net, IMAGES))
    torch.testing.assert_close(net[1].running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net[1].running_var, variance, rtol=1e-5, atol=1e-6)


def test_matched_statistics_mend_what_scales_a_channel_and_renewed_ones_lose_what_training_saw():
    net = trained()
    references, right = norm_references(net, IMAGES), net(IMAGES)
    net[0].weight *= torch.tensor([0.5, 0.9, 1.1, 2.0]).view(4, 1, 1, 1)
    assert not torch.allclose(net(IMAGES), right, atol=1e-2)
    match_batchnorm(net, IMAGES, references)
    torch.testing.assert_close(net(IMAGES), right, rtol=1e-3, atol=1e-3)  # the epsilon does not scale with it
    recalibrate_batchnorm(net, IMAGES)
    assert not torch.allclose(net(IMAGES), right, atol=1e-2)


def test_matched_statistics_are_the_closed_form():
    net = trained()
    references = norm_references(net, IMAGES)
    before = net[0](IMAGES).double()
    quantized = quantize(net, {"0": 3}, (3,)).eval()
    calibrate(quantized, IMAGES)
    after = quantized[0](IMAGES).double()
    match_batchnorm(quantized, IMAGES, references)
    (m, v), (mq, vq) = ((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0) + 1e-5) for x in (before, after))
    ratio = (vq / v).sqrt()
    held_mean, held_variance = net[1].running_mean.double(), net[1].running_var.double()
    torch.testing.assert_close(quantized[1].running_mean.double(), mq + ratio * (held_mean - m), rtol=1e-5, atol=1e-5)
    expected = ratio**2 * (held_variance + 1e-5) - 1e-5
    torch.testing.assert_close(quantized[1].running_var.double(), expected, rtol=1e-5, atol=1e-5)


def test_references_are_those_in_float_whatever_the_network_runs_at():
    net = trained()
    quantized = quantize(net, 2, (2,))
    calibrate(quantized, IMAGES)
    expected, found = norm_references(net, IMAGES)["1"], norm_references(quantized, IMAGES)["1"]
    assert all(torch.equal(getattr(expected, name), getattr(found, name)) for name in vars(expected))
    assert {layer.weight_bits for _, layer in quantized_layers(quantized)} == {2}


def test_matched_statistics_of_images_themselves_are_the_renewed_ones():
    net = network()
    recalibrate_batchnorm(net, IMAGES)
    matched = quantize(net, {"0": 3}, (3,))
    calibrate(matched, IMAGES)
    renewed = copy.deepcopy(matched)
    match_batchnorm(matched, IMAGES, norm_references(matched, IMAGES))
    recalibrate_batchnorm(renewed, IMAGES)
    torch.testing.assert_close(matched[1].running_mean, renewed[1].running_mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(matched[1].running_var, renewed[1].running_var, rtol=1e-4, atol=1e-6)


def test_a_folded_norm_can_be_matched_as_it_is():
    net = trained()
    right, kept = net(IMAGES), folded(net).requires_grad_(False)
    references = norm_references(kept, IMAGES)
    kept[0].weight *= 0.9
    kept[0].bias *= 0.8
    match_batchnorm(kept, IMAGES, references)
    torch.testing.assert_close(kept(IMAGES), right, rtol=1e-3, atol=1e-3)


def test_norms_that_run_twice_or_not_at_all_are_matched_or_left():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.aside = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x):
            return self.norm(self.first(self.norm(self.first(x))))

    torch.manual_seed(0)
    net = Twice().eval()
    net.norm.running_mean.fill_(0.5)
    before = copy.deepcopy(net.state_dict())
    references = norm_references(net, IMAGES)
    assert set(references) == {"norm"}
    match_batchnorm(net, IMAGES, references)
    assert torch.equal(net.aside.running_mean, before["aside.running_mean"])
    assert not torch.equal(net.norm.running_mean, before["norm.running_mean"])  # the first call sees its own alone
    assert torch.isfinite(net.norm.running_var).all() and not net.norm.training


def test_norms_without_factors_or_with_statistics_and_norms_that_do_not_run_are_left_alone():
    net = network()
    recalibrate_batchnorm(net, IMAGES)
    bare = nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.InstanceNorm2d(2), *net, nn.LayerNorm(3))
    bare[-1].aside = nn.BatchNorm2d(3)  # it does not run
    before = copy.deepcopy(bare.state_dict())
    assert unfold_batchnorm(bare, IMAGES) == ()
    assert all(torch.equal(value, before[name]) for name, value in bare.state_dict().items())


def test_layers_and_bits_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"got 9, conv; the layers are 0, 3, 6"):
        quantize(network(), {"conv": 4, "9": 2})
    with pytest.raises(ValueError, match=r"layer '0' must have a quantizer .* got 4; it has 8"):
        set_bits(quantize(network(), 8), 4)
