"""What ablations have learnt of a model: whether stored outputs or parts of batches may be used."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class ReusePolicy:
    """What the ablations of one model have in common; see ``replay/reuse``.

    Attributes:
        doubt: why every forward is run whole; empty while nothing speaks against handing stored outputs on.
        is_trusted: whether that was checked.
        barred: frames of the layer graph whose calls do more than to return a tree of tensors, or whose outputs are
            written into later.
        fewest: samples that a part of a batch has to have to tell what the batch does; 0 where no part does, None where
            that was not looked at.
        share: how much of a batch is looked at first, where not all of the data need be.
        handed_on: frame of the layer graph → for how many samples the output of that call was handed on.
    """

    doubt: str = ""
    is_trusted: bool = False
    barred: set[int] = field(default_factory=set[int])
    fewest: int | None = None
    share: float = 1.0
    handed_on: Counter[int] = field(default_factory=Counter[int])
