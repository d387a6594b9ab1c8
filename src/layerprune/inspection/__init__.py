"""What a model is made of and which of its groups may go, without measuring anything: an ``Inspection``."""

# pyright: reportUnusedImport=false
from layerprune.inspection.inspect_model import inspect_model
from layerprune.inspection.inspection import Inspection, KindCount, RefusalCount, RepeatedBlocks, VerdictShare
from layerprune.inspection.text import inspection_text
