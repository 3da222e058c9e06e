"""A small MobileNetV2 for 8 x 8 images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Expansion, output channels, stride of each block; 8 x 8, then 4 x 4, then 2 x 2 pixels.
BLOCKS = ((1, 8, 1), (4, 16, 2), (4, 16, 1), (4, 32, 2), (4, 32, 1))


def _conv(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project without an activation; add the input where shapes agree.

    References
    ----------
    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018, section 3 and table 1.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = nn.Sequential()
        if expansion > 1:
            self.expand = nn.Sequential(_conv(in_channels, hidden), nn.BatchNorm2d(hidden), nn.ReLU6())
        self.depthwise = nn.Sequential(
            _conv(hidden, hidden, 3, stride, groups=hidden), nn.BatchNorm2d(hidden), nn.ReLU6()
        )
        self.project = nn.Sequential(_conv(hidden, out_channels), nn.BatchNorm2d(out_channels))
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class DigitsNet(nn.Module):
    """A stem, inverted residual blocks, a head and a classifier for 1 x 8 x 8 images of ten digits.

    Parameters
    ----------
    blocks : tuple of (int, int, int)
        Expansion, output channels and stride of each block.
    stem_channels, head_channels : int
    """

    def __init__(
        self, blocks: tuple[tuple[int, int, int], ...] = BLOCKS, stem_channels: int = 8, head_channels: int = 64
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(1, stem_channels, 3), nn.BatchNorm2d(stem_channels), nn.ReLU6())
        channels = stem_channels
        body = []
        for expansion, out_channels, stride in blocks:
            body.append(InvertedResidual(channels, out_channels, expansion, stride))
            channels = out_channels
        self.blocks = nn.Sequential(*body)
        self.head = nn.Sequential(_conv(channels, head_channels), nn.BatchNorm2d(head_channels), nn.ReLU6())
        self.classifier = nn.Linear(head_channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(x.mean(dim=(2, 3)))


def digits_net(seed: int) -> DigitsNet:
    """A `DigitsNet` with weights drawn from a seed, by the rule of torch's own layers but its own generator."""
    generator = torch.Generator().manual_seed(seed)
    network = DigitsNet()
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network
