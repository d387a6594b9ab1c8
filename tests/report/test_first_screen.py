"""The printed plan: one screen first, no line wider than the terminal, repeated blocks once; two pages show it."""

import io
import re
import sys
from pathlib import Path

import pytest
import torch
from test_prices import Block
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.report import terminal_width
from layerprune.report.first_screen import together
from layerprune.tables import clipped, short_number, wrapped
from models.nets import ExampleModel, linear, randomised, rows

REPOSITORY = Path(__file__).parents[2]


def blocks(depth: int = 6) -> nn.Module:
    return randomised(nn.Sequential(linear(), *(Block() for _ in range(depth)), linear()))


@pytest.fixture(scope="module")
def pruner():
    """Six residual blocks of one form. Nothing here prunes it."""
    return UniversalLayerPruner(blocks(), example_inputs=rows())


def opening(text: str) -> list[str]:
    return text.split("\n\n")[0].splitlines()


# ---- the first screen ------------------------------------------------------------------------------------------------


def test_few_lines_say_what_can_go_and_what_it_costs(pruner):
    lines = opening(pruner.render_plan())
    branch, total = 16 + 144 + 136, 6 * (16 + 144 + 136) + 2 * 72
    macs = 4 * 2 * 8 * 16  # of a branch, on four rows
    assert len(lines) == 13
    assert lines[0] == f"Sequential: {total:,} parameters, 6.66 k MACs on 4×8"
    assert lines[1] == f"Can leave now: {6 * branch:,} parameters ({6 * branch / total:.1%}), 92.3% of the MACs"
    assert lines[2].split() == ["Cheapest", "removals", "parameters", "MACs", "impact"]
    rows_ = [
        re.fullmatch(r"  (\d): up, down +296 \(15\.4%\)  1\.02 k \(15\.4%\) +([\d.]+)", line) for line in lines[3:8]
    ]
    assert macs == 1024
    assert all(rows_)
    impacts = sorted(group.impact for group in pruner.groups if group.name.endswith(".up"))
    assert [float(row[2]) for row in rows_] == pytest.approx(impacts[:5], abs=5e-4)
    least = [sum(impacts[:num]) for num in (1, 2, 4)]  # the smallest numbers of branches that hold 10, 30, 50 %
    assert lines[8].split() == ["Least", "impact", "to", "lose", "10%", "30%", "50%"]
    for line, what in zip(lines[9:11], ("parameters", "MACs"), strict=True):
        shown = re.fullmatch(rf"  of the {what} +(\S+) \(15%\) +(\S+) \(31%\) +(\S+) \(62%\)", line)
        assert [float(each) for each in shown.groups()] == pytest.approx(least, abs=2e-3)
    assert lines[11].split(maxsplit=3)[3].startswith("not measured")
    assert lines[12] == "Calibration data would open no other group"


def test_what_excludes_each_other_is_not_counted_twice():
    """Either branch of the concat may go, with the channels of ``conv3``; ``conv3`` and the other may go together."""
    text = UniversalLayerPruner(randomised(ExampleModel())).render_plan()
    assert opening(text)[1].startswith("Can leave now: 68,800 parameters (77.3%)")  # conv2b, conv3, 640 weights of fc
    assert "Parameters that can leave now, together: 68,800 (77.3%)" in text


def test_what_cannot_leave_costs_no_number():
    wide = randomised(nn.Sequential(linear(8, 64), Narrow(), linear(64, 8)))
    line = opening(UniversalLayerPruner(wide, example_inputs=rows()).render_plan())[-4]
    assert re.search(r"of the parameters .*%\) +out of reach +out of reach$", line)


class Narrow(nn.Module):
    """A branch that holds a tenth to a third of the network around it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = linear(64, 2), linear(2, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def test_it_says_what_calibration_would_open_and_has_opened():
    layers = (linear(8, 6), nn.Tanh(), linear(6, 9), nn.Tanh(), linear(9, 9), nn.Tanh(), linear(9, 2))
    chain = randomised(nn.Sequential(*layers))
    total, both = 54 + 63 + 90 + 20, 63 + 90 + 2 * (9 - 6)  # the reader of the projection gets narrower
    last = opening(UniversalLayerPruner(chain, example_inputs=rows()).render_plan())[-1]
    assert last == f"Calibration data would open 1 more group: up to {both / total:.1%} could leave"
    last = opening(UniversalLayerPruner(chain, calibration=[rows(32, seed=s) for s in (1, 2)]).render_plan())[-1]
    assert last == "Calibration data opened 1 more group, by projections that are fitted on them"


def test_where_nothing_can_leave_the_screen_says_so():
    model = randomised(nn.Sequential(linear(8, 4), nn.ReLU(), linear(4, 3), nn.ReLU(), linear(3, 40)))
    lines = opening(UniversalLayerPruner(model, example_inputs=rows(), projections=False).render_plan())
    assert lines[1] == "Nothing can leave now"


def test_groups_that_leave_together_are_named_by_what_they_share():
    assert together(["blocks.6.mlp.fc1", "blocks.6.mlp.fc2"]) == "blocks.6.mlp: fc1, fc2"
    assert together(["a", "b.c"]) == "a, b.c"
    assert together(["blocks.1"]) == "blocks.1"
    assert together(["a.b", "a.b.c"]) == "a: b, b.c"


# ---- width -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_it_may_be(pruner, width):
    plan = pruner.plan(max_param_reduction=0.5)
    stream, sys.stdout = sys.stdout, io.StringIO()
    try:
        pruner.print_plan(plan, full=True, width=width)
        text = sys.stdout.getvalue()
    finally:
        sys.stdout = stream
    assert max(map(len, text.splitlines())) <= width


def test_a_pipe_is_eighty_columns_wide(capsys):
    assert terminal_width() == 80
    plan = UniversalLayerPruner(blocks(2), example_inputs=rows())
    plan.print_plan()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_terminal_says_how_wide_it_is(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "133")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert terminal_width() == 133


def test_lines_are_broken_between_words_and_set_in():
    assert wrapped(["  Reason: one two three four"], 20) == ["  Reason: one two", "      three four"]
    assert wrapped(["short"], 80) == ["short"]
    assert wrapped(["  a " + "b" * 30], 20)[0].startswith("  a")
    assert clipped("abcdef", 4) == "abc…"
    assert [short_number(value) for value in (12, 999.4, 19_234_816, 1.5e12)] == ["12", "999", "19.2 M", "1.5 T"]


# ---- repeated blocks -------------------------------------------------------------------------------------------------


def test_repeated_blocks_are_shown_once_with_the_impacts_of_all(pruner):
    text = pruner.render_plan(width=120)
    assert text.count("Lead Transform: ") == 3  # up, which down leaves with, stem, head
    first, *others = [group for group in pruner.groups if group.name.endswith(".up")]
    assert f"Lead Transform: {first.name} (Linear)" in text
    block = first.name.split(".")[0]
    assert f"  Groups of the same removal: {block}.down (136 parameters)\n" in text
    (line,) = [line for line in text.splitlines() if f": as layer {block}" in line]
    assert line.startswith("  layers ")
    told = dict(re.findall(r"(\d) \(([\d.]+)\)", line.split("but for the impact: ")[1]))
    assert list(told) == [group.name.split(".")[0] for group in others]
    assert [float(impact) for impact in told.values()] == pytest.approx([g.impact for g in others], abs=5e-4)


def test_in_full_each_group_has_its_block(pruner):
    text = pruner.render_plan(full=True)
    assert ": as layer" not in text
    assert "Groups of the same removal" not in text
    leads = re.findall(r"Group (\d+): .*\n  Lead Transform: (\S+) ", text)
    assert leads == [(str(number), group.name) for number, group in enumerate(pruner.groups)]


def test_two_that_are_alike_are_both_shown():
    text = UniversalLayerPruner(blocks(2), example_inputs=rows()).render_plan()
    assert ": as layer" not in text
    assert text.count("Lead Transform: ") == 4
    assert text.count("Groups of the same removal: ") == 2


# ---- the README and the guide ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def printed():
    torch.manual_seed(0)
    return UniversalLayerPruner(ExampleModel()).render_plan().splitlines()


@pytest.mark.parametrize(
    ("page", "openings"),
    [("README.md", ["ExampleModel: "]), ("docs/guide.md", ["ExampleModel: ", "Group 3: "])],
)
def test_the_pages_show_what_is_printed(printed, page, openings):
    """Each block of the example stands in the printed plan, up to an ellipsis; impacts agree to rounding."""
    blocks = (REPOSITORY / page).read_text(encoding="utf-8").split("```\n")
    for opening_line in openings:
        (block,) = [part for part in blocks if part.startswith(opening_line)]
        lines = block.partition("  …\n")[0].splitlines()
        start = next(n for n, line in enumerate(printed) if line == lines[0])
        for line, found in zip(lines, printed[start : start + len(lines)], strict=True):
            assert _without_impacts(line) == _without_impacts(found)
            assert _impacts(line) == pytest.approx(_impacts(found), rel=0.02)


_IMPACT = re.compile(r"\d\.\d{3}\b(?! ?[kMG])")


def _without_impacts(line: str) -> str:
    return _IMPACT.sub("#", line)


def _impacts(line: str) -> list[float]:
    return [float(number) for number in _IMPACT.findall(line)]
