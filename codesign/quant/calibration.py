"""The step of a uniform grid, fitted to data.

- ``"minmax"``: the smallest step that clips nothing.
- ``"percentile"``: the smallest that clips no more than one value in a thousand on either side.
- ``"mse"``: of 50 even shares of the smallest step that clips nothing, the one of least squared error.
- ``"lsq"``: twice the mean magnitude over the root of the last level (Esser et al., "Learned step size quantization",
  ICLR 2020, section 2.1).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from codesign.quant.fake_quantization import Levels, fake_quantize

Method = Literal["minmax", "percentile", "mse", "lsq"]

#: Share of the values on each side that "percentile" clips.
CLIPPED_SHARE = 1e-3
#: Steps that "mse" tries.
SHARES = 50


def fitted_step(values: Tensor, levels: Levels, method: Method) -> Tensor:
    """Steps of shape (rows,), one for each row of values.

    Parameters
    ----------
    values : Tensor, shape (rows, n)
        Finite.
    levels : Levels
    method : {"minmax", "percentile", "mse", "lsq"}

    Raises
    ------
    ValueError
        For an unknown method.
    """
    if method not in get_args(Method):
        raise ValueError(f"calibrate: method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    if method == "lsq":
        # Taken to the level at least: the paper has no grid of one positive level.
        return _positive(2 * values.abs().mean(1) / max(levels.high, 1.0) ** 0.5)
    clipped = int(CLIPPED_SHARE * values.shape[1]) if method == "percentile" else 0
    largest = values.topk(clipped + 1, dim=1).values[:, -1]
    smallest = values.topk(clipped + 1, dim=1, largest=False).values[:, -1]
    reach = [v / level for v, level in ((largest, levels.high), (smallest, levels.low)) if level]
    widest = _positive(torch.stack(reach).amax(0))
    if method != "mse":
        return widest
    best, least = widest, torch.full_like(widest, torch.inf)
    for share in range(1, SHARES + 1):
        step = widest * (share / SHARES)
        error = (fake_quantize(values, step, levels.low, levels.high, levels.offset) - values).square().mean(1)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best


def _positive(steps: Tensor) -> Tensor:
    """Of nothing but zeros any step is right."""
    return torch.where(steps > 0, steps, torch.ones_like(steps))
