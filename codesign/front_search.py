"""One search at each of several limits with one supernet, random search and NSGA-II beside it, and their fronts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from codesign.accuracy import place_of
from codesign.fronts import Comparison, gather
from codesign.launch import SUPERNET_NAME, Metrics, prepared, reachable, search_with, shared_weights
from codesign.problem import UnreachableLimit
from codesign.processes import on_first
from codesign.run_directory import write_atomically
from codesign.run_spec import FRONT_NAME, RunSpec, open_run

#: What runs beside every strategy, with as many evaluations.
BASELINES = ("random", "nsga2")
_RANGE = re.compile(r"([-+.\deE]+) ?([A-Za-z]\w*)?:([-+.\deE]+) ?([A-Za-z]\w*)?:(\d+)", re.ASCII)


def front_search(
    spec: RunSpec,
    out: str | Path,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    device: str | None = None,
) -> Comparison:
    """Search at every limit of a range, or go on with it, and write ``front.json`` and plots.

    Parameters
    ----------
    spec : RunSpec
        One of its limits is a range, such as ``energy_j=0.2x:0.9x:6``.
    out : path-like
        Holds at the end ``front.yaml``, ``front.json``, plots, the supernet, and a run directory for each strategy
        and limit.
    resume, progress, tensorboard, device
        As for `codesign.launch.launch`.

    Returns
    -------
    Comparison

    Raises
    ------
    UnreachableLimit
        Before anything is trained or written, where some of the limits cannot be met.
    RunDirectoryError
        Where ``out`` holds something else, or this and ``resume`` is false, or is being written.
    """
    limits = swept(spec.limits)
    place = place_of(device)
    spec, data = prepared(spec, tensorboard)
    for one in limits:
        try:
            reachable(dataclasses.replace(spec, limits=one))
        except UnreachableLimit as error:
            raise UnreachableLimit(f"At the limits {', '.join(one)}: {error}") from None
    strategies = dict.fromkeys((spec.strategy, *BASELINES))
    with open_run(out, spec, resume, FRONT_NAME) as folder:
        shared = spec.supernet or str(folder.resolve() / SUPERNET_NAME)
        with Metrics(folder, tensorboard) as metrics:
            task = shared_weights(spec, data, folder / SUPERNET_NAME, progress, metrics, place)
        for i, one in enumerate(limits, 1):
            for strategy in strategies:
                part = dataclasses.replace(
                    spec, limits=one, strategy=strategy, supernet=shared if spec.family == "mobilenetv2" else None,
                    strategy_settings=spec.strategy_settings if strategy == spec.strategy else {},
                ).completed()  # fmt: skip
                place = folder / strategy / "_".join(one)
                with open_run(place, part, resume=True), Metrics(place, tensorboard) as metrics:
                    search_with(part, task, place, progress, metrics, f" {i}/{len(limits)}")
        return on_first(lambda: _compared(folder, (spec.objective, "latency_s", "energy_j")))


def swept(limits: Sequence[str]) -> list[tuple[str, ...]]:
    """The limits of each search, of which one is a range ``metric=first:last:number``, evenly spaced.

    Raises
    ------
    ValueError
        Where none or several are, or one is of another form.

    Examples
    --------
    >>> swept(["energy_j=0.2x:0.4x:3", "latency_s=2ms"])
    [('energy_j=0.2x', 'latency_s=2ms'), ('energy_j=0.3x', 'latency_s=2ms'), ('energy_j=0.4x', 'latency_s=2ms')]
    """
    ranges = [limit for limit in limits if ":" in limit]
    if len(ranges) != 1:
        raise ValueError(
            f"Front: one limit must be a range such as energy_j=0.2x:0.9x:6, got {', '.join(ranges) or 'none'}."
        )
    name, _, values = ranges[0].partition("=")
    match = _RANGE.fullmatch(values.strip())
    try:
        if not match or (match[2] or "") != (match[4] or "") or int(match[5]) < 2:
            raise ValueError
        ends = float(match[1]), float(match[3])
    except ValueError:
        raise ValueError(
            f"Front: the range {ranges[0]!r} must be metric=first:last:number, both ends with the same unit and at "
            "least two limits, such as energy_j=0.2x:0.9x:6."
        ) from None
    texts = [f"{name.strip()}={value:.6g}{match[2] or ''}" for value in np.linspace(*ends, int(match[5]))]
    if len(set(texts)) < len(texts):
        raise ValueError(f"Front: the limits of the range {ranges[0]!r} must differ, got {', '.join(texts)}.")
    return [tuple(text if limit == ranges[0] else limit for limit in limits) for text in texts]


def _compared(folder: Path, objectives: Sequence[str]) -> Comparison:
    """The comparison of all runs in a folder, written and drawn there."""
    comparison = Comparison.of(gather([str(folder)]), objectives)
    write_atomically(folder / "front.json", (json.dumps(comparison.record(), indent=1) + "\n").encode())
    _draw(comparison, folder)
    return comparison


def _draw(comparison: Comparison, folder: Path) -> None:
    """Draw energy.png and latency.png, the objective against each, and front.png, all three."""
    import matplotlib.pyplot as plt

    from codesign.plots import plot_front_grid, plot_pareto

    groups = {name: seeds[0] for name, seeds in comparison.groups.items()}
    score = comparison.objectives[0]
    figures = {
        "front": plot_front_grid(groups, comparison.objectives, comparison.limits)[0, 0].figure,
        "energy": plot_pareto(groups, "energy_j", score, None, comparison.limits).figure,
        "latency": plot_pareto(groups, "latency_s", score, None, comparison.limits).figure,
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
        plt.close(figure)
