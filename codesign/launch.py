"""A search from its specification: data, limits, supernet, strategy, result; killed at any moment, it can go on."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.accuracy import place_of
from codesign.family import family
from codesign.problem import Problem
from codesign.run_directory import write_atomically
from codesign.run_spec import RunSpec, open_run
from codesign.search import search
from codesign.search_result import SearchResult
from codesign.strategies.relaxed_bits import RelaxedBits
from codesign.supernet import SUPERNET_NAME

if TYPE_CHECKING:
    import torch

    from codesign.data import Data

logger = logging.getLogger(__name__)

METRICS_NAME, TENSORBOARD_NAME = "metrics.jsonl", "tensorboard"


def launch(
    spec: RunSpec,
    out: str | Path,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    device: str | None = None,
    executor: Executor | None = None,
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
    executor : concurrent.futures.Executor, optional
        Evaluates candidates, as in `codesign.search.search`.

    Raises
    ------
    UnreachableLimit
        Before anything is trained or written.
    RunDirectoryError
        Where ``out`` holds another run, or this one and ``resume`` is false, or is being written.
    ValueError
        For data, weights or settings that do not fit.
    """
    place = place_of(device)
    spec, data = prepared(spec, tensorboard)
    reachable(spec)
    with open_run(out, spec, resume) as folder, Metrics(folder, tensorboard) as metrics:
        task = shared_weights(spec, data, folder / SUPERNET_NAME, progress, metrics, place)
        return search_with(spec, task, folder, progress, metrics, executor=executor)


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
    ValueError
        Where the strategy cannot do what is asked of it.
    """
    problem = spec.problem()
    spec.search_strategy().check(problem)
    problem.witness  # noqa: B018  raises where the limits cannot be met, or a choice is none of the chip's
    return problem


def shared_weights(
    spec: RunSpec, data: Data, folder: Path, progress: bool, metrics: Metrics, place: torch.device
) -> Any:
    """The weights that candidates share: read, or trained in ``folder``."""
    with contextlib.ExitStack() as stack:
        bar: Any = None

        def report(step: int, n_steps: int, values: Mapping[str, float]) -> None:
            nonlocal bar
            bar = bar or stack.enter_context(_bar(SUPERNET_NAME, n_steps, progress))
            bar.update(step - bar.n)
            if values:
                bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
                metrics(SUPERNET_NAME, step, values)

        return family(spec.family).task(spec, data, folder, place, report)


def search_with(
    spec: RunSpec, task: Any, folder: Path, progress: bool, metrics: Metrics, label: str = "", draw: bool = True,
    executor: Executor | None = None,
) -> SearchResult:  # fmt: skip
    """Search with given shared weights in a directory that is open; the result is written, and drawn."""
    kind = family(spec.family)
    problem = spec.problem(kind.accuracy(task), task)
    said = kind.before(problem, task) if progress and draw else ""
    if said:
        print(f"{said}\n", file=sys.stderr, flush=True)
    with _bar(f"{spec.strategy}{label}", spec.trials, progress) as bar:
        best = math.inf

        def report(trial: Any) -> None:
            nonlocal best
            value = trial.metrics.get(spec.objective, math.nan)
            best = min(best, value) if trial.feasible and not math.isnan(value) else best
            bar.set_postfix({spec.objective: f"{best:.4g}"}, refresh=False)
            bar.update()

        trials = search(
            problem, spec.search_strategy(), spec.trials, spec.seed, folder, executor, spec.batch_size, resume=True,
            progress=report, metrics=lambda n, values: metrics(spec.strategy, n, values),
        )  # fmt: skip
    result = SearchResult.of(problem, trials, measured(folder, str(spec.strategy)))
    if not spec.limits and isinstance(spec.search_strategy(), RelaxedBits):
        last = (len(trials) - 1) // spec.batch_size * spec.batch_size
        logger.warning(
            "Without a limit the trial of least %s is named, mostly one with many bits; what the course ended with, at "
            "the cost that it was to lower, is trial %d: give --trial %d.", spec.objective, last, last,
        )  # fmt: skip
    result.write(folder)
    if draw:
        _draw(problem, trials, result, kind.draw(problem, result), folder)
    return result


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
        write_atomically(self._path, "".join(kept).encode())
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def measured(folder: Path, phase: str) -> dict[str, float]:
    """The last value of each metric of a phase, as ``metrics.jsonl`` has them."""
    values: dict[str, float] = {}
    for line in (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            if row.pop("phase") == phase:
                row.pop("step")
                values |= row
    return values


def _draw(problem: Problem, trials: list[Any], result: SearchResult, chosen: tuple[str, Any], folder: Path) -> None:
    """Draw front.png, layers.png, and the picture of the chosen network."""
    import matplotlib.pyplot as plt

    from codesign.plots import plot_layers, plot_pareto

    score = problem.objective
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    marked = {"chosen": result.metrics}
    for ax, x, color in ((axes[0], "energy_j", "latency_s"), (axes[1], "latency_s", "energy_j")):
        plot_pareto({"trials": trials}, x, score, color, problem.limits, marked, ax=ax)
    layers = plot_layers(problem.price(result.trial.arch))[0].figure
    for name, one in {"front": figure, "layers": layers, **dict([chosen])}.items():
        one.savefig(folder / f"{name}.png", dpi=130)
        plt.close(one)
