"""From mappings to what the executed machine runs: loops over tiles, and what each buffer keeps along them."""

from __future__ import annotations

import itertools

from hwmodels import BitFusion
from hwmodels.workload import Layer
from tests import naive, naive_simulator
from tests.executed import Loop, Plan


def default_plan(layer: Layer, chip: BitFusion, mapping: naive.Mapping) -> Plan:
    """A mapping of docs/bitfusion.md: groups outermost, then images if asked, then X, K, C in the mapping's order."""
    keeps = naive.residency(layer, chip, mapping)
    assert keeps is not None, "the tiles do not fit"
    d, m = layer.dims, mapping
    axes = {
        "G": (d.G, m.tile_g), "N": (d.N, m.tile_n), "K": (d.K, m.tile_k), "C": (d.C, m.tile_c), "P": (d.P, m.tile_p),
        "Q": (d.Q, m.tile_q),
    }  # fmt: skip
    spans = {axis: [range(*span) for span in naive.tiles_of(*sizes)] for axis, sizes in axes.items()}
    inside = "PQ" if mapping.batch_outermost else "NPQ"
    loops = {
        "K": Loop("K", [{"K": k} for k in spans["K"]]),
        "C": Loop("C", [{"C": c} for c in spans["C"]]),
        "X": Loop("X", [dict(zip(inside, x, strict=True)) for x in itertools.product(*(spans[a] for a in inside))]),
    }
    outer = [Loop("G", [{"G": g} for g in spans["G"]])]
    if mapping.batch_outermost:
        outer.append(Loop("N", [{"N": n} for n in spans["N"]]))
    return Plan(
        [*outer, *(loops[name] for name in mapping.order)],
        {operand: set(span) for operand, span in keeps.items()},
        chip.rows, chip.cols, chip.max_bits, mapping.lane_factor, naive.capacity_bits(chip), mapping.gathers,
        (mapping.par_g, mapping.par_h, mapping.par_w),
    )  # fmt: skip


def reference_plan(layer: Layer, chip: BitFusion, tiling: naive_simulator.Tiling) -> Plan:
    """A tiling of the public simulator: every tile at full size, blocks grown by its promotion rule."""
    d = layer.dims
    sizes = {"B": d.N, "OH": d.P, "OW": d.Q, "IC": d.C, "OC": d.K}
    axes = {"B": "N", "OH": "P", "OW": "Q", "IC": "C", "OC": "K"}
    edges = {"B": tiling.b, "OH": tiling.o, "OW": tiling.o, "IC": tiling.ic, "OC": tiling.oc}
    loops = [
        Loop(name, [{axes[name]: range(i, i + edges[name])} for i in range(0, sizes[name], edges[name])])
        for name in tiling.order
    ]
    return Plan(
        [Loop("G", [{"G": range(1)}]), *loops], naive_simulator.promoted(layer, chip, tiling), chip.rows, chip.cols,
        chip.max_bits, chip.macs_per_unit(layer.weight_bits, layer.input_bits), naive.capacity_bits(chip),
        tiling.im2col,
    )  # fmt: skip
