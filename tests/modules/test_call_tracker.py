"""The call tracker names each call of a module, and of a function in a module's forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerprune.modules import CallKey, CallTracker, RunningCall, names_by_module


class Twice(nn.Module):
    """Calls one activation under two names, and adds twice."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.block = nn.Sequential(self.act, nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(torch.add(self.act(x), self.block(x)), self.act(x))


def followed(model: nn.Module, *, only_first: bool = False) -> tuple[list[CallKey], list[CallKey]]:
    """The calls of modules, and those of functions, in order."""
    modules: list[CallKey] = []
    functions: list[CallKey] = []

    def on_module(call: RunningCall, forward: Any, args: Any, kwargs: Any) -> Any:
        modules.append(call.key)
        return forward(*args, **kwargs)

    def on_function(key: CallKey, func: Any, args: Any, kwargs: Any) -> Any:
        functions.append(key)
        return func(*args, **kwargs)

    tracker = CallTracker(names_by_module(model, only_first=only_first), on_module, on_function)
    with tracker.watching(model):
        model(torch.ones(1, 2))
    assert tracker.running is None
    return modules, functions


def test_a_module_goes_by_the_name_below_its_caller_and_each_name_counts_its_own_calls() -> None:
    assert followed(Twice())[0] == [
        CallKey("", 0),
        CallKey("act", 0),
        CallKey("block", 0),
        CallKey("block.0", 0),
        CallKey("block.1", 0),
        CallKey("act", 1),
    ]


def test_by_first_names_all_calls_of_a_module_count_together() -> None:
    keys = followed(Twice(), only_first=True)[0]
    assert [key for key in keys if key.fqn == "act"] == [CallKey("act", 0), CallKey("act", 1), CallKey("act", 2)]


def test_functions_count_in_the_forward_that_calls_them() -> None:
    functions = followed(Twice())[1]
    assert [key for key in functions if key.function == "add"] == [CallKey("", 0, "add", 0), CallKey("", 0, "add", 1)]
    assert [key for key in functions if key.function == "relu"] == [
        CallKey("act", 0, "relu", 0),
        CallKey("block.0", 0, "relu", 0),
        CallKey("act", 1, "relu", 0),
    ]


def test_running_calls_know_those_around_them() -> None:
    seen: list[tuple[int, list[str]]] = []

    def look(call: RunningCall, forward: Any, args: Any, kwargs: Any) -> Any:
        seen.append((call.index, [around.key.fqn for around in call.outward()]))
        with tracker.outside():
            assert tracker.index == (-1 if call.parent is None else call.parent.index)
        return forward(*args, **kwargs)

    model = Twice()
    tracker = CallTracker(names_by_module(model), look)
    with tracker.watching(model, [model.block, model.block[1]]):
        model(torch.ones(1, 2))
    assert seen == [(0, ["block"]), (1, ["block.1", "block"])]


def test_after_a_forward_that_raises_nothing_runs_and_a_reset_begins_anew() -> None:
    model = Twice()
    tracker = CallTracker(names_by_module(model))
    with tracker.watching(model), pytest.raises(TypeError):
        model("no tensor")
    assert (tracker.running, tracker.fqn, tracker.index) == (None, "", -1)
    assert tracker.num_calls == {"": 1, "act": 1}
    tracker.reset()
    assert not tracker.num_calls


def test_what_a_watcher_computes_itself_is_not_counted() -> None:
    seen: list[CallKey] = []

    def on_function(key: CallKey, func: Any, args: Any, kwargs: Any) -> Any:
        seen.append(key)
        return func(*args, **kwargs)

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with tracker.uncounted():
                torch.neg(x)
            return torch.neg(x)

    model = Watched()
    tracker = CallTracker(names_by_module(model), on_function=on_function)
    with tracker.watching(model):
        model(torch.ones(1))
        torch.neg(torch.ones(1))  # in no forward
    assert seen == [CallKey("", 0, "neg", 0)]
