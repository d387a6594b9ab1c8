"""Repair: win back what a removal costs, without training and without new parameters.

The package may be called as its function: ``layerprune.repair(original, pruned, batches)`` is
:func:`repair`, so that the one name is both, whichever was imported first.
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
