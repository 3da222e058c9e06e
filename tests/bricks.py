"""The arithmetic of a Fusion Unit: two-bit bricks, shifts and adds; and what it must equal."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from hwmodels.workload import Layer

Ints = NDArray[np.int64]
BRICK_BITS = 2


def settings(max_bits: int, lane_factor: int, input_bits: int, weight_bits: int) -> tuple[int, int]:
    """Operand widths at which the bricks of one Fusion Unit make exactly ``lane_factor`` products of such operands."""
    widths = [BRICK_BITS << i for i in range(5) if BRICK_BITS << i <= max_bits]
    for a, b in itertools.product(widths, widths):
        used = lane_factor * (a // BRICK_BITS) * (b // BRICK_BITS)
        if a >= input_bits and b >= weight_bits and used == (max_bits // BRICK_BITS) ** 2:
            return a, b
    raise AssertionError(f"no setting gives {lane_factor} products of {input_bits} x {weight_bits} bits")


def digits(values: Ints, setting: int, signed: bool) -> Ints:
    """Two-bit digits, least significant first; the top one carries the sign. Shape (setting / 2, *values.shape)."""
    shifts = np.arange(0, setting, BRICK_BITS).reshape(-1, *(1,) * values.ndim)
    parts = (values[None] >> shifts) & 3
    if signed:
        parts[-1] -= (parts[-1] & 2) << 1
    return parts


def bricks(a: Ints, b: Ints) -> Ints:
    """Products of two-bit operands, each from 0 to 3 or, where it is the top digit of a signed number, from -2 to 1."""
    assert a.min(initial=0) >= -2 and a.max(initial=0) <= 3 and b.min(initial=0) >= -2 and b.max(initial=0) <= 3
    return a * b


def fused_sums(inputs: Ints, weights: Ints) -> Ints:
    """What each column adds in one step: brick products, shifted to their place, added over the lanes.

    Parameters
    ----------
    inputs : ndarray, shape (input digits, lanes)
        One value a lane, seen by all columns.
    weights : ndarray, shape (weight digits, lanes, columns)
        One value for each lane and column.
    """
    products = bricks(inputs[:, None, :, None], weights[None]).sum(axis=2)
    shifts = BRICK_BITS * np.add.outer(np.arange(len(inputs)), np.arange(len(weights)))
    return (products << shifts[:, :, None]).sum(axis=(0, 1))


def wrapped(values: Ints, bits: int) -> Ints:
    """Two's complement of ``bits`` bits."""
    half = 1 << (bits - 1)
    return ((values + half) & ((1 << bits) - 1)) - half


def convolution(layer: Layer, inputs: Ints, weights: Ints) -> Ints:
    """Integer convolution as its definition reads; shape (N, out_channels, P, Q)."""
    n, k, c, p, q, r, s, g = layer.dims
    padded = np.pad(inputs, ((0, 0), (0, 0), *layer.pads))
    padded = padded.reshape(n, g, c, *padded.shape[2:])
    split = weights.reshape(g, k, c, r, s)
    sums = np.zeros((n, g, k, p, q), dtype=np.int64)
    for y, x, i, j in itertools.product(range(p), range(q), range(r), range(s)):
        row, col = y * layer.stride[0] + i * layer.dilation[0], x * layer.stride[1] + j * layer.dilation[1]
        sums[..., y, x] += np.einsum("ngc,gkc->ngk", padded[..., row, col], split[..., i, j])
    return sums.reshape(n, g * k, p, q)


def operands(layer: Layer, signed: tuple[bool, bool], rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Random inputs and weights over the whole range of their widths, the extremes among them."""
    shapes = (layer.batch, layer.in_channels, *layer.in_size), (
        layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size,
    )  # fmt: skip
    made = []
    for shape, bits, has_sign in zip(shapes, (layer.input_bits, layer.weight_bits), signed, strict=True):
        low = -(1 << (bits - 1)) if has_sign else 0
        values = rng.integers(low, low + (1 << bits), size=shape)
        values.flat[:: max(3, values.size // 4)] = rng.choice([low, low + (1 << bits) - 1])
        made.append(values.astype(np.int64))
    return made[0], made[1]
