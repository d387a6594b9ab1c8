"""Records what each step of a forward computes, of which tensors, under names that edits keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from layerprune.capture import NAMED
from layerprune.modules import CallKey, CallTracker, RunningCall, names_by_module
from layerprune.stand_ins import STAND_INS, DroppedTensor, SkipsDropped
from layerprune.tensors import OutputTree, flat_tensors, form_of, tensors_in, traits_of
from layerprune.torch_internals import num_writes, tensors_of

#: A step: the path of the calls around it from the model downwards, the function's name, and which call of it this is.
Place: TypeAlias = tuple[str, str, int]
#: A tensor's origin: the place that made it and its number among the results, an input, or a parameter's name.
Tag: TypeAlias = tuple[Any, ...]

_OUTSIDE = "outside"
_EARLIER = "earlier"


@dataclass(frozen=True)
class DataflowStep:
    """One function call.

    Attributes:
        operands: origins of the tensors among its arguments, in order.
        literals: its other arguments; tensors are left blank.
        made: origins of the tensors that it returns.
    """

    operands: tuple[Tag, ...]
    literals: Any
    made: tuple[Tag, ...]


@dataclass(kw_only=True)
class Dataflow:
    """Steps and results of one forward.

    Attributes:
        steps: every function call on live tensors, by place.
        returned: origins of the tensors that each module's call returned, by its path.
        data: the tags of tensors that depend on the model's inputs.
        kept: tensors from outside; kept alive because their ids name them.
        tags: the origin of each tensor that is still alive.
    """

    steps: dict[Place, DataflowStep] = field(default_factory=dict[Place, DataflowStep])
    returned: dict[str, tuple[Tag, ...]] = field(default_factory=dict[str, "tuple[Tag, ...]"])
    data: set[Tag] = field(default_factory=set[Tag])
    kept: list[Tensor] = field(default_factory=list[Tensor])
    tags: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary, repr=False)


def is_outside(tag: Tag) -> bool:
    """Whether a tensor existed before the forward, and is neither an input nor a parameter or buffer."""
    return tag[0] in (_OUTSIDE, _EARLIER)


def trace_dataflow(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    run: Callable[[Callable[..., Any], Any, Any], Any],
    *,
    keep: bool,
    before: Dataflow | None = None,
) -> Dataflow:
    """Run a model once and record its dataflow.

    ``run`` runs a function on its arguments. With ``keep``, every tensor stays alive until the end: right for fake
    tensors, too much memory for real ones. ``before`` is the dataflow of the previous call; it gives the origins of
    tensors that the model cached.
    """
    tracer = _FlowTracer(model, run, keep, None if before is None else before.tags)
    for place, tensor in enumerate(tensors_in((args, kwargs))):
        tracer.tags[tensor] = ("input", place)
        tracer.flow.data.add(("input", place))
    with tracer.calls.watching(model, [one for one in model.modules() if not isinstance(one, SkipsDropped)]):
        model(*args, **kwargs)
    return tracer.flow


class _FlowTracer:
    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Callable[..., Any], Any, Any], Any],
        keep: bool,
        earlier: WeakTensorKeyDictionary | None,
    ) -> None:
        self.run = run
        self.keep = keep
        self.earlier = WeakTensorKeyDictionary() if earlier is None else earlier
        self.flow = Dataflow()
        names = names_by_module(model, only_first=True)
        for guard in (module for module in model.modules() if isinstance(module, SkipsDropped)):
            names[id(guard.inner)] = names[id(guard)]
        self.calls = CallTracker(names, self.run_module, self.run_function)
        self.tags = self.flow.tags
        self.alive: list[Tensor] = []
        for name, tensor in _own(model):
            self.tags[tensor] = ("own", name)
        self.paths: dict[RunningCall, str] = {}
        self.stand_ins: set[str] = set()

    def run_module(self, call: RunningCall, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = ""
        if call.parent is not None:
            name = f"/{call.key.fqn}"
            path = f"{self.paths[call.parent]}{name}#{call.parent.num_calls[name]}"
            call.parent.num_calls[name] += 1
        self.paths[call] = path
        if isinstance(call.module, STAND_INS):
            self.stand_ins.add(path)
        out = forward(*args, **kwargs)
        self.flow.returned[path] = tuple(self.tag(tensor) for tensor in leaves(out))
        return out

    def run_function(self, key: CallKey, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        assert self.calls.running is not None
        path, name = self.paths[self.calls.running], key.function
        place = (path, name, key.nth)
        given = flat_tensors((args, kwargs))
        live = [tensor for tensor in given if not isinstance(tensor, DroppedTensor)]
        operands = tuple(self.tag(tensor) for tensor in live)
        literals = form_of((args, kwargs), _literal)
        versions = _versions(live)
        out = self.run(func, args, kwargs)
        made = [tensor for tensor in flat_tensors(out) if not isinstance(tensor, DroppedTensor)]
        joined = bool(operands and made) and traits_of(name).merge == "cat"
        if path in self.stand_ins or (len(live) < len(given) and not joined):
            for tensor in made:  # a stand-in passes on or copies its input, a merge the operand that is left
                if operands and tensor not in self.tags:
                    self.tags[tensor] = operands[0]
                self.alive += [tensor] if self.keep else []
            return out
        is_data = any(tag in self.flow.data for tag in operands)
        is_written = _writes(func) or versions != _versions(live)
        for number, tensor in enumerate(made):
            if tensor not in self.tags or (is_written and tensor is live[0]):
                self.tags[tensor] = tag = (place, number)
                self.flow.data |= {tag} if is_data else set()
            self.alive += [tensor] if self.keep else []
        self.flow.steps[place] = DataflowStep(operands, literals, tuple(self.tag(tensor) for tensor in made))
        return out

    def tag(self, tensor: Tensor) -> Tag:
        found = self.tags.get(tensor)
        if found is None:
            kept = self.earlier.get(tensor)  # cached by the previous call
            self.flow.kept.append(tensor)
            found = self.tags[tensor] = (_OUTSIDE, id(tensor)) if kept is None else (_EARLIER, *kept)
        return found


def leaves(out: Any) -> list[Tensor]:
    """The tensors of an output, in the order in which the layer graph lists them."""
    return list(OutputTree.of(out, lambda tensor: tensor).leaves())


def _own(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, each under its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in model.named_modules():
        for key, tensor in tensors_of(module):
            found.setdefault(id(tensor), (f"{prefix}.{key}", tensor))
    return list(found.values())


def _versions(tensors: Sequence[Tensor]) -> list[int | None]:
    """Number of writes into the first tensor, as a list of at most one."""
    return [None if tensor.is_inference() else num_writes(tensor) for tensor in tensors[:1]]


def _writes(func: Callable[..., Any]) -> bool:
    """Whether a function's name says that it writes into its first argument."""
    name = getattr(func, "__name__", "")
    return name.startswith("__i") or name[-1:] == "_" != name[-2:-1]


def _literal(value: Any) -> str:
    """The text of a number or a name; blank for a tensor and any other value."""
    return repr(value) if isinstance(value, NAMED) else ""
