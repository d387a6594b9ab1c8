"""A forward that hangs other modules in, which take over the layers of the old ones, is planned as it runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerprune import UniversalLayerPruner
from layerprune.select.conflict_learning import ConflictLearner
from models.nets import close, linear, randomised, rows, run


class Long(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lead = linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.lead(x).tanh()


class Short(nn.Module):
    lead: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.lead(x).relu()


class Switching(nn.Module):
    """A branch that changes its kind where few rows come in, as BigBird's attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.branch: nn.Module = Long()
        self.kind = "long"

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 16 and self.kind == "long":
            branch = Short()
            branch.lead = self.branch.lead
            self.branch, self.kind = branch, "short"
        return x + self.branch(x)


def test_removals_from_a_forward_that_hangs_other_modules_in_hold_together_and_the_model_stays_as_it_was() -> None:
    model = randomised(nn.Sequential(linear(), *[Switching() for _ in range(4)], linear(8, 2)))
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    plan = pruner.plan(max_param_reduction=0.8)
    assert [removal.groups for removal in plan.removals] == [(f"{i}.branch.lead",) for i in range(1, 5)]
    pruned = pruner.prune(plan=plan)
    assert all(type(model[i].branch) is Long and model[i].kind == "long" for i in range(1, 5))
    x = rows(3, seed=7)
    assert close(run(pruned, x), model[5](model[0](x)))
    assert sum(p.numel() for p in pruned.parameters()) == sum(p.numel() for i in (0, 5) for p in model[i].parameters())


def test_of_what_is_left_after_all_have_failed_nothing_more_is_asked() -> None:
    def fails(some: object) -> None:
        raise AssertionError("nothing is to be proven")

    assert ConflictLearner([], fails, fails).holds(())


def test_impacts_by_making_removals_see_the_modules_that_run() -> None:
    model = randomised(nn.Sequential(linear(), *[Switching() for _ in range(2)], linear(8, 2))).double()
    batches = [rows(4, seed=seed).double() for seed in range(3)]
    pruner = UniversalLayerPruner(model, calibration=batches, criterion="ablation", kind="values")
    with torch.no_grad():
        x = torch.cat(batches)
        h = model[0](x)
        one = h + model[1].branch.lead(h).relu()
        out = model[3](one + model[2].branch.lead(one).relu())
        without = model[3](one)
    found = next(removal.impact for removal in pruner.removals if removal.groups == ("2.branch.lead",))
    per_batch = [
        float((without[i : i + 4] - out[i : i + 4]).square().sum() / out[i : i + 4].square().sum()) for i in (0, 4, 8)
    ]
    assert abs(found - sum(per_batch) / 3) < 1e-9
