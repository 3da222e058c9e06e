"""Steps of shared weights beside steps of networks alone: time and memory.

A hard step trains one candidate with the shared weights; beside it is the same network with the same quantizers, built
and trained alone. A soft step is one of the policy: a relaxed network forward, and back to the logits; beside it is
the largest network of the space. What is compared takes turns, so that other work on the machine meets both alike.
OMP_NUM_THREADS sets the number of threads.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from measure import Report, seconds
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from codesign.data import Images
from codesign.nets.mobilenetv2 import Block, MobileNetV2Space
from codesign.nets.mobilenetv2_supernet import Supernet
from codesign.quant import calibrate
from codesign.strategies.mpnas_training import by_block, relax
from codesign.strategies.policy import even_logits
from codesign.weight_training import SupernetTraining, WeightTrainer

ROUNDS, BATCH, SEED = 9, 32, 0
HARD, SOFT = 1.3, 3.0  #: times the network alone, and the largest one, that a step may take

Step = Callable[[], object]


def main() -> None:
    """Run all of it."""
    report = Report("Shared weights: hard and soft steps beside networks trained alone", "torch")
    space = MobileNetV2Space.preset("cifar", width=0.25, depth=0.5)
    report(
        f"{len(space.choices)} blocks, width 0.25, 32 x 32 pixels, batch {BATCH}, {torch.get_num_threads()} thread(s)"
    )
    report("a step is forward, backward and SGD; of the policy, forward and back to the logits")
    report("time: processor time, median of the rounds, and the median of the ratios of each round; memory: most that")
    report("torch held beyond what it held before the step, weights and momentum being there\n")
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(4 * BATCH, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    data = Images(images, torch.randint(0, 10, (4 * BATCH,), generator=generator))
    network = Supernet(space, SEED)
    network.calibrate(data.images)
    batch, labels = data.images[:BATCH], data.labels[:BATCH]

    rng = np.random.default_rng(SEED)
    archs = {
        "largest": space.largest,
        "expansion 6, kernel 3, 8 bits": space.reference,
        "expansion 3, kernel 5, 4 bits": space.uniform(Block(3, 5, 1, 4, 4)),
        "smallest": space.smallest,
        "random 1": space.sample(rng),
        "random 2": space.sample(rng),
    }
    report(f"{'hard step':<32}{'shared':>10}{'alone':>10}{'ratio':>8}{'MiB shared':>13}{'alone':>9}{'ratio':>8}")
    worst = [0.0, 0.0]
    for name, arch in archs.items():
        pair = hard_step(network, data, batch, labels, arch), alone_step(space, arch, batch, labels)
        worst = [max(pair) for pair in zip(worst, compare(report, name, *pair), strict=True)]
    report(f"{'at most':<32}{'':>20}{worst[0]:>8.2f}{'':>22}{worst[1]:>8.2f}   to reach: {HARD}\n")

    report(f"{'soft step':<32}{'relaxed':>10}{'largest':>10}{'ratio':>8}{'MiB relaxed':>13}{'largest':>9}{'ratio':>8}")
    largest = alone_step(space, space.largest, batch, labels)
    found = [
        compare(report, name, soft_step(network, batch, labels, weights), largest)
        for name, weights in (("of the policy", False), ("of policy and weights", True))
    ]
    report(f"{'to reach, of the policy':<32}{'':>20}{found[0][0]:>8.2f}{'':>22}{found[0][1]:>8.2f}   to reach: {SOFT}")
    report.close()


def hard_step(network: Supernet, data: Images, batch: Tensor, labels: Tensor, arch: tuple[int, ...]) -> Step:
    """A candidate trained with the shared weights."""
    trainer = WeightTrainer(network, data, SupernetTraining(batch_size=BATCH, learning_rate=1e-6), 10**6, SEED)
    trainer.batch = lambda: Images(batch, labels)  # type: ignore[method-assign]  # no augmentation here, nor alone
    return lambda: trainer.step([arch])


def alone_step(space: MobileNetV2Space, arch: tuple[int, ...], batch: Tensor, labels: Tensor) -> Step:
    """The same network trained alone, by the same optimiser."""
    network = space.build(arch, SEED)
    calibrate(network, batch)
    settings = SupernetTraining()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=settings.momentum, nesterov=True)

    def step() -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(network(batch), labels)
        loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()

    return step


def soft_step(network: Supernet, batch: Tensor, labels: Tensor, weights: bool) -> Step:
    """A relaxed network, and the gradient of the logits; with ``weights`` that of all weights too."""
    space = network.space
    start = torch.from_numpy(even_logits(space))
    noise = torch.from_numpy(np.random.default_rng(SEED).gumbel(size=start.shape))

    def step() -> None:
        network.train()
        logits = start.clone().requires_grad_()
        fields = by_block(space, relax(logits, noise, 2.0).float())
        loss = functional.cross_entropy(network.soft(batch, fields), labels)
        if weights:
            network.zero_grad(set_to_none=True)
            loss.backward()
        else:
            torch.autograd.grad(loss, logits)

    return step


def compare(report: Report, name: str, step: Step, other: Step) -> tuple[float, float]:
    """A row of the report; the ratios of time and of memory."""
    memory = [peak_bytes(work) for work in (step, other)]
    times: list[list[float]] = [[], []]
    gc.collect()
    for i in range(ROUNDS):
        for j in (0, 1) if i % 2 else (1, 0):
            start = time.process_time()
            (step, other)[j]()
            times[j].append(time.process_time() - start)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    mib = [value / 2**20 for value in memory]
    report(
        f"{name:<32}{seconds(statistics.median(times[0])):>10}{seconds(statistics.median(times[1])):>10}{ratio:>8.2f}"
        f"{mib[0]:>13.1f}{mib[1]:>9.1f}{mib[0] / mib[1]:>8.2f}"
    )
    return ratio, memory[0] / memory[1]


def peak_bytes(step: Step) -> int:
    """Most bytes of tensors that a step holds at once beyond what was there before it."""
    for _ in range(2):  # momentum is there from the second step on
        step()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(changes).max())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
