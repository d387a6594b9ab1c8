"""Pruned models in formats of other libraries."""

from layerprune.export.onnx import OnnxFile, export_onnx

__all__ = [
    "OnnxFile",
    "export_onnx",
]
