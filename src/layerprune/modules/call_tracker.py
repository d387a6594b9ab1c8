"""Tracks which call of which module runs, and which call of a function in its forward."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from layerprune.modules.interpose import FunctionWatch, watched


class CallKey(NamedTuple):
    """Names one call in a model's forward: of a module, or of a function in a module's forward.

    Attributes:
        fqn: the module's dotted name.
        call: which call of the module, from 0.
        function: the function's name without underscores around it; empty for the call of the module.
        nth: which call of the function in this forward, from 0.
    """

    fqn: str
    call: int = 0
    function: str = ""
    nth: int = 0


@dataclass(slots=True, eq=False)
class RunningCall:
    """A module's call whose forward has not returned yet.

    Attributes:
        key: its name.
        module: the module.
        index: its number among all calls of modules, in order of execution.
        parent: the call in whose forward it was made; None for the model's own.
        num_calls: how often its forward has called each function so far.
    """

    key: CallKey
    module: nn.Module
    index: int
    parent: RunningCall | None
    num_calls: Counter[str] = field(default_factory=Counter[str])

    def outward(self) -> Iterator[RunningCall]:
        """The call and those around it, innermost first."""
        call: RunningCall | None = self
        while call is not None:
            yield call
            call = call.parent


#: Runs a module's forward: gets the call, the forward and its arguments.
OnModule: TypeAlias = Callable[[RunningCall, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
#: Runs a function that a forward calls: gets the name of the call, the function and its arguments.
OnFunction: TypeAlias = Callable[[CallKey, Callable[..., Any], Any, Any], Any]


class CallTracker:
    """Follows a model's forward call by call.

    A module with several names goes by the one that lies below the running module. For that, all modules have to be
    watched; give only first names where some are.

    Args:
        names: the names that each module may go by, by its id; see :func:`layerprune.modules.names_by_module`.
        on_module: runs the forwards of modules; None to only follow them.
        on_function: runs the functions that forwards call, but for those inside other functions; None to see none.

    Attributes:
        running: the innermost call that runs; None outside the model's forward.
        num_calls: how often each module has been called so far, by name.
        is_in_function: whether functions are not counted: while one runs, or the watcher itself computes something.
    """

    def __init__(
        self,
        names: Mapping[int, Sequence[str]],
        on_module: OnModule | None = None,
        on_function: OnFunction | None = None,
    ) -> None:
        self.names = names
        self.on_module = on_module
        self.on_function = on_function
        self.reset()

    def reset(self) -> None:
        """Begin another forward."""
        self.running: RunningCall | None = None
        self.num_calls: Counter[str] = Counter()
        self.is_in_function = False
        self._num_all = 0

    @property
    def fqn(self) -> str:
        """The name of the module that runs; empty outside the model's forward."""
        return "" if self.running is None else self.running.key.fqn

    @property
    def index(self) -> int:
        """The number of the call that runs; -1 outside the model's forward."""
        return -1 if self.running is None else self.running.index

    @contextmanager
    def watching(self, model: nn.Module, modules: Iterable[nn.Module] | None = None) -> Generator[None]:
        """Follow what the model, or only some of its modules, call inside."""
        functions = nullcontext() if self.on_function is None else FunctionWatch(self.call_function)
        with watched(model, self.wrap, modules), functions:
            yield

    @contextmanager
    def outside(self) -> Generator[None]:
        """Let the caller of the running call count as what runs: what a call takes and returns is looked at there."""
        call = self.running
        self.running = None if call is None else call.parent
        try:
            yield
        finally:
            self.running = call

    @contextmanager
    def uncounted(self) -> Generator[None]:
        """Let what is computed inside count as no step of the model."""
        before, self.is_in_function = self.is_in_function, True
        try:
            yield
        finally:
            self.is_in_function = before

    def wrap(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a module's forward so that its calls are known."""
        names = self.names[id(module)]

        @functools.wraps(forward)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            parent = self.running
            around = f"{self.fqn}."
            fqn = names[0] if around == "." else next((n for n in names if n.startswith(around)), names[0])
            call = RunningCall(CallKey(fqn, self.num_calls[fqn]), module, self._num_all, parent)
            self.num_calls[fqn] += 1
            self._num_all += 1
            self.running = call
            try:
                return (
                    forward(*args, **kwargs) if self.on_module is None else self.on_module(call, forward, args, kwargs)
                )
            finally:
                self.running = parent

        return tracked

    def call_function(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function; for :class:`layerprune.modules.FunctionWatch`."""
        if self.is_in_function or self.running is None or self.on_function is None:
            return func(*args, **kwargs)
        key = self.count(name)
        with self.uncounted():
            return self.on_function(key, func, args, kwargs)

    def count(self, function: str) -> CallKey:
        """Count a call of a function in the running forward; returns its name."""
        assert self.running is not None
        counts = self.running.num_calls
        counts[function] += 1
        return CallKey(*self.running.key[:2], function, counts[function] - 1)
