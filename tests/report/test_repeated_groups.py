"""Groups of repeated blocks are one block of lines only where nothing but the index, or the impact, differs."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_first_screen import blocks
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.graph import Group, LayerInfo
from layerprune.report import PLAN_COLOURS, Facts, Totals, groups_text
from layerprune.report.repeated_groups import RepeatedGroups, alike_line
from layerprune.tables import coloured, impact_text
from models.nets import rows


def group(name: str, impact: float = 0.5, num_params: int = 72, **fields) -> Group:
    lead = LayerInfo(name=name, type_name="Linear", kind="transform", num_params=num_params, output_shape=(4, 8))
    known = {"can_remove": True, "impact": impact, "num_removed": num_params, **fields}
    return Group(
        lead_transform=lead, layers=(lead,), type="complex", num_params=num_params, members=(0,), calls=(0,), **known
    )


def printed(groups: list[Group], facts: dict[str, Facts] | None = None, **options) -> str:
    return groups_text(groups, facts or {}, Totals(1000), **options)


def folded(names: list[str]) -> str:
    groups = [group(name) for name in names]
    return alike_line(RepeatedGroups(0, tuple(range(1, len(names)))), groups, {g.name: "0.5" for g in groups})


# ---- the line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([f"model.layers.{n}.mlp.up" for n in range(32)], "  model.layers.1–31: as model.layers.0"),
        ([f"encoder.layer.{n}.fc" for n in (10, 0, 1, 2, 3, 11)], "  encoder.layer.0–3, 11: as encoder.layer.10"),
        ([f"layer3.{n}.conv1" for n in (1, 5, 3, 4)], "  layer3.3–5: as layer3.1"),
        ([f"encoder_layer_{n}.fc" for n in (1, 2, 3)], "  encoder_layer_2, 3: as encoder_layer_1"),
        ([f"{n}.up" for n in (2, 3, 4, 5)], "  layers 3–5: as layer 2"),
        ([f"s.{s}.b.{b}.fc" for s, b in ((0, 0), (0, 1), (1, 0))], "  s.*.b.* at 0.1, 1.0: as s.0.b.0"),
    ],
)
def test_the_others_are_named_by_their_index(names, line):
    assert folded(names) == line


def test_impacts_are_named_where_they_differ_least_first():
    text = printed([group(f"h.{n}.fc", impact) for n, impact in ((3, 0.1), (0, 0.2), (1, 0.2), (2, 0.25))])
    assert text.splitlines()[-1] == "  h.0–2: as h.3, but for the impact: 0 (0.200), 1 (0.200), 2 (0.250)"


def test_own_sizes_are_named_where_they_differ():
    sizes = {0: 10, 1: 12, 2: 1400}
    text = printed([group(f"h.{n}.fc", 0.1 + n, num_params=size, num_removed=80) for n, size in sizes.items()])
    assert text.endswith(
        "\n  h.1, 2: as h.0, but for the impact and their parameters: 1 (1.100; 12), 2\n      (2.100; 1,400)"
    )


# ---- what is folded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"num_removed": 80},
        {"can_remove": False, "needs_calibration": True},
        {"type": "parallel_branch"},
        {"reason": "changes 64 channels to 32 and nothing of that shape exists before it"},
    ],
)
def test_a_group_that_differs_in_more_than_its_index_is_shown(change):
    same = [
        group(f"h.{n}.fc", reason="changes 64 channels to 128 and nothing of that shape exists before it")
        for n in range(4)
    ]
    assert printed(same).count("Lead Transform") == 1
    text = printed([*same, replace(group("h.4.fc", reason=same[0].reason), **change)])
    assert "Lead Transform: h.4.fc" in text
    assert "h.1–3: as h.0" in text


def test_facts_count_as_well():
    groups = [group(f"h.{n}.fc") for n in range(4)]
    assert printed(groups, {"h.3.fc": Facts(macs=12.0)}).count("Lead Transform") == 2
    assert printed(groups, {"h.3.fc": Facts(kept=frozenset({"h.3.fc"}))}).count("Lead Transform") == 2


def test_names_in_a_reason_may_follow_the_index():
    groups = [group(f"h.{n}.fc", reason=f"leaves together with 'h.{n}.out'") for n in range(3)]
    assert printed(groups).count("Lead Transform") == 1


def test_groups_of_one_removal_are_named_by_the_first():
    both = [group("a", leaves_with=("b",)), group("b", num_params=1200, leaves_with=("a",)), group("c")]
    text = printed(both)
    assert "  Groups of the same removal: b (1,200 parameters)\n" in text
    assert text.count("Lead Transform") == 2
    assert printed(both, full=True).count("Lead Transform") == 3


def test_what_one_of_them_takes_by_its_name_is_said():
    both = [group("a", leaves_with=("b",)), group("b", num_params=90, leaves_with=("a",))]
    alone = SimpleNamespace(groups=("b",), num_params=90, impact=3.0)
    text = printed(both, {"b": Facts(by_name=alone)}, width=120)
    assert text.endswith("  Groups of the same removal: b (90 parameters; by name: 90 (9.0%), impact 3.000)")


def test_another_impact_is_another_removal():
    text = printed([group("a", leaves_with=("b",)), group("b", 0.7, leaves_with=("a",))])
    assert text.count("Lead Transform") == 2


# ---- names are not trusted -------------------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=30), st.integers(30, 120))
def test_any_name_stays_on_its_line_and_within_the_width(name, width):
    lines = printed([group(name), group(f"{name}1")], width=width).split("\n")
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("Group ") for line in lines) == 2
    assert not any("\x1b" in line for line in lines)


# ---- real forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 133])
@pytest.mark.parametrize("full", [False, True])
def test_colours_and_width_leave_a_whole_plan_as_it_is(width, full):
    text = UniversalLayerPruner(blocks(3), example_inputs=rows()).render_plan(full=full, width=width)
    assert coloured(text, PLAN_COLOURS).plain == text
    assert max(map(len, text.splitlines())) <= width


def test_verdicts_and_impacts_have_colours():
    shown = coloured(UniversalLayerPruner(blocks(3), example_inputs=rows()).render_plan(), PLAN_COLOURS)
    styles = {shown.plain[span.start : span.end]: str(span.style) for span in shown.spans}
    assert styles["✓ SAFE TO REMOVE"] == "bold green"
    assert styles["✗ CRITICAL"] == "bold red"
    assert styles["PRUNING SUMMARY:"] == "bold"
    assert styles[impact_text(float("inf"))] == "bold cyan"


class Layer(nn.Module):
    """Attention and an MLP, as in a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        weights = torch.softmax(self.q(y) @ self.k(y).transpose(1, 2), -1)
        x = x + self.o(weights @ self.v(y))
        return x + self.down(torch.relu(self.up(x)))


class Decoder(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.head = nn.Linear(16, 50)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_deep_decoder_on_meta_takes_a_block_for_each_kind_of_group():
    with torch.device("meta"):
        model, tokens = Decoder(28), torch.zeros(1, 6, dtype=torch.long)
    text = UniversalLayerPruner(model, example_inputs=tokens).render_plan()
    leads = re.findall(r"Lead Transform: (\S+) ", text)
    assert all(lead.startswith("layers.0.") for lead in leads[:-1])
    assert leads[-1] == "head"
    assert text.count("\n  layers.1–27: as layers.0\n") == len(leads) - 1
    assert len(text.splitlines()) < 140
