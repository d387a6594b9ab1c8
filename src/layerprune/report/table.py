"""The plan as a table."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from layerprune.plan import PruningPlan


def table_of(chosen: PruningPlan) -> Table:
    """One row per removal, and a footer with the parameters before and after."""
    before, after = chosen.num_params_before, chosen.num_params_after
    share = f"-{1 - after / before:.1%}" if before else ""
    table = Table(show_footer=True)
    table.add_column("Removed", footer=f"Parameters: {before:,} → {after:,}", overflow="fold")
    table.add_column("Groups", overflow="fold")
    table.add_column("Parameters", footer=share, justify="right")
    table.add_column("Impact", justify="right")
    for removal in chosen.removals:
        leads = escape(", ".join(removal.groups))
        impact = "unknown" if removal.impact is None else f"{removal.impact:.4g}"
        table.add_row(escape(removal.name), leads, f"{removal.num_params:,}", impact)
    if not chosen.removals:
        table.add_row("nothing fits the budget", "", "0", "")
    return table
