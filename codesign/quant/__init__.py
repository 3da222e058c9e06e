"""Quantizers, quantized layers, calibration."""

from codesign.quant.convert import calibrate, quantize, quantized_layers, recalibrate_batchnorm, set_bits
from codesign.quant.layers import QuantConv2d, QuantizedLayer, QuantLinear
from codesign.quant.quantizers import UniformQuantizer, fake_quantize

__all__ = [
    "QuantConv2d",
    "QuantLinear",
    "QuantizedLayer",
    "UniformQuantizer",
    "calibrate",
    "fake_quantize",
    "quantize",
    "quantized_layers",
    "recalibrate_batchnorm",
    "set_bits",
]
