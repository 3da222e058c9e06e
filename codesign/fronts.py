"""Runs gathered and compared: which make up a strategy, their common front, and their hypervolumes over seeds."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from codesign.metrics import sense
from codesign.pareto import hypervolume, pareto_mask
from codesign.run_directory import CONFIG_NAME
from codesign.run_spec import SPEC_NAME, RunSpec
from codesign.trial import LOG_NAME, Trial, load_trials

logger = logging.getLogger(__name__)

#: What is compared by default, as far as the trials have it; the objective of the runs comes first.
COSTS = ("latency_s", "energy_j")


@dataclass(frozen=True)
class Found:
    """A run on the disk.

    Parameters
    ----------
    name : str
        Its path, as it was given or found.
    group : str
        Runs of one group differ in their limits and seeds alone.
    seed : int
    trials : tuple of Trial
    limits : mapping of float
    objective : str
    dataset : str
        Where candidates were scored; empty where that is not known.
    """

    name: str
    group: str
    seed: int
    trials: Sequence[Trial]
    limits: Mapping[str, float]
    objective: str
    dataset: str = ""


def gather(paths: Sequence[str]) -> list[Found]:
    """The runs that paths stand for: run directories, logs, or directories in which there are runs, at any depth.

    Runs without a trial yet are left out, where there are others; a warning names them. So does one where runs scored
    candidates on different data, which no front should mix.

    Runs that ``codesign search`` wrote are grouped by what they share apart from limits and seed, under the name of
    their strategy; others are each a group under their path.

    Raises
    ------
    FileNotFoundError
        Where a path holds no run.
    """
    found: list[tuple[str, Path]] = []
    for name in dict.fromkeys(paths):
        path = Path(name)
        inside = [log.parent for log in sorted(path.rglob(LOG_NAME))] if path.is_dir() else []
        if path.is_dir() and inside and not (path / LOG_NAME).exists():
            found += [(str(folder), folder) for folder in inside]
        else:
            found.append((name, path))
    begun = [(name, path) for name, path in found if (path / SPEC_NAME).exists() and not (path / LOG_NAME).exists()]
    if begun and len(begun) < len(found):
        logger.warning("Left out, as they have no trial yet: %s.", ", ".join(name for name, _ in begun))
        found = [one for one in found if one not in begun]
    read = [_read(name, path) for name, path in found]
    data = {run.dataset: run.name for run, _ in reversed(read) if run.dataset}
    if len(data) > 1:
        some = ", ".join(f"{dataset} ({name})" for dataset, name in data.items())
        logger.warning("Errors on different data do not compare, but these runs have: %s.", some)
    return _named(read)


def _read(name: str, path: Path) -> tuple[Found, str]:
    """A run, and what it has in common with the others of its group."""
    trials = tuple(load_trials(path))
    folder = path if path.is_dir() else path.parent
    limits: dict[str, float] = {}
    objective, seed, common, group, dataset = "error", 0, name, name, ""
    if (folder / CONFIG_NAME).exists():
        config = json.loads((folder / CONFIG_NAME).read_bytes())
        problem = config.get("problem", {}) if isinstance(config, dict) else {}
        limits, objective = dict(problem.get("limits", {})), str(problem.get("objective", "error"))
        seed = int(config.get("seed", 0))
    if (folder / SPEC_NAME).exists():
        spec = RunSpec.read(folder)
        group, dataset = spec.strategy, spec.dataset
        common = dataclasses.replace(
            spec, limits=(), seed=0, data_dir=None, supernet=None, hardware=spec.hardware_id()
        ).to_yaml()  # fmt: skip
    return Found(name, group, seed, trials, limits, objective, dataset), common


def _named(runs: Sequence[tuple[Found, str]]) -> list[Found]:
    """Runs whose groups have names of their own: the strategy, with the path of the first where that is not enough."""
    first = {common: run for run, common in reversed(runs)}
    strategies = [run.group for run in first.values()]
    names = {
        common: run.group if strategies.count(run.group) == 1 else f"{run.group} ({run.name})"
        for common, run in first.items()
    }
    return [dataclasses.replace(run, group=names[common]) for run, common in runs]


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, their common front, and how much of the objectives' space each seed of a group dominates.

    Parameters
    ----------
    objectives : tuple of str
    reference : tuple of float
        The corner that hypervolumes are measured up to.
    runs : sequence of Found
    """

    objectives: tuple[str, ...]
    reference: tuple[float, ...]
    runs: Sequence[Found]

    @classmethod
    def of(
        cls, runs: Sequence[Found], objectives: Sequence[str] | None = None, reference: Sequence[float] | None = None
    ) -> Comparison:
        """The comparison of runs.

        Parameters
        ----------
        runs : sequence of Found
        objectives : sequence of str, optional
            The error, or the runs' own objective where they have no error, with latency and energy.
        reference : sequence of float, optional
            The worst value of any feasible trial.

        Raises
        ------
        ValueError
            Where a run has no feasible trial, or its trials lack an objective; or for a reference of another length.
        """
        names = tuple(objectives) if objectives else _usual(runs)
        for run in runs:
            _check(run, names)
        if reference is None:
            costs = _costs([trial for run in runs for trial in run.trials], names)
            costs = costs[np.isfinite(costs).all(axis=1)]
            if not len(costs):
                raise ValueError(f"Runs: some trial must have {', '.join(names)} that are numbers, got none.")
            worst = [costs[:, i].max() if sense(name) == "min" else costs[:, i].min() for i, name in enumerate(names)]
            reference = tuple(float(value) for value in worst)
        if len(reference) != len(names):
            raise ValueError(
                f"Reference: it must have a number for each of {', '.join(names)}, got {len(reference)} numbers."
            )
        return cls(names, tuple(reference), runs)

    @property
    def senses(self) -> list[str]:
        """Whether less or more of each objective is better."""
        return [sense(name) for name in self.objectives]

    @cached_property
    def groups(self) -> dict[str, list[list[Trial]]]:
        """For each group the trials of each seed, of all its limits together."""
        by_seed: dict[str, dict[int, list[Trial]]] = {}
        for run in self.runs:
            by_seed.setdefault(run.group, {}).setdefault(run.seed, []).extend(run.trials)
        return {group: list(seeds.values()) for group, seeds in by_seed.items()}

    @property
    def limits(self) -> dict[str, list[float]]:
        """All limits of the runs by metric."""
        found: dict[str, set[float]] = {}
        for run in self.runs:
            for name, value in run.limits.items():
                found.setdefault(name, set()).add(value)
        return {name: sorted(values) for name, values in found.items()}

    @property
    def n_feasible(self) -> int:
        """Feasible trials of all runs."""
        return sum(trial.feasible for run in self.runs for trial in run.trials)

    @cached_property
    def front(self) -> list[tuple[Found, Trial]]:
        """The trials that no trial of any run dominates, by their first objective."""
        pairs = [(run, trial) for run in self.runs for trial in run.trials if trial.feasible]
        mask = pareto_mask(_costs([trial for _, trial in pairs], self.objectives), senses=self.senses)
        best = [pair for pair, on in zip(pairs, mask, strict=True) if on]
        return sorted(best, key=lambda pair: pair[1].metrics[self.objectives[0]])

    @cached_property
    def hypervolumes(self) -> dict[str, list[float]]:
        """For each group the hypervolume of each seed."""
        return {
            group: [hypervolume(_costs(t, self.objectives), self.reference, senses=self.senses) for t in seeds]
            for group, seeds in self.groups.items()
        }

    def record(self) -> dict[str, Any]:
        """Everything as JSON values."""
        volumes, front = self.hypervolumes, self.front
        return {
            "objectives": list(self.objectives),
            "reference": list(self.reference),
            "groups": {
                group: {
                    "runs": [run.name for run in self.runs if run.group == group],
                    "seeds": len(values),
                    "hypervolumes": values,
                    "median": float(np.median(values)),
                    "on_front": sum(run.group == group for run, _ in front),
                }
                for group, values in volumes.items()
            },
            "front": [{"run": run.name, "group": run.group, **json.loads(trial.to_json())} for run, trial in front],
        }


def _usual(runs: Sequence[Found]) -> tuple[str, ...]:
    """The objectives where none are named."""
    trials = [trial for run in runs for trial in run.trials if trial.feasible]
    known = set.intersection(*(set(trial.metrics) for trial in trials)) if trials else set()
    first = "error" if "error" in known else runs[0].objective
    return (first, *(name for name in COSTS if name in known))


def _costs(trials: Sequence[Trial], objectives: Sequence[str]) -> np.ndarray:
    rows = [[trial.metrics[name] for name in objectives] for trial in trials if trial.feasible]
    return np.array(rows, dtype=float).reshape(-1, len(objectives))


def _check(run: Found, objectives: Sequence[str]) -> None:
    feasible = [trial for trial in run.trials if trial.feasible]
    if not feasible:
        raise ValueError(f"Run {run.name!r}: it must have feasible trials, got none among {len(run.trials)}.")
    for trial in feasible:
        missing = [name for name in objectives if name not in trial.metrics]
        if missing:
            raise ValueError(
                f"Run {run.name!r}: objectives must be among its metrics {', '.join(trial.metrics)}, got "
                f"{', '.join(missing)}."
            )
