"""Traces each parameter of a pruned model to the parameter, and its elements, that it was before.

The plans between both models are carried out on a copy of the first one, in which the parameters that lose channels
hold the numbers of their elements. What comes out tells where each element was.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerprune.edits import Slice
from layerprune.modules import clone, named_parameters
from layerprune.plan import plans_since
from layerprune.torch_internals import parameters_of


@dataclass(frozen=True, eq=False)
class Origin:
    """What a parameter of a pruned model was before.

    Attributes:
        parameter: the parameter of the model before; None for weights with another meaning, as behind a projection.
        elements: index of each element in the flattened parameter, in the shape of the new one; None if all are there.
    """

    parameter: nn.Parameter | None
    elements: Tensor | None = None

    def cut(self, tensor: Tensor) -> Tensor:
        """What is left of a tensor with one value for each element of the parameter before."""
        if self.elements is None:
            return tensor
        return tensor.reshape(-1)[self.elements.to(tensor.device)].clone()


def origins_of(pruned: nn.Module, original: nn.Module) -> dict[int, Origin]:
    """The origin of each parameter of a pruned model, by ``id``; parameters that no plan knows are left out.

    Args:
        pruned: the pruned model, or the one that was pruned in place.
        original: the model before; a copy that shares its parameters will do.
    """
    traced, numbered = clone(original, lambda tensor: tensor), _Numbered()
    known = {id(parameter): parameter for _, parameter in named_parameters(original)}
    for place, plan in plans_since(pruned, original):
        part = traced.get_submodule(place)
        for of_round in plan.parts:
            for edit in of_round.edits:
                if isinstance(edit, Slice):
                    numbered.number(part.get_submodule(edit.fqn))
            of_round.carry_out(part)
    after = dict(named_parameters(traced, every_name=True))
    found: dict[int, Origin] = {}
    for name, parameter in named_parameters(pruned, every_name=True):
        if id(parameter) in found or name not in after or after[name].shape != parameter.shape:
            continue
        trace = after[name]
        found[id(parameter)] = Origin(known[id(trace)]) if id(trace) in known else numbered.origin(trace)
    return found


class _Numbered:
    """Parameters whose elements are numbers, which no two of them share."""

    def __init__(self) -> None:
        self._starts: list[int] = [1]
        self._before: list[nn.Parameter] = []
        self._made: dict[int, nn.Parameter] = {}

    def number(self, module: nn.Module) -> None:
        """Replace the parameters of a module; what is numbered already stays."""
        held = parameters_of(module)
        for key, parameter in held.items():
            if parameter is not None and parameter.is_floating_point():
                held[key] = self._made.get(id(parameter)) or self._new(parameter)

    def _new(self, parameter: nn.Parameter) -> nn.Parameter:
        start, size = self._starts[-1], parameter.numel()
        numbers = torch.arange(start, start + size).reshape(parameter.shape)
        self._starts.append(start + size)
        self._before.append(parameter)
        made = nn.Parameter(numbers, requires_grad=False)
        self._made[id(parameter)] = made
        return made

    def origin(self, trace: nn.Parameter) -> Origin:
        """What a parameter was, by the numbers in it; a weight without numbers was nothing before."""
        if trace.is_floating_point() or not trace.numel() or int(trace.min()) < 1:
            return Origin(None)
        number = bisect_right(self._starts, int(trace.min())) - 1
        if number >= len(self._before) or int(trace.max()) >= self._starts[number + 1]:
            return Origin(None)
        before, elements = self._before[number], trace.detach() - self._starts[number]
        return Origin(before) if elements.shape == before.shape else Origin(before, elements)
