"""Limits as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from codesign.chip_space import ChipSpace
from codesign.problem import AT_LEAST, Problem
from hwmodels.cost import InfeasibleLayer, estimate

#: What one of a unit is in the unit of a metric.
UNITS: dict[str, dict[str, float]] = {
    "latency_s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "energy_j": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "nJ": 1e-9, "pJ": 1e-12},
    "edp_js": {"Js": 1.0},
    "area_mm2": {"mm2": 1.0},
    "weight_bytes": {"B": 1.0, "kB": 1e3, "MB": 1e6, "KiB": 2.0**10, "MiB": 2.0**20, "bit": 0.125},
}
_VALUE = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:inf|nan)) ?([A-Za-z]\w*|%)?", re.ASCII)


def parse_limits(
    texts: Iterable[str], problem: Problem, reference_arch: Sequence[int] | None = None
) -> dict[str, float]:
    """Limits from texts such as ``energy_j=0.4x``, ``latency_s=2ms`` and ``area_mm2=3``.

    Parameters
    ----------
    texts : iterable of str
        ``metric=number``, with a unit (`UNITS`) where it is not that of the metric's name. With ``x`` for a unit the
        number is a factor on what the reference has of the metric, with ``%`` the share of the way from the cheapest
        that any candidate has (`cheapest`) to the reference.
    problem : Problem
        What the limits are for; its own limits do not matter.
    reference_arch : sequence of int, optional
        None: what the space of networks gives as its ``reference``, if it does. Where the chip is chosen too, the
        arch of a network alone is priced on the chip as it was given.

    Returns
    -------
    dict
        By metric, as `Problem` takes them.

    Raises
    ------
    ValueError
        For a text of another form, a metric that the chip does not give or that comes twice, an unknown unit, a number
        that is not positive, or a factor where there is no reference.

    Examples
    --------
    >>> from codesign.nets.mobilenetv2 import Block, MobileNetV2Space
    >>> from hwmodels import BitFusion
    >>> space = MobileNetV2Space.preset("tiny")
    >>> free = Problem(space, None, BitFusion())
    >>> parse_limits(["latency_s=2ms", "macs=1x"], free, space.uniform(Block(6, 3, 1, 8, 8)))
    {'latency_s': 0.002, 'macs': 133696.0}
    """
    limits: dict[str, float] = {}
    reference: dict[str, float] = {}
    for text in texts:
        name, equals, written = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise ValueError(
                f"Limit {text!r}: it must be metric=value, such as energy_j=0.4x, energy_j=60% or latency_s=2ms."
            )
        if name not in problem.metrics:
            near = get_close_matches(name, problem.metrics, n=1)
            raise ValueError(
                f"Limit {text!r}: the metric must be one that {type(problem.hardware).__name__} gives, got {name!r}; "
                f"known are {', '.join(problem.metrics)}{f'. Did you mean {near[0]}?' if near else '.'}"
            )
        if name in limits:
            raise ValueError(f"Limit {text!r}: a metric must have one limit, but {name} has one already.")
        match = _VALUE.fullmatch(written)
        if not match:
            raise ValueError(f"Limit {text!r}: the value must be a number, with a unit or x after it, got {written!r}.")
        number, unit = float(match[1]), match[2]
        if not (number > 0 or (number == 0 and unit == "%")) or not math.isfinite(number):  # 0% is the cheapest
            raise ValueError(f"Limit {text!r}: the value must be a positive number, got {match[1]}.")
        if unit == "x":
            reference = reference or _reference_metrics(text, problem, reference_arch)
            limits[name] = number * reference[name]
        elif unit == "%":
            reference = reference or _reference_metrics(text, problem, reference_arch)
            end = cheapest(problem, name)
            limits[name] = end + number / 100 * (reference[name] - end)
        elif unit is None or unit in UNITS.get(name, {}):
            limits[name] = number * (UNITS[name][unit] if unit else 1.0)
        else:
            known = ", ".join(
                ["x, a factor on the reference", "%, from the cheapest to the reference", *UNITS.get(name, {})]
            )
            raise ValueError(f"Limit {text!r}: the unit must be one of {name}, got {unit!r}; known are {known}.")
    return limits


def cheapest(problem: Problem, metric: str) -> float:
    """The end of a metric's range that takes least of the chip: the highest one where more of it is better."""
    reach = problem.reachable(metric)
    return reach.high if metric in AT_LEAST else reach.low


def _reference_metrics(text: str, problem: Problem, arch: Sequence[int] | None) -> dict[str, float]:
    """Metrics of the reference; where the chip is chosen too and the arch is of a network alone, on the chip given."""
    space = problem.space
    if isinstance(space, ChipSpace) and (arch is None or len(arch) == len(space.network_space.choices)):
        space = space.network_space
    arch = getattr(space, "reference", None) if arch is None else arch
    if arch is None:
        raise ValueError(
            f"Limit {text!r}: a factor needs a network to refer to, but {type(space).__name__} names none; "
            "give a value with a unit."
        )
    arch = space.check(arch)
    try:
        return estimate(space.workload(arch), space.hardware(arch, problem.hardware)).metrics()
    except InfeasibleLayer as error:
        raise ValueError(
            f"Limit {text!r}: a factor needs a reference that the chip can run, but it cannot ({error}); "
            "give a value with a unit, or a chip with larger buffers."
        ) from None
