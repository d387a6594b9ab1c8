"""Line plots as SVG with labels in HTML, so that text has one size at each width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from layerprune.html.markup import Markup, element

_SIZE = 1000.0  # the drawing's own units, both ways; it is stretched to the page
_LOG_FROM = 50.0  # ratio of the largest to the least positive value from which the axis is logarithmic
_MAX_POINTS = 240  # of a line


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a plot.

    Attributes:
        label: its name in the legend.
        points: (x, y), x ascending.
        style: class of the line: ``main`` or ``faint``.
        has_dots: whether each point has a dot.
        numbers: for each point the number of its set, for the script; empty without sets.
    """

    label: str
    points: Sequence[tuple[float, float]]
    style: str = "main"
    has_dots: bool = False
    numbers: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class PlotPoint:
    """A single point with a name, such as the chosen set."""

    label: str
    x: float
    y: float


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale.

    Attributes:
        low: the least value.
        high: the largest value.
        is_log: whether equal ratios have equal lengths.
    """

    low: float
    high: float
    is_log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], *, from_zero: bool = True) -> Axis:
        """An axis that holds some values: logarithmic where they are positive and of different orders."""
        known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        positive = [value for value in known if value > 0]
        if len(positive) == len(known) and high / low >= _LOG_FROM:
            decade = 10 ** math.floor(math.log10(low))
            return cls(max(decade * n for n in (1, 2, 5) if decade * n <= low), high * 1.2, is_log=True)
        low = min(low, 0.0) if from_zero else low
        return cls(low, high + 0.06 * (high - low) if high > low else low + (abs(low) or 1.0))

    def share(self, value: float) -> float:
        """The place of a value between both ends, in [0, 1]."""
        if self.is_log:
            value, low, high = (math.log10(max(each, self.low)) for each in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self, num: int = 6) -> list[float]:
        """Round values on the axis."""
        if self.is_log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high))
            step = max(1, math.ceil((last - first + 1) / num))
            return [10.0**power for power in range(first, last + 1, step)]
        raw = (self.high - self.low) / num
        unit = 10 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [round(step * n, 12) for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_plot(
    lines: Sequence[Line],
    *,
    label: str,
    x_label: str,
    y_label: str,
    marks: Sequence[PlotPoint] = (),
    show_x: Callable[[float], str] = lambda value: f"{value:g}",
    show_y: Callable[[float], str] = lambda value: f"{value:g}",
    legend: bool = True,
) -> Markup:
    """Draw lines over common axes.

    Args:
        lines: the lines.
        label: the plot in words, for those who do not see it.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.
        marks: single points, in front.
        show_x: formats a tick of the horizontal axis.
        show_y: formats a tick of the vertical axis.
        legend: whether the lines are named below.
    """
    points = [point for line in lines for point in line.points] + [(mark.x, mark.y) for mark in marks]
    across = Axis.over([x for x, _ in points])
    across = Axis(across.low, across.high)  # sizes and steps are compared by difference
    upward = Axis.over([y for _, y in points])
    drawing = [*_grid(across, upward)]
    for number, line in enumerate(lines):
        drawing += _line(line, number, across, upward)
    drawing += [_dot(across, upward, mark.x, mark.y, "mark") for mark in marks]
    svg = element(
        "svg",
        drawing,
        viewBox=f"0 0 {_SIZE:g} {_SIZE:g}",
        preserveAspectRatio="none",
        aria_hidden="true",
        focusable="false",
    )
    scale = " (log scale)" if upward.is_log else ""
    return element(
        "div",
        element("div", y_label + scale, class_="axis-name"),
        element(
            "div",
            svg,
            [_tick(show_y(y), "y", 1 - upward.share(y)) for y in upward.ticks()],
            [_tick(show_x(x), "x", across.share(x)) for x in across.ticks()],
            class_="plot-area",
        ),
        element("div", x_label, class_="axis-name below"),
        _legend(lines, marks) if legend else None,
        class_="plot",
        role="img",
        aria_label=label,
    )


def _grid(across: Axis, upward: Axis) -> list[Markup]:
    found = [f"M0 {_at(1 - upward.share(y))}H{_SIZE:g}" for y in upward.ticks()]
    found += [f"M{_at(across.share(x))} 0V{_SIZE:g}" for x in across.ticks()]
    return [element("path", d="".join(found), class_="grid")]


def _line(line: Line, number: int, across: Axis, upward: Axis) -> list[Markup]:
    points = thinned([point for point in line.points if math.isfinite(point[1])])
    steps = [f"{_at(across.share(x))} {_at(1 - upward.share(y))}" for x, y in points]
    if not steps:
        return []
    style = f"line {line.style} n{number}"
    found = [element("path", d="M" + "L".join(steps), class_=style)]
    if line.has_dots:
        names = line.numbers if len(line.numbers) == len(points) else [None] * len(points)
        dots = zip(points, names, strict=True)
        found += [_dot(across, upward, x, y, f"dot n{number}", name) for (x, y), name in dots]
    return found


def _dot(across: Axis, upward: Axis, x: float, y: float, style: str, name: int | None = None) -> Markup:
    """A round dot: a line of no length keeps its form where the drawing is stretched."""
    place = f"M{_at(across.share(x))} {_at(1 - upward.share(y))}h.01"
    return element("path", d=place, class_=style, data_set=name)


def thinned(points: Sequence[tuple[float, float]], most: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """Means of neighbours, where there are more points than can be seen."""
    if len(points) <= most:
        return list(points)
    edges = [round(part * len(points) / most) for part in range(most + 1)]
    parts = [points[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _at(share: float) -> str:
    return f"{share * _SIZE:.0f}"


def _tick(text: str, axis: str, share: float) -> Markup:
    edge = "left" if axis == "x" else "top"
    return element("span", text, class_=f"tick {axis}", style=f"{edge}:{share:.2%}")


def _legend(lines: Sequence[Line], marks: Sequence[PlotPoint]) -> Markup:
    items = [element("li", line.label, class_=f"n{number} {line.style}") for number, line in enumerate(lines)]
    items += [element("li", mark.label, class_="mark") for mark in marks]
    return element("ul", items, class_="legend")
