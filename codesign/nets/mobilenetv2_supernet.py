"""All networks of the MobileNetV2 space in one: shared weights, sliced for one candidate or masked for a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from codesign.distributed import batch_moments
from codesign.nets.mobilenetv2_network import initialise, pooling, skip
from codesign.quant import UniformQuantizer, mixed_quantize

if TYPE_CHECKING:
    from codesign.nets.mobilenetv2 import Block, BlockShape, MobileNetV2Space

#: For one block the weights of the values of each field of its option, in the order of `Block`.
Relaxed = Sequence[Tensor]


#: Scale of what a block adds to its skip, at the start.
FIRST_SCALE = 0.25


class Quantizers(nn.Module):
    """The quantizers of one tensor, one for each bitwidth, so that no step is shared between bitwidths.

    Attributes
    ----------
    enabled : bool
        Where it is off the tensor stays in float.
    seen : Tensor or None
        What passed last while `Supernet.calibrate` looks on.
    """

    def __init__(self, bits: Sequence[int]) -> None:
        super().__init__()
        self.by_bits = nn.ModuleDict({str(width): UniformQuantizer(width) for width in bits})
        self.enabled, self.watched, self.seen = False, False, None

    def forward(self, x: Tensor, bits: int | Tensor) -> Tensor:
        """The tensor at a bitwidth, or the mixture of its copies at all bitwidths with given weights."""
        if self.watched:
            self.seen = x.detach()
        if not self.enabled:
            return x
        if isinstance(bits, Tensor):
            return mixed_quantize(x, list(self.by_bits.values()), bits)
        return self.by_bits[str(bits)](x)


class SharedLayer(nn.Module):
    """A weight of which candidates use a slice, and its quantizers; with a bias for the classifier."""

    def __init__(self, shape: Sequence[int], bits: Sequence[int], groups: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.weight, self.groups = nn.Parameter(torch.empty(*shape)), groups
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.quantizers = Quantizers(bits)


class SharedBatchNorm(nn.Module):
    """BatchNorm of the first channels, with a scale, a shift and statistics of its own for each option that it meets.

    Parameters
    ----------
    channels : sequence of int
        The width of each option.
    first_scales : sequence of float, optional
        Scale of each option at the start; by default 1.

    References
    ----------
    Yu et al., "Slimmable neural networks", ICLR 2019, section 3.2.
    """

    def __init__(self, channels: Sequence[int], first_scales: Sequence[float] | None = None) -> None:
        super().__init__()
        first = torch.ones(len(channels)) if first_scales is None else torch.tensor(first_scales)
        self.scale = nn.Parameter(first[:, None].repeat(1, max(channels)))
        self.shift = nn.Parameter(torch.zeros(len(channels), max(channels)))
        self.statistics = nn.ModuleList(nn.BatchNorm2d(n, affine=False) for n in channels)

    def forward(self, x: Tensor, option: int) -> Tensor:
        """Normalise as one option."""
        n, kept = x.shape[1], self.statistics[option]
        weight, bias = self.scale[option, :n], self.shift[option, :n]
        if not self.training:
            return functional.batch_norm(x, kept.running_mean, kept.running_var, weight, bias, False, 0.0, kept.eps)
        kept.num_batches_tracked.add_(1)
        share = 1.0 / int(kept.num_batches_tracked) if kept.momentum is None else kept.momentum
        return batch_moments(x, weight, bias, kept, share, kept.eps)

    def soft(self, x: Tensor, weights: Tensor, apart: int = 0) -> Tensor:
        """Normalise all channels by the moments of this batch, which are not kept, and mix scales and shifts.

        So many of the last channels are those that the first option has ``apart`` from the others.
        """
        scale, shift = weights @ self.scale, weights @ self.shift
        if apart:
            scale, shift = torch.cat([scale, self.scale[0, :apart]]), torch.cat([shift, self.shift[0, :apart]])
        return batch_moments(x, scale, shift, None, 0.0, self.statistics[0].eps)


class SharedBlock(nn.Module):
    """An inverted residual block with all of its options."""

    def __init__(self, shape: BlockShape, space: MobileNetV2Space, input_bits: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.skips = shape, space.skips
        self.expansions, self.kernel_sizes = space.expansions, space.kernel_sizes
        widths = [shape.in_channels * expansion for expansion in space.expansions]
        widest, kernel, bits = widths[-1], space.kernel_sizes[-1], space.bits
        if widest > shape.in_channels:
            self.expand = SharedLayer((widest, shape.in_channels, 1, 1), bits)
            self.expand_norm = SharedBatchNorm(widths)
            self.depthwise_inputs = Quantizers(bits)  # not signed, as the inputs of a block are
        # Filters of the block's input have nothing in common with those of what is computed from it.
        self.apart = shape.in_channels if space.expansions[0] == 1 and widest > shape.in_channels else 0
        channels = widest + self.apart
        self.depthwise = SharedLayer((channels, 1, kernel, kernel), bits, groups=channels)
        self.depthwise_norm = SharedBatchNorm(widths)
        self.project = SharedLayer((shape.out_channels, channels, 1, 1), bits)
        # What leaves a block is about as large with a skip as without, since the next block's quantizers see both.
        scales = [FIRST_SCALE if skipped else 1.0 for skipped in space.skips]
        self.project_norm = SharedBatchNorm([shape.out_channels] * (len(widths) * len(scales)), scales * len(widths))
        self.inputs, self.project_inputs = Quantizers(input_bits), Quantizers(bits)
        self.pool = pooling(shape.stride)

    def hidden(self, expansion: int) -> slice:
        """The channels that an option filters: the first ones, or without an expansion the last."""
        if expansion == 1 and self.apart:
            return slice(-self.apart, None)
        return slice(self.shape.in_channels * expansion)

    def forward(self, x: Tensor, block: Block) -> Tensor:
        """One option: some of the channels, the centre of the kernel."""
        width, w_bits, a_bits = self.expansions.index(block.expansion), block.weight_bits, block.input_bits
        hidden, cut = self.hidden(block.expansion), (self.kernel_sizes[-1] - block.kernel_size) // 2
        x = y = self.inputs(x, a_bits)
        if block.expansion > 1:
            y = functional.conv2d(y, self.expand.quantizers(self.expand.weight[hidden], w_bits))
            y = functional.relu6(self.expand_norm(y, width))
            y = self.depthwise_inputs(y, a_bits)
        kernel = self.depthwise.weight[hidden, :, cut : self.kernel_sizes[-1] - cut, cut : self.kernel_sizes[-1] - cut]
        kernel = self.depthwise.quantizers(kernel, w_bits)
        y = functional.conv2d(y, kernel, None, self.shape.stride, block.kernel_size // 2, groups=len(kernel))
        y = self.project_inputs(functional.relu6(self.depthwise_norm(y, width)), a_bits)
        y = functional.conv2d(y, self.project.quantizers(self.project.weight[:, hidden], w_bits))
        y = self.project_norm(y, width * len(self.skips) + self.skips.index(block.skip))
        return y + skip(x, self.shape.out_channels, self.pool) if block.skip else y

    def soft(self, x: Tensor, relaxed: Relaxed) -> Tensor:
        """A mixture of all options; at weights of 0 and 1 it computes what `forward` does while it trains."""
        by_expansion, by_kernel, by_skip, w_bits, a_bits = relaxed
        channels, kernel = self.shape.in_channels, self.kernel_sizes[-1]
        x = y = self.inputs(x, a_bits)
        expanded = _expanded(by_expansion) if self.apart else by_expansion
        if self.expansions[-1] > 1:
            y = functional.conv2d(y, self.expand.quantizers(self.expand.weight, w_bits))
            y = functional.relu6(self.expand_norm.soft(y, expanded))
            y = self.depthwise_inputs(y, a_bits)
        if self.apart:
            y = torch.cat([y, x], dim=1)
        rings = _at_least(by_kernel, _rings(kernel, self.kernel_sizes, by_kernel))
        weight = self.depthwise.quantizers(self.depthwise.weight, w_bits) * rings
        y = functional.conv2d(y, weight, None, self.shape.stride, kernel // 2, groups=len(weight))
        y = self.project_inputs(functional.relu6(self.depthwise_norm.soft(y, expanded, self.apart)), a_bits)
        # The channel mask stands after the normalisation, which would undo it, and the quantizer: on the weights.
        steps = torch.arange(y.shape[1] - self.apart, device=y.device) // channels
        first = torch.bucketize(steps, torch.tensor(self.expansions, device=y.device), right=True)
        mask = _at_least(by_expansion, first.clamp(min=1) if self.apart else first)
        mask = torch.cat([mask, by_expansion[:1].expand(self.apart)])
        y = functional.conv2d(y, self.project.quantizers(self.project.weight, w_bits) * mask[:, None, None])
        y = self.project_norm.soft(y, torch.outer(by_expansion, by_skip).flatten())
        if 1 not in self.skips:
            return y
        return y + by_skip[self.skips.index(1)] * skip(x, self.shape.out_channels, self.pool)


def _expanded(by_expansion: Tensor) -> Tensor:
    """The weights of the options with an expansion among themselves, and 0 for the one without."""
    others = by_expansion[1:] / by_expansion[1:].sum().clamp(min=1e-6)
    return torch.cat([torch.zeros_like(by_expansion[:1]), others])


def _at_least(weights: Tensor, index: Tensor) -> Tensor:
    """For each index the sum of the weights from it on: the weight of the options that reach so far."""
    return weights.flip(0).cumsum(0).flip(0)[index]


def _rings(kernel: int, kernel_sizes: Sequence[int], like: Tensor) -> Tensor:
    """For each tap of the largest kernel the first of the kernel sizes that has it."""
    centre = kernel // 2
    distance = (torch.arange(kernel, device=like.device) - centre).abs()
    reach = 2 * torch.maximum(distance[:, None], distance[None, :]) + 1
    return torch.bucketize(reach, torch.tensor(kernel_sizes, device=like.device))


class Supernet(nn.Module):
    r"""Shared weights of all networks of a `MobileNetV2Space`.

    Parameters
    ----------
    space : MobileNetV2Space
    seed : int
        Of the weights.

    Notes
    -----
    A candidate *slices* the weights: the first channels, the centre of the largest kernel; so its step costs what the
    network alone costs. A block without an expansion filters its input, with channels of its own behind the others. A
    relaxed network, in which every field of an option has weights :math:`d` instead of a value, *masks* them: with one
    convolution a layer, at the largest size, whatever the number of options. Channel :math:`c` of the expanded ones
    has :math:`\sum_m d_m [c < m C]`, after BatchNorm; a tap of the kernel the sum over the kernel sizes that have it;
    operands are mixtures :math:`\sum_b d_b\, q_b(x)` of quantized copies of one tensor; and the skip is gated by its
    weight.

    Steps are learned, one for each tensor and bitwidth. A block's inputs may be negative, so their quantizers are
    signed; those behind a ReLU6 are not.

    References
    ----------
    Gong et al., ICCAD 2019 (relaxed masks). Weight sharing by slices: Stamoulis et al., "Single-path NAS", ECML 2019,
    for kernels; Yu et al., "Slimmable neural networks", ICLR 2019, for channels.
    """

    def __init__(self, space: MobileNetV2Space, seed: int = 0) -> None:
        from codesign.nets.mobilenetv2 import FIXED_BITS

        super().__init__()
        self.space = space
        fixed, shapes = (FIXED_BITS,), space.block_shapes
        self.stem = SharedLayer((space.stem_out, space.in_channels, 3, 3), fixed)
        self.stem_inputs, self.stem_norm = Quantizers(fixed), SharedBatchNorm([space.stem_out])
        self.blocks = nn.ModuleList(SharedBlock(shape, space, space.bits) for shape in shapes)
        self.head = SharedLayer((space.head_out, shapes[-1].out_channels, 1, 1), fixed)
        self.head_inputs, self.head_norm = Quantizers(fixed), SharedBatchNorm([space.head_out])
        self.classifier = SharedLayer((space.classes, space.head_out), fixed, bias=True)
        self.classifier_inputs = Quantizers(fixed)
        initialise(self, seed)

    def forward(self, x: Tensor, arch: Sequence[int]) -> Tensor:
        """Scores of one candidate; shape (n, classes)."""
        return self._between(x, list(zip(self.blocks, self.space.blocks(arch), strict=True)))

    def soft(self, x: Tensor, relaxed: Sequence[Relaxed]) -> Tensor:
        """Scores of a relaxed network, normalised by the moments of this batch.

        Parameters
        ----------
        x : Tensor
        relaxed : sequence of sequence of Tensor
            For each block and each field of `Block` weights of its values, which sum to 1.
        """
        return self._between(x, [(block.soft, weights) for block, weights in zip(self.blocks, relaxed, strict=True)])

    def _between(self, x: Tensor, blocks: Sequence[tuple[Any, Any]]) -> Tensor:
        from codesign.nets.mobilenetv2 import FIXED_BITS

        weight = self.stem.quantizers(self.stem.weight, FIXED_BITS)
        x = functional.conv2d(self.stem_inputs(x, FIXED_BITS), weight, None, self.space.stem_stride, 1)
        x = functional.relu6(self.stem_norm(x, 0))
        for block, option in blocks:
            x = block(x, option)
        weight = self.head.quantizers(self.head.weight, FIXED_BITS)
        x = functional.conv2d(self.head_inputs(x, FIXED_BITS), weight)
        x = functional.relu6(self.head_norm(x, 0)).mean(dim=(2, 3))
        weight = self.classifier.quantizers(self.classifier.weight, FIXED_BITS)
        return functional.linear(self.classifier_inputs(x, FIXED_BITS), weight, self.classifier.bias)

    @property
    def quantized(self) -> bool:
        """Whether it runs with its quantizers, or in float."""
        return self.stem_inputs.enabled

    def use_quantizers(self, enabled: bool) -> None:
        """Run with the quantizers, which need `calibrate` before, or in float."""
        for bank in self._banks():
            bank.enabled = enabled

    def input_steps(self) -> list[Tensor]:
        """The steps of quantizers whose values are activations, so that their number grows with the batch."""
        weights = {id(layer.quantizers) for layer in self.modules() if isinstance(layer, SharedLayer)}
        return [q.step for bank in self._banks() if id(bank) not in weights for q in bank.by_bits.values()]

    def _banks(self) -> list[Quantizers]:
        return [module for module in self.modules() if isinstance(module, Quantizers)]

    @torch.no_grad()
    def calibrate(self, images: Tensor, most_values: int = 20_000, n_archs: int = 16, seed: int = 0) -> None:
        """Fit all steps to what the largest network and random ones see in float, and run with quantizers from now on.

        Parameters
        ----------
        images : Tensor
            A batch from the training set.
        most_values : int
            Values of a tensor that its steps are fitted to.
        n_archs : int
            Random networks, without whose skips what enters a block is smaller than in the largest one.
        seed : int
            Draws them.
        """
        rng, training, banks = np.random.default_rng(seed), self.training, self._banks()
        archs = [self.space.largest, *(self.space.sample(rng) for _ in range(n_archs))]
        seen: dict[Quantizers, list[Tensor]] = {bank: [] for bank in banks}
        self.use_quantizers(False)
        self.train(True)  # by the moments of the batch: no network has statistics of its own yet
        kept = {name: buffer.clone() for name, buffer in self.named_buffers()}
        for bank in banks:
            bank.watched = True
        for arch in archs:
            self(images, arch)
            for bank in banks:
                if bank.seen is not None:
                    values = bank.seen.flatten()
                    seen[bank].append(values[:: max(1, values.numel() * len(archs) // most_values)].clone())
                    bank.seen = None
        for bank in banks:
            bank.watched = False
            for quantizer in bank.by_bits.values():
                quantizer.calibrate(torch.cat(seen[bank]))
        for name, buffer in self.named_buffers():
            if name in kept and "statistics" in name:
                buffer.copy_(kept[name])
        self.train(training)
        self.use_quantizers(True)

    def at(self, arch: Sequence[int]) -> Candidate:
        """A candidate as a module of its own, which shares the weights."""
        return Candidate(self, tuple(arch))

    @torch.no_grad()
    def extract(self, arch: Sequence[int]) -> nn.Module:
        """A copy of a candidate as a plain network with quantized layers, as `MobileNetV2Space.build` makes it."""
        network = self.space.build(arch)
        _copy_layer(network.stem, self.stem, self.stem_inputs)
        _copy_norm(network.stem_norm, self.stem_norm, 0)
        for block, shared, option in zip(network.blocks, self.blocks, self.space.blocks(arch), strict=True):
            width = self.space.expansions.index(option.expansion)
            inputs = shared.inputs
            if block.expanded:
                _copy_layer(block.expand, shared.expand, inputs)
                _copy_norm(block.expand_norm, shared.expand_norm, width)
                inputs = shared.depthwise_inputs
            hidden = shared.hidden(option.expansion)
            _copy_layer(block.depthwise, shared.depthwise, inputs, rows=hidden)
            _copy_norm(block.depthwise_norm, shared.depthwise_norm, width)
            _copy_layer(block.project, shared.project, shared.project_inputs, columns=hidden)
            option_of_sum = width * len(self.space.skips) + self.space.skips.index(option.skip)
            _copy_norm(block.project_norm, shared.project_norm, option_of_sum)
        _copy_layer(network.head, self.head, self.head_inputs)
        _copy_norm(network.head_norm, self.head_norm, 0)
        _copy_layer(network.classifier, self.classifier, self.classifier_inputs)
        return network


class Candidate(nn.Module):
    """One network of a supernet: a module of images alone."""

    def __init__(self, supernet: Supernet, arch: tuple[int, ...]) -> None:
        super().__init__()
        self.supernet, self.arch = supernet, arch

    def forward(self, x: Tensor) -> Tensor:
        return self.supernet(x, self.arch)


def _copy_layer(
    layer: Any, shared: SharedLayer, inputs: Quantizers, rows: slice | None = None, columns: slice | None = None
) -> None:
    """Weights and quantizers of one layer of a candidate; by default the first rows and columns."""
    weight = shared.weight
    if weight.ndim == 4:
        n_rows, n_columns, kernel, _ = layer.weight.shape
        cut = (weight.shape[2] - kernel) // 2
        weight = weight[rows or slice(n_rows), columns or slice(n_columns), cut : cut + kernel, cut : cut + kernel]
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(shared.bias)
    for own, bank in ((layer.weight_quantizers, shared.quantizers), (layer.input_quantizers, inputs)):
        for bits in own.keys() & bank.by_bits.keys():
            own[bits].load_state_dict(bank.by_bits[bits].state_dict())


def _copy_norm(norm: nn.BatchNorm2d, shared: SharedBatchNorm, option: int) -> None:
    n = norm.num_features
    norm.weight.copy_(shared.scale[option, :n])
    norm.bias.copy_(shared.shift[option, :n])
    norm.load_state_dict(shared.statistics[option].state_dict(), strict=False)
