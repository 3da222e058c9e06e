"""HAQ on ResNet-20 with the paper's choices put back one at a time.

    python benchmarks/ablate_haq.py --data cifar10.npz --weights resnet20_cifar10.safetensors

The limit (30 % of the range of energy), the seeds and the number of search images are none of `repro_bits.py`, so that
what is chosen here is not chosen on what is compared there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import Jobs, Work, parser

from codesign.describe import describe
from codesign.family import family
from codesign.launch import prepared
from codesign.problem import Problem
from codesign.run_directory import write_atomically
from codesign.run_spec import RunSpec
from codesign.search import search
from codesign.strategies import HAQ, Random
from codesign.strategies.base import AbstractStrategy
from codesign.trial import best_trial

RESULTS = Path(__file__).parent / "results"
EPISODES, SEEDS, BATCH, N_LATE = 150, (10, 11, 12), 10, 30
DEFAULT, PAPER = HAQ().lasting(EPISODES), HAQ.paper().lasting(EPISODES)
#: What a search of the paper's 600 episodes has, in proportion.
SHORT = {"warmup": 5, "noise_decay": HAQ.paper().noise_decay ** (600 / EPISODES)}
VARIANTS: dict[str, AbstractStrategy] = {
    "default": DEFAULT,
    "discount 1": dataclasses.replace(DEFAULT, discount=1.0),
    "the paper's noise": dataclasses.replace(DEFAULT, noise_decay=PAPER.noise_decay),
    "the paper's noise, 5 random episodes": dataclasses.replace(DEFAULT, **SHORT),
    "not filled": dataclasses.replace(DEFAULT, fill=False),
    "all of these": dataclasses.replace(DEFAULT, fill=False, discount=1.0, **SHORT),
    "paper": PAPER,
    "random": Random(),
}


class Ablation(Jobs):
    """A job is a search."""

    def __init__(self, data: str | None, weights: str | None, work: Path) -> None:
        super().__init__(RESULTS / "ablate_haq.json", work, {"variants": describe(VARIANTS), "episodes": EPISODES})
        self._data, self._weights = data, weights
        self._problem: Problem | None = None

    @property
    def problem(self) -> Problem:
        if self._problem is None:
            spec, data = prepared(RunSpec(
                family="bits", network="resnet20", weights=str(self._weights), dataset=str(self._data), data_dir=".",
                normalize="imagenet", n_train=10_000, n_search=250, n_test=9500, objective="loss",
                network_settings={"calibration": 128}, limits=("energy_j=30%",),
            ))  # fmt: skip
            task = family("bits").task(spec, data, Path(), torch.device("cpu"))
            self._problem = spec.problem(task.accuracy(), task)
        return self._problem

    def searched(self, name: str, seed: int) -> dict[str, Any]:
        """The least loss that a search comes to, and the mean of its last candidates."""
        trials = search(self.problem, VARIANTS[name], EPISODES, seed, batch_size=BATCH)
        best = best_trial(trials, "loss")
        assert best is not None
        return {"loss": best.metrics["loss"], "late": float(np.mean([one.metrics["loss"] for one in trials[-N_LATE:]]))}

    def jobs(self) -> Iterator[tuple[str, Work]]:
        for seed in SEEDS:
            for name in VARIANTS:
                yield f"{name}/{seed}", partial(self.searched, name, seed)

    def report(self) -> str:
        rows = []
        for name in VARIANTS:
            found = [self.results[f"{name}/{seed}"] for seed in SEEDS if f"{name}/{seed}" in self.results]
            if found:
                best, late = ([one[key] for one in found] for key in ("loss", "late"))
                each = ", ".join(f"{value:.3f}" for value in best)
                rows.append(f"| {name} | {each} | {np.mean(best):.3f} | {np.mean(late):.3f} |")
        text = "\n".join([
            "# HAQ on ResNet-20, 30 % of the range of energy\n",
            "Command: `python benchmarks/ablate_haq.py --data cifar10.npz --weights FILE`; results: "
            f"`{self.path.name}`. {EPISODES} episodes, 250 images to search on, seeds {', '.join(map(str, SEEDS))}. "
            "Lower is better.\n",
            f"| HAQ | least loss, by seed | mean | mean of the last {N_LATE} candidates |", "| --- | --- | --- | --- |",
            *rows,
        ]) + "\n"  # fmt: skip
        write_atomically(self.path.with_suffix(".md"), text.encode())
        return text


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], "runs/ablate_haq")
    arguments.add_argument("--data", help="cifar10.npz, with x_train, y_train, x_test, y_test")
    arguments.add_argument("--weights", help="trained weights, a safetensors file")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    jobs = Ablation(args.data, args.weights, args.work)
    if not args.report:
        jobs.run(args.minutes)
    print(jobs.report())


if __name__ == "__main__":
    main()
