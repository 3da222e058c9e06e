"""HAQ's experiment: the bits of MobileNetV2 under a latency limit, on a bandwidth-starved and a compute-starved chip.

    python benchmarks/repro_haq.py --budget                                   # image passes of every job
    python benchmarks/repro_haq.py --data imagenet500.npz --weights mobilenet_v2.safetensors --work runs/haq
    python benchmarks/repro_haq.py --report

The data are an ``.npz`` with ``x`` (n, 224, 224, 3) or (n, 3, 224, 224), bytes, and ``y``; 100 images calibrate, 150
are searched on, and the rest is for the report. BatchNorm statistics are renewed for each candidate on the images that
calibrate. ``--rotate`` turns images by 180 degrees, for weights stored so.
The images may be of those that the network was trained on, so its errors say little by themselves. What few bits add to
them is told, image by image, with 95 % bootstrap intervals, and beside it the mean Kullback-Leibler divergence of the
outputs at these bits from those in float, in nats.

Every search has the same image passes; `Milp` spends a share of them on its sensitivities. All layers are searched, the
first and the last too, which the paper keeps at 8 bits. Weights that were 8-bit integers once, as those of the last
layer of the reference are, lose nothing at 8 bits.

Wang et al. (HAQ, CVPR 2019, abstract) find that the best bits for an edge and for a cloud accelerator are drastically
different; what comes out here stands beside the roofline of each chip.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jobs import Jobs, Work, parser, short
from torch.nn import functional

from codesign.accuracy import scores_of
from codesign.data import Data, Images, Normalization
from codesign.describe import describe
from codesign.launch import Metrics, measured
from codesign.network_task import NetworkTask
from codesign.plots import plot_bits, plot_roofline
from codesign.problem import Problem
from codesign.quant import calibrate, quantize, recalibrate_batchnorm, set_bits, unfold_batchnorm
from codesign.run_directory import write_atomically
from codesign.search import search
from codesign.space import Arch, BitwidthSpace
from codesign.strategies import HAQ, Milp, Random
from codesign.strategies.base import AbstractStrategy
from codesign.torch_networks import load_module, load_weights
from codesign.trial import best_trial
from hwmodels import estimate
from hwmodels.bitfusion import bf_e_few_units, bf_e_low_bandwidth
from hwmodels.cost import BOUNDS, LayerCost
from hwmodels.from_torch import from_torch
from hwmodels.workload import Layer, Workload

RESULTS = Path(__file__).parent / "results"
N_CALIBRATION, N_SEARCH, N_REPORT = 100, 150, 250
#: The default chip with an eighth of its DRAM interface, and one with a sixteenth of its units.
CHIPS = {
    "bandwidth-starved": bf_e_low_bandwidth(),
    "compute-starved": bf_e_few_units(),
}
#: Fields that tell them apart.
FIELDS = ("rows", "cols", "dram_bits_per_cycle", "clock_hz")
#: Of the latency at 8 bits, as in the paper; where the chip cannot, this share of its range.
LIMIT, SHARE = 0.6, 0.4
#: The budget of a search: the image passes of so many evaluations. Most of it may go into sensitivities, half of their
#: images into statistics: the last maps have 49 pixels.
EVALUATIONS, TRAINING_SHARE, BATCH = 400, 0.75, 10
STRATEGIES: dict[str, AbstractStrategy] = {
    "milp": Milp(pairs=False, checks=10, statistics_share=0.5), "haq": HAQ(), "random": Random(),
}  # fmt: skip
UNIFORM = (8, 6, 5, 4)
#: Forward passes a second of one core, as measured beside other work.
RATE = 60


class HAQExperiment(Jobs):
    """The jobs over one set of images."""

    def __init__(self, data: str | None, weights: str | None, work: Path, rotate: bool) -> None:
        about = {
            "chips": {name: dataclasses.asdict(chip) for name, chip in CHIPS.items()}, "evaluations": EVALUATIONS,
            "training_share": TRAINING_SHARE, "strategies": describe(STRATEGIES), "rotate": rotate,
        }  # fmt: skip
        super().__init__(RESULTS / "haq.json", work, about)
        self._data_path, self._weights, self._rotate = data, weights, rotate
        self._task: NetworkTask | None = None

    @property
    def task(self) -> NetworkTask:
        """MobileNetV2, calibrated for all bits. Where its BatchNorm is folded it is taken out, to be renewed."""
        if self._task is None:
            network, data = load_module("mobilenet_v2"), self._images()
            load_weights(network, str(self._weights), "mobilenet_v2")
            unfold_batchnorm(network, data.train.images)
            space = BitwidthSpace(from_torch(network, (1, 3, 224, 224)), tuple(range(2, 9)))
            quantized = quantize(
                network, 8, space.bits, weight_quantizer="fixed", input_quantizer="fixed", per_channel=True
            )
            quantized = quantized.to(memory_format=torch.channels_last)
            calibrate(quantized, data.train.images)
            self._task = NetworkTask(quantized, space, data, data.train.images, renewal="renew")
        return self._task

    def _images(self) -> Data:
        arrays = np.load(str(self._data_path), allow_pickle=False)
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"].astype(np.int64))
        x = (x if x.shape[1] == 3 else x.permute(0, 3, 1, 2)).float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in Normalization.parse("imagenet"))
        x = (x - mean) / std
        x = x.flip(-2, -1) if self._rotate else x
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
        parts = order[: N_CALIBRATION + N_SEARCH + N_REPORT].split([N_CALIBRATION, N_SEARCH, N_REPORT])
        return Data(*(Images(x[part].contiguous(), y[part]) for part in parts))

    def problem(self, chip: str) -> Problem:
        """Under a latency of 0.6 of that at 8 bits, or where that cannot be, 40 % of the range."""
        task = self.task
        free = Problem(task.space, task.accuracy(), CHIPS[chip], supernet=task, objective="loss")
        whole, least = free.price(task.space.reference).latency_s, free.reachable("latency_s").low
        limit = LIMIT * whole if LIMIT * whole > least else least + SHARE * (whole - least)
        return dataclasses.replace(free, limits={"latency_s": limit})

    # --- jobs ----------------------------------------------------------------------------------------------------

    def scored(self, bits: int | None) -> dict[str, Any]:
        """The network in float or at uniform bits, on the images for the report."""
        task = self.task
        arch = None if bits is None else task.space.uniform(bits)
        costs = {} if arch is None else {
            name: Problem(task.space, task.accuracy(), chip).price(arch).latency_s for name, chip in CHIPS.items()
        }  # fmt: skip
        return {"latency_s": costs, **self._report(arch)}

    def budgeted(self, name: str, problem: Problem) -> tuple[AbstractStrategy, int, int]:
        """A strategy within the budget, how many candidates it evaluates, and the image passes of all."""
        each = self.task.evaluation_passes
        strategy = STRATEGIES[name].lasting(EVALUATIONS).spending(problem, int(TRAINING_SHARE * EVALUATIONS * each))
        training = strategy.training_passes(problem)
        n_trials = (EVALUATIONS * each - training) // each
        return strategy, n_trials, training + n_trials * each

    def searched(self, name: str, chip: str) -> dict[str, Any]:
        """A search, and its network on the images for the report."""
        problem = self.problem(chip)
        out = self.work / f"search-{short([name, chip])}"
        strategy, n_trials, passes = self.budgeted(name, problem)
        out.mkdir(parents=True, exist_ok=True)
        with Metrics(out) as metrics:

            def measured_now(step: int, values: Mapping[str, float]) -> None:
                metrics(name, step, values)
                self.check_time()

            trials = search(
                problem, strategy, n_trials, 0, out, batch_size=BATCH, resume=True,
                progress=lambda _: self.check_time(), metrics=measured_now,
            )  # fmt: skip
        best = best_trial(trials, "loss")
        assert best is not None
        space: BitwidthSpace = problem.space  # type: ignore[assignment]
        report, eight = problem.price(best.arch), problem.price(space.reference)
        return {
            "arch": best.arch, "bits": space.layer_bits(best.arch), "usage": problem.usage(best.arch),
            "limit_s": problem.limits["latency_s"], "latency_s": report.latency_s,
            "share": report.latency_s / eight.latency_s, "search_loss": best.metrics["loss"],
            "evaluations": n_trials, "image_passes": passes, "measured": measured(out, name),
            **self._report(best.arch),
        }  # fmt: skip

    @torch.no_grad()
    def _report(self, arch: Arch | None) -> dict[str, Any]:
        """Which images are wrong, and how far their outputs are from those in float."""
        network, data = copy.deepcopy(self.task.network), self.task.data.test
        set_bits(network, None)
        exact = scores = scores_of(network, data, 50)
        if arch is not None:
            set_bits(network, self.task.space.layer_bits(arch))
            recalibrate_batchnorm(network, self.task.data.train.images)
            scores = scores_of(network, data, 50)
        wrong = (scores.argmax(1) != data.labels).double().numpy()
        apart = functional.kl_div(
            scores.double().log_softmax(1), exact.double().log_softmax(1), reduction="none", log_target=True
        ).sum(1).numpy()  # fmt: skip
        return {"wrong": wrong.astype(int).tolist(), "divergence": apart.round(5).tolist()}

    def jobs(self) -> Iterator[tuple[str, Work]]:
        yield "float", partial(self.scored, None)
        for bits in UNIFORM:
            yield f"uniform/{bits}", partial(self.scored, bits)
        for name in STRATEGIES:
            for chip in CHIPS:
                yield f"search/{name}/{chip}", partial(self.searched, name, chip)

    # --- report --------------------------------------------------------------------------------------------------

    def report(self) -> str:
        """Tables of networks, chips and bits, and for each search the bits of each layer beside the roofline."""
        found = self.results
        rotate = " --rotate" if self.held["rotate"] else ""
        hours = sum(one.get("process_s", 0.0) for one in found.values()) / 3600
        workload = from_torch(load_module("mobilenet_v2"), (1, 3, 224, 224))
        searches = {name: one for name, one in found.items() if name.startswith("search/")}
        text = "\n".join([
            "# HAQ's experiment: MobileNetV2 under a latency limit\n",
            f"Command: `python benchmarks/repro_haq.py --data imagenet500.npz --weights FILE{rotate}`; results: "
            f"`{self.path.name}`. Processor time: {hours:.2f} hours. In brackets 95 % bootstrap intervals over "
            f"{N_REPORT} images, those of differences image by image. All layers are searched, first and last too. The "
            "images may be of those that the network was trained on: differences count, not errors.\n",
            *_networks(found), *_searches(searches), *_chips(workload), *_bits(searches, workload),
        ])  # fmt: skip
        if _draw(searches, workload):
            text += "\n\n![bits of each layer, and where they are on the roofline](haq.png)\n"
        write_atomically(self.path.with_suffix(".md"), text.encode())
        return text


def interval(values: Any) -> tuple[float, float, float]:
    """The mean over images, and its 95 % bootstrap interval."""
    values = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def _cell(values: Any, scale: float, digits: int, sign: str = "") -> str:
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in interval(values))
    return f"{mean} [{low}, {high}]"


def _networks(found: Mapping[str, Any]) -> Iterator[str]:
    """Error and divergence of every network that is known, and what it has more errors than the float network."""
    eight = found.get("uniform/8", {}).get("latency_s", {})
    chips = ", ".join(CHIPS)
    yield f"| network | latency, of 8 bits ({chips}) | error, % | more than in float, points | divergence, nats |"
    yield "| --- | --- | --- | --- | --- |"
    exact = np.array(found["float"]["wrong"]) if "float" in found else math.nan
    for name, one in sorted(found.items(), key=lambda item: item[0].startswith("search/")):
        kind, *rest = name.split("/")
        if kind == "search":
            shares = [f"{one['share']:.3f}x" if chip == rest[1] else "-" for chip in CHIPS]
            limit = f" ({1e3 * one['latency_s']:.2f} of at most {1e3 * one['limit_s']:.2f} ms)"
        else:
            shares = [f"{cost / eight[chip]:.3f}x" for chip, cost in one["latency_s"].items() if chip in eight]
            limit = ""
        wrong = np.array(one["wrong"])
        yield (
            f"| {rest[0] if kind == 'search' else name.replace('/', ' ')} | {', '.join(shares)}{limit} "
            f"| {_cell(wrong, 100, 1)} | {_cell(wrong - exact, 100, 1, '+')} | {_cell(one['divergence'], 1, 3)} |"
        )
    yield ""


def _searches(searches: Mapping[str, Any]) -> Iterator[str]:
    """What each search took, and its network beside those of the others, image by image."""
    if not searches:
        return
    yield "Searches, and how many nats the divergence of their networks is above that of the best on the chip:\n"
    yield "| search | chip | of limit | evaluations | image passes | loss on the search set | above the best, nats |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, one in searches.items():
        _, strategy, chip = name.split("/")
        rivals = [other for key, other in searches.items() if key.endswith(f"/{chip}")]
        best = min(rivals, key=lambda other: np.mean(other["divergence"]))
        gap = "" if best is one else _cell(np.array(one["divergence"]) - np.array(best["divergence"]), 1, 3, "+")
        yield (
            f"| {strategy} | {chip} | {100 * one['usage']['latency_s']:.1f} % | {one['evaluations']} "
            f"| {one['image_passes']:,} | {one['search_loss']:.4f} | {gap} |"
        )
    for name, one in searches.items():
        said = one.get("measured", {})
        if "r2" in said:
            _, strategy, chip = name.split("/")
            yield (
                f"\n`{strategy}`, {chip}: the losses of layers add up with R^2 = {said['r2']:.2f} and Kendall's "
                f"tau = {said['tau']:.2f} on {STRATEGIES[strategy].checks} random assignments"  # type: ignore[attr-defined]
                + (f"; gap of the optimum {said['gap']:.1e}." if "gap" in said else ".")
            )
    yield ""


def _kind(layer: Layer) -> str:
    """Of three; the classifier is a pointwise layer of a map of one pixel."""
    return "depthwise" if layer.groups > 1 else "pointwise" if layer.kernel_size == (1, 1) else "first"


def _chips(workload: Workload) -> Iterator[str]:
    """Both chips, and what bounds the layers of the network there at 8 bits."""
    yield f"| chip | {' | '.join(FIELDS)} | ridge, MACs a byte at 8 bits |"
    yield f"| --- |{' --- |' * (len(FIELDS) + 1)}"
    for name, chip in CHIPS.items():
        ridge = chip.peak_macs_per_cycle(8, 8) / (chip.dram_bits_per_cycle / 8)
        yield f"| {name} | {' | '.join(f'{getattr(chip, field):,}' for field in FIELDS)} | {ridge:.1f} |"
    yield (
        "\nAt 8 bits; intensity in MACs a byte of DRAM traffic, the median over layers; the rest of the time is "
        "that of additions and the pooling:\n"
    )
    yield f"| chip | layers | of them | intensity | share of the time | {' | '.join(BOUNDS)} |"
    yield f"| --- | --- | --- | --- | --- |{' --- |' * len(BOUNDS)}"
    for name, chip in CHIPS.items():
        report = estimate(workload.with_bits(8, 8), chip)
        kinds: dict[str, list[tuple[Layer, LayerCost]]] = {}
        for layer, cost in zip(report.workload.layers, report.layers, strict=True):
            if layer.is_mac:
                kinds.setdefault(_kind(layer), []).append((layer, cost))
        for kind, rows in kinds.items():
            traffic = [sum(cost.traffic_bits.get(f"dram_{way}", 0) for way in ("read", "write")) for _, cost in rows]
            dense = np.median([8 * layer.macs / bits for (layer, _), bits in zip(rows, traffic, strict=True)])
            share = sum(cost.latency_s for _, cost in rows) / report.latency_s
            bounds = " | ".join(str(sum(cost.bound == bound for _, cost in rows)) for bound in BOUNDS)
            yield f"| {name} | {kind} | {len(rows)} | {dense:.1f} | {100 * share:.1f} % | {bounds} |"
    yield ""


def _bits(searches: Mapping[str, Any], workload: Workload) -> Iterator[str]:
    """Mean bits of the networks found, by kind of layer."""
    if not searches:
        return
    yield "Mean bits of the layers of each kind, weights / inputs:\n"
    kinds = {layer.name: _kind(layer) for layer in workload.mac_layers}
    names = tuple(dict.fromkeys(kinds.values()))
    yield f"| search | {' | '.join(names)} |"
    yield f"| --- |{' --- |' * len(names)}"
    for name, one in searches.items():
        means = [np.mean([pair for layer, pair in one["bits"].items() if kinds[layer] == kind], axis=0)
                 for kind in names]  # fmt: skip
        yield f"| {name[7:].replace('/', ', ')} | {' | '.join(f'{w:.2f} / {a:.2f}' for w, a in means)} |"


def _draw(searches: Mapping[str, Any], workload: Workload) -> bool:
    """A row for each search but the random ones: bits of each layer, depthwise ones on grey, beside the roofline."""
    shown = {name: one for name, one in searches.items() if "/random/" not in name}
    if not shown:
        return False
    figure, axes = plt.subplots(
        len(shown), 2, figsize=(18, 3.8 * len(shown)), layout="constrained", squeeze=False, width_ratios=(2.2, 1)
    )
    for (left, right), (name, one) in zip(axes, shown.items(), strict=True):
        _, strategy, chip = name.split("/")
        weights, inputs = ({layer: pair[i] for layer, pair in one["bits"].items()} for i in range(2))
        found = workload.with_bits(weights, inputs)
        plot_bits(found, f"{strategy}, {chip} (depthwise layers on grey)", left)
        for i, layer in enumerate(found.mac_layers):
            if layer.groups > 1:
                left.axvspan(i - 0.5, i + 0.5, color="0.9", linewidth=0, zorder=0)
        plot_roofline(estimate(found, CHIPS[chip]), right).set_title(f"{strategy}, {chip}", fontsize=10)
    figure.savefig(RESULTS / "haq.png", dpi=110)
    plt.close(figure)
    return True


def budget() -> str:
    """Image passes of every job, and hours of one core."""
    report = N_CALIBRATION + 2 * N_REPORT
    jobs = {
        "float, uniform bits": (1 + len(UNIFORM), report),
        **{name: (len(CHIPS), EVALUATIONS * (N_CALIBRATION + N_SEARCH) + report) for name in STRATEGIES},
    }
    total = sum(n * passes for n, passes in jobs.values())
    rows = [
        *((name, n, f"at most {passes:,}", n * passes) for name, (n, passes) in jobs.items()),
        ("all", "", "", total),
    ]
    return "\n".join([
        f"| job | of them | image passes each | hours of a core at {RATE} a second |", "| --- | --- | --- | --- |",
        *(f"| {name} | {n} | {each} | {passes / RATE / 3600:.2f} |" for name, n, each, passes in rows),
    ]) + "\n"  # fmt: skip


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], "runs/repro_haq")
    arguments.add_argument("--data", help="images, x and y, as .npz")
    arguments.add_argument("--weights", help="mobilenet_v2 as safetensors")
    arguments.add_argument("--rotate", action="store_true", help="turn images by 180 degrees")
    arguments.add_argument("--budget", action="store_true", help="print the budget and do nothing")
    args = arguments.parse_args()
    if args.budget:
        print(budget(), end="")
        return
    torch.set_num_threads(args.threads)
    experiment = HAQExperiment(args.data, args.weights, args.work, args.rotate)
    if not args.report and experiment.held != json.loads(json.dumps(experiment.about)):
        arguments.error(
            f"--rotate, the chips and the budget must be those of {experiment.path}, or it must not be there"
        )
    if not args.report and not experiment.run(args.minutes):
        print("not finished; the same command goes on")
    print(experiment.report())


if __name__ == "__main__":
    main()
