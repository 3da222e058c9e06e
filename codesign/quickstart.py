"""The whole path on a small example: train, quantize, search bitwidths under an energy limit, test, plot."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from codesign.accuracy import evaluate
from codesign.data import N_FOLDS, Data, digits
from codesign.describe import describe
from codesign.nets.digits import digits_net
from codesign.problem import Problem
from codesign.quant import calibrate, quantize, recalibrate_batchnorm, set_bits
from codesign.quantized_accuracy import QuantizedAccuracy
from codesign.run_directory import RunDirectory, write_atomically
from codesign.search import search
from codesign.space import Arch, BitwidthSpace
from codesign.strategies import AbstractSampler, Random, Reinforce
from codesign.train import train
from codesign.trial import Trial, best_trial
from hwmodels import BitFusion
from hwmodels.from_torch import from_torch

#: Candidates are compared by their loss on the search set: their error moves in steps of one image in 360.
OBJECTIVE = "loss"
STRATEGIES: dict[str, AbstractSampler] = {"REINFORCE": Reinforce(), "random search": Random()}
#: Images that fit the steps of quantizers and, for each candidate, the BatchNorm statistics.
N_STATISTICS = 256

LayerBits = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Settings:
    """What the quickstart does, and how much of it.

    Parameters
    ----------
    seed : int
    n_trials : int
        Candidates that each strategy evaluates.
    energy_limit : float
        Share of the energy of the network at 8 bits everywhere.
    bits : tuple of int
        Bitwidths of weights and of inputs to choose from.
    n_splits : int
        Splits into training, search and test set on which the chosen bits are trained and tested; 1 to 5.
    float_epochs, quantized_epochs, tuning_epochs : int
        Epochs in float, then with bits drawn at random for each step, and last at the bits that are tested.
    learning_rate, tuning_rate : float
        Peak of the first two, and of the last.

    Raises
    ------
    ValueError
        For numbers out of range.
    """

    seed: int = 0
    n_trials: int = 300
    energy_limit: float = 0.36
    bits: tuple[int, ...] = (2, 4, 8)
    n_splits: int = N_FOLDS
    float_epochs: int = 20
    quantized_epochs: int = 20
    tuning_epochs: int = 6
    learning_rate: float = 0.01
    tuning_rate: float = 0.003

    def __post_init__(self) -> None:
        if not 1 <= self.n_splits <= N_FOLDS:
            raise ValueError(f"quickstart: n_splits must be from 1 to {N_FOLDS}, got n_splits={self.n_splits}.")
        if self.n_trials < 1:
            raise ValueError(f"quickstart: n_trials must be at least 1, got n_trials={self.n_trials}.")
        if self.seed < 0:
            raise ValueError(f"quickstart: seed must not be negative, got seed={self.seed}.")


@dataclass(frozen=True)
class Candidate:
    """A network that was tested: its bits, its cost, and its accuracy on the test set of each split."""

    name: str
    arch: Arch
    bits: LayerBits
    energy_j: float
    latency_s: float
    meets_limit: bool
    test_accuracies: tuple[float, ...]  #: the first is of images that no choice has seen
    search_loss: float


@dataclass(frozen=True)
class Quickstart:
    """What came out; printing it shows two tables of at most 80 columns."""

    settings: Settings
    out: Path
    limit_j: float
    chosen: Candidate
    candidates: tuple[Candidate, ...]

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(describe(self), indent=1)

    def __str__(self) -> str:
        reference = next(c for c in self.candidates if c.name == f"uniform {max(self.settings.bits)} bits")
        rows = list(self.chosen.bits.items())
        lines = [
            f"Chosen for its loss on the search set, found by {self.chosen.name}.",
            f"Bits of weights / inputs of its {len(rows)} layers:",
            "",
            *_columns([f"{name:<22}{w:>2} /{a:>2}" for name, (w, a) in rows], 2),
            "",
            f"{'network':<18}{'test accuracy':>15}{'unseen':>9}{'latency':>11}{'energy':>11}{'of 8 bits':>11}",
            "-" * 75,
        ]
        for c in self.candidates:
            accuracies = 100 * np.array(c.test_accuracies)
            spread = f" ± {accuracies.std(ddof=1):.1f}" if len(accuracies) > 1 else ""
            lines.append(
                f"{c.name:<18}{f'{accuracies.mean():.1f}{spread} %':>15}{f'{accuracies[0]:.1f} %':>9}"
                f"{c.latency_s * 1e6:>8.2f} us{c.energy_j * 1e6:>8.2f} uJ{c.energy_j / reference.energy_j:>10.2f}x"
                + ("" if c.meets_limit else " !")
            )
        n = len(self.chosen.test_accuracies)
        lines += [
            "-" * 75,
            f"limit: energy of at most {self.limit_j * 1e6:.2f} uJ, {self.settings.energy_limit:.2f}x; ! is over it",
            f"test accuracy: mean and standard deviation over {n} splits, trained anew on each",
            "unseen: the split whose test images had no part in the choice of the bits",
            f"search-set loss after {self.settings.n_trials} evaluations: "
            + ", ".join(f"{c.name} {c.search_loss:.3f}" for c in self.candidates if c.name in STRATEGIES),
            "",
            f"Trials, configuration, pareto.png, layers.png, bits.png: {self.out}",
        ]
        return "\n".join(lines)


def _columns(cells: list[str], n: int) -> Iterator[str]:
    """Cells in ``n`` columns, read downwards."""
    height = -(-len(cells) // n)
    for i in range(height):
        yield "    ".join(cells[i::height])


def quickstart(
    out: str | os.PathLike[str] = "runs/quickstart",
    seed: int = 0,
    n_trials: int = Settings.n_trials,
    n_splits: int = Settings.n_splits,
    progress: bool = True,
    workers: int | None = None,
    settings: Settings | None = None,
) -> Quickstart:
    """Train a small MobileNetV2 on handwritten digits and search its bitwidths under an energy limit.

    Parameters
    ----------
    out : path-like
        The run directory. A run that was killed goes on from there, and a finished one is read back.
    seed, n_trials, n_splits : int
        See `Settings`, of which ``settings`` gives all.
    progress : bool
        Show bars on stderr.
    workers : int, optional
        Threads, as many as there are cores by default. The result does not depend on it: each computes alone.

    Returns
    -------
    Quickstart
        Print it.

    Raises
    ------
    RunDirectoryError
        Where ``out`` holds a run with another configuration, or is being written.
    """
    settings = settings or Settings(seed=seed, n_trials=n_trials, n_splits=n_splits)
    workers = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    config = {"settings": describe(settings), "strategies": describe(STRATEGIES), "hardware": describe(_chip())}
    threads = torch.get_num_threads()
    with (
        RunDirectory(out, config, resume=True) as run,
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        torch.set_num_threads(1)
        try:
            return _run(settings, run.path, pool, progress)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(threads)


def _chip() -> BitFusion:
    return BitFusion(objective="energy")


def _run(settings: Settings, out: Path, pool: ThreadPoolExecutor, progress: bool) -> Quickstart:
    data = digits(settings.seed, fold=0)
    # Traced here and not where threads train: tracing switches kernels for the whole process, which turns last bits.
    workload = from_torch(digits_net(settings.seed).eval(), (1, *data.train.images.shape[1:]))
    space = BitwidthSpace(workload, settings.bits)
    with _bar("training", settings.float_epochs + settings.quantized_epochs, progress) as step:
        network = _kept_network(out / "network.safetensors", data, space, settings, step)
    accuracy = QuantizedAccuracy(network, space, data.train.images[:N_STATISTICS], data.search, "renew")
    free = Problem(space, accuracy, _chip(), objective=OBJECTIVE)
    limit_j = settings.energy_limit * free.price(space.uniform(max(settings.bits))).energy_j
    problem = Problem(space, accuracy, free.hardware, {"energy_j": limit_j}, objective=OBJECTIVE)

    runs: dict[str, list[Trial]] = {}
    for name, strategy in STRATEGIES.items():
        with _bar(name, settings.n_trials, progress) as step:
            runs[name] = search(
                problem, strategy, settings.n_trials, settings.seed, out / name.split()[0].lower(), pool,
                resume=True, progress=lambda _: step(),
            )  # fmt: skip
    archs = {name: _best(trials).arch for name, trials in runs.items()}
    archs |= {f"uniform {bits} bits": space.uniform(bits) for bits in sorted(settings.bits, reverse=True)}
    trials = {name: free.evaluate(arch) for name, arch in archs.items()}

    bits = {name: space.layer_bits(arch) for name, arch in archs.items()}
    tests = _test(out / "test.json", bits, space, settings, network, pool, progress)
    candidates = tuple(
        Candidate(
            name, arch, bits[name], trials[name].metrics["energy_j"], trials[name].metrics["latency_s"],
            problem.feasible(arch), tuple(split[name] for split in tests), trials[name].metrics[OBJECTIVE],
        )
        for name, arch in archs.items()
    )  # fmt: skip
    chosen = min((c for c in candidates if c.name in STRATEGIES), key=lambda c: c.search_loss)
    result = Quickstart(settings, out, limit_j, chosen, candidates)
    write_atomically(out / "result.json", result.to_json().encode())
    write_atomically(out / "result.txt", f"{result}\n".encode())
    _plot(out, problem, runs, trials, chosen)
    return result


def _best(trials: list[Trial]) -> Trial:
    best = best_trial(trials, OBJECTIVE)
    if best is None:
        raise ValueError(f"quickstart: some candidate must have a {OBJECTIVE}, but none has; training has failed.")
    return best


@contextmanager
def _bar(what: str, total: int, progress: bool) -> Iterator[Callable[[], object]]:
    """A function that advances a bar by one."""
    from tqdm import tqdm

    with tqdm(desc=f"{what:<14}", total=total, disable=not progress, ncols=80, leave=True) as bar:
        yield bar.update


def any_bits_network(
    data: Data, space: BitwidthSpace, settings: Settings, seed: int, step: Callable[[], object]
) -> nn.Module:
    """A network trained in float and then with the bits of all layers drawn at random for each step.

    Its weights serve every candidate of the search.
    """
    network: nn.Module = digits_net(seed)
    train(network, data.train, settings.float_epochs, settings.learning_rate, seed, progress=step)
    network = _quantized(network, settings)
    calibrate(network, data.train.images[:N_STATISTICS])
    train(
        network, data.train, settings.quantized_epochs, settings.learning_rate, seed,
        bits=lambda rng: space.layer_bits(space.sample(rng)), progress=step,
    )  # fmt: skip
    return network


def _quantized(network: nn.Module, settings: Settings) -> nn.Module:
    return quantize(network, max(settings.bits), settings.bits)


def _kept_network(
    path: Path, data: Data, space: BitwidthSpace, settings: Settings, step: Callable[[], object]
) -> nn.Module:
    """The trained network of the first split, read back where it was kept."""
    from safetensors.torch import load, save

    if path.exists():
        network = _quantized(digits_net(settings.seed), settings)
        network.load_state_dict(load(path.read_bytes()))
        for _ in range(settings.float_epochs + settings.quantized_epochs):
            step()
    else:
        network = any_bits_network(data, space, settings, settings.seed, step)
        write_atomically(path, save(network.state_dict()))
    return network


def _test(
    path: Path,
    bits: Mapping[str, LayerBits],
    space: BitwidthSpace,
    settings: Settings,
    network: nn.Module,
    pool: ThreadPoolExecutor,
    progress: bool,
) -> list[dict[str, float]]:
    """Test accuracy by network for each split; a split that was done before is read back."""
    done: dict[str, dict[str, float]] = json.loads(path.read_bytes()) if path.exists() else {}
    missing = [fold for fold in range(settings.n_splits) if str(fold) not in done]
    stopped = threading.Event()

    def go_on() -> None:
        if stopped.is_set():
            raise RuntimeError("quickstart: stopped")

    with _bar("test splits", settings.n_splits * len(bits), progress) as step:
        for _ in range((settings.n_splits - len(missing)) * len(bits)):
            step()
        futures = {
            pool.submit(_test_split, fold, bits, space, settings, network if fold == 0 else None, step, go_on): fold
            for fold in missing
        }
        try:
            for future in as_completed(futures):
                done[str(futures[future])] = future.result()
                write_atomically(path, json.dumps(done, sort_keys=True).encode())
        finally:
            stopped.set()  # where one split failed, or the user interrupts, the others end at their next epoch
    return [done[str(fold)] for fold in range(settings.n_splits)]


def _test_split(
    fold: int,
    bits: Mapping[str, LayerBits],
    space: BitwidthSpace,
    settings: Settings,
    network: nn.Module | None,
    step: Callable[[], object],
    go_on: Callable[[], object],
) -> dict[str, float]:
    """Train on one split, tune at each network's bits, and read the test set once for each."""
    seed = settings.seed + fold
    data = digits(settings.seed, fold)
    network = network or any_bits_network(data, space, settings, seed, go_on)
    accuracies = {}
    for name, layer_bits in bits.items():
        tuned = copy.deepcopy(network)
        set_bits(tuned, layer_bits)
        train(tuned, data.train, settings.tuning_epochs, settings.tuning_rate, seed, progress=go_on)
        recalibrate_batchnorm(tuned, data.train.images)
        accuracies[name] = 1 - evaluate(tuned, data.test)["error"]
        step()
    return accuracies


def _plot(
    out: Path, problem: Problem, runs: Mapping[str, list[Trial]], trials: Mapping[str, Trial], chosen: Candidate
) -> None:
    """Draw pareto.png, layers.png and bits.png."""
    import matplotlib.pyplot as plt

    from codesign.plots import plot_bits, plot_layers, plot_pareto

    # The widest uniform network is far to the right of everything that meets the limit; it is in the table.
    widest = f"uniform {max(problem.space.choices[0].options)} bits"
    marks = {n.replace("uniform ", ""): t.metrics for n, t in trials.items() if n not in runs and n != widest}
    marks["chosen"] = trials[chosen.name].metrics
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for ax, x in zip(axes, ("latency_s", "energy_j"), strict=True):
        plot_pareto(runs, x=x, y="error", limits=problem.limits, marks=marks, ax=ax)
    report = problem.price(chosen.arch)
    drawn = {"pareto": figure, "layers": plot_layers(report)[0].figure, "bits": plot_bits(report.workload).figure}
    for name, one in drawn.items():
        one.savefig(out / f"{name}.png", dpi=130)
        plt.close(one)
