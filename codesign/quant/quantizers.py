"""The quantizers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from codesign.quant.calibration import Method
from codesign.quant.dorefa import DoReFaInputs, DoReFaWeights
from codesign.quant.pact import PACT, clip_penalty
from codesign.quant.quantizer import FLOAT_BITS, MAX_BITS, FloatQuantizer, Integers, Quantizer
from codesign.quant.uniform import LSQ, FixedQuantizer, UniformQuantizer, mixed_quantize

__all__ = [
    "FLOAT_BITS", "LSQ", "MAX_BITS", "PACT", "QUANTIZERS", "DoReFaInputs", "DoReFaWeights", "FixedQuantizer",
    "FloatQuantizer", "Integers", "Make", "Method", "Pair", "Quantizer", "UniformQuantizer", "clip_penalty",
    "make_quantizer", "mixed_quantize",
]  # fmt: skip

#: What makes a quantizer: a subclass of `Quantizer`, or a function of bits and channels.
Make = Callable[[int, "int | None"], Quantizer]


class Pair(NamedTuple):
    """What quantizes weights and what quantizes the inputs of layers."""

    weight: Make
    input: Make


#: By the names that `codesign.quant.quantize` takes.
QUANTIZERS: dict[str, Pair] = {
    "uniform": Pair(UniformQuantizer, UniformQuantizer),
    "fixed": Pair(FixedQuantizer, FixedQuantizer),
    "lsq": Pair(LSQ, LSQ),
    "pact": Pair(PACT, PACT),
    "dorefa": Pair(DoReFaWeights, DoReFaInputs),
}


def make_quantizer(kind: str | Make, operand: str, bits: int, channels: int | None = None) -> Quantizer:
    """A quantizer, to be calibrated.

    Parameters
    ----------
    kind : str or callable
        A name in `QUANTIZERS`, or what makes one of bits and channels.
    operand : {"weight", "input"}
    bits : int
        1 to 16, or 32: values pass through in float.
    channels : int, optional
        One step for each channel.

    Raises
    ------
    ValueError
        For an unknown name or bits out of range.
    """
    if isinstance(kind, str) and kind not in QUANTIZERS:
        raise ValueError(f"quantize: the {operand} quantizer must be one of {', '.join(QUANTIZERS)}, got {kind!r}.")
    if bits == FLOAT_BITS:
        return FloatQuantizer(bits, channels)
    make: Make = getattr(QUANTIZERS[kind], operand) if isinstance(kind, str) else kind
    return make(bits, channels)
