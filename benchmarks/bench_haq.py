"""HAQ: its own cost of an episode on ResNet-20, without the evaluation."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
from measure import Report, Times, seconds

from codesign.problem import Problem
from codesign.space import Arch, BitwidthSpace
from codesign.strategies import HAQ
from hwmodels import BitFusion, networks

TARGET_S, EPISODES, LIMIT, SEED = 0.150, 200, 0.6, 0
PARTS = ("ask", "of it enforcement", "tell", "episode")


def resnet20() -> Problem:
    """2 to 8 bits in each layer, within 0.6 of the energy at 8 bits; an error that is a formula."""
    space = BitwidthSpace(networks.resnet20(), bits=tuple(range(2, 9)))
    bits = np.array(space.bits)

    def accuracy(arch: Arch) -> dict[str, float]:
        return {"error": float(np.mean(4.0 ** -bits[list(arch)]))}

    free = Problem(space, accuracy, BitFusion())
    return replace(free, limits={"energy_j": LIMIT * free.price(space.reference).energy_j})


def measured(strategy: HAQ) -> dict[str, Times]:
    """Times of the parts of an episode that is learned from, one asked for at a time."""
    problem = resnet20()
    state = strategy.init(problem, np.random.default_rng(SEED))
    taken: dict[str, list[tuple[float, float]]] = {part: [] for part in PARTS}
    for episode in range(strategy.warmup + 1 + EPISODES):
        marks = [_now()]
        (arch,), state = strategy.ask(problem, state, 1)
        marks.append(_now())
        strategy.enforced(problem, state["asked"][0])  # again, and alone
        marks.append(_now())
        trial = problem.evaluate(arch)
        marks.append(_now())
        state = strategy.tell(problem, state, [trial])
        marks.append(_now())
        ask, enforcement, _, tell = ((b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks))
        if episode > strategy.warmup:  # after one that compiles
            both = (ask[0] + tell[0], ask[1] + tell[1])
            for part, spent in zip(PARTS, (ask, enforcement, tell, both), strict=True):
                taken[part].append(spent)
    return {part: _times(spent) for part, spent in taken.items()}


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _times(spent: list[tuple[float, float]]) -> Times:
    wall, processor = zip(*spent, strict=True)
    return Times(statistics.median(wall), min(wall), max(wall), statistics.median(processor))


def main() -> None:
    """Measure with one thread and with two."""
    report = Report("HAQ's own cost of an episode: ResNet-20, 2 to 8 bits, without the evaluation", "scipy")
    steps = len(resnet20().space.choices)
    report(f"{steps} steps and as many updates on 64 transitions an episode; limit {LIMIT} of the energy at 8 bits;")
    report(f"median of {EPISODES} episodes that are learned from; seed {SEED}; target {seconds(TARGET_S)}\n")
    report(f"{'':<9}{'threads':<9}{'part':<19}{'wall':<32}{'processor':>9}")
    for name, strategy in (("default", HAQ()), ("paper", HAQ.paper())):
        for threads in (1, 2):
            os.environ["OMP_NUM_THREADS"] = str(threads)  # read when a process first loads its linear algebra
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found = pool.submit(measured, strategy).result()
            for part, times in found.items():
                row = f"{name:<9}{threads:<9}{part:<19}{times!s:<32}{seconds(times.processor):>9}"
                report(row + (f"   {times.processor / TARGET_S:.2f} of the target" if part == "episode" else ""))
    report("\nit stays on one thread, so ratios are of processor time, which is the wall time where a core is free")
    report.close()


if __name__ == "__main__":
    main()
