"""Removes whole layers from any PyTorch model and hands back a smaller model that still runs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerprune.checkpoint.hub import from_hub, push_to_hub
    from layerprune.checkpoint.load import load_pruned
    from layerprune.checkpoint.marked import allow_marked_saving
    from layerprune.checkpoint.save import save_pruned
    from layerprune.distillation.distilling import distill
    from layerprune.errors import LayerPruneError
    from layerprune.fidelity.compare import compare
    from layerprune.graph import LayerGraph
    from layerprune.groups import Group, LayerInfo
    from layerprune.impact.criteria import register_criterion
    from layerprune.plan import PruningPlan
    from layerprune.proof import Removal
    from layerprune.pruner import UniversalLayerPruner, quick_prune
    from layerprune.repair import repair
    from layerprune.surgery import applied

__version__ = "0.1.0"

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
    "repair",
    "save_pruned",
]

_HOMES = {
    "Group": "groups",
    "LayerGraph": "graph",
    "LayerInfo": "groups",
    "LayerPruneError": "errors",
    "PruningPlan": "plan",
    "Removal": "proof",
    "UniversalLayerPruner": "pruner",
    "allow_marked_saving": "checkpoint.marked",
    "applied": "surgery",
    "compare": "fidelity.compare",
    "distill": "distillation.distilling",
    "from_hub": "checkpoint.hub",
    "load_pruned": "checkpoint.load",
    "push_to_hub": "checkpoint.hub",
    "quick_prune": "pruner",
    "register_criterion": "impact.criteria",
    "save_pruned": "checkpoint.save",
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
