"""A plan that removes little, or nothing, says why and what to do; the warning points at the caller's line."""

import warnings

import pytest
from test_select import independent
from torch import nn
from typer.testing import CliRunner

from layerprune import UniversalLayerPruner, quick_prune
from layerprune.cli import app
from layerprune.errors import BudgetError, ShortfallWarning
from models.nets import linear, randomised, rows

UNEVEN = (4, 9, 21, 34)


def chain():
    """A chain in which every group changes the width, so that nothing can go without calibration data."""
    return randomised(nn.Sequential(linear(8, 4), nn.ReLU(), linear(4, 3), nn.ReLU(), linear(3, 40)))


@pytest.fixture(scope="module")
def blocks():
    return independent(*UNEVEN)


def share_of(pruner, width):
    """The share of the parameters that the block of a width holds: two weights of 8 and two biases."""
    return (2 * 8 * width + width + 8) / pruner.graph.num_params


# ---- warnings --------------------------------------------------------------------------------------------------------


def test_a_model_in_which_nothing_can_go_warns_with_the_reason_at_the_callers_line():
    with pytest.warns(ShortfallWarning, match="every group is critical") as caught:
        pruned = quick_prune(chain(), example_inputs=rows(), projections=False)
    assert [type(module) for module in pruned] == [type(module) for module in chain()]
    assert [warning.filename for warning in caught] == [__file__]


def test_a_cap_below_the_smallest_removal_warns_with_the_least_value_that_does(blocks):
    with pytest.warns(ShortfallWarning) as caught:
        blocks.prune(max_param_reduction=0.01)
    (message,) = (str(warning.message) for warning in caught)
    assert f"takes {share_of(blocks, 4):.1%} of the parameters, the cap is 1.0%" in message
    value = float(message.split("raise max_param_reduction to ")[1].split()[0])
    assert blocks.plan(max_param_reduction=value).removals


def test_less_than_half_of_a_cap_warns(blocks):
    cap = 0.99 * share_of(blocks, 9)  # the block of width 4 fits, and takes less than half of it
    with pytest.warns(ShortfallWarning, match="of a budget of"):
        blocks.prune(max_param_reduction=cap)
    assert share_of(blocks, 4) < cap / 2


def test_a_cap_that_is_filled_does_not_warn(blocks):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blocks.prune(max_param_reduction=share_of(blocks, 9) + 0.001)
        blocks.prune(max_impact=1e9)
        assert len(blocks.plan(groups=[blocks.groups[0].name]).removals) == 1
        blocks.prune(groups=[blocks.groups[0].name])


@pytest.mark.parametrize("options", [{"protect": "*"}, {"protect": ["0", "1", "2", "3", "4", "5"]}])
def test_a_model_that_is_protected_as_a_whole_warns(options):
    pruner = UniversalLayerPruner(independent(*UNEVEN).model, example_inputs=rows(), **options)
    with pytest.warns(ShortfallWarning, match="every group is critical"):
        pruned = pruner.prune(max_param_reduction=0.5)
    assert len(pruned) == len(UNEVEN) + 2


def test_no_name_in_groups_warns(blocks):
    with pytest.warns(ShortfallWarning, match="groups= names no group"):
        pruned = blocks.prune(groups=[])
    assert len(pruned) == len(blocks.model)


def test_a_plan_that_removes_nothing_warns_when_it_is_carried_out(blocks):
    plan = blocks.plan(max_param_reduction=0.01)
    with pytest.warns(ShortfallWarning, match="raise max_param_reduction"):
        pruned = blocks.prune(plan=type(plan).from_json(plan.to_json()))
    assert len(pruned) == len(UNEVEN) + 2


# ---- the note on the budget, and slack -------------------------------------------------------------------------------


def note_of(plan):
    (note,) = (note for note in plan.notes if "of a budget of" in note)
    return note


def with_impacts(pruner, impacts):
    """The same pruner, with made-up impacts by width."""
    import dataclasses

    scored = pruner._scored
    by_size = sorted(range(len(scored.removals)), key=lambda i: scored.removals[i].num_params)
    removals = list(scored.removals)
    for number, impact in zip(by_size, impacts, strict=True):
        removals[number] = dataclasses.replace(removals[number], impact=impact)
    fresh = independent(*UNEVEN)
    fresh.__dict__["_scored"] = dataclasses.replace(scored, removals=removals)
    return fresh


def test_the_note_names_what_fits_and_slack_where_less_impact_was_preferred():
    pruner = with_impacts(independent(*UNEVEN), (5.0, 1.0, 1.0, 1.0))
    cap = share_of(pruner, 34) + share_of(pruner, 4) + 0.03
    plan = pruner.plan(max_param_reduction=cap, slack=0.2)
    assert [r.num_params for r in plan.removals] == [2 * 8 * 34 + 34 + 8]
    fits = share_of(pruner, 34) + share_of(pruner, 4)
    assert f"{fits:.1%} fits: slack=0.2 lets a plan stay up to 20% below what fits" in note_of(plan)
    assert plan.slack == 0.2
    full = pruner.plan(max_param_reduction=cap, slack=0)
    assert full.reduction == pytest.approx(fits)
    assert "slack" not in note_of(full)


@pytest.mark.parametrize("cap", [0.2, 0.35, 0.5, 0.7, 0.95])
def test_without_slack_no_other_set_comes_closer(blocks, cap):
    sizes = [share_of(blocks, width) for width in UNEVEN]
    sums = [sum(s for s, taken in zip(sizes, f"{n:04b}", strict=True) if taken == "1") for n in range(16)]
    plan = blocks.plan(max_param_reduction=cap, slack=0)
    assert plan.reduction == pytest.approx(max(each for each in sums if each <= cap))
    if plan.reduction < cap - 0.02:
        everything = plan.reduction == pytest.approx(sum(sizes))
        why = "all that can leave together takes" if everything else "no larger set of removals fits"
        assert why in note_of(plan)


def test_of_two_caps_the_note_names_the_cap_that_holds_back(blocks):
    plan = blocks.plan(max_param_reduction=0.9, max_mac_reduction=0.3, slack=0)
    held = [note for note in plan.notes if note.endswith("the budget of MACs is reached before")]
    assert held or not any(note.endswith("of MACs is used") for note in plan.notes)


@pytest.mark.parametrize("slack", [-0.1, 1, 1.5, True, "0.1", float("nan"), None])
def test_a_slack_out_of_its_range_is_refused(blocks, slack):
    with pytest.raises(BudgetError, match="slack is"):
        blocks.plan(max_param_reduction=0.3, slack=slack)


# ---- the command line ------------------------------------------------------------------------------------------------


def prune(tmp_path, *options):
    source = tmp_path / "mine.py"
    source.write_text(
        "from torch.nn import Linear, ReLU, Sequential\n\n"
        "def chain():\n    return Sequential(Linear(6, 12), ReLU(), Linear(12, 3))\n"
    )
    out = tmp_path / "out"
    call = ["prune", f"{source}:chain", "--input-shape", "2,6", "--reduction", "0.5", "--out", str(out), *options]
    return CliRunner().invoke(app, call), out


def test_the_command_exits_with_1_and_writes_nothing_where_nothing_goes(tmp_path):
    done, out = prune(tmp_path)
    assert done.exit_code == 1
    assert "every group is critical" in done.stderr
    assert "--allow-empty" in done.stderr
    assert not out.exists()


def test_the_command_writes_an_unpruned_model_where_that_is_allowed(tmp_path):
    done, out = prune(tmp_path, "--allow-empty")
    assert done.exit_code == 0
    assert "warning: nothing can be removed" in done.stderr
    assert (out / "model.safetensors").exists()
