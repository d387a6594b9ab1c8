"""Partial removals: generation with a key-value cache gives what generation without one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from test_whole_blocks import inputs_of, no_cache, state

from layerprune import UniversalLayerPruner
from layerprune.edits import TakePlace
from layerprune.plan import PruningPlan
from layerprune.surgery import applied
from models.families import build
from models.nets import repeats
from models.reload_vanilla import generated
from oracle.checks import distance, run
from oracle.simulation import simulate

_SHORT = {"num_hidden_layers": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SHORT,
    "qwen3": _SHORT,
    "gemma3": {},
    "gpt2": {"n_layer": 3},
    "bart": {"encoder_layers": 1, "decoder_layers": 2},
    "t5": {"num_layers": 2, "num_decoder_layers": 2},
    "lfm2": {},
    "bamba": _SHORT,
}


def padded(model: nn.Module) -> dict[str, torch.Tensor]:
    """Inputs of which one is padded: a wrong length of the past shows in the mask, too."""
    inputs = inputs_of(model)
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, :3] = 0
    return inputs | {"attention_mask": mask}


def pruner_of(model: nn.Module) -> UniversalLayerPruner:
    return UniversalLayerPruner(model, example_inputs=padded(model) | no_cache(model), protect_io=False)


@pytest.mark.parametrize("family", ["llama", "bart", "lfm2", *repeats("qwen3", "gemma3", "gpt2", "t5", "bamba")])
def test_every_removal_generates_with_a_cache_what_it_does_without(family: str) -> None:
    model = build(family, **FAMILIES[family]).double()
    pruner = pruner_of(model)
    inputs: dict[str, Any] = padded(model)
    before = state(model)
    moved = 0
    for removal in pruner.removals:
        if removal.kind == "bypass" or not pruner._found.prover.caches.concerned(removal.edits):
            continue
        with applied(model, removal.edits):
            assert generated(model, inputs, cached=True) == generated(model, inputs, cached=False), removal
            pruned = run(model, ((), inputs | no_cache(model)))
        moved += any(isinstance(edit, TakePlace) for edit in removal.edits)
        assert distance(pruned, simulate(model, pruner.graph, removal.cut, **inputs, **no_cache(model))) < 1e-10
    assert state(model) == before
    if family in ("llama", "qwen3", "gemma3", "gpt2"):
        assert moved, "the first attention has gone, and the next has taken its place"


def test_the_last_attention_that_knows_the_past_stays() -> None:
    pruner = pruner_of(build("bamba", **_SHORT))
    assert not any("model.layers.2.self_attn" in pruner._found.prover.caches.leaving(r.edits) for r in pruner.removals)
    (reason,) = {g.reason for g in pruner.groups if g.name.startswith("model.layers.2.self_attn") and not g.can_remove}
    assert "generation with a cache fails without it" in reason


def test_a_plan_with_many_removals_generates_and_replays() -> None:
    model = build("gemma3")
    pruner = pruner_of(model)
    names = [f"model.layers.{i}.self_attn" for i in (0, 1)] + ["model.layers.2.mlp"]
    plan = PruningPlan.from_json(pruner.plan(groups=names).to_json())
    pruned = plan.apply(build("gemma3"))
    inputs = padded(model)
    assert generated(pruned, inputs, cached=True) == generated(pruned, inputs, cached=False)
    assert {edit.kind for edit in plan.edits} >= {"drop", "take_place"}
