"""The first screen of the printed plan: possible removals and their impact, in ten lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerprune.plan import FrontierPoint
from layerprune.report.text import Totals
from layerprune.tables import amount_text, clipped, impact_text, name_clipped, share_text, short_number

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


@dataclass(frozen=True)
class Screen:
    """The contents of the first screen.

    Attributes:
        model: class of the model.
        inputs: description of the inputs whose MACs are counted.
        totals: size of the model.
        most: the largest set of removals.
        is_predicted: whether ``most`` comes from the layer graph without a proof.
        cheapest: the removals of least impact, of different groups.
        costs: least impact for each of :data:`SHARES`; None where so much cannot be removed.
        calibration: removals that calibration data enable.
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
    """Render the first screen, in at most ten lines within ``width`` columns."""
    totals = screen.totals
    macs = "" if totals.macs is None else f", {short_number(totals.macs)} MACs on {screen.inputs}"
    lines = [f"{screen.model}: {totals.num_params:,} parameters{macs}"]
    if screen.cheapest:
        up_to = "up to " if screen.is_predicted else ""
        share = share_text(screen.most.num_params, totals.num_params)
        most = f"{up_to}{screen.most.num_params:,} parameters ({share})"
        lines.append(f"Can leave now: {most}{_macs_share(screen.most, totals)}")
        lines += _table(screen.cheapest, totals, width)
        shares = " / ".join(f"{share * 100:.0f}" for share in SHARES)
        lines.append(f"Losing {shares} % costs: {' / '.join(map(_cost, screen.costs))}")
    else:
        lines.append("Nothing can leave now")
    return [clipped(line, width) for line in [*lines, screen.calibration]]


def _table(offers: Sequence[Offer], totals: Totals, width: int) -> list[str]:
    rows = [("parameters", "MACs", "impact"), *(_cells(offer, totals) for offer in offers)]
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    figures = ["  ".join(cell.rjust(size) for cell, size in zip(row, widths, strict=True)) for row in rows]
    room = width - len(figures[0]) - 2
    names = ["Cheapest removals", *(f"  {together(offer.groups)}" for offer in offers)]
    room = min(room, max(map(len, names)))
    return [f"{name_clipped(name, room).ljust(room)}  {cells}" for name, cells in zip(names, figures, strict=True)]


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


def _cost(point: FrontierPoint | None) -> str:
    return "out of reach" if point is None else f"{impact_text(point.impact)} ({point.reduction:.0%})"
