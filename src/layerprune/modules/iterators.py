"""Iterators that forwards take items from: copies, replays and restored positions."""

from __future__ import annotations

import copy
import itertools
import sys
import warnings
from collections.abc import Iterator
from typing import Any, cast

# Types whose copy continues at the same position without an effect on the original.
_COPIED = (*(type(iter(one)) for one in ([], (), range(0), "", b"")), itertools.count, itertools.repeat)


def is_sequence(value: object) -> bool:
    """Whether a value is one of Python's own iterators, which hide their position."""
    return isinstance(value, Iterator) and not hasattr(value, "__dict__")


def copied(value: Iterator[Any]) -> Iterator[Any] | None:
    """Copy an iterator with its position; None if items taken from a copy would be taken from the original."""
    if isinstance(value, _COPIED):
        return copy.copy(value)
    if isinstance(value, itertools.cycle) and sys.version_info < (3, 14):  # later versions have no __reduce__
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            _, (inner,), (saved, passed) = cast("Any", value).__reduce__()
            if (same := copied(inner)) is not None:
                whole = itertools.cycle(same)
                cast("Any", whole).__setstate__((list(saved), passed))
                return whole
    return None


def stand_in_for(value: Iterator[Any]) -> Iterator[Any]:
    """An iterator with the same items, for a run."""
    same = copied(value)
    return Replayed(value) if same is None else same


def left_of(value: Iterator[Any], stand_in: Iterator[Any]) -> Iterator[Any]:
    """The iterator to restore after a run: the original, or one that first replays the items that the run took."""
    if isinstance(stand_in, Replayed) and stand_in.taken:
        return itertools.chain(stand_in.taken, value)
    return value


class Replayed(Iterator[Any]):
    """Takes items from an iterator that cannot be copied, such as a generator, and keeps them in ``taken``."""

    def __init__(self, source: Iterator[Any]) -> None:
        self.source = source
        self.taken: list[Any] = []

    def __next__(self) -> Any:
        item = next(self.source)
        self.taken.append(item)
        return item
