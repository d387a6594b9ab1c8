"""Removes whole layers from any PyTorch model and hands back a smaller model that still runs."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerprune.checkpoint import allow_marked_saving, from_hub, load_pruned, push_to_hub, save_pruned
    from layerprune.distillation import distill
    from layerprune.errors import LayerPruneError
    from layerprune.fidelity import compare
    from layerprune.graph import Group, LayerGraph, LayerInfo
    from layerprune.impact import register_criterion
    from layerprune.plan import PruningPlan
    from layerprune.proof import Removal
    from layerprune.pruner import UniversalLayerPruner, quick_prune
    from layerprune.repair import repair
    from layerprune.surgery import applied
    from layerprune.tensors import register_op

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # the user's program decides what is shown

__all__ = [
    "Group",
    "LayerGraph",
    "LayerInfo",
    "LayerPruneError",
    "PruningPlan",
    "Removal",
    "UniversalLayerPruner",
    "allow_marked_saving",
    "applied",
    "compare",
    "distill",
    "from_hub",
    "load_pruned",
    "push_to_hub",
    "quick_prune",
    "register_criterion",
    "register_op",
    "repair",
    "save_pruned",
]

_HOMES = {
    "Group": "graph",
    "LayerGraph": "graph",
    "LayerInfo": "graph",
    "LayerPruneError": "errors",
    "PruningPlan": "plan",
    "Removal": "proof",
    "UniversalLayerPruner": "pruner",
    "allow_marked_saving": "checkpoint",
    "applied": "surgery",
    "compare": "fidelity",
    "distill": "distillation",
    "from_hub": "checkpoint",
    "load_pruned": "checkpoint",
    "push_to_hub": "checkpoint",
    "quick_prune": "pruner",
    "register_criterion": "impact",
    "register_op": "tensors",
    "save_pruned": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that the command line's help needs no torch."""
    if name == "repair":  # the package, which is called as its function: once imported, it hangs here in any case
        return importlib.import_module("layerprune.repair")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'layerprune' has no attribute '{name}'")
    return getattr(importlib.import_module(f"layerprune.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
