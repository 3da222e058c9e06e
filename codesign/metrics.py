"""What metrics are called, their units, and whether less or more of them is better."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: What a metric is called, and its unit; a unit that takes SI prefixes begins with "*".
LABELS = {
    "error": ("error", "%"),
    "loss": ("loss", "nats"),
    "latency_s": ("latency", "*s"),
    "energy_j": ("energy", "*J"),
    "edp_js": ("energy-delay product", "*J s"),
    "frames_per_s": ("throughput", "*frames/s"),
    "area_mm2": ("area", "mm²"),
    "macs": ("multiply-accumulates", "*MAC"),
    "bitops": ("bit operations", "*BitOP"),
    "weight_bytes": ("weights", "*B"),
}
_PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}


def scaled(metric: str, values: Any) -> tuple[float, str]:
    """The factor that brings values of a metric to a readable size, and the axis label that goes with it."""
    factor, unit = in_unit(metric, values)
    name = LABELS.get(metric, (metric, ""))[0]
    return factor, f"{name} ({unit})" if unit else name


def in_unit(metric: str, values: Any) -> tuple[float, str]:
    """The factor that brings values of a metric to a readable size, and their unit then."""
    unit = LABELS.get(metric, (metric, ""))[1]
    if unit == "%":
        return 100.0, "%"
    if not unit.startswith("*"):
        return 1.0, unit
    factor, prefix = prefixed(values)
    return factor, f"{prefix}{unit[1:]}"


def prefixed(values: Any) -> tuple[float, str]:
    """The power of ten that brings values to a readable size, and the SI prefix that goes with it."""
    sizes = np.abs(np.asarray(values, dtype=float))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    exponent = 0 if not len(sizes) else int(np.clip(3 * math.floor(math.log10(sizes.max()) / 3), -12, 12))
    return 10.0**-exponent, _PREFIXES[exponent]


def quantity(metric: str, value: float, ascii: bool = True) -> str:
    """A value with its unit, for a terminal in ASCII.

    Examples
    --------
    >>> quantity("energy_j", 1.234567e-5), quantity("error", 0.0825), quantity("area_mm2", 2.5)
    ('12.35 uJ', '8.25 %', '2.5 mm2')
    """
    factor, unit = in_unit(metric, value)
    text = f"{factor * value:.4g} {unit}".strip()
    return text.replace("µ", "u").replace("²", "2") if ascii else text


def sense(metric: str) -> str:
    """Whether less of a metric is better, ``min``, or more, ``max``."""
    from codesign.problem import AT_LEAST

    return "max" if metric in AT_LEAST else "min"
