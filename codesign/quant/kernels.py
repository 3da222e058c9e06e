"""Fake quantization of float32 arrays in one pass over memory, forward and backward.

Arrays are (rows, n), with one step a row and quantizer: ``steps`` is (rows, n_quantizers). ``grids`` has a row a
quantizer: first and last level, their offset, the range whose gradient passes, and the weight of the rounding in the
gradient of the step. `codesign.quant.fake_quantization` has the equations. Loops run over blocks of a
fixed number of lanes, which the compiler turns into vector instructions and which makes the order of a sum the same
everywhere; what is left over at the end of a row follows one by one.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

LANES = 128
_ZERO = np.float32(0)


@njit(cache=True, nogil=True)
def _level(u, low, high, offset):  # type: ignore[no-untyped-def]
    """The nearest level; nan stays nan."""
    level = np.rint(u - offset) + offset
    level = low if level < low else level
    return high if level > high else level


@njit(cache=True, nogil=True)
def quantize(x: Floats, y: Floats, steps: Floats, grids: Floats) -> None:
    """``y = step * level`` for one quantizer."""
    low, high, offset = grids[0, 0], grids[0, 1], grids[0, 2]
    for row in range(x.shape[0]):
        values, out, step = x[row], y[row], steps[row, 0]
        for i in range(values.size):
            out[i] = _level(values[i] / step, low, high, offset) * step


@njit(cache=True, nogil=True)
def levels(x: Floats, out: NDArray[np.uint8], step: float, low: float, high: float) -> bool:
    """``out = level - low``, the levels counted from the first one; whether all values are finite."""
    n = x.size
    whole = n - n % LANES
    unlike = np.zeros(LANES, np.float32)  # v - v is nan where v is not finite, and nan stays
    for block in range(0, whole, LANES):
        for j in range(LANES):
            v = x[block + j]
            level = np.rint(v / step)
            level = level if level > low else low
            level = high if level > high else level
            out[block + j] = np.uint8(np.int32(level - low))
            unlike[j] += v - v
    for i in range(whole, n):
        v = x[i]
        level = np.rint(v / step)
        level = level if level > low else low
        level = high if level > high else level
        out[i] = np.uint8(np.int32(level - low))
        unlike[i - whole] += v - v
    return unlike.sum() == 0


@njit(cache=True, nogil=True)
def quantize_backward(x: Floats, g: Floats, by_x: Floats, steps: Floats, grids: Floats, by_step: Doubles) -> None:
    """Gradients of values and of steps, given that of ``y``, for one quantizer."""
    low, high, offset = grids[0, 0], grids[0, 1], grids[0, 2]
    first, last, rounding = grids[0, 3], grids[0, 4], grids[0, 5]
    n = x.shape[1]
    whole = n - n % LANES
    sums = np.zeros(LANES, np.float32)
    for row in range(x.shape[0]):
        values, upstream, out, step = x[row], g[row], by_x[row], steps[row, 0]
        sums[:] = 0
        for block in range(0, whole, LANES):
            for j in range(LANES):
                u = values[block + j] / step
                level, inside = _level(u, low, high, offset), (u >= first) and (u <= last)
                out[block + j] = upstream[block + j] if inside else _ZERO
                sums[j] += upstream[block + j] * (rounding * (level - u) if inside else level)
        for i in range(whole, n):
            u = values[i] / step
            level, inside = _level(u, low, high, offset), (u >= first) and (u <= last)
            out[i] = upstream[i] if inside else _ZERO
            sums[i - whole] += upstream[i] * (rounding * (level - u) if inside else level)
        total = 0.0
        for j in range(LANES):
            total += sums[j]
        by_step[row, 0] = total


@njit(cache=True, nogil=True)
def mix(x: Floats, y: Floats, steps: Floats, grids: Floats, mixture: Floats) -> None:
    """``y``, the sum over quantizers of ``mixture * step * level``."""
    n, quantizers = x.shape[1], mixture.size
    whole = n - n % LANES
    sums = np.zeros(LANES, np.float32)
    for row in range(x.shape[0]):
        values, out = x[row], y[row]
        for block in range(0, whole, LANES):
            for j in range(LANES):
                sums[j] = 0
            for q in range(quantizers):
                step, low, high, offset, m = steps[row, q], grids[q, 0], grids[q, 1], grids[q, 2], mixture[q]
                for j in range(LANES):
                    sums[j] += m * (_level(values[block + j] / step, low, high, offset) * step)
            for j in range(LANES):
                out[block + j] = sums[j]
        for i in range(whole, n):
            out[i] = 0
            for q in range(quantizers):
                step, low, high, offset = steps[row, q], grids[q, 0], grids[q, 1], grids[q, 2]
                out[i] += mixture[q] * (_level(values[i] / step, low, high, offset) * step)


@njit(cache=True, nogil=True)
def mix_backward(
    x: Floats, g: Floats, by_x: Floats, steps: Floats, grids: Floats, mixture: Floats, by_step: Doubles,
    by_mixture: Doubles,
) -> None:  # fmt: skip
    """Gradients of values, steps and, a row each, of the mixture, given that of ``y``."""
    n, quantizers = x.shape[1], mixture.size
    whole = n - n % LANES
    total = np.zeros(LANES, np.float32)
    step_lanes = np.zeros((quantizers, LANES + 16), np.float32)  # 16: no two rows 4096 bytes apart, which stalls
    mixture_lanes = np.zeros((quantizers, LANES + 16), np.float32)
    for row in range(x.shape[0]):
        values, upstream, out = x[row], g[row], by_x[row]
        step_lanes[:] = 0
        mixture_lanes[:] = 0
        for block in range(0, whole, LANES):
            for j in range(LANES):
                total[j] = 0
            for q in range(quantizers):
                low, high, offset = grids[q, 0], grids[q, 1], grids[q, 2]
                first, last, rounding = grids[q, 3], grids[q, 4], grids[q, 5]
                step, m, step_sums, mixture_sums = steps[row, q], mixture[q], step_lanes[q], mixture_lanes[q]
                for j in range(LANES):
                    u, gradient = values[block + j] / step, upstream[block + j]
                    level, inside = _level(u, low, high, offset), (u >= first) and (u <= last)
                    total[j] += m * gradient if inside else _ZERO
                    step_sums[j] += gradient * (rounding * (level - u) if inside else level)
                    mixture_sums[j] += gradient * level
            for j in range(LANES):
                out[block + j] = total[j]
        for i in range(whole, n):
            out[i] = 0
            for q in range(quantizers):
                low, high, offset = grids[q, 0], grids[q, 1], grids[q, 2]
                first, last, rounding = grids[q, 3], grids[q, 4], grids[q, 5]
                u, gradient = values[i] / steps[row, q], upstream[i]
                level, inside = _level(u, low, high, offset), (u >= first) and (u <= last)
                out[i] += mixture[q] * gradient if inside else _ZERO
                step_lanes[q, i - whole] += gradient * (rounding * (level - u) if inside else level)
                mixture_lanes[q, i - whole] += gradient * level
        for q in range(quantizers):
            step_total, mixture_total = 0.0, 0.0
            for j in range(LANES):
                step_total += step_lanes[q, j]
                mixture_total += mixture_lanes[q, j]
            by_step[row, q] = mixture[q] * step_total
            by_mixture[row, q] = steps[row, q] * mixture_total
