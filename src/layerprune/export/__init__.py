"""Exports pruned models to formats of other libraries."""

# pyright: reportUnusedImport=false
from layerprune.export.exported_file import ExportedFile
from layerprune.export.onnx import export_onnx
from layerprune.export.program import export_program
