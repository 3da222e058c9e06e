"""A Bit Fusion machine that is executed: bricks that multiply, buffers that hold data, counters at every port.

It moves tiles of integers from DRAM through three buffers into an array of Fusion Units and back, and counts what
happens: steps of the array, bits across the ports of each buffer, bits from and to DRAM. No count is computed by a
formula of the cost models; where they agree with this machine, they do because the events add up.

`Rules` says how the machine is charged: `DEFAULT` as docs/bitfusion.md declares it, `REFERENCE` as the paper's public
simulator does (outputs fetched at a first visit, tiles charged at full size, padded footprints, no shared reads).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwmodels.workload import Layer
from tests.bricks import digits, fused_sums, settings, wrapped

Ints = NDArray[np.int64]
ACCUMULATOR_BITS = 32


@dataclass(frozen=True)
class Rules:
    """How the machine is charged."""

    share_inputs: bool = True  #: one read of the input buffer serves all columns; else one read a MAC
    read_first_visits: bool = False  #: partial sums are fetched and read where there are none yet
    narrow_outputs: bool = True  #: a finished output leaves once, at output_bits; else its block leaves at 32 bits
    pad_footprints: bool = False  #: weights padded to whole steps of the lanes, outputs to whole rows of columns
    whole_windows: bool = False  #: an input tile is its whole window, padding and skipped elements included
    gather_on_chip: bool = True  #: im2col copies are made while the buffer is filled; else fetched one by one


DEFAULT = Rules()
REFERENCE = Rules(
    share_inputs=False, read_first_visits=True, narrow_outputs=False, pad_footprints=True, whole_windows=True,
    gather_on_chip=False,
)  # fmt: skip

#: The axes along which tiles of an operand differ.
AXES = {"weight": set("GKC"), "input": set("GNCPQ"), "output": set("GNKPQ")}


class Loop(NamedTuple):
    """A loop over tiles: in each iteration, the range it gives to some axes of the layer."""

    name: str
    iterations: Sequence[Mapping[str, range]]


@dataclass(frozen=True)
class Plan:
    """A mapping as the machine takes it. Ranges may reach beyond the layer; what lies there is zero, but charged."""

    loops: Sequence[Loop]  #: outermost first; together they give a range to each of G, N, K, C, P, Q
    spans: Mapping[str, set[str]]  #: for each operand, the loops along which its buffer keeps all tiles
    rows: int
    cols: int
    max_bits: int
    lane_factor: int  #: products that a Fusion Unit does at once
    capacity_bits: Mapping[str, int]  #: what a block may fill of each buffer
    gathers: bool = False  #: lanes take the input patch of a pixel; else channels at one kernel position
    par: tuple[int, int, int] = (1, 1, 1)  #: groups, pixel rows and pixel columns that share a step


class Stored(NamedTuple):
    """A tile as it lies in a buffer."""

    tile: Any
    bits_in_banks: Ints


@dataclass
class Buffer:
    """Half of a double buffer, in equal banks: the tiles of one block. The next block drives them out."""

    capacity_bits: int
    block: tuple[int, ...] | None = None
    tiles: dict[tuple[int, ...], Stored] = field(default_factory=dict)
    bits_in_banks: Ints = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    peak_bits: int = 0  #: the fullest that the fullest bank was, times the banks

    def enter(self, block: tuple[int, ...] | None) -> list[Any]:
        """Make room for a block; the tiles of another one are handed back."""
        if block == self.block:
            return []
        left = [stored.tile for stored in self.tiles.values()]
        self.tiles, self.block, self.bits_in_banks = {}, block, np.zeros(1, dtype=np.int64)
        return left

    def take(self, key: tuple[int, ...]) -> Any:
        """A tile, out of the buffer."""
        stored = self.tiles.pop(key)
        self.bits_in_banks = self.bits_in_banks - stored.bits_in_banks
        return stored.tile

    def hold(self, key: tuple[int, ...], tile: Any, bits_in_banks: Ints) -> None:
        self.tiles[key] = Stored(tile, bits_in_banks)
        self.bits_in_banks = self.bits_in_banks + bits_in_banks
        full_bits = int(self.bits_in_banks.max()) * self.bits_in_banks.size
        self.peak_bits = max(self.peak_bits, full_bits)
        assert full_bits <= self.capacity_bits, f"{full_bits} bits where {self.capacity_bits} fit"


class InputTile(NamedTuple):
    """What the input buffer holds of a tile: digits of elements, or of gathered copies."""

    digits: Ints  #: (digits, g, c, n, rows, cols), the last row and column zero; or (digits, patches, lanes)
    rows: Ints  #: where each row of the window lies in ``digits``; -1 where it is not stored and reads as zero
    cols: Ints


@dataclass
class OutputTile:
    """Partial sums of a tile, shape (g, k, n, p, q), and which outputs they are."""

    key: tuple[int, ...]
    ranges: Mapping[str, range]
    sums: Ints
    finished: bool = False


@dataclass
class TileEvents:
    """What one tile asks of the DRAM interface and of the array."""

    loads: dict[str, int] = field(default_factory=lambda: dict.fromkeys(AXES, 0))  #: bits, by operand
    steps: int = 0
    drain_bits: int = 0
    blocks: dict[str, int] = field(default_factory=dict)  #: which block of each operand it uses, counted from the first

    @property
    def load_bits(self) -> int:
        return sum(self.loads.values())


class Run(NamedTuple):
    """What was computed and what was counted."""

    sums: Ints  #: accumulators as they were finished, shape (N, out_channels, P, Q)
    outputs: Ints  #: what lies in DRAM
    steps: int
    traffic_bits: Mapping[str, int]
    first_block_bits: int  #: DRAM reads of the first block of each operand
    last_block_bits: int  #: DRAM writes of the last block of outputs
    tiles: Sequence[TileEvents]
    peak_bits: Mapping[str, int]  #: the fullest that half of each buffer was


class Machine:
    """Fusion Units, buffers and a DRAM that run one layer under one plan.

    ``signed`` says of inputs and of weights whether they are two's complement.
    """

    def __init__(self, layer: Layer, plan: Plan, rules: Rules = DEFAULT, signed: tuple[bool, bool] = (True, True)):
        self.layer, self.plan, self.rules, self.signed, self.dims = layer, plan, rules, signed, layer.dims
        self.lanes = plan.rows * plan.lane_factor
        self.settings = settings(plan.max_bits, plan.lane_factor, layer.input_bits, layer.weight_bits)
        self.relevant = {
            operand: {loop.name for loop in plan.loops if axes & set(loop.iterations[0])}
            for operand, axes in AXES.items()
        }
        self.laid: dict[tuple[int, int, int], list[tuple[list[Ints], list[Ints]]]] = {}
        self.accumulation = next(loop for loop in plan.loops if "C" in loop.iterations[0])
        self.output_bits = layer.output_bits if rules.narrow_outputs else ACCUMULATOR_BITS
        self.word_bits = ACCUMULATOR_BITS if len(self.accumulation.iterations) > 1 else self.output_bits

    # -- The loops over tiles ------------------------------------------------------------------------------------------

    def run(self, inputs: Ints, weights: Ints) -> Run:
        """Execute the layer on inputs (N, in_channels, H, W) and weights (out_channels, C, R, S)."""
        n, k, c, p, q, r, s, g = self.dims
        self.inputs = inputs.reshape(n, g, c, *self.layer.in_size).transpose(1, 2, 0, 3, 4)
        self.weights = weights.reshape(g, k, c, r, s)
        self.sums = np.zeros((g, k, n, p, q), dtype=np.int64)
        self.outputs, self.times_finished = self.sums.copy(), self.sums.copy()
        self.spilled: dict[tuple[int, ...], OutputTile] = {}
        self.bits: Counter[str] = Counter()
        self.buffers = {operand: Buffer(self.plan.capacity_bits[operand]) for operand in AXES}
        self.fetched_by_block: dict[str, list[int]] = {operand: [] for operand in AXES}
        self.last_block_bits = 0
        self.events: list[TileEvents] = []
        for index, ranges in self._tiles():
            self.event = TileEvents()
            stored_weights = self._present("weight", index, ranges)
            stored_inputs = self._present("input", index, ranges)
            out = self._partial_sums(index, ranges)  # what makes room for them still belongs to the tile before
            self.events.append(self.event)
            self.event.blocks = {operand: len(fetched) - 1 for operand, fetched in self.fetched_by_block.items()}
            at, last = index[self.accumulation.name], len(self.accumulation.iterations) - 1
            out.finished = at == last
            self.event.steps = self._compute(stored_weights, stored_inputs, out, ranges, is_first=at == 0)
            if out.finished and self.rules.narrow_outputs:
                self._leave([self.buffers["output"].take(out.key)])
        self._leave(self.buffers["output"].enter(None))
        assert (self.times_finished == 1).all() and not self.spilled
        return Run(
            *(done.transpose(2, 0, 1, 3, 4).reshape(n, g * k, p, q) for done in (self.sums, self.outputs)),
            sum(event.steps for event in self.events), self.bits,
            sum(fetched[0] for fetched in self.fetched_by_block.values()), self.last_block_bits, self.events,
            {name: buffer.peak_bits for name, buffer in self.buffers.items()},
        )  # fmt: skip

    def _tiles(self) -> Iterator[tuple[dict[str, int], dict[str, range]]]:
        for indices in itertools.product(*(range(len(loop.iterations)) for loop in self.plan.loops)):
            ranges: dict[str, range] = {}
            for loop, i in zip(self.plan.loops, indices, strict=True):
                ranges |= loop.iterations[i]
            yield {loop.name: i for loop, i in zip(self.plan.loops, indices, strict=True)}, ranges

    def _keys(self, operand: str, index: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which block and which tile of an operand an iteration needs."""
        relevant = self.relevant[operand]
        block = relevant - self.plan.spans[operand]
        return tuple(i for name, i in index.items() if name in block), tuple(
            i for name, i in index.items() if name in relevant
        )

    def _present(self, operand: str, index: Mapping[str, int], ranges: Mapping[str, range]) -> Any:
        """The tile of weights or inputs in its buffer, fetched if it is not there."""
        block, key = self._keys(operand, index)
        buffer = self.buffers[operand]
        if block != buffer.block:
            buffer.enter(block)
            self.fetched_by_block[operand].append(0)
        if key not in buffer.tiles:
            fetch = self._fetch_weights if operand == "weight" else self._fetch_inputs
            tile, fetched_bits, written_bits, bits_in_banks = fetch(ranges)
            self._read_dram(operand, fetched_bits)
            self.bits[f"{operand}_buffer_write"] += written_bits
            buffer.hold(key, tile, bits_in_banks)
        return buffer.tiles[key].tile

    def _read_dram(self, operand: str, bits: int) -> None:
        self.bits["dram_read"] += bits
        self.event.loads[operand] += bits
        self.fetched_by_block[operand][-1] += bits

    def _partial_sums(self, index: Mapping[str, int], ranges: Mapping[str, range]) -> OutputTile:
        """The tile of outputs in its buffer: there already, back from DRAM, or new."""
        block, key = self._keys("output", index)
        buffer = self.buffers["output"]
        if block != buffer.block:
            self._leave(buffer.enter(block))
            self.fetched_by_block["output"].append(0)
        if key not in buffer.tiles:
            shape = [len(ranges[axis]) for axis in "GKNPQ"]
            if self.rules.pad_footprints:
                shape[1] = -(-shape[1] // self.plan.cols) * self.plan.cols
            fetches = key in self.spilled or self.rules.read_first_visits
            tile = self.spilled.pop(key, None) or OutputTile(key, ranges, np.zeros(shape, dtype=np.int64))
            if fetches:
                self._read_dram("output", tile.sums.size * ACCUMULATOR_BITS)
                self.bits["output_buffer_write"] += tile.sums.size * ACCUMULATOR_BITS
            buffer.hold(key, tile, self._output_banks(tile))
        return buffer.tiles[key].tile

    def _leave(self, tiles: Sequence[OutputTile]) -> None:
        """Outputs go to DRAM: finished ones to their place, others to come back."""
        self.last_block_bits = 0 if tiles else self.last_block_bits
        for tile in tiles:
            bits = tile.sums.size * (self.output_bits if tile.finished else ACCUMULATOR_BITS)
            self.bits["output_buffer_read"] += bits
            self.bits["dram_write"] += bits
            self.events[-1].drain_bits += bits
            self.last_block_bits += bits
            if not tile.finished:
                self.spilled[tile.key] = tile
                continue
            place = np.ix_(
                *(_inside(tile.ranges[axis], size) for axis, size in zip("GKNPQ", self.sums.shape, strict=True))
            )
            part = tile.sums[tuple(slice(len(index.ravel())) for index in place)]
            self.sums[place] = part
            self.outputs[place] = wrapped(part, self.output_bits)
            self.times_finished[place] += 1

    # -- What a tile is ------------------------------------------------------------------------------------------------

    def _passes(self, ranges: Mapping[str, range]) -> list[tuple[list[Ints], list[Ints]]]:
        """How a tile's channels lie on the array: for each set of groups that share steps, columns and lanes.

        Columns are rows (g, k, i, j): the output channel, and which pixel of a patch. Lanes are rows (g, c, dy, dx):
        the input channel, and where under the patch. Both in chunks that fit the array.
        """
        groups, outs, ins = (len(ranges[axis]) for axis in "GKC")
        if (groups, outs, ins) not in self.laid:
            self.laid[groups, outs, ins] = self._laid(groups, outs, ins)
        return self.laid[groups, outs, ins]

    def _laid(self, groups: int, outs: int, ins: int) -> list[tuple[list[Ints], list[Ints]]]:
        (par_g, par_h, par_w), layer = self.plan.par, self.layer
        under = [
            sorted({o * layer.stride[axis] + tap * layer.dilation[axis] for o in range(par) for tap in range(taps)})
            for axis, (par, taps) in enumerate(zip((par_h, par_w), layer.kernel_size, strict=True))
        ]
        passes = []
        for start in range(0, groups, par_g):
            together = range(start, min(start + par_g, groups))
            columns = _grid(together, range(outs), range(par_h), range(par_w))
            if self.plan.gathers:
                lanes = _chunks(_grid(together, range(ins), *under), self.lanes)
            else:
                lanes = []
                for dy, dx in itertools.product(*under):
                    lanes += _chunks(_grid(together, range(ins), [dy], [dx]), self.lanes)
            passes.append((_chunks(columns, self.plan.cols), lanes))
        return passes

    def _fetch_weights(self, ranges: Mapping[str, range]) -> tuple[Any, int, int, Ints]:
        """A tile of weights as it lies in the banks, one a unit: for each set of groups, columns and lanes.

        Each is (digits of shape (digits, lanes, columns), which units have a weight). Also the bits that DRAM and the
        buffer see, and those in each bank.
        """
        layer, (r, s) = self.layer, self.layer.kernel_size
        part = _cut(self.weights, ranges["G"], ranges["K"], ranges["C"], range(r), range(s))
        fetched = part.size
        if self.rules.pad_footprints:
            _, k, c, _, _ = part.shape
            fetched = np.zeros((-(-c * r * s // self.lanes) * self.lanes, k)).size
        banks: list[list[list[tuple[Ints, Ints]]]] = []
        words = np.zeros((self.plan.rows, self.plan.cols), dtype=np.int64)
        for columns, lanes in self._passes(ranges):
            banks.append([])
            for column in columns:
                banks[-1].append([])
                for lane in lanes:
                    row, i = np.divmod(lane[:, None, 2] - column[None, :, 2] * layer.stride[0], layer.dilation[0])
                    col, j = np.divmod(lane[:, None, 3] - column[None, :, 3] * layer.stride[1], layer.dilation[1])
                    used = (lane[:, None, 0] == column[None, :, 0]) & (i == 0) & (j == 0)
                    used &= (row >= 0) & (row < r) & (col >= 0) & (col < s)
                    g, k, c = column[None, :, 0], column[None, :, 1], lane[:, None, 1]
                    values = part[g, k, c, row.clip(0, r - 1), col.clip(0, s - 1)] * used
                    banks[-1][-1].append((digits(values, self.settings[1], self.signed[1]), used))
                    np.add.at(words, np.ix_(np.arange(len(lane)) % self.plan.rows, np.arange(len(column))), used)
        if self.rules.pad_footprints:
            words = np.array(fetched)
        return banks, fetched * layer.weight_bits, int(words.sum()) * layer.weight_bits, words * layer.weight_bits

    def _fetch_inputs(self, ranges: Mapping[str, range]) -> tuple[InputTile, int, int, Ints]:
        """A tile of inputs as its buffer holds it: elements, or the copies that the lanes read one after another."""
        layer = self.layer
        stored_bits = layer.stored_input_bits or layer.input_bits
        kept, where = [], []
        for axis, name in enumerate("PQ"):
            window, wanted = self._window(axis, ranges[name])
            keep = [i for i in window if self.rules.whole_windows or (i in wanted and 0 <= i < layer.in_size[axis])]
            kept.append(keep)
            where.append(np.array([keep.index(i) if i in keep else -1 for i in window]))
        part = _cut(self.inputs, ranges["G"], ranges["C"], ranges["N"], *kept)
        zeros_around = np.pad(part, ((0, 0), (0, 0), (0, 0), (0, 1), (0, 1)))
        tile = InputTile(digits(zeros_around, self.settings[0], self.signed[0]), *where)
        words = np.zeros(self.plan.rows, dtype=np.int64)
        if not self.plan.gathers:
            owner = self._rows_of_channels(ranges)
            np.add.at(words, owner, part[0, 0].size)
            words = np.array(part.size) if self.rules.pad_footprints else words
            return tile, part.size * stored_bits, part.size * layer.input_bits, words * layer.input_bits
        copies = [
            [self._under(tile, patch, np.concatenate(lanes)) for _, lanes in self._passes(ranges)]
            for patch in self._patches(ranges)
        ]
        for _, lanes in self._passes(ranges):
            for lane in lanes:
                np.add.at(words, np.arange(len(lane)) % self.plan.rows, len(copies))
        written = sum(c.shape[1] for sets in copies for c in sets) * layer.input_bits
        fetched = part.size * stored_bits if self.rules.gather_on_chip else written
        if self.rules.pad_footprints:
            words = words.sum()
        return tile._replace(digits=copies), fetched, written, words * layer.input_bits

    def _rows_of_channels(self, ranges: Mapping[str, range]) -> Ints:
        """The row whose lanes take each input channel (g, c) of a tile: always one, or its bank could not serve."""
        owner = np.full((len(ranges["G"]), len(ranges["C"])), -1)
        for _, lanes in self._passes(ranges):
            for lane in lanes:
                rows, place = np.arange(len(lane)) % self.plan.rows, (lane[:, 0], lane[:, 1])
                assert ((owner[place] == -1) | (owner[place] == rows)).all()
                owner[place] = rows
        return owner.ravel()

    def _output_banks(self, tile: OutputTile) -> Ints:
        """Bits of a tile of outputs in the bank of each column."""
        if self.rules.pad_footprints:
            return np.array(tile.sums.size * self.word_bits)
        words = np.zeros(self.plan.cols, dtype=np.int64)
        for patch in self._patches(tile.ranges):
            for columns, _ in self._passes(tile.ranges):
                for column in columns:
                    real, _ = self._places(tile.ranges, patch, column)
                    words[: len(column)] += real
        return words * self.word_bits

    def _places(self, ranges: Mapping[str, range], patch: tuple[int, int, int], columns: Ints) -> tuple[Ints, Any]:
        """Which columns compute an output of the tile under a patch, and where those lie in it."""
        p, q = patch[1] + columns[:, 2], patch[2] + columns[:, 3]
        real = (p < len(ranges["P"])) & (q < len(ranges["Q"]))
        return real, (columns[real, 0], columns[real, 1], patch[0], p[real], q[real])

    def _window(self, axis: int, outputs: range) -> tuple[range, set[int]]:
        """The input rows (or columns) from the first to the last that the outputs read, and those that they do read."""
        layer, taps = self.layer, range(self.layer.kernel_size[axis])
        wanted = {
            o * layer.stride[axis] + t * layer.dilation[axis] - layer.pads[axis][0] for o in outputs for t in taps
        }
        beyond = (
            max(self.plan.par[1 + axis] - 1, 0) * layer.stride[axis]
        )  # a ragged patch looks further; it finds zeros
        return range(min(wanted), max(wanted) + 1 + beyond), wanted

    def _patches(self, ranges: Mapping[str, range]) -> list[tuple[int, int, int]]:
        """Patches of pixels that share a step: image, first row and first column, counted within the tile."""
        _, par_h, par_w = self.plan.par
        rows, cols = range(0, len(ranges["P"]), par_h), range(0, len(ranges["Q"]), par_w)
        return list(itertools.product(range(len(ranges["N"])), rows, cols))

    def _under(self, tile: InputTile, patch: tuple[int, int, int], lanes: Ints) -> Ints:
        """What the lanes see of a tile under a patch; shape (digits, lanes)."""
        image, row, col = patch
        rows = tile.rows[row * self.layer.stride[0] + lanes[:, 2]]
        cols = tile.cols[col * self.layer.stride[1] + lanes[:, 3]]
        return tile.digits[:, lanes[:, 0], lanes[:, 1], image, rows, cols]

    # -- The array -----------------------------------------------------------------------------------------------------

    def _compute(
        self, banks: Any, inputs: InputTile, out: OutputTile, ranges: Mapping[str, range], is_first: bool
    ) -> int:
        """Run the array over a tile; its steps."""
        layer, rules, steps = self.layer, self.rules, 0
        final_bits = self.output_bits if out.finished else ACCUMULATOR_BITS
        for (number, patch), (at, (columns, lanes)) in itertools.product(
            enumerate(self._patches(ranges)), enumerate(self._passes(ranges))
        ):
            for column, bank in zip(columns, banks[at], strict=True):
                real, place = self._places(ranges, patch, column)
                accumulators = np.zeros(len(column), dtype=np.int64)
                if not is_first or rules.read_first_visits:
                    accumulators[real] = out.sums[place]
                    self.bits["output_buffer_read"] += int(real.sum()) * ACCUMULATOR_BITS
                start = 0
                for lane, (weights, used) in zip(lanes, bank, strict=True):
                    assert len(lane) <= self.lanes and len(column) <= self.plan.cols
                    if self.plan.gathers:
                        values = inputs.digits[number][at][:, start : start + len(lane)]
                        start += len(lane)
                    else:
                        values = self._under(inputs, patch, lane)
                    accumulators = wrapped(accumulators + fused_sums(values, weights), ACCUMULATOR_BITS)
                    readers = 1 if rules.share_inputs else int(real.sum())
                    self.bits["input_buffer_read"] += len(lane) * readers * layer.input_bits
                    self.bits["weight_buffer_read"] += int(used[:, real].sum()) * layer.weight_bits
                    steps += 1
                out.sums[place] = accumulators[real]
                self.bits["output_buffer_write"] += int(real.sum()) * final_bits
        return steps


def _inside(span: range, size: int) -> list[int]:
    return [i for i in span if i < size]


def _cut(array: Ints, *spans: Sequence[int]) -> Ints:
    """A block of an array; zero where it reaches beyond."""
    block = np.zeros([len(span) for span in spans], dtype=np.int64)
    inside = [
        np.array([0 <= i < size for i in span], dtype=bool) for span, size in zip(spans, array.shape, strict=True)
    ]
    real = [np.array(span, dtype=np.int64)[keep] for span, keep in zip(spans, inside, strict=True)]
    block[np.ix_(*(np.flatnonzero(keep) for keep in inside))] = array[np.ix_(*real)]
    return block


def _grid(*axes: Sequence[int]) -> Ints:
    """All combinations, the last axis fastest; shape (combinations, axes)."""
    return np.array(list(itertools.product(*axes)), dtype=np.int64)


def _chunks(rows: Ints, size: int) -> list[Ints]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
