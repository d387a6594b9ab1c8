"""An inspection as text."""

from __future__ import annotations

from collections.abc import Sequence

from layerprune.inspection.inspection import Inspection
from layerprune.tables import WIDTH, bytes_text, clipped, short_number, wrapped

_LABELS = {
    "removable": "can go now",
    "with_calibration": "can go with calibration data",
    "critical": "must stay",
}
_NUM_REASONS = 6


def inspection_text(found: Inspection, *, width: int = WIDTH) -> str:
    """Render what a model is made of, in tables within ``width`` columns."""
    macs = "" if found.macs is None else f", {short_number(found.macs)} MACs on {found.inputs}"
    head = f"{found.model}: {found.num_params:,} parameters ({bytes_text(found.num_bytes)}){macs}"
    lines = [head, f"{found.num_layers} layers run, in {found.num_modules} modules"]
    if found.num_unused:
        lines.append(f"{found.num_unused:,} parameters never run: `prune --unused` takes them out")
    total = found.num_params
    kinds = [
        (each.kind, f"{each.num_layers}", _amount(each.num_params, total), ", ".join(each.classes))
        for each in found.kinds
    ]
    lines += ["", *_table(("kind of layer", "layers", "parameters", "classes"), kinds, width)]
    if found.blocks:
        blocks = [
            (
                each.container or "the model",
                f"{each.num} × {each.block}",
                _amount(each.num_params, total),
                "alike" if each.are_alike else "of several shapes",
            )
            for each in found.blocks
        ]
        lines += ["", *_table(("repeated blocks in", "", "parameters", ""), blocks, width)]
    verdicts = [(_LABELS[v.verdict], f"{v.num_groups}", _amount(v.num_params, total), "") for v in found.verdicts]
    lines += ["", *_table(("groups", "", "parameters", ""), verdicts, width)]
    lines.append(f"Types: {', '.join(f'{num} {name}' for name, num in found.group_types.items())}")
    if found.refusals:
        lines += ["", "Why groups stay"]
        for each in found.refusals[:_NUM_REASONS]:
            lines += wrapped([f"  {each.num_groups} × {each.code}, as {each.group}: {each.reason}"], width)
        if len(found.refusals) > _NUM_REASONS:
            lines.append(f"  and {len(found.refusals) - _NUM_REASONS} other reasons")
    return "\n".join([*lines, *wrapped([f"Note: {note}" for note in found.notes], width)])


def _amount(num: int, total: int) -> str:
    return f"{num:,} ({num / total if total else 0:.1%})"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """Rows of a name, two amounts and a remark."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(3)]
    lines: list[str] = []
    for name, first, second, remark in [head, *rows]:
        cells = f"{name.ljust(widths[0])}  {first.rjust(widths[1])}  {second.rjust(widths[2])}"
        lines.append(clipped(f"{cells}  {remark}".rstrip(), width))
    return lines
