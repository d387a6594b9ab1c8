"""The forms of edits that come from a file: what surgery would never make is no edit, and says why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from layerprune.edits.records import Drop, DropParameter, Edit, Fold, Pass, Shorten, Slice
from layerprune.tensors import is_custom, is_merge_label

_MOST = 2**31  # arguments, elements, channels
_LONGEST = 1_000  # dotted name
_DEEPEST = 16  # an output's structure
_CONSTANTS = (bool, int, float, str, type(None))


def why_malformed(edit: Edit) -> str:
    """Why an edit cannot be one that surgery has made; empty where it may be."""
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
    if isinstance(edit, Pass) and not _is_argument([edit.position, edit.keyword]):
        return f"position {edit.position}, keyword {edit.keyword!r} is no argument"
    if isinstance(edit, (Pass, Drop)) and not _is_structure(edit.structure, _DEEPEST):
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


def _is_argument(pair: Any) -> bool:
    """Whether a pair says which argument: by position, by keyword, or by both."""
    if not isinstance(pair, (list, tuple)) or len(cast("list[Any]", pair)) != 2:
        return False
    position, keyword = cast("list[Any]", pair)
    at = position is None or (type(position) is int and 0 <= position < _MOST)
    named = keyword is None or isinstance(keyword, str)
    return at and named and not (position is None and keyword is None)


def _is_structure(value: Any, depth: int) -> bool:
    """Whether a value is of the form that :data:`layerprune.graph.Structure` names."""
    if value in ("tensor", "argument"):
        return True
    if not isinstance(value, dict) or len(cast("dict[str, Any]", value)) != 1 or depth == 0:
        return False
    ((kind, inner),) = cast("dict[str, Any]", value).items()
    if kind == "argument":
        return _is_argument(inner)
    if kind in ("tuple", "list"):
        return isinstance(inner, list) and all(_is_structure(item, depth - 1) for item in cast("list[Any]", inner))
    if kind == "dict":
        return isinstance(inner, dict) and all(
            _is_structure(item, depth - 1) for item in cast("dict[str, Any]", inner).values()
        )
    if kind == "record":
        return _is_record(inner) and _is_structure({"dict": inner["fields"]}, depth)
    return kind == "value" and isinstance(inner, _CONSTANTS)


def _is_record(inner: Any) -> bool:
    """Whether something names a class, and holds what its fields are."""
    if not isinstance(inner, dict) or set(cast("dict[str, Any]", inner)) != {"class", "fields"}:
        return False
    name = cast("dict[str, Any]", inner)["class"]
    return (
        isinstance(name, (list, tuple))
        and len(cast("list[Any]", name)) == 2
        and all(isinstance(part, str) and 0 < len(part) <= _LONGEST for part in cast("list[Any]", name))
    )
