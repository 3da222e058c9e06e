"""How good a candidate of a bitwidth search is after a short tuning at its bits."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from codesign.accuracy import evaluate
from codesign.data import Data, Images
from codesign.describe import describe, digest
from codesign.quant.convert import quantized_layers, set_bits
from codesign.quant.norm_statistics import recalibrate_batchnorm
from codesign.space import Arch, BitwidthSpace
from codesign.train import PICTURES, Recipe, train

#: Learning rate of the tuning: a network that is trained already keeps what it knows at it.
TUNING_RATE = 0.01
#: Images of the tuning that BatchNorm statistics are renewed on after it, at most.
MOST_STATISTICS = 512
#: Torch has one generator for all threads.
_DRAWS = threading.Lock()


@dataclass(frozen=True, eq=False)
class TunedAccuracy:
    """From an arch of a `BitwidthSpace` to the error and the loss of the network, tuned for one epoch at its bits.

    Each candidate is tuned once, from the weights given, with images and augmentation in the same order: its scores are
    a function of the arch alone.

    Parameters
    ----------
    network : nn.Module
        Quantized and calibrated, as for `codesign.quantized_accuracy.QuantizedAccuracy`. It is left alone.
    space : BitwidthSpace
    data : Data
        Tuned on the first ``n_images`` of ``train``, scored on ``search``.
    n_images : int
    batch_size : int

    Raises
    ------
    ValueError
        For fewer images than a batch.
    """

    network: nn.Module
    space: BitwidthSpace
    data: Data
    n_images: int
    batch_size: int = 64
    _known: dict[Arch, dict[str, float]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        there = len(self.data.train.labels)
        if not self.batch_size <= self.n_images <= there:
            raise ValueError(
                f"TunedAccuracy: n_images must be from a batch of {self.batch_size} to the {there} training images, "
                f"got {self.n_images}."
            )

    @property
    def passes(self) -> int:
        """Image passes of one candidate: forward counts 1, forward and backward 3."""
        return 3 * self.n_images + min(self.n_images, MOST_STATISTICS) + len(self.data.search.labels)

    @property
    def recipe(self) -> Recipe:
        """How a candidate is tuned."""
        augment: Any = "crop-flip" if self.data.train.images.shape[1] == 3 else "shift"
        return Recipe(
            "sgd", "cosine", self.batch_size, weight_decay=PICTURES.weight_decay, step_rate=PICTURES.step_rate,
            warmup=0.1, clip_norm=1.0, augment=augment, channels_last=True,
        )  # fmt: skip

    def __call__(self, arch: Arch) -> dict[str, float]:
        arch = tuple(arch)
        if arch not in self._known:
            network = copy.deepcopy(self.network)
            names = {name for name, _ in quantized_layers(network)}
            set_bits(network, {n: pair for n, pair in self.space.layer_bits(arch).items() if n in names})
            images = Images(self.data.train.images[: self.n_images], self.data.train.labels[: self.n_images])
            with _DRAWS, torch.random.fork_rng(devices=[]):  # what dropout draws is the same for each candidate
                torch.manual_seed(0)
                train(network, images, 1, TUNING_RATE, 0, self.recipe)
            recalibrate_batchnorm(network, images.images[:MOST_STATISTICS])
            self._known[arch] = evaluate(network, self.data.search)
        return dict(self._known[arch])

    def describe(self) -> dict[str, Any]:
        """Digests of the weights and the images, and how candidates are tuned."""
        return {
            "network": digest(*(t.cpu() for t in self.network.state_dict().values())),
            "data": digest(*self.data.search),
            "tuned_on": digest(self.data.train.images[: self.n_images].cpu(), self.data.train.labels[: self.n_images]),
            "recipe": describe(self.recipe),
        }
