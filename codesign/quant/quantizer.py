"""What every quantizer is: a module that rounds one tensor to a uniform grid, at one bitwidth."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from codesign.quant.calibration import Method, fitted_step
from codesign.quant.fake_quantization import Levels, fake_quantize, nearest_level, traced

#: The widest grid: float32 holds its levels and the middles between them exactly. 32 bits are floating point.
MAX_BITS = 16
FLOAT_BITS = 32


class Integers(NamedTuple):
    """A quantized tensor as hardware holds it: it is ``step * (values + offset)``."""

    values: Tensor  #: int64
    step: Tensor  #: shape () or (channels,), of the first axis
    offset: float  #: 0, or 1/2 for grids without a zero


class Quantizer(nn.Module):
    """Base of quantizers.

    Parameters
    ----------
    bits : int
        1 to 16; `FloatQuantizer` for 32.
    channels : int, optional
        One step for each channel along the first axis of the tensor, as of a weight; else one step for all values.

    Attributes
    ----------
    step : Tensor, shape () or (channels,)
        Distance of neighbouring levels.
    low, high, offset : float
        Levels as in `fake_quantize`. The buffer ``signed`` keeps them in a state dict.

    Raises
    ------
    ValueError
        For bits out of range.

    Notes
    -----
    Levels are 0 to 2^bits - 1 where the calibration data has no negative value. Else they are -2^(bits-1) to
    2^(bits-1) - 1, or, where ``symmetric``, from -(2^(bits-1) - 1). At one bit those would be two levels of which one
    is zero, or zero alone: a signed quantizer of one bit has -1/2 and 1/2 instead, so it is a scaled sign.
    """

    #: How `calibrate` fits the step unless told.
    method: ClassVar[Method] = "mse"
    #: Whether signed levels lie evenly around zero.
    symmetric: ClassVar[bool] = False
    #: Whether it rounds the tensor itself, not a function of it.
    rounds_input: ClassVar[bool] = True
    #: Whether the gradient of the step comes from clipped values alone.
    clipped_only: ClassVar[bool] = False

    signed: Tensor
    step: Tensor

    def __init__(self, bits: int, channels: int | None = None) -> None:
        super().__init__()
        if not 1 <= bits <= MAX_BITS:
            raise ValueError(
                f"{type(self).__name__}: bits must be from 1 to {MAX_BITS}, got bits={bits}. "
                f"{FLOAT_BITS} bits are floating point: FloatQuantizer."
            )
        self.bits, self.channels = bits, channels
        self.register_buffer("signed", torch.tensor(False))
        self._known_finite = False
        self._use_levels(signed=False)

    @property
    def levels(self) -> Levels:
        """The grid in steps."""
        return Levels(self.low, self.high, self.offset, self.clipped_only)

    def calibrate(self, values: Tensor, method: Method | None = None) -> None:
        """Choose the sign and fit the step to data.

        Parameters
        ----------
        values : Tensor
            With ``channels``, their axis first.
        method : {"minmax", "percentile", "mse", "lsq"}, optional
            See `codesign.quant.calibration`. The quantizer's own where none is given.

        Raises
        ------
        ValueError
            For no values, values that are not finite, or an unknown method.
        """
        values = values.detach()
        if values.numel() == 0 or not bool(values.isfinite().all()):
            raise ValueError(f"{type(self).__name__}: calibration data must hold finite values, and at least one.")
        self._use_levels(signed=bool(values.min() < 0))
        with torch.no_grad():
            rows = self.transformed(values).reshape(self.channels or 1, -1)
            self.use_step(fitted_step(rows, self.levels, method or self.method).view(self.channels or ()))
        self._known_finite = False

    def use_step(self, step: Tensor) -> None:
        """Take a step that was fitted to data."""
        raise NotImplementedError

    def step_for(self, x: Tensor) -> Tensor:
        """The step for a tensor; most quantizers have one for all."""
        return self.step

    def transformed(self, x: Tensor) -> Tensor:
        """What is rounded: the tensor itself, or a function of it."""
        return x

    def gradient_scale(self, x: Tensor) -> float:
        """Factor on the gradient of the step."""
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.require_calibrated(x)
        return fake_quantize(self.transformed(x), self.step_for(x), *self.levels, self.gradient_scale(x))

    @torch.no_grad()
    def integers(self, x: Tensor) -> Integers:
        """The whole numbers that stand for a tensor.

        Raises
        ------
        ValueError
            For a quantizer that is not calibrated.
        """
        self.require_calibrated(x)
        step = self.step_for(x).detach()
        level = nearest_level(self.transformed(x), step, self.levels)
        return Integers((level - self.offset).to(torch.int64), step.abs(), self.offset)

    def require_calibrated(self, x: Tensor) -> None:
        """Raise ValueError for a step that is not a number yet, once."""
        if self._known_finite or traced(x):
            return
        if not bool(self.step_for(x).isfinite().all()):
            raise ValueError(
                f"{type(self).__name__}: its step must be finite before it is used, got {self.step_for(x).tolist()}; "
                "calibrate it."
            )
        self._known_finite = True

    def _use_levels(self, signed: bool) -> None:
        self.signed.fill_(signed)
        half = 2.0 ** (self.bits - 1)
        self.low, self.high, self.offset = 0.0, 2 * half - 1, 0.0
        if signed:
            self.low, self.high = (1 - half if self.symmetric else -half), half - 1
        if signed and self.bits == 1:
            self.low, self.high, self.offset = -0.5, 0.5, 0.5

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._use_levels(bool(self.signed))
        self._known_finite = False

    def extra_repr(self) -> str:
        step = getattr(self, "step", None)  # DoReFa's follows the tensor
        step_text = "" if step is None else f", step={step.abs().min():.4g}"
        if step is not None and step.numel() > 1:
            step_text += f" to {step.abs().max():.4g}"
        return f"bits={self.bits}{step_text}, levels {self.low:g} to {self.high:g}"


class FloatQuantizer(Quantizer):
    """32 bits: values pass through as they are, so there is nothing to calibrate and no integer form."""

    rounds_input: ClassVar[bool] = False

    def __init__(self, bits: int = FLOAT_BITS, channels: int | None = None) -> None:
        nn.Module.__init__(self)
        if bits != FLOAT_BITS:
            raise ValueError(f"FloatQuantizer: bits must be {FLOAT_BITS}, got bits={bits}.")
        self.bits, self.channels = bits, channels

    def calibrate(self, values: Tensor, method: Method | None = None) -> None:
        """Nothing to do."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def integers(self, x: Tensor) -> Integers:
        """Raises ValueError: there are none."""
        raise ValueError(f"FloatQuantizer: {FLOAT_BITS} bits are floating point and have no integer form.")

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        nn.Module._load_from_state_dict(self, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
