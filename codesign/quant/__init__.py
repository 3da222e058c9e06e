"""Quantizers, quantized layers, calibration, integer execution."""

from codesign.quant.convert import (
    calibrate,
    quantize,
    quantized_layers,
    set_bits,
)
from codesign.quant.fake_quantization import Levels, fake_quantize
from codesign.quant.layers import QuantConv2d, QuantizedLayer, QuantLinear
from codesign.quant.norm_statistics import (
    match_batchnorm,
    norm_references,
    recalibrate_batchnorm,
    unfold_batchnorm,
)
from codesign.quant.quantizers import (
    LSQ,
    PACT,
    QUANTIZERS,
    DoReFaInputs,
    DoReFaWeights,
    FixedQuantizer,
    FloatQuantizer,
    Integers,
    Quantizer,
    UniformQuantizer,
    clip_penalty,
    mixed_quantize,
)

__all__ = [
    "LSQ",
    "PACT",
    "QUANTIZERS",
    "DoReFaInputs",
    "DoReFaWeights",
    "FixedQuantizer",
    "FloatQuantizer",
    "Integers",
    "Levels",
    "QuantConv2d",
    "QuantLinear",
    "QuantizedLayer",
    "Quantizer",
    "UniformQuantizer",
    "calibrate",
    "clip_penalty",
    "fake_quantize",
    "match_batchnorm",
    "mixed_quantize",
    "norm_references",
    "quantize",
    "quantized_layers",
    "recalibrate_batchnorm",
    "set_bits",
    "unfold_batchnorm",
]
