"""The first screen of the printed plan: possible removals and their impact, in few lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from layerprune.plan import FrontierPoint
from layerprune.report.text import Totals
from layerprune.tables import (
    aligned,
    amount_text,
    clipped,
    impact_text,
    name_clipped,
    share_text,
    short_number,
    visible,
    wrapped,
)

#: Shares of the parameters whose least impact is shown.
SHARES = (0.1, 0.3, 0.5)

#: Number of removals shown.
NUM_REMOVALS = 5


@dataclass(frozen=True)
class Offer:
    """A removal, or a set of removals: groups, parameters, MACs (None where not known), and impact."""

    groups: tuple[str, ...]
    num_params: int
    macs: float | None
    impact: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class Screen:
    """The contents of the first screen.

    Attributes:
        model: class of the model.
        inputs: description of the inputs whose MACs are counted.
        totals: size of the model.
        most: the largest set of removals.
        is_predicted: whether ``most`` comes from the layer graph without a proof.
        cheapest: the removals of least impact, of different groups.
        costs: least impact that removes each of :data:`SHARES` of the parameters; None where so much cannot be removed.
        calibration: removals that calibration data enable.
        macs_costs: the same of the MACs, as (share, impact); empty where MACs could not be counted.
        latency_ms: of one forward; None where nobody asked for it, since timing takes seconds.
        impact_unit: unit of the impacts, or why they are not known.
    """

    model: str
    inputs: str
    totals: Totals
    most: Offer
    is_predicted: bool
    cheapest: Sequence[Offer]
    costs: Sequence[FrontierPoint | None]
    calibration: str
    macs_costs: Sequence[tuple[float, float] | None] = ()
    latency_ms: float | None = None
    impact_unit: str = ""

    @property
    def is_measured(self) -> bool:
        """Whether the impact of a removal is known."""
        return any(not math.isnan(offer.impact) for offer in self.cheapest)


def screen_lines(screen: Screen, width: int) -> list[str]:
    """Render the first screen, in at most 13 lines within ``width`` columns."""
    totals = screen.totals
    macs = "" if totals.macs is None else f", {short_number(totals.macs)} MACs on {screen.inputs}"
    lines = [f"{screen.model}: {totals.num_params:,} parameters{macs}"]
    if screen.cheapest:
        up_to = "up to " if screen.is_predicted else ""
        share = share_text(screen.most.num_params, totals.num_params)
        most = f"{up_to}{screen.most.num_params:,} parameters ({share})"
        lines.append(f"Can leave now: {most}{_macs_share(screen.most, totals)}")
        lines += _table(screen.cheapest, "Cheapest removals" if screen.is_measured else "Removals", totals, width)
        lines += _budgets(screen) if screen.is_measured else wrapped([f"Impact: {screen.impact_unit}"], width)
    else:
        lines.append("Nothing can leave now")
    return [clipped(visible(line), width) for line in [*lines, screen.calibration]]


def _budgets(screen: Screen) -> list[str]:
    """The least impact that takes a share of the parameters and of the MACs; the latency, where it is known."""
    costs = [None if point is None else (point.reduction, point.impact) for point in screen.costs]
    rows = [["Least impact to lose", *(f"{share:.0%}" for share in SHARES)]]
    rows.append(["  of the parameters", *map(_cost, costs)])
    if screen.macs_costs:
        rows.append(["  of the MACs", *map(_cost, screen.macs_costs)])
    latency = "not measured; plan(target_latency_ms=…) measures it"
    if screen.latency_ms is not None:
        latency = f"{screen.latency_ms:.3g} ms now; plan(target_latency_ms=…) reduces it"
    return [*aligned(rows), f"  of the latency      {latency}"]


def _table(offers: Sequence[Offer], title: str, totals: Totals, width: int) -> list[str]:
    rows = [("parameters", "MACs", "impact"), *(_cells(offer, totals) for offer in offers)]
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    figures = ["  ".join(cell.rjust(size) for cell, size in zip(row, widths, strict=True)) for row in rows]
    names = [title, *(together(offer.groups) for offer in offers)]
    room = min(width - len(figures[0]) - 2, max(len(title), *(len(name) + 2 for name in names[1:])))
    cut = [clipped(title, room), *(f"  {name_clipped(name, room - 2)}" for name in names[1:])]
    return [f"{name.ljust(room)}  {cells}" for name, cells in zip(cut, figures, strict=True)]


def _cells(offer: Offer, totals: Totals) -> tuple[str, str, str]:
    macs = "—" if offer.macs is None else f"{short_number(offer.macs)} ({share_text(offer.macs, totals.macs)})"
    return amount_text(offer.num_params, totals.num_params), macs, impact_text(offer.impact)


def together(names: Sequence[str]) -> str:
    """Join names of groups with their common prefix first: ``blocks.6.mlp: fc1, fc2``."""
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
    return "" if offer.macs is None else f", {share_text(offer.macs, totals.macs)} of the MACs"


def _cost(point: tuple[float, float] | None) -> str:
    return "out of reach" if point is None else f"{impact_text(point[1])} ({point[0]:.0%})"
