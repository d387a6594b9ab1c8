"""Records and proves a model, and counts what it is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from torch import nn

from layerprune.capture import record_first
from layerprune.cost import count_macs, param_bytes
from layerprune.discovery import Discovery
from layerprune.errors import CostError
from layerprune.graph import Group, LayerGraph
from layerprune.inputs import describe
from layerprune.inspection.inspection import Inspection, KindCount, RefusalCount, RepeatedBlocks, VerdictShare
from layerprune.modules import check_supported, parameters, structure, unwrap
from layerprune.proof import find_unused, with_reasons

_FEWEST_BLOCKS = 2
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_VERDICTS = ("removable", "with_calibration", "critical")


def inspect_model(
    model: nn.Module, example_inputs: Any = None, *, protect_io: bool = True, granularity: str = "group"
) -> Inspection:
    """Find what a model is made of, and which of its groups may go; no impact is measured.

    Args:
        model: any module, also on the meta device; it is not changed.
        example_inputs: as for the pruner; inferred if None.
        protect_io: keep stem and head.
        granularity: what leaves together.

    Raises:
        UnsupportedModelError, InputsError, CaptureError: as for the pruner.
    """
    check_supported(model)
    model = unwrap(model)
    inputs, graph, shade = record_first(model, example_inputs, None)
    found = Discovery(
        shade,
        graph,
        inputs,
        protect=(),
        protect_io=protect_io,
        granularity=granularity,
        projections=True,
        renumber=False,
    )
    groups = with_reasons(found.groups, found.removals, found.projections.removals, found.reasons)
    try:
        macs = count_macs(model, inputs)
    except CostError:
        macs = None
    return Inspection(
        model=type(model).__name__,
        inputs=describe(inputs),
        num_params=graph.num_params,
        num_bytes=param_bytes(model),
        macs=macs,
        num_layers=len(graph.layers),
        num_modules=sum(1 for _ in model.modules()),
        kinds=tuple(_kinds(graph)),
        blocks=tuple(_blocks(model)),
        group_types=dict(Counter(group.type for group in groups).most_common()),
        verdicts=tuple(_share(graph, verdict, groups) for verdict in _VERDICTS),
        refusals=tuple(_refusals(groups)),
        num_unused=sum(each.num_params for each in find_unused(found.prover)),
        notes=(*graph.notes, *found.prover.notes),
    )


def _kinds(graph: LayerGraph) -> list[KindCount]:
    """Layers by kind; a module that is called several times has several layers, and its parameters once."""
    names: dict[str, Counter[str]] = {}
    held: dict[str, set[int]] = {}
    for layer in graph.layers:
        names.setdefault(layer.kind, Counter())[layer.type_name] += 1
        held.setdefault(layer.kind, set()).update(graph.param_ids[name] for name in layer.params)
    counted = [
        KindCount(
            kind,
            sum(classes.values()),
            sum(graph.size_of_param[number] for number in held[kind]),
            tuple(name for name, _ in classes.most_common(4)),
        )
        for kind, classes in names.items()
    ]
    return sorted(counted, key=lambda each: (-each.num_params, -each.num_layers))


def _share(graph: LayerGraph, verdict: str, groups: Sequence[Group]) -> VerdictShare:
    some = [group for group in groups if group.verdict == verdict]
    members = {layer for group in some for layer in group.members}
    held = {graph.param_ids[name]: graph.param_sizes[name] for i in members for name in graph.layers[i].params}
    return VerdictShare(verdict, len(some), sum(held.values()))


def _refusals(groups: Sequence[Group]) -> list[RefusalCount]:
    critical = sorted((g for g in groups if g.verdict == "critical"), key=lambda group: group.reason_code)
    found: list[RefusalCount] = []
    for code, some in groupby(critical, key=lambda group: group.reason_code):
        members = list(some)
        found.append(RefusalCount(code, len(members), members[0].name, members[0].reason))
    return sorted(found, key=lambda each: -each.num_groups)


def _blocks(model: nn.Module, name: str = "") -> Iterator[RepeatedBlocks]:
    """Runs of children of one class; what repeats inside of a repeated block is left out."""
    for block, some in groupby(model.named_children(), key=lambda pair: type(pair[1])):
        run = list(some)
        is_block = not issubclass(block, _CONTAINERS) and any(True for _ in run[0][1].children())
        if len(run) >= _FEWEST_BLOCKS and is_block:
            sizes = [sum(parameter.numel() for parameter in parameters(child)) for _, child in run]
            yield RepeatedBlocks(
                container=name,
                block=block.__name__,
                num=len(run),
                num_params=sum(sizes),
                are_alike=len({structure(m) for _, m in run}) == 1,
            )
            continue
        for key, module in run:
            yield from _blocks(module, f"{name}.{key}" if name else key)
