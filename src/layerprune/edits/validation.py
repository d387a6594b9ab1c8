"""Validates edits that come from a file."""

from __future__ import annotations

from collections.abc import Sequence

from layerprune.edits.records import Boundary, Drop, DropParameter, Edit, Fold, Pass, Shorten, Slice
from layerprune.errors import DroppedTensorError
from layerprune.tensors import OutputTree, is_argument, is_custom, is_merge_label

_MOST = 2**31  # elements, channels
_LONGEST = 1_000  # dotted name
_DEEPEST = 16  # depth of nested containers in an output


def why_malformed(edit: Edit) -> str:
    """Why surgery cannot have made an edit; empty where it may have."""
    if isinstance(edit, Boundary):
        return ""
    named = bool(edit.fqn) or isinstance(edit, Shorten)  # the model itself may be the container
    if not named or len(edit.fqn) > _LONGEST or (edit.fqn and not all(edit.fqn.split("."))):
        return f"'{edit.fqn[:80]}' is no dotted name"
    if isinstance(edit, Slice):
        return _why_no_ranges(edit.dropped)
    if isinstance(edit, (Drop, DropParameter)):
        unknown = min((label for label in edit.merges if not is_merge_label(label)), default="")
        if unknown:
            ask = ": call register_op() for it first, with merge=" if is_custom(unknown) else ""
            return f"'{unknown[:80]}' is no merge{ask}"
    if isinstance(edit, Pass) and not is_argument([edit.position, edit.keyword]):
        return f"position {edit.position}, keyword {edit.keyword!r} is no argument"
    if isinstance(edit, (Pass, Drop)):
        try:
            OutputTree.from_json(edit.structure, _DEEPEST)
        except DroppedTensorError:
            return "its structure is none of an output"
    if isinstance(edit, Fold) and max(edit.num_in, *edit.strides, 1) >= _MOST:
        return f"{max(edit.num_in, *edit.strides, 1)} is no number of channels or places"
    if isinstance(edit, Shorten) and any(number >= _MOST for number in edit.removed):
        return f"{max(edit.removed)} is no number of an element"
    return ""


def _why_no_ranges(dropped: Sequence[tuple[int, int]]) -> str:
    last = 0
    for start, stop in dropped:
        if not last <= start < stop <= _MOST:
            return f"{[list(pair) for pair in dropped[:4]]} are no ascending ranges of channels"
        last = stop
    return "" if dropped else "no channels are dropped"
