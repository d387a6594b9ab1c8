"""Removals without surgery: the untouched model runs, and tensors are replaced on the fly where the layer graph says.

Of the library only the layer graph is used, and only to learn *where* a value shows up: the n-th call of a function in
the m-th module call, or an output of that module call. What a removal then does is said here a second time:

- a substituted value is overwritten at the moment it is made, with a copy of its substitute taken when *that* was made;
- a tensor that is projected becomes its substitute as it is, of other channels or another size, and whoever reads it
  with a weight gets an explicit projection of what arrives, place by place, at its door;
- an operand that a concat drops becomes NaN in the concat's result. NaN marks "these channels are gone" and travels by
  itself through whatever treats channels one by one; a transform reads it as 0, which is what having no such input
  channel means. No channel is ever counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layerprune.graph import Cut, Layer, LayerGraph

_TRANSFORMS = {"linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}


class CannotLocate(Exception):
    """The layer graph does not say clearly enough where a value shows up."""


@dataclass(frozen=True, eq=False)
class Explicit:
    """A projection in front of a transform: at every ``strides``-th place ``matrix`` times the channels and a constant.

    Attributes:
        matrix: ``(channel of what the transform read, channel of what it is to read)``.
        constant: ``(channel of what the transform read,)``.
        strides: one for each axis of an image; none for tokens, whose channels come last.
    """

    matrix: Tensor
    constant: Tensor
    strides: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        dim = 1 if self.strides else x.dim() - 1
        for axis, stride in enumerate(self.strides, start=2):
            x = x.index_select(axis, torch.arange(0, x.shape[axis], stride))
        gone = x.isnan().movedim(dim, 0).flatten(1).any(1)  # channels that a concat has lost
        x = x.index_select(dim, (~gone).nonzero().flatten())
        shape = [-1 if d == dim else 1 for d in range(x.dim())]
        return torch.tensordot(self.matrix, x, ([1], [dim])).movedim(0, dim) + self.constant.view(shape)


def simulate(
    model: nn.Module,
    graph: LayerGraph,
    cut: Cut,
    *args: Any,
    projections: Mapping[str, Explicit] | None = None,
    **kwargs: Any,
) -> Any:
    """Return what a model would return after a removal; the model itself is not touched.

    Args:
        model: the original model, in eval mode.
        graph: its layer graph.
        cut: one removal's cut, or the union of several (see :func:`union`).
        *args: as for the model, of any batch size.
        projections: for cuts that project: module → what stands in front of it.
        **kwargs: as for the model.
    """
    simulation = _Simulation(model, graph, cut, projections or {})
    simulation.produce_inputs((args, kwargs))
    with ExitStack() as patches:
        for module in model.modules():  # not __call__: some models call a module's forward themselves
            patches.enter_context(patch.object(module, "forward", simulation.watching(module)))
        with torch.no_grad(), simulation:
            out = model(*args, **kwargs)
    missing = simulation.wanted - simulation.produced
    if missing:
        raise CannotLocate(f"never seen: {graph.describe(sorted(missing))}")
    return out


def located(model: nn.Module, graph: LayerGraph, values: Iterable[int], *args: Any, **kwargs: Any) -> dict[int, Tensor]:
    """Return copies of values of a run that nothing is replaced in, as they were when they were made."""
    location = _Location(model, graph, values)
    location.produce_inputs((args, kwargs))
    with ExitStack() as patches:
        for module in model.modules():
            patches.enter_context(patch.object(module, "forward", location.watching(module)))
        with torch.no_grad(), location:
            model(*args, **kwargs)
    return location.found


def union(cuts: Iterable[Cut]) -> Cut:
    """Join the cuts of several removals."""
    substitutes: dict[int, int] = {}
    dropped: set[tuple[int, int]] = set()
    projected: set[int] = set()
    for cut in cuts:
        substitutes |= cut.substitutes
        dropped |= cut.dropped
        projected |= cut.projected
    return Cut(substitutes, frozenset(dropped), frozenset(projected))


class _Simulation(TorchFunctionMode):
    def __init__(self, model: nn.Module, graph: LayerGraph, cut: Cut, projections: Mapping[str, Explicit]) -> None:
        super().__init__()
        self.projections = projections
        self.graph = graph
        self.cut = cut
        self.weights = dict(model.named_parameters())
        self.names = {module: name for name, module in model.named_modules()}
        self.dropped_values = {value for _, value in cut.dropped}
        self.wanted = {*cut.substitutes, *cut.substitutes.values(), *self.dropped_values}
        self.produced: set[int] = set()
        self.copies: dict[int, Tensor] = {}  # substitute -> what it was when it was made
        self.marked: dict[int, Tensor] = {}  # dropped value -> the very tensor object that stands for it
        self.frames = self.frames_by_call(model)
        self.num_calls: Counter[nn.Module] = Counter()
        self.stack: list[tuple[int, Counter[str]]] = []
        self.read = {v for layer in graph.layers for operands in layer.operands for v in operands} | {*graph.outputs}
        self.replacing = False  # what is called then is no function of the model's
        self.at_function: dict[tuple[int, str, int], list[int]] = {}
        self.at_call: dict[int, list[int]] = {}
        for value in sorted(self.wanted):
            layer = graph.layers[graph.values[value].layer] if graph.values[value].layer >= 0 else None
            if layer is None or (value in cut.projected and layer.writes and value in graph.results_of):
                continue  # of another form it cannot be written in place: it is replaced where a module returns it
            if layer.function is not None and layer.nth >= 0:
                self.at_function.setdefault(self.place_of(layer), []).append(value)
        for frame in graph.frames:
            self.at_call[frame.index] = [value for value in frame.outputs if value in self.wanted]
        self.concats = {}
        for index, value in cut.dropped:
            layer = graph.layers[index]
            place = (layer.frame, None if layer.function is None else (layer.function, layer.nth))
            self.concats.setdefault(place, []).append(value)

    def place_of(self, layer: Layer) -> tuple[int, str, int]:
        """Where a function's layer shows up: the n-th call of it in its frame; of ``x[2]``, the n-th by that index.

        Libraries look at masks in other ways on fake tensors, so a run may index some tensors more often.
        """
        named = _indexing(layer.function, layer.literals[0]) if len(layer.operands) == 1 else None
        if named is None:
            return layer.frame, str(layer.function), layer.nth
        alike = [
            other.index
            for other in self.graph.layers
            if (other.frame, other.function, len(other.operands)) == (layer.frame, layer.function, 1)
            and _indexing(other.function, other.literals[0]) == named
        ]
        return layer.frame, named, alike.index(layer.index)

    def frames_by_call(self, model: nn.Module) -> dict[tuple[nn.Module, int], int]:
        modules = dict(model.named_modules(remove_duplicate=False))
        counts: Counter[nn.Module] = Counter()
        found: dict[tuple[nn.Module, int], int] = {}
        for frame in self.graph.frames:
            module = modules[frame.fqn]
            found[module, counts[module]] = frame.index
            counts[module] += 1
        return found

    # ---- where the run is ---------------------------------------------------------------------------------------

    def watching(self, module: nn.Module) -> Callable[..., Any]:
        """A module's forward, seen from outside."""
        forward = module.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.names.get(module, "") in self.projections:
                args = (self.projections[self.names[module]](args[0]), *args[1:])
            return self.call_module(module, lambda: forward(*args, **kwargs), (args, kwargs))

        return watched

    def call_module(self, module: nn.Module, run: Callable[[], Any], arguments: Any) -> Any:
        """Run a module's call, and replace what it makes."""
        if module not in self.names:
            return run()
        # By module and which call of it: a mixture of experts calls others on other inputs.
        index = self.frames.get((module, self.num_calls[module]), -1)
        self.num_calls[module] += 1
        before = [(tensor, tensor._version) for tensor in tensors(arguments)]
        self.stack.append((index, Counter()))
        try:
            out = run()
        finally:
            self.stack.pop()
        fresh = [value for value in self.at_call.get(index, ()) if value not in self.produced]
        if not fresh:
            return out
        found, outputs = list(tensors(out)), self.graph.frames[index].outputs
        if len(found) != len(outputs):
            raise CannotLocate(
                f"call {index} of '{self.names[module]}' returns {len(found)} tensors, not {len(outputs)}"
            )
        self.replacing = True
        try:
            return self.produce(out, {value: found[outputs.index(value)] for value in fresh}, before)
        finally:
            self.replacing = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, and replace what it makes."""
        kwargs = kwargs or {}
        if not self.stack or self.replacing:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        name = (getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name).strip("_")
        if isinstance(func, torch._ops.OpOverloadPacket):
            func = getattr(func, func.overloads()[0])
        if isinstance(func, torch._ops.OpOverload) and func.namespace != "aten":  # of another library
            name = func._schema.name
        frame, counts = self.stack[-1]
        nth = counts[name]
        counts[name] += 1
        named = _indexing(name, args) or name
        place = (frame, named, nth if named == name else counts[named])
        counts[named] += named != name
        args, kwargs = self.projected(args, kwargs)
        before = [(tensor, tensor._version) for tensor in tensors((args, kwargs))]
        out = self.run_function(name, func, args, kwargs, [*self.gone(frame, None), *self.gone(frame, (name, nth))])
        fresh = [v for v in self.at_function.get(place, ()) if v not in self.produced]
        if not fresh:
            return out
        places = {value: self.locate(value, out, before) for value in fresh}
        return self.produce(out, places, before)

    def projected(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Put an explicit projection in front of a function that reads with a weight for which there is one."""
        given = {id(tensor) for tensor in tensors((args, kwargs))}
        for name, projection in self.projections.items():
            if id(self.weights.get(name)) in given:
                read = kwargs["input"] if "input" in kwargs else args[0]
                new = {id(read): projection(read)}
                return replace(args, new), replace(dict(kwargs), new)
        return args, kwargs

    def locate(self, value: int, out: Any, before: list[tuple[Tensor, int]]) -> Tensor:
        """Find a value among the results of the function that made it; ``x[…] = …`` makes it of its first argument."""
        made = sorted(v for v, of in self.graph.values.items() if of.layer == self.graph.values[value].layer)
        found = list(tensors(out)) or [before[0][0]]
        dims = len(self.graph.values[value].shape)
        used = [v for v in made if v in self.read]  # what a normalization saves for its backward is not
        if len(found) == 1 and (value == made[-1] or used == [value]):
            place = 0
        elif len(found) == len(made):
            place = made.index(value)
        else:
            raise CannotLocate(f"{self.graph.describe([value])}: one of {len(made)} values, for {len(found)} results")
        if found[place].dim() != dims:
            raise CannotLocate(f"{self.graph.describe([value])}: has {found[place].dim()} dimensions in the run")
        return found[place]

    # ---- what happens to a value when it is made ----------------------------------------------------------------

    def produce_inputs(self, arguments: Any) -> None:
        found = list({id(tensor): tensor for tensor in tensors(arguments)}.values())
        for value, tensor in zip(self.graph.inputs, found, strict=True):
            if value in self.wanted:
                self.produced.add(value)
                self.copies[value] = tensor.clone()

    def produce(self, out: Any, places: Mapping[int, Tensor], before: list[tuple[Tensor, int]]) -> Any:
        """Put substitutes in the place of values that have just been made, and keep what is needed of the values."""
        new: dict[int, Tensor] = {}
        for value, tensor in places.items():
            self.produced.add(value)
            written = any(t._version != version and _share(t, tensor) for t, version in before)
            result = tensor
            if value in self.cut.substitutes:
                copy = self.copies[self.cut.substitutes[value]]
                result = tensor.copy_(copy) if written and value not in self.cut.projected else copy.clone()
            if value in self.cut.substitutes.values():
                self.copies[value] = result.clone()
            if value in self.dropped_values:
                result = result if written else result.view_as(result)  # an object that nothing else is
                self.marked[value] = result
            new[id(tensor)] = result
        return replace(out, new)

    # ---- what is gone -------------------------------------------------------------------------------------------

    def gone(self, frame: int, function: tuple[str, int] | None) -> list[Tensor]:
        return [self.marked[v] for v in self.concats.get((frame, function), ()) if v in self.marked]

    def run_function(self, name: str, func: Any, args: Any, kwargs: Any, gone: list[Tensor]) -> Any:
        if gone and (name in ("cat", "concat", "concatenate") or "::" in name):
            nans = {id(tensor): torch.full_like(tensor, math.nan) for tensor in gone}
            return func(*replace(args, nans), **replace(kwargs, nans))
        if self.marked and name in _TRANSFORMS:
            given = next(tensors((args, kwargs)))
            if bool(given.isnan().any()):
                filled = {id(given): given.nan_to_num(nan=0.0)}
                out = func(*replace(args, filled), **replace(kwargs, filled))
                return out if name == "linear" else _mark_unfed(out, func, args, kwargs)
        return func(*args, **kwargs)


class _Location(_Simulation):
    """Finds values as a simulation does, and leaves them as they are."""

    def __init__(self, model: nn.Module, graph: LayerGraph, values: Iterable[int]) -> None:
        super().__init__(model, graph, Cut({value: value for value in values}), {})
        self.cut = Cut()
        self.found: dict[int, Tensor] = {}

    def produce(self, out: Any, places: Mapping[int, Tensor], before: list[tuple[Tensor, int]]) -> Any:
        for value, tensor in places.items():
            self.produced.add(value)
            self.found.setdefault(value, tensor.clone())
        return out


def _indexing(function: str | None, args: tuple[Any, ...]) -> str | None:
    """Name an indexing by numbers, which are the same at every batch size and length; None for anything else."""
    if function != "getitem" or len(args) != 2:
        return None
    parts = args[1] if isinstance(args[1], tuple) else (args[1],)
    plain = all(type(part) is int or part == slice(None) for part in parts if not isinstance(part, Tensor))
    numbers = any(type(part) is int for part in parts) and not any(isinstance(part, Tensor) for part in parts)
    return f"getitem {parts}" if plain and numbers else None


def _mark_unfed(out: Tensor, func: Any, args: Any, kwargs: Any) -> Tensor:
    """Mark as gone the channels of a convolution (a depthwise one) that read nothing but gone channels."""
    given, weight, *bias = tensors((args, kwargs))
    stand_ins = {id(given): (~given.isnan()).to(given.dtype), id(weight): torch.ones_like(weight)}
    stand_ins |= {id(tensor): torch.zeros_like(tensor) for tensor in bias}
    fed = func(*replace(args, stand_ins), **replace(kwargs, stand_ins))
    return out.masked_fill(fed.amax(tuple(range(2 - weight.dim(), 0)), keepdim=True) == 0, math.nan)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers and objects, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        yield from tensors(vars(value))


def replace(value: Any, new: Mapping[int, Tensor]) -> Any:
    """Return nested containers with some tensors, given by their ``id``, replaced."""
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if type(value) in (list, tuple):
        return type(value)(replace(item, new) for item in value)
    if isinstance(value, tuple):  # torch's own named results take a sequence, namedtuples do not
        items = [replace(item, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        for key, item in list(value.items()):
            value[key] = replace(item, new)
    elif any(id(tensor) in new for tensor in tensors(value)):
        raise CannotLocate(f"a tensor to replace lies in a {type(value).__name__}")
    return value


def _share(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
