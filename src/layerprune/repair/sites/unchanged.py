"""Finds sites in front of the first difference between two models: their tensors are unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from layerprune.graph import Layer, LayerGraph
from layerprune.modules import named_parameters, own_tensors
from layerprune.repair.sites.sites import Site
from layerprune.stand_ins import DroppedTensor
from layerprune.tensors import same_tensor

_PLAIN = (bool, int, float, str, type(None))


def changed_sites(sites: Sequence[Site], graph: LayerGraph, original: nn.Module, pruned: nn.Module) -> list[Site]:
    """Leave out sites in front of the first difference between the models, because no input changes their tensors.

    Each layer up to these tensors has the same operands, weights, buffers and settings as in the original. The tensors
    of other sites may be equal, too, which only a run can show.

    Args:
        sites: sites of the pruned model.
        graph: its layer graph.
        original: the original.
        pruned: the pruned model.

    Returns:
        The other sites, in the same order.
    """
    last = max((graph.values[site.reached].layer for site in sites if not site.is_behind_gap), default=-1)
    both = _Comparison(original, pruned)
    end = next((layer.index for layer in graph.layers[: last + 1] if not both.is_alike(layer)), last + 1)
    return [site for site in sites if site.is_behind_gap or graph.values[site.reached].layer >= end]


class _Comparison:
    """Compares the modules of two models layer by layer."""

    def __init__(self, original: nn.Module, pruned: nn.Module) -> None:
        self.modules = [dict(model.named_modules(remove_duplicate=False)) for model in (original, pruned)]
        self.parameters = [dict(named_parameters(model, every_name=True)) for model in (original, pruned)]
        self.known: dict[tuple[str, bool], bool] = {}

    def is_alike(self, layer: Layer) -> bool:
        """Whether a layer's module is equal in both models; for a function, the own attributes of its module."""
        key = layer.fqn, layer.is_module
        if key not in self.known:
            held = [_held(modules.get(layer.fqn), whole=layer.is_module) for modules in self.modules]
            settings, tensors = zip(*held, strict=True)
            alike = settings[0] == settings[1] and len(tensors[0]) == len(tensors[1])
            self.known[key] = alike and all(map(_is_same, *tensors))
        return self.known[key] and all(self.has_same(name) for name in layer.params)

    def has_same(self, name: str) -> bool:
        one, other = (parameters.get(name) for parameters in self.parameters)
        return one is not None and other is not None and _is_same(one, other)


def _held(module: nn.Module | None, *, whole: bool) -> tuple[list[tuple[type, dict[str, Any]]], list[Tensor]]:
    """Classes with plain attributes, and tensors, of a module itself or of the ``whole`` tree."""
    modules = [] if module is None else list(module.modules()) if whole else [module]
    return [(type(one), _settings(one)) for one in modules], [held for one in modules for held in own_tensors(one)]


def _settings(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key != "training" and _is_plain(value)}


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(isinstance(item, _PLAIN) for item in value))


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    """Whether tensors are identical or have equal bits; dropped tensors of an earlier surgery compare by merges."""
    if isinstance(tensor, DroppedTensor) or isinstance(other, DroppedTensor):
        return isinstance(tensor, DroppedTensor) and isinstance(other, DroppedTensor) and tensor.merges == other.merges
    return tensor is other or same_tensor(tensor, other)
