"""Folded projections: what can leave with them that could not before, and what they cost on a trained network.

``python benchmarks/repair.py --folded`` runs it: random weights for the shares, a small network without shortcuts,
trained on scikit-learn's digits for some seconds, for the cost.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from layerprune.graph import Group, LayerGraph
from layerprune.modules import num_params
from layerprune.select import Budgets, Search

MODELS = ("vgg16", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "densenet121")
console = Console(width=200)


def measure(*, quick: bool = False) -> dict[str, list[dict[str, str]]]:
    """Print and return all tables."""
    names = MODELS[1:2] if quick else MODELS
    found = {"shares": shares(names), "largest": largest(names), "cost": cost(epochs=4 if quick else 30)}
    for title, rows in found.items():
        table = Table(title=title)
        for column in rows[0]:
            table.add_column(column, no_wrap=True)
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
    return found


def params_in(graph: LayerGraph, groups: Iterable[Group]) -> int:
    """Number of parameters in groups, shared ones once."""
    members = [i for group in groups for i in group.members]
    return sum({graph.param_ids[p]: graph.param_sizes[p] for i in members for p in graph.layers[i].params}.values())


def shares(names: tuple[str, ...]) -> list[dict[str, str]]:
    """The share of the parameters in groups that some removal takes out, without and with projections."""
    import torchvision

    rows: list[dict[str, str]] = []
    for name in names:
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None).eval()
        pruner = UniversalLayerPruner(model, example_inputs=torch.randn(2, 3, 224, 224))
        total = pruner.graph.num_params
        kept = params_in(pruner.graph, [g for g in pruner.groups if g.reason_code in ("stem", "head")]) / total
        plain = params_in(pruner.graph, [g for g in pruner.groups if g.can_remove and not g.needs_calibration]) / total
        both = params_in(pruner.graph, [g for g in pruner.groups if g.verdict != "critical"]) / total
        critical = {g.name: params_in(pruner.graph, [g]) / total for g in pruner.groups if g.verdict == "critical"}
        free = UniversalLayerPruner(model, example_inputs=torch.randn(2, 3, 224, 224), protect_io=False)
        most = params_in(free.graph, [g for g in free.groups if g.verdict != "critical"]) / total
        rows.append(
            {
                "model": name,
                "parameters": f"{total:,}",
                "stem and head": f"{kept:.1%}",
                "removable before": f"{plain:.1%}",
                "with projections": f"{both:.1%}",
                "of all but stem and head": f"{both / (1 - kept):.1%}",
                "protect_io=False": f"{most:.1%}",
                "critical": ", ".join(f"{group} {share:.1%}" for group, share in critical.items()),
            }
        )
    return rows


def largest(names: tuple[str, ...]) -> list[dict[str, str]]:
    """The largest plan that is proven, carried out and run: what is gone then, without and with projections.

    Groups say what can leave, the rest of them staying; this says what does. Readers shrink with what they read (a last
    linear layer of 1,024 inputs may have 16 in the end), or grow, and not all removals go together.
    """
    import torchvision

    rows: list[dict[str, str]] = []
    for name in names:
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None).eval()
        images = torch.randn(2, 3, 224, 224)
        row = {"model": name, "parameters": f"{num_params(model):,}"}
        for title, projections in (("before", False), ("with projections", True)):
            pruned = _pruned_most(model, images, projections=projections)
            with torch.no_grad():
                assert pruned(images).shape == (2, 1000)
            row[f"gone, {title}"] = f"{1 - num_params(pruned) / num_params(model):.1%}"
        held = max(pruned.named_parameters(), key=lambda named: named[1].numel())
        rows.append(row | {"most of what is left": f"{held[0]} {held[1].numel() / num_params(pruned):.0%}"})
    return rows


def _pruned_most(model: nn.Module, images: Tensor, *, projections: bool) -> nn.Module:
    """Remove as much as the planner finds to go together, whatever it does to the output.

    A plan within a budget may stay a tenth below that, for the sake of less impact.
    """
    pruner = UniversalLayerPruner(model, calibration=[images], criterion="magnitude", projections=projections)
    planner = pruner._planner
    chosen = Search(planner.problem(planner.meter.resources(Budgets(max_param_reduction=0.9999)))).fill()
    return pruner.prune(plan=planner.of(chosen or (), ()), repair=None).eval()


def cost(*, epochs: int) -> list[dict[str, str]]:
    """A plain network trained on digits, pruned by projections, against what its groups without them allow."""
    images, labels = _digits()
    torch.manual_seed(0)
    model = _trained(images[:1200], labels[:1200], epochs)
    batches = list(images[:512].split(64))
    held_out, wanted = list(images[1200:].split(64)), labels[1200:]
    rows: list[dict[str, str]] = [_row("original", model, held_out, wanted)]
    for with_projections in (False, True):
        pruner = UniversalLayerPruner(model, calibration=batches, projections=with_projections)
        for share in (0.3, 0.6, 0.9) if with_projections else (0.3,):
            plan = pruner.plan(max_param_reduction=share)
            if not plan.removals:
                continue
            num = sum(removal.needs_calibration for removal in plan.removals)
            for repair in (None, "auto"):
                pruned = pruner.prune(plan=plan, repair=repair)
                title = f"-{plan.reduction:.1%}, {num} of {len(plan.removals)} by projection"
                rows.append(_row(f"{title}{', repaired' if repair else ''}", pruned, held_out, wanted))
    return rows


def _row(title: str, pruned: nn.Module, held_out: list[Tensor], wanted: Tensor) -> dict[str, str]:
    with torch.no_grad():
        right = torch.cat([pruned(batch) for batch in held_out]).argmax(1) == wanted
    return {
        "digits, plain CNN": title,
        "accuracy": f"{float(right.float().mean()):.4f}",
    }


def _digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.images, dtype=torch.float32)[order, None] / 16, torch.tensor(data.target)[order]


def _trained(images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Convolutions that widen and halve, a pool, two linear layers: nothing but the pairs of one width could leave."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 24, 1), (24, 32, 2), (32, 32, 1), (32, 48, 1), (48, 64, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    steps = epochs * len(images) // 60
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(epochs):
        for some in torch.randperm(len(images)).split(60):
            optimizer.zero_grad()
            F.cross_entropy(model(images[some]), labels[some]).backward()
            optimizer.step()
            schedule.step()
    return copy.deepcopy(model).eval()
