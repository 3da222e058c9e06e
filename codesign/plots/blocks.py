"""The blocks of a searched network: shape and bitwidths of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codesign.plots.axes import GREY, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Rows of the table, and what they are called.
ROWS = {
    "weight_bits": "weight bits",
    "input_bits": "input bits",
    "expansion": "expansion",
    "kernel_size": "kernel",
    "skip": "skip",
}


def plot_blocks(
    blocks: Mapping[str, Any],
    shapes: Sequence[Any] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Expansion, kernel, skip and bitwidths of each block as a table, larger values darker.

    Parameters
    ----------
    blocks : mapping
        What ``space.decode(arch)`` gives; what is no block, such as a field of a chip, is left out.
    shapes : sequence of BlockShape, optional
        ``space.block_shapes``: output channels and stride are then written below.
    title : str, optional
    ax : Axes, optional

    Raises
    ------
    ValueError
        Where there is no block.
    """
    from matplotlib import colormaps

    chosen = [block for block in blocks.values() if all(hasattr(block, name) for name in ROWS)]
    if not chosen:
        raise ValueError(f"plot_blocks: there must be blocks, got {', '.join(map(str, blocks)) or 'none'}.")
    values = np.array([[float(getattr(block, name)) for block in chosen] for name in ROWS])
    height = len(ROWS) + (2 if shapes else 0)
    ax = axes_of(ax, (1.2 + 0.36 * max(len(chosen), 8), 0.9 + 0.3 * height))
    tops = values.max(axis=1, keepdims=True)
    shade = 0.08 + 0.72 * values / np.where(tops > 0, tops, 1)
    shade[list(ROWS).index("skip")] = 0.0
    ax.imshow(colormaps["Blues"](shade), aspect="auto", extent=(-0.5, len(chosen) - 0.5, len(ROWS) - 0.5, -0.5))
    for row, name in enumerate(ROWS):
        for i, value in enumerate(values[row]):
            text = ("–", "●")[int(value)] if name == "skip" else f"{value:g}"
            ax.text(
                i, row, text, ha="center", va="center", fontsize=8, color="white" if shade[row, i] > 0.5 else "black"
            )
    labels = [*ROWS.values()]
    if shapes:
        for i, shape in enumerate(shapes):
            for row, value in enumerate((shape.out_channels, shape.stride), len(ROWS)):
                ax.text(i, row, str(value), ha="center", va="center", fontsize=7, color=GREY)
        labels += ["channels", "stride"]
    ax.set_xticks(np.arange(len(chosen) - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(ROWS)) + 0.5, minor=True)
    ax.grid(False)
    ax.grid(True, which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.set_xticks(range(len(chosen)), range(len(chosen)), fontsize=8)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.set_ylim(height - 0.5, -0.5)
    ax.set_xlabel("block", fontsize=9)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title, fontsize=9)
    return ax
