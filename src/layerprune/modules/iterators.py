"""Iterators of which a forward takes the next item: copied, replayed, and left where they were."""

from __future__ import annotations

import copy
import itertools
import sys
import warnings
from collections.abc import Iterator
from typing import Any, cast

# A copy of these goes on from the same place, and leaves the original there.
_COPIED = (*(type(iter(one)) for one in ([], (), range(0), "", b"")), itertools.count, itertools.repeat)


def is_sequence(value: object) -> bool:
    """Whether a value is one of Python's own iterators, which keep their place where nothing else can look."""
    return isinstance(value, Iterator) and not hasattr(value, "__dict__")


def copied(value: Iterator[Any]) -> Iterator[Any] | None:
    """Make an iterator that goes on from the same place; None where taking from it would take from the first."""
    if isinstance(value, _COPIED):
        return copy.copy(value)
    if isinstance(value, itertools.cycle) and sys.version_info < (3, 14):  # these tell of themselves until then
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            _, (inner,), (saved, passed) = cast("Any", value).__reduce__()
            if (same := copied(inner)) is not None:
                whole = itertools.cycle(same)
                cast("Any", whole).__setstate__((list(saved), passed))
                return whole
    return None


def stand_in_for(value: Iterator[Any]) -> Iterator[Any]:
    """Make an iterator that gives the same items, for a run to take from."""
    same = copied(value)
    return Replayed(value) if same is None else same


def left_of(value: Iterator[Any], stand_in: Iterator[Any]) -> Iterator[Any]:
    """What is to lie where an iterator lay, once its stand-in was taken from: itself, where nothing is missing."""
    if isinstance(stand_in, Replayed) and stand_in.taken:
        return itertools.chain(stand_in.taken, value)
    return value


class Replayed(Iterator[Any]):
    """Takes from an iterator that cannot be copied, such as a generator, and keeps what it took.

    Args:
        source: the iterator.

    Attributes:
        taken: the items that the source has given, and would not give again.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self.source = source
        self.taken: list[Any] = []

    def __next__(self) -> Any:
        item = next(self.source)
        self.taken.append(item)
        return item
