"""What a pruner shows of itself: one line, a table and pictures, without work that nobody asked for."""

import io
import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from rich.console import Console
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.errors import ReportError
from models.nets import linear, randomised, rows

mpl.use("Agg")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = linear(8, 16), linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def blocks(depth: int = 6) -> nn.Module:
    return randomised(nn.Sequential(linear(), *(Block() for _ in range(depth)), linear()))


def fresh() -> UniversalLayerPruner:
    return UniversalLayerPruner(blocks(), example_inputs=rows())


@pytest.fixture(scope="module")
def calibrated():
    """A pruner with data, and its plan. Nothing here prunes it."""
    pruner = UniversalLayerPruner(blocks(), calibration=[rows(8, seed=seed) for seed in range(6)])
    return pruner, pruner.plan(max_param_reduction=0.4)


def texts(html: str) -> str:
    return re.sub(r"<[^>]*>", " ", html)


# ---- one line and a table --------------------------------------------------------------------------------------------


def test_nothing_is_measured_for_a_look():
    pruner = fresh()
    seen = [repr(pruner), pruner._repr_html_(), str(pruner.as_table())]
    Console(file=io.StringIO()).print(pruner)
    assert not {"_scored", "_planner", "_overview"} & vars(pruner).keys()
    assert "projections" not in vars(pruner._found)
    assert seen[0] == (
        "UniversalLayerPruner(Sequential: 1.82 k parameters, 12 of 14 groups removable, impacts not measured)"
    )
    assert "not measured yet; print_plan() measures" in texts(seen[1])


def test_once_measured_the_impacts_show():
    pruner = fresh()
    least = min(group.impact for group in pruner.groups)
    assert repr(pruner) == "UniversalLayerPruner(Sequential: 1.82 k parameters, 12 of 14 groups removable)"
    shown = texts(pruner._repr_html_())
    assert f"{least:.3f}" in shown
    assert pruner.impact_unit in shown
    assert "Can leave now" not in shown
    pruner.render_plan()
    assert "Can leave now, together: 1,680 (92.1%)" in re.sub(r"\s+", " ", texts(pruner._repr_html_()))


def test_groups_whose_projections_nobody_tried_have_no_verdict_yet():
    chain = randomised(
        nn.Sequential(linear(8, 6), nn.Tanh(), linear(6, 9), nn.Tanh(), linear(9, 9), nn.Tanh(), linear(9, 2))
    )
    pruner = UniversalLayerPruner(chain, example_inputs=rows())
    shown = texts(pruner._repr_html_())
    assert "? not tried yet" in shown
    assert "1 not tried yet" in shown
    assert "projections" not in vars(pruner._found)
    assert [group.verdict for group in pruner.groups].count("with_calibration") == 1
    shown = texts(pruner._repr_html_())
    assert "not tried yet" not in shown
    assert "○ with calibration data" in shown


def test_the_table_is_short_for_a_deep_network():
    deep = UniversalLayerPruner(blocks(20), example_inputs=rows())
    assert len(deep.as_table().rows) == 15
    assert deep.as_table().notes == ("27 more groups are not shown; print_plan() shows all",)


def test_the_picture_marks_the_plan_made_last_and_is_saved_as_svg(tmp_path):
    pruner = UniversalLayerPruner(blocks(4), example_inputs=rows())
    assert not any(group.goes for group in pruner.picture().groups)
    plan = pruner.plan(max_param_reduction=0.3)
    assert {group.name for group in pruner.picture().groups if group.goes} == set(plan.groups)
    everything = pruner.plan(groups=[group for group in pruner.groups if group.can_remove][:1])
    assert {group.name for group in pruner.picture(plan).groups if group.goes} == set(plan.groups)
    assert {group.name for group in pruner.picture().groups if group.goes} == set(everything.groups)
    path = pruner.picture(plan).save(tmp_path / "new" / "network.svg")
    assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    with pytest.raises(ReportError, match="the picture cannot be written to"):
        pruner.picture().save(path / "below.svg")


def test_on_the_meta_device_impacts_are_unknown():
    pruner = UniversalLayerPruner(blocks().to("meta"), example_inputs=rows().to("meta"))
    text = pruner.render_plan()
    assert repr(pruner).endswith("12 of 14 groups removable, impacts unknown)")
    assert "\nImpact: not measured: the model or its inputs are on the meta device" in text
    assert "Least impact" not in text
    assert "\n  layers 2–6: as layer 1\n" in text  # nothing but the index differs
    with pytest.raises(ReportError, match="no frontier to draw: impacts are not measured"):
        pruner.plot_frontier()
    with pytest.raises(ReportError, match="no impacts to draw"):
        pruner.plot_impact()


def test_a_measured_latency_is_in_the_summary():
    pruner = fresh()
    assert "of the latency      not measured" in pruner.render_plan()
    pruner.plan(target_latency_ms=1e6)
    assert re.search(r"of the latency      [\d.e-]+ ms now; ", pruner.render_plan())


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_frontier_is_drawn_with_the_plan_marked(calibrated):
    pruner, plan = calibrated
    ax = pruner.plot_frontier(plan=plan)
    line, *stars = ax.get_lines()
    assert list(line.get_xdata()) == pytest.approx([100 * point.reduction for point in pruner.frontier])
    assert list(line.get_ydata()) == pytest.approx([point.impact for point in pruner.frontier])
    assert [(star.get_xdata()[0], star.get_ydata()[0]) for star in stars] == [
        pytest.approx((100 * plan.reduction, sum(removal.impact for removal in plan.removals))),
        pytest.approx((100 * plan.reduction, plan.impact_together)),
    ]
    assert ax.get_xlabel() == "parameters removed, %"
    assert pruner.impact_unit in ax.get_ylabel().replace("\n", " ")
    assert [text.get_text() for text in ax.get_legend().get_texts()][1:] == [
        "the plan, sum of its impacts",
        "the plan, measured",
    ]


def test_the_plan_made_last_is_marked_where_none_is_given(calibrated):
    pruner, _ = calibrated
    assert len(pruner.plot_frontier().get_lines()) == 3
    assert len(fresh().plot_frontier().get_lines()) == 1


def test_impacts_are_drawn_least_first_with_their_intervals(calibrated):
    pruner, plan = calibrated
    ax = pruner.plot_impact(plan=plan)
    removable = [group for group in pruner.groups if group.can_remove]
    assert [label.get_text() for label in ax.get_yticklabels()] == [group.name for group in removable]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([group.impact for group in removable])
    assert ax.yaxis_inverted()
    leaving = {name for removal in plan.removals for name in removal.groups}
    colours = [bar.get_facecolor() for bar in ax.patches]
    assert [colour == colours[0] for colour in colours] == [
        (group.name in leaving) == (removable[0].name in leaving) for group in removable
    ]
    assert "interval" in ax.get_xlabel()
    assert len(ax.containers) == 2  # bars, and their intervals


def test_given_axes_are_drawn_on_and_nothing_is_shown(calibrated, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("shown"))
    pruner, _ = calibrated
    figure, axes = plt.subplots(1, 2)
    assert pruner.plot_frontier(axes[0]) is axes[0]
    assert pruner.plot_impact(axes[1], num=3) is axes[1]
    assert len(axes[1].patches) == 3
    assert axes[1].get_title().endswith("the 3 of least impact of 12")
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()


def test_names_with_dollars_are_no_formulas():
    model = nn.Sequential()
    model.add_module("a$_x$", linear())
    model.add_module("b$\\bad$", Block())
    model.add_module("c", linear())
    pruner = UniversalLayerPruner(randomised(model), example_inputs=rows())
    ax = pruner.plot_impact()
    assert ax.get_yticklabels()[0].get_text() == "b$\\bad$.up"
    ax.figure.canvas.draw()


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch, calibrated):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ReportError, match="plots need matplotlib; run: pip install matplotlib"):
        calibrated[0].plot_frontier()


def test_importing_the_library_imports_no_matplotlib():
    code = "import sys, layerprune.pruner; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
