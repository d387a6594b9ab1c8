"""Exports pruned models to formats of other libraries."""

# pyright: reportUnusedImport=false
from layerprune.export.onnx import OnnxFile, export_onnx
from layerprune.export.program import ExportedFile, export_program
