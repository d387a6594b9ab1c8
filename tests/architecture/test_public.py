"""The public surface: what a user may rely on. A change here is a change of the promise, and of this file."""

import dataclasses
import importlib
import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn

import layerprune
from layerprune import Group, LayerInfo, PruningPlan, Removal, UniversalLayerPruner, quick_prune
from models.nets import Damped, ExampleModel, image, linear, randomised, rows, same_bits

NAMES = [
    "Group",
    "LayerGraph",
    "LayerInfo",
    "LayerPruneError",
    "PruningPlan",
    "Removal",
    "UniversalLayerPruner",
    "allow_marked_saving",
    "applied",
    "compare",
    "distill",
    "from_hub",
    "load_pruned",
    "push_to_hub",
    "quick_prune",
    "register_criterion",
    "register_op",
    "repair",
    "save_pruned",
]

HOMES = {
    "Group": "graph",
    "LayerGraph": "graph",
    "LayerInfo": "graph",
    "LayerPruneError": "errors",
    "PruningPlan": "plan",
    "Removal": "proof",
    "UniversalLayerPruner": "pruner",
    "allow_marked_saving": "checkpoint",
    "applied": "surgery",
    "compare": "fidelity",
    "distill": "distillation",
    "from_hub": "checkpoint",
    "load_pruned": "checkpoint",
    "push_to_hub": "checkpoint",
    "quick_prune": "pruner",
    "register_criterion": "impact",
    "register_op": "tensors",
    "save_pruned": "checkpoint",
}


def parameters(function):
    """(name, kind, default) of each parameter."""
    kinds = {inspect.Parameter.KEYWORD_ONLY: "keyword", inspect.Parameter.VAR_KEYWORD: "**"}
    found = inspect.signature(function).parameters.values()
    return [
        (p.name, kinds.get(p.kind, "positional"), None if p.default is inspect.Parameter.empty else p.default)
        for p in found
    ]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_these_names_are_public():
    assert layerprune.__all__ == NAMES
    assert set(NAMES) <= set(dir(layerprune))
    assert isinstance(layerprune.__version__, str)


@pytest.mark.parametrize("name", HOMES)
def test_a_public_name_is_the_object_of_that_name_in_its_home(name):
    home = importlib.import_module(f"layerprune.{HOMES[name]}")
    assert getattr(layerprune, name) is getattr(home, name)
    assert callable(getattr(layerprune, name))


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]], ids=["in order", "backwards"])
def test_public_names_can_be_imported_in_any_order(names):
    code = f"from layerprune import {', '.join(names)}; assert all(map(callable, ({', '.join(names)})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "imports",
    [
        "from layerprune import repair",
        "from layerprune.repair import untie; from layerprune import repair",
    ],
)
def test_repair_is_the_function_and_the_package_whichever_comes_first(imports):
    code = (
        f"{imports}; import inspect, layerprune.repair; assert repair is layerprune.repair; assert callable(repair); "
        "assert inspect.signature(repair) == inspect.signature(repair.repair); "
        "from layerprune.repair import RepairReport; from layerprune import *; assert repair is layerprune.repair"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_repair_can_be_called_by_the_packages_name():
    model = randomised(nn.Sequential(linear(), Damped(), linear()))
    batches = [rows(16, seed=seed) for seed in range(4)]
    plan = UniversalLayerPruner(model, example_inputs=rows()).plan(max_param_reduction=0.4)
    first, second = plan.apply(model), plan.apply(model)
    report = layerprune.repair(model, first, batches, edits=plan.edits)
    assert report == layerprune.repair.repair(model, second, batches, edits=plan.edits)
    assert same_bits(first, second)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prune_all'"):
        _ = layerprune.prune_all


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, layerprune; assert 'torch' not in sys.modules; "
        "layerprune.quick_prune; assert 'torch' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- signatures ------------------------------------------------------------------------------------------------------


def test_the_pruner_takes_a_model_and_the_rest_by_keyword():
    assert parameters(UniversalLayerPruner.__init__) == [
        ("self", "positional", None),
        ("model", "positional", None),
        ("example_inputs", "keyword", None),
        ("protect", "keyword", ()),
        ("protect_io", "keyword", True),
        ("granularity", "keyword", "group"),
        ("projections", "keyword", True),
        ("renumber", "keyword", False),
        ("calibration", "keyword", None),
        ("loss", "keyword", None),
        ("kind", "keyword", None),
        ("criterion", "keyword", "auto"),
        ("seed", "keyword", 0),
        ("progress", "keyword", None),
    ]


BUDGETS = ("max_param_reduction", "max_mac_reduction", "target_latency_ms", "max_memory_bytes", "max_impact")
CHOICE = [
    *((name, "keyword", None) for name in BUDGETS),
    ("slack", "keyword", 0.1),
    ("groups", "keyword", None),
    ("strategy", "keyword", "auto"),
    ("unused", "keyword", False),
]


def test_plan_takes_budgets_or_groups_by_keyword():
    assert parameters(UniversalLayerPruner.plan) == [("self", "positional", None), *CHOICE]


def test_prune_takes_budgets_groups_or_a_plan_by_keyword():
    assert parameters(UniversalLayerPruner.prune) == [
        ("self", "positional", None),
        *CHOICE,
        ("plan", "keyword", None),
        ("repair", "keyword", "auto"),
        ("inplace", "keyword", False),
    ]


def test_print_plan_needs_nothing():
    assert parameters(UniversalLayerPruner.print_plan) == [
        ("self", "positional", None),
        ("plan", "positional", None),
        ("full", "keyword", False),
        ("width", "keyword", None),
    ]


def test_plots_take_axes_and_a_plan():
    shared = [("self", "positional", None), ("ax", "positional", None), ("plan", "positional", None)]
    assert parameters(UniversalLayerPruner.plot_frontier) == shared
    assert parameters(UniversalLayerPruner.plot_impact) == [*shared, ("num", "keyword", 30)]


def test_quick_prune_takes_a_model_and_a_reduction():
    assert parameters(quick_prune) == [
        ("model", "positional", None),
        ("reduction", "positional", 0.3),
        ("options", "**", None),
    ]


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruner():
    return UniversalLayerPruner(randomised(ExampleModel()), example_inputs=image())


def test_a_pruner_has_what_the_documents_name(pruner):
    assert isinstance(pruner.model, ExampleModel)
    assert all(isinstance(info, LayerInfo) for info in pruner.transform_layers.values())
    assert all(isinstance(group, Group) for group in pruner.groups)
    assert all(isinstance(removal, Removal) for removal in pruner.removals)
    assert isinstance(pruner.plan(), PruningPlan)
    assert isinstance(pruner.notes, list)


def test_a_group_has_what_the_documents_name(pruner):
    group = next(g for g in pruner.groups if g.name == "conv2a")
    assert isinstance(group.lead_transform, LayerInfo)
    assert [layer.name for layer in group.layers] == ["conv2a", "bn2a", "relu2a"]
    assert group.type == "parallel_branch"
    assert group.impact > 0
    assert group.num_params == 18_624
    assert group.can_remove is True
    assert group.reason == ""


def test_a_removal_has_what_the_documents_name(pruner):
    removal = next(r for r in pruner.removals if r.groups == ("conv2a",))
    assert (removal.kind, removal.num_params) == ("concat", 26_816)
    assert removal.impact > 0
    assert str(removal) == "cat without relu2a (concat: conv2a; 26,816 parameters)"
    assert [edit.kind for edit in removal.edits] == ["drop", "drop", "drop", "slice"]


@pytest.mark.parametrize("cls", [Group, LayerInfo, Removal])
def test_values_are_frozen(cls):
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen


def test_a_plan_has_these_fields():
    assert list(PruningPlan.model_fields) == [
        "schema_version",
        "model",
        "fingerprint",
        "structure",
        *BUDGETS,
        "slack",
        "granularity",
        "strategy",
        "seed",
        "num_params_before",
        "num_params_after",
        "figures",
        "impact_unit",
        "impact_together",
        "frontier",
        "needs_layerprune",
        "notes",
        "shortfall",
        "removals",
        "edits",
        "rounds",
    ]


def test_removals_can_be_applied_for_a_while(pruner):
    removal = next(r for r in pruner.removals if r.groups == ("conv2a",))
    before = [p.shape for p in pruner.model.parameters()]
    with layerprune.applied(pruner.model, removal.edits) as model, torch.no_grad():
        assert model(image()).shape == (2, 10)
        assert [p.shape for p in model.parameters()] != before
    assert [p.shape for p in pruner.model.parameters()] == before
