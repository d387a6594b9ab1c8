"""Draws the frontier and the impacts with matplotlib, which is imported on use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerprune.environment import extra
from layerprune.errors import ReportError
from layerprune.plan import FrontierPoint
from layerprune.tables import name_clipped, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Of the colour-blind safe palette of Okabe and Ito.
STAYS, LEAVES, MEASURED = "#0072B2", "#D55E00", "#009E73"

_BAR_INCHES = 0.24
_NAME = 42  # characters


@dataclass(frozen=True)
class PlotPoint:
    """A set of removals in the picture of the frontier: its share of the parameters, its impact, and what it is."""

    reduction: float
    impact: float
    label: str
    colour: str = LEAVES


@dataclass(frozen=True)
class ImpactBar:
    """A group in the picture of the impacts.

    Attributes:
        name: the group.
        impact: the least impact of a removal that takes it out.
        interval: lower and upper end; None without one.
        leaves: whether the plan removes it.
    """

    name: str
    impact: float
    interval: tuple[float, float] | None = None
    leaves: bool = False


def draw_frontier(
    points: Sequence[FrontierPoint], unit: str, chosen: Sequence[PlotPoint], title: str, ax: Axes | None
) -> Axes:
    """Draw the least sum of impacts for every size, and the sets chosen.

    Args:
        points: the frontier, smallest size first.
        unit: unit of the impacts.
        chosen: sets to mark.
        title: of the picture.
        ax: axes to draw on; new ones if None.

    Raises:
        ReportError: matplotlib is not installed.
    """
    ax = _axes(ax, (6.4, 4.0))
    reductions, impacts = [100 * point.reduction for point in points], [point.impact for point in points]
    ax.plot(reductions, impacts, marker="o", color=STAYS, label="least sum of impacts, predicted", zorder=2)
    for point in chosen:
        at = (100 * point.reduction, point.impact)
        ax.plot(*at, marker="*", markersize=15, linestyle="", color=point.colour, label=point.label, zorder=3)
    ax.set_xlabel("parameters removed, %")
    ax.set_ylabel(_unit(unit))
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=min(0.0, *impacts))
    ax.grid(alpha=0.3)
    ax.legend()
    ax.set_title(visible(title), parse_math=False)
    return ax


def draw_impacts(bars: Sequence[ImpactBar], unit: str, title: str, ax: Axes | None) -> Axes:
    """Draw one horizontal bar for each group, the first on top, with its interval.

    Args:
        bars: the groups in order; impacts are finite.
        unit: unit of the impacts.
        title: of the picture.
        ax: axes to draw on; new ones if None.

    Raises:
        ReportError: matplotlib is not installed.
    """
    ax = _axes(ax, (7.2, 1.4 + _BAR_INCHES * len(bars)))
    places = range(len(bars))
    colours = [LEAVES if bar.leaves else STAYS for bar in bars]
    ax.barh(places, [bar.impact for bar in bars], color=colours, height=0.7)
    known = [(place, bar.impact, bar.interval) for place, bar in zip(places, bars, strict=True) if bar.interval]
    if known:
        ends = [[max(impact - low, 0.0) for _, impact, (low, _) in known]]
        ends.append([max(high - impact, 0.0) for _, impact, (_, high) in known])
        at = [impact for _, impact, _ in known]
        ax.errorbar(at, [place for place, _, _ in known], xerr=ends, fmt="none", ecolor="0.35", capsize=2)
    names = [name_clipped(visible(bar.name), _NAME) for bar in bars]
    ax.set_yticks(places, labels=names, parse_math=False, fontsize="small")
    ax.invert_yaxis()
    ax.margins(y=0.01)
    ax.set_xlabel(_unit(unit) + (", interval of about 90 %" if known else ""))
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    if any(bar.leaves for bar in bars):
        patch = _imported("matplotlib.patches").Patch
        ax.legend(handles=[patch(color=LEAVES, label="leaves by the plan"), patch(color=STAYS, label="stays")])
    ax.set_title(visible(title), parse_math=False)
    return ax


def _unit(unit: str) -> str:
    """A unit as the label of an axis, on two lines where it is long."""
    text = f"impact ({visible(unit)})"
    if len(text) <= 60:
        return text
    words, middle = text.split(" "), len(text) / 2
    ends = [len(" ".join(words[:number])) for number in range(1, len(words))]
    cut = 1 + min(range(len(ends)), key=lambda number: abs(ends[number] - middle))
    return " ".join(words[:cut]) + "\n" + " ".join(words[cut:])


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    _, made = _imported("matplotlib.pyplot").subplots(figsize=size, layout="constrained")
    return made


def _imported(name: str) -> Any:
    return extra(name, "plots need", ("matplotlib",), ReportError)
