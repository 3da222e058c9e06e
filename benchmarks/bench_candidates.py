"""Candidates a second: whole networks quantized and run anew, against what `IncrementalNetwork` computes.

    python benchmarks/bench_candidates.py --data cifar10.npz --weights resnet20_cifar10.safetensors

Candidates come as strategies ask for them: at random, as neighbours of one network (one bitwidth changed), and as the
entries of a sensitivity table. "Afresh" quantizes a copy of the network in float, with steps that are known, and
evaluates it, as a script without this package would. Scores on bytes differ from those in float by rounding alone,
which a quantized network can carry far, and those in bfloat16 by more: so Kendall's tau of the losses says whether
candidates keep their order.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

from codesign.accuracy import pixel_by_pixel, scores_of, summary
from codesign.data import Images
from codesign.family import family
from codesign.incremental import IncrementalNetwork, WholeNetwork
from codesign.launch import prepared
from codesign.network_graph import NetworkGraph
from codesign.network_task import NetworkTask
from codesign.quant import match_batchnorm, norm_references, set_bits
from codesign.run_spec import RunSpec
from codesign.sensitivity import sensitivities

RESULTS = Path(__file__).parent / "results"
Bits = dict[str, tuple[int, int]]


def walks(task: NetworkTask, n: int) -> dict[str, list[Bits]]:
    """Candidates by how they come."""
    space, rng = task.space, np.random.default_rng(0)
    centre = space.sample(rng)

    def near() -> Iterator[tuple[int, ...]]:
        for _ in range(n):
            arch = list(centre)
            arch[rng.integers(len(arch))] = int(rng.integers(len(space.bits)))
            yield tuple(arch)

    def table() -> Iterator[tuple[int, ...]]:
        widest = space.reference
        for layer in np.linspace(0, len(space.searched) - 1, n).round().astype(int):
            arch = list(widest)
            arch[2 * layer : 2 * layer + 2] = rng.integers(len(space.bits), size=2).tolist()
            yield tuple(arch)

    kinds = {
        "at random": [space.sample(rng) for _ in range(n)],
        "neighbours": list(near()),
        "sensitivities": list(table()),
    }
    return {kind: [space.layer_bits(arch) for arch in archs] for kind, archs in kinds.items()}


def afresh(task: NetworkTask) -> Callable[[Bits], torch.Tensor]:
    """A copy of the network for each candidate."""
    statistics = None if task.statistics is None else pixel_by_pixel(task.statistics)
    references = {} if statistics is None else norm_references(task.network, statistics)

    def scores(bits: Bits) -> torch.Tensor:
        network = copy.deepcopy(task.network)
        set_bits(network, bits)
        if statistics is not None:
            match_batchnorm(network, statistics, references)
        return scores_of(network, Images(task.data.search.images, torch.empty(0)))

    return scores


def in_bfloat16(run: Callable[[Bits], torch.Tensor]) -> Callable[[Bits], torch.Tensor]:
    """The same with convolutions and products in bfloat16."""

    def scores(bits: Bits) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return run(bits).float()

    return scores


def timed_losses(
    run: Callable[[Bits], torch.Tensor], candidates: list[Bits], labels: torch.Tensor
) -> tuple[float, list[float]]:
    """Mean seconds of a candidate, after one to begin with, and the loss of each."""
    run(candidates[-1])
    begun = time.perf_counter()
    scores = [run(bits) for bits in candidates]
    seconds = (time.perf_counter() - begun) / len(candidates)
    return seconds, [summary(one, labels)["loss"] for one in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument(
        "--statistics", type=int, default=128, help="images to match BatchNorm statistics on; 0: they are kept"
    )
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="measure a whole sensitivity table too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    matched = args.statistics > 0
    settings = {"calibration": args.statistics or 128, "statistics": "match" if matched else "keep"}
    spec, data = prepared(RunSpec(
        family="bits", network=args.network, weights=args.weights, dataset=args.data, data_dir=".",
        normalize="imagenet", n_train=1000, n_search=args.images, n_test=100, network_settings=settings,
    ))  # fmt: skip
    task: NetworkTask = family("bits").task(spec, data, Path(), torch.device("cpu"))
    graph = NetworkGraph.of(task.network)
    images, statistics = task.data.search.images, task.statistics
    runs = {
        "afresh": afresh(task),
        "whole network": WholeNetwork(task.network, images, statistics),
        "only what changed": IncrementalNetwork(task.network, graph, images, statistics, on_bytes=False),
        "that in bfloat16": in_bfloat16(IncrementalNetwork(task.network, graph, images, statistics, on_bytes=False)),
        "on bytes too": IncrementalNetwork(task.network, graph, images, statistics),
    }
    lines = [f"| candidates | afresh, s | {' | '.join(list(runs)[1:])} |", "| --- " * (len(runs) + 1) + "|"]
    record: dict[str, object] = {"images": args.images, "statistics": args.statistics, "threads": args.threads}
    labels, order = task.data.search.labels, {}
    for kind, candidates in walks(task, args.candidates).items():
        found = {name: timed_losses(run, candidates, labels) for name, run in runs.items()}
        base, losses = found["afresh"]
        ratios = [f"{base / seconds:.2f}x" for name, (seconds, _) in found.items() if name != "afresh"]
        lines.append(f"| {kind} | {base:.3f} | {' | '.join(ratios)} |")
        order[kind] = {name: kendalltau(losses, other).statistic for name, (_, other) in found.items()}
        record[kind] = {name: seconds for name, (seconds, _) in found.items()}
    record["tau"] = order
    text = (
        f"# Candidates a second, {args.network}\n\nCommand: `python benchmarks/bench_candidates.py --data cifar10.npz "
        f"--weights FILE --network {args.network} --images {args.images} --statistics {args.statistics} --candidates "
        f"{args.candidates} --threads {args.threads}{' --table' * args.table}`. BatchNorm statistics are "
        f"{'matched' if matched else 'kept'}; mean seconds of a candidate afresh, and how many times as many there are "
        "in the same time.\n\n"
    )
    text += "\n".join(lines) + "\n\nKendall's tau of the losses against those afresh: "
    text += "; ".join(
        f"{kind}: "
        + ", ".join(f"{name} {tau:.3f}" for name, tau in taus.items() if name not in ("afresh", "whole network"))
        for kind, taus in order.items()
    )
    text += ".\n"
    if args.table:
        begun = time.perf_counter()
        sensitivities(task.accuracy(), task.space)
        record["table_s"] = time.perf_counter() - begun
        n = len(task.space.searched) * len(task.space.bits) ** 2
        text += f"\nA table of {len(task.space.searched)} layers by {n // len(task.space.searched)} options: "
        text += f"{record['table_s']:.0f} s.\n"
    print(text)
    name = f"bench_candidates_{args.network}{'' if matched else '_kept'}"
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)


if __name__ == "__main__":
    main()
