"""Reads chosen values of the layer graph while the model runs on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from layerprune.capture.sandbox import Sandbox
from layerprune.capture.trace_variants import MOST, Variant, Variants
from layerprune.graph import LayerGraph, ValueLocations, calls_of
from layerprune.inputs import Inputs
from layerprune.modules import (
    CallKey,
    CallTracker,
    FunctionWatch,
    RunningCall,
    named_tensors,
    names_by_module,
    no_fast_path,
    watched,
)
from layerprune.tensors import OutputTree, flat_tensors, tensors_in
from layerprune.torch_internals import innermost_function_mode

#: Gets a value's number and its tensor.
See: TypeAlias = Callable[[int, Tensor], None]


class _Differs(BaseException):
    """A run differs from the layer graph. No Exception, which a model's own forward might catch."""


class Probe:
    """Reads chosen values during a model's forward.

    Where a function makes a value, all calls of the forward around it must equal the layer graph, function by function;
    other modules' functions are not compared. Each of these modules must be called as often as in the graph. A run may
    differ: libraries look at masks more often on real tensors than on fake ones, or data end a loop. Then the run is
    stopped and repeated with the values' counterparts in a recording that it follows, known or new. Values without a
    certain counterpart are not seen. The sandbox is a real one; new recordings are added to ``variants``.

    Attributes:
        under_way: the layer graph that the present run follows, and value → its number there.
    """

    def __init__(
        self, shade: Sandbox, graph: LayerGraph, values: Iterable[int], variants: Variants | None = None
    ) -> None:
        self.shade = shade
        self.graph = graph
        self.values = sorted(set(values))
        self.names = names_by_module(shade.model, only_first=True)
        self.constants = {id(tensor) for _, tensor in named_tensors(shade.model)}
        self.variants = variants if variants is not None else Variants()
        own = self._watching(graph, {value: value for value in self.values})
        known = [self._following(variant) for variant in self.variants.of(graph)]
        self.watchers = [*(watcher for watcher in known if watcher is not None), own]  # newest first
        self.under_way = self.watchers[-1].recorded

    def run(
        self,
        inputs: Inputs,
        begin: Callable[[], See],
        *,
        use: Callable[[Any], None] | None = None,
        forward: Callable[[nn.Module], Any] | None = None,
    ) -> frozenset[int]:
        """Run the model once, or again where it differs from the layer graph.

        Args:
            inputs: arguments of the model's forward.
            begin: called at the start of each attempt; values of an earlier attempt no longer count. Returns a function
                that gets each value's number and tensor once, about in order of execution: values of functions may come
                as late as a module takes them. If it keeps a tensor that later layers write into, it must copy it.
            use: gets the output; with it the forward runs with gradients.
            forward: calls the model, in place of ``model(*args, **kwargs)``, and returns the argument of ``use``.

        Returns:
            The values that were seen. Values inside a fused operation, or without a certain tensor, are not.
        """
        for watcher in sorted(self.watchers, key=self._misses):  # two may fit the same run: most values first
            try:
                seen = self._try(watcher, inputs, begin, use, forward)
            except _Differs:
                continue
            self._prefer(watcher)
            return seen
        for variant in self.variants.recorded(self.graph, self.shade, inputs):
            watcher = self._following(variant)
            if watcher is None or any(watcher.places == known.places for known in self.watchers):
                continue  # the run does not follow these places
            try:
                seen = self._try(watcher, inputs, begin, use, forward)
            except _Differs:  # a run of few samples differs, or no two runs are equal
                continue
            self.variants.keep(variant)
            self._prefer(watcher)
            return seen
        return self._try(self._watching(self.graph, {}), inputs, begin, use, forward)

    def _prefer(self, watcher: _Watcher) -> None:
        """Try a recording early in later runs, and drop the least recent ones; the layer graph's own stays."""
        others = [known for known in self.watchers if known is not watcher]
        if len(others) > MOST:
            others.remove(next(known for known in reversed(others) if known.recorded[0] is not self.graph))
        self.watchers = [watcher, *others]

    def _misses(self, watcher: _Watcher) -> int:
        return len(self.values) - len(watcher.recorded[1])

    def _try(
        self,
        watcher: _Watcher,
        inputs: Inputs,
        begin: Callable[[], See],
        use: Callable[[Any], None] | None,
        forward: Callable[[nn.Module], Any] | None,
    ) -> frozenset[int]:
        self.under_way = watcher.recorded
        seen = watcher.start(begin())
        model = self.shade.model
        with self.shade.running(grad=use is not None):
            with watched(model, watcher.wrapped, watcher.modules(model)), no_fast_path():
                out = self.shade.call(inputs) if forward is None else forward(model)
            watcher.check_counts()
            if use is not None:
                use(out)
        return frozenset(seen)

    def _following(self, variant: Variant) -> _Watcher | None:
        """A watcher for the values' counterparts in another recording; None where one of all samples may show more."""
        wanted = {variant.numbers[value]: value for value in self.values if value in variant.numbers}
        if variant.is_of_few and len(wanted) < len(self.values):
            return None
        return self._watching(variant.graph, wanted)

    def _watching(self, graph: LayerGraph, wanted: Mapping[int, int]) -> _Watcher:
        places = ValueLocations.of(graph, calls_of(graph, self.shade.model, self.names), wanted)
        recorded = graph, {value: real for real, value in wanted.items()}
        return _Watcher(places, recorded, self.names, self.constants)


class _Watcher:
    """Watches successive runs; tracks open calls, their counts and the values seen.

    ``recorded`` is the layer graph to compare runs with, and value → its number in it; ``names`` are those of modules,
    by id; ``constants`` are the ids of parameters and buffers, which are no values.
    """

    def __init__(
        self,
        places: ValueLocations,
        recorded: tuple[LayerGraph, Mapping[int, int]],
        names: Mapping[int, Sequence[str]],
        constants: set[int],
    ) -> None:
        self.places = places
        self.recorded = recorded
        self.constants = constants
        self.known: list[nn.Module] | None = None
        self.wrappers: dict[int, Callable[..., Any]] = {}
        self.tracker = CallTracker(names, self.run_module, self.run_function)
        self.watch = FunctionWatch(self.tracker.call_function)
        self.start(lambda value, tensor: None)

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """The modules to track: modules around values, and their callees where steps are compared."""
        if self.known is None:
            wanted = {"", *self.places.counts, *self.places.callees}
            self.known = [module for module in model.modules() if self.tracker.names[id(module)][0] in wanted]
        return self.known

    def start(self, see: See) -> set[int]:
        self.see = see
        self.tracker.reset()
        self.steps: dict[RunningCall, _Steps] = {}
        self.seen: set[int] = set()
        return self.seen

    def notice(self, value: int, tensor: Any) -> None:
        if value not in self.seen and isinstance(tensor, Tensor):
            if tensor.dim() != len(self.places.shapes[value]):
                raise _Differs
            self.seen.add(value)
            with self.tracker.uncounted():  # the callback's functions are no steps of the model
                self.see(value, tensor)

    def check_counts(self) -> None:
        """Raise after a run in which a module was called, but less often than in the layer graph."""
        for name, count in self.places.counts.items():
            if 0 < self.tracker.num_calls[name] < count:
                raise _Differs

    def wrapped(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        if id(module) not in self.wrappers:
            self.wrappers[id(module)] = self.tracker.wrap(module, forward)
        return self.wrappers[id(module)]

    def run_module(self, call: RunningCall, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module's forward; functions are watched where its steps are compared."""
        name, nth = call.key[:2]
        most = self.places.counts.get(name)
        # Not by its place among all calls: a mixture of experts calls others on other inputs.
        if most is not None and nth >= most:
            raise _Differs
        if call.parent is not None and call.parent in self.steps:
            self.steps[call.parent].take(f":{name}")
        off = innermost_function_mode() is self.watch  # if not, a mode of the user's own may lie on top of it
        if off:
            self.watch.__exit__(None, None, None)
        try:
            return forward(*args, **kwargs) if name and most is None else self.run(call, forward, args, kwargs)
        finally:
            if off:
                self.watch.__enter__()

    def run(self, call: RunningCall, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module's call, and watch its arguments, results and steps where needed."""
        self.notice_arguments(call, args, kwargs)
        steps = self.places.steps.get(call.key)
        if steps is None:
            out = forward(*args, **kwargs)
        else:
            own = self.steps[call] = _Steps(steps)
            with self.watch:
                out = forward(*args, **kwargs)
            own.finish()
        if call.key in self.places.results:
            self.notice_results(call.key, _results(out, self.constants))
        return out

    def notice_arguments(self, call: RunningCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.places.inputs and call.parent is None:
            tensors = tensors_in((args, kwargs))
            for place, value in self.places.inputs.items():
                self.notice(value, tensors[place] if place < len(tensors) else None)
        for position, keyword, value in self.places.arguments.get(call.key, ()):
            given = kwargs.get(keyword) if keyword is not None else None
            if given is None and position is not None and position < len(args):
                given = args[position]
            self.notice(value, given)

    def notice_results(self, key: CallKey, found: Sequence[Tensor]) -> None:
        for place, value in self.places.results.get(key, ()):
            self.notice(value, found[place] if place < len(found) else None)

    def run_function(self, key: CallKey, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function, which is a step where its call's steps are compared."""
        running = self.tracker.running
        if running is not None and running in self.steps:
            self.steps[running].take(key.function)
        out = func(*args, **kwargs)
        if key in self.places.results:
            self.notice_results(key, flat_tensors(out))
        return out


class _Steps:
    """The calls that a forward has to make, in order, and the number made so far; modules stand after a colon."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.num_taken = 0

    def take(self, name: str) -> None:
        if self.num_taken >= len(self.names) or self.names[self.num_taken] != name:
            raise _Differs
        self.num_taken += 1

    def finish(self) -> None:
        if self.num_taken < len(self.names):
            raise _Differs


def _results(out: Any, constants: set[int]) -> list[Tensor]:
    """The tensors in a module's output that are values, in the order of a recording."""
    return [tensor for tensor in OutputTree.of(out, lambda tensor: tensor).leaves() if id(tensor) not in constants]
