"""Rounds of pruning are one plan: made for the first model, carried out round by round, saved and loaded as one."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from layerprune import PruningPlan, UniversalLayerPruner, load_pruned, save_pruned
from layerprune.checkpoint import verify
from layerprune.edits import Boundary, Shorten, rounds_of
from layerprune.errors import PlanError
from layerprune.plan import PlannedFigure, merged, plans_of, plans_since
from layerprune.plan.composition import composed
from layerprune.report import plan_text
from layerprune.surgery import applied
from models.nets import (
    ExampleModel,
    Net,
    Photograph,
    conv,
    image,
    linear,
    randomised,
    rows,
    run,
    same_bits,
    weight_hash,
)

HERE = Path(__file__).parents[1]


class Residual(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.up, self.down = linear(width, 16), linear(16, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def residuals(depth=5):
    return nn.Sequential(linear(), *(Residual() for _ in range(depth)), linear())


def without(model, *groups, inputs=None, **options):
    return UniversalLayerPruner(model, example_inputs=rows() if inputs is None else inputs, **options).prune(
        groups=list(groups)
    )


@pytest.fixture
def original():
    return randomised(residuals())


@pytest.fixture
def thrice(original):
    return without(without(without(original, "1.up"), "3.up"), "5.up")


# ---- one plan of several ---------------------------------------------------------------------------------------------


def test_a_model_pruned_in_rounds_has_one_plan_for_the_first_model(original, thrice):
    (plan,) = plans_of(thrice)
    assert plan == PruningPlan.of(thrice)
    assert [(removal.round, removal.groups) for removal in plan.removals] == [
        (1, ("1.up", "1.down")),
        (2, ("3.up", "3.down")),
        (3, ("5.up", "5.down")),
    ]
    assert plan.num_params_before == sum(p.numel() for p in original.parameters())
    assert plan.num_params_after == sum(p.numel() for p in thrice.parameters())
    plan.check(original)
    assert len({header.fingerprint for header in plan.rounds}) == 3
    assert [a.num_params_after for a in plan.rounds[:2]] == [b.num_params_before for b in plan.rounds[1:]]
    assert str(plan).splitlines()[0].endswith("in 3 rounds")
    assert str(plan).splitlines()[2].startswith("  2: ")
    assert [line.split(":")[0] for line in plan_text(plan).splitlines() if "round " in line][:3] == [
        *("  round 1", "  round 2", "  round 3")
    ]


def test_it_does_what_the_rounds_did_one_after_the_other(original, thrice):
    (plan,) = plans_of(thrice)
    before = Photograph(original)
    assert same_bits(plan.apply(original), thrice)
    assert Photograph(original) == before
    other = randomised(residuals(), seed=9)
    assert same_bits(plan.apply(other), without(without(without(other, "1.up"), "3.up"), "5.up"))
    assert same_bits(UniversalLayerPruner(original, example_inputs=rows()).prune(plan=plan), thrice)


def test_it_is_json_and_comes_apart_again(thrice):
    (plan,) = plans_of(thrice)
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert composed(plan.parts) == plan
    assert all(not part.rounds and {r.round for r in part.removals} == {1} for part in plan.parts)
    assert plan.parts[0].then(plan.parts[1]).then(plan.parts[2]) == plan
    assert plan.parts[0].then(plan.parts[1].then(plan.parts[2])) == plan


def test_each_part_is_the_plan_of_its_round(original):
    pruners = [UniversalLayerPruner(original, example_inputs=rows())]
    plans = [pruners[0].plan(groups=["1.up"])]
    once = pruners[0].prune(plan=plans[0])
    pruners.append(UniversalLayerPruner(once, example_inputs=rows()))
    plans.append(pruners[1].plan(groups=["2.up"]))
    twice = pruners[1].prune(plan=plans[1])
    assert PruningPlan.of(twice).parts == tuple(plans)
    with pytest.raises(PlanError, match=r"plan 1 leaves a Sequential of .* they are not rounds of one model"):
        plans[1].then(plans[0])


def test_the_edits_run_in_rounds_wherever_they_are_given(original, thrice):
    (plan,) = plans_of(thrice)
    expected, before = run(thrice, rows()), Photograph(original)
    with applied(original, plan.edits):
        assert torch.equal(run(original, rows()), expected)
    assert Photograph(original) == before
    assert len(rounds_of(plan.edits)) == 3


def test_a_round_that_removes_nothing_is_none(original):
    once = without(original, "1.up")
    nothing = UniversalLayerPruner(once, example_inputs=rows()).plan(max_param_reduction=0.001)
    assert nothing.edits == ()
    twice = without(nothing.apply(once), "2.up")
    assert [len(plan.parts) for plan in plans_of(twice)] == [2]
    assert same_bits(PruningPlan.of(twice).apply(original), twice)


def test_notes_of_all_rounds_are_said_once_and_others_with_their_round():
    plan = PruningPlan.of(without(randomised(residuals()), "1.up"))
    first = plan.model_copy(update={"notes": ("common", "mine"), "num_params_after": plan.num_params_before})
    second = plan.model_copy(update={"notes": ("common", "yours")})
    assert [note for note in first.then(second).notes if "measured against" not in note] == [
        *("common", "round 1: mine", "round 2: yours")
    ]


def test_figures_go_from_the_first_round_to_the_last_where_both_counted_the_same():
    plan = PruningPlan.of(without(randomised(residuals()), "1.up"))

    def with_macs(*pairs):
        plans = [
            plan.model_copy(
                update={
                    "num_params_after": plan.num_params_before,
                    "figures": (PlannedFigure(name="macs", before=before, after=after),),
                }
            )
            for before, after in pairs
        ]
        return composed(plans).figures

    assert with_macs((100, 80), (80, 50)) == (PlannedFigure(name="macs", before=100, after=50),)
    assert with_macs((100, 80), (160, 100)) == (), "the second round counted another forward"


def test_budgets_and_figures_of_a_round_stay_with_it(original):
    once = UniversalLayerPruner(original, example_inputs=rows()).prune(max_mac_reduction=0.3)
    twice = UniversalLayerPruner(once, example_inputs=rows()).prune(max_mac_reduction=0.4)
    plan = PruningPlan.of(twice)
    assert [header.max_mac_reduction for header in plan.rounds] == [0.3, 0.4]
    assert plan.max_mac_reduction is None
    (macs,) = plan.figures
    assert (macs.before, macs.after) == (plan.rounds[0].figures[0].before, plan.rounds[1].figures[0].after)


def test_stand_ins_of_any_round_need_layerprune():
    branch = Net(lambda net, x: torch.tanh(x + net.a(x)), a=linear())
    flat = randomised(nn.Sequential(*(linear() for _ in range(5)), branch, linear()))
    assert not PruningPlan.of(without(without(flat, "1"), "2")).needs_layerprune
    assert PruningPlan.of(without(without(flat, "5.a"), "2")).needs_layerprune


# ---- every kind of edit ----------------------------------------------------------------------------------------------


def sliced():
    return randomised(ExampleModel()), image(), ["conv3"], ["conv2b"]


def renumbered():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Residual() for _ in range(6))
            self.first, self.head = linear(), linear()

        def forward(self, x):
            x = self.first(x)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    return randomised(Stack()), rows(), ["layers.1.up"], ["layers.2.up"]  # the second is the original's layers.3


def deleted():
    return randomised(nn.Sequential(*(linear() for _ in range(6)))), rows(), ["1"], ["3"]


def with_a_parameter():
    net = Net(
        lambda net, x: net.c((y := net.d(x)) + net.b(y) * net.shift + net.a(y) * net.gate),
        **{name: linear() for name in "abcd"},
        shift=nn.Parameter(torch.randn(8)),
        gate=nn.Parameter(torch.randn(8)),
    )
    return randomised(net), rows(), ["a"], ["b"]


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (sliced, {"pass", "drop", "slice"}),
        (renumbered, {"shorten"}),
        (deleted, {"delete"}),
        (with_a_parameter, {"drop", "drop_parameter"}),
    ],
)
def test_two_rounds_of_each_kind_of_edit_replay_as_one(tmp_path, make, kinds):
    model, inputs, first, second = make()
    options = {"renumber": make is renumbered, "granularity": "block" if make is renumbered else "group"}
    twice = without(without(model, *first, inputs=inputs, **options), *second, inputs=inputs, **options)
    plan = PruningPlan.from_json(PruningPlan.of(twice).to_json())
    assert kinds <= {edit.kind for edit in plan.edits}
    assert same_bits(plan.apply(model), twice)
    save_pruned(twice, tmp_path / "small")
    assert torch.equal(run(load_pruned(tmp_path / "small", model=make()[0]), inputs), run(twice, inputs))


def test_names_of_a_second_round_are_those_of_its_model():
    model, inputs, first, second = renumbered()
    options = {"renumber": True, "granularity": "block"}
    twice = without(without(model, *first, inputs=inputs, **options), *second, inputs=inputs, **options)
    shortens = [edit for edit in PruningPlan.of(twice).edits if isinstance(edit, Shorten)]
    assert [edit.removed for edit in shortens] == [(1,), (2,)]
    assert PruningPlan.of(twice).removals[1].groups == ("layers.2.up", "layers.2.down")
    assert PruningPlan.of(twice).groups == ("layers.1.up", "layers.1.down", "layers.3.up", "layers.3.down")
    left = [model.layers[i].up.weight for i in (0, 2, 4, 5)]
    assert all(torch.equal(layer.up.weight, weight) for layer, weight in zip(twice.layers, left, strict=True))


def test_unused_modules_go_first_and_others_in_a_second_round(tmp_path):
    def make():
        return Net(lambda net, x: net.c(x + net.b(net.a(x))), **{name: linear() for name in "abcd"})

    model = randomised(make())
    once = UniversalLayerPruner(model, example_inputs=rows()).prune(unused=True)
    twice = without(once, "a")
    plan = PruningPlan.of(twice)
    assert [(r.round, r.kind) for r in plan.removals] == [(1, "unused"), (2, "bypass")]
    save_pruned(twice, tmp_path / "small")
    assert torch.equal(run(load_pruned(tmp_path / "small", factory=make), rows()), run(twice, rows()))


def projected():
    return nn.Sequential(*(nn.Sequential(conv(a, b), nn.ReLU()) for a, b in pairwise((3, 4, 5, 6, 7, 8))), conv(8, 3))


def test_projections_of_two_rounds_are_fitted_again_round_by_round(tmp_path):
    model, batches = randomised(projected()), [image(12, seed=seed) for seed in range(6)]
    rounds = model
    for group in ("1.0", "3.0"):
        rounds = UniversalLayerPruner(rounds, calibration=batches).prune(groups=[group], repair=None)
    plan = PruningPlan.of(rounds)
    assert plan.needs_calibration
    assert [kind for edit in plan.edits if (kind := edit.kind) in ("fold", "next_round")] == [
        *("fold", "next_round", "fold")
    ]
    with pytest.raises(PlanError, match="folds projections"):
        plan.apply(model)
    again = UniversalLayerPruner(model, calibration=batches)
    replayed = again.prune(plan=plan, repair=None)
    assert same_bits(replayed, rounds)
    assert "of the last of 2 rounds" in again.projection_report.notes[0]
    save_pruned(rounds, tmp_path / "small")
    assert torch.equal(run(load_pruned(tmp_path / "small", factory=projected), image()), run(rounds, image()))
    in_place = randomised(projected())
    assert UniversalLayerPruner(in_place, calibration=batches).prune(plan=plan, repair=None, inplace=True) is in_place
    assert same_bits(in_place, rounds)


def test_a_replay_repairs_after_each_round(original):
    batches = [rows(32, seed=seed) for seed in range(4)]
    rounds = original
    for group in ("1.up", "3.up"):
        rounds = UniversalLayerPruner(rounds, calibration=batches).prune(groups=[group])
    pruner = UniversalLayerPruner(original, calibration=batches)
    assert same_bits(pruner.prune(plan=PruningPlan.of(rounds)), rounds)
    assert "of the last of 2 rounds" in pruner.repair_report.notes[0]


# ---- transformers ----------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=5, vocab_size=32))


def test_whole_layers_in_two_rounds_are_loaded_by_transformers_and_as_one_plan(tmp_path):
    model, ids = llama().eval(), torch.arange(10).reshape(2, 5)
    rounds = model
    for _ in range(2):
        rounds = UniversalLayerPruner(rounds, example_inputs=ids, granularity="block").prune(max_param_reduction=0.3)
    plan = PruningPlan.of(rounds)
    assert [edit.kind for edit in plan.edits] == ["shorten", "next_round", "shorten"]
    assert rounds.config.num_hidden_layers == len(rounds.model.layers) < 5
    assert [layer.self_attn.layer_idx for layer in rounds.model.layers] == list(range(len(rounds.model.layers)))
    rounds.save_pretrained(tmp_path / "vanilla")
    vanilla = type(rounds).from_pretrained(tmp_path / "vanilla")
    again = plan.apply(model)
    assert again.config.num_hidden_layers == rounds.config.num_hidden_layers
    expected = run(rounds, ids).logits
    assert torch.equal(run(vanilla, ids).logits, expected)
    assert torch.equal(run(again, ids).logits, expected)
    save_pruned(rounds, tmp_path / "small")
    assert torch.equal(run(load_pruned(tmp_path / "small", factory=llama), ids).logits, expected)


@pytest.mark.reliability
def test_sublayers_and_cache_places_of_rounds_replay_and_generate(tmp_path):
    model, ids = llama().eval(), torch.arange(10).reshape(2, 5)
    rounds = model
    for group in ("model.layers.1.self_attn.v_proj", "model.layers.0.self_attn.v_proj"):
        rounds = without(rounds, group, inputs=ids)
    plan = PruningPlan.of(rounds)
    assert {"drop", "take_place", "next_round"} == {edit.kind for edit in plan.edits}
    save_pruned(rounds, tmp_path / "small")
    loaded = load_pruned(tmp_path / "small", factory=llama)
    asked = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False, "max_new_tokens": 4}
    for other in (loaded, plan.apply(model)):
        assert torch.equal(other.generate(ids, **asked), rounds.generate(ids, **asked))


# ---- files -----------------------------------------------------------------------------------------------------------

LOAD = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from layerprune import load_pruned
from models.nets import ExampleModel, weight_hash
print(weight_hash(load_pruned(sys.argv[2], factory=ExampleModel)))
"""


def test_rounds_are_saved_as_one_plan_and_loaded_in_a_fresh_process(tmp_path):
    model = randomised(ExampleModel())
    twice = without(without(model, "conv3", inputs=image()), "conv2b", inputs=image())
    with torch.no_grad():
        twice.fc.weight.add_(1)  # as training between and after rounds does
    save_pruned(twice, tmp_path / "small")
    assert {path.name for path in (tmp_path / "small").iterdir()} == {"manifest.json", "model.safetensors", "plan.json"}
    assert PruningPlan.load(tmp_path / "small") == PruningPlan.of(twice)
    assert verify(tmp_path / "small").plans == ("plan.json",)
    command = [sys.executable, "-c", LOAD, str(HERE), str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == weight_hash(twice)


def test_a_loaded_model_goes_on_with_the_next_round(tmp_path, original):
    save_pruned(without(original, "1.up"), tmp_path / "once")
    loaded = load_pruned(tmp_path / "once", factory=residuals)
    twice = without(loaded, "2.up")
    assert [r.round for r in PruningPlan.of(twice).removals] == [1, 2]
    save_pruned(twice, tmp_path / "twice")
    assert same_bits(load_pruned(tmp_path / "twice", factory=residuals), twice)


def test_the_plans_of_rounds_may_be_given_to_saving(tmp_path, original, thrice):
    parts = PruningPlan.of(thrice).parts
    save_pruned(thrice, tmp_path / "small", plan=parts)
    assert PruningPlan.load(tmp_path / "small") == PruningPlan.of(thrice)


def test_an_artefact_with_a_file_for_each_round_is_still_loaded(tmp_path, original):
    """As written before plans had rounds."""
    from layerprune.checkpoint import save as saving

    twice = without(without(original, "1.up"), "3.up")
    parts = [("", part) for part in PruningPlan.of(twice).parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "placed_plans", lambda model: parts)
        save_pruned(twice, tmp_path / "small")
    assert (tmp_path / "small" / "plan-2.json").exists()
    loaded = load_pruned(tmp_path / "small", factory=residuals)
    assert same_bits(loaded, twice)
    assert PruningPlan.of(loaded) == PruningPlan.of(twice)


def test_plans_between_two_models_are_those_of_the_later_rounds(original, thrice):
    once = without(original, "1.up")
    assert [plan.removals[0].groups for _, plan in plans_since(thrice, once)] == [("3.up", "3.down")]
    assert [len(plan.parts) for _, plan in plans_since(thrice, once)] == [2]
    assert plans_since(thrice, original) == (("", PruningPlan.of(thrice)),)


def test_plans_that_are_no_rounds_of_one_model_stay_apart(original):
    once = without(original, "1.up")
    once.add_module("7", linear())
    twice = without(once, "3.up")
    assert [len(plan.parts) for plan in plans_of(twice)] == [1, 1]
    with pytest.raises(PlanError, match="modules of this Sequential were pruned by plans of their own"):
        PruningPlan.of(twice)
    with pytest.raises(PlanError, match="was not pruned"):
        PruningPlan.of(original)


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_another_model_is_refused_and_a_round_that_does_not_fit_undoes_those_before(original, thrice):
    plan = PruningPlan.of(thrice)
    with pytest.raises(PlanError, match="made for another model"):
        plan.apply(randomised(residuals(4)))
    data = json.loads(plan.to_json())
    data["rounds"][1]["structure"][-1] += " changed"
    data["rounds"][1]["fingerprint"] = "0" * 64
    before = Photograph(original)
    with pytest.raises(PlanError, match="round 2: the plan was made for another model"):
        PruningPlan.from_json(json.dumps(data)).apply(original, inplace=True)
    assert Photograph(original) == before
    data = json.loads(plan.to_json())
    data["edits"][-1]["fqn"] = "1.up"
    with pytest.raises(PlanError, match="round 3: "):
        PruningPlan.from_json(json.dumps(data)).apply(original, inplace=True)
    assert Photograph(original) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["rounds"].pop(), "there are 2, and edits of 3"),
        (lambda data: data.update(rounds=[]), "there are 0, and edits of 3"),
        (lambda data: data.update(edits=data["edits"][:1], rounds=data["rounds"][:1]), "there are 1, and edits of 1"),
        (lambda data: data["removals"][0].update(round=9), "a removal is of round 9 of 3"),
        (lambda data: data["rounds"][1].update(num_params_before=7), "round 2 begins with 7 parameters, not"),
        (lambda data: data.update(num_params_after=7), "the last one's size are not those of the plan"),
        (lambda data: data.update(fingerprint="0" * 64), "the first one's model"),
    ],
)
def test_a_plan_whose_rounds_contradict_it_is_refused(thrice, change, message):
    data = json.loads(PruningPlan.of(thrice).to_json())
    change(data)
    with pytest.raises(PlanError, match=f"not a pruning plan: rounds: .*{message}"):
        PruningPlan.from_json(json.dumps(data))


def test_boundaries_are_plain_edits_of_no_module():
    assert Boundary().targets == ()
    assert rounds_of((Boundary(),)) == ((), ())
    assert merged([]) == ()
