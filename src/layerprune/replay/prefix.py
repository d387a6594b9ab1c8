"""The prefix: calls that make in the pruned model what they make in the original, and need not run there again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from layerprune.graph import Frame, Layer, LayerGraph, Read
from layerprune.modules import AttributeSnapshot, own_tensors, watched
from layerprune.stand_ins import DroppedTensor
from layerprune.tensors import OutputTree, same_tensor
from layerprune.torch_internals import has_hooks, parameters_of


def steady(
    original: nn.Module, pruned: nn.Module, graph: LayerGraph, same: Collection[int]
) -> tuple[frozenset[int], frozenset[int]]:
    """Find what the pruned model makes as the original does, whatever goes in.

    The same bits on one batch do not say that: of an embedding, rows that the batch does not hold may have changed. So
    the weights on the way there must be the same, too.

    Args:
        original: the original.
        pruned: the pruned model.
        graph: the pruned model's layer graph.
        same: the values that were the same bits in both on the batch that was recorded.

    Returns:
        Those of the values that are steady, and all layers up to the last of them that are.
    """
    last = max((graph.values[value].layer for value in same), default=-1)
    twins = _Twins(original, pruned)
    layers: set[int] = set()
    for layer in graph.layers[: last + 1]:
        makers = graph.sources(layer.index) - {-1}
        if makers <= layers and twins.are_alike(layer):
            layers.add(layer.index)
    return frozenset(value for value in same if graph.values[value].layer in layers | {-1}), frozenset(layers)


class _Twins:
    """Compares the tensors that two models hold, layer by layer.

    Args:
        original: the original.
        pruned: the pruned model.
    """

    def __init__(self, original: nn.Module, pruned: nn.Module) -> None:
        self.originals, self.modules = (dict(m.named_modules(remove_duplicate=False)) for m in (original, pruned))
        self.known: dict[tuple[str, bool], bool] = {}

    def are_alike(self, layer: Layer) -> bool:
        """Whether a layer's module is there in the original with the same tensors; for a function its forward's own."""
        key = layer.fqn, layer.is_module
        if key not in self.known:
            module, other = self.modules.get(layer.fqn), self.originals.get(layer.fqn)
            both = [_tensors(one, whole=layer.is_module) for one in (module, other) if one is not None]
            alike = len(both) == 2 and len(both[0]) == len(both[1])
            self.known[key] = alike and all(map(_is_same, *both))
        return self.known[key] and all(map(self.is_same, layer.params))

    def is_same(self, name: str) -> bool:
        """Whether a parameter is the same."""
        owner, _, key = name.rpartition(".")
        module, other = self.modules.get(owner), self.originals.get(owner)
        held = None if module is None else parameters_of(module).get(key)
        before = None if other is None else parameters_of(other).get(key)
        return held is not None and before is not None and _is_same(held, before)


def _tensors(module: nn.Module, *, whole: bool) -> list[Tensor]:
    """What a module holds, of parameters, buffers and other attributes; and those inside, if asked for."""
    return [tensor for one in (module.modules() if whole else [module]) for tensor in own_tensors(one)]


def prefix(
    original: LayerGraph,
    pruned: tuple[nn.Module, LayerGraph],
    same: tuple[Collection[int], Collection[int]],
    start: AttributeSnapshot,
    *,
    read: Collection[int],
    changed: Collection[int],
    solved: Iterable[str],
) -> tuple[Frame, ...]:
    """Find the calls of modules whose results can be handed on from the original to the pruned model.

    That are calls that make what they made in the original, and do nothing but return new tensors: they write into
    none, keep none for others, and leave no attribute changed. Modules with hooks run.

    Args:
        original: the original's layer graph.
        pruned: the pruned model and its layer graph.
        same: the values and layers that are the same in both, as :func:`steady` finds them.
        start: the pruned model's attributes, on the copy that was recorded, before its forward.
        read: values of the pruned model that have to be seen as it runs.
        changed: those of them that are written into, to make of them what they become by new weights.
        solved: the modules that get new weights.

    Returns:
        The calls, outermost only, in order of execution.
    """
    moved = start.changed() | frozenset(solved)
    finder = _Finder(original, pruned, same, moved, frozenset(read), changed)
    found: list[Frame] = []
    inside: set[int] = set()
    for frame in pruned[1].frames:
        if frame.parent in inside or (frame.parent >= 0 and finder.fits(frame)):
            inside.add(frame.index)
            if frame.parent not in inside:
                found.append(frame)
    return tuple(found)


class _Finder:
    def __init__(
        self,
        original: LayerGraph,
        pruned: tuple[nn.Module, LayerGraph],
        same: tuple[Collection[int], Collection[int]],
        moved: frozenset[str],
        read: frozenset[int],
        changed: Collection[int],
    ) -> None:
        self.original, (self.model, self.graph) = original, pruned
        self.same, self.layers = (frozenset(some) for some in same)
        self.moved = moved
        self.read = read
        self.written = {self.graph.values[value].storage for value in changed}

    def fits(self, frame: Frame) -> bool:
        """Whether a call's results can be handed on."""
        graph, outputs = self.graph, set(frame.outputs)
        if not outputs or not outputs <= self.same or not _is_plain(frame.result):
            return False
        if len(graph.calls[frame.fqn]) > 1 or frame.fqn in graph.aliases_of or not self.is_twin(frame):
            return False
        if any(graph.values[value].storage in self.written for value in outputs):
            return False
        return self.is_closed(frame) and self.is_untouched(frame.fqn)

    def is_twin(self, frame: Frame) -> bool:
        """Whether the original makes the same call there."""
        if frame.index >= len(self.original.frames):
            return False
        other = self.original.frames[frame.index]
        return (other.fqn, other.call, other.result) == (frame.fqn, frame.call, frame.result)

    def is_closed(self, frame: Frame) -> bool:
        """Whether nobody sees anything of a call but what it returns."""
        graph, outputs = self.graph, set(frame.outputs)
        inside = set(graph.layers_inside[frame.index])
        if not inside <= self.layers or any(graph.layers[index].writes for index in inside):
            return False
        made = {v for index in inside for v in (*graph.layers[index].outputs, *graph.layers[index].results)} - outputs
        if not made.isdisjoint(self.read) or not made.isdisjoint(graph.outputs):
            return False
        return all(reader in inside for value in made for reader in graph.readers.get(value, ()))

    def is_untouched(self, name: str) -> bool:
        """Whether a module's forward leaves it as it was, nobody watches it, and it gets no new weights."""
        own = dict(self.model.get_submodule(name).named_modules(prefix=name))
        hooked = any(has_hooks(module) for module in own.values())
        return not hooked and self.moved.isdisjoint(own)


@contextmanager
def handing(
    model: nn.Module, graph: LayerGraph, frames: Iterable[Frame], tensors: Mapping[int, Tensor]
) -> Generator[None]:
    """Let calls inside return what is known of them, in place of running; those of which something is not, run.

    Args:
        model: a shadow of the pruned model.
        graph: its layer graph.
        frames: the calls, as :func:`prefix` finds them.
        tensors: value → tensor, as far as it is known when a call comes; what the model writes into is copied.
    """
    overwritten = {storage for layer in graph.layers for storage in layer.writes}
    frame_of = {model.get_submodule(frame.fqn): frame for frame in frames}

    def given(value: int) -> Tensor:
        return tensors[value].clone() if graph.values[value].storage in overwritten else tensors[value]

    def wrap(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        return _answering(forward, frame_of[module], tensors, given)

    with watched(model, wrap, frame_of):
        yield


def _answering(
    forward: Callable[..., Any], frame: Frame, tensors: Mapping[int, Tensor], given: Callable[[int], Tensor]
) -> Callable[..., Any]:
    output = frame.result
    assert output is not None  # as _is_plain says

    @functools.wraps(forward)
    def answer(*args: Any, **kwargs: Any) -> Any:
        if all(value in tensors for value in frame.outputs):
            return output.build(lambda read: given(read[0]))
        return forward(*args, **kwargs)

    return answer


def _is_plain(result: OutputTree[Read] | None) -> bool:
    """Whether a result can be built again from its values, with no class of the user's."""
    if result is None or any(node.kind in ("opaque", "record") for node in result.nodes()):
        return False
    return all(len(read) == 1 for read in result.leaves())


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, or hold the same bits; what an earlier surgery left is the same as the like."""
    if isinstance(tensor, DroppedTensor) or isinstance(other, DroppedTensor):
        return isinstance(tensor, DroppedTensor) and isinstance(other, DroppedTensor) and tensor.merges == other.merges
    return tensor is other or same_tensor(tensor, other)
