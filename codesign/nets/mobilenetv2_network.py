"""A candidate of the MobileNetV2 space as a torch module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from codesign.quant.layers import QuantizedLayer

if TYPE_CHECKING:
    from codesign.nets.mobilenetv2 import Block, BlockShape, MobileNetV2Space


def conv(in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)


def pooling(stride: int) -> nn.AvgPool2d | None:
    """What the skip of a block averages with; None for stride 1."""
    return nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else None


def skip(x: Tensor, out_channels: int, pool: nn.Module | None) -> Tensor:
    """The path around a block, which has no parameters.

    Channels that the output does not have are dropped, those that it has more are zero, and a stride averages.
    """
    if x.shape[1] > out_channels:
        x = x[:, :out_channels]
    if pool is not None:
        x = pool(x)
    return functional.pad(x, (0, 0, 0, 0, 0, out_channels - x.shape[1])) if x.shape[1] < out_channels else x


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project without an activation; add what was read where the option has a skip.

    References
    ----------
    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018, section 3 and table 1.
    """

    def __init__(self, shape: BlockShape, block: Block) -> None:
        super().__init__()
        hidden = shape.in_channels * block.expansion
        self.expanded, self.skipped = block.expansion > 1, bool(block.skip)
        if self.expanded:
            self.expand, self.expand_norm = conv(shape.in_channels, hidden), nn.BatchNorm2d(hidden)
        self.depthwise = conv(hidden, hidden, block.kernel_size, shape.stride, groups=hidden)
        self.depthwise_norm = nn.BatchNorm2d(hidden)
        self.project, self.project_norm = conv(hidden, shape.out_channels), nn.BatchNorm2d(shape.out_channels)
        self.out_channels, self.pool = shape.out_channels, pooling(shape.stride) if self.skipped else None

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.expand_norm(self.expand(x))) if self.expanded else x
        y = functional.relu6(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        if not self.skipped:
            return y
        # The skip reads the activation as it is stored: quantized, as the first convolution reads it.
        first = self.expand if self.expanded else self.depthwise
        return y + skip(
            first.quantized_input(x) if isinstance(first, QuantizedLayer) else x, self.out_channels, self.pool
        )


class MobileNetV2(nn.Module):
    """A network of `MobileNetV2Space` in float, its layers named as in the space's workload.

    Parameters
    ----------
    space : MobileNetV2Space
    blocks : sequence of Block
    seed : int
        Of the weights.
    """

    def __init__(self, space: MobileNetV2Space, blocks: tuple[Block, ...], seed: int = 0) -> None:
        super().__init__()
        stem, head = space.stem_out, space.head_out
        self.stem, self.stem_norm = conv(space.in_channels, stem, 3, space.stem_stride), nn.BatchNorm2d(stem)
        shapes = space.block_shapes
        self.blocks = nn.ModuleList(InvertedResidual(*pair) for pair in zip(shapes, blocks, strict=True))
        self.head, self.head_norm = conv(shapes[-1].out_channels, head), nn.BatchNorm2d(head)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(head, space.classes)
        initialise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        x = functional.relu6(self.head_norm(self.head(x)))
        return self.classifier(self.pool(x).flatten(1))


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Draw the weights of convolutions and linear layers anew.

    Convolutions are normal with variance 2 / fan-out, linear layers with standard deviation 0.01, and biases zero.

    References
    ----------
    He et al., "Delving deep into rectifiers", ICCV 2015, equation 14; torchvision's MobileNetV2 does the same.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            continue
        drawn = torch.empty(weight.shape)
        if weight.ndim == 4:
            groups = getattr(layer, "groups", 1)
            fan_out = weight.shape[0] // groups * weight.shape[2] * weight.shape[3]
            drawn.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
        else:
            drawn.normal_(0.0, 0.01, generator=generator)
        weight.copy_(drawn)
        if getattr(layer, "bias", None) is not None:
            layer.bias.zero_()
