"""Cursor on ResNet-20 and CIFAR-10: accuracy at a given size, the sweep of its penalty, one neighbour against two.

    python benchmarks/repro_cursor.py --budget                                 # image passes of every job
    python benchmarks/repro_cursor.py --data cifar10.npz --weights resnet20_cifar10.safetensors --work runs/cursor
    python benchmarks/repro_cursor.py --report

The paper ("Cursor-based adaptive quantization for deep neural network", ICLR 2020 submission) quantizes weights alone,
all but those of the first and the last layer, by DoReFa, from a trained network. Its compression is 32 bits over the
mean bits of the searched layers, which is what is called so here; that of the whole network stands beside it. Where it
trains for 200 epochs, the reduced preset has 20 at the two sizes: half with cursors, half at the chosen bits; and 6 for
each value of lambda. ``--preset full`` has 200 at the sizes, and 20 for each lambda, for a GPU, which is used where
there is one (``--device``). At a size it is held as a limit, and lambda is 0; in the sweep lambda alone decides.

Cursors are moved and candidates compared on 5,000 images of the training file that take no part in the training here
(the paper splits it too, and does not say how); but the weights that all begins with were trained on that whole file.
Accuracies are those on the test file, which nothing else is computed on, and which is read once for each network. The
work is cut into jobs that resume (`jobs.py`), those of the targets and of the sweep in their middle too.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jobs import Jobs, Work, parser

from codesign.accuracy import evaluate
from codesign.data import Data, Normalization, load_data
from codesign.network_task import TUNING, NetworkTask
from codesign.precision import Precision
from codesign.problem import Problem
from codesign.quant import calibrate, quantize, set_bits
from codesign.quantized_accuracy import QuantizedAccuracy
from codesign.run_directory import pack_state, unpack_state, write_atomically
from codesign.space import Arch, BitwidthSpace
from codesign.strategies import Cursor
from codesign.torch_networks import load_module, load_weights
from codesign.train import PICTURES, train
from hwmodels.config import load_hardware
from hwmodels.from_torch import from_torch

RESULTS = Path(__file__).parent / "results"
PINNED = {"conv1": 32, "linear": 32}
N_SEARCH, N_TEST, N_STATISTICS, BATCH = 5000, 10_000, 512, 128
#: Candidates that are compared at the end of a search under a size.
N_OFFERS = 4
#: Mean bits of the searched weights: 16x, and the 28.3x of the paper.
TARGETS = (2.0, 32 / 28.3)
#: Values of lambda, with the accuracy and the compression of Table 1 of the paper; 200 epochs, not tuned afterwards.
PENALTIES = {
    0.9: (90.10, 30.37), 0.7: (90.14, 30.00), 0.5: (90.18, 30.09), 0.25: (91.79, 28.33), 0.1: (91.03, 28.43),
    0.05: (91.16, 19.46), 0.01: (91.58, 13.95),
}  # fmt: skip
#: Accuracy of the float network, and at 28.3x: Table 2 of the paper.
PAPER = {"float": 92.06, "28.3x": 92.27}
#: Points of a curve, and checkpoints of a search; and of how many the last ones are averaged "at the end".
N_POINTS, N_LAST = 60, 6
#: Image passes a second of one core, a forward pass counting 1, and forward and backward 3; measured in bfloat16 beside
#: other work.
RATE = 1900


@dataclasses.dataclass(frozen=True)
class Preset:
    """How long the experiment is, and the arithmetic of its trainings."""

    n_train: int
    cursor_epochs: int
    tune_epochs: int
    sweep_epochs: int
    curve_epochs: int
    precision: Precision

    def steps(self, epochs: int) -> int:
        """Steps of the cursors in so many epochs of the weights: one for two of those."""
        return max(1, epochs * self.n_train // BATCH // 2)

    def passes(self, epochs: int) -> int:
        """Image passes of the training with cursors."""
        return 3 * 3 * BATCH * self.steps(epochs)


#: Processors with instructions for bfloat16 train about twice as fast with it; networks are scored in float32.
PRESETS = {
    "reduced": Preset(45_000, 10, 10, 6, 2, Precision("bfloat16")),
    "full": Preset(45_000, 100, 100, 20, 20, Precision("float32")),
}


class CursorTable(Jobs):
    """The jobs, over one network."""

    def __init__(self, name: str, data: str | None, weights: str | None, work: Path, device: str) -> None:
        self.preset, self._data_path, self._weights, self.device = PRESETS[name], data, weights, device
        self.name = name
        suffix = "" if name == "reduced" else f"_{name}"
        super().__init__(RESULTS / f"cursor{suffix}.json", work, dataclasses.asdict(self.preset))
        self._data: Data | None = None

    @property
    def data(self) -> Data:
        """CIFAR-10, normalised as the weights expect."""
        if self._data is None:
            scaling = Normalization.parse("imagenet")
            n_train = self.preset.n_train
            data = load_data(str(self._data_path), ".", n_train, N_SEARCH, N_TEST, normalize=scaling)
            self._data = data.to(self.device)
        return self._data

    def network(self) -> torch.nn.Module:
        """ResNet-20 with its trained weights."""
        network = load_module("resnet20")
        load_weights(network, str(self._weights), "resnet20")
        return network

    def problem(self, mean_bits: float | None = None) -> Problem:
        """Weights of 1 to 8 bits, inputs in float, under a limit on the bytes of weights if any."""
        network = self.network()
        space = BitwidthSpace(from_torch(network, (1, 3, 32, 32)), tuple(range(1, 9)), PINNED, input_bits=32)
        quantized = quantize(
            network, space.layer_bits(space.reference), (*space.bits, 32), weight_quantizer="dorefa",
        ).to(self.device, memory_format=torch.channels_last)  # fmt: skip
        statistics = self.data.train.images[:N_STATISTICS]
        calibrate(quantized, statistics)
        training = dataclasses.replace(TUNING, batch_size=BATCH, precision=self.preset.precision)
        task = NetworkTask(quantized, space, self.data, statistics, training)
        chip = load_hardware("int8-array", {})  # it takes inputs of 32 bits; weight bytes are all that is asked of it
        free = Problem(space, task.accuracy(), chip, supernet=task, objective="loss")
        if mean_bits is None:
            return free
        return dataclasses.replace(free, limits={"weight_bytes": _bytes(space, mean_bits)})

    # --- jobs ----------------------------------------------------------------------------------------------------

    def keep(self, job: str, result: dict[str, Any]) -> None:
        super().keep(job, {**result, "device": self.device})

    def in_float(self) -> dict[str, Any]:
        """The test error of the network as it is."""
        return {"test_error": evaluate(self.network().to(self.device), self.data.test)["error"]}

    def searched(self, problem: Problem, strategy: Cursor, name: str) -> tuple[Any, list[Mapping[str, float]]]:
        """A course of the strategy, gone on with where it was stopped: the training at its end, and its metrics.

        Each row of them has the means since the last, and the steps so far.
        """
        path = self.checkpoint(name, "state")
        state = strategy.init(problem, np.random.default_rng(0))
        history: list[Mapping[str, float]] = []
        if path.exists():
            state = unpack_state(path.read_bytes())
            history = list(state.pop("history"))
        training = strategy.start(problem, state)
        while True:
            metrics = training.advance()
            if not metrics:
                return training, history
            history.append({"step": training.step_number, **metrics})
            write_atomically(path, pack_state({**training.state(), "history": history}))
            self.check_time()

    def strategy(self, epochs: int, given: Cursor, **fields: Any) -> Cursor:
        """A strategy for so many epochs of the weights."""
        steps = self.preset.steps(epochs)
        return dataclasses.replace(
            given, steps=steps, steps_per_offer=max(1, steps // N_POINTS), weight_steps=2, weight_learning_rate=0.05,
            **fields,
        )  # fmt: skip

    def tested(self, training: Any, arch: Arch) -> float:
        """The error on the test set with the weights as the search left them."""
        task, network = training.task, training.network.network
        return QuantizedAccuracy(network, task.space, task.statistics, self.data.test, "renew")(arch)["error"]

    def target(self, mean_bits: float) -> dict[str, Any]:
        """The search under a size, and the network tuned at the bits it ends with."""
        problem = self.problem(mean_bits)
        name = f"target/{mean_bits:.3f}"
        training, history = self.searched(problem, self.strategy(self.preset.cursor_epochs, Cursor()), name)
        space: BitwidthSpace = problem.space  # type: ignore[assignment]
        archs = training.offer(N_OFFERS)
        score = training.accuracy()
        arch = archs[int(np.argmin([score(arch)["loss"] for arch in archs]))]
        network = copy.deepcopy(training.network.network)
        set_bits(network, space.layer_bits(arch))
        calibrate(network, self.data.train.images[:N_STATISTICS])
        train(
            network, self.data.train, self.preset.tune_epochs, 0.05, 0,
            dataclasses.replace(PICTURES, batch_size=BATCH, precision=self.preset.precision),
            checkpoint=self.checkpoint(name, "tuned"), progress=self.check_time,
        )  # fmt: skip
        return {
            "bits": {name: pair[0] for name, pair in space.layer_bits(arch).items()}, "history": history,
            "untuned_test_error": self.tested(training, arch), "test_error": evaluate(network, self.data.test)["error"],
            **_sizes(space, arch),
        }  # fmt: skip

    def sweep(self, penalty: float) -> dict[str, Any]:
        """The size that a penalty leads to, and the accuracy there without tuning."""
        problem = self.problem()
        strategy = self.strategy(self.preset.sweep_epochs, Cursor(), penalty=penalty, balance=None)
        training, history = self.searched(problem, strategy, f"sweep/{penalty}")
        space: BitwidthSpace = problem.space  # type: ignore[assignment]
        arch = strategy.likeliest(training.point, space)
        return {"test_error": self.tested(training, arch), "history": history, **_sizes(space, arch)}

    def neighbours(self, n: int) -> dict[str, Any]:
        """The two parts of the loss on the way of what the paper prints, with one neighbour of each cursor or two."""
        strategy = self.strategy(self.preset.curve_epochs, Cursor.paper(), neighbours=n)
        training, history = self.searched(self.problem(), strategy, f"neighbours/{n}")
        rows = [{**row, "size_term": row["mean_bits"] ** strategy.power} for row in history]
        return {"history": rows, "cursors": training.point.tolist()}

    def jobs(self) -> Iterator[tuple[str, Work]]:
        yield "float", self.in_float
        for n in (1, 2):
            yield f"neighbours/{n}", partial(self.neighbours, n)
        for mean_bits in TARGETS:
            yield f"target/{mean_bits:.3f}", partial(self.target, mean_bits)
        for penalty in PENALTIES:
            yield f"sweep/{penalty}", partial(self.sweep, penalty)

    # --- report --------------------------------------------------------------------------------------------------

    def report(self) -> str:
        """Tables and plots of what is known."""
        found = self.results
        preset = "" if self.name == "reduced" else f" --preset {self.name}"
        hours = sum(one.get("process_s", 0.0) for one in found.values()) / 3600
        text = "\n".join([
            "# Cursor on ResNet-20 and CIFAR-10\n",
            f"Command: `python benchmarks/repro_cursor.py{preset} --data cifar10.npz --weights FILE`; results: "
            f"`{self.path.name}`. Processor time: {hours:.2f} hours, on "
            f"{' and '.join(sorted({one['device'] for one in found.values()})) or 'nothing yet'}. Compression is that "
            "of the searched layers, all but the first and the last, as the paper counts it, and beside it that of "
            f"all. Trainings are in {self.preset.precision.dtype}, scores in float32. Accuracies are on "
            "CIFAR-10's test file, which is read once for each network. Cursors are moved on "
            f"{N_SEARCH:,} images of the training file, on all of which the first weights were trained. One seed; the "
            "standard error of an accuracy of 91 % is 0.3 points.\n",
            *self._targets(found), *self._sweep(found), *self._curves(found),
        ])  # fmt: skip
        write_atomically(self.path.with_suffix(".md"), text.encode())
        return text

    def _targets(self, found: Mapping[str, Any]) -> Iterator[str]:
        """Accuracy at the sizes that were asked for, beside Table 2 of the paper."""
        exact = 100 * (1 - found["float"]["test_error"]) if "float" in found else math.nan
        epochs = f"{self.held['cursor_epochs']} epochs with cursors, then {self.held['tune_epochs']}"
        yield f"Under a size, held as a limit and not by lambda: {epochs} at the chosen bits.\n"
        yield "| network | mean bits | compression | of all | accuracy before tuning | accuracy | to float |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        yield f"| float | 32 | 1x | 1x | | {exact:.2f} % | |"
        for name, one in sorted(found.items(), key=lambda item: -item[1].get("mean_bits", 0.0)):
            if name.startswith("target/"):
                before, after = (100 * (1 - one[key]) for key in ("untuned_test_error", "test_error"))
                yield (
                    f"| Cursor | {one['mean_bits']:.3f} | {one['compression']:.1f}x | {one['whole_compression']:.1f}x "
                    f"| {before:.2f} % | {after:.2f} % | {after - exact:+.2f} |"
                )
        yield f"| paper, Table 2: float | 32 | 1x | 1x | | {PAPER['float']:.2f} % | |"
        yield (
            f"| paper, Table 2: 200 epochs | {32 / 28.3:.3f} | 28.3x | | | {PAPER['28.3x']:.2f} % "
            f"| {PAPER['28.3x'] - PAPER['float']:+.2f} |\n"
        )

    def _sweep(self, found: Mapping[str, Any]) -> Iterator[str]:
        """Table 1 of the paper, and ours."""
        yield (
            f"Without a limit and without tuning, {self.held['sweep_epochs']} epochs; the paper's Table 1 has 200. "
            "Lambda is held: the paper's rule that keeps the two parts of the loss in balance would change it.\n"
        )
        yield "| lambda | paper: compression | paper: accuracy | mean bits | compression | of all | accuracy |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        for penalty, (accuracy, compression) in PENALTIES.items():
            one = found.get(f"sweep/{penalty}")
            ours = "| | | |" if one is None else (
                f"{one['mean_bits']:.2f} | {one['compression']:.2f}x | {one['whole_compression']:.2f}x "
                f"| {100 * (1 - one['test_error']):.2f} % |"
            )  # fmt: skip
            yield f"| {penalty} | {compression:.2f}x | {accuracy:.2f} % | {ours}"
        yield ""

    def _curves(self, found: Mapping[str, Any]) -> Iterator[str]:
        """Figure 1 of the paper: the size term of the loss over the steps, and beside it the other part."""
        curves = {int(name[-1]): one for name, one in found.items() if name.startswith("neighbours/")}
        if not curves:
            return
        yield (
            "What the paper prints (`Cursor.paper()`), without a limit, with one neighbour of each cursor and with "
            f"two; {self.held['curve_epochs']} epochs, where its Figure 1 has 20. A point is a mean since the last; "
            f"what stands here for the end is the mean of the last {N_LAST}.\n"
        )
        yield "| neighbours | points | size term at the end | mean bits | cursors at 1 bit | cross entropy at the end |"
        yield "| --- | --- | --- | --- | --- | --- |"
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
        for n, one in sorted(curves.items()):
            rows, cursors = one["history"], np.array(one["cursors"])
            last = {name: np.mean([row[name] for row in rows[-N_LAST:]]) for name in rows[-1]}
            yield (
                f"| {n} | {len(rows)} | {last['size_term']:.3f} | {last['mean_bits']:.2f} "
                f"| {(cursors == 1).sum()} of {len(cursors)} | {last['loss']:.3f} |"
            )
            for ax, key in zip(axes, ("size_term", "loss"), strict=True):
                label = f"{n} neighbour{'s' if n > 1 else ''}"
                ax.plot([row["step"] for row in rows], [row[key] for row in rows], ".-", markersize=4, label=label)
        axes[0].set_ylabel(f"size term, (mean bits)$^{{{Cursor.paper().power}}}$")
        axes[1].set_ylabel("cross entropy on the search set (nats)")
        axes[1].set_ylim(bottom=0)
        for ax in axes:
            ax.set_xlabel("steps of the cursors")
            ax.set_xlim(left=0)
        axes[0].legend(frameon=False)
        figure.savefig(RESULTS / f"{self.path.stem}_neighbours.png", dpi=120)
        plt.close(figure)
        yield f"\n![one neighbour and two]({self.path.stem}_neighbours.png)\n"


def _bytes(space: BitwidthSpace, mean_bits: float) -> float:
    """Bytes of all weights where those of searched layers have so many bits on the mean."""
    counts = {layer.name: layer.weight_count for layer in space.network.mac_layers}
    pinned = sum(counts[name] * bits for name, (bits, _) in space.pinned.items())  # type: ignore[misc]
    return (pinned + mean_bits * sum(counts[name] for name in space.searched)) / 8


def _sizes(space: BitwidthSpace, arch: Arch) -> dict[str, float]:
    """Mean bits and compression, of the searched layers and of all."""
    counts = {layer.name: layer.weight_count for layer in space.network.mac_layers}
    bits = {name: pair[0] for name, pair in space.layer_bits(arch).items()}

    def mean(names: Any) -> float:
        names = list(names)
        return sum(counts[name] * bits[name] for name in names) / sum(counts[name] for name in names)

    return {
        "mean_bits": mean(space.searched),
        "compression": 32 / mean(space.searched),
        "whole_compression": 32 / mean(counts),
    }


def budget(preset: Preset) -> str:
    """Image passes of every job, a forward pass counting 1, and forward and backward 3, and hours of one core."""
    tested = N_TEST + N_STATISTICS
    target = preset.passes(preset.cursor_epochs) + N_OFFERS * (N_SEARCH + N_STATISTICS) + tested
    target += 3 * preset.n_train * preset.tune_epochs + N_TEST
    jobs = {
        "float": (1, N_TEST), "target": (len(TARGETS), target),
        "sweep": (len(PENALTIES), preset.passes(preset.sweep_epochs) + tested),
        "neighbours": (2, preset.passes(preset.curve_epochs)),
    }  # fmt: skip
    total = sum(n * passes for n, passes in jobs.values())
    rows = [*((name, n, f"{passes:,}", n * passes) for name, (n, passes) in jobs.items()), ("all", "", "", total)]
    return "\n".join([
        f"| job | of them | image passes each | hours of a core at {RATE:,} a second |", "| --- | --- | --- | --- |",
        *(f"| {name} | {n} | {each} | {passes / RATE / 3600:.2f} |" for name, n, each, passes in rows),
    ]) + "\n"  # fmt: skip


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], "runs/repro_cursor")
    arguments.add_argument("--preset", choices=tuple(PRESETS), default="reduced")
    arguments.add_argument("--data", help="cifar10.npz")
    arguments.add_argument("--weights", help="resnet20_cifar10.safetensors")
    arguments.add_argument("--device", help="of torch (default: a GPU where there is one)")
    arguments.add_argument("--budget", action="store_true", help="print the budget and do nothing")
    args = arguments.parse_args()
    if args.budget:
        print(budget(PRESETS[args.preset]), end="")
        return
    torch.set_num_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    table = CursorTable(args.preset, args.data, args.weights, args.work, device)
    if not args.report and not table.run(args.minutes):
        print("not finished; the same command goes on")
    print(table.report())


if __name__ == "__main__":
    main()
