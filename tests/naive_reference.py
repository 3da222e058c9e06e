"""The reference Bit Fusion model, slowly: every tiling in all 120 loop orders, in plain Python integers.

Written from the description of the public simulator, formula by formula, and sharing nothing with the package.
"""

from __future__ import annotations

from itertools import permutations, product
from typing import NamedTuple

LOOPS = ("B", "OW", "OH", "IC", "OC")
RELEVANT = {
    "weights": {"IC", "OC"},
    "activations": {"B", "OW", "OH", "IC"},
    "outputs": {"B", "OW", "OH", "OC"},
}
PARTIAL_SUM_BITS = 32


class Chip(NamedTuple):
    rows: int
    cols: int
    max_bits: int
    min_bits: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    dram_bits_per_cycle: int
    #: core per cycle; weight, input and output buffer, read then write, per bit; DRAM per bit
    energies: tuple[float, float, float, float, float, float, float, float]


class ConvShape(NamedTuple):
    kernel: int
    output: int
    stride: int
    in_channels: int
    out_channels: int
    batch: int
    input_bits: int
    weight_bits: int
    im2col: bool


class Result(NamedTuple):
    cycles: int
    energy: float
    order_rank: int
    tiling_index: int
    compute: int
    traffic: tuple[int, ...]
    tile: tuple[int, int, int, int]
    order_class: str


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def doublings(start: int, end: int, steps: int) -> list[int]:
    """start * 2^k for k up to the ceiling of log2(steps), none above end."""
    top = 0
    while 2**top < steps:
        top += 1
    return [min(start * 2**k, end) for k in range(top + 1)]


def volume(
    footprint: int, capacity: int, stream: str, order: tuple[str, ...], trips: dict[str, int]
) -> tuple[int, int]:
    """Bits moved and bits resident of one stream; order is outermost first."""
    moved = resident = footprint
    promoting = True
    for loop in reversed(order):
        if promoting and loop not in RELEVANT[stream]:
            continue
        moved *= trips[loop]
        if promoting:
            if moved > capacity:
                promoting = False
            else:
                resident = moved
    return moved, resident


def order_class(order: tuple[str, ...], trips: dict[str, int]) -> str:
    return ">".join({"OW": "O", "OH": "O"}.get(loop, loop) for loop in order if trips[loop] > 1)


def price(chip: Chip, layer: ConvShape, ranks: dict[tuple[str, ...], int] | None = None) -> Result | None:
    """The best mapping, or None where no tiling fits. ``ranks`` settles ties between loop orders."""
    K, P, S, IC, OC, B, pa, pw, im2col = layer
    N, M, widest, narrowest, SW, SA, SO, BW, energies = chip
    ranks = ranks or {order: i for i, order in enumerate(permutations(LOOPS))}
    lanes = N * (widest // max(pa, narrowest)) * (widest // max(pw, narrowest))
    tiles = product(
        doublings(1, B, B),
        doublings(1, P, P),
        doublings(1, IC, IC),
        doublings(1, OC, OC) if im2col else doublings(M, OC, ceil_div(OC, M)),
    )
    best = None
    for index, (b, o, ic, oc) in enumerate(tiles):
        n_b, n_o, n_ic, n_oc = ceil_div(B, b), ceil_div(P, o), ceil_div(IC, ic), ceil_div(OC, oc)
        trips = {"B": n_b, "OW": n_o, "OH": n_o, "IC": n_ic, "OC": n_oc}
        T = n_b * n_o**2 * n_ic * n_oc
        W0 = ceil_div(K * K * ic, lanes) * lanes * oc * pw
        A0 = (o * o * K * K if im2col else (K + (o - 1) * S) ** 2) * ic * b * pa
        U0 = o * o * ceil_div(oc, M) * M * b * PARTIAL_SUM_BITS
        if W0 > 4 * SW or A0 > 4 * SA or U0 > 4 * SO:
            continue
        # the stationarity
        II, Q = ceil_div(oc, M) * M, b * o * o
        RR = ceil_div(K * K * ic, lanes) * lanes if im2col else ceil_div(ic, lanes) * lanes * K * K
        IS = RR * Q * (pa + II * (pw + 32))
        OS = II * Q * (32 + RR * (pa + pw))
        WS = RR * II * (pw + Q * (pa + 32))
        C = K * K * ic
        if IS <= OS and IS <= WS:
            ibuf, wbuf, obuf = T * C * Q * pa, T * C * Q * oc * pw, T * C * Q * oc * 32
        elif OS <= WS:
            ibuf, wbuf, obuf = T * oc * Q * C * pa, T * oc * Q * C * pw, T * oc * Q * 32
        else:
            ibuf, wbuf, obuf = T * C * oc * Q * pa, T * C * oc * pw, T * C * oc * Q * 32
        if im2col:
            tile_cycles = b * o * o * ceil_div(oc, M) * ceil_div(K * K * ic, lanes)
        else:
            tile_cycles = b * ceil_div(oc, M) * o * o * K * K * ceil_div(ic, lanes)
        compute = T * tile_cycles
        for order, rank in ranks.items():
            W, RW = volume(W0, 4 * SW, "weights", order, trips)
            A, RA = volume(A0, 4 * SA, "activations", order, trips)
            U, RU = volume(U0, 4 * SO, "outputs", order, trips)
            read, write = W + A + U, U
            first, last = RW + RA + RU, RU
            middle = ceil_div(read + write - first - last, BW)
            stall = max(0, middle - compute) + ceil_div(first, BW) + ceil_div(last, BW)
            counts = (wbuf, W, ibuf, A, obuf + U, obuf + U, read, write)
            energy = compute * energies[0]
            for count, per_bit in zip(counts, (*energies[1:], energies[7]), strict=True):
                energy += count * per_bit
            found = Result(
                compute + stall, energy, rank, index, compute, counts, (b, o, ic, oc), order_class(order, trips)
            )
            if best is None or found[:4] < best[:4]:
                best = found
    return best
