"""What all plots share: colours, axes, and the marks of limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Told apart with every kind of colour vision: Okabe and Ito, "Color universal design", 2008.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "*")
GREY = "#666666"


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes given, or those of a figure of a size in inches, without clutter."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=size, layout="constrained")
    tidy(ax)
    return ax


def tidy(ax: Axes) -> None:
    """Leave two spines and a faint grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#e6e6e6", linewidth=0.7)
    ax.set_axisbelow(True)


#: Limits on one metric, by its name.
Limits = Mapping[str, "float | Sequence[float]"]


def draw_limits(ax: Axes, limits: Limits, x: str, y: str, scale_x: float, scale_y: float) -> None:
    """Dashed lines at the limits on two metrics; of several on one metric the last is labelled for all."""
    style = {"color": "#B22222", "linestyle": "--", "linewidth": 1.2, "zorder": 1}
    place = {"textcoords": "offset points", "va": "bottom", "color": style["color"], "fontsize": 8}
    for metric, scale, line in ((x, scale_x, ax.axvline), (y, scale_y, ax.axhline)):
        values = sorted({float(value) for value in np.atleast_1d(limits.get(metric, ()))})
        for value in values:
            line(scale * value, **{**style, "linewidth": 1.2 if len(values) == 1 else 0.8})
        word = "limit" if len(values) == 1 else "limits"
        if values and line == ax.axvline:
            at = (scale * values[-1], 0), ("data", "axes fraction")
            ax.annotate(word, at[0], xycoords=at[1], xytext=(4, 4), ha="left", **place)
        elif values:
            at = (1, scale * values[-1]), ("axes fraction", "data")
            ax.annotate(word, at[0], xycoords=at[1], xytext=(-3, 3), ha="right", **place)


def short_names(names: Sequence[str], longest: int = 18) -> list[str]:
    """Layer names without a first part that nearly all share, and cut in front where they are still too long.

    Examples
    --------
    >>> short_names(["net.features.0", "net.features.1.conv", "net.head"])
    ['features.0', 'features.1.conv', 'head']
    """
    names = list(names)
    while True:
        first = [name.partition(".")[0] for name in names]
        common = max(first, key=first.count)
        shorter = [name.removeprefix(f"{common}.") for name in names]
        if shorter == names or first.count(common) < 0.8 * len(names) or len(set(shorter)) < len(names):
            break
        names = shorter
    return [name if len(name) <= longest else "…" + name[-(longest - 1) :] for name in names]


def name_layers(ax: Axes, names: Sequence[str]) -> None:
    """Name the places of bars after layers."""
    ax.set_xticks(range(len(names)), short_names(names), rotation=90, fontsize=7 if len(names) > 30 else 8)
    ax.set_xlim(-0.8, len(names) - 0.2)
    ax.grid(False, axis="x")
