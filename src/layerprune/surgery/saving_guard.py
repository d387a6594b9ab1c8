"""Refuses saving methods that would write a config of the unpruned model.

``save_pretrained`` of transformers, diffusers, peft and of the mixin of huggingface_hub writes weights beside a config.
``from_pretrained`` builds the class from the config and loads the weights that fit. If the config cannot describe the
removals, removed layers come back with random weights, and nothing fails. So these methods are replaced on the pruned
instance. Its class, its state dict and ``torch.save`` are unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import nn

from layerprune.adapters import builds_from_config
from layerprune.edits import Edit, Shorten
from layerprune.errors import CheckpointError
from layerprune.modules import UndoLog, names_by_module

_REBUILDS = "from_pretrained"
_SAVING = ("save_pretrained", "push_to_hub")


class RefusedSaving:
    """Replaces a saving method of a pruned module; it is picklable, and raises an error only if called.

    Args:
        method: name of the method.
        owner: name of the module's class.
        place: dotted name of the module in the pruned model; empty for the model itself.
        root: name of the pruned model's class.
        follows: whether the module's config can describe a removal of whole layers.
    """

    def __init__(self, method: str, owner: str, place: str, root: str, follows: bool) -> None:
        self.method = method
        self.owner = owner
        self.place = place
        self.root = root
        self.follows = follows
        self.__name__ = method

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise CheckpointError(self.reason)

    @property
    def reason(self) -> str:
        """Reason, and the function to call instead."""
        whole = f" of the whole {self.root}, of which this is '{self.place}'" if self.place else ""
        instead = "push_to_hub(model, repo)" if self.method == "push_to_hub" else "save_pruned(model, folder)"
        whole_layers = "; or prune with granularity='block', which its config follows" if self.follows else ""
        return (
            f"{self.owner}.{self.method} is refused: {_REBUILDS} would build the removed layers again, with random "
            f"weights. Call layerprune.{instead}{whole}, or allow_marked_saving(model) before a Trainer{whole_layers}"
        )


def cover(model: nn.Module, places: dict[str, nn.Module], edits: Sequence[Edit], undo_log: UndoLog) -> None:
    """Refuse saving methods of modules whose classes would build removed layers again.

    Args:
        model: the model, after the edits.
        places: the result of :func:`rebuilders` before the edits.
        edits: the edits, with the names before them.
        undo_log: records every change.
    """
    for place, module in places.items():
        inside = [edit for edit in edits if _is_inside(edit, place)]
        follows = builds_from_config(module)
        if inside and not (follows and all(isinstance(edit, Shorten) for edit in inside)):
            for method in _SAVING:
                if callable(getattr(type(module), method, None)):
                    refused = RefusedSaving(method, type(module).__name__, place, type(model).__name__, follows)
                    undo_log.set(vars(module), method, refused)


def _is_inside(edit: Edit, place: str) -> bool:
    return not place or any(f"{target}.".startswith(f"{place}.") for target in edit.targets)


def rebuilders(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose classes have ``save_pretrained`` and ``from_pretrained``, by dotted name."""
    names = names_by_module(model)
    return {
        name: module
        for module in model.modules()
        if callable(getattr(type(module), _REBUILDS, None)) and callable(getattr(type(module), _SAVING[0], None))
        for name in names[id(module)]
    }
