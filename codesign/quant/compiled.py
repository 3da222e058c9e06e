"""The kernels on tensors: their memory as arrays, in pieces of a fixed size, on as many threads as torch has."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codesign.quant import kernels

#: Long rows are cut into pieces of so many values, summed alone: so a sum does not depend on the number of threads.
PIECE = 1 << 15
#: Threads pay from so many values on.
WORTH_THREADS = 1 << 17

Array = Any  # of float32 or float64


def dense(x: Tensor, rows: int) -> Tensor:
    """The tensor without gaps in memory and, where there are rows, row after row; itself where it is so already."""
    x = x.detach()
    if x.is_contiguous():
        return x
    if torch.ops.aten.is_non_overlapping_and_dense(x) and (rows == 1 or x.stride(0) == x.numel() // rows):
        return x
    return x.contiguous()


def quantized(x: Tensor, steps: Array, grids: Array, mixture: Array | None) -> Tensor:
    """What `kernels.quantize`, or `kernels.mix`, writes for a dense tensor; ``steps`` is (rows, n_quantizers)."""
    y = torch.empty_like(x)

    def work(steps: Array, values: Array, out: Array) -> None:
        if mixture is None:
            kernels.quantize(values, out, steps, grids)
        else:
            kernels.mix(values, out, steps, grids, mixture)

    _in_pieces(work, steps, x, y)
    return y


def gradients(x: Tensor, g: Tensor, steps: Array, grids: Array, mixture: Array | None) -> tuple[Tensor, Array, Array]:
    """The gradient of a dense tensor, those of the steps, as they are, and that of the mixture, (n_quantizers,)."""
    if g.stride() != x.stride():
        g = torch.empty_like(x).copy_(g)
    by_x, by_step, by_mixture = torch.empty_like(x), np.zeros(steps.shape), np.zeros(steps.shape[1])

    def work(steps: Array, values: Array, upstream: Array, out: Array) -> tuple[Array, Array | None]:
        sums, products = np.empty(steps.shape), None
        if mixture is None:
            kernels.quantize_backward(values, upstream, out, steps, grids, sums)
        else:
            products = np.empty(steps.shape)
            kernels.mix_backward(values, upstream, out, steps, grids, mixture, sums, products)
        return sums, products

    first = 0
    for sums, products in _in_pieces(work, steps, x, g, by_x):
        if len(steps) == 1:
            by_step += sums.sum(axis=0)
        else:
            by_step[first : first + len(sums)] = sums
            first += len(sums)
        if products is not None:
            by_mixture += products.sum(axis=0)
    return by_x, by_step, by_mixture


def levels(x: Tensor, step: float, low: float, high: float) -> Tensor | None:
    """The levels of a dense tensor as bytes, counted from ``low``; None where a value is not finite."""
    out = torch.empty_like(x, dtype=torch.uint8)
    values, counted = (t.detach().as_strided((x.numel(),), (1,)).numpy() for t in (x, out))
    numbers = np.float32(step), np.float32(low), np.float32(high)
    threads = torch.get_num_threads() if x.numel() >= WORTH_THREADS else 1
    bounds = [x.numel() * i // threads for i in range(threads + 1)]
    parts = [(values[a:b], counted[a:b], *numbers) for a, b in itertools.pairwise(bounds)]
    waiting = [_pool().submit(kernels.levels, *part) for part in parts[1:]]
    finite = [kernels.levels(*parts[0]), *(each.result() for each in waiting)]
    return out if all(finite) else None


def _in_pieces(work: Callable[..., Any], steps: Array, *tensors: Tensor) -> list[Any]:
    """Results of ``work(steps, *rows)`` over parts of dense tensors, in order."""
    rows, n = len(steps), tensors[0].numel()
    arrays = [x.detach().as_strided((n,), (1,)).numpy() for x in tensors]
    if n < WORTH_THREADS:
        return [work(steps, *(array.reshape(rows, n // rows) for array in arrays))]
    whole = n // PIECE if rows == 1 else 0
    parts = []
    if whole:
        pieces = [array[: whole * PIECE].reshape(whole, PIECE) for array in arrays]
        parts = _cut(np.repeat(steps, whole, axis=0), pieces)
    if n > whole * PIECE or not whole:
        rest = [array[whole * PIECE :].reshape(rows, -1) for array in arrays]
        parts += _cut(steps, rest)
    if len(parts) == 1:
        return [work(*parts[0])]
    waiting = [_pool().submit(work, *part) for part in parts[1:]]
    return [work(*parts[0]), *(each.result() for each in waiting)]


def _cut(steps: Array, arrays: list[Array]) -> list[tuple[Array, ...]]:
    """Rows dealt out to threads."""
    threads = min(torch.get_num_threads(), len(steps))
    bounds = [len(steps) * i // threads for i in range(threads + 1)]
    return [(steps[a:b], *(array[a:b] for array in arrays)) for a, b in itertools.pairwise(bounds)]


_threads: ThreadPoolExecutor | None = None


def _pool() -> ThreadPoolExecutor:
    global _threads
    if _threads is None:
        _threads = ThreadPoolExecutor(os.cpu_count(), "quantize")
    return _threads


def _forget_pool() -> None:
    global _threads
    _threads = None


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_forget_pool)
