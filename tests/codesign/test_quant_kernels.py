"""Fake quantization in the compiled kernels, in torch's operators, and composed of autograd operations."""

import pytest
import torch

from codesign.quant import UniformQuantizer, compiled, fake_quantize, mixed_quantize
from codesign.quant.fake_quantization import Levels, mix_quantized


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def through(x, function):
    """A function with the gradient of the identity."""
    return x + (function(x) - x).detach()


def composed(x, step, low, high, offset=0.0):
    """The slow twin: the equation, differentiated by autograd."""
    step = step.abs().view(-1, *(1,) * (x.dim() - 1)) if step.dim() else step.abs()
    level = through((x / step).clamp(low, high) - offset, torch.round) + offset
    return level * step


def gradients(function, x, *parameters, upstream):
    """The output and the gradients of fresh leaves."""
    x = x.detach().requires_grad_() if x.is_leaf else x
    leaves = [x, *(p.detach().clone().requires_grad_() for p in parameters)]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


TENSORS = {
    "flat": torch.randn(1000, generator=generator()),
    "shorter than a vector": torch.randn(5, generator=generator()),
    "scalar": torch.tensor(0.7),
    "image": torch.randn(3, 5, 7, 6, generator=generator()),
    "channels last": torch.randn(3, 5, 7, 6, generator=generator()).to(memory_format=torch.channels_last),
    "crop": torch.randn(8, 6, 7, 7, generator=generator())[:5, :3, 2:-2, 2:-2],
    "transposed": torch.randn(40, 30, generator=generator()).T,
    "no values": torch.empty(0, 4),
}
GRIDS = [(0.0, 3.0, 0.0), (-4.0, 3.0, 0.0), (-0.5, 0.5, 0.5), (-7.5, 7.5, 0.5)]


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("levels", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_the_composed_function(name, levels, dtype):
    x = TENSORS[name].to(dtype)
    upstream = torch.randn(x.shape, generator=generator(1), dtype=dtype)
    steps = [torch.tensor(-0.37, dtype=dtype)]
    if x.dim() and x.numel():
        steps.append(torch.linspace(0.2, 0.9, len(x), dtype=dtype))
    for step in steps:
        ours = gradients(lambda x, s: fake_quantize(x, s, *levels), x, step, upstream=upstream)
        twin = gradients(lambda x, s: composed(x, s, *levels), x, step, upstream=upstream)
        for a, b in zip(ours, twin, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        if name in ("flat", "image", "channels last"):
            assert ours[0].stride() == x.stride()
            assert dtype == torch.float64 or name == "crop" or ours[1].stride() == ours[0].stride()


@pytest.mark.parametrize("name", [name for name in TENSORS if name != "scalar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_mixture_is_the_sum_of_its_parts(name, dtype, per_channel):
    x = TENSORS[name].to(dtype)
    if per_channel and not x.numel():
        pytest.skip("no channels")
    upstream = torch.randn(x.shape, generator=generator(1), dtype=dtype)
    steps = [torch.tensor(s, dtype=dtype) for s in (0.9, 0.5, 0.2, 0.05)]
    if per_channel:
        steps = [s * torch.linspace(0.5, 2, len(x), dtype=dtype) for s in steps]
    mixture = torch.tensor([0.4, 0.0, 0.35, 0.25], dtype=dtype)
    scales = (1.0, 0.5, 0.25, 2.0)

    def ours(x, m, *steps):
        return mix_quantized(x, steps, [Levels(*levels) for levels in GRIDS], m, scales)

    def twin(x, m, *steps):
        parts = [
            fake_quantize(x, s, *levels, gradient_scale=k) for s, levels, k in zip(steps, GRIDS, scales, strict=True)
        ]
        return sum(m[i] * y for i, y in enumerate(parts))

    results = [gradients(f, x, mixture, *steps, upstream=upstream) for f in (ours, twin)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_mixture_of_quantizers_has_their_gradients():
    x = torch.randn(4, 3, 5, 5, generator=generator(), requires_grad=True)
    quantizers = [UniformQuantizer(bits) for bits in (2, 4, 6, 8)]
    for quantizer in quantizers:
        quantizer.calibrate(x)
    leaves = [x, torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True), *(q.step for q in quantizers)]
    upstream = torch.randn(x.shape, generator=generator(1))
    a, b = mixed_quantize(x, quantizers, leaves[1]), sum(leaves[1][i] * q(x) for i, q in enumerate(quantizers))
    torch.testing.assert_close(a, b)
    for by_a, by_b in zip(*(torch.autograd.grad(y, leaves, upstream) for y in (a, b)), strict=True):
        torch.testing.assert_close(by_a, by_b, rtol=1e-4, atol=1e-6)


def test_nothing_but_the_tensor_itself_is_kept_for_the_backward_pass():
    x = torch.randn(100, generator=generator(), requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mix_quantized(x, [torch.tensor(0.5)] * 4, [Levels(-4, 3)] * 4, torch.full((4,), 0.25))
    assert [t.data_ptr() for t in kept if t.numel() > 4] == [x.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_quantized_in_single_precision(dtype):
    x = (torch.randn(500, generator=generator()) * 3).to(dtype).requires_grad_()
    step = torch.tensor(0.013, requires_grad=True)
    y = fake_quantize(x, step, -128, 127)
    assert y.dtype == dtype and torch.equal(y, fake_quantize(x.float(), step, -128, 127).to(dtype))
    y.float().sum().backward()
    assert x.grad.dtype == dtype and step.grad.dtype == torch.float32


def test_not_a_number_stays_one():
    x = torch.tensor([float("nan"), 1.0])
    for dtype in (torch.float32, torch.float64):
        y = fake_quantize(x.to(dtype), torch.tensor(0.5, dtype=dtype), -4, 3)
        assert y.isnan().tolist() == [True, False]


@pytest.mark.parametrize("shape", [(compiled.WORTH_THREADS + 77,), (5, 3 * compiled.PIECE + 11), (300, 500)])
@pytest.mark.parametrize("per_channel", [False, True])
def test_large_tensors_give_the_same_bits_on_any_number_of_threads(shape, per_channel):
    x, upstream = (torch.randn(shape, generator=generator(i)) for i in range(2))
    steps = [torch.tensor(0.4), torch.tensor(0.1)]
    if per_channel:
        steps = [s * torch.linspace(0.5, 2, len(x)) for s in steps]
    mixture, levels = torch.tensor([0.3, 0.7]), [Levels(-4, 3), Levels(0, 15)]

    def single(x, s):
        return fake_quantize(x, s, *levels[0])

    def mixed(x, m, *steps):
        return mix_quantized(x, steps, levels, m)

    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append([
                *gradients(single, x, steps[0], upstream=upstream),
                *gradients(mixed, x, mixture, *steps, upstream=upstream),
            ])  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    twin = gradients(
        lambda x, s: composed(x, s, *levels[0][:3]), x.double(), steps[0].double(), upstream=upstream.double()
    )
    for a, b in zip(results[0][:2], twin[:2], strict=True):
        assert ((a - b).abs() > 1e-4).float().mean() < 1e-4  # in double precision a middle can round the other way
    torch.testing.assert_close(results[0][2].double(), twin[2], rtol=1e-3, atol=0.05)


def test_a_second_derivative_is_refused_and_a_first_one_may_keep_its_graph():
    x = torch.randn(10, generator=generator()).requires_grad_()
    y = fake_quantize(x, torch.tensor(0.5), -4, 3).square().sum()
    (g,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()
