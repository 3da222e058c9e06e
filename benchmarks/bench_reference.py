"""How fast the reference Bit Fusion model prices whole networks, against a search of every tiling in every order.

One thread, compiled, nothing cached: every run searches every distinct layer again, depthwise layers included.

    kernel    the compiled search on packed layers
    estimate  `hwmodels.estimate` on a network that is packed already
    fresh     `hwmodels.estimate` on a new `Workload`, packing included, and its total cycles read
    unpruned  a plain compiled transcription of the simulator's description: every tiling that fits in all 120 orders

    python benchmarks/bench_reference.py --out benchmarks/results/bench_reference.txt
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import permutations

import numpy as np
from measure import Report, timed
from numba import njit

from hwmodels import BitFusion, Layer, Workload, estimate, networks, reference
from hwmodels.cost import FLOAT_COLUMNS, INT, INT_COLUMNS
from hwmodels.reference_kernel import price_layers
from hwmodels.workload import MAC_OPS, PACKED_COLUMNS

CHIP = BitFusion(model="reference", mapping="channel")
COLUMN = {name: i for i, name in enumerate(PACKED_COLUMNS)}
#: Loops from the innermost: batch, output rows, output columns, input channels, output channels.
ORDERS = np.array(list(permutations(range(5))))
#: Whether a loop matters to weights, activations and outputs.
RELEVANT = np.array([[0, 1, 1], [0, 1, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]])
#: Most seconds that a network of some batch may take.
TARGETS_S = {("resnet18", 1): 0.2e-3, ("mobilenet_v2", 1): 0.3e-3, ("mobilenet_v2", 16): 3e-3}
RUNS, SLOW_RUNS = 500, 5


@njit(nogil=True)
def doublings(start, end):
    sizes = [min(start, end)]
    while start < end:
        start *= 2
        sizes.append(min(start, end))
    return sizes


@njit(nogil=True)
def unpruned(K, P, S, IC, OC, B, input_bits, weight_bits, im2col, chip, pj, orders, relevant):
    """Least (cycles, energy) over every tiling that fits and all 120 orders."""
    rows, cols, widest, narrowest, bandwidth = chip[0], chip[1], chip[2], chip[3], chip[7]
    capacity = chip[4:7]
    lanes = rows * (widest // max(input_bits, narrowest)) * (widest // max(weight_bits, narrowest))
    taps = K * K
    best_cycles, best_pj = np.int64(2**62), np.inf
    start, moved, kept = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3, np.int64)
    for b in doublings(1, B):
        for o in doublings(1, P):
            for ic in doublings(1, IC):
                for oc in doublings(1 if im2col else cols, OC):
                    trips = (-(-B // b), -(-P // o), -(-P // o), -(-IC // ic), -(-OC // oc))
                    depth, folds = -(-taps * ic // lanes), -(-oc // cols)
                    start[0] = depth * lanes * oc * weight_bits
                    start[1] = (o * o * taps if im2col else (K + (o - 1) * S) ** 2) * ic * b * input_bits
                    start[2] = o * o * folds * cols * b * 32
                    if (start > capacity).any():
                        continue
                    tiles = trips[0] * trips[1] * trips[2] * trips[3] * trips[4]
                    compute = tiles * b * folds * o * o * (depth if im2col else taps * -(-ic // lanes))
                    macs = tiles * oc * b * o * o * taps * ic
                    for order in orders:
                        for stream in range(3):
                            volume, resident, promoting = start[stream], start[stream], True
                            for loop in order:
                                if promoting and not relevant[loop, stream]:
                                    continue
                                volume *= trips[loop]
                                if promoting:
                                    if volume > capacity[stream]:
                                        promoting = False
                                    else:
                                        resident = volume
                            moved[stream], kept[stream] = volume, resident
                        first, last = kept.sum(), kept[2]
                        traffic = moved.sum() + moved[2]
                        wait = -(-(traffic - first - last) // bandwidth)
                        cycles = max(compute, wait) - (-first // bandwidth) - (-last // bandwidth)
                        if cycles > best_cycles:
                            continue
                        outputs = tiles * oc * b * o * o * 32 + moved[2]
                        energy = (
                            compute * pj[0] + macs * weight_bits * pj[1] + moved[0] * pj[2]
                            + macs * input_bits * pj[3] + moved[1] * pj[4] + outputs * pj[5] + outputs * pj[6]
                            + moved.sum() * pj[7] + moved[2] * pj[7]
                        )  # fmt: skip
                        if cycles < best_cycles or energy < best_pj:
                            best_cycles, best_pj = cycles, energy
    return best_cycles, best_pj


@njit(nogil=True)
def unpruned_layers(layers, shapes, chip, pj, orders, relevant, cycles, energy_pj):
    for i in range(len(layers)):
        row = layers[i]
        K, P, S, B, input_bits, weight_bits, im2col, groups = shapes[i]
        found = unpruned(K, P, S, row[2], row[1], B, input_bits, weight_bits, im2col, chip, pj, orders, relevant)
        cycles[i], energy_pj[i] = found[0] * groups, found[1] * groups


def bench(report: Report, workload: Workload) -> None:
    layers, _ = workload.packed
    shape, pj = CHIP.reference_arrays
    first, classes, orders, _ = reference.loop_orders()
    ints = np.zeros((len(layers), len(INT_COLUMNS)), dtype=np.int64)
    floats = np.zeros((len(layers), len(FLOAT_COLUMNS)))
    kernel = timed(lambda: price_layers(layers, shape, pj, first, classes, orders, ints, floats), RUNS)
    whole = timed(lambda: estimate(workload, CHIP), RUNS)
    parts = workload.name, workload.layers, workload.tensors, workload.batch
    new = iter([Workload(*parts) for _ in range(RUNS + 2)])
    fresh = timed(lambda: estimate(next(new), CHIP).cycles, RUNS)

    is_mac = layers[:, COLUMN["op"]] < len(MAC_OPS)
    mac_layers = layers[is_mac]
    names = ("R", "P", "stride_h", "N", "input_bits", "weight_bits", "reads_network_input", "G")
    shapes = np.ascontiguousarray(mac_layers[:, [COLUMN[name] for name in names]])
    cycles, energy_pj = np.zeros(len(shapes), np.int64), np.zeros(len(shapes))
    slow = timed(lambda: unpruned_layers(mac_layers, shapes, shape, pj, ORDERS, RELEVANT, cycles, energy_pj), SLOW_RUNS)
    ints.fill(0)
    price_layers(layers, shape, pj, first, classes, orders, ints, floats)
    assert (ints[is_mac, INT["cycles"]] == cycles).all()
    assert np.allclose(floats[is_mac, :3].sum(axis=1), energy_pj, rtol=1e-12)

    target_s = TARGETS_S.get((workload.name, workload.batch))
    bits = workload.mac_layers[0].weight_bits
    report(
        f"\n{workload.name}, batch {workload.batch}, w{bits}a{bits}: {len(workload.mac_layers)} layers, "
        f"{len(shapes)} distinct" + (f"; at most {target_s * 1e3:g} ms wanted" if target_s else "")
    )
    for name, times in (("kernel", kernel), ("estimate", whole), ("fresh", fresh)):
        report(
            f"  {name:9}{times!s:36} unpruned / this {slow.median / times.median:6.0f}"
            + (f"   wanted / this {target_s / times.median:5.1f}" if target_s else "")
        )
    report(f"  unpruned {slow}")


def growth(report: Report) -> None:
    """Time of one 3x3 convolution against its channels and batch, and of several against their number."""
    base = Layer("conv", 64, 64, (28, 28), kernel_size=3, padding=1)

    def line(what: str, sizes: tuple[int, ...], layers_of: Callable[[int], list[Layer]]) -> None:
        cells = []
        for size in sizes:
            workload = Workload("copies", tuple(layers_of(size)))
            cells.append(f"{size}: {timed(lambda w=workload: estimate(w, CHIP), RUNS).median * 1e6:.0f} us")
        report(f"  {what:9}" + "   ".join(cells))

    report("\nestimate on 3x3 convolutions of 64 channels at 28x28, 8 bits, median")
    line("channels", (16, 64, 256, 1024, 4096), lambda c: [dataclasses.replace(base, in_channels=c, out_channels=c)])
    line("batch", (1, 4, 16, 64, 256), lambda b: [dataclasses.replace(base, batch=b)])
    # all different, or they would be priced once
    line(
        "layers", (1, 10, 100), lambda n: [dataclasses.replace(base, name=str(i), in_channels=64 + i) for i in range(n)]
    )


def main() -> None:
    report = Report(__doc__.splitlines()[0])
    for name, batch in (("resnet18", 1), ("resnet18", 16), ("mobilenet_v2", 1), ("mobilenet_v2", 16)):
        network = getattr(networks, name)(batch=batch)
        for bits in (8, 4, 2):
            bench(report, network.with_bits(weight_bits=bits, input_bits=bits))
    growth(report)
    report.close()


if __name__ == "__main__":
    main()
