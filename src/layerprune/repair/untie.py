"""Gives layers that share a weight a copy of their own, so that they can be solved."""

from __future__ import annotations

import torch
from torch import nn

from layerprune.adapters import untie_in_config
from layerprune.fitting import why_not_solvable
from layerprune.modules import unwrap
from layerprune.torch_internals import parameters_of


def untie(model: nn.Module) -> tuple[str, ...]:
    """Give each transform that shares its weight with another module a copy of its own; the model computes the same.

    This adds parameters. The config of a transformers model no longer says that embeddings are tied, so that saving and
    loading keep the copies. Where only transforms share a weight, the first keeps it.

    Args:
        model: the pruned model, before its repair; it is changed.

    Returns:
        The new parameters, by name.
    """
    model = unwrap(model)
    owners: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for name, module in model.named_modules():
        for key, held in parameters_of(module).items():
            if held is not None:
                owners.setdefault(id(held), []).append((name, module, key))
    made: list[str] = []
    for some in owners.values():
        transforms = [owner for owner in some if not why_not_solvable(owner[1])]
        for name, module, key in transforms[len(transforms) == len(some) :]:
            held = parameters_of(module)[key]
            assert held is not None
            with torch.no_grad():
                parameters_of(module)[key] = nn.Parameter(held.detach().clone(), held.requires_grad)
            made.append(f"{name}.{key}")
    if made:
        untie_in_config(model)
    return tuple(made)
