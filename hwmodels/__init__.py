"""What does this network cost on that chip? Latency, energy and area, layer by layer.

Names are loaded when they are first used, so that importing the package loads neither numba nor torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hwmodels import bitfusion, mac_array
from hwmodels.bitfusion import BitFusion, BitFusionEnergies
from hwmodels.cost import (
    CostReport,
    Energy,
    HardwareModel,
    InfeasibleLayer,
    LayerCost,
    UnsupportedLayer,
    estimate,
    residency,
)
from hwmodels.lookup import LookupTable, Measurement
from hwmodels.mac_array import MacArray
from hwmodels.workload import Layer, Tensor, Workload

if TYPE_CHECKING:
    from hwmodels import technology

#: Chips by name. Adding one is a line here.
HARDWARE: dict[str, Callable[[], HardwareModel]] = {
    "bitfusion": bitfusion.bf_e,
    "bitfusion-s": bitfusion.bf_s,
    "bitfusion-8x8": bitfusion.bf_8x8,
    "bitfusion-x2": partial(bitfusion.bf_e_scaled, 2),
    "bitfusion-x4": partial(bitfusion.bf_e_scaled, 4),
    "bitfusion-x8": partial(bitfusion.bf_e_scaled, 8),
    "bitfusion-16bit": bitfusion.bf_e_16bit,
    "bitfusion-low-bandwidth": bitfusion.bf_e_low_bandwidth,
    "bitfusion-few-units": bitfusion.bf_e_few_units,
    "int2-array": partial(mac_array.int_array, 2),
    "int4-array": partial(mac_array.int_array, 4),
    "int8-array": partial(mac_array.int_array, 8),
    "int16-array": partial(mac_array.int_array, 16),
    "fp16-array": partial(mac_array.fp_array, 16),
    "fp32-array": partial(mac_array.fp_array, 32),
    "int8-systolic": mac_array.int8_systolic,
    "stripes": mac_array.stripes,
    "loom": mac_array.loom,
}

__all__ = [
    "HARDWARE",
    "BitFusion",
    "BitFusionEnergies",
    "CostReport",
    "Energy",
    "HardwareModel",
    "InfeasibleLayer",
    "Layer",
    "LayerCost",
    "LookupTable",
    "MacArray",
    "Measurement",
    "Tensor",
    "UnsupportedLayer",
    "Workload",
    "estimate",
    "networks",
    "residency",
    "technology",
]


def __getattr__(name: str) -> Any:
    if name in ("networks", "technology"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
