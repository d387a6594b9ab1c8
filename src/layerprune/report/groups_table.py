"""The groups as a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from layerprune.graph import Group, GroupVerdict
from layerprune.tables import Table, Toned, amount_text, impact_text

_ROWS = 15
_VERDICTS: Mapping[GroupVerdict, Toned] = {
    "removable": Toned("✓ safe to remove", "good"),
    "with_calibration": Toned("○ with calibration data", "care"),
    "critical": Toned("✗ critical", "bad"),
}


_UNTRIED = Toned("? not tried yet", "quiet")


def groups_table(
    groups: Sequence[Group],
    title: str,
    facts: Sequence[tuple[str, str]],
    num_params: int,
    untried: Collection[str] = (),
) -> Table:
    """One row for each of the first groups; a note says how many are left out.

    Args:
        groups: in the order of display.
        title: the model in one line.
        facts: what stands above the rows.
        num_params: of the model, for shares.
        untried: names of groups whose verdict is not known yet.
    """
    rows = [
        (
            group.name,
            _UNTRIED if group.name in untried else _VERDICTS[group.verdict],
            group.reason,
            amount_text(group.num_params, num_params),
            amount_text(group.num_removed, num_params) if group.num_removed else "—",
            "—" if group.verdict == "critical" else impact_text(group.impact),
        )
        for group in groups[:_ROWS]
    ]
    left = len(groups) - _ROWS
    return Table(
        title=title,
        facts=tuple(facts),
        columns=("group", "verdict", "reason", "parameters", "removes", "impact"),
        rows=tuple(rows),
        notes=(f"{left} more groups are not shown; print_plan() shows all",) if left > 0 else (),
        num_left=3,
    )
