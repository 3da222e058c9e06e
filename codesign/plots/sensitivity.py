"""What each layer of a network loses at fewer bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from codesign.plots.axes import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from codesign.sensitivity import Sensitivities

#: Increases below this, in nats, have one colour.
LEAST = 1e-4


def plot_sensitivity(found: Sensitivities, ax: Axes | None = None) -> Axes:
    """The increase of the loss by layer: weights at each bitwidth above, inputs below, the other operand at the widest.

    Parameters
    ----------
    found : Sensitivities
    ax : Axes, optional
    """
    from matplotlib.colors import LogNorm

    n = len(found.layers)
    ax = axes_of(ax, (max(5.5, 2.0 + 0.26 * n), 1.6 + 0.24 * 2 * (len(found.bits) - 1)))
    fewer = list(range(len(found.bits) - 1))
    rows = [found.increase[:, i, -1] for i in fewer]
    names = [f"weights {found.bits[i]}" for i in fewer]
    if found.increase.shape[2] > 1:
        rows += [found.increase[:, -1, i] for i in fewer]
        names += [f"inputs {found.bits[i]}" for i in fewer]
    values = np.maximum(np.array(rows), LEAST)
    image = ax.imshow(values, aspect="auto", cmap="magma_r", norm=LogNorm(LEAST, max(values.max(), 10 * LEAST)))
    ax.grid(False)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_xticks(range(n), found.layers, rotation=90, fontsize=7)
    if len(names) > len(fewer):
        ax.axhline(len(fewer) - 0.5, color="white", linewidth=2)
    ax.figure.colorbar(image, ax=ax, label="loss increase (nats)", pad=0.02)
    ax.set_title(f"one layer at fewer bits, all others at {found.bits[-1]}", fontsize=10)
    return ax
