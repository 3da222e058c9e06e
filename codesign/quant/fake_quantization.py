"""Values rounded to a uniform grid, and gradients through the rounding: one quantizer, or a mixture of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from codesign.quant import compiled


class Levels(NamedTuple):
    """The levels of a quantizer, in steps: ``low``, ``low`` + 1, ..., ``high``."""

    low: float
    high: float
    offset: float = 0.0  #: the levels are whole numbers plus this
    clipped_only: bool = False  #: the gradient of the step comes from clipped values alone, as in PACT

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.high - self.low) + 1

    @property
    def passing(self) -> tuple[float, float]:
        """First and last value, in steps, whose gradient passes."""
        if self.clipped_only:  # what lies at the clip is clipped, and division may round it to just inside
            return self.low * (1 - 2.0**-20), self.high * (1 - 2.0**-20)
        return self.low, self.high

    @property
    def grid(self) -> tuple[float, ...]:
        """A row of what the kernels take."""
        return (self.low, self.high, self.offset, *self.passing, 0.0 if self.clipped_only else 1.0)


def fake_quantize(
    x: Tensor,
    step: Tensor,
    low: float,
    high: float,
    offset: float = 0.0,
    clipped_only: bool = False,
    gradient_scale: float = 1.0,
) -> Tensor:
    r"""Values rounded to the nearest multiple of ``step`` from ``low * step`` to ``high * step``.

    Parameters
    ----------
    x : Tensor
    step : Tensor, shape () or (channels,)
        One for all values, or one for each channel along the first axis. Its magnitude counts.
    low, high : float
        First and last level.
    offset : float
        Levels are whole numbers plus this; so must ``low`` and ``high`` be.
    clipped_only : bool
        The gradient of the step comes from clipped values alone, and values at the clip are clipped: PACT.
    gradient_scale : float
        Factor on the gradient of the step.

    Returns
    -------
    Tensor
        In the memory format of ``x``.

    Notes
    -----
    With :math:`u = x / s`, :math:`y = s \cdot \mathrm{clip}(\mathrm{round}(u), l, h)`. Rounding has the gradient of
    the identity (straight through), so

    .. math::
        \partial y / \partial x = [l \le u \le h], \qquad
        \partial y / \partial s = \mathrm{round}(u) - u \text{ inside}, \; l \text{ below}, \; h \text{ above}.

    Only ``x`` is kept for the backward pass.

    References
    ----------
    Bengio, Leonard and Courville, arXiv:1308.3432, 2013 (straight through); Esser et al., "Learned step size
    quantization", ICLR 2020, equations 1 to 3 and 5.
    """
    return _Quantize.apply(x, None, (Levels(low, high, offset, clipped_only),), (gradient_scale,), step)


def mix_quantized(
    x: Tensor,
    steps: Sequence[Tensor],
    levels: Sequence[Levels],
    mixture: Tensor,
    gradient_scales: Sequence[float] | None = None,
) -> Tensor:
    r"""The sum over quantizers of ``mixture[q] * fake_quantize(x, steps[q], *levels[q])``, in one pass.

    Parameters
    ----------
    x : Tensor
    steps : sequence of Tensor, each of shape () or all of shape (channels,)
    levels : sequence of Levels
    mixture : Tensor, shape (n_quantizers,)
    gradient_scales : sequence of float, optional
        As in `fake_quantize`, one for each step.

    Notes
    -----
    With :math:`q_b` the quantizers, :math:`y = \sum_b m_b q_b(x)`, so
    :math:`\partial y / \partial x = \sum_b m_b \partial q_b / \partial x`,
    :math:`\partial y / \partial s_b = m_b \partial q_b / \partial s_b` and
    :math:`\partial y / \partial m_b = q_b(x)`. Only ``x`` is kept for the backward pass, whatever the number of
    quantizers.
    """
    scales = tuple(gradient_scales) if gradient_scales is not None else (1.0,) * len(levels)
    return _Quantize.apply(x, mixture, tuple(levels), scales, *steps)


def nearest_level(x: Tensor, step: Tensor, levels: Levels) -> Tensor:
    """The level that `fake_quantize` rounds each value to; shape of ``x``."""
    return _level(_scaled(x, step), levels)


def traced(x: Tensor) -> bool:
    """Whether a tensor has no data to look at, or its operators are being recorded."""
    plain = type(x) in (Tensor, nn.Parameter) and x.device.type != "meta"
    return not plain or _get_current_dispatch_mode() is not None or torch.compiler.is_compiling()


def step_gradient_scale(x: Tensor, step: Tensor, high: float) -> float:
    r"""The factor :math:`1 / \sqrt{n h}` on a step's gradient: values that share the step, and the last level.

    References
    ----------
    Esser et al., "Learned step size quantization", ICLR 2020, section 2.2.
    """
    return 1 / math.sqrt(max(x.numel() // step.numel(), 1) * max(high, 1.0))


class _Quantize(torch.autograd.Function):
    """One quantizer, where there is no mixture, or a mixture of several."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mixture: Tensor | None,
        levels: tuple[Levels, ...],
        scales: tuple[float, ...],
        *steps: Tensor,
    ) -> Tensor:
        ctx.levels, ctx.scales = levels, scales
        ctx.compiled = x.dtype == torch.float32 and x.device.type == "cpu" and not traced(x)
        if not ctx.compiled:
            ctx.save_for_backward(x, mixture, *steps)
            parts = [_level(_scaled(x, s), each) * _spread(s, x) for s, each in zip(steps, levels, strict=True)]
            return (parts[0] if mixture is None else _weighted_sum(mixture, parts)).to(x.dtype)
        ctx.steps = np.stack([_array(step).reshape(-1) for step in steps], axis=1)
        ctx.shapes, ctx.types = [step.shape for step in steps], [step.dtype for step in steps]
        ctx.mixture = None if mixture is None else _array(mixture).copy()
        x = compiled.dense(x, len(ctx.steps))
        ctx.save_for_backward(x)
        return compiled.quantized(x, np.abs(ctx.steps), _grids(levels), ctx.mixture)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _compiled_gradients if ctx.compiled else _gradients
        # A second derivative is refused, which takes time and is of use only where one could be asked for.
        return once_differentiable(gradients)(ctx, g) if torch.is_grad_enabled() else gradients(ctx, g)


def _compiled_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    (x,), steps, mixture = ctx.saved_tensors, ctx.steps, ctx.mixture
    by_x, by_step, by_mixture = compiled.gradients(x, g, np.abs(steps), _grids(ctx.levels), mixture)
    by_step *= np.sign(steps) * ctx.scales
    by_steps = [
        torch.from_numpy(by_step[:, q].reshape(shape)).to(dtype)
        for q, (shape, dtype) in enumerate(zip(ctx.shapes, ctx.types, strict=True))
    ]
    return by_x, None if mixture is None else torch.from_numpy(by_mixture).to(torch.float32), None, None, *by_steps


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, mixture, *steps = ctx.saved_tensors
    by_x, by_mixture, by_steps = [], [], []
    for step, levels, scale in zip(steps, ctx.levels, ctx.scales, strict=True):
        u = _scaled(x, step)
        level, inside = _level(u, levels), _inside(u, levels)
        within = torch.zeros_like(u) if levels.clipped_only else level - u
        by_x.append(g * inside)
        by_steps.append(_sum_rows(g * torch.where(inside, within, level), step) * step.sign() * scale)
        if mixture is not None:
            by_mixture.append((g * level * _spread(step, x)).sum())
    if mixture is None:
        return by_x[0], None, None, None, *by_steps
    by_steps = [m * by_step for m, by_step in zip(mixture, by_steps, strict=True)]
    return _weighted_sum(mixture, by_x).to(x.dtype), torch.stack(by_mixture).to(mixture), None, None, *by_steps


def _array(x: Tensor) -> Any:
    return x.detach().float().numpy()


@lru_cache(maxsize=1024)
def _grids(levels: tuple[Levels, ...]) -> Any:
    """As the kernels take them."""
    return np.array([each.grid for each in levels], np.float32)


# --- in torch's operators: any device and type, and while a module is traced ------------------------------------------


def _scaled(x: Tensor, step: Tensor) -> Tensor:
    """``x`` in steps, in single precision or more."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) / _spread(step, x)


def _spread(step: Tensor, x: Tensor) -> Tensor:
    step = step.abs()
    return step.view(-1, *(1,) * (x.dim() - 1)) if step.dim() else step


def _level(u: Tensor, levels: Levels) -> Tensor:
    if levels.offset:
        return (u - levels.offset).round_().add_(levels.offset).clamp_(levels.low, levels.high)
    return u.round().clamp_(levels.low, levels.high)


def _inside(u: Tensor, levels: Levels) -> Tensor:
    first, last = levels.passing
    return (u >= first) & (u <= last)


def _sum_rows(values: Tensor, step: Tensor) -> Tensor:
    return (values.reshape(len(step), -1).sum(1) if step.dim() else values.sum()).to(step.dtype)


def _weighted_sum(weights: Tensor, parts: list[Tensor]) -> Tensor:
    total = weights[0] * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total += weight * part
    return total
