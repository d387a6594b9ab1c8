"""Rerun: what layers that rearrange channels do in a run of the edited model."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from layerprune.channels import Moved
from layerprune.modules import FunctionWatch, names_by_module, watched

_Place = tuple[str, int, str, int]


@contextmanager
def rerunning(model: nn.Module, moved: Sequence[Moved]) -> Generator[list[str]]:
    """Check rearrangements of channels as a model's forward makes them inside the block.

    Args:
        model: the edited model.
        moved: the rearrangements that the recorded forward made, and what they should make now.

    Yields:
        What is wrong: a sentence for each fault, also for a rearrangement that never runs.
    """
    faults: list[str] = []
    if not moved:
        yield faults
        return
    rerun = _Rerun(model, moved, faults)
    with watched(model, rerun.wrap), FunctionWatch(rerun.call_function):
        yield faults
    faults += [f"'{m.layer.name}' does not run as it was recorded" for m in rerun.waiting.values()]


class _Rerun:
    def __init__(self, model: nn.Module, moved: Sequence[Moved], faults: list[str]) -> None:
        self.waiting: dict[_Place, Moved] = {}
        for m in moved:
            self.waiting[m.layer.fqn, m.layer.call, m.layer.function or "", m.layer.nth] = m
        self.faults = faults
        self.names = names_by_module(model)
        self.calls: Counter[str] = Counter()
        self.stack: list[tuple[str, int, Counter[str]]] = []
        self.inside = False

    def wrap(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a module's forward so that it is known which call of it runs."""

        @functools.wraps(forward)
        def placed(*args: Any, **kwargs: Any) -> Any:
            around = self.stack[-1][0] if self.stack else ""
            names = self.names[id(module)]
            fqn = next((n for n in names if not around or n.startswith(around + ".")), names[0])
            call = self.calls[fqn]
            self.calls[fqn] += 1
            self.check((fqn, call, "", 0), forward, args, kwargs)
            self.stack.append((fqn, call, Counter()))
            try:
                return forward(*args, **kwargs)
            finally:
                self.stack.pop()

        return placed

    def call_function(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function; check it where it rearranges channels."""
        if self.inside or not self.stack:
            return func(*args, **kwargs)
        fqn, call, counts = self.stack[-1]
        nth = counts[name]
        counts[name] += 1
        self.inside = True
        try:
            self.check((fqn, call, name, nth), func, args, kwargs)
            return func(*args, **kwargs)
        finally:
            self.inside = False

    def check(self, place: _Place, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        moved = self.waiting.pop(place, None)
        if moved is None:
            return
        if not args or not isinstance(args[0], Tensor):
            self.faults.append(f"'{moved.layer.name}' does not run as it was recorded")
            return
        try:
            fault = moved.faults(lambda tensor: func(tensor, *args[1:], **kwargs))
        except Exception as error:  # the forward's own sizes, on what is left: anything may come
            fault = f"'{moved.layer.name}' fails on the channels that are left: {error}"
        if fault:
            self.faults.append(fault)
