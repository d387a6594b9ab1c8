"""Sites: the transforms of a pruned model that can be solved again, and what each has to bring about."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerprune.adapters.twins import owner_of
from layerprune.edits import Edit, Shorten, name_before
from layerprune.graph import Layer, LayerGraph
from layerprune.kinds import kind_of_function
from layerprune.repair.transforms import exact, has_free_bias, why_not_solvable

#: What makes a layer the same one in two models: its module, which call of it, and the function that it is, if one.
_Key: TypeAlias = tuple[str, int, str | None, int]

# Functions that hand their elements on in the same order.
_ORDER_KEEPING = frozenset(
    {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone", "view_as", "reshape_as"}
    | {"detach", "data", "alias", "dropout", "ravel"}
)
_NUMBERED = (nn.ModuleList, nn.Sequential)
_ADDS = frozenset({"add", "iadd", "radd"})
_PRODUCTS = frozenset({"mul", "imul", "rmul"})


@dataclass(frozen=True)
class Site:
    """A transform, and the tensor that it feeds linearly.

    Attributes:
        name: the transform's name in the pruned model.
        source: the value that it reads, in the pruned model's graph.
        reached: the last value that follows linearly from its output: through sums, reshapes, what does nothing in eval
            mode, and factors per channel.
        target: what the readers of ``reached`` read in the original, in its graph.
        scales: what multiplies the transform's channels on the way: a batch norm's name, or a parameter's.
        num_gaps: how many layers, up to those that read ``reached``, read something else than they did in the original.
        only_bias: why its weight cannot be written; its bias can. Empty where both can.
    """

    name: str
    source: int
    reached: int
    target: int
    scales: tuple[str, ...] = ()
    num_gaps: int = 0
    only_bias: str = ""

    def scale(self, model: nn.Module) -> Tensor | None:
        """The factor of each of the transform's channels on the way, ``(channel,)``; None where there is none."""
        found: Tensor | None = None
        for name in self.scales:
            owner, _, key = name.rpartition(".")
            holder = model.get_submodule(owner)
            held = holder._parameters.get(key)
            if held is None:
                held = _gain(model.get_submodule(name))
            factor = held.detach().to(exact(held)).flatten()
            found = factor if found is None else found * factor
        return found


def _gain(norm: nn.Module) -> Tensor:
    """What a batch norm in eval mode multiplies its channels by."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_var is not None
    gain = torch.rsqrt(norm.running_var.to(exact(norm.running_var)) + norm.eps)
    return gain * norm.weight.detach() if norm.affine else gain


def renumbered(original: nn.Module, pruned: nn.Module, edits: Sequence[Edit]) -> str:
    """Say which layers have got new numbers since, where nobody says which those were before; empty if none have.

    Those of an ``nn.Sequential`` outside transformers models keep theirs.
    """
    told = {edit.fqn for edit in edits if edit.kind == "shorten"}
    passed = {edit.fqn.rpartition(".")[0] for edit in edits if edit.kind == "delete"}
    before = {name: module for name, module in original.named_modules() if isinstance(module, _NUMBERED)}
    for name, module in pruned.named_modules():
        if not isinstance(module, _NUMBERED) or name in told or name not in before:
            continue
        if list(module._modules) != [str(i) for i in range(len(module))] or len(module) >= len(before[name]):
            continue
        if isinstance(module, nn.ModuleList) or (name not in passed and owner_of(original, name) is not None):
            return (
                f"'{name}' has {len(module)} of {len(before[name])} layers left, under new numbers: give "
                "edits=plan.edits, so that each is matched with what it was"
            )
    return ""


def find_sites(
    original: LayerGraph, pruned: LayerGraph, model: nn.Module, edits: Iterable[Edit] = ()
) -> tuple[list[Site], dict[str, str]]:
    """Find the transforms of a pruned model that can be solved again, in order of execution.

    Layers of the two models are the same where the module, the call and the function are. What a tensor of the pruned
    model ought to be is what its readers read in the original: behind a removed branch that is the sum with the branch.

    Args:
        original: the original's layer graph.
        pruned: the pruned model's layer graph.
        model: the pruned model.
        edits: what was done to it; needed only where containers were shortened, which gives modules other names.

    Returns:
        The sites, and for each other transform why it is none.
    """
    finder = _Finder(original, pruned, model, [edit for edit in edits if isinstance(edit, Shorten)])
    sites: list[Site] = []
    refused: dict[str, str] = {}
    for layer in pruned.layers:
        if layer.kind != "transform" or layer.index not in pruned.live or layer.param_only:
            continue
        found = finder.site(layer)
        if isinstance(found, Site):
            sites.append(found)
            if found.only_bias:
                refused[layer.name] = f"{found.only_bias}; its bias may take the mean"
        else:
            refused[layer.name] = found
    return sites, refused


class _Finder:
    def __init__(self, original: LayerGraph, pruned: LayerGraph, model: nn.Module, shortens: Sequence[Shorten]) -> None:
        self.original = original
        self.pruned = pruned
        self.modules: Mapping[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self.shortens = shortens
        self.same = {_key(layer, layer.fqn): layer for layer in original.layers}
        self.num_names: dict[int, int] = {}
        for number in pruned.param_ids.values():
            self.num_names[number] = self.num_names.get(number, 0) + 1
        self.gaps = [layer.index for layer in pruned.layers if layer.index in pruned.live and self.is_gap(layer)]

    def is_gap(self, layer: Layer) -> bool:
        """Whether a layer reads something else than it did in the original: another layer's output, more or less."""
        same = self.same.get(_key(layer, name_before(layer.fqn, self.shortens)))
        if same is None or len(same.operands) != len(layer.operands):
            return True
        pairs = zip(layer.operands, same.operands, strict=True)
        return any(self.makers(self.pruned, own) != self.makers(self.original, before) for own, before in pairs)

    def makers(self, graph: LayerGraph, read: Sequence[int]) -> list[_Key | None]:
        """What made what an operand reads, by the names of the original."""
        makers = [graph.values[value].layer for value in read]
        shortens = self.shortens if graph is self.pruned else ()
        layers = [graph.layers[maker] if maker >= 0 else None for maker in makers]
        return [None if layer is None else _key(layer, name_before(layer.fqn, shortens)) for layer in layers]

    def site(self, layer: Layer) -> Site | str:
        """The site that a transform is, or why it is none."""
        module = self.modules[layer.fqn] if layer.is_module else None
        if module is None:
            return f"'{layer.function}' is called as a function"
        only_bias = why_not_solvable(module)
        reason = self.shared(layer) if not only_bias or has_free_bias(module) else only_bias
        if reason:
            return reason
        if len(layer.operands[0]) != 1 or len(layer.outputs) != 1:
            return "what it reads or makes is written into by others"
        reached, scales = self.follow(layer.outputs[0])
        target = self.target(reached)
        if isinstance(target, str):
            return target
        last = max(self.pruned.readers.get(reached, (layer.index,)))
        num_gaps = bisect_right(self.gaps, last)
        return Site(layer.fqn, layer.operands[0][0], reached, target, tuple(scales), num_gaps, only_bias)

    def shared(self, layer: Layer) -> str:
        graph = self.pruned
        if len(graph.calls[layer.fqn]) > 1 or len(graph.aliases_of.get(layer.fqn, ((layer.fqn,),))[0]) > 1:
            return "it is called several times"
        numbers = [graph.param_ids[name] for name in layer.params]
        if any(len(graph.param_users[number]) > 1 or self.num_names[number] > 1 for number in numbers):
            return "its weights are tied or shared; layerprune.repair.untie(pruned) gives it some of its own"
        return ""

    def follow(self, value: int) -> tuple[int, list[str]]:
        """Walk on from a transform's output as long as the way is linear and nobody else reads."""
        shape = self.pruned.values[value].shape
        scales: list[str] = []
        while value not in self.pruned.outputs:
            readers = self.pruned.readers.get(value, ())
            layer = self.pruned.layers[readers[0]] if len(readers) == 1 else None
            if layer is None or len(layer.outputs) != 1 or sum(value in read for read in layer.operands) != 1:
                break
            if not self.hands_on(layer, value):
                factor = self.factor(layer) if self.pruned.values[value].shape == shape else ""
                if not factor:
                    break
                scales.append(factor)
            value = layer.outputs[0]
        return value, scales

    def hands_on(self, layer: Layer, value: int) -> bool:
        """Whether a layer's output is the value, in the same order, plus something else at most."""
        before, after = self.pruned.values[value], self.pruned.values[layer.outputs[0]]
        functions = set(layer.functions)
        if before.storage == after.storage and before.storage not in layer.writes:
            # A view of it: sums that lost their other operands, too, whatever else a block still does beside them.
            return _numel(before.shape) == _numel(after.shape) and all(map(_keeps_order, functions))
        if functions and functions <= _ADDS:
            # A module may add its only argument to itself, and hides what factors it adds by.
            plain = len(layer.functions) == 1 and len(layer.operands) > 1 if layer.is_module else True
            return plain and "alpha" not in layer.literals[1] and before.shape == after.shape
        if not functions or functions <= _ORDER_KEEPING:
            return len(layer.operands) == 1 and not layer.params and _numel(before.shape) == _numel(after.shape)
        return False

    def factor(self, layer: Layer) -> str:
        """The batch norm or parameter that multiplies channels, by name; empty where a layer does something else."""
        data = [read for read in layer.operands if read]
        module = self.modules[layer.fqn] if layer.is_module else None
        if isinstance(module, _BatchNorm):
            return layer.fqn if module.running_var is not None and len(data) == 1 else ""
        if len(data) != 1 or len(layer.params) != 1 or not layer.functions or not set(layer.functions) <= _PRODUCTS:
            return ""
        after = self.pruned.values[layer.outputs[0]].shape
        name = layer.params[0]
        owner, _, key = name.rpartition(".")
        held = self.modules[owner]._parameters.get(key)
        return name if held is not None and held.shape == after[-1:] and len(after) > 1 else ""

    def target(self, value: int) -> int | str:
        """The original's value for what the readers of a value read; or why there is none."""
        found: set[int] = set()
        if value in self.pruned.outputs and len(self.pruned.outputs) == len(self.original.outputs):
            found.add(self.original.outputs[self.pruned.outputs.index(value)])
        for reader in self.pruned.readers.get(value, ()):
            layer = self.pruned.layers[reader]
            same = self.same.get(_key(layer, name_before(layer.fqn, self.shortens)))
            if same is None or len(same.operands) != len(layer.operands):
                continue
            found |= {
                read[-1] for own, read in zip(layer.operands, same.operands, strict=True) if value in own and read
            }
        shape = self.pruned.values[value].shape
        fitting = {target for target in found if self.original.values[target].shape == shape}
        if len(fitting) == 1:
            return fitting.pop()
        if fitting:
            return "what reads its result reads different tensors in the original"
        return "no reader of its result reads a tensor of that shape in the original"


def _keeps_order(function: str) -> bool:
    """Whether a function that hands on its operand's memory hands it on in the same order."""
    if function in _ORDER_KEEPING:
        return True
    return kind_of_function(function, 2, has_matrix=False) not in ("reshape", "split", "other")


def _key(layer: Layer, fqn: str) -> _Key:
    return fqn, layer.call, layer.function, layer.nth


def _numel(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
