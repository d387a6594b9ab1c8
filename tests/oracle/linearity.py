"""What a site claims, checked by running: a change of its weight changes what it reaches by just that, linearly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layerprune.capture import Probe, real_sandbox, record_on
from layerprune.fitting import as_weight, matrix_of, rows_of
from layerprune.inputs import as_inputs
from layerprune.repair import Site, find_sites


def faults(model: nn.Module, inputs: Any) -> tuple[list[str], list[Site], int]:
    """The sites of a model, in float64, whose claim does not hold, all that were seen, and how many reach
    further than their own output.

    The weight and the bias are moved at random, the model runs again, and the change of the tensor reached is held
    against the change of the matrix times the rows that the transform reads.
    """
    given = as_inputs(inputs)
    graph = record_on(real_sandbox(model), given)
    sites = find_sites(graph, graph, model)[0]
    draw = torch.Generator().manual_seed(0)
    wrong: list[str] = []
    claimed: list[Site] = []
    for site in sites:
        shade = real_sandbox(model, copied={f"{site.name}.{key}" for key in ("weight", "bias")})
        module = shade.model.get_submodule(site.name)
        matrix, before, change = matrix_of(module), {}, {}

        def keep(into: dict[int, Tensor]):
            def see(value, tensor):
                into[value] = tensor.detach().clone()

            def begin():
                into.clear()
                return see

            return begin

        passed = site.passed
        linear = site.reached if passed is None else passed.inner
        wanted = {site.source, site.reached, linear}
        if Probe(shade, graph, wanted).run(given, keep(before)) != wanted:
            continue  # a tensor within a fused operation: no repair would see it, either
        claimed.append(site)
        moved = torch.randn(matrix.shape, generator=draw, dtype=torch.float64)
        constant = torch.zeros(matrix.shape[:2], dtype=torch.float64)
        with torch.no_grad():
            module.weight.copy_(as_weight(module, matrix + moved))
            if module.bias is not None:
                constant = torch.randn(constant.shape, generator=draw, dtype=torch.float64)
                module.bias.add_(constant.flatten())
        Probe(shade, graph, wanted).run(given, keep(change))
        scale = site.scale(shade.model)
        if not torch.equal(before[site.source], change[site.source]):
            wrong.append(f"{site.name} reads its own output")
            continue
        delta = change[linear] - before[linear]
        if passed is not None and not passes(site, shade.model, before, change):
            wrong.append(f"{site.name} does not reach {site.reached} through its norm")
        delta = delta if site.moves is None else site.moves.back(delta)
        for rows, found in rows_of(module, before[site.source], delta, None):
            expected = rows @ moved.mT + constant[:, None]
            if scale is not None:
                expected = expected * scale.reshape(expected.shape[0], 1, -1)
            if not torch.allclose(expected, found, rtol=1e-6, atol=1e-8):
                wrong.append(f"{site.name} does not reach {linear} linearly")
                break
    return wrong, claimed, sum(graph.layers[graph.values[s.reached].layer].name != s.name for s in claimed)


def passes(site: Site, model: nn.Module, before: dict[int, Tensor], after: dict[int, Tensor]) -> bool:
    """Whether what a site reaches changes by what its norm makes of the change before it."""
    passed = site.passed
    assert passed is not None
    step = passed.norm.of(after[passed.inner]) - passed.norm.of(before[passed.inner])
    scale = passed.scale(model)
    step = step if scale is None else step * scale
    found = after[site.reached] - before[site.reached]
    found = found if passed.moves is None else passed.moves.back(found)
    return torch.allclose(step.flatten(), found.flatten(), rtol=1e-6, atol=1e-8)
