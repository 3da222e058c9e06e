"""HAQ's experiment: the bits of MobileNetV2 under a latency limit, on a chip short of bandwidth and one short of units.

    python benchmarks/repro_haq.py --data imagenet500.npz --weights mobilenet_v2.safetensors --work runs/haq
    python benchmarks/repro_haq.py --report

The data are an ``.npz`` with ``x`` (n, 224, 224, 3) or (n, 3, 224, 224), bytes, and ``y``; 100 images calibrate, 150
are searched on, and the rest is for the report. ``--rotate`` turns images by 180 degrees, for weights stored so.
With so few images, errors are relative: beside them stands the divergence of the outputs from those of the float
network (the mean Kullback-Leibler divergence, in nats), and 95 % bootstrap intervals of both.

Wang et al. (HAQ, CVPR 2019, section 4) find that depthwise layers get fewer bits than pointwise ones where bandwidth is
short, and more where units are; what comes out here stands beside the roofline of each layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
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
from codesign.network_task import NetworkTask
from codesign.plots import plot_bits
from codesign.problem import Problem
from codesign.quant import calibrate, quantize, set_bits
from codesign.run_directory import write_atomically
from codesign.search import search
from codesign.space import Arch, BitwidthSpace
from codesign.strategies import HAQ, Milp, Random
from codesign.strategies.base import AbstractStrategy
from codesign.torch_networks import load_module, load_weights
from codesign.trial import best_trial
from hwmodels import BitFusion
from hwmodels.from_torch import from_torch

RESULTS = Path(__file__).parent / "results"
N_CALIBRATION, N_SEARCH = 100, 150
#: A chip whose DRAM gives an eighth of what the default one's does, and one with a sixteenth of its units.
CHIPS = {
    "short of bandwidth": BitFusion(dram_bits_per_cycle=24),
    "short of units": BitFusion(rows=8, cols=4, dram_bits_per_cycle=192),
}
#: Of the latency at 8 bits, as in the paper; where the chip cannot, this share of its range.
LIMIT, SHARE = 0.6, 0.4
EVALUATIONS, BATCH = 120, 10
STRATEGIES: dict[str, AbstractStrategy] = {
    "haq": HAQ(),
    "milp": Milp(images=48, pairs=False, checks=10),
    "random": Random(),
}


class HAQExperiment(Jobs):
    """The jobs over one set of images."""

    def __init__(self, data: str | None, weights: str | None, work: Path, rotate: bool) -> None:
        about = {"chips": {name: dataclasses.asdict(chip) for name, chip in CHIPS.items()}, "evaluations": EVALUATIONS}
        super().__init__(RESULTS / "haq.json", work, about)
        self._data_path, self._weights, self._rotate = data, weights, rotate
        self._task: NetworkTask | None = None

    @property
    def task(self) -> NetworkTask:
        """MobileNetV2, calibrated for all bits; its BatchNorm is folded, so nothing is renewed."""
        if self._task is None:
            network = load_module("mobilenet_v2")
            load_weights(network, str(self._weights), "mobilenet_v2")
            space = BitwidthSpace(from_torch(network, (1, 3, 224, 224)), tuple(range(2, 9)))
            quantized = quantize(
                network, 8, space.bits, weight_quantizer="fixed", input_quantizer="fixed", per_channel=True
            )
            quantized = quantized.to(memory_format=torch.channels_last)
            data = self._images()
            calibrate(quantized, data.train.images)
            self._task = NetworkTask(quantized, space, data, None)
        return self._task

    def _images(self) -> Data:
        arrays = np.load(str(self._data_path), allow_pickle=False)
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"].astype(np.int64))
        x = (x if x.shape[1] == 3 else x.permute(0, 3, 1, 2)).float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in Normalization.parse("imagenet"))
        x = (x - mean) / std
        x = x.flip(-2, -1) if self._rotate else x
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
        parts = order.split([N_CALIBRATION, N_SEARCH, len(y) - N_CALIBRATION - N_SEARCH])
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

    def searched(self, name: str, chip: str) -> dict[str, Any]:
        """A search, and its network on the images for the report."""
        problem = self.problem(chip)
        out = self.work / f"search-{short([name, chip])}"
        strategy = STRATEGIES[name]
        training = strategy.training_passes(problem)
        trials = search(problem, strategy, EVALUATIONS, 0, out, batch_size=BATCH, resume=True)
        best = best_trial(trials, "loss")
        assert best is not None
        space: BitwidthSpace = problem.space  # type: ignore[assignment]
        report = problem.price(best.arch)
        layers = {
            layer.name: {"bits": pair, "depthwise": layer.groups > 1, "bound": cost.bound}
            for layer, cost in zip(report.workload.layers, report.layers, strict=True)
            for pair in [space.layer_bits(best.arch).get(layer.name)] if pair
        }  # fmt: skip
        eight = problem.price(space.reference)
        return {
            "arch": best.arch, "layers": layers, "usage": problem.usage(best.arch), "latency_s": report.latency_s,
            "share": report.latency_s / eight.latency_s, "search_loss": best.metrics["loss"],
            "image_passes": training + len(trials) * self.task.evaluation_passes, **self._report(best.arch),
            "bound_at_8_bits": {
                layer.name: cost.bound for layer, cost in zip(eight.workload.layers, eight.layers, strict=True)
            },
        }  # fmt: skip

    @torch.no_grad()
    def _report(self, arch: Arch | None) -> dict[str, Any]:
        """Error and divergence on the images for the report, with 95 % bootstrap intervals."""
        network, data = self.task.network, self.task.data.test
        set_bits(network, None)
        exact = scores_of(network, data, 50)
        if arch is not None:
            set_bits(network, self.task.space.layer_bits(arch))
        scores = scores_of(network, data, 50)
        wrong = (scores.argmax(1) != data.labels).double().numpy()
        apart = functional.kl_div(
            scores.double().log_softmax(1), exact.double().log_softmax(1), reduction="none", log_target=True
        ).sum(1).numpy()  # fmt: skip
        draws = np.random.default_rng(0).integers(len(wrong), size=(2000, len(wrong)))
        return {
            name: [float(values.mean()), *np.percentile(values[draws].mean(axis=1), (2.5, 97.5)).tolist()]
            for name, values in (("error", wrong), ("divergence", apart))
        }

    def jobs(self) -> Iterator[tuple[str, Work]]:
        yield "float", partial(self.scored, None)
        for bits in (8, 6, 5, 4):
            yield f"uniform/{bits}", partial(self.scored, bits)
        for name in STRATEGIES:
            for chip in CHIPS:
                yield f"search/{name}/{chip}", partial(self.searched, name, chip)

    # --- report --------------------------------------------------------------------------------------------------

    def report(self) -> str:
        """A table, the mean bits by kind of layer, and the bits of each layer drawn."""
        found = self.results
        lines = [
            "# HAQ's experiment: MobileNetV2 under a latency limit\n",
            "Command: `python benchmarks/repro_haq.py --data imagenet500.npz --weights FILE`; results: `haq.json`. In "
            "brackets 95 % bootstrap intervals.\n",
            "| network | chip | latency, of 8 bits | limit used | error, % | divergence, nats |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name, one in found.items():
            error, apart = (
                f"{scale * one[key][0]:.{digits}f} [{scale * one[key][1]:.{digits}f}, {scale * one[key][2]:.{digits}f}]"
                for key, scale, digits in (("error", 100, 1), ("divergence", 1, 3))
            )
            kind, *rest = name.split("/")
            if kind == "search":
                used = f"{100 * one['usage']['latency_s']:.1f} %"
                lines.append(f"| {rest[0]} | {rest[1]} | {one['share']:.3f}x | {used} | {error} | {apart} |")
            else:
                eight = found.get("uniform/8", {}).get("latency_s", {})
                shares = [f"{cost / eight[chip]:.3f}x" for chip, cost in one["latency_s"].items() if chip in eight]
                lines.append(f"| {name.replace('/', ' ')} | both | {', '.join(shares)} | | {error} | {apart} |")
        searches = {name: one for name, one in found.items() if name.startswith("search/")}
        if searches:
            lines += ["", "| search | layers | bound by DRAM at 8 bits | mean weight bits | mean input bits |",
                      "| --- | --- | --- | --- | --- |"]  # fmt: skip
        for name, one in searches.items():
            for depthwise in (True, False):
                mine = {n: layer for n, layer in one["layers"].items() if layer["depthwise"] == depthwise}
                bits = np.array([layer["bits"] for layer in mine.values()])
                dram = sum(one["bound_at_8_bits"][n] == "dram" for n in mine)
                kind = "depthwise" if depthwise else "pointwise and dense"
                lines.append(
                    f"| {name[7:]} | {len(mine)} {kind} | {dram} | {bits[:, 0].mean():.2f} | {bits[:, 1].mean():.2f} |"
                )
        self._draw(searches)
        if searches:
            lines.append("\n![bits of each layer](haq.png)\n")
        text = "\n".join(lines)
        write_atomically(self.path.with_suffix(".md"), text.encode())
        return text

    def _draw(self, searches: dict[str, Any]) -> None:
        """Bits of each layer, a row for each search but the random ones; depthwise layers on a grey ground."""
        shown = {name: one for name, one in searches.items() if "/random/" not in name}
        if not shown:
            return
        network = load_module("mobilenet_v2")
        workload = from_torch(network, (1, 3, 224, 224))
        figure, axes = plt.subplots(len(shown), 1, figsize=(13, 3.4 * len(shown)), layout="constrained", squeeze=False)
        for ax, (name, one) in zip(axes[:, 0], shown.items(), strict=True):
            bits = {layer: tuple(of["bits"]) for layer, of in one["layers"].items()}
            plot_bits(workload.with_bits({n: w for n, (w, _) in bits.items()}, {n: a for n, (_, a) in bits.items()}),
                      name[7:].replace("/", ", "), ax)  # fmt: skip
            for i, layer in enumerate(one["layers"].values()):
                if layer["depthwise"]:
                    ax.axvspan(i - 0.5, i + 0.5, color="0.9", linewidth=0, zorder=0)
        figure.savefig(RESULTS / "haq.png", dpi=110)
        plt.close(figure)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], "runs/repro_haq")
    arguments.add_argument("--data", help="images, x and y, as .npz")
    arguments.add_argument("--weights", help="mobilenet_v2 as safetensors")
    arguments.add_argument("--rotate", action="store_true", help="turn images by 180 degrees")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    experiment = HAQExperiment(args.data, args.weights, args.work, args.rotate)
    if not args.report and not experiment.run(args.minutes):
        print("not finished; the same command goes on")
    print(experiment.report())


if __name__ == "__main__":
    main()
