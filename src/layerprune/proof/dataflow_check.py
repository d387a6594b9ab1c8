"""Checks that the edited model computes the same steps of the same tensors at every call.

Layers may get tensors and numbers without any call passing them on: from a list, a context or a hook that layers write
to, or from a sequence of which each layer takes the next item. A removed layer shifts the items of all later layers;
shapes and types do not show this. So each step of the edited forward is compared with the layer graph of the whole
model. The forward runs twice, because an item that the first call takes is missing in the second.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from layerprune.capture import Sandbox, ShapeCache
from layerprune.edits import Fold, Slice, taken_out
from layerprune.errors import LayerPruneError
from layerprune.graph import Cut, LayerGraph, Refusal, RefusalCode
from layerprune.inputs import Inputs
from layerprune.modules import names_by_module
from layerprune.proof.dataflow import Dataflow, DataflowStep, Place, Tag, is_outside, trace_dataflow
from layerprune.removals import Lowering, is_concat
from layerprune.surgery import applied
from layerprune.torch_internals import has_hooks

_CALLS = 2
_OUTPUT: Place = ("", "return", 0)


class DataflowCheck:
    """Compares the forward of an edited sandbox with the layer graph.

    Attributes:
        is_wanted: whether layers exchange tensors outside of calls.
        memo: shape cache of functions on fake tensors; None where the sandbox runs on real tensors.
    """

    def __init__(self, shade: Sandbox, graph: LayerGraph, inputs: Inputs) -> None:
        self.shade = shade
        self.graph = graph
        self.inputs = inputs
        self.memo: ShapeCache | None = None
        self.is_wanted = bool(graph.implicit_inputs) or graph.writes_arguments or _reports(shade)

    def check(self, joint: Lowering) -> None:
        """Check that the remaining layers compute the same steps as in the whole model.

        Raises:
            Refusal: a step differs, or reads another tensor; the message names it.
        """
        if not self.is_wanted:
            return
        whole, expected = self.whole, _Expected(self, joint)
        try:
            with applied(self.shade.model, joint.stand_ins or joint.edits):
                flows = self.flows()
        except (Refusal, LayerPruneError):
            raise
        except Exception as error:  # user code in an edited model may raise any exception
            raise Refusal(RefusalCode.SECOND_CALL_FAILS, error=error) from error
        for before, after in zip(whole, flows, strict=True):
            expected.compare(before, after)

    @cached_property
    def whole(self) -> Sequence[Dataflow]:
        """Dataflows of the untouched model, one per call."""
        return self.flows()

    @cached_property
    def drawn(self) -> frozenset[Place]:
        """Steps whose literals are drawn at random: these differ between runs and are not compared."""
        (other,) = self.flows(1, seed=12345)
        steps = self.whole[0].steps
        return frozenset(
            place for place, step in other.steps.items() if steps.get(place, step).literals != step.literals
        )

    def flows(self, calls: int = _CALLS, seed: int | None = None) -> list[Dataflow]:
        """Run the sandbox in its present state; state is not restored between the calls."""
        model, keep = self.shade.model, self.memo is not None
        run = _run if self.memo is None else self.memo.functions.result
        if self.memo is not None:
            self.memo.observer = lambda module, x, recall, forward: forward(x)  # steps inside layers are compared, too
        try:
            with self.shade.running():
                if seed is not None:
                    random.seed(seed)
                    np.random.seed(seed)
                    torch.manual_seed(seed)
                found: list[Dataflow] = []
                for _ in range(calls):
                    given = self.shade.renew(self.inputs)
                    before = found[-1] if found else None
                    found.append(trace_dataflow(model, given.args, given.kwargs, run, keep=keep, before=before))
                return found
        finally:
            if self.memo is not None:
                self.memo.observer = None

    @cached_property
    def paths(self) -> Sequence[str]:
        first = {name: names[0] for names in names_by_module(self.shade.model).values() for name in names}
        counts: Counter[tuple[int, str]] = Counter()
        found: list[str] = []
        for frame in self.graph.frames:
            if frame.parent < 0:
                found.append("")
                continue
            name = first[frame.fqn]
            found.append(f"{found[frame.parent]}/{name}#{counts[frame.parent, name]}")
            counts[frame.parent, name] += 1
        return found

    @cached_property
    def layers(self) -> Mapping[Place, int]:
        """Place → layer. A module's call has its path and no function: all steps inside belong to it."""
        found: dict[Place, int] = {}
        for layer in self.graph.layers:
            function = layer.function or ""
            if layer.is_module or layer.nth >= 0:
                found[self.paths[layer.frame], function, layer.nth] = layer.index
        return found

    def layer_at(self, place: Place) -> int | None:
        """The layer that contains a step."""
        path = place[0]
        while path:
            if (found := self.layers.get((path, "", 0))) is not None:
                return found
            path = path.rpartition("/")[0]
        return self.layers.get(place)

    @cached_property
    def tags(self) -> Mapping[int, Tag]:
        """Value → its origin in the untouched model."""
        flow, graph = self.whole[0], self.graph
        found: dict[int, Tag] = {value: ("input", place) for place, value in enumerate(graph.inputs)}
        for frame in graph.frames:
            returned = flow.returned.get(self.paths[frame.index], ())
            if len(returned) == len(frame.outputs):
                for value, tag in zip(frame.outputs, returned, strict=True):
                    found.setdefault(value, tag)
        for place, index in self.layers.items():
            step, layer = flow.steps.get(place), graph.layers[index]
            if step is None:
                continue
            if len(step.made) == len(layer.results):
                found.update((value, tag) for value, tag in zip(layer.results, step.made, strict=True) if value >= 0)
            for value in layer.outputs:
                if step.operands:  # an in-place function
                    found.setdefault(value, step.operands[0])
        return found


class _Expected:
    """The steps that the untouched model's dataflow and a lowering predict for the edited model."""

    def __init__(self, check: DataflowCheck, joint: Lowering) -> None:
        self.owner = check
        self.graph = check.graph
        self.joint = joint
        self.gone = joint.dead | (frozenset(range(len(self.graph.layers))) - self.graph.live)
        self.resized = any(isinstance(edit, (Slice, Fold)) for edit in joint.edits)
        self.out = tuple(f"/{name}#" for name in self.graph.all_names(taken_out(joint.edits)))
        self.replaced = self.replacements(joint.cut)
        self.dropped: dict[int, set[Tag]] = {}
        for merge, value in joint.cut.dropped:
            if value in check.tags:
                self.dropped.setdefault(merge, set()).add(check.tags[value])

    def replacements(self, cut: Cut) -> Mapping[Tag, frozenset[Tag]]:
        """Tag → the tags that replace it, where values are substituted."""
        tags = self.owner.tags
        found: dict[Tag, frozenset[Tag]] = {}
        for y in cut.substitutes:
            s = y
            while s in cut.substitutes:
                s = cut.substitutes[s]
            if y not in tags or s not in tags:
                raise Refusal(RefusalCode.READ_BY_CALLS_ONLY, value=self.graph.describe([y]))
            found[tags[y]] = found.get(tags[y], frozenset()) | {tags[s]}
        for value, tag in tags.items():
            read = any(reader not in self.gone for reader in self.graph.readers.get(value, ()))
            if tag in found and value not in cut.substitutes and (read or value in self.graph.outputs):
                found[tag] |= {tag}  # the graph knows one tensor object as two values
        for tag, some in found.items():  # a replacement may be replaced itself
            stack = list(some)
            while stack:
                further = found.get(stack.pop(), frozenset()) - found[tag]
                found[tag] |= further
                stack += further
        return found

    def compare(self, before: Dataflow, after: Dataflow) -> None:
        """Compare the edited model's dataflow with the untouched model's in the same call."""
        for place, step in before.steps.items():
            index = self.owner.layer_at(place)
            if index is None or index in self.gone:
                continue
            found = after.steps.get(place)
            if found is not None:
                self.compare_steps(place, index, (before, step), (after, found))
            elif any(tag in before.data for tag in step.operands) and not is_concat(self.graph.layers[index]):
                raise Refusal(RefusalCode.NO_LONGER_RUNS, self.graph.layers[index].name)
        for place, step in after.steps.items():
            is_new = place not in before.steps and any(tag in after.data for tag in step.operands)
            if is_new and not any(name in place[0] for name in self.out):
                raise Refusal(RefusalCode.CALLS_ANEW, place[0], step=place[1])
        self.compare_outputs((before, before.returned.get("", ())), (after, after.returned.get("", ())))

    def compare_steps(
        self, place: Place, index: int, before: tuple[Dataflow, DataflowStep], after: tuple[Dataflow, DataflowStep]
    ) -> None:
        dropped = self.dropped.get(index, ())
        wanted = [tag for tag in before[1].operands if tag not in dropped]
        name = self.graph.layers[index].name
        if len(wanted) != len(after[1].operands) or not all(
            self.fits(tag, before[0], found, after[0]) for tag, found in zip(wanted, after[1].operands, strict=True)
        ):
            raise Refusal(RefusalCode.READS_ANOTHER, name)
        if not self.resized and before[1].literals != after[1].literals and place not in self.owner.drawn:
            raise Refusal(RefusalCode.OTHER_NUMBERS, name)

    def compare_outputs(self, before: tuple[Dataflow, Sequence[Tag]], after: tuple[Dataflow, Sequence[Tag]]) -> None:
        same = len(before[1]) == len(after[1])
        if not same or not all(
            self.fits(tag, before[0], found, after[0]) for tag, found in zip(before[1], after[1], strict=True)
        ):
            raise Refusal(RefusalCode.RETURNS_ANOTHER)

    def fits(self, wanted: Tag, before: Dataflow, found: Tag, after: Dataflow) -> bool:
        """Whether a tensor has the expected origin; a tensor that depends on no input may be cached or computed."""
        if is_outside(wanted) != is_outside(found):
            return not (wanted in before.data or found in after.data)
        return found in self.replaced.get(wanted, (wanted,))


def _reports(shade: Sandbox) -> bool:
    """Whether a forward has hooks, takes items of sequences or changes objects outside its modules."""
    hooked = any(has_hooks(one) for one in shade.model.modules())
    return hooked or (shade.outside is not None and (shade.outside.has_sequences or shade.outside.has_changed))


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)
