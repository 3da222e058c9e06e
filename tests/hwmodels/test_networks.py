"""The built-in networks are the networks that they are named after."""

import csv
import subprocess
import sys

import pytest

from hwmodels.networks import NETWORKS, mobilenet_v2, mobilenet_v2_cifar, resnet18, resnet20, resnet50, vgg16

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torch import nn  # noqa: E402

from hwmodels.from_torch import from_torch  # noqa: E402


class OptionA(nn.Module):
    """A basic block whose shortcut skips pixels and appends zero channels."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.extra = stride, channels - in_channels

    def forward(self, x):
        y = self.bn2(self.conv2(nn.functional.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = nn.functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra // 2)
            )
        y += x
        return nn.functional.relu(y)


class ResNetCifar(nn.Module):
    """Section 4.2 of arXiv:1512.03385."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        count = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (ins, outs) in enumerate(((16, 16), (16, 32), (32, 64))):
            blocks = [OptionA(outs if i else ins, outs, 2 if stage and not i else 1) for i in range(count)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = nn.functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def vgg16_cifar() -> nn.Module:
    net = torchvision.models.vgg16_bn()
    net.avgpool, net.classifier = nn.Identity(), nn.Linear(512, 10)
    return net


def mobilenet_v2_for_cifar() -> nn.Module:
    """torchvision's code with the strides of the stem and of the 24-channel stage set to 1."""
    settings = [
        [1, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    net = torchvision.models.MobileNetV2(num_classes=10, inverted_residual_setting=settings)
    net.features[0][0].stride = (1, 1)
    return net


MODULES = {
    "resnet18": (torchvision.models.resnet18, 224),
    "resnet50": (torchvision.models.resnet50, 224),
    "resnet20": (lambda: ResNetCifar(20), 32),
    "resnet32": (lambda: ResNetCifar(32), 32),
    "resnet44": (lambda: ResNetCifar(44), 32),
    "resnet56": (lambda: ResNetCifar(56), 32),
    "vgg16": (vgg16_cifar, 32),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 224),
    "mobilenet_v2_cifar": (mobilenet_v2_for_cifar, 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_table_is_what_the_torch_network_executes(name):
    build, size = MODULES[name]
    with torch.device("meta"):
        module = build()
    traced, table = from_torch(module, (2, 3, size, size), name=name), NETWORKS[name](batch=2)
    assert table == traced
    assert [layer.name for layer in table.layers] == [layer.name for layer in traced.layers]


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_the_parameters_of_the_torch_network(name):
    build, _ = MODULES[name]
    with torch.device("meta"):
        module = build()
    weights = sum(p.numel() for p in module.parameters() if p.dim() > 1)
    assert NETWORKS[name]().weight_bytes == weights


def test_macs_are_those_published():
    """VGG16 after "Uniform-precision neural network quantization via neural channel expansion", Table 1."""
    assert round(vgg16().macs / 1e6, 1) == 313.2
    assert round(vgg16().weight_bytes / 1e6, 2) == 14.72
    assert round(mobilenet_v2().macs / 1e6) == 301  # arXiv:1801.04381, Table 4: 300 M
    assert round(resnet18().macs / 1e9, 2) == 1.81  # arXiv:1512.03385, Table 1: 1.8e9
    assert round(resnet50().macs / 1e9, 1) == 4.1  # the table's 3.8e9 has the strides on the 1x1


def test_macs_grow_with_the_batch_and_the_image():
    assert resnet20(batch=4).macs == 4 * resnet20().macs
    assert resnet20(batch=4).batch == 4
    convs = [sum(layer.macs for layer in net.layers if layer.op == "conv") for net in (resnet20(), resnet20(1, 64))]
    assert convs[1] == 4 * convs[0]


def test_only_the_first_convolution_reads_the_networks_input():
    for network in NETWORKS.values():
        layers = network().layers
        assert [layer.reads_network_input for layer in layers] == [True] + [False] * (len(layers) - 1)


def test_a_shortcut_without_parameters_is_read_where_it_lies():
    """The addition of a stage's first block reads the earlier activation itself, at its own size."""
    tensor = next(t for t in resnet20().tensors if t.producer == "layer1.2.add")
    assert tensor.shape == (1, 16, 32, 32)
    assert tensor.consumers == (("layer2.0.conv1", "input"), ("layer2.0.add", "weight"))


def test_cifar_mobilenet_has_the_strides_of_its_table():
    sizes = [layer.out_size[0] for layer in mobilenet_v2_cifar().layers if layer.groups > 1]
    assert sizes == [32] * 3 + [16] * 3 + [8] * 7 + [4] * 4


def test_an_image_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="the kernel must fit in the padded input"):
        vgg16(input_size=8)


def test_the_tables_load_no_torch():
    code = "import sys, hwmodels.networks as n; n.resnet18(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("network", "file"), [("resnet18", "resnet18.csv"), ("resnet20", "resnet20_cifar.csv")])
def test_layers_are_those_of_the_golden_rows(network, file, reference_dir):
    """Kernel, output, stride, channels of the reference runs; they leave additions and pooling out."""
    with open(reference_dir / "golden" / file) as lines:
        rows = {row["layer"]: row for row in csv.DictReader(lines)}
    layers = {layer.name: layer for layer in NETWORKS[network]().mac_layers}
    assert {name.removesuffix(".0") if "downsample" in name else name for name in layers} >= set(rows) - {"fc"}
    for name, layer in layers.items():
        row = rows.get(name.replace("downsample.0", "downsample"))
        if row is None or layer.op == "linear":
            continue
        expected = tuple(int(row[key]) for key in ("K", "O", "S", "IC", "OC"))
        got = (layer.kernel_size[0], layer.out_size[0], layer.stride[0], layer.in_channels, layer.out_channels)
        assert got == expected
