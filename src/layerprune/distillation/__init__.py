"""Distillation: a pruned model trained to do what the original does, on any inputs, without labels."""

from layerprune.distillation.distilling import distill
from layerprune.distillation.recipe import Recipe
from layerprune.distillation.report import Distillation

__all__ = ["Distillation", "Recipe", "distill"]
