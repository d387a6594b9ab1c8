"""No result hangs on display text: with classes renamed and messages reworded the same is found and planned."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import count, pairwise
from types import CodeType, FunctionType

import pytest
import torch
from torch import nn

import layerprune
from layerprune import UniversalLayerPruner
from layerprune.edits import records
from layerprune.errors import LayerPruneError
from layerprune.graph import LayerGraph, Refusal, RefusalCode, refusals
from layerprune.removals import candidates
from models.nets import ExampleModel, Net, linear, randomised, rows


class Stages(nn.Module):
    """Residual blocks of three widths, of which some sets do not hold."""

    def __init__(self):
        super().__init__()
        widths = (8, 12, 16)
        self.stem = nn.Linear(8, widths[0])
        self.stages = nn.ModuleList(
            nn.ModuleList([linear(wide), *(nn.Sequential(linear(wide), nn.ReLU(), linear(wide)) for _ in range(3))])
            for wide in widths
        )
        self.transitions = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], 4)

    def forward(self, x):
        x = self.stem(x)
        for number, stage in enumerate(self.stages):
            for block in stage:
                x = x + block(x)
            if number < len(self.transitions):
                x = torch.relu(self.transitions[number](x))
        return self.head(x)


def needing_two(net, x):
    """Blocks that report to a list, of which two have to be there: any so many removals fail together."""
    seen = []
    for block in net.blocks:
        out = block(x)
        seen.append(out)
        x = x + out
    return net.head(x + seen[0] * seen[-1])


def many_shapes(net, x):
    """Blocks whose outputs are reshaped by numbers of the forward's own: some removals fail when they run."""
    for block in net.blocks:
        x = x + block(x).view(x.shape[0], -1).flip(1)[:, : x.shape[1]]
    return net.head(torch.cat([x, net.tail(x)], 1)[:, :8])


def widths():
    """A chain of layers of other widths each: projections stand for them, where their readers' weights are plain."""
    sizes = (8, 16, 12, 20, 14, 18, 4)
    layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


NETS = {
    "widths": (widths, lambda: rows(64)),
    "example": (ExampleModel, lambda: torch.randn(2, 3, 16, 16)),
    "stages": (Stages, rows),
    "reporting": (
        lambda: Net(needing_two, blocks=nn.ModuleList(linear() for _ in range(6)), head=linear(8, 4)),
        rows,
    ),
    "shapes": (
        lambda: Net(many_shapes, blocks=nn.ModuleList(linear() for _ in range(6)), tail=linear(), head=linear(8, 4)),
        rows,
    ),
}


def found(name):
    """What is found on a net, without a word of display text."""
    build, inputs = NETS[name]
    torch.manual_seed(0)
    x = inputs()
    pruner = UniversalLayerPruner(randomised(build()), example_inputs=x, calibration=[x, inputs()], projections=True)
    groups = {
        group.name: (group.type, group.verdict, group.reason_code, group.impact, group.num_removed, group.leaves_with)
        for group in pruner.groups
    }
    removals = [(r.kind, r.groups, sorted(r.dead), r.num_params, r.edits, r.impact) for r in pruner.removals]
    plans = [pruner.plan(max_param_reduction=cap) for cap in (0.3,)]
    return groups, removals, [(plan.edits, [r.groups for r in plan.removals]) for plan in plans]


unchanged = cache(found)


def package_modules():
    for module in pkgutil.walk_packages(layerprune.__path__, "layerprune."):
        if not module.name.startswith("layerprune.cli"):
            importlib.import_module(module.name)
    return [module for name, module in sys.modules.items() if name.startswith("layerprune.")]


def renamed(code, words):
    """Code whose functions, and those defined inside, say that they are of another place."""
    inner = tuple(renamed(const, words) if isinstance(const, CodeType) else const for const in code.co_consts)
    return code.replace(co_qualname=f"Other{next(words)}.{code.co_name}", co_consts=inner)


def functions_of(owner):
    for value in vars(owner).values():
        value = value.fget if isinstance(value, property) else value
        value = value.func if isinstance(value, cached_property) else value
        value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if isinstance(value, FunctionType):
            yield value


def rename_everything(put):
    """Give each private class, and each function's code, another name."""
    words, public = count(), {*layerprune.__all__}
    for module in package_modules():
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        for owner in [module, *classes]:
            for function in functions_of(owner):
                if function.__module__ == module.__name__ and sys.version_info >= (3, 11):
                    put(function, "__code__", renamed(function.__code__, words))
        for cls in classes:
            if cls.__name__ not in public and not issubclass(cls, LayerPruneError):
                put(cls, "__qualname__", f"Other{next(words)}")
                put(cls, "__name__", f"Other{next(words)}")


def reword_everything(put):
    """Word messages, reasons, names of removals and prints of edits anew, each time otherwise."""
    words = count(1)

    def worded(*_):
        return f"{next(words)} words, of which {next(words)} say nothing"

    for cls in (Refusal, refusals.ErrorSummary, LayerPruneError, *edit_classes()):
        put(cls, "__str__", worded)
    described, form = LayerGraph.describe, candidates._Finder.candidate
    put(LayerGraph, "describe", lambda graph, values: f"what was {described(graph, values)}")
    put(
        candidates._Finder,
        "candidate",
        lambda finder, kind, cut, name, *subject, **waits: form(finder, kind, cut, worded(), *subject, **waits),
    )
    put(refusals, "short", worded)


def edit_classes():
    return [cls for cls in vars(records).values() if isinstance(cls, type) and issubclass(cls, records._Edit)]


@contextmanager
def patched(change):
    """Make a change inside. Names of types cannot be deleted, as pytest's monkeypatch would."""
    before = []

    def put(owner, name, value):
        before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    try:
        change(put)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("change", [rename_everything, reword_everything])
def test_names_of_classes_and_words_of_messages_change_no_result(name, change):
    before = unchanged(name)
    assert len(before[1]) > 2
    with patched(change):
        after = found(name)
    assert as_data(after) == as_data(before)


def as_data(value):
    """A result without the names of classes and the words of edits."""
    if isinstance(value, records._Edit):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: as_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_data(item) for item in value]
    return repr(value)


def test_every_code_has_a_text_of_its_own_and_tells_layer_and_values():
    assert len({code.value for code in RefusalCode}) == len(RefusalCode.__members__)
    why = Refusal(RefusalCode.FAILS_AS_ANOTHER, "b", why=Refusal(RefusalCode.UNEVEN_GROUPS, "c", num=4))
    other = Refusal(RefusalCode.FAILS_AS_ANOTHER, "b", why=Refusal(RefusalCode.UNEVEN_GROUPS, "c", num=8))
    whose = "'c' is a grouped convolution (4 groups), whose groups would become uneven"
    assert str(why) == f"as with 'b', which is alike: {whose}"
    assert why.name == "uneven_groups"
    assert why.form == other.form
    assert why != other


def test_a_refusal_keeps_no_frames_of_the_error_behind_it():
    try:
        raise ValueError("no such size\nand more")
    except ValueError as error:
        why = Refusal(RefusalCode.FORWARD_FAILS, error=error)
    assert str(why) == "the forward fails without it: ValueError: no such size"
    assert not any(isinstance(value, BaseException) for value in why.values.values())
