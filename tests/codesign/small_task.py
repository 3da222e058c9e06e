"""A small trained network whose bits are searched, for the tests: three convolutions on some of the digits."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tiny import few
from torch import nn
from torch.nn import functional

from codesign.data import Data
from codesign.network_task import NetworkTask
from codesign.problem import Problem
from codesign.quant import calibrate, quantize
from codesign.space import BitwidthSpace
from codesign.train import shift
from codesign.weight_training import SupernetTraining
from hwmodels import BitFusion, HardwareModel
from hwmodels.from_torch import from_torch

TRAINING = SupernetTraining(float_epochs=0, epochs=1, batch_size=32, learning_rate=0.01)
BITS = (1, 2, 3, 4, 6, 8)


def net() -> nn.Sequential:
    """Convolutions "0", "3", "6" and the classifier "12"."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 10),
    )  # fmt: skip


@functools.cache
def _trained(n_train: int, epochs: int) -> tuple[nn.Sequential, Data]:
    data, rng = few(n_train, 128), np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = net()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        for _ in range(epochs):
            for index in torch.randperm(n_train).split(32):
                optimizer.zero_grad()
                images = shift(data.train.images[index], rng)
                functional.cross_entropy(network(images), data.train.labels[index]).backward()
                optimizer.step()
    return network.eval(), data


@functools.cache
def write_files(folder: Path) -> None:
    """The trained network's weights ``w.safetensors`` and its data ``d.npz``, as a user has them."""
    trained, data = _trained(512, 30)
    save_file({name: tensor.clone() for name, tensor in trained.state_dict().items()}, folder / "w.safetensors")
    parts = {"x_train": data.train.images, "y_train": data.train.labels}
    parts |= {"x_test": data.search.images, "y_test": data.search.labels}
    np.savez(folder / "d.npz", **{name: tensor.numpy() for name, tensor in parts.items()})


def task(
    bits: tuple[int, ...] = BITS, input_bits: int | None = None, quantizer: str = "uniform", pinned: int = 8,
    n_train: int = 128, epochs: int = 4,
) -> NetworkTask:  # fmt: skip
    """The classifier is pinned; with ``input_bits``, inputs of all other layers are too."""
    network, data = _trained(n_train, epochs)
    space = BitwidthSpace(from_torch(network, (1, 1, 8, 8)), bits, {"12": pinned}, input_bits)
    widths = {bit for each in space.bitwidths.values() for bit in each}
    quantized = quantize(network, space.layer_bits(space.reference), widths, weight_quantizer=quantizer)
    calibrate(quantized, data.train.images[:128])
    return NetworkTask(quantized, space, data, data.train.images[:128], TRAINING)


def problem(
    limits: dict[str, float] | None = None, of: NetworkTask | None = None, chip: HardwareModel | None = None, **kwargs
) -> Problem:
    """Limits are fractions of what the network uses at 8 bits."""
    of = of or task(**kwargs)
    free = Problem(of.space, of.accuracy(), chip or BitFusion(), supernet=of)
    most = free.price(of.space.reference).metrics() if limits else {}
    return replace(free, limits={name: share * most[name] for name, share in (limits or {}).items()})


def at_work(problem: Problem, strategy, seed: int = 0, **state):
    """A strategy's training, at its start unless a state says more."""
    return strategy.start(problem, strategy.init(problem, np.random.default_rng(seed)) | state)
