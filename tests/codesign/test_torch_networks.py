"""Networks by name and weights from files: what is read, and what is refused."""

import pickle
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from codesign.nets.resnet_cifar import CifarResNet
from codesign.torch_networks import load_module, load_weights, read_weights
from hwmodels.from_torch import from_torch
from hwmodels.networks import NETWORKS


def tensors(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(("name", "depth", "parameters"), [("resnet20", 20, 269_722), ("resnet56", 56, 853_018)])
def test_cifar_networks_have_their_published_sizes(name, depth, parameters):
    network = load_module(name)
    assert sum(p.numel() for p in network.parameters()) == parameters
    layers = from_torch(network, (1, 3, 32, 32)).mac_layers
    assert len(layers) == depth and not network.training
    table = NETWORKS[name]().mac_layers
    assert [(a.in_channels, a.out_channels, a.macs) for a in layers] == [
        (b.in_channels, b.out_channels, b.macs) for b in table
    ]
    assert [layer.name for layer in layers[:-1]] == [layer.name for layer in table[:-1]]


def test_shortcuts_subsample_and_pad_with_zeros():
    block = CifarResNet(8).eval().layer2[0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2]) and not y[:, :8].any() and not y[:, 24:].any()


def test_a_depth_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2"):
        CifarResNet(18)


def test_torchvision_and_factories_are_networks_too(tmp_path, monkeypatch):
    assert load_module("mobilenet_v2", 10).classifier[1].out_features == 10
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Linear(4, 2)\ndef number():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_module("my_nets:build"), nn.Linear)
    with pytest.raises(ValueError, match="must return a torch module, got int"):
        load_module("my_nets:number")
    with pytest.raises(ValueError, match="must have a callable 'bild', got none; it has build"):
        load_module("my_nets:bild")
    with pytest.raises(ValueError, match="near it are resnet20"):
        load_module("resnet_20")


def test_weights_are_those_of_the_file(tmp_path):
    source, target = CifarResNet(8), CifarResNet(8)
    save_file(tensors(source), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(tensors(source).values(), tensors(target).values(), strict=True))


def test_weights_of_another_network_are_refused_with_what_differs(tmp_path):
    path = tmp_path / "w.safetensors"
    wanted = CifarResNet(8)
    kept = tensors(wanted)
    del kept["conv1.weight"]
    kept["linear.weight"] = torch.zeros(100, 64)
    save_file(kept | {"fc.weight": torch.zeros(1)}, path)
    expected = "those of my net, but missing: conv1.weight; unknown: fc.weight; of another shape: linear.weight 100x64 "
    with pytest.raises(ValueError, match=re.escape(expected + "and not 10x64.")):
        load_weights(wanted, path, "my net")
    save_file(tensors(CifarResNet(14)), path)
    with pytest.raises(ValueError, match=r"unknown: .* and 26 more"):
        load_weights(wanted, path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_read(tmp_path, zipped):
    path = tmp_path / "w.pth"
    torch.save(CifarResNet(8).state_dict(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"this is a pickle.*Convert it where you trust it.*weights_only=True"):
        read_weights(path)


def test_a_safetensors_file_may_begin_like_a_pickle_and_end_like_a_zip(tmp_path):
    path, end_of_zip = tmp_path / "w.safetensors", b"PK\x05\x06" + bytes(18)
    tensor = torch.frombuffer(bytearray(end_of_zip), dtype=torch.uint8)
    for length in range(256):  # the file begins with the length of its header, the lowest byte first
        save_file({"a" * (length + 1): tensor}, path)
        if path.read_bytes()[:1] == pickle.PROTO:
            break
    assert path.read_bytes()[:1] == pickle.PROTO and zipfile.is_zipfile(path)
    assert torch.equal(next(iter(read_weights(path).values())), tensor)


def test_a_file_that_is_missing_or_damaged_is_said(tmp_path):
    with pytest.raises(ValueError, match="must be readable: No such file"):
        read_weights(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(10)}, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="but it is damaged"):
        read_weights(tmp_path / "w.safetensors")
