"""Residual networks for images of 32 x 32 pixels, as they were published for CIFAR-10."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class CifarResNet(nn.Module):
    """ResNet-20, -32, -44, -56, ...: three stages of 16, 32 and 64 channels.

    Parameters
    ----------
    depth : int
        6n + 2 layers, with n blocks of two convolutions in each stage.
    classes : int

    Raises
    ------
    ValueError
        For a depth that is not 6n + 2.

    Notes
    -----
    Shortcuts have no parameters (option A): where a stage begins, every second pixel is taken and channels of zeros
    are added, half of them before and half behind. In a state dict the names are ``conv1``, ``bn1``,
    ``layer{1,2,3}.N.{conv,bn}{1,2}`` and ``linear``.

    References
    ----------
    He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2.

    Examples
    --------
    >>> sum(p.numel() for p in CifarResNet(20).parameters())
    269722
    """

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"CifarResNet: depth must be 6n + 2, such as 20, 32, 44 or 56, got {depth}.")
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n, 1)
        self.layer2 = _stage(16, 32, n, 2)
        self.layer3 = _stage(32, 64, n, 2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.added = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.added:
            before = self.added // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        return functional.relu(y + x)


def _stage(in_channels: int, channels: int, n: int, stride: int) -> nn.Sequential:
    """``n`` blocks, the first of which has the stride."""
    return nn.Sequential(*(_Block(in_channels if i == 0 else channels, channels, stride if i == 0 else 1)
                           for i in range(n)))  # fmt: skip


def resnet20(classes: int = 10) -> nn.Module:
    """A `CifarResNet` of 20 layers."""
    return CifarResNet(20, classes)


def resnet32(classes: int = 10) -> nn.Module:
    """A `CifarResNet` of 32 layers."""
    return CifarResNet(32, classes)


def resnet44(classes: int = 10) -> nn.Module:
    """A `CifarResNet` of 44 layers."""
    return CifarResNet(44, classes)


def resnet56(classes: int = 10) -> nn.Module:
    """A `CifarResNet` of 56 layers."""
    return CifarResNet(56, classes)
