"""Checks that a model with shorter containers calls the same functions as a model with stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from layerprune.capture import NAMED, FunctionShapeCache, Sandbox, ShapeCache
from layerprune.edits import Edit
from layerprune.errors import LayerPruneError
from layerprune.graph import Refusal, RefusalCode
from layerprune.inputs import Inputs
from layerprune.modules import FunctionWatch
from layerprune.removals import Lowering
from layerprune.stand_ins import DroppedTensor
from layerprune.surgery import applied
from layerprune.tensors import form_of, tensors_by_place, tensors_in
from layerprune.torch_internals import children_of, tensors_of

#: One function call: its name and its arguments. Tensors are named by their origin.
TraceStep = tuple[Any, ...]

_OWN = frozenset({*vars(nn.Module()), "forward"})


class Tracer:
    """Records the functions that forwards call; equal traces compute the same.

    Parameters and buffers of ``model``, in its first form, are named by identity.
    """

    def __init__(self, model: nn.Module, functions: FunctionShapeCache | None = None) -> None:
        self.own = {id(t): t for module in model.modules() for _, t in tensors_of(module)}
        self.numbers = {key: place for place, key in enumerate(self.own)}
        self.made = WeakTensorKeyDictionary()
        self.kept: list[Tensor] = []
        self.steps: list[TraceStep] = []
        self.inside = False
        self.result = _run if functions is None else functions.result

    def trace(self, forward: Callable[[], Any], inputs: Any, *, keep: bool) -> list[TraceStep]:
        """Run a forward once and return its steps, the last of them its result.

        With ``keep``, every tensor stays alive: right for fake tensors, too much memory for real ones.
        """
        self.steps, self.made, self.kept = [], WeakTensorKeyDictionary(), []
        for place, tensor in enumerate(tensors_in(inputs)):
            self.made[tensor] = ("input", place)
        with FunctionWatch(lambda name, func, args, kwargs: self.call(name, func, args, kwargs, keep)):
            out = forward()
        self.steps.append(("result", *(self.origin(tensor) for tensor in tensors_by_place(out))))
        return self.steps

    def call(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any, keep: bool) -> Any:
        if self.inside:
            return func(*args, **kwargs)
        self.inside = True
        try:
            step = (name, form_of((args, kwargs), self.described))
            out = self.result(func, args, kwargs)
        finally:
            self.inside = False
        if any(isinstance(tensor, DroppedTensor) for tensor in tensors_in((args, kwargs))):
            return out  # no computation: the merge passes its other operand on
        self.steps.append(step)
        for place, tensor in enumerate(tensors_in(out)):
            if id(tensor) not in self.own:
                self.made[tensor] = (len(self.steps), place)
            if keep:
                self.kept.append(tensor)
        return out

    def leaf(
        self,
        settled: Collection[int],
        module: nn.Module,
        x: Tensor,
        recall: Callable[..., Any],
        run: Callable[..., Any],
    ) -> Any:
        """Record a layer's call as one step, where the layer's attributes are equal in the compared forms."""
        if self.inside or id(module) not in settled:
            return run(x)
        self.inside = True
        try:
            step = ("layer", id(module), self.origin(x))
            out = recall(x)
        finally:
            self.inside = False
        self.steps.append(step)
        for place, tensor in enumerate(tensors_in(out)):
            self.made[tensor] = (len(self.steps), place)
            self.kept.append(tensor)
        return out

    def described(self, value: Any) -> Hashable:
        """A tensor's origin, a number itself, the type of any other value."""
        if isinstance(value, Tensor):
            return self.origin(value)
        return repr(value) if isinstance(value, NAMED) or value is Ellipsis else type(value).__name__

    def origin(self, tensor: Tensor) -> Any:
        if isinstance(tensor, DroppedTensor):
            return "dropped"
        if id(tensor) in self.own:
            return ("own", self.numbers[id(tensor)])
        return self.made.get(tensor, ("new", tuple(tensor.shape), str(tensor.dtype)))


def _run(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def held_by_leaves(model: nn.Module) -> dict[int, dict[str, Any]]:
    """Plain attributes of the leaf modules; leaves with other attributes than plain values are left out."""
    leaves = {id(module): vars(module) for module in model.modules() if not children_of(module)}
    return {
        key: {name: value for name, value in held.items() if name not in _OWN}
        for key, held in leaves.items()
        if all(name in _OWN or isinstance(value, NAMED) for name, value in held.items())
    }


def first_difference(one: Sequence[TraceStep], other: Sequence[TraceStep]) -> str:
    """Describe where two traces first differ; empty where they are equal."""
    if list(one) == list(other):
        return ""
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return str(one[place][0]) if place < len(one) else str(other[place][0])


class TraceEquivalence:
    """Compares two forms of a sandbox step by step; ``memo`` is None where it runs on real tensors."""

    def __init__(self, shade: Sandbox, inputs: Inputs, memo: ShapeCache | None) -> None:
        self.shade = shade
        self.inputs = inputs
        self.memo = memo
        self.tracer = Tracer(shade.model, None if memo is None else memo.functions)

    def check(self, joint: Lowering) -> None:
        """Check that no result depends on the places of layers, which edits change and stand-ins keep.

        Raises:
            Refusal: a result depends on them; the message names the function.
        """
        forms = (joint.stand_ins, joint.edits)
        held = [self.held(edits) for edits in forms]
        settled = {key for key, values in held[0].items() if held[1].get(key) == values}
        steps = [self.steps(edits, settled) for edits in forms]
        where = first_difference(*steps)
        if where:
            raise Refusal(RefusalCode.PLACES_COUNT, step=where)

    def held(self, edits: Sequence[Edit]) -> dict[int, dict[str, object]]:
        with applied(self.shade.model, edits):
            return held_by_leaves(self.shade.model)

    def steps(self, edits: Sequence[Edit], settled: Collection[int]) -> list[TraceStep]:
        """Trace the edited sandbox; settled layers answer from the shape cache."""
        inputs, model = self.shade.renew(self.inputs), self.shade.model
        if self.memo is not None:
            self.memo.observer = partial(self.tracer.leaf, settled)
        try:
            with applied(model, edits), self.shade.running():
                forward = partial(model, *inputs.args, **inputs.kwargs)
                return self.tracer.trace(forward, (inputs.args, inputs.kwargs), keep=self.memo is not None)
        except (Refusal, LayerPruneError):
            raise
        except Exception as error:  # user code in an edited model may raise any exception
            raise Refusal(RefusalCode.FORWARD_FAILS, error=error) from error
        finally:
            if self.memo is not None:
                self.memo.observer = None
