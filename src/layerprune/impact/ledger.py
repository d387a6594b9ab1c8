"""The ledger: what is known of whether a model's forward may go on from stored outputs, and what that has saved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """What the ablations of one model have in common; see :mod:`~layerprune.impact.handover`.

    Attributes:
        doubt: why every forward is run whole; empty while nothing speaks against handing stored outputs on.
        is_trusted: whether that was checked.
        barred: frames of the layer graph whose calls do more than to return a tree of tensors, or whose outputs are
            written into later.
        handed_on: frame of the layer graph → how often the output of that call was handed on.
    """

    doubt: str = ""
    is_trusted: bool = False
    barred: set[int] = field(default_factory=set[int])
    handed_on: Counter[int] = field(default_factory=Counter[int])
