"""A small real problem for the tests: three linear layers, a roofline chip, and an error that is a formula."""

from __future__ import annotations

import time
from dataclasses import dataclass

from codesign.problem import Problem
from codesign.space import Arch, BitwidthSpace
from hwmodels.cost import Energy, InfeasibleLayer, LayerCost
from hwmodels.workload import Layer, Workload


@dataclass(frozen=True)
class Roofline:
    """A bit-serial multiplier and a DRAM: time is the longer of the two, energy is what both do."""

    macs_per_s: float = 1e9
    dram_bits_per_s: float = 1e9
    mac_pj_per_bit2: float = 0.01
    dram_pj_per_bit: float = 4.0
    buffer_bits: int = 10**9

    def cost(self, layer: Layer, resident: tuple[str, ...] = ()) -> LayerCost:
        weight_bits = layer.weight_count * layer.weight_bits
        if weight_bits > self.buffer_bits:
            raise InfeasibleLayer(f"Layer {layer.name!r}: {weight_bits} bits do not fit.")
        moved = weight_bits + layer.input_count * layer.input_bits + layer.output_count * layer.output_bits
        compute_s = layer.bitops / 64 / self.macs_per_s
        energy = Energy(layer.bitops * self.mac_pj_per_bit2, 0.0, moved * self.dram_pj_per_bit, 0.0)
        return LayerCost(max(compute_s, moved / self.dram_bits_per_s), energy)


def network(n_layers: int = 3) -> Workload:
    return Workload.sequential("toy", [Layer.linear(f"fc{i}", 16 + 4 * i, 20 + 4 * i) for i in range(n_layers)])


@dataclass(frozen=True)
class RoundingError:
    """Error falls with bits, by a different weight for each choice, so there is one best way to spend bits."""

    space: BitwidthSpace
    seconds: float = 0.0

    def __call__(self, arch: Arch) -> dict[str, float]:
        time.sleep(self.seconds)
        bits = self.space.decode(arch).values()
        return {"error": sum((1 + 5 * (i % 3 == 0)) * 4.0**-b for i, b in enumerate(bits)) / len(arch)}


def problem(limit: float | None = 0.5, n_layers: int = 3, seconds: float = 0.0, **kwargs) -> Problem:
    """``limit`` is the share of the energy at 8 bits."""
    space = BitwidthSpace(network(n_layers), (2, 4, 8))
    free = Problem(space, RoundingError(space, seconds), Roofline(), **kwargs)
    if limit is None:
        return free
    return Problem(
        space, free.accuracy, free.hardware, {"energy_j": limit * free.price(space.uniform(8)).energy_j}, **kwargs
    )
