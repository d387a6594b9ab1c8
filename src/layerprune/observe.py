"""Observation: read chosen values of the layer graph while the model runs on real inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode as get_current_function_mode

from layerprune.graph import LayerGraph
from layerprune.inputs import Inputs
from layerprune.modules import names_by_module
from layerprune.nested import tensors_in
from layerprune.shadow import Shadow
from layerprune.watch import FunctionWatch, watched

_Call = tuple[str, int]
"""One call of a module: the module's first name, and which call of it this is."""


def observe(
    shade: Shadow,
    graph: LayerGraph,
    inputs: Inputs,
    values: Iterable[int],
    see: Callable[[int, Tensor], None],
    *,
    use: Callable[[Any], None] | None = None,
    forward: Callable[[nn.Module], Any] | None = None,
) -> frozenset[int]:
    """Run a model once and hand chosen values over; :class:`Observer` does it batch after batch."""
    return Observer(shade, graph, values).run(inputs, see, use=use, forward=forward)


class Observer:
    """Hands chosen values of a model over as its forward comes to them.

    A value that a module takes or returns is read there, which costs next to nothing. For one that passes between
    functions only, the functions of the module in whose forward it lies are watched, and of no other.

    Args:
        shade: a real shadow of the model that ``graph`` was recorded from.
        graph: the layer graph.
        values: numbers of the values to see.
        prompt: those of them that are to be seen as soon as they are there, not when a module takes or returns them.
    """

    def __init__(
        self, shade: Shadow, graph: LayerGraph, values: Iterable[int], *, prompt: Collection[int] = ()
    ) -> None:
        self.shade = shade
        names = names_by_module(shade.model)
        places = _Places.of(graph, _calls(graph, shade.model, names), sorted(set(values)), prompt)
        where = {"", *(name for name, _ in (*places.arguments, *places.results))}
        # Of a frame whose functions are watched it has to be known when they are another's, called from there.
        everywhere = bool(places.functions)
        self.modules = [m for m in shade.model.modules() if everywhere or names[id(m)][0] in where]
        self.watcher = _Watcher(places, {id(m): names[id(m)][0] for m in self.modules})

    def run(
        self,
        inputs: Inputs,
        see: Callable[[int, Tensor], None],
        *,
        use: Callable[[Any], None] | None = None,
        forward: Callable[[nn.Module], Any] | None = None,
    ) -> frozenset[int]:
        """Run the model once.

        Args:
            inputs: arguments that the model's forward takes.
            see: called once with each value's number and tensor, about in order of execution: a value that only
                functions make may be seen as late as a module takes it. The tensor must be copied by who keeps it,
                where later layers write into it.
            use: gets the output; with it the forward runs with gradients, and they are there for it to ask for.
            forward: calls the model, in place of ``model(*args, **kwargs)``, and returns what ``use`` gets.

        Returns:
            The values that were seen; one that arises within a fused operation is not.
        """
        seen = self.watcher.start(see)
        adapted = self.shade.adapt(inputs)
        with self.shade.running(grad=use is not None):
            with watched(self.shade.model, self.watcher.wrapped, self.modules), no_fast_path():
                model = self.shade.model
                out = model(*adapted.args, **adapted.kwargs) if forward is None else forward(model)
            if use is not None:
                use(out)
        return frozenset(seen)


@dataclass(frozen=True)
class _Places:
    """Where values show up: among the model's inputs, or by the call."""

    inputs: dict[int, int] = field(default_factory=dict[int, int])
    arguments: dict[_Call, list[tuple[int | None, str | None, int]]] = field(default_factory=dict[Any, Any])
    results: dict[_Call, list[tuple[int, int]]] = field(default_factory=dict[Any, Any])
    functions: dict[_Call, dict[tuple[str, int, int], int]] = field(default_factory=dict[Any, Any])

    @classmethod
    def of(
        cls, graph: LayerGraph, calls: Sequence[_Call], values: Sequence[int], prompt: Collection[int] = ()
    ) -> _Places:
        """Find the places of values; that among a frame's functions only where there is no other, or none as early."""
        found = cls()
        wanted = set(values)
        taken = [(frame, argument) for frame in graph.frames for argument in frame.arguments if argument[2] in wanted]
        for frame, argument in taken:
            found.arguments.setdefault(calls[frame.index], []).append(argument)
        for value in values:
            if value in graph.inputs:
                found.inputs[graph.inputs.index(value)] = value
            frames = graph.results_of.get(value, ())
            for frame in frames:
                place = graph.frames[frame].outputs.index(value)
                found.results.setdefault(calls[frame], []).append((place, value))
            layer = graph.layers[graph.values[value].layer] if graph.values[value].layer >= 0 else None
            if layer is None or layer.function is None or layer.nth < 0 or value not in layer.outputs:
                continue
            if value in prompt or not (frames or any(argument[2] == value for _, argument in taken)):
                place = layer.function, layer.nth, layer.outputs.index(value)
                found.functions.setdefault(calls[layer.frame], {})[place] = value
        return found


class _Watcher:
    """Looks at one run after the other; knows which calls are open, how many there were, and what has been seen."""

    def __init__(self, places: _Places, names: Mapping[int, str]) -> None:
        self.places = places
        self.names = names
        self.wrappers: dict[int, Callable[..., Any]] = {}
        self.start(lambda value, tensor: None)

    def start(self, see: Callable[[int, Tensor], None]) -> set[int]:
        """Begin a run; returns what becomes the set of the values that were seen."""
        self.see = see
        self.stack: list[_Call] = []
        self.num_calls: dict[str, int] = {}
        self.counts: dict[tuple[_Call, str], int] = {}
        self.watch: FunctionWatch | None = None
        self.inside = False
        self.seen: set[int] = set()
        return self.seen

    def notice(self, value: int, tensor: Any) -> None:
        if value not in self.seen and isinstance(tensor, Tensor):
            self.seen.add(value)
            self.see(value, tensor)

    def wrapped(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        if id(module) not in self.wrappers:
            self.wrappers[id(module)] = self.wrap(self.names[id(module)], forward)
        return self.wrappers[id(module)]

    def wrap(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def observed(*args: Any, **kwargs: Any) -> Any:
            # Not by its place among all calls: a mixture of experts calls others on other inputs.
            call = name, self.num_calls.get(name, 0)
            self.num_calls[name] = call[1] + 1
            watch, self.watch = self.watch, None
            off = watch is not None and get_current_function_mode() is watch
            if off and watch is not None:  # if not, a mode of the user's own lies on top of it
                watch.__exit__(None, None, None)
            try:
                return self.run(call, forward, args, kwargs)
            finally:
                self.watch = watch
                if off and watch is not None:
                    watch.__enter__()

        return observed

    def run(self, call: _Call, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a module's call, looking at what it takes, at what it returns, and at its functions where need be."""
        self.notice_arguments(call, args, kwargs)
        self.stack.append(call)
        try:
            if call in self.places.functions:
                self.watch = FunctionWatch(self.call_function)
                with self.watch:
                    out = forward(*args, **kwargs)
            else:
                out = forward(*args, **kwargs)
        finally:
            self.stack.pop()
        if call in self.places.results:
            found = _outputs(out)
            for place, value in self.places.results[call]:
                self.notice(value, found[place] if place < len(found) else None)
        return out

    def notice_arguments(self, call: _Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.places.inputs and not self.stack:
            tensors = tensors_in((args, kwargs))
            for place, value in self.places.inputs.items():
                self.notice(value, tensors[place] if place < len(tensors) else None)
        for position, keyword, value in self.places.arguments.get(call, ()):
            given = kwargs.get(keyword) if keyword is not None else None
            if given is None and position is not None and position < len(args):
                given = args[position]
            self.notice(value, given)

    def call_function(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        frame = self.stack[-1]
        wanted = self.places.functions.get(frame)
        if self.inside or wanted is None:
            return func(*args, **kwargs)
        nth = self.counts[(frame, name)] = self.counts.get((frame, name), -1) + 1
        self.inside = True
        try:
            out = func(*args, **kwargs)
        finally:
            self.inside = False
        for place, tensor in enumerate(_outputs(out)):
            value = wanted.get((name, nth, place))
            if value is not None:
                self.notice(value, tensor)
        return out


@contextmanager
def no_fast_path() -> Generator[None]:
    """Keep torch's transformer modules from running as one fused operation, in which no value shows up."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _outputs(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else tensors_in(out)


def _calls(graph: LayerGraph, model: nn.Module, names: Mapping[int, Sequence[str]]) -> list[_Call]:
    """Each frame's call: the first name of its module, and which call of the module it is, under whatever name."""
    modules = dict(model.named_modules(remove_duplicate=False))
    counts: dict[str, int] = {}
    found: list[_Call] = []
    for frame in graph.frames:
        name = names[id(modules[frame.fqn])][0]
        found.append((name, counts.get(name, 0)))
        counts[name] = counts.get(name, 0) + 1
    return found
