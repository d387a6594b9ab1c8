"""Checks in a run of the edited model that layers which rearrange channels keep the right channels."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from layerprune.channels import Moved
from layerprune.graph import Refusal, RefusalCode
from layerprune.modules import CallKey, CallTracker, RunningCall, names_by_module


@contextmanager
def index_checked(model: nn.Module, moved: Sequence[Moved]) -> Generator[list[Refusal]]:
    """Check rearrangements of channels while a model's forward runs inside the block.

    Yields:
        A list that receives a refusal for each fault, also for a rearrangement in ``moved`` that never runs.
    """
    faults: list[Refusal] = []
    if not moved:
        yield faults
        return
    rerun = _Rerun(moved, faults)
    with CallTracker(names_by_module(model), rerun.run_module, rerun.run_function).watching(model):
        yield faults
    faults += [_runs_otherwise(m) for m in rerun.waiting.values()]


class _Rerun:
    def __init__(self, moved: Sequence[Moved], faults: list[Refusal]) -> None:
        self.waiting = {m.layer.key: m for m in moved}
        self.faults = faults

    def run_module(self, call: RunningCall, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.check(call.key, forward, args, kwargs)
        return forward(*args, **kwargs)

    def run_function(self, key: CallKey, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.check(key, func, args, kwargs)
        return func(*args, **kwargs)

    def check(self, key: CallKey, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        moved = self.waiting.pop(key, None)
        if moved is None:
            return
        if not args or not isinstance(args[0], Tensor):
            self.faults.append(_runs_otherwise(moved))
            return
        try:
            fault = moved.fault(lambda tensor: func(tensor, *args[1:], **kwargs))
        except Exception as error:  # sizes in user code may not fit fewer channels: any exception
            fault = Refusal(RefusalCode.FAILS_ON_CHANNELS, moved.layer.name, error=error)
        if fault is not None:
            self.faults.append(fault)


def _runs_otherwise(moved: Moved) -> Refusal:
    return Refusal(RefusalCode.RUNS_OTHERWISE, moved.layer.name)
