"""A search from its specification: data, limits, supernet, strategy, result; killed at any moment, it can go on."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.problem import Problem
from codesign.run_spec import RunSpec, open_run
from codesign.search import search
from codesign.search_result import SearchResult
from codesign.supernet import (
    WEIGHTS_NAME,
    SupernetAccuracy,
    SupernetTask,
    load_supernet,
    statistics_of,
    train_supernet,
)

if TYPE_CHECKING:
    from codesign.data import Data

METRICS_NAME, TENSORBOARD_NAME, SUPERNET_NAME = "metrics.jsonl", "tensorboard", "supernet"


def launch(
    spec: RunSpec,
    out: str | Path,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    device: str | None = None,
) -> SearchResult:
    """Run a search, or go on with it, and write its result and plots into its directory.

    Parameters
    ----------
    spec : RunSpec
    out : path-like
        Holds at the end ``run.yaml``, ``trials.jsonl``, ``result.json``, ``metrics.jsonl``, plots, and the supernet.
    resume : bool
    progress : bool
        Show bars on stderr.
    tensorboard : bool
        Write the metrics to ``tensorboard/`` too.
    device : str, optional
        Of torch; by default a GPU where there is one.

    Raises
    ------
    UnreachableLimit
        Before anything is trained or written.
    RunDirectoryError
        Where ``out`` holds another run, or this one and ``resume`` is false, or is being written.
    ValueError
        For data, weights or settings that do not fit.
    """
    spec, data = prepared(spec, tensorboard)
    reachable(spec)
    with open_run(out, spec, resume) as folder, Metrics(folder, tensorboard) as metrics:
        task = supernet_task(spec, data, folder / SUPERNET_NAME, progress, metrics, device)
        return search_with(spec, task, folder, progress, metrics)


def prepared(spec: RunSpec, tensorboard: bool = False) -> tuple[RunSpec, Data]:
    """The specification with nothing left to defaults, and its data.

    Raises
    ------
    ImportError
        Where TensorBoard is asked for and is not installed.
    """
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ImportError("TensorBoard: the package tensorboard must be installed: pip install tensorboard.")
    spec = spec.completed()
    data = spec.data()
    return spec.fitted(data), data


def reachable(spec: RunSpec) -> Problem:
    """The problem of a specification, without an accuracy, once some network meets its limits.

    Raises
    ------
    UnreachableLimit
        Where none does; the cheapest one found is in the message.
    """
    problem = spec.problem()
    problem.witness  # noqa: B018  raises where the limits cannot be met, or a choice is none of the chip's
    return problem


def supernet_task(
    spec: RunSpec, data: Data, folder: Path, progress: bool, metrics: Metrics, device: str | None
) -> SupernetTask:
    """Shared weights: read from another run where the specification says so, else trained in ``folder``."""
    import torch

    from codesign.nets.mobilenetv2_supernet import Supernet

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    training = spec.supernet_training()
    network, data = Supernet(spec.network_space(), spec.seed).to(place), data.to(place)
    if spec.supernet is not None:
        load_supernet(network, _weights(spec.supernet))
        return SupernetTask(network, data, training)
    n_steps = (training.float_epochs + training.epochs) * max(1, len(data.train.labels) // training.batch_size)
    with _bar("supernet", n_steps, progress) as bar:

        def report(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            if not math.isnan(loss):
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                metrics(SUPERNET_NAME, step, {"loss": loss})

        train_supernet(network, data, training, spec.seed, folder, resume=True, progress=report)
    return SupernetTask(network, data, training)


def search_with(
    spec: RunSpec, task: SupernetTask, folder: Path, progress: bool, metrics: Metrics, label: str = ""
) -> SearchResult:
    """Search with given shared weights in a directory that is open; the result is written and drawn."""
    accuracy = SupernetAccuracy(task.network, statistics_of(task.data.train), task.data.search)
    problem = spec.problem(accuracy, task)
    with _bar(f"{spec.strategy}{label}", spec.trials, progress) as bar:
        best = math.inf

        def report(trial: Any) -> None:
            nonlocal best
            value = trial.metrics.get(spec.objective, math.nan)
            best = min(best, value) if trial.feasible and not math.isnan(value) else best
            bar.set_postfix({spec.objective: f"{best:.4g}"}, refresh=False)
            bar.update()

        trials = search(
            problem, spec.search_strategy(), spec.trials, spec.seed, folder, batch_size=spec.batch_size, resume=True,
            progress=report, metrics=lambda n, values: metrics(spec.strategy, n, values),
        )  # fmt: skip
    result = SearchResult.of(problem, trials)
    result.write(folder)
    _draw(problem, trials, result, folder)
    return result


def _weights(source: str) -> Path:
    """The file of weights that a run, a folder or a file is."""
    path = Path(source)
    places = (path / SUPERNET_NAME / WEIGHTS_NAME, path / WEIGHTS_NAME) if path.is_dir() else (path,)
    for place in places:
        if place.exists():
            return place
    raise ValueError(f"Supernet {source!r}: there must be weights, got none at {' or '.join(map(str, places))}.")


@contextlib.contextmanager
def _bar(what: str, total: int, progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(desc=f"{what:<9}", total=total, disable=not progress, ncols=79, leave=True) as bar:
        yield bar


class Metrics:
    """What is measured on the way, as JSON lines; what work that goes on measures again replaces what was there.

    Parameters
    ----------
    folder : Path
    tensorboard : bool
        Write for TensorBoard too.
    """

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self._path = folder / METRICS_NAME
        self._begun: set[str] = set()
        self._writers: dict[str, Callable[[Mapping[str, float]], None]] = {}
        self._tensorboard = folder / TENSORBOARD_NAME if tensorboard else None
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  closed in __exit__

    def __call__(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step of a phase."""
        if phase not in self._begun:
            self._begun.add(phase)
            self._cut(phase, step)
        self._file.write(json.dumps({"phase": phase, "step": step, **values}) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            if phase not in self._writers:
                from codesign.tensorboard import TensorBoard

                self._writers[phase] = TensorBoard(self._tensorboard / phase)
            self._writers[phase]({**values, "epoch": step})

    def _cut(self, phase: str, step: int) -> None:
        """Drop what was measured from a step on, and a torn end."""
        self._file.close()
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                if line.endswith("\n") and not (row["phase"] == phase and row["step"] >= step):
                    kept.append(line)
        self._path.write_text("".join(kept), encoding="utf-8")
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _draw(problem: Problem, trials: list[Any], result: SearchResult, folder: Path) -> None:
    """Draw front.png, blocks.png and layers.png."""
    import matplotlib.pyplot as plt

    from codesign.metrics import LABELS, quantity
    from codesign.plots import plot_blocks, plot_layers, plot_pareto

    score = problem.objective
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    chosen = {"chosen": result.metrics}
    for ax, x, color in ((axes[0], "energy_j", "latency_s"), (axes[1], "latency_s", "energy_j")):
        plot_pareto({"trials": trials}, x, score, color, problem.limits, chosen, ax)
    space: Any = getattr(problem.space, "network_space", problem.space)
    shown = [name for name in (score, "energy_j", "latency_s") if name in result.metrics]
    costs = [f"{LABELS[name][0]} {quantity(name, result.metrics[name], ascii=False)}" for name in shown]
    blocks = plot_blocks(result.options, space.block_shapes, ", ".join(costs)).figure
    layers = plot_layers(problem.price(result.trial.arch))[0].figure
    for name, one in {"front": figure, "blocks": blocks, "layers": layers}.items():
        one.savefig(folder / f"{name}.png", dpi=130)
        plt.close(one)
