"""Finds the sites of a pruned model: layers that can be solved again, and the tensor that each restores."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerprune.adapters import owner_of
from layerprune.edits import Edit, name_before, renumbering
from layerprune.fitting import channel_dim, exact, has_free_bias, why_not_solvable
from layerprune.graph import Layer, LayerGraph
from layerprune.modules import CallKey
from layerprune.repair.sites.linear_path import LinearPath, PathGuide
from layerprune.repair.sites.permutation import Permutation
from layerprune.repair.sites.token_norms import Norm, norm_of
from layerprune.torch_internals import BatchNorm, children_of, parameters_of

_NUMBERED = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class Passed:
    """A normalization between a transform and the value that it reaches.

    Attributes:
        norm: its formula.
        inner: its input value.
        moves: rearrangement of elements behind it; None if their order stays.
        scales: batch norms or parameters, by name, that multiply channels behind it.
    """

    norm: Norm
    inner: int
    moves: Permutation | None = None
    scales: tuple[str, ...] = ()

    def scale(self, model: nn.Module) -> Tensor | None:
        """Factor of each channel behind the normalization, ``(channel,)``; None if there is none."""
        return _scale(self.scales, model)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A transform, and the tensor that its output reaches linearly or through one normalization.

    Attributes:
        name: the transform's name in the pruned model.
        source: its input value, in the pruned model's graph.
        reached: the last value on the path from its output: through sums, reshapes, permutations, layers without
            effect in eval mode, factors per channel and at most one normalization.
        target: the value that the readers of ``reached`` read in the original, in the original's graph.
        scales: batch norms or parameters, by name, that multiply the channels before the normalization.
        num_gaps: number of layers, up to the last reader of ``reached``, with other operands than in the original.
        only_bias: why the weight cannot be written although the bias can; empty if both can.
        moves: rearrangement of elements before the normalization; None if their order stays.
        passed: the normalization; None if the path has none and is linear.
        is_alone: whether the path has no sums, no factors and no normalization, and the weight can be written.
        layer: the transform's number in the pruned model's graph.
        is_behind_gap: whether a gap lies at or before ``reached`` or its readers, or another layer made ``target``.
    """

    name: str
    source: int
    reached: int
    target: int
    scales: tuple[str, ...] = ()
    num_gaps: int = 0
    only_bias: str = ""
    moves: Permutation | None = None
    passed: Passed | None = None
    is_alone: bool = False
    layer: int = -1
    is_behind_gap: bool = True

    def scale(self, model: nn.Module) -> Tensor | None:
        """Factor of each channel of the transform on the path, ``(channel,)``; None if there is none."""
        return _scale(self.scales, model)


def _scale(names: Iterable[str], model: nn.Module) -> Tensor | None:
    found: Tensor | None = None
    for name in names:
        owner, _, key = name.rpartition(".")
        held = parameters_of(model.get_submodule(owner)).get(key)
        if held is None:
            held = _gain(model.get_submodule(name))
        factor = held.detach().to(exact(held)).flatten()
        found = factor if found is None else found * factor
    return found


def _gain(norm: nn.Module) -> Tensor:
    """Factor of each channel of a batch norm in eval mode, ``(channel,)``."""
    assert isinstance(norm, BatchNorm)
    assert norm.running_var is not None
    gain = torch.rsqrt(norm.running_var.to(exact(norm.running_var)) + norm.eps)
    return gain * norm.weight.detach() if norm.affine else gain


def renumbered(original: nn.Module, pruned: nn.Module, edits: Sequence[Edit]) -> str:
    """Reason why layers cannot be matched with the original, because their numbers changed and no edit says how.

    Empty if all can be. An ``nn.Sequential`` outside transformers models keeps its numbers.
    """
    told = {edit.fqn for edit in edits if edit.kind == "shorten"}
    passed = {edit.fqn.rpartition(".")[0] for edit in edits if edit.kind == "delete"}
    before = {name: module for name, module in original.named_modules() if isinstance(module, _NUMBERED)}
    for name, module in pruned.named_modules():
        if not isinstance(module, _NUMBERED) or name in told or name not in before:
            continue
        if list(children_of(module)) != [str(i) for i in range(len(module))] or len(module) >= len(before[name]):
            continue
        if isinstance(module, nn.ModuleList) or (name not in passed and owner_of(original, name) is not None):
            return (
                f"'{name}' has {len(module)} of {len(before[name])} layers left, under new numbers: give "
                "edits=plan.edits, so that each is matched with what it was"
            )
    return ""


def find_sites(
    original: LayerGraph,
    pruned: LayerGraph,
    model: nn.Module,
    edits: Iterable[Edit] = (),
    *,
    norms: bool = True,
    knows: Callable[[Permutation], bool] = lambda moves: True,
) -> tuple[list[Site], dict[str, str]]:
    """Find the sites of a pruned model, in order of execution.

    Layers of both models are the same if module, call and function are equal. The target of a tensor is the value that
    its readers read in the original; behind a removed branch this is the sum with the branch.

    Args:
        original: the original's layer graph.
        pruned: the pruned model's layer graph.
        model: the pruned model.
        edits: the edits of the plan; needed only if containers were shortened, because modules then have other names.
        norms: whether to follow transforms through a normalization whose result is added to a tensor, or replaces
            another layer's output.
        knows: whether a rearrangement holds for all inputs of the repair; paths end before one that does not.

    Returns:
        The sites, and for each other transform the reason why it is not a site.
    """
    finder = _Finder(original, pruned, model, renumbering(edits), norms, knows)
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
    def __init__(
        self,
        original: LayerGraph,
        pruned: LayerGraph,
        model: nn.Module,
        shortens: Sequence[Edit],
        norms: bool,
        knows: Callable[[Permutation], bool],
    ) -> None:
        self.original = original
        self.norms = norms
        self.knows = knows
        self.pruned = pruned
        self.modules: Mapping[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self.guide = PathGuide(pruned, self.modules)
        self.shortens = shortens
        self.names: dict[str, str] = {}
        self.same = {layer.key: layer for layer in original.layers}
        self.num_names: dict[int, int] = {}
        for number in pruned.param_ids.values():
            self.num_names[number] = self.num_names.get(number, 0) + 1
        self.gaps = [layer.index for layer in pruned.layers if layer.index in pruned.live and self.is_gap(layer)]

    def is_gap(self, layer: Layer) -> bool:
        """Whether an operand of a layer has another maker than in the original."""
        same = self.same_of(layer)
        if same is None or len(same.operands) != len(layer.operands):
            return True
        pairs = zip(layer.operands, same.operands, strict=True)
        return any(self.makers(self.pruned, own) != self.makers(self.original, before) for own, before in pairs)

    def same_of(self, layer: Layer) -> Layer | None:
        """The same layer in the original; None if there is none."""
        return self.same.get(self.key_before(layer))

    def key_before(self, layer: Layer) -> CallKey:
        if layer.fqn not in self.names:
            self.names[layer.fqn] = name_before(layer.fqn, self.shortens)
        return layer.key._replace(fqn=self.names[layer.fqn])

    def makers(self, graph: LayerGraph, read: Sequence[int]) -> list[CallKey | None]:
        """The layers that made an operand's values, by their keys in the original."""
        makers = [graph.values[value].layer for value in read]
        layers = [graph.layers[maker] if maker >= 0 else None for maker in makers]
        if graph is self.original:
            return [None if layer is None else layer.key for layer in layers]
        return [None if layer is None else self.key_before(layer) for layer in layers]

    def site(self, layer: Layer) -> Site | str:
        module = self.modules[layer.fqn] if layer.is_module else None
        if module is None:
            return f"'{layer.function}' is called as a function"
        only_bias = why_not_solvable(module)
        reason = self.shared(layer) if not only_bias or has_free_bias(module) else only_bias
        if reason:
            return reason
        if len(layer.operands[0]) != 1 or len(layer.outputs) != 1:
            return "what it reads or makes is written into by others"
        way = self.follow(layer.outputs[0], channel_dim(module))
        beyond = self.norms and not only_bias and channel_dim(module) == -1
        found = self.through_norm(way) if beyond else None
        if found is None and way.shorter is not None and not self.stands_for_another(way.value):
            way = way.shorter
        reached, target, passed = found or (way.value, self.target(way.value), None)
        if isinstance(target, str):
            return target
        last = max(self.pruned.readers.get(reached, (layer.index,)))
        num_gaps = bisect_right(self.gaps, last)
        source = layer.operands[0][0]
        same_maker = self.makers(self.pruned, [reached]) == self.makers(self.original, [target])
        is_behind_gap = not same_maker or any(gap <= max(last, self.pruned.values[reached].layer) for gap in self.gaps)
        return Site(
            name=layer.fqn,
            source=source,
            reached=reached,
            target=target,
            scales=way.scales,
            num_gaps=num_gaps,
            only_bias=only_bias,
            moves=way.moves,
            passed=passed,
            is_alone=not (way.has_sums or way.scales or passed or only_bias),
            layer=layer.index,
            is_behind_gap=is_behind_gap,
        )

    def follow(self, value: int, channel_dim: int) -> LinearPath:
        """The path from a tensor, up to the first unknown rearrangement."""
        way = self.guide.follow(value, channel_dim)
        if way.moves is None or self.knows(way.moves):
            return way
        return self.guide.follow(value, channel_dim, moving=False)

    def through_norm(self, way: LinearPath) -> tuple[int, int, Passed] | None:
        """The value that a path reaches behind a normalization, its target, and the normalization; else None.

        This is useful only if the result is added to a tensor or replaces another layer's output. Otherwise the target
        before the normalization determines the target behind it.
        """
        layer = self.guide.only_reader(way.value)
        shape = self.pruned.values[way.value].shape
        if layer is None or layer.kind != "normalization" or not layer.is_module or not way.has_channels_last:
            return None
        if self.pruned.values[way.value].storage in layer.writes or len(layer.operands) != 1:
            return None
        if self.pruned.values[layer.outputs[0]].shape != shape:
            return None
        behind = self.follow(layer.outputs[0], -1)
        target = self.target(behind.value)
        if isinstance(target, str) or not (behind.has_sums or self.stands_for_another(behind.value)):
            return None
        norm = norm_of(self.modules[layer.fqn], shape[-1])
        if norm is None:
            return None
        return behind.value, target, Passed(norm, way.value, behind.moves, behind.scales)

    def stands_for_another(self, value: int) -> bool:
        """Whether a reader of a value reads another layer's output in the original."""
        for reader in self.pruned.readers.get(value, ()):
            layer = self.pruned.layers[reader]
            same = self.same_of(layer)
            if same is not None and len(same.operands) == len(layer.operands):
                pairs = zip(layer.operands, same.operands, strict=True)
                both = [pair for pair in pairs if value in pair[0]]
                if any(self.makers(self.pruned, own) != self.makers(self.original, before) for own, before in both):
                    return True
        if value not in self.pruned.outputs or len(self.pruned.outputs) != len(self.original.outputs):
            return False
        before = self.original.outputs[self.pruned.outputs.index(value)]
        return self.makers(self.pruned, [value]) != self.makers(self.original, [before])

    def shared(self, layer: Layer) -> str:
        graph = self.pruned
        if len(graph.calls[layer.fqn]) > 1 or len(graph.aliases_of.get(layer.fqn, ((layer.fqn,),))[0]) > 1:
            return "it is called several times"
        numbers = [graph.param_ids[name] for name in layer.params]
        if any(len(graph.param_users[number]) > 1 or self.num_names[number] > 1 for number in numbers):
            return "its weights are tied or shared; layerprune.repair.untie(pruned) gives it some of its own"
        return ""

    def target(self, value: int) -> int | str:
        """The value that the readers of a value read in the original; or the reason why there is none."""
        found: set[int] = set()
        if value in self.pruned.outputs and len(self.pruned.outputs) == len(self.original.outputs):
            found.add(self.original.outputs[self.pruned.outputs.index(value)])
        for reader in self.pruned.readers.get(value, ()):
            layer = self.pruned.layers[reader]
            same = self.same_of(layer)
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
