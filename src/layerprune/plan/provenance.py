"""Keeps the plans that made a pruned model in the model itself, as plain text.

The record is an attribute of the module, a tuple of strings: it goes along with ``copy.deepcopy``, ``pickle`` and
``torch.save``, and what loads it needs nothing of ours. The state dict does not hold it.
"""

from __future__ import annotations

from collections import Counter
from typing import cast

from torch import nn

from layerprune.modules import UndoLog

#: The attribute that holds the record.
ATTRIBUTE = "_layerprune_plans"

#: A plan as JSON text, after the dotted name of the module that it was carried out on, seen from who holds the record.
Entry = tuple[str, str]


def entries_of(model: nn.Module) -> tuple[Entry, ...]:
    """The plans that made a model and the modules in it, each with its module's name, in the order of their making.

    A record knows what its module was made of when it was pruned. What the records of inner modules hold beside that
    was carried out on them later, or by themselves.
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
    """Keep the plans that made a model."""
    undo_log.set(vars(model), ATTRIBUTE, entries)
