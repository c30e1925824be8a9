"""Trained networks in the formats of other tools: ONNX, safetensors, and properties in VNN-LIB.

ONNX and safetensors need the extra ``export``; VNN-LIB needs no package.
"""

from robust.export.onnx import OPSET, write_onnx
from robust.export.safetensors import write_safetensors
from robust.export.vnnlib import Property, write_instances, write_property

__all__ = ["OPSET", "Property", "write_instances", "write_onnx", "write_property", "write_safetensors"]
