"""The loop of every search."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from codesign.describe import describe
from codesign.problem import Problem
from codesign.processes import is_first, on_first
from codesign.run_directory import RunDirectory, RunDirectoryError, State, run_directory
from codesign.space import Arch
from codesign.strategies.base import AbstractSampler, AbstractTrainer
from codesign.trial import Trial

Metrics = Callable[[int, Mapping[str, float]], object]


def search(
    problem: Problem,
    strategy: AbstractSampler | AbstractTrainer,
    n_trials: int,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    batch_size: int = 10,
    resume: bool = False,
    progress: Callable[[Trial], object] | None = None,
    metrics: Metrics | None = None,
) -> list[Trial]:
    """The trials of a search, in order.

    Parameters
    ----------
    problem : Problem
    strategy : AbstractSampler or AbstractTrainer
    n_trials : int
        Candidates to evaluate. A run can be resumed with more.
    seed : int
        Same seed, same trials, whatever the executor and however often the run was killed.
    out : path-like, optional
        Directory for the configuration, the trials and the state (`RunDirectory`).
    executor : concurrent.futures.Executor, optional
        Evaluates the candidates of a batch. None: this thread.
    batch_size : int
        Candidates asked for at once. It changes what a strategy knows when it is asked, so it is a part of the
        configuration; the number of workers is not.
    resume : bool
        Go on with the run in ``out``, if it is there.
    progress : callable, optional
        Called with each trial in order, those of a resumed run too.
    metrics : callable, optional
        Called with the number of trials so far and what a trainer measured since the last ones, by name.

    Raises
    ------
    UnreachableLimit
        Before anything is evaluated or written, where no network is found that meets the limits.
    RunDirectoryError
        Where ``out`` belongs to another configuration, exists and is not to be resumed, or is being written.

    Notes
    -----
    A batch that ``n_trials`` cuts short is not told to the strategy, so that going on later with more trials gives
    what asking for them at once had given.

    Of several processes (`codesign.processes.started`) that all call it, the first one evaluates candidates, writes
    and reports; all are handed the same trials.
    """
    if n_trials < 1 or batch_size < 1:
        raise ValueError(
            f"search: n_trials and batch_size must be at least 1, got n_trials={n_trials}, batch_size={batch_size}."
        )
    if problem.limits:
        problem.witness  # noqa: B018  raises where the limits cannot be met
    config = {
        "problem": describe(problem),
        "strategy": describe(strategy),
        "seed": int(seed),
        "batch_size": int(batch_size),
    }
    if not is_first():
        progress = metrics = None
    with run_directory(out, config, resume) as run:
        logged, kept = on_first(lambda: (list(run.log.trials), run.restore()) if run else ([], None))
        trials: list[Trial] = []
        state, told = kept or (strategy.init(problem, np.random.default_rng(seed)), 0)
        for trial in logged[: min(told, n_trials)]:
            trials.append(_report(trial, progress))
        if len(trials) == n_trials:
            return trials
        at_work = (
            _Training(strategy, problem, state, metrics)
            if isinstance(strategy, AbstractTrainer)
            else _Sampling(strategy, problem, state)
        )
        while len(trials) < n_trials:
            archs, problem_now = at_work.ask(batch_size, len(trials))
            if not archs:  # a trainer that has nothing to offer yet
                if out is not None:
                    on_first(partial(_checkpoint, run, at_work, len(trials)))
                continue
            batch = archs[: n_trials - len(trials)]
            known = logged[len(trials) : len(trials) + len(batch)]
            _check_replay(known, batch, out)
            paid_for = {trial.arch: trial for trial in [*trials, *known]} if at_work.scores_hold else {}
            fresh = _logged(
                _evaluated(problem_now, batch[len(known) :], len(trials) + len(known), int(seed), executor, paid_for),
                run,
            )
            for trial in known:
                trials.append(_report(trial, progress))
            for _ in batch[len(known) :]:
                trials.append(_report(on_first(partial(next, fresh)), progress))
            if len(batch) == batch_size:
                at_work.tell(trials[-batch_size:])
                if out is not None:
                    on_first(partial(_checkpoint, run, at_work, len(trials)))
    return trials


class _Sampling:
    """A sampler and its state."""

    scores_hold = True

    def __init__(self, strategy: AbstractSampler, problem: Problem, state: State) -> None:
        self.strategy, self.problem, self._state = strategy, problem, state

    def ask(self, n: int, number: int) -> tuple[list[Arch], Problem]:
        archs, self._state = self.strategy.ask(self.problem, self._state, n)
        return archs, self.problem

    def tell(self, trials: Sequence[Trial]) -> None:
        self._state = self.strategy.tell(self.problem, self._state, trials)

    def state(self) -> State:
        return self._state


class _Training:
    """A trainer at work; what it offers is evaluated with its weights of that moment."""

    scores_hold = False

    def __init__(self, strategy: AbstractTrainer, problem: Problem, state: State, metrics: Metrics | None) -> None:
        self.training, self.problem, self.metrics = strategy.start(problem, state), problem, metrics

    def ask(self, n: int, number: int) -> tuple[list[Arch], Problem]:
        means = self.training.advance()
        if self.metrics and means:
            self.metrics(number, means)
        return self.training.offer(n), replace(self.problem, accuracy=self.training.accuracy())

    def tell(self, trials: Sequence[Trial]) -> None:
        self.training.tell(trials)

    def state(self) -> State:
        return self.training.state()


def _report(trial: Trial, progress: Callable[[Trial], object] | None) -> Trial:
    if progress:
        progress(trial)
    return trial


def _evaluated(
    problem: Problem,
    archs: Sequence[Arch],
    first: int,
    seed: int,
    executor: Executor | None,
    paid_for: Mapping[Arch, Trial],
) -> Iterator[Trial]:
    """The trials of archs in their order, each as soon as it and those before it are done.

    None is evaluated twice, nor one that an earlier trial, or a run that was killed, has paid for.
    """
    known = dict(paid_for)
    if executor is None:
        for number, arch in enumerate(archs, first):
            if arch not in known:
                known[arch] = problem.evaluate(arch, number, seed)
            yield replace(known[arch], number=number)
        return
    new = [arch for arch in dict.fromkeys(archs) if arch not in known]
    futures = {arch: executor.submit(problem.evaluate, arch, 0, seed) for arch in new}
    try:
        for number, arch in enumerate(archs, first):
            yield replace(known.get(arch) or futures[arch].result(), number=number)
    finally:
        for future in futures.values():
            future.cancel()


def _logged(trials: Iterator[Trial], run: RunDirectory | None) -> Iterator[Trial]:
    """Trials, each once it is in the log."""
    for trial in trials:
        if run:
            run.log.append(trial)
        yield trial


def _checkpoint(run: RunDirectory, at_work: _Sampling | _Training, told: int) -> None:
    run.checkpoint(at_work.state(), told)


def _check_replay(known: Sequence[Trial], archs: Sequence[Arch], out: Any) -> None:
    """A log must hold what the strategy asks for; it does not where the code has changed since."""
    for trial, arch in zip(known, archs, strict=False):
        if trial.arch != arch:
            raise RunDirectoryError(
                f"{out}: trial {trial.number} in the log must be what the strategy asks for, but it is not: the run "
                "was made by another version of the code. Choose another directory."
            )
