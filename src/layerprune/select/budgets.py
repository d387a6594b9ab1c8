"""The user's budgets: caps and targets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from layerprune.errors import BudgetError
from layerprune.select.problem import SLACK

#: The share of the parameters that may go where the user gives no budget.
DEFAULT_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Caps on what may go, and targets that have to be reached.

    A plan comes as close to its caps as it can. With targets, a plan removes no more than the targets need.

    Attributes:
        max_param_reduction: the largest share of the parameters that may go, between 0 and 1.
        max_mac_reduction: the largest share of the multiply-accumulates of one forward that may go, between 0 and 1.
        target_latency_ms: the median time of one forward on the example inputs to reach, in ms.
        max_memory_bytes: the peak memory of parameters, buffers and the activations of one forward to reach, in bytes.
        max_impact: the largest impact that all removals together may have, in the plan's impact unit.
        slack: how far a plan may stay below the most that fits under its caps for less impact, as a share of that most,
            between 0 and 1; with calibration data twice as far where that at least halves the impact. 0 fills the caps.
    """

    max_param_reduction: float | None = None
    max_mac_reduction: float | None = None
    target_latency_ms: float | None = None
    max_memory_bytes: int | None = None
    max_impact: float | None = None
    slack: float = SLACK

    def __post_init__(self) -> None:
        for name in ("max_param_reduction", "max_mac_reduction"):
            if getattr(self, name) is not None:
                check_share(name, getattr(self, name))
        for name, example in (("target_latency_ms", "8.5"), ("max_memory_bytes", "2 * 2**30"), ("max_impact", "0.05")):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
                raise BudgetError(f"{name} is {value!r:.60}; give a number above 0, as {example}")

        check_slack(self.slack)

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> Budgets:
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    @property
    def given(self) -> tuple[str, ...]:
        names = (field.name for field in fields(self))
        return tuple(name for name in names if name != "slack" and getattr(self, name) is not None)

    @property
    def has_target(self) -> bool:
        return self.target_latency_ms is not None or self.max_memory_bytes is not None

    def or_default(self) -> Budgets:
        """The same; :data:`DEFAULT_SHARE` of the parameters without any budget."""
        return replace(self, max_param_reduction=DEFAULT_SHARE) if not self.given else self


def check_share(name: str, share: object) -> None:
    """Raise :class:`BudgetError` unless a share is between 0 and 1."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise BudgetError(f"{name} is {share!r:.60}; give a share between 0 and 1, as 0.3 for at most 30 %")


def check_slack(slack: object) -> None:
    """Raise :class:`BudgetError` unless a slack is at least 0 and below 1."""
    if isinstance(slack, bool) or not isinstance(slack, (int, float)) or not 0 <= slack < 1:
        raise BudgetError(f"slack is {slack!r:.60}; give a share of at least 0 and below 1, as 0.1; 0 fills the caps")
