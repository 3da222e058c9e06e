"""Memory that the process keeps, against memory that goes back to the system: candidates and steps of training.

    python benchmarks/bench_memory.py --out benchmarks/results/bench_memory.txt

Each measurement is a process of its own, with and without `codesign.memory.keep_freed_memory`, one after the other.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from measure import Report, timed

RUNS, PROCESSES, KEEP, FREE = 3, 3, "--keep", "--free"


def candidate(network: str, size: int, n_images: int) -> Callable[[], Any]:
    """Evaluates a network at other bits each time: half of the images are scored, half give statistics."""
    import numpy as np
    import torch

    from codesign.incremental import scorer
    from codesign.network_graph import graph_of
    from codesign.quant import calibrate, quantize
    from codesign.space import BitwidthSpace
    from codesign.torch_networks import load_module
    from hwmodels.from_torch import from_torch

    module = load_module(network)
    space = BitwidthSpace(from_torch(module, (1, 3, size, size)), tuple(range(2, 9)))
    quantized = quantize(module, 8, space.bits, "fixed", per_channel=True).to(memory_format=torch.channels_last)
    images = torch.rand(n_images, 3, size, size, generator=torch.Generator().manual_seed(0))
    calibrate(quantized, images[:8])
    scores = scorer(quantized, graph_of(quantized), *images.split(n_images // 2))
    rng = np.random.default_rng(0)
    return lambda: scores(space.layer_bits(space.sample(rng)))


def step(network: str, size: int, n_images: int) -> Callable[[], Any]:
    """Forward and backward of a batch, in float."""
    import torch
    from torch.nn import functional

    from codesign.torch_networks import load_module

    module = load_module(network).to(memory_format=torch.channels_last).train()
    images = torch.rand(n_images, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.zeros(n_images, dtype=torch.long)
    return lambda: functional.cross_entropy(module(images), labels).backward()


CASES: dict[str, tuple[Callable[..., Callable[[], Any]], str, int, int]] = {
    "candidate of mobilenet_v2, 100 images of 224": (candidate, "mobilenet_v2", 224, 100),
    "candidate of resnet20, 1000 images of 32": (candidate, "resnet20", 32, 1000),
    "step of mobilenet_v2, 32 images of 224": (step, "mobilenet_v2", 224, 32),
    "step of resnet20, 128 images of 32": (step, "resnet20", 32, 128),
}


def measured(case: str, how: str) -> dict[str, float]:
    """Processor time and largest size of a process that does one case."""
    line = [sys.executable, __file__, how, case]
    return dict(json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout))


def child(how: str, case: str) -> None:
    """Measure one case in this process."""
    import torch

    from codesign.memory import keep_freed_memory

    if how == KEEP and not keep_freed_memory():
        raise SystemExit("bench_memory: the allocator of this system takes no such wish.")
    torch.set_num_threads(1)
    make, *settings = CASES[case]
    times = timed(make(*settings), runs=RUNS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"s": times.processor, "gib": peak}))


def main() -> None:
    """Run all of it."""
    report = Report("Memory kept by the process", "torch")
    report(
        f"processor time on one thread, medians of {PROCESSES} processes with {RUNS} runs each; "
        "largest size of a process\n"
    )
    report(f"{'':<46}{'given back':>16}{'kept':>16}{'ratio':>8}")
    for case in CASES:
        found: dict[str, list[dict[str, float]]] = {FREE: [], KEEP: []}
        for _ in range(PROCESSES):
            for how, results in found.items():
                results.append(measured(case, how))
        s, gib = ([median(one[key] for one in found[how]) for how in (FREE, KEEP)] for key in ("s", "gib"))
        each = [f"{time:.2f} s {size:.1f} GiB" for time, size in zip(s, gib, strict=True)]
        report(f"{case:<46}{each[0]:>16}{each[1]:>16}{s[0] / s[1]:>7.2f}x")
    report.close()


if __name__ == "__main__":
    if sys.argv[1:2] in ([KEEP], [FREE]):
        child(*sys.argv[1:3])
    else:
        main()
