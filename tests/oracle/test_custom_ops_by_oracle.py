"""Custom ops: what cannot be pruned around before they are registered can be after, and is what the oracle computes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from layerprune import UniversalLayerPruner, load_pruned, register_op, save_pruned
from layerprune.errors import LayerPruneError, OpClaimError
from layerprune.tensors.op_traits import registered_ops, unregister
from models import custom_ops as ops
from models.custom_ops import CustomNet
from models.nets import image, randomised
from oracle.checks import Oracle


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    yield
    for name in registered_ops():
        unregister(name)


def test_the_example_of_the_page_runs_and_saves_what_it_says():
    page = Path(__file__).parents[2] / "docs" / "custom-ops.md"
    code, _ = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, str(page), "exec"), names)
    model, pruned, x = (names[name] for name in ("model", "pruned", "x"))
    assert torch.equal(pruned(x), model.head(model.stem(x)))


def register_all():
    register_op(ops.join, merge="add")
    register_op(ops.concat, merge="cat")
    register_op(ops.rectify, channels="elementwise")
    register_op(ops.halve, channels="spatial")
    register_op(ops.turn, channels="moves")


def verdicts(model):
    return {group.name: group.can_remove for group in UniversalLayerPruner(model, example_inputs=image()).groups}


def test_layers_around_unknown_ops_stay_and_the_reason_names_the_op():
    pruner = UniversalLayerPruner(CustomNet().eval(), example_inputs=image())
    reasons = {group.name: group.reason for group in pruner.groups if not group.can_remove}
    assert set(reasons) == {"stem", "a1", "a2", "b", "c", "mix", "head"}
    assert "calls 'lp_tests::rectify' in between" in reasons["a2"]


def test_once_the_ops_are_registered_branches_leave_and_are_what_the_oracle_computes():
    register_all()
    model = randomised(CustomNet().double())
    oracle = Oracle(model, ((image().double(),), {}), ((image(seed=2).double()[:1],), {}))
    kinds = {removal.name: removal.kind for removal in oracle.pruner.removals}
    assert kinds["lp_tests::join without lp_tests::rectify_1"] == "branch"
    assert kinds["lp_tests::concat without b"] == kinds["lp_tests::concat without c"] == "concat"
    for removal in oracle.checkable:
        oracle.check_removal(removal)
    assert {"branch", "concat"} <= set(oracle.moved)
    oracle.check_plan(oracle.pruner.plan(max_param_reduction=0.4))


def test_a_branch_of_a_registered_concat_takes_its_channels_through_registered_ops():
    register_all()
    pruner = UniversalLayerPruner(randomised(CustomNet()), example_inputs=image())
    removal = next(r for r in pruner.removals if r.name == "lp_tests::concat without b")
    assert [edit.dropped for edit in removal.edits if edit.kind == "slice" and edit.fqn == "mix"] == [((10, 16),)]


def test_a_move_that_puts_what_is_left_elsewhere_is_found_by_the_proof():
    register_all()
    register_op(ops.swap, channels="moves")  # which is true; but half of the channels are shuffled otherwise than all
    pruner = UniversalLayerPruner(randomised(CustomNet(move="swap")), example_inputs=image())
    reasons = {group.name: group.reason for group in pruner.groups}
    assert "would move the channels that are left to other places" in reasons["c"]
    assert "lp_tests::concat without c" not in {removal.name for removal in pruner.removals}


@pytest.mark.parametrize(
    ("op", "replaced", "claim"),
    [
        ("gate", "add", {"merge": "add"}),
        ("weighted", "add", {"merge": "add"}),
        ("saturated", "add", {"merge": "add"}),
        ("join", "add", {"merge": "mul"}),
        ("backwards", "cat", {"merge": "cat"}),
        ("mixed", "act", {"channels": "elementwise"}),
        ("mixed", "act", {"channels": "spatial"}),
        ("rectify", "act", {"channels": "moves"}),
        ("ordered", "move", {"channels": "moves"}),
        ("swap", "move", {"channels": "elementwise"}),
        ("halve", "pool", {"channels": "elementwise"}),
    ],
)
def test_what_is_said_wrongly_is_found_before_anything_is_called_safe(op, replaced, claim):
    register_op(getattr(ops, op), **claim)
    model = CustomNet(**{replaced: op}).eval()
    ((word, value),) = claim.items()
    with pytest.raises(OpClaimError, match=f"{word}='{value}' does not hold of 'lp_tests::{op}' on 2×"):
        UniversalLayerPruner(model, example_inputs=image()).print_plan()


def test_the_same_ops_said_rightly_pass():
    register_op(ops.rectify, channels="elementwise")
    register_op(ops.gate, merge="mul")
    assert verdicts(CustomNet(add="gate").eval())["a2"] is True


def test_from_a_kind_alone_nothing_follows_that_a_removal_hangs_on():
    register_op(ops.weighted, kind="activation")
    assert not any(verdicts(CustomNet(add="weighted").eval()).values())


def test_a_plan_that_drops_an_operand_of_a_registered_op_wants_it_registered(tmp_path):
    register_op(ops.join, merge="add")
    register_op(ops.rectify, channels="elementwise")
    model = randomised(CustomNet())
    plan = UniversalLayerPruner(model, example_inputs=image()).plan(groups=["a2"])
    text, x = plan.to_json(), image()
    pruned = type(plan).from_json(text).apply(model)
    torch.save(pruned, tmp_path / "model.pt")
    save_pruned(pruned, tmp_path / "folder")
    expected = pruned(x)
    unregister("lp_tests::join")
    with pytest.raises(LayerPruneError, match=r"lp_tests::join.*register_op\(\)"):
        type(plan).from_json(text).apply(model)
    with pytest.raises(LayerPruneError, match=r"lp_tests::join.*register_op\(\)"):
        torch.load(tmp_path / "model.pt", weights_only=False)
    with pytest.raises(LayerPruneError, match=r"lp_tests::join.*register_op\(\)"):
        load_pruned(tmp_path / "folder", randomised(CustomNet()))
    register_op(ops.join, merge="add")
    assert torch.equal(load_pruned(tmp_path / "folder", CustomNet())(x), expected)
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(x), expected)


def test_what_is_left_of_a_model_with_registered_ops_is_compiled_and_exported_without_what_was_removed():
    register_all()
    x = image()
    pruner = UniversalLayerPruner(randomised(CustomNet()), example_inputs=x)
    pruned = pruner.prune(groups=["a2", "b"])
    expected = pruned(x)
    torch.testing.assert_close(torch.compile(pruned, backend="eager", fullgraph=True)(x), expected)
    exported = torch.export.export(pruned, (x,))
    called = [str(node.target) for node in exported.graph.nodes if "lp_tests" in str(node.target)]
    assert [name.split(".")[1] for name in called] == ["concat", "rectify", "halve", "turn"]
    torch.testing.assert_close(exported.module()(x), expected)
