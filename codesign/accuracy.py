"""How good a network is on a set of images, and how good a candidate of a bitwidth search is."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from codesign.data import Images
from codesign.describe import digest
from codesign.quant.convert import mode, recalibrate_batchnorm, set_bits
from codesign.space import Arch, BitwidthSpace


@torch.no_grad()
def evaluate(network: nn.Module, data: Images, batch_size: int = 500) -> dict[str, float]:
    """``error``, the share of images that are misclassified, and ``loss``, the mean cross entropy in nats.

    Parameters
    ----------
    network : nn.Module
        On any device; batches follow it there.
    data : Images
    batch_size : int
        Images at once. In memory they are kept pixel by pixel, which convolutions of several channels are faster on.
    """
    return summary(scores_of(network, data, batch_size), data.labels)


@torch.no_grad()
def scores_of(network: nn.Module, data: Images, batch_size: int = 500) -> Tensor:
    """What a network gives for each image, computed in batches; shape (n, classes)."""
    device = device_of(network)
    with mode(network, training=False):
        return torch.cat([network(_pixel_by_pixel(batch.to(device))) for batch in data.images.split(batch_size)])


def summary(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """``error`` and ``loss`` of scores, as `evaluate` gives them."""
    labels = labels.to(scores.device)
    wrong = (scores.argmax(dim=1) != labels).double().mean()
    return {"error": wrong.item(), "loss": functional.cross_entropy(scores.double(), labels).item()}


def _pixel_by_pixel(batch: Tensor) -> Tensor:
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch


def device_of(network: nn.Module) -> torch.device:
    """Where a network's parameters are; the CPU for one without."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


@dataclass(frozen=True, eq=False)
class QuantizedAccuracy:
    """From an arch of a `BitwidthSpace` to the error and the loss of the network at its bits.

    The weights are those given, whatever the bits; BatchNorm statistics are renewed for each candidate. A candidate
    is evaluated once, and threads may evaluate side by side, each on a copy of the network of its own.

    Parameters
    ----------
    network : nn.Module
        Quantized and calibrated for every bitwidth of the space, its layers named as in the space.
    space : BitwidthSpace
    statistics : Tensor or None
        Images for the BatchNorm statistics, from the training set. None: they stay as they are.
    data : Images
        What candidates are scored on: the search set.
    """

    network: nn.Module
    space: BitwidthSpace
    statistics: Tensor | None
    data: Images
    _known: dict[Arch, dict[str, float]] = field(default_factory=dict, repr=False)
    _local: threading.local = field(default_factory=threading.local, repr=False)

    def __call__(self, arch: Arch) -> dict[str, float]:
        known = self._known.get(arch)
        if known is None:
            if not hasattr(self._local, "network"):
                self._local.network = copy.deepcopy(self.network)
            network = self._local.network
            set_bits(network, self.space.layer_bits(arch))
            if self.statistics is not None:
                recalibrate_batchnorm(network, self.statistics)
            known = self._known[arch] = evaluate(network, self.data)
        return dict(known)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_local": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _local=threading.local())

    def describe(self) -> dict[str, Any]:
        """Digests of the weights and the images."""
        return {
            "network": digest(*self.network.state_dict().values()),
            "statistics": None if self.statistics is None else digest(self.statistics),
            "data": digest(*self.data),
        }
