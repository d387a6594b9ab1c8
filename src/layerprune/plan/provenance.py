"""Keeps the plans of a pruned model in the model itself, as plain text.

The record is an attribute of the module, a tuple of strings: ``copy.deepcopy``, ``pickle`` and ``torch.save`` keep it
without layerprune, and the state dict does not hold it.
"""

from __future__ import annotations

from collections import Counter
from typing import cast

from torch import nn

from layerprune.modules import UndoLog

#: The attribute of the record.
ATTRIBUTE = "_layerprune_plans"

#: Dotted name of the pruned module, relative to the holder of the record, and plan as JSON text.
Entry = tuple[str, str]


def entries_of(model: nn.Module) -> tuple[Entry, ...]:
    """The plans of a model and of the modules inside it, each with its module's name, in order.

    A module's record holds its parts' plans at its own pruning; additional plans in records of inner modules are later.
    """
    found: list[Entry] = []
    for name, module in model.named_modules():
        known = Counter(found)
        for place, text in cast("tuple[Entry, ...]", vars(module).get(ATTRIBUTE, ())):
            entry = ".".join(filter(None, (name, place))), text
            if known[entry]:
                known[entry] -= 1
            else:
                found.append(entry)
    return tuple(found)


def record(model: nn.Module, entries: tuple[Entry, ...], undo_log: UndoLog) -> None:
    """Keep the plans of a model."""
    undo_log.set(vars(model), ATTRIBUTE, entries)
