"""MP-NAS on CIFAR-10: fronts of the joint search against fixed networks, random search and NSGA-II.

    python benchmarks/repro_mpnas.py --budget                           # image passes of every arm
    python benchmarks/repro_mpnas.py --data-dir DATA --work runs/mpnas  # compute what is missing, and report
    python benchmarks/repro_mpnas.py --report                           # tables and plots from committed results

DATA holds ``cifar10.npz`` or torchvision's files, and Fashion-MNIST likewise. Work is cut into jobs; the result of each
is kept in ``benchmarks/results/mpnas.json``, so a run that was stopped goes on, ``--minutes`` stops it by itself, and
several processes may work side by side. Every job computes on one thread and is seeded: who does it, and when, does not
matter. Networks that other settings of the searches found stay in the file: trained alike, they count for Kendall's tau
and the regression over networks. ``--preset full`` is the same at full width, all 22 blocks and all images, for a GPU
(``--device cuda``).

MP-NAS (Gong et al., ICCAD 2019) publishes its results as figures whose numbers are not in the text, so there is no
printed figure to stand beside ours.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import Jobs, parser, short
from mpnas_report import Report
from safetensors.torch import save_file

from codesign.accuracy import evaluate
from codesign.chip_space import ChipSpace
from codesign.cost_table import cost_table
from codesign.data import Data, Images, load_data
from codesign.describe import describe
from codesign.nets.mobilenetv2 import FIXED_BITS, MobileNetV2Space, Stage
from codesign.nets.mobilenetv2_network import MobileNetV2
from codesign.nets.mobilenetv2_supernet import Supernet
from codesign.problem import Problem
from codesign.quant import calibrate, quantize
from codesign.quantized_accuracy import QuantizedAccuracy
from codesign.run_directory import write_atomically
from codesign.search import search
from codesign.space import AbstractSpace, Arch, BitwidthSpace
from codesign.strategies import MPNAS, NSGA2, AbstractStrategy, AbstractTrainer, Gumbel, Random, Reinforce
from codesign.supernet import SupernetAccuracy, SupernetTask, statistics_of, train_supernet
from codesign.train import PICTURES, train
from codesign.trial import best_trial
from codesign.weight_training import SupernetTraining
from hwmodels import BitFusion, estimate

RESULTS = Path(__file__).parent / "results"
#: Images that BatchNorm statistics are fitted to before a candidate is scored, as `statistics_of` takes them.
N_STATISTICS = 512
#: The same for a sensitivity of the knapsack, and the images that it is measured on.
SENSITIVITY_IMAGES = (256, 500)
#: Networks from which on their errors are explained.
FEWEST_NETWORKS = 20
FORWARD, FORWARD_AND_BACKWARD = 1, 3  # image passes


@dataclass(frozen=True)
class Preset:
    """How large the experiment is."""

    space: MobileNetV2Space
    n_train: int | None
    n_search: int
    supernet: SupernetTraining
    policy_steps: int
    policy_rate: float
    temperature: float
    sampler_trials: int
    float_epochs: int
    epochs: int
    learning_rate: float = 0.1
    batch_size: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    #: Energy, in shares of that of the fixed network at 8 bits: what it takes at 2, 4, 6, 8 bits over 1.5, and at 6.
    limits: tuple[float, ...] = (0.22, 0.357, 0.535, 0.666, 0.8)
    knapsack_limits: tuple[float, ...] = (0.36, 0.54, 0.8)
    chip: BitFusion = dataclasses.field(default_factory=BitFusion)
    chip_fields: tuple[tuple[str, tuple[int, ...]], ...] = (("rows", (8, 16, 32)), ("dram_bits_per_cycle", (64, 192)))
    trainer_batch: int = 5

    @property
    def strategies(self) -> dict[str, AbstractStrategy]:
        """By name; each offers or asks for candidates in batches."""
        steps = {
            "steps": self.policy_steps, "learning_rate": self.policy_rate, "temperature": self.temperature,
        }  # fmt: skip
        return {
            "mpnas": MPNAS(**steps), "gumbel": Gumbel(**steps), "reinforce": Reinforce(fill=False), "random": Random(),
            "nsga2": NSGA2(population=10),
        }  # fmt: skip

    def n_trials(self, strategy: AbstractStrategy) -> int:
        """Evaluations of a strategy."""
        if isinstance(strategy, MPNAS):
            return self.policy_steps // strategy.steps_per_offer * self.trainer_batch
        return self.sampler_trials

    def search_passes(self, strategy: AbstractStrategy) -> int:
        """Image passes of one search: gradient steps of weights and policy, and evaluations."""
        evaluations = self.n_trials(strategy) * (N_STATISTICS + self.n_search) * FORWARD
        if not isinstance(strategy, MPNAS):
            return evaluations
        steps = self.policy_steps * (1 + strategy.weight_steps)
        return evaluations + steps * self.batch_size * FORWARD_AND_BACKWARD


#: Stride 2 already in the first block: a quarter of the work of the CIFAR preset, and maps of 4 x 4 at the end.
_REDUCED_STAGES = tuple(
    Stage(*stage)
    for stage in zip((16, 24, 32, 64, 128, 160, 256), (2, 1, 2, 2, 1, 1, 1), (1, 2, 4, 4, 4, 5, 2), strict=True)
)
PRESETS = {
    "reduced": Preset(
        MobileNetV2Space.preset("cifar", width=0.25, depth=0.5, stages=_REDUCED_STAGES, head_channels=320),
        n_train=10_000, n_search=1000, supernet=SupernetTraining(2, 8, release=1.0, sampling="coherent"),
        policy_steps=160, policy_rate=0.3, temperature=0.5, sampler_trials=80, float_epochs=2, epochs=6,
    ),
    "full": Preset(
        MobileNetV2Space.preset("cifar"), n_train=None, n_search=5000,
        supernet=SupernetTraining(40, 80, release=1.0, sampling="coherent"),
        policy_steps=4000, policy_rate=0.05, temperature=2.0, sampler_trials=600,
        float_epochs=60, epochs=60, batch_size=128,
    ),
}  # fmt: skip
DATA_SETS = {"cifar10": {}, "fashion-mnist": {"input_size": 28, "in_channels": 1}}


class Experiment(Jobs):
    """Jobs over one preset; the result of each is kept under its name."""

    def __init__(self, name: str, data_dir: str | None, work: Path, device: str = "cpu") -> None:
        self.name, self.preset, self.data_dir, self.device = name, PRESETS[name], data_dir, device
        path = RESULTS / f"mpnas{'' if name == 'reduced' else f'_{name}'}.json"
        super().__init__(path, work, describe(self.preset))
        self._data: dict[str, Data] = {}

    # --- what jobs need ------------------------------------------------------------------------------------------

    def space(self, data: str) -> MobileNetV2Space:
        return dataclasses.replace(self.preset.space, **DATA_SETS[data])

    def data(self, name: str) -> Data:
        if name not in self._data:
            data = load_data(name, self.data_dir, self.preset.n_train, self.preset.n_search)
            self._data[name] = data.to(self.device)
        return self._data[name]

    def supernet(self, data: str, seed: int) -> Supernet:
        """The shared weights of a seed, trained or read back."""
        network = Supernet(self.space(data), seed).to(self.device, memory_format=torch.channels_last)
        training = dataclasses.replace(self.preset.supernet, batch_size=self.preset.batch_size)
        out = self.work / f"supernet-{data}-{seed}"
        with self.locked(out.name):
            train_supernet(network, self.data(data), training, seed, out, resume=True)
        return network

    def problem(self, data: str, limits: dict[str, float], network: Supernet | None, seed: int = 0) -> Problem:
        """Limits as shares of what the fixed network at 8 bits costs; an area stays as it is."""
        space: AbstractSpace = self.space(data)
        whole = Problem(space, _no_accuracy, self.preset.chip).price(space.reference).metrics()
        limits = {name: share * (1 if name == "area_mm2" else whole[name]) for name, share in limits.items()}
        if "area_mm2" in limits:
            space = ChipSpace(space, dict(self.preset.chip_fields))
        if network is None:
            return Problem(space, _no_accuracy, self.preset.chip, limits)
        training = dataclasses.replace(self.preset.supernet, batch_size=self.preset.batch_size)
        task = SupernetTask(network, self.data(data), training)
        accuracy = SupernetAccuracy(network, statistics_of(self.data(data).train), self.data(data).search)
        return Problem(space, accuracy, self.preset.chip, limits, supernet=task, objective="loss")

    # --- jobs ----------------------------------------------------------------------------------------------------

    def trained_supernet(self, data: str, seed: int) -> dict[str, Any]:
        """The shared weights of a seed, and what they give for the fixed network."""
        begun = time.perf_counter()
        network = self.supernet(data, seed)
        seconds = time.perf_counter() - begun
        scores = SupernetAccuracy(network, statistics_of(self.data(data).train), self.data(data).search)
        return {"train_s": seconds, "fixed": scores(self.space(data).reference)}

    def search(self, data: str, strategy_name: str, limits: dict[str, float], seed: int) -> dict[str, Any]:
        """One search: its trials, the chosen network, and how it uses its limits by a full simulation."""
        strategy = self.preset.strategies[strategy_name]
        problem = self.problem(data, limits, self.supernet(data, seed))
        out = self.work / f"search-{data}-{strategy_name}-{short([data, strategy_name, limits, seed])}"
        begun = time.perf_counter()
        n_trials = self.preset.n_trials(strategy)
        batch = self.preset.trainer_batch if isinstance(strategy, AbstractTrainer) else 10
        trials = search(problem, strategy, n_trials, seed, out, batch_size=batch, resume=True)
        seconds = time.perf_counter() - begun
        best = best_trial(trials, "loss")
        report = problem.price(best.arch)
        return {
            "arch": best.arch, "network_arch": problem.space.network_arch(best.arch),
            "chip": problem.space.chip_options(best.arch) if isinstance(problem.space, ChipSpace) else {},
            "metrics": {**best.metrics, **report.metrics()}, "usage": problem.usage(best.arch),
            "trials": [[t.metrics["error"], t.metrics["loss"], t.metrics["energy_j"], t.metrics["latency_s"]]
                       for t in trials],
            "evaluations": len(trials), "image_passes": self.preset.search_passes(strategy), "search_s": seconds,
        }  # fmt: skip

    def final(self, data: str, arch: Arch, seed: int, layer_bits: dict[str, tuple[int, int]] | None) -> dict[str, Any]:
        """A network trained from scratch, in float and then quantized, and its error on the test set, read once."""
        space, images = self.space(data), self.data(data)
        bits = layer_bits or space.layer_bits(arch)
        network = MobileNetV2(space, space.blocks(arch), seed).to(self.device, memory_format=torch.channels_last)
        recipe = dataclasses.replace(PICTURES, batch_size=self.preset.batch_size,
                                     augment="crop-flip" if space.in_channels == 3 else "shift")  # fmt: skip
        rate, place = self.preset.learning_rate, self.work / f"final-{short([data, arch, seed, layer_bits])}"
        place.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        train(network, images.train, self.preset.float_epochs, rate, seed, recipe, checkpoint=place / "float")
        network = quantize(network, bits)
        calibrate(network, statistics_of(images.train))
        train(network, images.train, self.preset.epochs, rate / 2, seed + 1, recipe, checkpoint=place / "quantized")
        save_file({name: t.contiguous() for name, t in network.state_dict().items()}, place / "weights.safetensors")
        test, held_out = evaluate(network, images.test), evaluate(network, images.search)
        workload = space.workload(arch)
        if layer_bits:
            workload = workload.with_bits({n: w for n, (w, _) in bits.items()}, {n: a for n, (_, a) in bits.items()})
        report = estimate(workload, self.preset.chip)
        return {
            "arch": arch, "bits": bits, "layer_bits": layer_bits is not None,
            "test_error": test["error"], "search_error": held_out["error"],
            "energy_j": report.energy_j, "latency_s": report.latency_s, "train_s": time.perf_counter() - begun,
        }  # fmt: skip

    def knapsack(self, data: str, shares: Sequence[float]) -> dict[str, Any]:
        """The best bits of each layer of the fixed network under energy limits, by the exact knapsack.

        Its sensitivities are those of the network that was trained at 8 bits, on the images that searches score on.
        """
        from safetensors.torch import load_file

        from codesign.knapsack import knapsack
        from codesign.sensitivity import additivity, sensitivities

        space, images = self.space(data), self.data(data)
        begun = time.perf_counter()
        pinned = dict.fromkeys(("stem", "head", "classifier"), FIXED_BITS)
        fixed = BitwidthSpace(space.workload(space.reference), space.bits, pinned)
        network = space.build(space.reference, 0, bitwidths=space.bits).to(self.device)
        weights = self.work / f"final-{short([data, space.reference, 0, None])}" / "weights.safetensors"
        if not weights.exists():  # the result is known from elsewhere, but the weights were not kept
            self.final(data, space.reference, 0, None)
        trained = load_file(weights)
        network.load_state_dict(trained, strict=False)
        calibrate(network, statistics_of(images.train))
        scored = Images(*(t[: SENSITIVITY_IMAGES[1]] for t in images.search))
        statistics = statistics_of(images.train, SENSITIVITY_IMAGES[0])
        accuracy = QuantizedAccuracy(network, fixed, statistics, scored, "renew")
        found = sensitivities(accuracy, fixed)
        check = additivity(found, accuracy, fixed)
        table, whole = cost_table(fixed, self.preset.chip), Problem(fixed, _no_accuracy, self.preset.chip)
        limit_j = whole.price(fixed.uniform(max(fixed.bits))).energy_j
        optima = {share: knapsack(table, found.factors(fixed), {"energy_j": share * limit_j}) for share in shares}
        n_evaluations = len(fixed.searched) * len(fixed.bits) ** 2
        return {
            "bits": {str(share): fixed.layer_bits(optimum.arch) for share, optimum in optima.items()},
            "gap": max(optimum.gap for optimum in optima.values()), "r2": check.r2, "tau": check.tau,
            "evaluations": n_evaluations, "image_passes": n_evaluations * sum(SENSITIVITY_IMAGES),
            "search_s": time.perf_counter() - begun,
        }  # fmt: skip

    def tau(self, data: str, seed: int) -> dict[str, Any]:
        """Agreement of the supernet's scores with the networks trained from scratch."""
        from scipy.stats import kendalltau

        finals = {tuple(r["arch"]): r["test_error"] for r in self.finals(data).values() if not r["layer_bits"]}
        problem = self.problem(data, {}, self.supernet(data, seed))
        scores = [problem.accuracy(arch)["loss"] for arch in finals]
        found = kendalltau(scores, list(finals.values()))
        return {"n": len(finals), "tau": found.statistic, "p": found.pvalue, "scores": scores,
                "errors": list(finals.values())}  # fmt: skip

    def finals(self, data: str) -> dict[str, Any]:
        """Networks that were trained from scratch, by the name of the job."""
        return {name: result for name, result in self.results.items() if name.startswith(f"final/{data}/")}

    # --- the queue -----------------------------------------------------------------------------------------------

    def jobs(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Names and work in their order, as far as what they need is known."""
        first, *others = self.preset.seeds
        names = tuple(self.preset.strategies)
        compared = ("mpnas", "random", "nsga2")  # the claim that needs several seeds most comes first
        for seed in self.preset.seeds:
            yield f"supernet/cifar10/{seed}", partial(self.trained_supernet, "cifar10", seed)
        yield from self._finals_of_fixed("cifar10", first)
        yield from self._searches("cifar10", names, first)
        chip = partial(self.search, "cifar10", "mpnas", {"energy_j": self.preset.limits[1], "area_mm2": 2.0}, first)
        yield f"search/cifar10/mpnas-chip/{self.preset.limits[1]}/{first}", chip
        yield from self._finals_of_searches("cifar10", names, first)
        yield "knapsack/cifar10", partial(self.knapsack, "cifar10", self.preset.knapsack_limits)
        yield from self._finals_of_knapsack("cifar10", first)
        yield f"tau/cifar10/{first}", partial(self.tau, "cifar10", first)
        for seed in others:
            yield from self._searches("cifar10", compared, seed)
            yield from self._finals_of_searches("cifar10", compared, seed)
        yield f"supernet/fashion-mnist/{first}", partial(self.trained_supernet, "fashion-mnist", first)
        yield from self._finals_of_fixed("fashion-mnist", first)
        yield from self._searches("fashion-mnist", ("mpnas",), first)
        yield from self._finals_of_searches("fashion-mnist", ("mpnas",), first)
        for seed in others:
            yield from self._finals_of_fixed("cifar10", seed)
        for seed in others:
            yield from self._searches("cifar10", names, seed)
            yield from self._finals_of_searches("cifar10", names, seed)
            yield from self._finals_of_knapsack("cifar10", seed)
            yield f"tau/cifar10/{seed}", partial(self.tau, "cifar10", seed)

    def _searches(self, data: str, names: Sequence[str], seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
        for limit in self.preset.limits:
            for name in names:
                yield (
                    f"search/{data}/{name}/{limit}/{seed}",
                    partial(self.search, data, name, {"energy_j": limit}, seed),
                )

    def _final(self, data: str, arch: Sequence[int], seed: int, bits: Any = None) -> tuple[str, Callable[[], Any]]:
        arch = tuple(arch)
        return f"final/{data}/{short([arch, bits])}/{seed}", partial(self.final, data, arch, seed, bits)

    def _finals_of_fixed(self, data: str, seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
        space = self.space(data)
        for bits in reversed(space.bits):
            yield self._final(data, self.uniform(space, bits), seed)

    @staticmethod
    def uniform(space: MobileNetV2Space, bits: int) -> Arch:
        """The fixed network at one bitwidth."""
        return space.uniform(space.blocks(space.reference)[0]._replace(weight_bits=bits, input_bits=bits))

    def _finals_of_knapsack(self, data: str, seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
        found = self.results.get(f"knapsack/{data}", {"bits": {}})
        for bits in found["bits"].values():
            yield self._final(data, self.space(data).reference, seed, bits)

    def _finals_of_searches(
        self, data: str, names: Sequence[str], seed: int
    ) -> Iterator[tuple[str, Callable[[], Any]]]:
        for job, result in self.results.items():
            if not job.startswith(f"search/{data}/"):
                continue
            name, _, its_seed = job.split("/")[2:]
            if name.removesuffix("-chip") in names and int(its_seed) == seed:
                yield self._final(data, result["network_arch"], seed)

    def _explained(self, data: str) -> str:
        """What of the test error of all networks their energy and their skips account for, by least squares."""
        space = self.space(data)
        finals = [one for one in self.finals(data).values() if not one["layer_bits"]]
        if len(finals) < FEWEST_NETWORKS:
            return ""
        error = np.array([100 * one["test_error"] for one in finals])
        absent = [sum(not block.skip for block in space.blocks(one["arch"])) for one in finals]
        columns = np.stack([np.ones(len(finals)), np.log2([one["energy_j"] for one in finals]), absent], axis=1)
        slopes, *_ = np.linalg.lstsq(columns, error, rcond=None)
        r2 = 1 - np.var(error - columns @ slopes) / np.var(error)
        return (
            f"\nOf the test error of {len(finals)} networks, those of other settings too, energy and the number of "
            "blocks without a skip "
            f"explain R^2 = {r2:.2f}: twice the energy {slopes[1]:+.2f} points, each skip left out {slopes[2]:+.2f}. "
            f"Skips left out, mean by arm: {self._skips_left_out(data)}.\n"
        )

    def _skips_left_out(self, data: str) -> str:
        space, by_arm = self.space(data), dict[str, list[int]]()
        for job, found in self.results.items():
            kind, *rest = job.split("/")
            if kind == "search" and rest[0] == data:
                blocks = space.blocks(found["network_arch"])
                by_arm.setdefault(rest[1], []).append(sum(not block.skip for block in blocks))
        return ", ".join(f"{arm} {np.mean(counts):.1f}" for arm, counts in by_arm.items())

    def report(self) -> None:
        """Write tables and plots of what is known."""
        name = self.path.stem
        text = f"# MP-NAS, {self.name} preset\n\nCommand: `python benchmarks/repro_mpnas.py --data-dir DATA`; results: "
        known = self.results
        hours = sum(known[job].get("process_s", 0.0) for job, _ in self.jobs() if job in known) / 3600
        text += (
            f"`{self.path.name}`; budget: `mpnas_budget.md`. Processor time: {hours:.1f} hours, without that of the "
        )
        text += "networks of other settings.\n"
        for data in DATA_SETS:
            space = self.space(data)
            archs = {bits: self.uniform(space, bits) for bits in space.bits}
            found = Report(self.results, lambda *final: self._final(*final)[0], archs, data, self.preset.seeds)
            if found.points("uniform bits"):
                text += f"\n# {data}\n\n{found}\n{self._explained(data)}"
                found.plot(RESULTS / f"{name}_{data}.png")
        write_atomically(RESULTS / f"{name}.md", text.encode())
        print(text)


def _no_accuracy(arch: Arch) -> dict[str, float]:
    raise AssertionError("costs alone are asked for here")


def budget(preset: Preset) -> str:
    """Image passes of every arm, a forward pass counting 1, and forward and backward 3."""
    n_train = preset.n_train or 45_000
    seeds, limits = len(preset.seeds), len(preset.limits)
    training = preset.supernet
    supernet = (training.float_epochs + training.epochs) * n_train * FORWARD_AND_BACKWARD
    final = (preset.float_epochs + preset.epochs) * n_train * FORWARD_AND_BACKWARD
    n_layers = sum(3 for _ in preset.space.choices)
    rows = [("supernet, shared by all arms", seeds, 1, supernet, 0)]
    rows += [
        (f"search: {name}", seeds, limits, preset.search_passes(strategy), preset.n_trials(strategy))
        for name, strategy in preset.strategies.items()
    ]
    sensitivity = n_layers * len(preset.space.bits) ** 2
    rows += [
        ("search: mpnas with the chip", 1, 1, preset.search_passes(preset.strategies["mpnas"]),
         preset.n_trials(preset.strategies["mpnas"])),
        ("knapsack: sensitivities", 1, 1, sensitivity * sum(SENSITIVITY_IMAGES), sensitivity),
        ("final training: uniform bits", seeds, len(preset.space.bits), final, 0),
        ("final training: knapsack bits", seeds, len(preset.knapsack_limits), final, 0),
        ("final training: searched networks", seeds, len(preset.strategies) * limits, final, 0),
        ("final training: searched with the chip", 1, 1, final, 0),
        ("Fashion-MNIST: supernet", 1, 1, supernet, 0),
        ("Fashion-MNIST: search: mpnas", 1, limits, preset.search_passes(preset.strategies["mpnas"]),
         preset.n_trials(preset.strategies["mpnas"])),
        ("Fashion-MNIST: final training", 1, len(preset.space.bits) + limits, final, 0),
    ]  # fmt: skip
    lines = ["| arm | seeds | of each | image passes each | evaluations each |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {name} | {s} | {n} | {passes:,} | {n_trials or ''} |" for name, s, n, passes, n_trials in rows]
    lines.append(f"| all | | | {sum(s * n * passes for _, s, n, passes, _ in rows):,} | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], "runs/repro_mpnas")
    arguments.add_argument("--preset", choices=tuple(PRESETS), default="reduced")
    arguments.add_argument("--device", default="cpu", help="of torch, where networks are trained (default: cpu)")
    arguments.add_argument("--data-dir", help="folder with cifar10.npz or torchvision's files")
    arguments.add_argument("--budget", action="store_true", help="print the budget and do nothing")
    args = arguments.parse_args()
    if args.budget:
        print(budget(PRESETS[args.preset]), end="")
        return
    torch.set_num_threads(args.threads)
    experiment = Experiment(args.preset, args.data_dir, args.work, args.device)
    if not args.report and not experiment.run(args.minutes):
        print("not finished; the same command goes on")
    experiment.report()


if __name__ == "__main__":
    main()
