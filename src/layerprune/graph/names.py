"""Names of modules and layers with and without numbers: repeated blocks differ in numbers only."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"\d+")


def without_numbers(name: str) -> str:
    """Replace each number in a dotted name.

    >>> without_numbers("layers.12.conv1")
    'layers.#.conv#'
    """
    return _NUMBER.sub("#", name)


def numbers_in(parts: Iterable[str | int]) -> list[int]:
    """The numbers in names and the numbers between names, in order.

    >>> numbers_in(["layers.12.conv1", 3])
    [12, 1, 3]
    """
    return [int(number) for part in parts for number in _NUMBER.findall(str(part))]
