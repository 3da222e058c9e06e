"""Quantizers, quantized layers, calibration."""

from codesign.quant.convert import calibrate, quantize, quantized_layers, recalibrate_batchnorm, set_bits
from codesign.quant.fake_quantization import fake_quantize
from codesign.quant.layers import QuantConv2d, QuantizedLayer, QuantLinear
from codesign.quant.quantizers import UniformQuantizer, mixed_quantize

__all__ = [
    "QuantConv2d",
    "QuantLinear",
    "QuantizedLayer",
    "UniformQuantizer",
    "calibrate",
    "fake_quantize",
    "mixed_quantize",
    "quantize",
    "quantized_layers",
    "recalibrate_batchnorm",
    "set_bits",
]
