"""How far the default Bit Fusion model is from the best mapping, and its closed form from a timeline.

Three gaps, each with its median and its largest value:

1. the kernel against its declared map space, enumerated in plain Python: must be zero;
2. the kernel against every integer tile size, patch and order of the five loops over tiles;
3. the closed form of the cycles against two tile-by-tile timelines of the chosen mappings.

    python benchmarks/mapping_gap.py --out benchmarks/results/mapping_gap.md
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from hwmodels import BitFusion, InfeasibleLayer, Layer, Workload, networks
from hwmodels.bitfusion import bf_e
from tests import exhaustive, naive
from tests.draws import OBJECTIVES, objective_of
from tests.timeline import lockstep_cycles, prefetch_cycles, tile_events

ENERGIES = bf_e().unit_energies


def random_layer(rng: np.random.Generator, channels: int, size: int) -> Layer:
    """A dense, grouped or depthwise convolution, or a linear layer."""
    bits = {f"{name}_bits": int(rng.choice((2, 4, 8))) for name in ("weight", "input", "output")}
    kind = rng.choice(("dense", "grouped", "depthwise", "linear"), p=(0.5, 0.15, 0.2, 0.15))
    if kind == "linear":
        return Layer.linear(
            "linear", *(int(c) for c in rng.integers(1, 4 * channels, 2)), int(rng.integers(1, 5)), **bits
        )
    groups = {"dense": 1, "grouped": int(rng.integers(2, 4)), "depthwise": int(rng.integers(2, channels + 1))}[kind]
    c, k = (1, 1) if kind == "depthwise" else (int(x) for x in rng.integers(1, channels // groups + 1, 2))
    kernel, stride = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    height, width = (int(x) for x in rng.integers(3, size + 1, 2))
    return Layer(
        str(kind), groups * c, groups * k, (height, width), kernel, stride, kernel // 2, groups=groups,
        batch=int(rng.integers(1, 3)), **bits,
    )  # fmt: skip


def random_chip(rng: np.random.Generator, objective: str) -> BitFusion:
    """A small array with buffers that hold some blocks of such layers and not others."""
    rows, cols = int(rng.integers(2, 5)), int(rng.integers(2, 9))
    weight, input, output = (int(2**x) for x in rng.integers(7, 12, 3))
    share = rows * cols / 512  # of bf_e's array
    energies = dataclasses.replace(
        ENERGIES,
        core_pj_per_cycle=ENERGIES.core_pj_per_cycle * share,
        leakage_pj_per_cycle=ENERGIES.leakage_pj_per_cycle * share,
    )
    return BitFusion(
        rows=rows, cols=cols, weight_buffer_bytes=weight, input_buffer_bytes=input, output_buffer_bytes=output,
        dram_bits_per_cycle=int(2 ** rng.integers(2, 7)), objective=objective, energies=energies,
    )  # fmt: skip


def random_cases(rng: np.random.Generator, count: int, channels: int, size: int) -> Iterator[tuple[Layer, BitFusion]]:
    """Layers that fit their chip, the objectives in turn."""
    made = 0
    while made < count:
        layer, chip = random_layer(rng, channels, size), random_chip(rng, OBJECTIVES[made % 3])
        try:
            chip.cost(layer)
        except InfeasibleLayer:
            continue
        made += 1
        yield layer, chip


def mapped(layer: Layer, chip: BitFusion) -> tuple[float, int, naive.Mapping]:
    """Objective, cycles and mapping that the kernel finds."""
    costs = chip.costs(Workload(layer.name, (layer,)))
    return objective_of(chip, costs[0]), costs[0].cycles or 0, naive.chosen(costs.ints[0])


def of(gaps: Sequence[float]) -> str:
    """Median, 90th percentile and largest of some gaps, as cells of a table."""
    return " | ".join(f"{100 * value:.2f} %" for value in (np.median(gaps), np.quantile(gaps, 0.9), max(gaps)))


def declared_space(rng: np.random.Generator, count: int) -> Iterator[str]:
    gaps = []
    for layer, chip in random_cases(rng, count, channels=12, size=8):
        best = naive.least(layer, chip)
        assert best is not None
        gaps.append(abs(mapped(layer, chip)[0] / best[0] - 1))
    yield "## Against the declared map space\n"
    yield f"{count} random small layers and chips, three objectives: largest relative difference {max(gaps):.1e}.\n"


def integer_tiles(rng: np.random.Generator, count: int) -> Iterator[str]:
    yield "## Against all integer tiles and orders\n"
    yield (
        "Every tile size of each axis, every order of the loops over tiles (batch, channels, rows, columns apart),\n"
        "the largest block of each operand that fits kept; packed mappings of every integer patch and number of\n"
        "groups. The gap is how much more the kernel's mapping costs.\n"
    )
    yield "| layers | objective | cases | no gap | median | 90 % | max |\n| --- | --- | --- | --- | --- | --- | --- |"

    def row(name: str, objective: str, gaps: list[float]) -> str:
        return f"| {name} | {objective} | {len(gaps)} | {np.mean(np.array(gaps) < 1e-9):.0%} | {of(gaps)} |"

    def gap(layer: Layer, chip: BitFusion) -> float:
        more = mapped(layer, chip)[0] / exhaustive.least(layer, chip) - 1
        assert more > -1e-9, "the declared space is part of the larger one"
        return max(0.0, more)

    gaps: dict[str, list[float]] = {objective: [] for objective in OBJECTIVES}
    for layer, chip in random_cases(rng, count, channels=9, size=7):
        gaps[chip.objective].append(gap(layer, chip))
    for objective in OBJECTIVES:
        yield row("random, small", objective, gaps[objective])
    for bits in (8, 2):
        layers = {layer for layer in networks.resnet20().with_bits(bits, bits).layers if layer.is_mac}
        for objective in OBJECTIVES:
            chip = dataclasses.replace(bf_e(), objective=objective)
            yield row(f"ResNet-20 w{bits}a{bits} on bf_e", objective, [gap(layer, chip) for layer in layers])
    yield ""


def timelines(rng: np.random.Generator, count: int) -> Iterator[str]:
    yield "## The closed form of the cycles against timelines\n"
    yield (
        "Cycles of the chosen mappings run tile by tile, over those of the closed form. *Prefetching*: a block is\n"
        "loaded as soon as its half of the buffer is free, one DRAM interface serves what is needed soonest.\n"
        "*Lockstep*: tile i+1 is loaded and tile i-1 drained strictly while tile i is computed.\n"
    )
    yield (
        "| layers | objective | prefetching: total | median | 90 % | max | lockstep: total | median | 90 % | max |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )

    def row(name: str, objective: str, cases: list[tuple[Layer, BitFusion]]) -> str:
        closed, prefetching, lockstep = [], [], []
        for layer, chip in cases:
            _, cycles, mapping = mapped(layer, chip)
            tiles = tile_events(layer, chip, mapping)
            closed.append(cycles)
            prefetching.append(prefetch_cycles(tiles, chip.dram_bits_per_cycle))
            lockstep.append(lockstep_cycles(tiles, chip.dram_bits_per_cycle))
        cells = (
            f"{100 * (sum(timeline) / sum(closed) - 1):.2f} % | "
            + of([a / b - 1 for a, b in zip(timeline, closed, strict=True)])
            for timeline in (prefetching, lockstep)
        )
        return f"| {name} | {objective} | " + " | ".join(cells) + " |"

    cases = list(random_cases(rng, 3 * count, channels=24, size=12))
    for objective in OBJECTIVES:
        yield row(f"random, small ({count})", objective, [case for case in cases if case[1].objective == objective])
    for network in (networks.resnet18(), networks.mobilenet_v2()):
        for bits in (8, 4, 2):
            for objective in ("latency", "energy"):
                chip = dataclasses.replace(bf_e(), objective=objective)
                layers = [layer for layer in network.with_bits(bits, bits).layers if layer.is_mac]
                yield row(f"{network.name} w{bits}a{bits} on bf_e", objective, [(layer, chip) for layer in layers])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=90, help="random layers and chips for each gap")
    parser.add_argument("--out", type=Path, help="also write the tables here")
    arguments = parser.parse_args()
    command = f"python benchmarks/mapping_gap.py --seed {arguments.seed} --cases {arguments.cases}"
    lines = [
        "# Gaps of the default Bit Fusion model\n",
        f"`{command}`, on {os.cpu_count()} cores of {platform.machine()}; Python {platform.python_version()}, "
        f"numpy {version('numpy')}, numba {version('numba')}. No times here: the figures are exact and repeatable.\n",
    ]
    print("\n".join(lines))
    for section in (declared_space, integer_tiles, timelines):
        for line in section(np.random.default_rng(arguments.seed), arguments.cases):
            print(line, flush=True)
            lines.append(line)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
