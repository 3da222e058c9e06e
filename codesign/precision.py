"""Mixed-precision training: the arithmetic of the forward pass, and the scale that keeps small gradients."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Steps in a row without a finite gradient after which no scale will help.
MOST_SKIPPED = 50


@dataclass(frozen=True)
class Precision:
    """The arithmetic of training.

    Parameters
    ----------
    dtype : {"float32", "bfloat16", "float16"}
        Of convolutions and matrix products. Weights, their gradients and updates, the sums of BatchNorm, the softmax
        and the loss are float32.
    loss_scale : float, optional
        A power of two that the loss is multiplied by before, and gradients divided by after, the backward pass, so
        that small gradients do not vanish in float16. None: found by itself for float16; 1 for the others, which
        have the range of float32 and need none.
    first_scale : float
        Where a scale that is found by itself begins.
    growth_interval : int
        Steps in a row with finite gradients after which such a scale is doubled; without, it is halved at once.

    Raises
    ------
    ValueError
        For an unknown type, or a scale that is not a power of two.

    References
    ----------
    Micikevicius et al., "Mixed precision training", ICLR 2018, sections 3.1 and 3.2.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    loss_scale: float | None = None
    first_scale: float = 2.0**16
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"Precision: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        for name in ("loss_scale", "first_scale"):
            scale = getattr(self, name)
            if scale is not None and not (0 < scale < math.inf and math.frexp(scale)[0] == 0.5):
                raise ValueError(f"Precision: {name} must be a power of two, which rounds nothing, got {scale}.")
        if self.growth_interval < 1:
            raise ValueError(f"Precision: growth_interval must be at least 1, got {self.growth_interval}.")

    def autocast(self, device: torch.device | str) -> contextlib.AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(device).type, dtype=DTYPES[self.dtype])

    def scaler(self) -> LossScaler:
        """The scale at the start of a training."""
        return LossScaler(self)


def wide(x: Tensor) -> Tensor:
    """A tensor in float32, or as it is where it is wider: what a loss is computed of."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class LossScaler:
    """The loss scale of a training on its way, and the optimiser's steps under it.

    Parameters
    ----------
    precision : Precision

    Attributes
    ----------
    scale : float
    finite_steps : int
        Steps in a row with finite gradients since the scale last changed.
    skipped_steps : int
        Steps that were left out for gradients with inf or nan.
    skipped_in_a_row : int

    Notes
    -----
    ``torch.amp.GradScaler`` changes its scale in the same way. It has no fixed scale, and does not say which steps it
    skipped, nor end where all are.
    """

    def __init__(self, precision: Precision) -> None:
        self.dynamic = precision.loss_scale is None and precision.dtype == "float16"
        self.scale = float(precision.first_scale if self.dynamic else precision.loss_scale or 1.0)
        self.growth_interval = precision.growth_interval
        #: Whether a step without finite gradients is left out; in float32 such a step is an error of the training.
        self.skips = precision.dtype == "float16" or self.scale != 1
        self.finite_steps = self.skipped_steps = self.skipped_in_a_row = 0

    def backward(self, loss: Tensor) -> None:
        """Add the scaled gradients of a loss."""
        (loss * self.scale if self.scale != 1 else loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, clip_norm: float | None = None) -> bool:
        """Unscale the gradients, clip them, and make a step unless they have an inf or a nan.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
        clip_norm : float, optional
            Largest norm of all gradients together; larger ones are shortened to it.

        Returns
        -------
        bool
            Whether the step was made.

        Raises
        ------
        FloatingPointError
            Where gradients are not finite and there is no scale to lower, or `MOST_SKIPPED` times in a row. Weights
            are as they were.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.scale != 1:
            torch._foreach_mul_(gradients, 1 / self.scale)
        if self.skips or clip_norm is not None:
            norm = _clipped_norm(optimizer, math.inf if clip_norm is None else clip_norm)
            if not math.isfinite(norm):
                return self.accepts(norm)
        optimizer.step()
        return self.accepts(0.0)

    def accepts(self, norm: float) -> bool:
        """Whether a step is to be made whose gradient has a norm; the scale follows.

        Raises
        ------
        FloatingPointError
            As by `step`.
        """
        if not math.isfinite(norm):
            self._skip(norm)
            return False
        self.finite_steps, self.skipped_in_a_row = self.finite_steps + 1, 0
        if self.dynamic and self.finite_steps == self.growth_interval:
            self.scale, self.finite_steps = self.scale * 2, 0
        return True

    def _skip(self, norm: float) -> None:
        self.finite_steps, self.skipped_steps = 0, self.skipped_steps + 1
        self.skipped_in_a_row += 1
        if not self.skips or self.skipped_in_a_row >= MOST_SKIPPED:
            raise FloatingPointError(
                f"the norm of the gradients must be finite, but is {norm}"
                + (f" for {MOST_SKIPPED} steps in a row, at a loss scale of {self.scale:g}" if self.skips else "")
            )
        if self.dynamic:
            self.scale /= 2

    def state(self) -> dict[str, float | int]:
        """What later steps depend on, as plain numbers."""
        return {name: getattr(self, name) for name in _STATE}

    def load(self, state: dict[str, float | int]) -> None:
        """Go on from a state."""
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("scale", "finite_steps", "skipped_steps", "skipped_in_a_row")


def _clipped_norm(optimizer: torch.optim.Optimizer, clip_norm: float) -> float:
    """The norm of all gradients together, before they are shortened to ``clip_norm``."""
    parameters: Iterable[nn.Parameter] = (p for group in optimizer.param_groups for p in group["params"])
    return float(nn.utils.clip_grad_norm_(parameters, clip_norm))
