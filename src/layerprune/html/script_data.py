"""What the script of the page needs beside the tables: members and reasons of groups, and the frontier's sets."""

from __future__ import annotations

import json
from typing import Any

from layerprune.graph import Group, LayerInfo
from layerprune.html.frontier import set_text
from layerprune.html.markup import Markup, element, script_json
from layerprune.html.report_data import ReportData
from layerprune.report import Facts, amount_text, impact_text


def script_data(data: ReportData) -> Markup:
    """A script element of JSON."""
    numbers = {group.name: number for number, group in enumerate(data.groups)}
    content = {
        "groups": [_card(group, data.facts.get(group.name, Facts()), data.num_params) for group in data.groups],
        "sets": [
            {"text": set_text(each), "groups": [numbers[name] for name in each.groups if name in numbers]}
            for each in data.sets
        ],
    }
    return _json_element("data", json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def plan_data(data: ReportData) -> Markup | None:
    """The plan as a script element: the text that ``PruningPlan.load`` reads, for the download."""
    return None if data.plan is None else _json_element("plan", data.plan.model_dump_json())


def _json_element(name: str, text: str) -> Markup:
    return element("script", script_json(text), type="application/json", id=name)


def _card(group: Group, facts: Facts, total: int) -> dict[str, Any]:
    """The parts of a card that the table's row does not have; empty ones are left out."""
    card: dict[str, Any] = {
        "kind": group.lead_transform.type_name,
        "type": group.type.replace("_", " "),
        "verdict": group.verdict,
        "reason": group.reason,
        "with": list(group.leaves_with),
        "members": [_member(layer, facts) for layer in group.layers],
    }
    if facts.by_name is not None:
        by_name = facts.by_name
        others = len(by_name.groups) - 1
        card["by_name"] = (
            f"{amount_text(by_name.num_params, total)} with {others} other {'group' if others == 1 else 'groups'}, "
            f"impact {impact_text(by_name.impact)}"
        )
    return {key: value for key, value in card.items() if value}


def _member(layer: LayerInfo, facts: Facts) -> list[str]:
    shape = "×".join(map(str, layer.output_shape))
    kept = ["stays"] if layer.name in facts.kept else []
    return [layer.name, layer.type_name, layer.kind, shape, *kept]
