"""Built-in networks as tables, so that pricing them needs no torch.

Layer names are those of the torchvision modules, or, for the CIFAR networks, of the same code with other sizes.
BatchNorm is folded and activation functions are fused, as `hwmodels.from_torch` does.
"""

from __future__ import annotations

from collections.abc import Callable

from hwmodels.graph import Activation, Graph
from hwmodels.workload import Workload


class _Network(Graph):
    """A `Graph` with the layers of the tables below in few words."""

    def same_conv(
        self, name: str, x: Activation, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> Activation:
        """A convolution padded so that stride 1 keeps the size."""
        pad = kernel // 2
        return self.conv(name, x, out_channels, (kernel, kernel), (stride, stride), (pad, pad), groups=groups)

    def residual(self, name: str, x: Activation, y: Activation) -> Activation:
        """The sum of two activations."""
        return self.elementwise("add", name, (x, y), x.shape)

    def classifier(self, name: str, pool: str, x: Activation, classes: int) -> Activation:
        """Average over the map, and a fully connected layer."""
        x = self.resampled("pool", pool, x, (1, 1))
        return self.linear(name, x, x.shape[1], classes, rows=x.shape[0])


# --- ResNet: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 -----------------------------------


def _resnet(name: str, blocks: tuple[int, ...], bottleneck: bool, batch: int, input_size: int) -> Workload:
    """Table 1; the stride of a bottleneck is on its 3x3 convolution, as in torchvision."""
    net = _Network()
    x = net.same_conv("conv1", net.input((batch, 3, input_size, input_size)), 64, kernel=7, stride=2)
    x = net.pool("maxpool", x, (3, 3), stride=(2, 2), padding=(1, 1))
    for stage, count in enumerate(blocks):
        width = 64 << stage
        out_channels = 4 * width if bottleneck else width
        for i in range(count):
            block, stride = f"layer{stage + 1}.{i}", 2 if stage and not i else 1
            if bottleneck:
                y = net.same_conv(f"{block}.conv1", x, width, kernel=1)
                y = net.same_conv(f"{block}.conv2", y, width, stride=stride)
                y = net.same_conv(f"{block}.conv3", y, out_channels, kernel=1)
            else:
                y = net.same_conv(f"{block}.conv1", x, width, stride=stride)
                y = net.same_conv(f"{block}.conv2", y, width)
            if x.shape != y.shape:
                x = net.same_conv(f"{block}.downsample.0", x, out_channels, kernel=1, stride=stride)
            x = net.residual(f"{block}.add", y, x)
    net.classifier("fc", "avgpool", x, 1000)
    return net.workload(name, batch)


def resnet18(batch: int = 1, input_size: int = 224) -> Workload:
    """ResNet-18 for ImageNet [1]_, Table 1.

    References
    ----------
    .. [1] He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.

    Examples
    --------
    >>> round(resnet18().macs / 1e9, 3)
    1.814
    """
    return _resnet("resnet18", (2, 2, 2, 2), False, batch, input_size)


def resnet50(batch: int = 1, input_size: int = 224) -> Workload:
    """ResNet-50 for ImageNet, Table 1 of arXiv:1512.03385, strides as in torchvision."""
    return _resnet("resnet50", (3, 4, 6, 3), True, batch, input_size)


def _resnet_cifar(depth: int, batch: int, input_size: int) -> Workload:
    """Section 4.2: 6n + 2 layers, shortcuts without parameters.

    Where a stage halves the map, the shortcut skips every second pixel and appends zero channels (option A):
    addressing only, so the addition reads the earlier activation itself.
    """
    net = _Network()
    x = net.same_conv("conv1", net.input((batch, 3, input_size, input_size)), 16)
    for stage in range(3):
        for i in range((depth - 2) // 6):
            block = f"layer{stage + 1}.{i}"
            y = net.same_conv(f"{block}.conv1", x, 16 << stage, stride=2 if stage and not i else 1)
            y = net.same_conv(f"{block}.conv2", y, 16 << stage)
            x = net.residual(f"{block}.add", y, x if x.shape == y.shape else net.moved([x], y.shape))
    net.classifier("fc", "avgpool", x, 10)
    return net.workload(f"resnet{depth}", batch)


def resnet20(batch: int = 1, input_size: int = 32) -> Workload:
    """ResNet-20 for CIFAR-10, arXiv:1512.03385 section 4.2, shortcuts without parameters (option A)."""
    return _resnet_cifar(20, batch, input_size)


def resnet32(batch: int = 1, input_size: int = 32) -> Workload:
    """ResNet-32 for CIFAR-10, arXiv:1512.03385 section 4.2, shortcuts without parameters (option A)."""
    return _resnet_cifar(32, batch, input_size)


def resnet44(batch: int = 1, input_size: int = 32) -> Workload:
    """ResNet-44 for CIFAR-10, arXiv:1512.03385 section 4.2, shortcuts without parameters (option A)."""
    return _resnet_cifar(44, batch, input_size)


def resnet56(batch: int = 1, input_size: int = 32) -> Workload:
    """ResNet-56 for CIFAR-10, arXiv:1512.03385 section 4.2, shortcuts without parameters (option A)."""
    return _resnet_cifar(56, batch, input_size)


# --- VGG ------------------------------------------------------------------------------------------------------------


def vgg16(batch: int = 1, input_size: int = 32) -> Workload:
    """VGG16 for CIFAR-10: configuration D of [1]_ with BatchNorm and one classifier layer of 10 outputs.

    The 13 convolutions are those of the ImageNet network; 313.2 million MACs and 14.7 million weights, as
    quoted in the literature on CIFAR-10.

    References
    ----------
    .. [1] Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
       ICLR 2015, arXiv:1409.1556, Table 1.

    Examples
    --------
    >>> round(vgg16().macs / 1e6, 1)
    313.2
    """
    net = _Network()
    x, index = net.input((batch, 3, input_size, input_size)), 0
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = net.same_conv(f"features.{index}", x, width)
            index += 3  # convolution, BatchNorm, ReLU
        x = net.pool(f"features.{index}", x, (2, 2))
        index += 1
    net.classifier("classifier", "avgpool", x, 10)
    return net.workload("vgg16", batch)


# --- MobileNetV2: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018 ---------------

#: Table 2: expansion, output channels, repeats; then the stride of the first block for ImageNet and for CIFAR.
_MOBILENET_V2 = (
    (1, 16, 1, 1, 1),
    (6, 24, 2, 2, 1),
    (6, 32, 3, 2, 2),
    (6, 64, 4, 2, 2),
    (6, 96, 3, 1, 1),
    (6, 160, 3, 2, 2),
    (6, 320, 1, 1, 1),
)


def _mobilenet_v2(name: str, cifar: bool, classes: int, batch: int, input_size: int) -> Workload:
    net = _Network()
    x = net.same_conv("features.0.0", net.input((batch, 3, input_size, input_size)), 32, stride=1 if cifar else 2)
    index = 1
    for expansion, channels, repeats, *strides in _MOBILENET_V2:
        for i in range(repeats):
            block, y, part = f"features.{index}", x, 0
            if expansion > 1:
                y, part = net.same_conv(f"{block}.conv.0.0", y, expansion * x.shape[1], kernel=1), 1
            width, stride = y.shape[1], strides[cifar] if i == 0 else 1
            y = net.same_conv(f"{block}.conv.{part}.0", y, width, stride=stride, groups=width)
            y = net.same_conv(f"{block}.conv.{part + 1}", y, channels, kernel=1)
            x = net.residual(f"{block}.add", x, y) if x.shape == y.shape else y
            index += 1
    x = net.same_conv(f"features.{index}.0", x, 1280, kernel=1)
    net.classifier("classifier.1", "pool", x, classes)
    return net.workload(name, batch)


def mobilenet_v2(batch: int = 1, input_size: int = 224) -> Workload:
    """MobileNetV2 for ImageNet at width 1.0 [1]_, Table 2.

    References
    ----------
    .. [1] Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, arXiv:1801.04381.

    Examples
    --------
    >>> round(mobilenet_v2().macs / 1e6, 1)
    300.8
    """
    return _mobilenet_v2("mobilenet_v2", False, 1000, batch, input_size)


def mobilenet_v2_cifar(batch: int = 1, input_size: int = 32) -> Workload:
    """MobileNetV2 for CIFAR-10: Table 2 of arXiv:1801.04381 with strides 1 in the stem and in the 24-channel stage."""
    return _mobilenet_v2("mobilenet_v2_cifar", True, 10, batch, input_size)


#: The built-in networks; each takes ``batch`` and ``input_size``.
NETWORKS: dict[str, Callable[..., Workload]] = {
    network.__name__: network
    for network in (
        resnet18, resnet50, resnet20, resnet32, resnet44, resnet56, vgg16, mobilenet_v2, mobilenet_v2_cifar,
    )
}  # fmt: skip
