"""A MAC array that is executed: units that multiply integers, one array pass after another, and counters at its ports.

It runs the tiles of a mapping in their order and moves no count through a formula of the cost models. `run` returns
the outputs, so that a test can compare them with a convolution, and the counts. Data come from and go to the
buffers; what lies in DRAM is not its business.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwmodels import MacArray
from hwmodels.workload import Layer

Ints = NDArray[np.int64]
Pixel = tuple[int, int, int]  #: image, output row, output column
Lane = tuple[int, int, int]  #: input channel of the group, kernel row, kernel column


@dataclass
class Counts:
    """What the array did: cycles, and values that crossed each port."""

    cycles: int = 0
    weights_read: int = 0
    inputs_read: int = 0
    sums_read: int = 0
    sums_written: int = 0
    finished: int = 0


@dataclass
class Machine:
    """An array at work on one layer: its operands, its partial sums, its counters."""

    chip: MacArray
    layer: Layer
    inputs: Ints  #: shape (batch, in_channels, H, W)
    weights: Ints  #: shape (out_channels, in_channels / groups, R, S)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        d = self.layer.dims
        self.sums = np.zeros((d.N, d.K * d.G, d.P, d.Q), dtype=np.int64)
        self.products = np.zeros_like(self.sums)  # how many products each sum has had

    def operand(self, group: int, pixel: Pixel, lane: Lane) -> int:
        """The input under a tap of an output pixel; 0 in the padding."""
        n, p, q = pixel
        c, r, s = lane
        y = p * self.layer.stride[0] + r * self.layer.dilation[0] - self.layer.pads[0][0]
        x = q * self.layer.stride[1] + s * self.layer.dilation[1] - self.layer.pads[1][0]
        inside = 0 <= y < self.layer.in_size[0] and 0 <= x < self.layer.in_size[1]
        return int(self.inputs[n, group * self.layer.dims.C + c, y, x]) if inside else 0

    def multiply(self, group: int, pixel: Pixel, k: int, lanes: Sequence[Lane]) -> int:
        row = group * self.layer.dims.K + k
        return sum(int(self.weights[row, c, r, s]) * self.operand(group, pixel, (c, r, s)) for c, r, s in lanes)

    def accumulate(self, group: int, pixel: Pixel, k: int, value: int, products: int) -> None:
        """Add to a partial sum in the output buffer: read unless it is the first visit, kept unless it is the last."""
        n, p, q = pixel
        at = n, group * self.layer.dims.K + k, p, q
        if self.products[at]:
            self.counts.sums_read += 1
        self.sums[at] += value
        self.products[at] += products
        d = self.layer.dims
        if self.products[at] < d.C * d.R * d.S:
            self.counts.sums_written += 1
        else:
            self.counts.finished += 1


def chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[i : i + size] for i in range(0, len(items), size))


def lane_chunks(machine: Machine, channels: Sequence[int], taps_on_lanes: bool) -> list[list[Lane]]:
    """What the rows hold in one pass after another: channels of one kernel position, or channels and positions."""
    d = machine.layer.dims
    taps = list(itertools.product(range(d.R), range(d.S)))
    if taps_on_lanes:
        return [list(part) for part in chunks([(c, r, s) for c in channels for r, s in taps], machine.chip.rows)]
    return [[(c, r, s) for c in part] for r, s in taps for part in chunks(list(channels), machine.chip.rows)]


def weight_stationary(
    machine: Machine, group: int, pixels: list[Pixel], ks: range, cs: range, taps_on_lanes: bool
) -> None:
    """A block of rows x cols weights waits; all pixels of the tile stream past; the next block is loaded meanwhile."""
    counts, chip = machine.counts, machine.chip
    for lanes in lane_chunks(machine, cs, taps_on_lanes):
        for columns in chunks(ks, chip.cols):
            counts.weights_read += len(lanes) * len(columns)
            for pixel in pixels:
                counts.inputs_read += len(lanes)
                for k in columns:
                    machine.accumulate(group, pixel, k, machine.multiply(group, pixel, k, lanes), len(lanes))
            counts.cycles += max(len(pixels), chip.rows)


def output_stationary(
    machine: Machine, group: int, pixels: list[Pixel], ks: range, cs: range, taps_on_lanes: bool
) -> None:
    """Sums of rows pixels x cols channels wait; the reduction streams; the sums before drain meanwhile, row by row."""
    counts, chip = machine.counts, machine.chip
    d = machine.layer.dims
    reduction = list(itertools.product(cs, range(d.R), range(d.S)))
    for block in chunks(pixels, chip.rows):
        for columns in chunks(ks, chip.cols):
            counts.inputs_read += len(block) * len(reduction)
            counts.weights_read += len(columns) * len(reduction)
            for pixel, k in itertools.product(block, columns):
                machine.accumulate(group, pixel, k, machine.multiply(group, pixel, k, reduction), len(reduction))
            counts.cycles += max(len(reduction), chip.rows)


def input_stationary(
    machine: Machine, group: int, pixels: list[Pixel], ks: range, cs: range, taps_on_lanes: bool
) -> None:
    """A block of rows x cols inputs waits, columns being pixels; all output channels of the tile stream past."""
    counts, chip = machine.counts, machine.chip
    for lanes in lane_chunks(machine, cs, taps_on_lanes):
        for block in chunks(pixels, chip.cols):
            counts.inputs_read += len(lanes) * len(block)
            for k in ks:
                counts.weights_read += len(lanes)
                for pixel in block:
                    machine.accumulate(group, pixel, k, machine.multiply(group, pixel, k, lanes), len(lanes))
            counts.cycles += max(len(ks), chip.rows)


def no_local_reuse(
    machine: Machine, group: int, pixels: list[Pixel], ks: range, cs: range, taps_on_lanes: bool
) -> None:
    """In each cycle, rows x cols weights meet the inputs of several pixels; accumulators keep the columns' sums."""
    counts, chip = machine.counts, machine.chip
    for block in chunks(pixels, chip.windows):
        for columns in chunks(ks, chip.cols):
            sums = dict.fromkeys(itertools.product(block, columns), 0)
            products = 0
            for lanes in lane_chunks(machine, cs, taps_on_lanes):
                counts.cycles += 1
                counts.weights_read += len(lanes) * len(columns)
                counts.inputs_read += len(lanes) * len(block)
                products += len(lanes)
                for pixel, k in sums:
                    sums[pixel, k] += machine.multiply(group, pixel, k, lanes)
            for (pixel, k), value in sums.items():
                machine.accumulate(group, pixel, k, value, products)


DATAFLOWS = {
    "weight-stationary": weight_stationary,
    "output-stationary": output_stationary,
    "input-stationary": input_stationary,
    "no-local-reuse": no_local_reuse,
}


def run(
    chip: MacArray, layer: Layer, inputs: Ints, weights: Ints, tile: dict[str, int], taps_on_lanes: bool
) -> tuple[Ints, Counts]:
    """Run a layer, one group at a time, tile by tile; ``tile`` has the keys n, p, q, k, c."""
    machine = Machine(chip, layer, inputs, weights)
    d = layer.dims
    spans = {axis: _spans(getattr(d, axis.upper()), tile[axis]) for axis in "npqkc"}
    for group in range(d.G):
        for images, rows, cols in itertools.product(spans["n"], spans["p"], spans["q"]):
            pixels = list(itertools.product(images, rows, cols))
            for ks, cs in itertools.product(spans["k"], spans["c"]):
                DATAFLOWS[chip.dataflow](machine, group, pixels, ks, cs, taps_on_lanes)
    return machine.sums, machine.counts


def _spans(size: int, tile: int) -> list[range]:
    return [range(start, min(start + tile, size)) for start in range(0, size, tile)]


def convolve(layer: Layer, inputs: Ints, weights: Ints) -> Ints:
    """The layer's outputs, by the definition of a convolution."""
    d = layer.dims
    (top, bottom), (left, right) = layer.pads
    padded = np.pad(inputs, ((0, 0), (0, 0), (top, bottom), (left, right)))
    outputs = np.zeros((d.N, d.K * d.G, d.P, d.Q), dtype=np.int64)
    for n, k, p, q in np.ndindex(outputs.shape):
        first = k // d.K * d.C
        y, x = p * layer.stride[0], q * layer.stride[1]
        window = padded[
            n, first : first + d.C,
            y : y + (d.R - 1) * layer.dilation[0] + 1 : layer.dilation[0],
            x : x + (d.S - 1) * layer.dilation[1] + 1 : layer.dilation[1],
        ]  # fmt: skip
        outputs[n, k, p, q] = (window * weights[k]).sum()
    return outputs
