"""The network of a trial trained to the end, and the folder that keeps it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from codesign.accuracy import device_of, evaluate, place_of
from codesign.data import Data, Images
from codesign.describe import describe, differences, digest
from codesign.family import family
from codesign.quant import calibrate, recalibrate_batchnorm, set_bits
from codesign.run import Run
from codesign.run_directory import Lock, RunDirectoryError
from codesign.state_file import write_atomically
from codesign.train import PICTURES, Recipe, train
from codesign.trial import Trial
from codesign.tuned_accuracy import TUNING_RATE

WEIGHTS_NAME, RESULT_NAME = "weights.safetensors", "result.json"
#: Images that the steps of quantizers and the BatchNorm statistics are fitted to.
N_STATISTICS = 512

Metrics = Callable[[Mapping[str, float]], object]


@dataclass(frozen=True)
class FinalTraining:
    """How the network of a trial is trained.

    Parameters
    ----------
    epochs : int
        In all; 0, with start="weights", keeps the weights as they are, quantized.
    start : {"scratch", "supernet", "weights"}
        From weights drawn by the seed, or from those that the search began with: shared ones, or those of a file.
    float_share : float
        Share of the epochs before quantization begins; there are none but from scratch.
    learning_rate, quantized_rate : float
        Peaks of the two parts.
    recipe : Recipe
    seed : int

    Raises
    ------
    ValueError
        For a number out of range.

    Notes
    -----
    A network from scratch is first trained in float; then its quantizers are calibrated, and weights and steps are
    trained together, in a second course of the learning rate. Each part begins with its optimiser anew.
    """

    epochs: int = 40
    start: Literal["scratch", "supernet", "weights"] = "scratch"
    float_share: float = 0.25
    learning_rate: float = 0.03
    quantized_rate: float = 0.03
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    seed: int = 0

    def __post_init__(self) -> None:
        least = 0 if self.start == "weights" else 1
        if self.epochs < least:
            raise ValueError(f"FinalTraining: epochs must be at least {least} from {self.start}, got {self.epochs}.")
        if self.start not in ("scratch", "supernet", "weights"):
            raise ValueError(f"FinalTraining: start must be scratch, supernet or weights, got {self.start!r}.")
        if not 0 <= self.float_share < 1:
            raise ValueError(f"FinalTraining: float_share must be from 0 to below 1, got {self.float_share}.")
        if not (self.learning_rate > 0 and self.quantized_rate > 0):
            raise ValueError(
                f"FinalTraining: learning rates must be positive, got {self.learning_rate} and {self.quantized_rate}."
            )

    @classmethod
    def for_images(cls, images: Images, **given: Any) -> FinalTraining:
        """The recipe of pictures for images of three channels, and that of digits for others; some fields replaced.

        From trained weights the rate is `TUNING_RATE`, and BatchNorm keeps its statistics: at the rate of a training
        from scratch they lose what they know, and statistics that follow the last few batches lose what those knew.
        """
        fields: dict[str, Any] = {}
        if images.images.shape[1] == 3:
            fields = {"learning_rate": 0.1, "quantized_rate": 0.1, "recipe": PICTURES}
        if given.get("start") == "weights":
            fields["quantized_rate"] = TUNING_RATE
            fields["recipe"] = dataclasses.replace(fields.get("recipe", Recipe()), statistics="kept")
        return cls(**{**fields, **given})

    @property
    def float_epochs(self) -> int:
        """Those before quantization."""
        return round(self.epochs * self.float_share) if self.start == "scratch" else 0


def train_quantized(
    network: nn.Module,
    bits: Mapping[str, tuple[int, int]],
    data: Images,
    training: FinalTraining,
    folder: str | os.PathLike[str] | None = None,
    metrics: Metrics | None = None,
) -> list[dict[str, float]]:
    """Train a network with quantized layers at its bits, in place.

    Parameters
    ----------
    network : nn.Module
    bits : mapping
        (weight bits, input bits) of each layer.
    data : Images
    training : FinalTraining
    folder : path-like, optional
        Where the state is kept after each epoch; a training that was killed goes on from there.
    metrics : callable, optional
        Called after each epoch with its metrics (`codesign.train.train`); epochs count over both parts.

    Returns
    -------
    list of dict
        The metrics of each epoch.

    Raises
    ------
    FloatingPointError
        Where numbers are no longer finite.
    """
    statistics = data.images[:N_STATISTICS].to(device_of(network))

    def part(name: str, epochs: int, rate: float, first: int) -> list[dict[str, float]]:
        def shifted(entry: Mapping[str, float]) -> dict[str, float]:
            return {**entry, "epoch": first + entry["epoch"]}

        history = train(
            network, data, epochs, rate, training.seed, training.recipe,
            checkpoint=None if folder is None else Path(folder) / f"{name}.safetensors",
            metrics=(lambda entry: metrics(shifted(entry))) if metrics else None,
        )  # fmt: skip
        return [shifted(entry) for entry in history]

    n_float = training.float_epochs
    history = []
    if n_float:
        set_bits(network, None)
        history = part("float", n_float, training.learning_rate, 0)
        set_bits(network, dict(bits))
    if training.start == "scratch":
        calibrate(network, statistics)
    if training.epochs > n_float:
        history += part("quantized", training.epochs - n_float, training.quantized_rate, n_float)
    if training.start != "weights":
        recalibrate_batchnorm(network, statistics)  # those kept on the way lag behind the weights
    return history


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network of a run.

    Parameters
    ----------
    run : Run
    trial : Trial
    folder : Path
    network : nn.Module
        On the CPU, at its bits.
    record : mapping
        What ``result.json`` holds.
    """

    run: Run
    trial: Trial
    folder: Path
    network: nn.Module
    record: Mapping[str, Any]


def trained_folder(run: Run, trial: Trial) -> Path:
    """Where the trained network of a trial is kept, unless another place is asked for."""
    return run.path / "trained" / str(trial.number)


def quantized_trial(
    run: Run, which: str | int = "best", data: Data | None = None, device: str | None = None
) -> Trained:
    """The network of a trial of bits with the weights that were given, quantized and not trained; kept beside the run.

    Raises
    ------
    ValueError
        Where there is no such trial, or the run is not one of the bits of a trained network.
    """
    folder = run.path / "quantized" / str(run.trial(which).number)
    if (folder / RESULT_NAME).exists():
        return load_trained(run, which, folder)
    data = data or run.spec.data()
    training = FinalTraining.for_images(data.train, epochs=0, start="weights")
    return train_trial(run, which, training, folder, data, device)


def train_trial(
    run: Run,
    which: str | int = "best",
    training: FinalTraining | None = None,
    out: str | os.PathLike[str] | None = None,
    data: Data | None = None,
    device: str | None = None,
    metrics: Metrics | None = None,
) -> Trained:
    """Train the network of a trial and keep it; one that was killed is gone on with, a finished one read back.

    Parameters
    ----------
    run : Run
        From `codesign.run.load_run`.
    which : str or int
        "best", or the number of a trial.
    training : FinalTraining, optional
        By default 40 epochs from scratch with the recipe that fits the images.
    out : path-like, optional
        The folder for the weights and the result; ``RUN/trained/NUMBER`` by default.
    data : Data, optional
        By default that of the run. Weights are trained on ``data.train``; ``data.test`` is not read.
    device : str, optional
        Of torch; by default a GPU where there is one.
    metrics : callable, optional
        Called after each epoch with its metrics.

    Raises
    ------
    ValueError
        Where there is no such trial, or no supernet to start from.
    RunDirectoryError
        Where the folder holds a training with other settings, or is being written.
    FloatingPointError
        Where numbers are no longer finite; the state of the last good epoch stays in the folder.
    """
    trial, place = run.trial(which), place_of(device)
    data = data or run.spec.data()
    check_fits(run, data)
    training = training or FinalTraining.for_images(data.train)
    folder = trained_folder(run, trial) if out is None else Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / "lock")
    try:
        about = {"arch": list(trial.arch), "training": describe(training), "data": digest(*data.train)}
        finished = _read_result(folder)
        if finished is not None:
            found = list(differences({name: finished.get(name) for name in about}, about))
            if found:
                raise RunDirectoryError(
                    f"{folder}: it must hold this training to be read back, but it differs in {'; '.join(found[:5])}. "
                    "Choose another place (--out), or delete it."
                )
            return load_trained(run, which, folder)
        network = _start(run, trial, training, data)
        history = train_quantized(network.to(place), layer_bits(run, trial), data.train, training, folder, metrics)
        network.cpu()
        scores = {f"search_{name}": value for name, value in evaluate(network, data.search).items()}
        _write(folder, network, {
            "trial": trial.number, **about, "metrics": scores, "history": history,
            "scaling": data.scaling._asdict() if data.scaling else None,
        })  # fmt: skip
    finally:
        lock.release()
    return load_trained(run, which, folder)


def load_trained(run: Run, which: str | int = "best", folder: str | os.PathLike[str] | None = None) -> Trained:
    """The trained network of a trial, read back.

    Raises
    ------
    ValueError
        Where it is not there, is damaged, or is another network than that of the trial.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    trial = run.trial(which)
    folder = trained_folder(run, trial) if folder is None else Path(folder)
    record = _read_result(folder)
    if record is None:
        raise ValueError(
            f"Run {str(run.path)!r}: trial {trial.number} must be trained, but {folder} holds no finished training; "
            f"run codesign train {run.path} --trial {trial.number} first."
        )
    if record.get("arch") != list(trial.arch):
        raise ValueError(
            f"{folder}: it must hold the network of trial {trial.number}, but holds that of trial "
            f"{record.get('trial')}; choose another trial or another folder."
        )
    network = build(run, trial)
    try:
        weights = load((folder / WEIGHTS_NAME).read_bytes())
        if digest(*(weights[name] for name in sorted(weights))) != record["weights"]:
            raise ValueError("they are not those that result.json tells of")
        network.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / WEIGHTS_NAME}: the weights must be whole, but {error}; train again.") from None
    return Trained(run, trial, folder, network.eval(), record)


def network_arch(run: Run, trial: Trial) -> tuple[int, ...]:
    """The arch of the network of a trial, without choices of the chip."""
    return run.spec.space().network_arch(trial.arch)


def layer_bits(run: Run, trial: Trial) -> dict[str, tuple[int, int]]:
    """(weight bits, input bits) of each layer of the network of a trial."""
    return family(run.spec.family).layer_bits(run.spec, network_arch(run, trial))


def build(run: Run, trial: Trial, seed: int = 0) -> nn.Module:
    """The network of a trial, not calibrated, its weights drawn by a seed."""
    return family(run.spec.family).network(run.spec, network_arch(run, trial), seed)


def check_fits(run: Run, data: Data) -> None:
    """Refuse data whose images the networks of a run cannot read.

    Raises
    ------
    ValueError
        For another image size, other channels, or more classes.
    """
    needed, classes = family(run.spec.family).reads(run.spec)
    found = tuple(data.train.images.shape[1:])
    if found != needed or data.classes > classes:
        raise ValueError(
            f"Run {str(run.path)!r}: the data must have images of shape {needed} and {classes} classes, got "
            f"{found} and {data.classes}; give the data that the search had."
        )


def _start(run: Run, trial: Trial, training: FinalTraining, data: Data) -> nn.Module:
    """The network before its training."""
    if training.start == "scratch":
        return build(run, trial, training.seed)
    kind = family(run.spec.family)
    if training.start != kind.start:
        raise ValueError(
            f"Run {str(run.path)!r}: a network of {run.spec.family} is trained from scratch or from {kind.start}, got "
            f"{training.start!r}."
        )
    return kind.started(run.spec, run.path, network_arch(run, trial), data)


def _write(folder: Path, network: nn.Module, record: dict[str, Any]) -> None:
    """Keep a trained network: first the weights, then the result that tells of them, and last drop the states."""
    from safetensors.torch import save

    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    write_atomically(folder / WEIGHTS_NAME, save(weights))
    record = {**record, "weights": digest(*(weights[name] for name in sorted(weights)))}
    write_atomically(folder / RESULT_NAME, (json.dumps(record, indent=1) + "\n").encode())
    for name in ("float", "quantized"):
        for path in folder.glob(f"{name}*.safetensors"):
            path.unlink()


def _read_result(folder: Path) -> dict[str, Any] | None:
    path = folder / RESULT_NAME
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise ValueError(f"{path}: it must be JSON, but it is damaged ({error}); delete it and train again.") from None
    return record
