"""Cursor on ResNet-20 and CIFAR-10: accuracy at a given size, the sweep of its penalty, one neighbour against two.

    python benchmarks/repro_cursor.py --data cifar10.npz --weights resnet20_cifar10.safetensors --work runs/cursor
    python benchmarks/repro_cursor.py --report

The paper ("Cursor-based adaptive quantization for deep neural network", ICLR 2020 submission) quantizes weights alone,
all but those of the first and the last layer, by DoReFa, from a trained network. Its compression is 32 bits over the
mean bits of the searched layers, which is what is called so here; that of the whole network stands beside it. Where it
trains for 200 epochs, the reduced preset has 20: half with cursors, half at the chosen bits. ``--preset full`` has 200,
for a GPU. The work is cut into jobs that resume (`jobs.py`); the test set is read once for each network.
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
from jobs import Jobs, Work, parser, short

from codesign.accuracy import evaluate
from codesign.data import Data, Normalization, load_data
from codesign.network_task import TUNING, NetworkTask
from codesign.problem import Problem
from codesign.quant import calibrate, quantize, set_bits
from codesign.run_directory import pack_state, unpack_state, write_atomically
from codesign.space import Arch, BitwidthSpace
from codesign.strategies import Cursor
from codesign.torch_networks import load_module, load_weights
from codesign.train import PICTURES, train
from hwmodels.config import load_hardware
from hwmodels.from_torch import from_torch

RESULTS = Path(__file__).parent / "results"
PINNED = {"conv1": 32, "linear": 32}
N_SEARCH, BATCH = 5000, 128
#: Mean bits of the searched weights: 16x, and the 28.3x of the paper.
TARGETS = (2.0, 32 / 28.3)
PENALTIES = (0.05, 0.1, 0.25, 0.5, 1.0)
#: Published: accuracy of the float network, and at 28.3x (Table 3 of the paper).
PAPER = {"float": 92.06, "28.3x": 92.27}


@dataclasses.dataclass(frozen=True)
class Preset:
    """How long the experiment is."""

    n_train: int | None
    cursor_epochs: int
    tune_epochs: int
    sweep_epochs: int


PRESETS = {"reduced": Preset(45_000, 10, 10, 1), "full": Preset(45_000, 100, 100, 20)}


class CursorTable(Jobs):
    """The jobs, over one network."""

    def __init__(self, name: str, data: str | None, weights: str | None, work: Path) -> None:
        self.preset, self._data_path, self._weights = PRESETS[name], data, weights
        suffix = "" if name == "reduced" else f"_{name}"
        super().__init__(RESULTS / f"cursor{suffix}.json", work, dataclasses.asdict(self.preset))
        self._data: Data | None = None

    @property
    def data(self) -> Data:
        """CIFAR-10, normalised as the weights expect."""
        if self._data is None:
            scaling = Normalization.parse("imagenet")
            n_train = self.preset.n_train
            self._data = load_data(str(self._data_path), ".", n_train, N_SEARCH, normalize=scaling)
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
        ).to(memory_format=torch.channels_last)  # fmt: skip
        calibrate(quantized, self.data.train.images[:512])
        training = dataclasses.replace(TUNING, batch_size=BATCH)
        task = NetworkTask(quantized, space, self.data, self.data.train.images[:512], training)
        chip = load_hardware("int8-array", {})  # it takes inputs of 32 bits; weight bytes are all that is asked of it
        free = Problem(space, task.accuracy(), chip, supernet=task, objective="loss")
        if mean_bits is None:
            return free
        return dataclasses.replace(free, limits={"weight_bytes": _bytes(space, mean_bits)})

    # --- jobs ----------------------------------------------------------------------------------------------------

    def in_float(self) -> dict[str, Any]:
        """The test error of the network as it is."""
        return {"test_error": evaluate(self.network(), self.data.test)["error"]}

    def searched(self, problem: Problem, strategy: Cursor, name: str) -> tuple[Any, list[Mapping[str, float]]]:
        """A course of the strategy, gone on with where it was stopped: the training at its end, and its metrics."""
        path = self.work / f"{short(name)}.state"
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
            history.append(metrics)
            write_atomically(path, pack_state({**training.state(), "history": history}))

    def strategy(self, epochs: int, **fields: Any) -> Cursor:
        """One step of the cursors for two of the weights."""
        steps = epochs * len(self.data.train.labels) // BATCH // 2
        return Cursor(steps=steps, steps_per_offer=min(50, steps), weight_steps=2, weight_learning_rate=0.05, **fields)

    def target(self, mean_bits: float) -> dict[str, Any]:
        """The search under a size, and the network tuned at the bits it ends with."""
        problem = self.problem(mean_bits)
        name = f"target/{mean_bits:.3f}"
        training, history = self.searched(problem, self.strategy(self.preset.cursor_epochs), name)
        space: BitwidthSpace = problem.space  # type: ignore[assignment]
        archs = training.offer(4)
        scores = [training.accuracy()(arch)["loss"] for arch in archs]
        arch = archs[int(np.argmin(scores))]
        network = copy.deepcopy(training.network.network)
        set_bits(network, space.layer_bits(arch))
        calibrate(network, self.data.train.images[:512])
        before = evaluate(network, self.data.search)
        recipe = dataclasses.replace(PICTURES, batch_size=BATCH)
        checkpoint = self.work / f"{short(name)}.tuned"
        train(network, self.data.train, self.preset.tune_epochs, 0.05, 0, recipe, checkpoint=checkpoint)
        test = evaluate(network, self.data.test)
        return {
            "bits": {name: pair[0] for name, pair in space.layer_bits(arch).items()}, "history": history,
            "search_error_before_tuning": before["error"], "test_error": test["error"], **_sizes(space, arch),
        }  # fmt: skip

    def sweep(self, penalty: float) -> dict[str, Any]:
        """The size that a penalty leads to, and the accuracy there without tuning."""
        problem = self.problem()
        strategy = self.strategy(self.preset.sweep_epochs, penalty=penalty, balance=None)
        training, history = self.searched(problem, strategy, f"sweep/{penalty}")
        arch = strategy.likeliest(training.point, problem.space)  # type: ignore[arg-type]
        found = training.accuracy()(arch)
        sizes = _sizes(problem.space, arch)  # type: ignore[arg-type]
        return {"search_error": found["error"], "history": history, **sizes}

    def neighbours(self, n: int) -> dict[str, Any]:
        """The loss on the way, computing with one neighbour of each cursor or with two."""
        strategy = self.strategy(self.preset.sweep_epochs, neighbours=n)
        _, history = self.searched(self.problem(TARGETS[0]), strategy, f"neighbours/{n}")
        return {"history": history}

    def jobs(self) -> Iterator[tuple[str, Work]]:
        yield "float", self.in_float
        for mean_bits in TARGETS:
            yield f"target/{mean_bits:.3f}", partial(self.target, mean_bits)
        for penalty in PENALTIES:
            yield f"sweep/{penalty}", partial(self.sweep, penalty)
        for n in (1, 2):
            yield f"neighbours/{n}", partial(self.neighbours, n)

    # --- report --------------------------------------------------------------------------------------------------

    def report(self) -> str:
        """Tables and plots of what is known."""
        found = self.results
        lines = [
            "# Cursor on ResNet-20 and CIFAR-10\n",
            "Command: `python benchmarks/repro_cursor.py --data cifar10.npz --weights FILE`; results: "
            f"`{self.path.name}`. Epochs: {self.preset.cursor_epochs} with cursors, then {self.preset.tune_epochs} at "
            "the chosen bits; the paper has 200.\n",
            "| network | mean bits | searched layers | whole network | before tuning (search set) | test accuracy |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        exact = 100 * (1 - found["float"]["test_error"]) if "float" in found else math.nan
        lines.append(f"| float | 32 | 1x | 1x | | {exact:.2f} % |")
        for name, one in found.items():
            if name.startswith("target/"):
                accuracy, before = (100 * (1 - one[key]) for key in ("test_error", "search_error_before_tuning"))
                lines.append(
                    f"| Cursor | {one['mean_bits']:.3f} | {one['compression']:.1f}x | {one['whole_compression']:.1f}x "
                    f"| {before:.2f} % | {accuracy:.2f} % ({accuracy - exact:+.2f}) |"
                )
        lines += [f"| paper, float | 32 | 1x | 1x | | {PAPER['float']} % |",
                  f"| paper, 200 epochs | 1.131 | 28.3x | 25.5x | | {PAPER['28.3x']} % |", ""]  # fmt: skip
        sweeps = {float(name[6:]): one for name, one in found.items() if name.startswith("sweep/")}
        if sweeps:
            lines += [
                f"The sweep of the penalty, without limits and without tuning; epochs: {self.preset.sweep_epochs}\n",
                "| lambda | mean bits | compression | accuracy, search set |", "| --- | --- | --- | --- |",
            ]  # fmt: skip
            lines += [
                f"| {penalty} | {one['mean_bits']:.2f} | {one['compression']:.1f}x "
                f"| {100 * (1 - one['search_error']):.2f} % |"
                for penalty, one in sorted(sweeps.items())
            ]
            lines.append("")
        curves = {name[-1]: one["history"] for name, one in found.items() if name.startswith("neighbours/")}
        if curves:
            figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
            for n, history in curves.items():
                steps = [50 * (i + 1) for i in range(len(history))]
                ax.plot(steps, [row["loss"] for row in history], label=f"{n} neighbour{'s' if n != '1' else ''}")
            ax.set_xlabel("steps of the cursors")
            ax.set_ylabel("loss on the search set (nats)")
            ax.set_ylim(bottom=0)
            ax.legend(frameon=False)
            figure.savefig(RESULTS / f"{self.path.stem}_neighbours.png", dpi=120)
            plt.close(figure)
            lines.append(f"![one neighbour and two]({self.path.stem}_neighbours.png)\n")
        text = "\n".join(lines)
        write_atomically(self.path.with_suffix(".md"), text.encode())
        return text


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


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], "runs/repro_cursor")
    arguments.add_argument("--preset", choices=tuple(PRESETS), default="reduced")
    arguments.add_argument("--data", help="cifar10.npz")
    arguments.add_argument("--weights", help="resnet20_cifar10.safetensors")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    table = CursorTable(args.preset, args.data, args.weights, args.work)
    if not args.report and not table.run(args.minutes):
        print("not finished; the same command goes on")
    print(table.report())


if __name__ == "__main__":
    main()
