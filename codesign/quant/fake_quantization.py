"""Values rounded to a uniform grid, and gradients through the rounding: one quantizer, or a mixture of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from codesign.quant import kernels


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
    return _FakeQuantize.apply(x, step, Levels(low, high, offset, clipped_only), gradient_scale)


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
    return _MixQuantized.apply(x, mixture, tuple(levels), scales, *steps)


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


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, levels: Levels, scale: float) -> Tensor:
        ctx.fast = _on_kernels(x)
        x = _dense(x, step) if ctx.fast else x
        ctx.save_for_backward(x, step)
        ctx.levels, ctx.scale = levels, scale
        if not ctx.fast:
            return (_level(_scaled(x, step), levels) * _spread(step, x)).to(x.dtype)
        y, rows = torch.empty_like(x), step.numel()
        kernels.quantize(_rows(x, rows), _rows(y, rows), *_arguments([step], [levels]))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, step = ctx.saved_tensors
        if not ctx.fast:
            u = _scaled(x, step)
            inside = _inside(u, ctx.levels)
            by_step = _sum_rows(g * _by_step(u, inside, ctx.levels), step)
            return g * inside, by_step * step.sign() * ctx.scale, None, None
        by_x, rows, sums = torch.empty_like(x), step.numel(), np.empty((1, step.numel()))
        arguments = _arguments([step], [ctx.levels])
        kernels.quantize_backward(_rows(x, rows), _rows(_like(g, x), rows), _rows(by_x, rows), *arguments, sums)
        return by_x, torch.from_numpy(sums[0]).to(step).view_as(step) * step.sign() * ctx.scale, None, None


class _MixQuantized(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mixture: Tensor, levels: tuple[Levels, ...], scales: tuple[float, ...], *steps: Tensor
    ) -> Tensor:
        ctx.fast = _on_kernels(x)
        x = _dense(x, steps[0]) if ctx.fast else x
        ctx.save_for_backward(x, mixture, *steps)
        ctx.levels, ctx.scales = levels, scales
        if not ctx.fast:
            each = [_level(_scaled(x, s), b) * _spread(s, x) for s, b in zip(steps, levels, strict=True)]
            return sum((m * y for m, y in zip(mixture, each, strict=True)), torch.zeros_like(each[0])).to(x.dtype)
        y, rows = torch.empty_like(x), steps[0].numel()
        kernels.mix(_rows(x, rows), _rows(y, rows), *_arguments(steps, levels), _numpy(mixture))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, mixture, *steps = ctx.saved_tensors
        by_x = (
            torch.empty_like(x) if ctx.fast else torch.zeros_like(x, dtype=torch.promote_types(x.dtype, mixture.dtype))
        )
        if ctx.fast:
            rows = steps[0].numel()
            sums, products = np.empty((len(steps), rows)), np.empty((len(steps), rows))
            kernels.mix_backward(
                _rows(x, rows), _rows(_like(g, x), rows), _rows(by_x, rows), *_arguments(steps, ctx.levels),
                _numpy(mixture), sums, products,
            )  # fmt: skip
            by_mixture = torch.from_numpy(products.sum(axis=1)).to(mixture)
            by_steps = [torch.from_numpy(row).to(step).view_as(step) for row, step in zip(sums, steps, strict=True)]
        else:
            by_mixture, by_steps = torch.zeros_like(mixture), []
            for q, (step, levels) in enumerate(zip(steps, ctx.levels, strict=True)):
                u = _scaled(x, step)
                inside = _inside(u, levels)
                by_x += mixture[q] * (g * inside)
                by_mixture[q] = (g * _level(u, levels) * _spread(step, x)).sum()
                by_steps.append(mixture[q] * _sum_rows(g * _by_step(u, inside, levels), step))
        by_steps = [by * s.sign() * scale for by, s, scale in zip(by_steps, steps, ctx.scales, strict=True)]
        return by_x.to(x.dtype), by_mixture, None, None, *by_steps


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


def _by_step(u: Tensor, inside: Tensor, levels: Levels) -> Tensor:
    """The derivative of what is written by the step."""
    level = _level(u, levels)
    return torch.where(inside, torch.zeros_like(u) if levels.clipped_only else level - u, level)


def _sum_rows(values: Tensor, step: Tensor) -> Tensor:
    return (values.reshape(len(step), -1).sum(1) if step.dim() else values.sum()).to(step.dtype)


# --- in the kernels ---------------------------------------------------------------------------------------------------


def _on_kernels(x: Tensor) -> bool:
    """Whether the kernels take a tensor: single precision, in this machine's memory, and nobody is tracing."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and not traced(x)


def _dense(x: Tensor, step: Tensor) -> Tensor:
    """The tensor without gaps in memory and, where each row has a step, row after row."""
    x = x.detach()
    dense = torch.ops.aten.is_non_overlapping_and_dense(x)
    if dense and step.dim() and len(x):
        dense = len(x) == 1 or x.stride(0) == x.numel() // len(x)
    return x if dense else x.contiguous()


def _like(g: Tensor, x: Tensor) -> Tensor:
    """The gradient in the memory format of ``x``."""
    return g if g.stride() == x.stride() else torch.empty_like(x).copy_(g)


def _rows(x: Tensor, rows: int) -> Any:
    """A dense tensor as it lies in memory, as an array of rows."""
    return x.detach().as_strided((rows, x.numel() // rows), (x.numel() // rows, 1)).numpy()


def _numpy(x: Tensor) -> Any:
    return x.detach().to(torch.float32).numpy()


def _arguments(steps: Sequence[Tensor], levels: Sequence[Levels]) -> tuple[Any, ...]:
    """Steps and grids as the kernels take them."""
    magnitudes = np.abs(np.stack([_numpy(step).reshape(-1) for step in steps]))
    return magnitudes, np.array([each.grid for each in levels], np.float32)
