"""The held-out accuracy of a trained network, run as integers, and its cost by the full simulation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from codesign.accuracy import scores_of, summary
from codesign.data import Data
from codesign.describe import digest
from codesign.metrics import LABELS, quantity, sense
from codesign.state_file import write_atomically
from codesign.trained import Trained, check_fits
from hwmodels.cost import CostReport

EVALUATION_NAME = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """What a trained network is worth, and what it costs.

    Parameters
    ----------
    trial : int
    n_test : int
        Images of the test set.
    integer, fake_quantized : mapping of float
        ``error`` and ``loss`` on the test set of the network run as true integers, and of the one that was trained,
        which computes with rounded floats.
    agreement : float
        Share of test images of which both give the same class.
    search : mapping of float
        ``error`` and ``loss`` of the trained network on the search set, by which the trial was chosen.
    metrics : mapping of float
        By the full simulation.
    limits, usage : mapping of float
        Of each limit its value, and the share that the network uses: at most 1 where it is met.
    weights : str
        Digest of the weights.
    epochs : int, optional
        That it was trained for; 0: its weights are those that were given.
    kept : bool
        Whether this was read back from an evaluation before, without the test set.
    """

    trial: int
    n_test: int
    integer: Mapping[str, float]
    fake_quantized: Mapping[str, float]
    agreement: float
    search: Mapping[str, float]
    metrics: Mapping[str, float]
    limits: Mapping[str, float]
    usage: Mapping[str, float]
    weights: str
    epochs: int | None = None
    kept: bool = False

    @property
    def meets_limits(self) -> bool:
        """Whether every limit is met."""
        return all(used <= 1 for used in self.usage.values())

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps({**dataclasses.asdict(self), "meets_limits": self.meets_limits}, indent=1)

    def __str__(self) -> str:
        from codesign.commands.output import table

        rows = [
            (name, f"{100 * (1 - scores['error']):.2f} %", f"{scores['loss']:.4f}")
            for name, scores in (
                ("test, true integers", self.integer), ("test, fake-quantized", self.fake_quantized),
                ("search set", self.search),
            )
        ]  # fmt: skip
        read = "kept from the evaluation before; not read again" if self.kept else "read once, for this evaluation"
        costs = [
            (
                LABELS.get(name, (name,))[0], quantity(name, value),
                quantity(name, self.limits[name]) if name in self.limits else "",
                (f"{100 * self.usage[name]:.1f} %" + ("" if self.usage[name] <= 1 else " !"))
                if name in self.limits else "",
            )
            for name, value in self.metrics.items()
        ]  # fmt: skip
        met = "All limits are met." if self.meets_limits else "! Not all limits are met."
        return "\n".join([
            f"Trial {self.trial}, {'the given weights, quantized' if self.epochs == 0 else 'trained'}", "",
            table(("accuracy", "", "loss"), rows), "",
            f"test set: {self.n_test} images, {read}",
            f"integers and fake quantization name the same class for {100 * self.agreement:.2f} % of them", "",
            table(("simulated in full", "network", "limit", "used"), costs), "",
            met if self.limits else "The run has no limits.",
        ])  # fmt: skip


def evaluate_trained(trained: Trained, data: Data | None = None) -> Evaluation:
    """The accuracy of a trained network on the test set, and its cost.

    Parameters
    ----------
    trained : Trained
    data : Data, optional
        By default that of the run.

    Returns
    -------
    Evaluation
        It is kept beside the weights, and read back the next time: the test set is read once for a network.

    Raises
    ------
    ValueError
        Where the data are not those of the network.
    """
    path = trained.folder / EVALUATION_NAME
    if path.exists():
        kept = _read(path.read_bytes())
        if kept is not None and kept.weights == trained.record["weights"]:
            return kept
    from codesign.quant.integer import to_integers

    data = data or trained.run.spec.data()
    check_fits(trained.run, data)
    if digest(*data.train) != trained.record["data"]:
        raise ValueError(
            f"{trained.folder}: the data must be those that the network was trained on, but their training images "
            "differ; give the same data."
        )
    trial, problem = trained.trial, trained.run.spec.problem()
    metrics = report(trained).metrics()
    usage = {
        name: limit / metrics[name] if sense(name) == "max" else metrics[name] / limit
        for name, limit in problem.limits.items()
    }
    with torch.no_grad():
        # float64 holds these integers exactly, and is faster than int64.
        integer = scores_of(to_integers(trained.network, "float64"), data.test)
        rounded = scores_of(trained.network, data.test)
    found = Evaluation(
        trial.number,
        len(data.test.labels),
        summary(integer, data.test.labels),
        summary(rounded, data.test.labels),
        (integer.argmax(1) == rounded.argmax(1)).double().mean().item(),
        {name: trained.record["metrics"][f"search_{name}"] for name in ("error", "loss")},
        metrics,
        dict(problem.limits),
        usage,
        trained.record["weights"],
        trained.record["training"].get("epochs"),
    )
    write_atomically(path, found.to_json().encode())
    return found


def report(trained: Trained) -> CostReport:
    """The full simulation of a trained network."""
    return trained.run.spec.problem().price(trained.trial.arch)


def _read(data: bytes) -> Evaluation | None:
    try:
        record: dict[str, Any] = json.loads(data)
        record.pop("meets_limits")
        return Evaluation(**{**record, "kept": True})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # damaged, or by another version: evaluated anew
