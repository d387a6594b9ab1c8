"""Repair: win back quality that removals cost, without training and without new parameters.

The package is callable: ``layerprune.repair(original, pruned, batches)`` is :func:`repair`, in any order of imports.
"""

import inspect
import sys
from types import ModuleType
from typing import Any

from layerprune.repair.closed_form import MEMORY_BYTES, ClosedFormRepair, repair
from layerprune.repair.report import RepairReport
from layerprune.repair.sites.sites import Site, find_sites, renumbered
from layerprune.repair.untie import untie

__all__ = ["MEMORY_BYTES", "ClosedFormRepair", "RepairReport", "Site", "find_sites", "renumbered", "repair", "untie"]


class _CallablePackage(ModuleType):
    """A package that is called as the function of its name."""

    __signature__ = inspect.signature(repair)

    def __call__(self, *args: Any, **kwargs: Any) -> RepairReport:
        return repair(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
