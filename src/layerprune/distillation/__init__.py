"""Distillation: trains a pruned model to reproduce the original's outputs, without labels."""

from layerprune.distillation.distilling import distill
from layerprune.distillation.recipe import Recipe
from layerprune.distillation.report import Distillation

__all__ = ["Distillation", "Recipe", "distill"]
