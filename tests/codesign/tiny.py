"""A small search with shared weights for the tests: the tiny MobileNetV2 space on some of the digits."""

from __future__ import annotations

import copy
import functools
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from codesign.data import Data, Images, digits
from codesign.nets.mobilenetv2 import MobileNetV2Space
from codesign.nets.mobilenetv2_supernet import Supernet
from codesign.sampling import uniform
from codesign.weight_training import SupernetTraining, WeightTrainer

torch.set_num_threads(1)  # results are compared exactly

SPACE = MobileNetV2Space.preset("tiny")
TRAINING = SupernetTraining(float_epochs=1, epochs=3, batch_size=32, checkpoint_steps=3)


def few(n_train: int = 128, n_search: int = 64) -> Data:
    """Some digits."""
    whole = digits(0)
    return Data(*(Images(p.images[:n], p.labels[:n]) for p, n in zip(whole, (n_train, n_search, 64), strict=True)))


def trained(space: MobileNetV2Space = SPACE, seed: int = 0, n_steps: int = 20) -> Supernet:
    """Shared weights with quantizers, some steps after their calibration, so that nothing is at its first value."""
    return copy.deepcopy(_trained(space, seed, n_steps))


@functools.cache
def _trained(space: MobileNetV2Space, seed: int, n_steps: int) -> Supernet:
    data, training = few().train, SupernetTraining(batch_size=32)
    network = Supernet(space, seed)
    network.calibrate(data.images[:64])
    trainer = WeightTrainer(network, data, training, n_steps, seed)
    for _ in range(n_steps):
        trainer.step(uniform(space, trainer.rng(3)))
    return network


def in_double(network: Supernet) -> Supernet:
    """A copy in double precision: values hardly ever are so near the middle of two levels that rounding decides."""
    return copy.deepcopy(network).double()


def onehot(space: MobileNetV2Space, arch: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list:
    """The relaxed network in which every field has its value in ``arch`` with weight 1."""
    indices = iter(space.split(arch))
    return [
        [torch.eye(len(values), dtype=dtype)[next(indices)] for values in choice.fields] for choice in space.choices
    ]


def archs(space: MobileNetV2Space, n: int, seed: int = 0) -> list[tuple[int, ...]]:
    """The two ends of a space, and some archs between."""
    rng = np.random.default_rng(seed)
    return [space.smallest, space.largest, *(space.sample(rng) for _ in range(n))]


def killed_after(work: Callable[..., object], n: int, delay_s: float = 0.0) -> int:
    """Run ``work(progress)`` in a process that gets SIGKILL a moment after it called ``progress`` ``n`` times.

    It waits for that at its call ``n + 3`` at the latest, so a fast machine does not end it first.

    Parameters
    ----------
    work : callable
        That can be pickled.
    n : int
    delay_s : float

    Returns
    -------
    int
        How often it had called when it died, or ended.
    """
    return _nursery().submit(_killed_after, work, n, delay_s).result()


@functools.cache
def _nursery() -> ProcessPoolExecutor:
    """A process that forks others, which start at once. It is a fresh one: torch may have made threads in this one."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), trained)


def _killed_after(work: Callable[..., object], n: int, delay_s: float) -> int:
    reader, writer = os.pipe()

    def child() -> None:
        os.close(reader)
        calls = itertools.count(1)

        def called(*_: object) -> None:
            os.write(writer, b".")
            if next(calls) == n + 3:
                signal.pause()

        work(called)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    os.close(writer)
    calls = 0
    while calls < n and os.read(reader, 1):
        calls += 1
    time.sleep(delay_s)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 0)
    while os.read(reader, 1):
        calls += 1
    os.close(reader)
    return calls
