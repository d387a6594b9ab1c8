"""A pruned model knows its plans, and so does what is copied from it, or holds it."""

import copy
import importlib
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner, load_pruned, save_pruned
from layerprune.errors import CheckpointError, PlanError
from layerprune.plan import placed_plans, plans_of
from layerprune.plan.provenance import ATTRIBUTE
from models.nets import linear, randomised, rows, run


class Residual(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.up, self.down = linear(width, 16), linear(16, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def residuals(depth=4):
    return nn.Sequential(linear(), *(Residual() for _ in range(depth)), linear())


class System(nn.Module):
    """A network of two parts, as a Lightning module holds it."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = residuals(), nn.Sequential(linear(), Residual(), linear())

    def forward(self, x):
        return self.head(self.backbone(x))


def without(model, *groups, inplace=False):
    pruner = UniversalLayerPruner(model, example_inputs=rows(), protect_io=False)
    return pruner.prune(groups=list(groups), inplace=inplace)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def through_torch(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def averaged(model):
    return torch.optim.swa_utils.AveragedModel(model).module


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, through_torch, averaged])
def test_a_copy_knows_the_plan_and_is_saved_without_it(tmp_path, copied):
    pruned = without(randomised(residuals()), "2.up")
    twin = copied(pruned)
    assert plans_of(twin) == plans_of(pruned)
    assert len(plans_of(twin)) == 1
    save_pruned(twin, tmp_path / "small")
    assert torch.equal(run(load_pruned(tmp_path / "small", factory=residuals), rows()), run(pruned, rows()))


def test_the_record_is_text_beside_the_tensors_and_leaves_with_the_edit():
    model = randomised(residuals())
    before = dict(vars(model))
    pruned = without(model, "2.up")
    assert vars(model) == before
    assert not any("layerprune" in key for key in pruned.state_dict())
    assert all(type(part) is str for entry in vars(pruned)[ATTRIBUTE] for part in entry)
    assert type(pruned) is type(model)
    plan = plans_of(pruned)[0].model_copy(update={"num_params_after": 1})
    with pytest.raises(PlanError, match="promises 1 parameters"):
        plan.apply(model, inplace=True)
    assert vars(model).keys() == before.keys()


def test_what_holds_no_stand_in_is_unpickled_without_layerprune(tmp_path):
    """Elements of a Sequential leave it: torch alone knows all that is left."""
    pruned = without(nn.Sequential(linear(), nn.Sequential(linear(), nn.ReLU()), linear(), linear()), "2")
    torch.save(pruned, tmp_path / "pruned.pt")
    code = f"import sys, torch; torch.load({str(tmp_path / 'pruned.pt')!r}, weights_only=False); "
    code += "sys.exit('layerprune' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_holds_stand_ins_names_layerprune_where_it_is_not(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\nclass Own(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)\n\n"
        "    def forward(self, x):\n        x = self.a(x)\n        return self.c(x + self.b(x))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(without(importlib.import_module("own").Own(), "b"), tmp_path / "pruned.pt")
    code = f"import sys; sys.modules['layerprune'] = None; sys.path.insert(0, {str(tmp_path)!r}); import torch\n"
    code += f"torch.load({str(tmp_path / 'pruned.pt')!r}, weights_only=False)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "No module named 'layerprune" in done.stderr.splitlines()[-1]


def test_a_system_is_saved_with_the_part_that_was_pruned(tmp_path):
    system = randomised(System())
    system.backbone = without(system.backbone, "2.up")
    assert [(place, len(plan.removals)) for place, plan in placed_plans(system)] == [("backbone", 1)]
    assert plans_of(system) == ()
    save_pruned(system, tmp_path / "small")
    loaded = load_pruned(tmp_path / "small", factory=System)
    assert torch.equal(run(loaded, rows()), run(system, rows()))
    save_pruned(loaded, tmp_path / "again")
    assert torch.equal(run(load_pruned(tmp_path / "again", model=System()), rows()), run(system, rows()))
    with pytest.raises(PlanError, match="made for the module 'backbone', which this Sequential lacks"):
        load_pruned(tmp_path / "small", factory=residuals)


def test_part_whole_and_part_again_are_replayed_in_their_order(tmp_path):
    system = randomised(System())
    system.backbone = without(system.backbone, "2.up")
    system = without(system, "backbone.3.up")
    without(system.backbone, "1.up", inplace=True)
    without(system.head, "1.up", inplace=True)
    assert [place for place, _ in placed_plans(system)] == ["backbone", "", "backbone", "head"]
    assert [place for place, _ in placed_plans(nn.Sequential(nn.Identity(), system))][:2] == ["1.backbone", "1"]
    save_pruned(system, tmp_path / "small")
    loaded = load_pruned(tmp_path / "small", factory=System)
    assert torch.equal(run(loaded, rows()), run(system, rows()))


def test_two_towers_of_one_plan_are_two_places(tmp_path):
    def towers():
        return nn.Sequential(residuals(), residuals())

    net = randomised(towers())
    plan = UniversalLayerPruner(net[0], example_inputs=rows()).plan(groups=["2.up"])
    for i in (0, 1):
        net[i] = plan.apply(net[i])
    assert placed_plans(net) == (("0", plan), ("1", plan))
    save_pruned(net, tmp_path / "small")
    assert torch.equal(run(load_pruned(tmp_path / "small", factory=towers), rows()), run(net, rows()))


def test_places_that_are_no_plans_places_are_refused(tmp_path):
    system = System()
    system.backbone = without(system.backbone, "2.up")
    save_pruned(system, tmp_path / "small")
    from layerprune.checkpoint.manifest import Manifest

    path = tmp_path / "small" / "manifest.json"
    manifest = Manifest.from_json(path.read_text())
    assert manifest.schema_version == 2
    path.write_text(manifest.model_copy(update={"places": ("backbone", "head")}).to_json())
    with pytest.raises(CheckpointError, match="another number of places than of plans"):
        load_pruned(tmp_path / "small", factory=System)
