"""Tracks the running module call, and the function calls in its forward."""

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
    """Identifies a call in a model's forward: of a module, or of a function in a module's forward.

    Attributes:
        fqn: the module's dotted name.
        call: number of the module's call, from 0.
        function: name of the function without underscores around it; empty for the module's call itself.
        nth: number of the function's call in this forward, from 0.
    """

    fqn: str
    call: int = 0
    function: str = ""
    nth: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class RunningCall:
    """A module call whose forward has not returned yet.

    Attributes:
        index: its number among all module calls, in order of execution.
        parent: the call whose forward made it; None for the model's own call.
        num_calls: calls of each function in its forward so far.
    """

    key: CallKey
    module: nn.Module
    index: int
    parent: RunningCall | None
    num_calls: Counter[str] = field(default_factory=Counter[str])

    def outward(self) -> Iterator[RunningCall]:
        call: RunningCall | None = self
        while call is not None:
            yield call
            call = call.parent


#: Runs a module's forward; takes the call, the forward and its arguments.
OnModule: TypeAlias = Callable[[RunningCall, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
#: Runs a function that a forward calls; takes the key of the call, the function and its arguments.
OnFunction: TypeAlias = Callable[[CallKey, Callable[..., Any], Any, Any], Any]


class CallTracker:
    """Tracks the calls in a model's forward.

    A module with several names gets the name below the running module. This needs wrappers on all modules; pass only
    first names if some modules are not wrapped.

    Args:
        names: id of each module → its names; see :func:`layerprune.modules.names_by_module`.
        on_module: runs the forwards of modules; None to track calls only.
        on_function: runs the functions that forwards call, except those inside other functions; None for no functions.

    Attributes:
        running: the innermost running call; None outside the model's forward.
        num_calls: calls of each module so far, by name.
        is_in_function: whether functions are not counted: while a function runs, or in :meth:`uncounted`.
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
        self.running: RunningCall | None = None
        self.num_calls: Counter[str] = Counter()
        self.is_in_function = False
        self._num_all = 0

    @property
    def fqn(self) -> str:
        """Name of the running module; empty outside the model's forward."""
        return "" if self.running is None else self.running.key.fqn

    @property
    def index(self) -> int:
        """Number of the running call; -1 outside the model's forward."""
        return -1 if self.running is None else self.running.index

    @contextmanager
    def watching(self, model: nn.Module, modules: Iterable[nn.Module] | None = None) -> Generator[None]:
        """Track calls of the model inside, or of some of its modules only."""
        functions = nullcontext() if self.on_function is None else FunctionWatch(self.call_function)
        with watched(model, self.wrap, modules), functions:
            yield

    @contextmanager
    def outside(self) -> Generator[None]:
        """Make the caller of the running call the running one, because a call's arguments and outputs belong to it."""
        call = self.running
        self.running = None if call is None else call.parent
        try:
            yield
        finally:
            self.running = call

    @contextmanager
    def uncounted(self) -> Generator[None]:
        """Do not count functions inside as steps of the model."""
        before, self.is_in_function = self.is_in_function, True
        try:
            yield
        finally:
            self.is_in_function = before

    def wrap(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        names = self.names[id(module)]

        @functools.wraps(forward)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            parent = self.running
            around = f"{self.fqn}."
            fqn = names[0] if around == "." else next((n for n in names if n.startswith(around)), names[0])
            call = RunningCall(key=CallKey(fqn, self.num_calls[fqn]), module=module, index=self._num_all, parent=parent)
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
        """Run a function; callback of :class:`layerprune.modules.FunctionWatch`."""
        if self.is_in_function or self.running is None or self.on_function is None:
            return func(*args, **kwargs)
        key = self.count(name)
        with self.uncounted():
            return self.on_function(key, func, args, kwargs)

    def count(self, function: str) -> CallKey:
        """Count a call of a function in the running forward; returns its key."""
        assert self.running is not None
        counts = self.running.num_calls
        counts[function] += 1
        return CallKey(*self.running.key[:2], function, counts[function] - 1)
