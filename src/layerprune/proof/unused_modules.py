"""Finds modules that run neither in eval nor in train mode, and the plan that takes them out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from layerprune.cost import params_gone
from layerprune.edits import Vacate, is_under
from layerprune.graph import Cut, LayerGraph
from layerprune.modules import fingerprint, names_by_module, parameters, structure
from layerprune.plan import PlannedRemoval, PruningPlan
from layerprune.proof.prover import Prover
from layerprune.removals import Lowering
from layerprune.tables import brief


@dataclass(frozen=True)
class UnusedModule:
    """A module that no forward runs; ``num_params`` counts the elements of the parameters that leave with it."""

    name: str
    num_params: int

    def __str__(self) -> str:
        return f"{self.name} ({self.num_params:,} parameters)"

    def __repr__(self) -> str:
        return brief(self, f"{self.name}: {self.num_params:,} parameters")


def find_unused(prover: Prover) -> tuple[UnusedModule, ...]:
    """Find the outermost modules with parameters that run neither in eval nor in train mode, largest first.

    Their removal is proven like any other. Other inputs, flags or methods of the model may still call them.
    """
    graphs = [prover.graph, *([] if prover.training is None else [prover.training])]
    names = _never_run(prover.shade.model, graphs)
    found = [UnusedModule(name, _size(prover.graph, [name])) for name in names]
    held = [each for each in found if each.num_params and not prover.reason_against([_lowering([each.name])])]
    return tuple(sorted(held, key=lambda each: -each.num_params))


def plan_unused(
    model: nn.Module, prover: Prover, unused: Sequence[UnusedModule], granularity: str, seed: int
) -> PruningPlan:
    """Make the plan that removes unused modules; ``granularity`` and ``seed`` are the pruner's."""
    graph, names = prover.graph, [each.name for each in unused]
    modes = "eval mode or train mode" if len(prover.runs) > 1 else "eval mode, and train mode does not run at all,"
    assumption = (
        f"what leaves did not run in {modes} on the example inputs: it is assumed that nothing else calls it, as other "
        "inputs, flags or methods of the model might; whatever does gets an error that names the module"
    )
    return PruningPlan(
        model=type(model).__name__,
        fingerprint=fingerprint(model),
        structure=structure(model),
        max_param_reduction=None,
        granularity=granularity,
        strategy="unused",
        seed=seed,
        removals=tuple(
            PlannedRemoval(
                name=f"{each.name}, which never runs", kind="unused", groups=(), num_params=each.num_params, impact=0.0
            )
            for each in unused
        ),
        edits=tuple(Vacate(fqn=name) for name in names),
        num_params_before=graph.num_params,
        num_params_after=graph.num_params - _size(graph, names),
        impact_unit="0: nothing that runs is removed",
        needs_layerprune=bool(unused),
        notes=(assumption,) if unused else (),
        shortfall="" if unused else "every module with parameters runs: there is nothing unused to take out",
    )


def unused_note(graph: LayerGraph, unused: Sequence[UnusedModule]) -> list[str]:
    """Note how many parameters never run and how to remove them; empty where all run."""
    if not unused:
        return []
    size = _size(graph, [each.name for each in unused])
    some = ", ".join([f"'{each.name}'" for each in unused[:3]] + ["…"] * (len(unused) > 3))
    return [
        f"{size:,} parameters ({size / graph.num_params:.1%}) never run on the example inputs, neither in eval nor in "
        f"train mode: {some}; if nothing else calls them, prune(unused=True) takes them out first"
    ]


def _never_run(model: nn.Module, graphs: Sequence[LayerGraph]) -> list[str]:
    """First names of the outermost modules with parameters in which nothing runs and no parameter is used."""
    reached: set[str] = set()
    for graph in graphs:
        numbers = {graph.param_ids[name] for name in graph.written_params} | graph.param_users.keys()
        reached |= graph.all_names(graph.calls) | {n for n, number in graph.param_ids.items() if number in numbers}
    around = {name[:end] for name in reached for end in _ends(name)}
    modules = dict(model.named_modules(remove_duplicate=False))
    found: list[str] = []
    for names in names_by_module(model).values():
        outermost = names[0] and not any(name in around or is_under(name, found) for name in names)
        if outermost and any(True for _ in parameters(modules[names[0]])):
            found.append(names[0])
    return found


def _ends(name: str) -> Iterable[int]:
    """Lengths of the prefixes of a dotted name that name its ancestors, and of the whole name."""
    return (place for place in range(len(name) + 1) if place == len(name) or name[place] == ".")


def _size(graph: LayerGraph, names: Sequence[str]) -> int:
    return sum(graph.size_of_param[number] for number in params_gone(graph, _lowering(names)))


def _lowering(names: Sequence[str]) -> Lowering:
    edits = tuple(Vacate(fqn=name) for name in names)
    return Lowering(cut=Cut(), edits=edits, merges=(), dead=frozenset(), params=frozenset(), leftovers=())
