"""The first screen of the printed plan: ten lines that say what can go, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerprune.plan import FrontierPoint
from layerprune.report.layout import clipped, short_number
from layerprune.report.text import Totals, amount_text, impact_text

#: The shares of the parameters whose least impact is told.
SHARES = (0.1, 0.3, 0.5)

#: How many removals are shown.
NUM_REMOVALS = 5


@dataclass(frozen=True)
class Offer:
    """One removal, or several together: what leaves, and what that takes.

    Attributes:
        groups: names of the groups that leave.
        num_params: how many parameters fewer the model has then.
        macs: how many multiply-accumulates fewer; None where that is not known.
        impact: what it costs.
    """

    groups: tuple[str, ...]
    num_params: int
    macs: float | None
    impact: float = float("nan")


@dataclass(frozen=True)
class Screen:
    """What the first screen shows.

    Attributes:
        model: the model's class.
        inputs: what one forward is counted on.
        totals: the model's size.
        most: all that can leave together.
        is_predicted: whether that is what the layer graph tells, not proven.
        cheapest: the removals of least impact, of different groups.
        costs: for each of :data:`SHARES` the least impact that removes as much; None where so much cannot leave.
        calibration: what calibration data would open, or have opened.
    """

    model: str
    inputs: str
    totals: Totals
    most: Offer
    is_predicted: bool
    cheapest: Sequence[Offer]
    costs: Sequence[FrontierPoint | None]
    calibration: str


def screen_lines(screen: Screen, width: int) -> list[str]:
    """Render the first screen, in ten lines at most, each within the width."""
    totals = screen.totals
    macs = "" if totals.macs is None else f", {short_number(totals.macs)} MACs on {screen.inputs}"
    lines = [f"{screen.model}: {totals.num_params:,} parameters{macs}"]
    if screen.cheapest:
        up_to = "up to " if screen.is_predicted else ""
        share = _share(screen.most.num_params, totals.num_params)
        most = f"{up_to}{screen.most.num_params:,} parameters ({share})"
        lines.append(f"Can leave now: {most}{_macs_share(screen.most, totals)}")
        lines += _table(screen.cheapest, totals, width)
        shares = " / ".join(f"{share * 100:.0f}" for share in SHARES)
        lines.append(f"Impact of losing {shares} %: {' / '.join(map(_cost, screen.costs))}")
    else:
        lines.append("Nothing can leave now")
    return [clipped(line, width) for line in [*lines, screen.calibration]]


def _table(offers: Sequence[Offer], totals: Totals, width: int) -> list[str]:
    """One row a removal, with a heading."""
    rows = [("parameters", "MACs", "impact"), *(_cells(offer, totals) for offer in offers)]
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    figures = ["  ".join(cell.rjust(size) for cell, size in zip(row, widths, strict=True)) for row in rows]
    room = width - len(figures[0]) - 2
    names = ["Cheapest removals", *(f"  {together(offer.groups)}" for offer in offers)]
    room = min(room, max(map(len, names)))
    return [f"{clipped(name, room).ljust(room)}  {cells}" for name, cells in zip(names, figures, strict=True)]


def _cells(offer: Offer, totals: Totals) -> tuple[str, str, str]:
    macs = "—" if offer.macs is None else f"{short_number(offer.macs)} ({_share(offer.macs, totals.macs)})"
    return amount_text(offer.num_params, totals.num_params), macs, impact_text(offer.impact)


def together(names: Sequence[str]) -> str:
    """Name groups that leave together, what their names begin with once: ``blocks.6.mlp: fc1, fc2``."""
    if len(names) == 1:
        return names[0]
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    head = ".".join(parts[0][:shared])
    rest = ", ".join(".".join(each[shared:]) for each in parts)
    return f"{head}: {rest}" if head else rest


def _macs_share(offer: Offer, totals: Totals) -> str:
    return "" if offer.macs is None else f", {_share(offer.macs, totals.macs)} of the MACs"


def _share(amount: float, total: float | None) -> str:
    return f"{amount / total if total else 0.0:.1%}"


def _cost(point: FrontierPoint | None) -> str:
    return "out of reach" if point is None else f"{impact_text(point.impact)} ({point.reduction:.0%})"
