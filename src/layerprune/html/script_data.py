"""What the script of the page needs beside the tables: members and reasons of groups, and the frontier's sets."""

from __future__ import annotations

import json
from typing import Any

from layerprune.graph import Group, LayerInfo
from layerprune.html.frontier import set_text
from layerprune.html.markup import Markup, element, script_json
from layerprune.html.report_data import ReportData
from layerprune.proof import Removal
from layerprune.report import Facts, amount_text, impact_text


def script_data(data: ReportData) -> Markup:
    """A script element of JSON; texts that many groups share stand in it once."""
    cards = _Cards(data)
    sets = [
        {"text": set_text(each), "groups": [cards.numbers[name] for name in each.groups if name in cards.numbers]}
        for each in data.sets
    ]
    content = {"groups": [cards.card(group) for group in data.groups], "sets": sets, "texts": list(cards.texts)}
    return _json_element("data", json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def plan_data(data: ReportData) -> Markup | None:
    """The plan as a script element: the text that ``PruningPlan.load`` reads, for the download."""
    return None if data.plan is None else _json_element("plan", data.plan.model_dump_json())


def _json_element(name: str, text: str) -> Markup:
    return element("script", script_json(text), type="application/json", id=name)


class _Cards:
    """The parts of cards that the table's rows do not have; empty ones are left out.

    Attributes:
        numbers: name → number of the group.
        texts: shared texts, in the order of their numbers.
    """

    def __init__(self, data: ReportData) -> None:
        self.data = data
        self.numbers = {group.name: number for number, group in enumerate(data.groups)}
        self.texts: dict[str, int] = {}

    def card(self, group: Group) -> dict[str, Any]:
        facts = self.data.facts.get(group.name, Facts())
        found: dict[str, Any] = {
            "type": self.number(group.type.replace("_", " ")),
            "verdict": self.number(group.verdict),
            "reason": group.reason,
            "with": [self.numbers[name] for name in group.leaves_with],
            "members": [self.member(layer, facts, group.name) for layer in group.layers],
            "by_name": "" if facts.by_name is None else _by_name(facts.by_name, self.data.num_params),
        }
        return {key: value for key, value in found.items() if value not in ("", [])}

    def number(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))

    def member(self, layer: LayerInfo, facts: Facts, lead: str) -> list[str | int]:
        """Name and description; a leading ``.`` stands for the module around the lead, an empty name for the lead."""
        shape = "×".join(map(str, layer.output_shape))
        words = [layer.type_name, layer.kind, shape, *(["stays"] if layer.name in facts.kept else [])]
        around = f"{lead.rpartition('.')[0]}."
        name = "" if layer.name == lead else layer.name
        if len(around) > 1 and name.startswith(around):
            name = name[len(around) - 1 :]
        return [name, self.number(" · ".join(filter(None, words)))]


def _by_name(removal: Removal, total: int) -> str:
    others = len(removal.groups) - 1
    company = f" with {others} other {'group' if others == 1 else 'groups'}" if others else ""
    return f"{amount_text(removal.num_params, total)}{company}, impact {impact_text(removal.impact)}"
