"""Bad input: each kind gets an error of the library's own that says what to do next, and changes nothing."""

import math
import pickle

import numpy
import pytest
import torch
from torch import nn

import layerprune
from layerprune import LayerPruneError, UniversalLayerPruner, errors, quick_prune
from layerprune.errors import (
    BudgetError,
    CaptureError,
    CriticalGroupError,
    InputsError,
    PlanError,
    UnknownNameError,
    UnsupportedModelError,
)
from models.nets import ExampleModel, Net, Photograph, image, linear, parameter, randomised, rows


def chain():
    return nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU(), linear())


def assert_refused(error, model, act, match):
    """The action raises the error, whose message matches; the model is as it was, whatever its mode."""
    for training in (True, False):
        if isinstance(model, nn.Module):
            model.train(training)
            before = Photograph(model)
        with pytest.raises(error, match=match) as raised:
            act(model)
        assert isinstance(raised.value, LayerPruneError)
        assert len(str(raised.value)) > 20
        if isinstance(model, nn.Module):
            assert Photograph(model).difference(before) == ""


# ---- inputs that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (rows(width=3), r"(?s)Sequential\.forward raised.*4×3.*[Pp]ass example_inputs="),
        ((rows(), rows()), r"(?s)Sequential\.forward raised.*[Pp]ass example_inputs="),
        ({"pixels": rows()}, r"(?s)Sequential\.forward raised.*pixels.*[Pp]ass example_inputs="),
        (torch.arange(8), r"(?s)Sequential\.forward raised.*int64.*[Pp]ass example_inputs="),
        ("eight numbers", r"(?s)Sequential\.forward raised.*[Pp]ass example_inputs="),
        ((), r"(?s)Sequential\.forward raised.*no arguments.*[Pp]ass example_inputs="),
        (image(), r"(?s)Sequential\.forward raised.*2×3×8×8.*[Pp]ass example_inputs="),
    ],
    ids=["width", "too many", "keyword", "dtype", "string", "none", "image"],
)
def test_inputs_that_do_not_fit(inputs, match):
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert_refused(InputsError, model, lambda m: UniversalLayerPruner(m, example_inputs=inputs), match)


@pytest.mark.parametrize(
    "inputs", [chain(), torch.utils.data.DataLoader([rows()]), iter([rows()])], ids=["model", "loader", "iterator"]
)
def test_what_are_no_inputs_at_all(inputs):
    assert_refused(InputsError, chain(), lambda m: UniversalLayerPruner(m, example_inputs=inputs), "pass")


def test_inputs_that_cannot_be_inferred():
    model = Net(lambda net, x: net.a(x["features"]["deep"]), a=linear())
    assert_refused(InputsError, model, UniversalLayerPruner, r"(?s)Net.*[Pp]ass example_inputs=")


# ---- a forward that raises -------------------------------------------------------------------------------------------


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = linear(), nn.BatchNorm1d(8)

    def forward(self, x):
        self.norm(self.a(x))
        raise KeyError("the cache is cold")


@pytest.mark.parametrize("options", [{}, {"example_inputs": rows()}], ids=["inferred", "given"])
def test_a_forward_that_raises(options):
    assert_refused(InputsError, Broken(), lambda m: UniversalLayerPruner(m, **options), "(?s)Broken.*the cache is cold")


def test_the_models_own_error_is_the_cause():
    with pytest.raises(InputsError) as raised:
        UniversalLayerPruner(Broken(), example_inputs=rows())
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_forward_that_returns_nothing():
    model = Net(lambda net, x: None, a=linear())
    assert_refused(CaptureError, model, lambda m: UniversalLayerPruner(m, example_inputs=rows()), "returns no tensor")


# ---- models that cannot be pruned ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()),
        nn.Sequential(nn.LayerNorm(8)),
        Net(lambda net, x: x * net.s, s=parameter(8)),
    ],
    ids=["norm", "layer norm", "scale"],
)
def test_a_model_without_transforms(model):
    assert_refused(
        UnsupportedModelError, model, lambda m: UniversalLayerPruner(m, example_inputs=rows()), "has no transform"
    )


def test_a_model_without_parameters():
    assert_refused(UnsupportedModelError, nn.Sequential(nn.ReLU()), UniversalLayerPruner, "no parameters")


@pytest.mark.parametrize(
    "model", [nn.LazyLinear(8), nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), nn.LazyBatchNorm1d()]
)
def test_a_lazy_model(model):
    with pytest.raises(UnsupportedModelError, match=r"lazy.*run one forward"):
        UniversalLayerPruner(model)
    assert any(isinstance(p, nn.UninitializedParameter) for p in model.parameters())


def test_a_lazy_model_that_has_run_is_fine():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))
    model(rows())
    assert UniversalLayerPruner(model, example_inputs=rows()).groups[0].can_remove


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, rows())], ids=["script", "trace"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model(make):
    assert_refused(UnsupportedModelError, make(chain()), UniversalLayerPruner, "TorchScript.*pass the Python module")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", [nn.Linear(4, 4), nn.LSTM(4, 4), nn.GRUCell(4, 4)])
def test_a_quantised_part_is_named_and_the_order_of_things_is_told(part):
    model = torch.ao.quantization.quantize_dynamic(nn.ModuleDict({"part": part}), dtype=torch.qint8)
    with pytest.raises(UnsupportedModelError, match=r"'part' is a quantised .*: prune the float model, then quantise"):
        UniversalLayerPruner(model, example_inputs=torch.zeros(2, 4))


def test_a_scripted_part_is_named():
    model = nn.Sequential(linear(), torch.jit.script(nn.Sequential(linear(), nn.ReLU())), linear())
    with pytest.raises(UnsupportedModelError, match="'1' is a TorchScript module"):
        UniversalLayerPruner(model, example_inputs=rows())


@pytest.mark.parametrize(
    "thing", [None, "resnet50", nn.Linear, {"weight": rows()}, chain], ids=["None", "name", "class", "dict", "function"]
)
def test_what_is_no_model(thing):
    assert_refused(UnsupportedModelError, thing, UniversalLayerPruner, r"expected a torch\.nn\.Module, got")


# ---- budgets ---------------------------------------------------------------------------------------------------------

BAD_BUDGETS = [0, 1, -0.3, 1.5, 30, 100, math.nan, math.inf, -math.inf, "0.3", "30%", None, [0.3], 0.3j, True]


@pytest.mark.parametrize("budget", [b for b in BAD_BUDGETS if b is not None], ids=repr)
def test_a_budget_outside_its_range(budget):
    assert_refused(
        BudgetError,
        chain(),
        lambda m: UniversalLayerPruner(m, example_inputs=rows()).prune(max_param_reduction=budget),
        "max_param_reduction is .*between 0 and 1, as 0.3 for at most 30 %",
    )


@pytest.mark.parametrize("budget", BAD_BUDGETS, ids=repr)
def test_quick_prune_checks_its_reduction_before_it_does_anything(budget):
    # Broken would raise InputsError, had it been run.
    assert_refused(BudgetError, Broken(), lambda m: quick_prune(m, reduction=budget), "reduction is .*between 0 and 1")


def test_a_budget_error_is_a_value_error():
    with pytest.raises(ValueError, match="between 0 and 1"):
        quick_prune(chain(), reduction=2)


def test_a_budget_from_numpy_is_as_good_as_a_float():
    pruner = UniversalLayerPruner(chain(), example_inputs=rows())
    expected = pruner.plan(max_param_reduction=0.5)
    assert expected.removals
    assert pruner.plan(max_param_reduction=numpy.float64(0.5)).removals == expected.removals


def test_an_unknown_option_is_a_type_error_as_in_python():
    with pytest.raises(TypeError, match="reductoin"):
        quick_prune(chain(), reductoin=0.3)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_an_unknown_group():
    assert_refused(
        UnknownNameError,
        chain(),
        lambda m: UniversalLayerPruner(m, example_inputs=rows()).prune(groups=["layer3"]),
        r"no group 'layer3'; groups are '2', '0', '4'",
    )


def test_a_member_is_no_group():
    pruner = UniversalLayerPruner(chain(), example_inputs=rows())
    with pytest.raises(UnknownNameError, match="no group '1'"):
        pruner.plan(groups=["1"])


def test_an_unknown_name_is_a_key_error_with_a_readable_message():
    pruner = UniversalLayerPruner(chain(), example_inputs=rows())
    with pytest.raises(KeyError) as raised:
        pruner.plan(groups=["layer3"])
    assert str(raised.value).startswith("there is no group 'layer3'")


def test_a_critical_group():
    assert_refused(
        CriticalGroupError,
        chain(),
        lambda m: UniversalLayerPruner(m, example_inputs=rows()).prune(groups=["4"]),
        "'4' cannot be removed: feeds the model's output",
    )


def test_a_pattern_that_protects_nothing():
    assert_refused(
        UnknownNameError,
        chain(),
        lambda m: UniversalLayerPruner(m, example_inputs=rows(), protect=["encoder.*"]),
        r"'encoder\.\*' matches no module",
    )


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_from_another_model():
    plan = UniversalLayerPruner(chain(), example_inputs=rows()).plan(groups=["2"])
    assert_refused(
        PlanError,
        randomised(ExampleModel()),
        lambda m: UniversalLayerPruner(m, example_inputs=image()).prune(plan=plan, inplace=True),
        "made for another model.*make a new plan with UniversalLayerPruner",
    )


# ---- weights that are not numbers ------------------------------------------------------------------------------------


def test_nan_weights_are_a_note_in_the_plan_and_no_error():
    model = chain()
    with torch.no_grad():
        model[2].weight[3, 3] = math.nan
    before = Photograph(model)
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    assert any("NaN" in note and "2.weight" in note for note in pruner.notes)
    assert "NaN" in pruner.render_plan()
    plan = pruner.plan(max_param_reduction=0.5)
    assert any("NaN" in note for note in plan.notes)
    assert "NaN" not in plan.removals[0].name
    assert type(plan).from_json(plan.to_json()) == plan
    assert not math.isnan(pruner.prune(plan=plan)[0].weight.detach().sum())
    assert Photograph(model).difference(before) == ""


def test_infinite_weights_do_not_break_the_plan():
    model = chain()
    with torch.no_grad():
        model[2].weight[3, 3] = math.inf
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    plan = pruner.plan(groups=["2"])
    assert plan.num_params_after == plan.num_params_before - 72
    assert type(plan).from_json(plan.to_json()) == plan
    pruner.print_plan(plan)


def test_weights_that_are_numbers_leave_no_note_of_nan():
    assert not any("NaN" in note for note in UniversalLayerPruner(chain(), example_inputs=rows()).notes)


def test_groups_come_in_one_order_where_impacts_are_not_known():
    model = nn.Sequential(*(linear() for _ in range(5)))
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    names = [g.name for g in UniversalLayerPruner(model, example_inputs=rows()).groups]
    assert set(names[:3]) == {"1", "2", "3"}
    assert set(names[3:]) == {"0", "4"}


# ---- the errors themselves -------------------------------------------------------------------------------------------

OWN = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, Exception) and not issubclass(value, Warning)
]


def test_every_error_is_a_layer_prune_error_and_says_what_it_is_for():
    assert layerprune.LayerPruneError is LayerPruneError
    assert len(OWN) > 8
    assert all(issubclass(error, LayerPruneError) for error in OWN)
    assert all(error.__doc__ for error in OWN)


@pytest.mark.parametrize("error", OWN, ids=lambda error: error.__name__)
def test_every_error_prints_its_message_and_survives_pickling(error):
    again = pickle.loads(pickle.dumps(error("group 'a' is 'b'")))
    assert type(again) is error
    assert str(again) == "group 'a' is 'b'"
