"""A trained network whose bitwidths are searched: what strategies measure, and what they tune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from codesign.data import Data, Images
from codesign.describe import describe, digest
from codesign.quant.norm_statistics import Renewal
from codesign.quantized_accuracy import QuantizedAccuracy
from codesign.space import Arch, BitwidthSpace
from codesign.tuned_accuracy import TunedAccuracy
from codesign.weight_training import SupernetTraining

#: One epoch at a rate that a trained network keeps what it knows at.
TUNING = SupernetTraining(float_epochs=0, epochs=1, batch_size=128, learning_rate=0.01)


@dataclass(frozen=True, eq=False)
class NetworkTask:
    """A trained network, its data, and how its weights may be tuned. It is the ``supernet`` of a `Problem`.

    Parameters
    ----------
    network : nn.Module
        Quantized and calibrated for every bitwidth of the space (`BitwidthSpace.bitwidths`), its layers named as
        there. Strategies tune a copy.
    space : BitwidthSpace
    data : Data
        Weights are tuned on ``train``, candidates scored and policies moved on ``search``; ``test`` is not read.
    statistics : Tensor or None
        Images of the training set by which BatchNorm statistics follow the bits of a candidate. None: they stay.
    training : SupernetTraining
        Batch size, learning rate and decay where weights are tuned; a strategy says for how many steps.
    tune_images : int
        Training images that a candidate is tuned on before it is scored (`TunedAccuracy`); 0: none, it is scored with
        the weights given. Strategies that train weights of their own score with those.
    renewal : {"match", "renew"}
        How BatchNorm statistics follow the bits, with the weights given (`QuantizedAccuracy`). With weights that a
        strategy trained at changing bits, which leave no statistics to match, they are renewed.
    """

    network: nn.Module
    space: BitwidthSpace
    data: Data
    statistics: Tensor | None
    training: SupernetTraining = TUNING
    tune_images: int = 0
    renewal: Renewal = "match"
    _on_few: dict[tuple[int, int], QuantizedAccuracy] = field(default_factory=dict, init=False, repr=False)

    @property
    def evaluation_passes(self) -> int:
        """Image passes of the evaluation of one candidate: forward counts 1, forward and backward 3."""
        if self.tune_images:
            return self._tuned.passes
        return len(self.data.search.labels) + (0 if self.statistics is None else len(self.statistics))

    def accuracy(self, network: nn.Module | None = None) -> Callable[[Arch], Mapping[str, float]]:
        """From an arch to its error and loss on the search set, with the weights of ``network`` or the trained ones."""
        if network is None and self.tune_images:
            return self._tuned
        if network is None:
            return self.accuracy_on(
                len(self.data.search.labels), 0 if self.statistics is None else len(self.statistics)
            )
        return QuantizedAccuracy(network, self.space, self.statistics, self.data.search, "renew")

    @cached_property
    def _tuned(self) -> TunedAccuracy:
        return TunedAccuracy(self.network, self.space, self.data, self.tune_images)

    def accuracy_on(self, n_images: int, n_statistics: int) -> QuantizedAccuracy:
        """The same on the first images of the search set and of the statistics alone; what it knows is shared."""
        key = n_images, n_statistics
        if key not in self._on_few:
            images = Images(self.data.search.images[:n_images], self.data.search.labels[:n_images])
            statistics = None if self.statistics is None else self.statistics[:n_statistics]
            self._on_few[key] = QuantizedAccuracy(self.network, self.space, statistics, images, self.renewal)
        return self._on_few[key]

    def describe(self) -> dict[str, Any]:
        """Digests of the weights and the images, and the settings."""
        return {
            "network": digest(*(t.cpu() for t in self.network.state_dict().values())),
            "data": self.data.describe(),
            "statistics": None if self.statistics is None else digest(self.statistics),
            "training": describe(self.training),
            "tune_images": self.tune_images,
            "renewal": self.renewal,
        }
