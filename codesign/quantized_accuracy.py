"""How good a candidate of a bitwidth search is: a trained network at its bits."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from codesign.accuracy import summary
from codesign.data import Images
from codesign.describe import digest
from codesign.incremental import scorer
from codesign.network_graph import NetworkGraph, graph_of
from codesign.quant.convert import quantized_layers
from codesign.quant.norm_statistics import Renewal
from codesign.space import Arch, BitwidthSpace


@dataclass(frozen=True, eq=False)
class QuantizedAccuracy:
    """From an arch of a `BitwidthSpace` to the error and the loss of the network at its bits.

    The weights are those given, whatever the bits; BatchNorm statistics follow the bits. A candidate
    is evaluated once, and of one that resembles the last only what changed is computed (`IncrementalNetwork`). Threads
    may evaluate side by side, each on a copy of the network of its own.

    Parameters
    ----------
    network : nn.Module
        Quantized and calibrated for every bitwidth of the space, its layers named as in the space. Pinned layers that
        are not quantized run in float.
    space : BitwidthSpace
    statistics : Tensor or None
        Images for the BatchNorm statistics, from the training set. None: they stay as they are.
    data : Images
        What candidates are scored on: the search set.
    renewal : {"match", "renew"}
        Whether statistics are those that the network has, corrected for what the bits change (`match_batchnorm`), or
        those of the images alone (`recalibrate_batchnorm`), for weights that have none of their own.
    """

    network: nn.Module
    space: BitwidthSpace
    statistics: Tensor | None
    data: Images
    renewal: Renewal = "match"
    _known: dict[Arch, dict[str, float]] = field(default_factory=dict, repr=False)
    _local: threading.local = field(default_factory=threading.local, repr=False)
    _graph: NetworkGraph | None = field(init=False, repr=False)
    _quantized: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_graph", graph_of(self.network))  # here, as no thread may run meanwhile
        names = frozenset(name for name, _ in quantized_layers(self.network))
        object.__setattr__(self, "_quantized", names)
        absent = [name for name in self.space.searched if name not in names]
        if absent:
            raise ValueError(
                f"QuantizedAccuracy: each layer that is searched must be quantized, but {', '.join(absent)} "
                f"{'is' if len(absent) == 1 else 'are'} not; pin such layers, or quantize them."
            )

    def __call__(self, arch: Arch) -> dict[str, float]:
        known = self._known.get(arch)
        if known is None:
            if not hasattr(self._local, "scores"):
                self._local.scores = scorer(self.network, self._graph, self.data.images, self.statistics, self.renewal)
            bits = self.space.layer_bits(arch)
            scores = self._local.scores({name: pair for name, pair in bits.items() if name in self._quantized})
            known = self._known[arch] = summary(scores, self.data.labels)
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
            "renewal": self.renewal,
        }
