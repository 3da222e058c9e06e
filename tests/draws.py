"""What the property tests draw: layers, chips, unit energies."""

from __future__ import annotations

import dataclasses

from hypothesis import assume
from hypothesis import strategies as st

from hwmodels import BitFusion, BitFusionEnergies
from hwmodels.cost import InfeasibleLayer, LayerCost
from hwmodels.workload import Layer

OBJECTIVES = ("latency", "energy", "edp")


@st.composite
def layers(draw: st.DrawFn, channels: int = 40, size: int = 20, batch: int = 6, max_bits: int = 8) -> Layer:
    """Convolutions of every shape (dense, grouped, depthwise), linear layers and matmuls, at any bitwidths."""

    def upto(most: int, least: int = 1) -> int:
        return draw(st.integers(least, max(least, most)))

    bits = {"weight_bits": upto(max_bits), "input_bits": upto(max_bits), "output_bits": upto(16)}
    op = draw(st.sampled_from(("dense", "dense", "grouped", "depthwise", "linear", "matmul")))
    if op == "linear":
        return Layer.linear("linear", upto(channels), upto(channels), batch=upto(batch), **bits)
    if op == "matmul":
        return Layer.matmul("matmul", upto(size), upto(channels), upto(channels), count=upto(4), **bits)
    groups = {"dense": 1, "grouped": upto(4, 2), "depthwise": upto(channels, 2)}[op]
    c, k = (1, upto(2)) if op == "depthwise" else (upto(channels // groups), upto(channels // groups))
    kernel, stride, dilation = ((upto(most), upto(most)) for most in (3, 3, 2))
    padding = ((upto(2, 0), upto(2, 0)), (upto(2, 0), upto(2, 0)))
    if draw(st.booleans()):
        kernel, padding = (1, 1), ((0, 0), (0, 0))
    in_size = tuple(
        upto(size, max(1, dilation[axis] * (kernel[axis] - 1) + 1 - sum(padding[axis]))) for axis in range(2)
    )
    if draw(st.integers(0, 4)) == 0:
        bits["stored_input_bits"] = upto(16, bits["input_bits"])
    return Layer(
        op, groups * c, groups * k, in_size, kernel, stride, padding, dilation, groups, upto(batch), **bits
    )  # fmt: skip


def energies() -> st.SearchStrategy[BitFusionEnergies]:
    """Unit energies of any proportions, some of them nothing."""
    price = st.sampled_from((0.0, 0.02, 0.1, 1.0, 7.3))
    ports = {f.name: price for f in dataclasses.fields(BitFusionEnergies)}
    return st.builds(BitFusionEnergies, **ports | {"core_pj_per_cycle": st.sampled_from((0.0, 5.0, 200.0))})


@st.composite
def chips(
    draw: st.DrawFn,
    rows: int = 16,
    cols: int = 32,
    buffer_bytes: tuple[int, int] = (16, 4096),
    max_bits: int = 8,
    **fixed: object,
) -> BitFusion:
    """Chips of any geometry, their buffers small enough to make the mapper choose; unit energies given."""
    low, high = (edge.bit_length() - 1 for edge in buffer_bytes)
    size = st.builds(
        lambda exponent, more: 2**exponent + more % 2**exponent, st.integers(low, high), st.integers(0, 99)
    )
    fields = {
        "rows": st.integers(1, rows), "cols": st.integers(1, cols), "min_bits": st.sampled_from((2, 2, 4)),
        "weight_buffer_bytes": size, "input_buffer_bytes": size, "output_buffer_bytes": size,
        "dram_bits_per_cycle": st.integers(1, 512), "mapping": st.sampled_from(("auto", "auto", "channel", "im2col")),
        "objective": st.sampled_from(OBJECTIVES), "energies": energies(),
    }  # fmt: skip
    return BitFusion(max_bits=max_bits, **{k: draw(v) for k, v in fields.items() if k not in fixed}, **fixed)


def priced(chip: BitFusion, layer: Layer) -> LayerCost:
    """The cost of a drawn layer; draws that do not fit the drawn chip are passed over."""
    try:
        return chip.cost(layer)
    except InfeasibleLayer:
        assume(False)
        raise AssertionError from None


def objective_of(chip: BitFusion, cost: LayerCost) -> float:
    """What the chip minimised."""
    assert cost.cycles is not None
    return {"latency": 1.0, "energy": cost.energy_pj, "edp": cost.energy_pj}[chip.objective] * (
        1 if chip.objective == "energy" else cost.cycles
    )
