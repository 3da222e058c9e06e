"""Shared weights: trained once for all candidates of a space, and used to score each of them."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from codesign.accuracy import evaluate
from codesign.data import Data, Images
from codesign.describe import describe, digest
from codesign.processes import alone, is_first, on_first
from codesign.quant.norm_statistics import recalibrate_batchnorm
from codesign.run_directory import run_directory, write_atomically
from codesign.sampling import SAMPLING
from codesign.space import Arch
from codesign.weight_training import SupernetTraining, WeightTrainer, load_weights

logger = logging.getLogger(__name__)

#: The folder of a run that keeps its supernet, and the file there.
SUPERNET_NAME, WEIGHTS_NAME = "supernet", "weights.safetensors"


def train_supernet(
    network: Any,
    data: Data,
    training: SupernetTraining,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[int, float], object] | None = None,
) -> None:
    """Train shared weights in place: in float first, then calibrated and with quantizers.

    Parameters
    ----------
    network : Supernet
    data : Data
        Weights are trained on ``data.train``.
    training : SupernetTraining
    seed : int
    out : path-like, optional
        Directory for checkpoints and, at the end, ``weights.safetensors``. A finished one is read back.
    resume : bool
        Go on with what is in ``out``. The result is that of an uninterrupted training, bit for bit on a CPU at a
        fixed number of threads.
    progress : callable, optional
        Called with the number of steps that are done and the loss of the last one.

    Raises
    ------
    Stopped
        Where the loss is not a number; the last checkpoint stays.

    Notes
    -----
    Of several processes (`codesign.processes.started`) that all call it, each computes its share of every batch, and
    the first one writes and reports. The result is that of one process, but for rounding.
    """
    config = {
        "space": describe(network.space), "data": describe(data), "training": describe(training), "seed": seed,
        "network": digest(*(t.cpu() for t in network.state_dict().values())),
    }  # fmt: skip
    steps_per_epoch = max(1, len(data.train.labels) // training.batch_size)
    n_float = training.float_epochs * steps_per_epoch
    n_steps = n_float + training.epochs * steps_per_epoch
    trainer = WeightTrainer(network, data.train, training, n_steps, seed)

    if not is_first():
        progress = None
    with run_directory(out, config, resume) as run:
        weights = run.path / WEIGHTS_NAME if run else None
        finished = on_first(lambda: _finished(weights) if weights and weights.exists() else None)
        kept = on_first(lambda: run.restore() if run else None)
        if finished:
            load_weights(network, finished)
            network.use_quantizers(True)
            trainer.step_number = n_steps
        elif kept:
            trainer.load(kept[0])
        if progress and (finished or kept):
            progress(trainer.step_number, math.nan)
        while trainer.step_number < n_steps:
            if trainer.step_number >= n_float and not network.quantized:
                network.calibrate(statistics_of(data.train))
            freedom = training.freedom(network.space, trainer.step_number / n_steps)
            archs = SAMPLING[training.sampling](network.space, trainer.rng(3), freedom)
            loss = trainer.step(archs)
            if out is not None and trainer.step_number % training.checkpoint_steps == 0:
                on_first(lambda: run.checkpoint(trainer.state(), 0) if run else None)
            if progress:
                progress(trainer.step_number, loss)
        skipped = trainer.scaler.skipped_steps
        if skipped and is_first():
            logger.warning("Supernet: %d of %d steps were left out, their gradients not finite.", skipped, n_steps)
        if weights and not finished:
            save_supernet(network, weights)


def _finished(path: Path) -> dict[str, Tensor] | None:
    """The weights of a training that came to its end; None, and a warning, for a file that is damaged."""
    try:
        return _read_weights(path)
    except ValueError as error:
        logger.warning("%s The training goes on from its last checkpoint.", error)
        return None


def save_supernet(network: nn.Module, path: Path) -> None:
    """Write the weights of a supernet, quantizers and statistics too, as safetensors, with a digest of them."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    write_atomically(path, save(tensors, {"digest": _digest_of_data(save(tensors))}))


def _digest_of_data(content: bytes) -> str:
    """Of what follows the header of a safetensors file, whose length its first eight bytes say."""
    return hashlib.blake2b(content[8 + int.from_bytes(content[:8], "little") :], digest_size=16).hexdigest()


def load_supernet(network: Any, path: str | os.PathLike[str]) -> None:
    """Read what `save_supernet` wrote, and run with quantizers.

    Raises
    ------
    ValueError
        For a file that is damaged, or of another space.
    """
    load_weights(network, _read_weights(Path(path)))
    network.use_quantizers(True)


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = path.read_bytes()
    try:
        tensors: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise ValueError(
            f"Supernet {str(path)!r}: it must be a safetensors file, but it is damaged ({error})."
        ) from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if header.get("__metadata__", {}).get("digest", _digest_of_data(content)) != _digest_of_data(content):
        raise ValueError(f"Supernet {str(path)!r}: its digest must be that of its weights, but it is damaged.")
    return tensors


def statistics_of(data: Images, n: int = 512) -> Tensor:
    """The images that steps and BatchNorm statistics are fitted to: the first ones of a training set."""
    return data.images[:n]


@dataclass(frozen=True, eq=False)
class SupernetTask:
    """Shared weights and what they are trained on, for strategies that train them on.

    Parameters
    ----------
    network : Supernet
        Strategies train a copy.
    data : Data
        Weights are trained on ``train``, policies on ``search``.
    training : SupernetTraining
    """

    network: Any
    data: Data
    training: SupernetTraining = field(default_factory=SupernetTraining)

    def describe(self) -> dict[str, Any]:
        """Digests of the weights and the images, and the settings."""
        return {
            "network": digest(*(t.cpu() for t in self.network.state_dict().values())),
            "data": self.data.describe(),
            "training": describe(self.training),
        }


@dataclass(frozen=True, eq=False)
class SupernetAccuracy:
    """From an arch to the error and the loss of that candidate with the shared weights.

    BatchNorm statistics are recalibrated before a candidate is scored. Each is scored once; threads may score side
    by side, each on a copy of the network of its own.

    Parameters
    ----------
    network : Supernet
    statistics : Tensor
        Images for the BatchNorm statistics, from the training set.
    data : Images
        What candidates are scored on: the search set.
    batch_size : int
    """

    network: Any
    statistics: Tensor
    data: Images
    batch_size: int = 250
    _known: dict[Arch, dict[str, float]] = field(default_factory=dict, repr=False)
    _local: threading.local = field(default_factory=threading.local, repr=False)

    def __call__(self, arch: Arch) -> dict[str, float]:
        arch = tuple(arch)
        known = self._known.get(arch)
        if known is None:
            if not hasattr(self._local, "network"):
                self._local.network = copy.deepcopy(self.network)
            candidate = self._local.network.at(arch)
            with alone():
                recalibrate_batchnorm(candidate, self.statistics, self.batch_size)
                known = self._known[arch] = evaluate(candidate, self.data)
        return dict(known)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_local": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _local=threading.local())

    def describe(self) -> dict[str, Any]:
        """Digests of the weights and the images."""
        return {
            "network": digest(*(t.cpu() for t in self.network.state_dict().values())),
            "statistics": digest(self.statistics),
            "data": digest(*self.data),
        }
