"""Entries of the state dict that are no tensors, as a class keeps its constructor's arguments there."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner, load_pruned, save_pruned
from layerprune.errors import CheckpointError
from models.nets import linear, randomised, rows, run


class Described(nn.Module):
    """Its state dict holds the arguments that it was made with."""

    def __init__(self, width=8, activation=F.gelu, more=None):
        super().__init__()
        self.arguments = {"width": width, "activation": activation, "more": more}
        self.stem, self.branch, self.head = linear(width), linear(width), linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.arguments["activation"](self.branch(x)))

    def state_dict(self, *args, **kwargs):
        return {**super().state_dict(*args, **kwargs), "_metadata": self.arguments}


def pruned_of(model):
    return UniversalLayerPruner(randomised(model), example_inputs=rows()).prune(groups=["branch"])


def test_arguments_in_the_state_dict_are_no_obstacle_and_are_compared_on_loading(tmp_path):
    pruned = pruned_of(Described(more=[1, 2.5, None, torch.float16, {"a": (True, "b")}]))
    folder = save_pruned(pruned, tmp_path / "small")
    loaded = load_pruned(folder, factory=lambda: Described(more=[1, 2.5, None, torch.float16, {"a": (True, "b")}]))
    assert torch.equal(run(loaded, rows()), run(pruned, rows()))
    assert loaded.state_dict()["_metadata"] == pruned.state_dict()["_metadata"]
    with pytest.raises(CheckpointError, match=r"'_metadata' .*gelu.*relu.*same arguments"):
        load_pruned(folder, factory=lambda: Described(activation=F.relu))


def test_long_entries_are_compared_as_well(tmp_path):
    folder = save_pruned(pruned_of(Described(more=list(range(1000)))), tmp_path / "small")
    load_pruned(folder, factory=lambda: Described(more=list(range(1000))))
    with pytest.raises(CheckpointError, match="'_metadata'"):
        load_pruned(folder, factory=lambda: Described(more=list(range(999))))


@pytest.mark.parametrize("more", [object(), [torch.ones(2)]])
def test_entries_that_cannot_be_compared_are_refused(tmp_path, more):
    kind = "object" if type(more) is object else "Tensor"
    with pytest.raises(CheckpointError, match=f"'_metadata' .{kind}. is in the state dict.*keep it in a buffer"):
        save_pruned(pruned_of(Described(more=more)), tmp_path / "small")


def test_manifests_of_models_without_such_entries_are_as_they_always_were(tmp_path):
    pruned = UniversalLayerPruner(nn.Sequential(linear(), linear(), linear()), example_inputs=rows()).prune(groups="1")
    manifest = json.loads((save_pruned(pruned, tmp_path / "small") / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    assert "entries" not in manifest["tensors"]
