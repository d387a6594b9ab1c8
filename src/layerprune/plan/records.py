"""Parts of a plan: removals, figures, the frontier, and the header of a pruning round."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from layerprune.tables import brief, bytes_text, impact_text, short_number

_MOST = 2**63 - 1  # upper bound of counts
_LABELS = {"macs": "MACs", "latency_ms": "Latency", "memory_bytes": "Memory"}
_SHOWN: Mapping[str, Callable[[float], str]] = {
    "macs": short_number,
    "latency_ms": lambda value: f"{value:.3g} ms",
    "memory_bytes": lambda value: bytes_text(round(value)),
}


class PlannedRemoval(BaseModel):
    """A removal of a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="what is replaced by what")
    kind: str = Field(description="bypass, branch, gate, concat, several, shared, block or projection")
    groups: tuple[str, ...] = Field(description="names of the groups that leave")
    num_params: int = Field(ge=0, description="parameters that it removes when it is made alone")
    impact: float | None = Field(description="what it costs, in the plan's impact_unit; null where it is not known")
    impact_interval: tuple[float, float] | None = Field(
        default=None, description="interval of the impact over the calibration samples; holds in about 90 % of cases"
    )
    recurrence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="how often the sum of impacts on other draws of the batches chooses it",
    )
    needs_calibration: bool = Field(default=False, description="whether weights have to be fitted on data for it")
    kept: tuple[str, ...] = Field(default=(), description="members of its groups that stay")
    leftovers: tuple[str, ...] = Field(default=(), description="functions that still run on what is left")
    round: int = Field(default=1, ge=1, description="the pruning round that makes it; names are those of its model")

    def __repr__(self) -> str:
        figures = f"{self.num_params:,} parameters, impact {impact_text(self.impact)}"
        return brief(self, f"{self.kind} of {', '.join(self.groups) or self.name}: {figures}")


class PlannedFigure(BaseModel):
    """A figure that a budget limits, measured before and after the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="macs, latency_ms or memory_bytes")
    before: float
    after: float

    @property
    def label(self) -> str:
        """The figure's name with its unit."""
        return _LABELS.get(self.name, self.name)

    @property
    def change(self) -> str:
        """Both values, and the difference as a share of the first."""
        share = (self.after - self.before) / self.before if self.before else 0.0
        show = _SHOWN.get(self.name, lambda value: f"{value:,.4g}")
        return f"{show(self.before)} → {show(self.after)} ({share:+.1%})"

    def __repr__(self) -> str:
        return brief(self, f"{self.label}: {self.change}")


class FrontierPoint(BaseModel):
    """A size, and the least sum of impacts that reaches it; a prediction without proof."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reduction: float = Field(description="share of the parameters that goes")
    impact: float = Field(description="sum of the impacts")

    def __repr__(self) -> str:
        return brief(self, f"{self.reduction:.1%} of the parameters at an impact of {impact_text(self.impact)}")


class PlanHeader(BaseModel):
    """The fields that a plan and each of its rounds have: the model, the settings of the choice, and figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="the model's class")
    fingerprint: str = Field(description="hash of its classes, tensor names, shapes and dtypes")
    structure: tuple[str, ...] = Field(
        default=(), repr=False, description="the same in words, a module a line, to say where another model differs"
    )
    max_param_reduction: float | None = Field(
        description="the budget as a share of all parameters; null if groups were named"
    )
    max_mac_reduction: float | None = Field(default=None, description="the same of multiply-accumulates")
    target_latency_ms: float | None = Field(default=None, description="median of one forward that was to be reached")
    max_memory_bytes: int | None = Field(default=None, description="most that was to be held in one forward")
    max_impact: float | None = Field(default=None, description="largest impact of all removals together")
    slack: float | None = Field(
        default=None, description="how far below its caps the plan may stay for less impact; null where nobody said"
    )
    granularity: str
    strategy: str = Field(default="exact", description="what chose the removals")
    seed: int = Field(default=0, description="for what was drawn")
    num_params_before: int = Field(ge=0, le=_MOST)
    num_params_after: int = Field(ge=0, le=_MOST)
    figures: tuple[PlannedFigure, ...] = Field(default=(), description="what budgets but that of parameters speak of")
    impact_unit: str
    impact_together: float | None = Field(
        default=None, description="impact of all removals made together, where impacts are measured by making them"
    )
    frontier: tuple[FrontierPoint, ...] = ()
    needs_layerprune: bool = Field(description="whether the pruned model holds stand-ins that only layerprune defines")
    notes: tuple[str, ...] = ()
    shortfall: str = Field(
        default="", description="why nothing, or less than half of what a cap allows, goes; empty where more goes"
    )

    @property
    def reduction(self) -> float:
        """Share of the parameters that the plan removes, in [0, 1]."""
        return 1 - self.num_params_after / self.num_params_before if self.num_params_before else 0.0

    def __repr__(self) -> str:
        size = f"{self.num_params_before:,} → {self.num_params_after:,} parameters"
        return brief(self, f"{self.model}: {size}, by {self.strategy}")
