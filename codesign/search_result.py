"""What a search found: the chosen network, and how it uses its limits."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codesign.metrics import LABELS, quantity, sense
from codesign.problem import Problem
from codesign.run_directory import write_atomically
from codesign.trial import Trial, best_trial
from hwmodels.cost import InfeasibleLayer, estimate

#: Fields of a block, as its table names them.
FIELDS = {
    "expansion": "expansion", "kernel_size": "kernel", "skip": "skip", "weight_bits": "weight bits",
    "input_bits": "input bits",
}  # fmt: skip


@dataclass(frozen=True)
class SearchResult:
    """The best trial of a search, simulated in full once more.

    Parameters
    ----------
    trial : Trial
    n_trials : int
    objective : str
    options : mapping
        The option of each choice, by name.
    metrics : mapping of float
        Of the chosen network by the full simulation, and what the supernet scored on the search set.
    limits : mapping of float
    usage : mapping of float
        Of each limit, at most 1.
    reference : mapping of float
        Metrics of the reference network; empty where there is none.
    measured : mapping of float
        What the strategy measured of itself, last.
    """

    trial: Trial
    n_trials: int
    objective: str
    options: Mapping[str, Any]
    metrics: Mapping[str, float]
    limits: Mapping[str, float]
    usage: Mapping[str, float]
    reference: Mapping[str, float]
    measured: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, trials: list[Trial], measured: Mapping[str, float] | None = None) -> SearchResult:
        """The result of a search.

        Raises
        ------
        ValueError
            Where no trial meets the limits and has the objective, or the simulation says otherwise than its trial.
        """
        best = best_trial(trials, problem.objective)
        if best is None:
            raise ValueError(
                f"Search: some network must meet every limit and have a {problem.objective} that is a number, but none "
                f"of {len(trials)} does; search for longer, or look at the trials."
            )
        priced = problem.price(best.arch).metrics()
        used = {
            name: limit / priced[name] if sense(name) == "max" else priced[name] / limit
            for name, limit in problem.limits.items()
        }
        over = {name: share for name, share in used.items() if not share <= 1}
        if over:
            raise ValueError(f"Search: the simulation of trial {best.number} must meet the limits, but uses {over}.")
        return cls(
            best, len(trials), problem.objective, problem.space.decode(best.arch), {**best.metrics, **priced},
            dict(problem.limits), used, reference(problem)[1], dict(measured or {}),
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "trial": self.trial.number,
            "trials": self.n_trials,
            "objective": self.objective,
            "arch": list(self.trial.arch),
            "options": {
                name: option._asdict() if hasattr(option, "_asdict") else option
                for name, option in self.options.items()
            },
            "metrics": dict(self.metrics),
            "limits": {name: {"limit": self.limits[name], "usage": self.usage[name]} for name in self.limits},
            "reference": dict(self.reference),
            "measured": dict(self.measured),
        }

    def headline(self, ascii: bool = True) -> str:
        """The score and the cost in one line."""
        shown = [name for name in (self.objective, "energy_j", "latency_s") if name in self.metrics]
        return ", ".join(f"{LABELS[name][0]} {quantity(name, self.metrics[name], ascii=ascii)}" for name in shown)

    def write(self, folder: Path) -> None:
        """Write ``result.json``."""
        write_atomically(folder / "result.json", (json.dumps(self.record(), indent=1) + "\n").encode())

    def __str__(self) -> str:
        from codesign.commands.output import table

        score = quantity(self.objective, self.metrics[self.objective])
        blocks = {name: option for name, option in self.options.items() if hasattr(option, "_asdict")}
        bits = {} if blocks else _layer_bits(self.options)
        weights = "shared weights" if blocks else "trained weights"
        lines = [
            f"Chosen: trial {self.trial.number} of {self.n_trials}; {self.objective} on the search set, with "
            f"{weights}: {score}",
            "",
        ]
        if blocks:
            rows = [
                (str(i), *(_cell(field, getattr(block, field)) for field in FIELDS))
                for i, block in enumerate(blocks.values())
            ]
            lines += [table(("block", *FIELDS.values()), rows, left=0), ""]
        if bits:
            operands = sorted({operand for pair in bits.values() for operand in pair}, reverse=True)
            rows = [(name, *(str(pair.get(operand, "")) for operand in operands)) for name, pair in bits.items()]
            lines += [table(("layer", *(f"{operand} bits" for operand in operands)), rows), ""]
        if "tau" in self.measured:
            gap = (
                f"; the sum is at most {self.measured['gap']:.2g} nats above its least"
                if "gap" in self.measured
                else ""
            )
            lines += [
                f"sensitivities add up with R^2 {self.measured['r2']:.2f} and Kendall tau {self.measured['tau']:.2f} "
                f"on random bits{gap}", "",
            ]  # fmt: skip
        known = {*blocks, *(f"{name}.{operand}_bits" for name, pair in bits.items() for operand in pair)}
        chip = [f"{name}: {option}" for name, option in self.options.items() if name not in known]
        lines += [*chip, ""] if chip else []
        rows = [
            (
                LABELS.get(name, (name,))[0], quantity(name, value),
                quantity(name, self.limits[name]) if name in self.limits else "",
                f"{100 * self.usage[name]:.1f} %" if name in self.limits else "",
                f"{value / self.reference[name]:.3f}x" if self.reference.get(name) else "",
            )
            for name, value in self.metrics.items()
            if name in LABELS and name not in ("error", "loss")
        ]  # fmt: skip
        lines += [table(("simulated in full", "network", "limit", "used", "of the reference"), rows)]
        return "\n".join(lines)


def reference(problem: Problem) -> tuple[Mapping[str, Any], dict[str, float]]:
    """The options of the network that relative limits refer to, and its metrics on the chip given.

    Both are empty where the space names none, and the latter where the chip cannot run it.
    """
    space: Any = getattr(problem.space, "network_space", problem.space)
    arch = getattr(space, "reference", None)
    if arch is None:
        return {}, {}
    try:
        return space.decode(arch), estimate(space.workload(arch), problem.hardware).metrics()
    except InfeasibleLayer:
        return space.decode(arch), {}


def _layer_bits(options: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """By layer the bits of its operands, where those are what is chosen."""
    bits: dict[str, dict[str, int]] = {}
    for name, option in options.items():
        layer, _, operand = name.rpartition(".")
        if operand in ("weight_bits", "input_bits"):
            bits.setdefault(layer, {})[operand.removesuffix("_bits")] = option
    return bits


def _cell(field: str, value: Any) -> str:
    return ("no", "yes")[int(value)] if field == "skip" else str(value)


def blocks_text(options: Mapping[str, Any]) -> str:
    """The options of a network in one line; equal blocks that follow each other are named once.

    Examples
    --------
    >>> from codesign.nets.mobilenetv2 import Block
    >>> same, last = Block(6, 3, 1, 8, 8), Block(1, 5, 0, 4, 2)
    >>> blocks_text({"blocks.0": same, "blocks.1": same, "blocks.2": last, "rows": 16})
    '0-1 m6 k3 s w8a8; 2 m1 k5 w4a2; rows=16'
    """
    blocks = [option for option in options.values() if hasattr(option, "_asdict")]
    parts, first = [], 0
    for block, run in itertools.groupby(blocks):
        last = first + len(list(run)) - 1
        where = f"{first}" if first == last else f"{first}-{last}"
        skip = " s" if block.skip else ""
        parts.append(f"{where} m{block.expansion} k{block.kernel_size}{skip} w{block.weight_bits}a{block.input_bits}")
        first = last + 1
    parts += [f"{name}={option}" for name, option in options.items() if not hasattr(option, "_asdict")]
    return "; ".join(parts)
