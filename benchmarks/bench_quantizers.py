"""Training with quantizers in the loop: time over the float layer, beside brevitas and LSQ composed by autograd.

Each job is a step of training: forward, backward, for gradients of inputs, weights, biases and quantizers. All variants
take turns, so that other work on the machine meets all of them alike. OMP_NUM_THREADS sets the number of threads; with
more than there are idle cores the figures say little.
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import Report, Times
from torch import Tensor, nn

from codesign.quant import calibrate, mixed_quantize, quantize, quantized_layers
from codesign.quant.uniform import UniformQuantizer

BITS, BATCH, ROUNDS, SEED = 4, 32, 15, 0

#: Layers, and a stack of MobileNetV2's kind, with the shape of one image.
JOBS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution 3x3, 64 to 64, 16x16": (lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 16, 16)),
    "convolution 1x1, 32 to 192, 16x16": (lambda: nn.Conv2d(32, 192, 1), (32, 16, 16)),
    "depthwise 3x3, 192, 16x16": (lambda: nn.Conv2d(192, 192, 3, padding=1, groups=192), (192, 16, 16)),
    "linear, 1280 to 100": (lambda: nn.Linear(1280, 100), (1280,)),
    "linear, 512 to 512": (lambda: nn.Linear(512, 512), (512,)),
    "three inverted residuals, 16x16": (
        lambda: nn.Sequential(*(inverted_residual(24) for _ in range(3))),
        (24, 16, 16),
    ),
}


def inverted_residual(channels: int) -> nn.Module:
    """Expand by 6, filter, project."""
    hidden = 6 * channels
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
        nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
        nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels),
    )  # fmt: skip


class PlainLSQ(nn.Module):
    """Learned step sizes as one writes them down: operations that autograd differentiates, every one of them kept."""

    def __init__(self, quantizer: UniformQuantizer) -> None:
        super().__init__()
        self.step = nn.Parameter(quantizer.step.detach().clone())
        self.low, self.high = quantizer.low, quantizer.high

    def forward(self, x: Tensor) -> Tensor:
        scale = (x.numel() * self.high) ** -0.5
        step = (self.step - self.step * scale).detach() + self.step * scale
        u = (x / step).clamp(self.low, self.high)
        return ((u.round() - u).detach() + u) * step


def with_plain_lsq(net: nn.Module) -> nn.Module:
    """A quantized network with the quantizers exchanged."""
    net = copy.deepcopy(net)
    for _, layer in quantized_layers(net):
        for quantizers in (layer.weight_quantizers, layer.input_quantizers):
            quantizers[str(BITS)] = PlainLSQ(quantizers[str(BITS)])
    return net


def with_brevitas(net: nn.Module, images: Tensor, learned_weights: bool) -> nn.Module:
    """A float network of brevitas' layers: learned scale of inputs; of weights learned, or their largest magnitude."""
    import brevitas.nn as brevitas_nn
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat

    weights = {"weight_scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS} if learned_weights else {}
    options = {
        "weight_quant": Int8WeightPerTensorFloat, "weight_bit_width": BITS, "input_quant": Int8ActPerTensorFloat,
        "input_bit_width": BITS, "input_collect_stats_steps": 1, **weights,
    }  # fmt: skip

    def exchanged(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.Conv2d):
            new: nn.Module = brevitas_nn.QuantConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding, groups=layer.groups,
                bias=layer.bias is not None, **options,
            )  # fmt: skip
        elif isinstance(layer, nn.Linear):
            new = brevitas_nn.QuantLinear(layer.in_features, layer.out_features, layer.bias is not None, **options)
        else:
            for name, child in layer.named_children():
                setattr(layer, name, exchanged(child))
            return layer
        new.load_state_dict(layer.state_dict(), strict=False)
        return new

    net = exchanged(copy.deepcopy(net))
    for _ in range(3):  # the scale of inputs is found in the first steps
        net.train()(images)
    return net


def variants(make: Callable[[], nn.Module], images: Tensor) -> dict[str, nn.Module]:
    """The same job in float, ours, composed, and brevitas where it is installed."""
    torch.manual_seed(SEED)
    net = make()
    ours = quantize(net, BITS, quantizer="lsq")
    calibrate(ours, images)
    found = {"float": net, "codesign": ours, "plain LSQ": with_plain_lsq(ours)}
    try:
        found["brevitas"] = with_brevitas(net, images, learned_weights=True)
        found["brevitas, max weights"] = with_brevitas(net, images, learned_weights=False)
    except ImportError:
        pass
    return found


def in_turns(work: dict[str, Callable[[], Any]]) -> dict[str, Times]:
    """Times of several functions that take turns, after a warm-up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for step in work.values():
        for _ in range(3):
            step()
    gc.collect()
    for _ in range(ROUNDS):
        for name, step in work.items():
            start, processor = time.perf_counter(), time.process_time()
            step()
            times[name].append((time.perf_counter() - start, time.process_time() - processor))
    return {
        name: Times(
            statistics.median(wall for wall, _ in each), min(wall for wall, _ in each), max(wall for wall, _ in each),
            statistics.median(processor for _, processor in each),
        )
        for name, each in times.items()
    }  # fmt: skip


def training_step(net: nn.Module, images: Tensor, upstream: Tensor) -> Callable[[], None]:
    """Forward and backward; gradients are dropped, as an optimiser does."""

    def step() -> None:
        images.grad = None
        net.zero_grad(set_to_none=True)
        net(images).backward(upstream)

    return step


def compare(report: Report, threads: int) -> None:
    """All jobs."""
    report(f"\n{_threads(threads)}, batch {BATCH}, {BITS} bits, step of training")
    over, ratio = f"{'over float: median':>19}{'processor':>11}", f"{'overhead to ours: median':>25}{'processor':>11}"
    report(f"{'':<60}{'wall time':<34}{over}{ratio}")
    for job, (make, shape) in JOBS.items():
        generator = torch.Generator().manual_seed(SEED)
        images = torch.randn(BATCH, *shape, generator=generator).requires_grad_()
        nets = variants(make, images.detach())
        upstream = torch.randn(nets["float"](images).shape, generator=generator)
        times = in_turns({name: training_step(net, images, upstream) for name, net in nets.items()})
        base, ours = times["float"], times["codesign"]
        for name, each in times.items():
            text = f"{job if name == 'float' else '':<36}{name:<24}{each!s:<34}"
            if name != "float":
                text += f"{each.median / base.median - 1:>+19.0%}{each.processor / base.processor - 1:>+11.0%}"
            if name not in ("float", "codesign"):
                text += f"{_ratio(each.median - base.median, ours.median - base.median):>25}"
                text += f"{_ratio(each.processor - base.processor, ours.processor - base.processor):>11}"
            report(text)


def _ratio(other: float, ours: float) -> str:
    return f"{other / ours:.1f}" if ours > 0 else "-"


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def mixtures(report: Report, threads: int) -> None:
    """A mixture of four bitwidths of one tensor, in one pass and one quantizer after the other."""
    x = torch.randn(BATCH, 192, 16, 16, generator=torch.Generator().manual_seed(SEED)).requires_grad_()
    quantizers = [UniformQuantizer(bits) for bits in (2, 4, 6, 8)]
    for quantizer in quantizers:
        quantizer.calibrate(x)
    mixture, upstream = torch.full((4,), 0.25, requires_grad=True), torch.randn(x.shape)

    def step(function: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: function().backward(upstream)

    times = in_turns({
        "one pass": step(lambda: mixed_quantize(x, quantizers, mixture)),
        "one after the other": step(lambda: sum(m * q(x) for m, q in zip(mixture, quantizers, strict=True))),
        "one of them alone": step(lambda: quantizers[1](x)),
    })  # fmt: skip
    report(f"\nmixture of 2, 4, 6 and 8 bits of {tuple(x.shape)}, forward and backward, {_threads(threads)}")
    for name, each in times.items():
        report(f"  {name:<24}{each!s:<34}{each.median / times['one pass'].median:.2f} of one pass")


def main() -> None:
    """Run all of it."""
    report = Report("Quantizers in training", "torch")
    try:
        from brevitas import __version__

        report(f"brevitas  {__version__}, eager as it is by default")
    except ImportError:
        report("brevitas  is not installed, so its rows are missing: pip install brevitas")
    compare(report, torch.get_num_threads())
    mixtures(report, torch.get_num_threads())
    report.close()


if __name__ == "__main__":
    main()
