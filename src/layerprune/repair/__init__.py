"""Repair: win back what a removal costs, without training and without new parameters."""

from layerprune.repair.closed_form import repair
from layerprune.repair.report import RepairReport
from layerprune.repair.untie import untie

__all__ = ["RepairReport", "repair", "untie"]
