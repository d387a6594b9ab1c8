"""The plan: a plain record that goes to JSON and back, replays on another copy, and keeps its promises."""

import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from layerprune import PruningPlan, UniversalLayerPruner
from layerprune.edits import Delete, Drop, DropParameter, Guard, Pass, Slice
from layerprune.errors import BudgetError, CriticalGroupError, PlanError, UnknownNameError
from layerprune.plan.plan import SCHEMA
from layerprune.report import plan_text
from models.nets import ExampleModel, Net, Photograph, close, image, linear, randomised, rows, run, same_bits, tokens


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), linear(8, 16), linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def stack(depth=4):
    return randomised(nn.Sequential(linear(), *(Residual() for _ in range(depth)), linear()))


@pytest.fixture(scope="module")
def model():
    return randomised(ExampleModel())


@pytest.fixture(scope="module")
def pruner(model):
    """Only planned with, never pruned."""
    return UniversalLayerPruner(model, example_inputs=image())


def num_params(model):
    return sum(p.numel() for p in model.parameters())


# ---- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.1, 0.3, 0.6, 0.9])
def test_a_plan_goes_to_json_and_back_unchanged(pruner, budget):
    plan = pruner.plan(max_param_reduction=budget)
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_every_edit_goes_to_json_and_back_unchanged(pruner):
    edits = (
        Delete(fqn="a.0"),
        Pass(
            fqn="b",
            position=None,
            keyword="hidden_states",
            structure={"tuple": ["argument", {"value": None}]},
            copies=True,
        ),
        Drop(fqn="c", merges=("add", "mul"), structure={"dict": {"y": "tensor"}}),
        Guard(fqn="d"),
        DropParameter(fqn="e.w", merges=("bypass",), copies=True),
        Slice(fqn="f", side="channels", dropped=((0, 2), (5, 9))),
    )
    plan = pruner.plan(max_param_reduction=0.3).model_copy(update={"edits": edits})
    again = PruningPlan.from_json(plan.to_json())
    assert again.edits == edits
    assert [type(edit) for edit in again.edits] == [type(edit) for edit in edits]


def test_a_plan_is_plain_json_of_names_and_numbers(pruner):
    plan = pruner.plan(max_param_reduction=0.3)
    data = json.loads(plan.to_json())
    assert data["schema_version"] == SCHEMA
    assert data["model"] == "ExampleModel"
    assert data["max_param_reduction"] == 0.3
    assert data["num_params_before"] == 89_034
    assert [removal["groups"] for removal in data["removals"]] == [["conv3"]]


def test_an_impact_that_is_not_known_is_null():
    with torch.device("meta"):
        model = nn.Sequential(linear(), linear(), linear())
    plan = UniversalLayerPruner(model, example_inputs=torch.empty(2, 8, device="meta")).plan(groups=["1"])
    assert plan.removals[0].impact is None
    assert "meta device" in plan.impact_unit
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_a_plan_cannot_be_changed(pruner):
    plan = pruner.plan(max_param_reduction=0.3)
    with pytest.raises(ValueError, match="frozen"):
        plan.num_params_after = 0


def with_change(plan, **changes):
    return json.dumps(json.loads(plan.to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a pruning plan"),
        ("{", "not a pruning plan"),
        ("[]", "not a pruning plan"),
        ("{}", "model"),
        ('"plan"', "not a pruning plan"),
    ],
)
def test_text_that_is_no_plan_is_refused(text, message):
    with pytest.raises(PlanError, match=message):
        PruningPlan.from_json(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"author": "me"}, "author"),
        ({"num_params_after": -1}, "num_params_after"),
        ({"num_params_before": "many"}, "num_params_before"),
        ({"edits": [{"kind": "explode", "fqn": "a"}]}, "edits.0"),
        ({"edits": [{"kind": "delete"}]}, "fqn"),
        ({"edits": [{"kind": "delete", "fqn": "a", "force": True}]}, "force"),
        ({"edits": [{"kind": "slice", "fqn": "a", "side": "out", "dropped": [[0, 1]]}]}, "side"),
        ({"removals": [{"name": "x"}]}, "removals.0"),
        ({"schema_version": 0}, "schema_version"),
        ({"removals": None}, "removals"),
    ],
)
def test_a_field_that_is_wrong_or_unknown_is_refused_and_named(pruner, changes, message):
    with pytest.raises(PlanError, match=f"not a pruning plan: .*{message}"):
        PruningPlan.from_json(with_change(pruner.plan(max_param_reduction=0.3), **changes))


def test_a_newer_schema_is_refused_with_the_way_out(pruner):
    text = with_change(pruner.plan(max_param_reduction=0.3), schema_version=SCHEMA + 1)
    with pytest.raises(PlanError, match=f"schema {SCHEMA + 1}.*up to {SCHEMA}.*upgrade layerprune"):
        PruningPlan.from_json(text)


def test_a_newer_schema_with_fields_of_its_own_is_refused_for_being_newer(pruner):
    text = with_change(pruner.plan(max_param_reduction=0.3), schema_version=SCHEMA + 1, repair={"refit": True})
    with pytest.raises(PlanError, match="upgrade layerprune"):
        PruningPlan.from_json(text)


# ---- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.8])
def test_a_plan_replayed_on_another_copy_gives_what_pruning_that_copy_gives(model, pruner, budget):
    plan = PruningPlan.from_json(pruner.plan(max_param_reduction=budget).to_json())
    other = randomised(ExampleModel(), seed=9)
    replayed = plan.apply(other)
    direct = UniversalLayerPruner(other, example_inputs=image()).prune(plan=plan)
    assert same_bits(replayed, direct)
    x = image(3, size=12)
    assert torch.equal(run(replayed, x), run(direct, x))
    by_groups = UniversalLayerPruner(other, example_inputs=image()).prune(
        groups=[g for r in plan.removals for g in r.groups]
    )
    assert same_bits(replayed, by_groups)
    assert torch.equal(run(replayed, x), run(by_groups, x))
    assert not same_bits(replayed, plan.apply(model))


def test_a_plan_from_the_meta_device_replays_on_real_weights():
    with torch.device("meta"):
        blueprint = nn.Sequential(linear(), *(Residual() for _ in range(4)), linear())
    plan = UniversalLayerPruner(blueprint, example_inputs=torch.empty(2, 5, 8, device="meta")).plan(groups=["2.up"])
    model = stack()
    pruned = plan.apply(model)
    with torch.no_grad():
        assert close(run(pruned, tokens()), model[5](model[4](model[3](model[1](model[0](tokens()))))))


def test_a_plan_replays_in_another_mode_and_dtype_of_the_model(pruner):
    plan = pruner.plan(max_param_reduction=0.3)
    training = plan.apply(randomised(ExampleModel()).train())
    assert training.training
    assert all(module.training for module in training.modules())


def test_the_fingerprint_depends_on_structure_and_not_on_weights(model, pruner):
    plan = pruner.plan(max_param_reduction=0.3)
    other = UniversalLayerPruner(randomised(ExampleModel(), seed=4), example_inputs=image()).plan(
        max_param_reduction=0.3
    )
    assert plan.fingerprint == other.fingerprint
    plan.check(randomised(ExampleModel(), seed=5).train())


class Renamed(ExampleModel):
    """The same structure under another class."""


def widened():
    model = ExampleModel()
    model.fc = nn.Linear(128, 11)
    return model


@pytest.mark.parametrize(
    "other", [Renamed, widened, stack, lambda: ExampleModel().double()], ids=["class", "shape", "net", "dtype"]
)
def test_a_plan_from_another_model_is_refused_and_changes_nothing(pruner, other):
    plan, target = pruner.plan(max_param_reduction=0.3), other()
    before = Photograph(target)
    for inplace in (False, True):
        with pytest.raises(PlanError, match=r"made for another model.*make a new plan"):
            plan.apply(target, inplace=inplace)
    assert Photograph(target).difference(before) == ""


def test_a_plan_is_refused_by_the_model_that_it_has_pruned_already(pruner):
    plan = pruner.plan(max_param_reduction=0.3)
    pruned = plan.apply(randomised(ExampleModel()))
    with pytest.raises(PlanError, match=r"'conv3' is .Identity."):
        plan.apply(pruned)


def test_a_plan_whose_edits_do_not_fit_is_refused_and_changes_nothing(model, pruner):
    plan = pruner.plan(max_param_reduction=0.3)
    before = Photograph(model)
    for edits in ((Drop(fqn="conv9", merges=("add",)),), (*plan.edits[:-1], Drop(fqn="conv2a.x", merges=()))):
        for inplace in (False, True):
            with pytest.raises(PlanError):
                plan.model_copy(update={"edits": edits}).apply(model, inplace=inplace)
    assert Photograph(model).difference(before) == ""


def test_a_plan_that_breaks_its_promise_is_refused_and_changes_nothing(model, pruner):
    plan = pruner.plan(max_param_reduction=0.3)
    before = Photograph(model)
    with pytest.raises(PlanError, match=r"promises 7 parameters.*72,266"):
        plan.model_copy(update={"num_params_after": 7}).apply(model, inplace=True)
    assert Photograph(model).difference(before) == ""


# ---- in place, or not ------------------------------------------------------------------------------------------------


def test_the_users_model_stays_bit_for_bit_and_shares_nothing_with_the_pruned_one(pruner):
    model = randomised(ExampleModel())
    before = Photograph(model)
    pruned = pruner.plan(max_param_reduction=0.5).apply(model)
    assert pruned is not model
    mine = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    theirs = {t.untyped_storage().data_ptr() for t in [*pruned.parameters(), *pruned.buffers()]}
    assert mine.isdisjoint(theirs)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    assert Photograph(model).difference(before) == ""


def test_in_place_the_users_model_itself_is_edited():
    model = randomised(ExampleModel())
    weight = model.conv1.weight
    pruner = UniversalLayerPruner(model, example_inputs=image())
    expected = pruner.plan(groups=["conv2b"]).apply(model)
    pruned = pruner.prune(groups=["conv2b"], inplace=True)
    assert pruned is model
    assert pruner.model is model
    assert model.conv1.weight is weight
    assert same_bits(model, expected)
    assert torch.equal(run(model, image()), run(expected, image()))


def test_requires_grad_and_hooks_come_along(pruner):
    model = randomised(ExampleModel())
    model.conv1.weight.requires_grad_(False)
    calls = []
    model.fc.register_forward_hook(lambda *args: calls.append(1))
    pruned = pruner.plan(max_param_reduction=0.3).apply(model)
    run(pruned, image())
    assert not pruned.conv1.weight.requires_grad
    assert pruned.fc.weight.requires_grad
    assert calls == [1]


def test_tied_weights_stay_tied_in_the_pruned_model():
    model = randomised(Net(lambda net, x: net.h((y := net.s(x)) + net.a(y)), s=linear(), a=linear(), h=linear()))
    model.h.weight = model.s.weight
    pruned = UniversalLayerPruner(model, example_inputs=rows()).prune(groups=["a"])
    assert pruned.h.weight is pruned.s.weight
    assert pruned.s.weight is not model.s.weight


# ---- budgets and names -----------------------------------------------------------------------------------------------

BUDGETS = [0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99]


def test_a_plan_never_exceeds_its_cap_and_keeps_its_promise():
    for model, inputs in ((randomised(ExampleModel()), image()), (stack(), tokens())):
        pruner = UniversalLayerPruner(model, example_inputs=inputs)
        for budget in BUDGETS:
            plan = pruner.plan(max_param_reduction=budget)
            assert plan.num_params_before == num_params(model)
            assert plan.num_params_before - plan.num_params_after <= budget * plan.num_params_before
            assert num_params(plan.apply(model)) == plan.num_params_after
            assert plan.reduction == 1 - plan.num_params_after / plan.num_params_before


def test_a_larger_budget_removes_no_less():
    pruner = UniversalLayerPruner(stack(), example_inputs=tokens())
    removed = [
        plan.num_params_before - plan.num_params_after for plan in (pruner.plan(max_param_reduction=b) for b in BUDGETS)
    ]
    slack = 0.05 * removed[-1]
    assert all(b >= a - slack for a, b in pairwise(removed))


def test_a_plan_says_how_close_it_came_and_what_held_it_back():
    pruner = UniversalLayerPruner(stack(), example_inputs=tokens())
    everything = pruner.plan(max_param_reduction=0.99)
    assert any("of a budget of 99.0% is used: all that can leave together takes " in note for note in everything.notes)
    little = pruner.plan(max_param_reduction=0.4)
    assert any("of a budget of 40.0% is used" in note for note in little.notes)


def test_a_budget_below_every_removal_gives_an_empty_plan_that_says_so():
    model = stack()
    plan = UniversalLayerPruner(model, example_inputs=tokens()).plan(max_param_reduction=0.001)
    assert plan.removals == ()
    assert plan.edits == ()
    assert plan.num_params_after == plan.num_params_before
    (why,) = (note for note in plan.notes if "budget" in note)
    assert why.startswith("no removal is small enough for the budget: the smallest, ")
    assert "of the parameters, the cap is 0.1%; raise max_param_reduction to " in why
    assert plan.shortfall == why
    assert same_bits(plan.apply(model), model)


@pytest.mark.parametrize("strategy", ["exact", "greedy"])
def test_an_empty_plan_has_one_reason_only(strategy):
    pruner = UniversalLayerPruner(stack(), example_inputs=tokens())
    with_macs = pruner.plan(max_param_reduction=0.5, max_mac_reduction=0.001, strategy=strategy)
    (why,) = (note for note in with_macs.notes if "budget" in note)
    assert with_macs.removals == ()
    assert "of the MACs, the cap is 0.1%; raise max_mac_reduction to " in why
    harmless = pruner.plan(max_impact=1e-12, strategy=strategy)
    (why,) = (note for note in harmless.notes if "budget" in note)
    assert harmless.removals == ()
    assert "the cap is 1e-12; raise max_impact to " in why


def test_a_model_in_which_nothing_can_go_gives_an_empty_plan():
    model = randomised(nn.Sequential(linear(8, 4), nn.ReLU(), linear(4, 3), nn.ReLU(), linear(3, 40)))
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    assert not any(group.can_remove for group in pruner.groups)
    plan = pruner.plan(max_param_reduction=0.5)
    assert plan.removals == ()
    assert plan.reduction == 0
    assert any(note.startswith("nothing can be removed: every group is critical (") for note in plan.notes)
    assert not any("budget" in note for note in plan.notes)


def test_where_projections_are_all_there_is_an_empty_plan_asks_for_data():
    chain = randomised(nn.Sequential(linear(8, 8), nn.ReLU(), linear(8, 12), nn.ReLU(), linear(12, 3)))
    pruner = UniversalLayerPruner(chain, example_inputs=rows())
    assert [g.name for g in pruner.groups if g.needs_calibration] == ["2"]
    assert not any(g.can_remove for g in pruner.groups)
    notes = pruner.plan(max_param_reduction=0.5).notes
    assert not any("every group is critical" in note or "budget" in note for note in notes)
    assert any("by projections at most" in note and "calibration=" in note for note in notes)


def test_without_a_budget_it_is_thirty_per_cent(pruner):
    assert pruner.plan() == pruner.plan(max_param_reduction=0.3)


def test_named_groups_leave_and_nothing_else_where_nothing_else_has_to():
    model = stack()
    pruner = UniversalLayerPruner(model, example_inputs=tokens())
    plan = pruner.plan(groups=["2.up", "3.down"])
    assert {name for removal in plan.removals for name in removal.groups} == {"2.up", "2.down", "3.up", "3.down"}
    assert plan.max_param_reduction is None
    assert any("2.up, 2.down leave together" in note for note in plan.notes)
    pruned = pruner.prune(plan=plan)
    with torch.no_grad():
        assert close(run(pruned, tokens()), model[5](model[4](model[1](model[0](tokens())))))


def test_one_group_may_be_named_by_a_string(pruner):
    assert pruner.plan(groups="conv2a") == pruner.plan(groups=["conv2a"])


def test_no_group_named_is_an_empty_plan(pruner):
    assert pruner.plan(groups=[]).removals == ()


def test_groups_that_exclude_each_other_are_refused_by_name(pruner):
    with pytest.raises(CriticalGroupError, match="'conv2a', 'conv2b' cannot all be removed together"):
        pruner.plan(groups=["conv2a", "conv2b"])


def test_an_unknown_group_is_refused_with_the_names_there_are(pruner):
    with pytest.raises(UnknownNameError, match=r"no group 'conv9'; groups are .*'conv2a'"):
        pruner.plan(groups=["conv2a", "conv9"])


def test_contradicting_wishes_are_refused(pruner):
    with pytest.raises(BudgetError, match="not both"):
        pruner.plan(max_param_reduction=0.3, groups=["conv2a"])
    plan = pruner.plan(max_param_reduction=0.3)
    with pytest.raises(PlanError, match="alone"):
        pruner.prune(plan=plan, max_param_reduction=0.3)
    with pytest.raises(PlanError, match="alone"):
        pruner.prune(plan=plan, groups=["conv2a"])


def test_planning_changes_neither_the_model_nor_the_next_plan():
    model = randomised(ExampleModel()).train()
    before = Photograph(model)
    pruner = UniversalLayerPruner(model, example_inputs=image())
    plans = [pruner.plan(max_param_reduction=0.5) for _ in range(2)]
    pruner.render_plan()
    assert plans[0] == plans[1]
    assert Photograph(model).difference(before) == ""


def test_a_plan_prints_what_it_removes_and_how_much(pruner, capsys):
    plan = pruner.plan(max_param_reduction=0.3)
    assert str(plan).splitlines()[0] == "ExampleModel: 89,034 → 72,266 parameters (-18.8%)"
    assert "relu3 by cat" in str(plan)
    pruner.print_plan(plan)
    out = capsys.readouterr().out
    assert "CHOSEN REMOVALS:" in out
    assert "89,034 → 72,266" in out


def test_whether_loading_needs_this_library_is_said(pruner):
    assert pruner.plan(groups=["conv2a"]).needs_layerprune  # a dropped branch stands where conv2a was
    chain = UniversalLayerPruner(randomised(nn.Sequential(linear(), linear(), linear())), example_inputs=rows())
    assert not chain.plan(groups=["1"]).needs_layerprune


def test_what_is_left_over_and_what_loading_takes_are_printed(pruner):
    text = plan_text(pruner.plan(groups=["conv2a"]))
    assert "\nLoad it with layerprune.load_pruned: stand-ins take the places of what goes\n" in text
    gate = Net(lambda net, x: net.c(x * torch.sigmoid(net.b(x.mean(1, keepdim=True) + 0 * x))), b=linear(), c=linear())
    plan = UniversalLayerPruner(randomised(gate), example_inputs=rows(), protect_io=False).plan(groups=["b"])
    assert [set(each.leftovers) for each in plan.removals] == [{"mean", "mul", "add", "sigmoid", "mul_1"}]
    assert "\nLeft over: 5 of the functions around what goes: mean, mul, add, …\n" in plan_text(plan)
    chain = UniversalLayerPruner(randomised(nn.Sequential(linear(), linear(), linear())), example_inputs=rows())
    assert not {"Left", "Load"} & {line.split()[0] for line in plan_text(chain.plan(groups=["1"])).splitlines()}


def test_a_plan_of_plain_identities_does_not_need_this_library():
    model = randomised(
        Net(lambda net, x: net.c(torch.relu(net.b(torch.relu(net.a(x))))), a=linear(), b=linear(), c=linear())
    )
    plan = UniversalLayerPruner(model, example_inputs=rows()).plan(groups=["b"])
    assert [type(m) for m in plan.apply(model).modules() if type(m).__module__.startswith("layerprune")] == []
    assert not plan.needs_layerprune


class Caches(nn.Module):
    """Keeps a table of positions for the last size that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.table = torch.zeros(x.shape[0], device=x.device)
        x = self.a(x)
        return self.c(x + torch.relu(self.b(x)))


def test_a_plan_fits_a_copy_whose_caches_are_filled_for_other_inputs():
    model, fresh = Caches(), Caches()
    model(torch.randn(3, 4))
    plan = UniversalLayerPruner(model, example_inputs=torch.randn(2, 4)).plan(groups=["b"])
    assert plan.apply(fresh)(torch.randn(5, 4)).shape == (5, 2)


def test_a_plan_of_schema_1_is_read_and_replays(pruner):
    plan = pruner.plan(max_param_reduction=0.3)
    old = json.loads(plan.to_json()) | {"schema_version": 1}
    new = {"max_mac_reduction", "target_latency_ms", "max_memory_bytes", "max_impact", "strategy", "seed"}
    old = {k: v for k, v in old.items() if k not in new | {"figures", "impact_together", "frontier"}}
    old["removals"] = [
        {k: v for k, v in removal.items() if k not in ("impact_interval", "recurrence")} for removal in old["removals"]
    ]
    read = PruningPlan.from_json(json.dumps(old))
    assert read.edits == plan.edits
    assert num_params(read.apply(pruner._original)) == plan.num_params_after
