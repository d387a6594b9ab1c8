"""Rewiring: values that modules and parameters must return so that a cut holds in a forward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from layerprune.graph import Cut, Frame, Layer, LayerGraph, Refusal, RefusalCode
from layerprune.tensors import merge_label, traits_of


@dataclass(kw_only=True)
class Rewiring:
    """Changes that a cut needs of modules and parameters.

    Attributes:
        passes: module → value → (position, keyword) of the argument that it returns as this value.
        drops: module → labels of the merges that leave its output out.
        params: parameter → labels of the merges that leave it out.
        entries: modules and parameters that return the substitute itself.
        copies: the entries that must return a copy.
        merges: label and call site of each merge that will leave an operand out, once per call.
        carried: values that will equal a substitute, and so stay real tensors.
    """

    passes: dict[str, dict[int, tuple[int | None, str | None]]] = field(
        default_factory=dict[str, "dict[int, tuple[int | None, str | None]]"]
    )
    drops: dict[str, set[str]] = field(default_factory=dict[str, "set[str]"])
    params: dict[str, set[str]] = field(default_factory=dict[str, "set[str]"])
    entries: set[str] = field(default_factory=set[str])
    copies: set[str] = field(default_factory=set[str])
    merges: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    carried: set[int] = field(default_factory=set[int])

    def join(self, other: Rewiring) -> None:
        for name, values in other.passes.items():
            self.passes.setdefault(name, {}).update(values)
        for name, kinds in other.drops.items():
            self.drops.setdefault(name, set()).update(kinds)
        for name, kinds in other.params.items():
            self.params.setdefault(name, set()).update(kinds)
        self.entries |= other.entries
        self.copies |= other.copies
        self.merges += other.merges
        self.carried |= other.carried


class Rewirer:
    """Finds the rewiring of one cut."""

    def __init__(self, graph: LayerGraph, cut: Cut) -> None:
        self.graph = graph
        self.cut = cut
        self.dead = graph.dead(cut)
        self.gone = self.dead | (frozenset(range(len(graph.layers))) - graph.live)
        self.dead_params = graph.dead_params(self.dead)
        self._dead_modules: dict[str, bool] = {}
        self._stuck: set[tuple[int, int]] = set()

    # ---- carrying a substitute to its readers ---------------------------------------------------------------------

    def carry(self, value: int, substitute: int) -> Rewiring | None:
        """Rewiring that makes ``value`` equal ``substitute`` in a forward; None if there is none."""
        if value == substitute:
            return Rewiring()
        index = self.graph.values[value].layer
        if index not in self.dead or (value, substitute) in self._stuck:
            return None
        marks = self.carry_through_module(value, substitute)
        if marks is None:
            marks = self.carry_through_function(self.graph.layers[index], value, substitute)
        if marks is None:
            self._stuck.add((value, substitute))
        else:
            marks.carried.add(value)
        return marks

    def carry_through_module(self, value: int, substitute: int) -> Rewiring | None:
        """Rewiring of the outermost dead module that returns the value and can return the substitute instead."""
        for frame in self.frames_returning(value):
            for position, keyword, argument in frame.arguments:
                marks = self.carry(argument, substitute)
                if marks is not None:
                    marks.passes.setdefault(frame.fqn, {})[value] = (position, keyword)
                    marks.entries |= {frame.fqn} if argument == substitute else set()
                    return marks
        return None

    def carry_through_function(self, layer: Layer, value: int, substitute: int) -> Rewiring | None:
        name = self.function_of(layer)
        kind, label = traits_of(name).merge, merge_label(name)
        if kind in ("add", "mul") and len(layer.operands) > 1:  # a Python number cannot be dropped
            for operand in layer.operands:
                if len(operand) != 1 or (traits_of(name).is_left_only and layer.operands[0] != operand):
                    continue
                marks = self.carry(operand[0], substitute)
                dropped = None if marks is None else self.drop_others(layer, operand[0], label)
                if marks is not None and dropped is not None:
                    marks.join(dropped)
                    marks.merges.append((label, layer.site))
                    if operand[0] == substitute:
                        marks.entries |= set(dropped.drops) | set(dropped.params)
                    return marks
        if kind == "bypass" and layer.operands and len(layer.operands[0]) == 1:
            marks = self.carry(layer.operands[0][0], substitute)
            names = self.owned(layer)
            if marks is not None and names:
                for name in names:
                    marks.params.setdefault(name, set()).add("bypass")
                if layer.operands[0] == (substitute,):
                    marks.entries |= set(names)
                marks.merges.append(("bypass", layer.site))
                return marks
        return None

    def drop_others(self, layer: Layer, kept: int, kind: str) -> Rewiring | None:
        """Rewiring that drops every operand of a merge except one, which must occur once."""
        if layer.operands.count((kept,)) > 1:
            return None
        marks = Rewiring()
        for read in layer.operands:
            if read == (kept,):
                continue
            found = (
                self.token(read[0], kind) if len(read) == 1 else self.params_token(layer, kind) if not read else None
            )
            if found is None:
                return None
            marks.join(found)
        return marks

    def stuck(self, value: int, substitute: int) -> Refusal:
        between = self.between(value)
        layer = self.graph.layers[self.graph.values[between].layer]
        what = {"value": self.graph.describe([substitute]), "read": self.graph.describe([value])}
        if layer.index not in self.dead:
            return Refusal(RefusalCode.LAYER_NEEDED, layer.name, **what, between=self.graph.describe([between]))
        if layer.is_module:
            parts = self.reads_parts(layer, between)
            code = RefusalCode.LAYER_READS_A_PART if parts else RefusalCode.LAYER_READS_MORE
            return Refusal(code, layer.name, **what)
        return Refusal(RefusalCode.FUNCTION_IN_BETWEEN, layer.fqn, **what, function=layer.function)

    def reads_parts(self, layer: Layer, value: int) -> bool:
        """Whether a call that makes a value reads a field or an element of one of its arguments."""
        given = {
            v for frame in self.frames_returning(value) for _, _, v in frame.arguments
        } | self.graph.implicit_inputs
        return any(len(read) == 1 and read[0] not in given for read in layer.operands)

    def between(self, value: int) -> int:
        """The nearest value at or before this one that no module makes of a single argument."""
        for frame in self.frames_returning(value):
            if len(frame.arguments) == 1 and frame.arguments[0][2] != value:
                return self.between(frame.arguments[0][2])
        return value

    # ---- dropping a value -----------------------------------------------------------------------------------------

    def token(self, value: int, kind: str) -> Rewiring | None:
        """Rewiring that makes ``value`` a dropped tensor for merges of ``kind``; None if there is none."""
        index = self.graph.values[value].layer
        if index not in self.dead or value in self.cut.substitutes:  # a substituted value has readers
            return None
        frames = self.frames_returning(value)
        if frames:
            marks = Rewiring()
            marks.drops[frames[0].fqn] = {kind}
            return marks
        layer = self.graph.layers[index]
        if merge_label(self.function_of(layer)) == kind and len(layer.operands) > 1:
            return self.drop_all(layer, kind)  # so that a merge in the dead branch does not return a live operand
        for read in layer.operands:
            if len(read) == 1 and (marks := self.token(read[0], kind)) is not None:
                return marks
        return self.params_token(layer, kind)

    def drop_all(self, layer: Layer, kind: str) -> Rewiring | None:
        marks = Rewiring()
        for read in layer.operands:
            found = (
                self.token(read[0], kind) if len(read) == 1 else self.params_token(layer, kind) if not read else None
            )
            if found is None:
                return None
            marks.join(found)
        return marks

    def params_token(self, layer: Layer, kind: str) -> Rewiring | None:
        """Drop all parameters of a function if they are dead; its result is then dropped, too."""
        names = self.owned(layer)
        if not names:
            return None
        marks = Rewiring()
        for name in names:
            marks.params[name] = {kind}
        return marks

    def owned(self, layer: Layer) -> list[str]:
        """Parameters of a function layer, if all are dead."""
        if layer.is_module:
            return []
        names = list(layer.params)
        return names if names and all(self.graph.param_ids[n] in self.dead_params for n in names) else []

    # ---- which modules are dead -----------------------------------------------------------------------------------

    def frames_returning(self, value: int) -> list[Frame]:
        """Dead calls that return a value, outermost first."""
        found: list[Frame] = []
        for index in self.graph.results_of.get(value, ()):
            frame = self.graph.frames[index]
            made_inside = self.graph.values[value].layer in self.graph.layers_inside[index]
            if frame.parent >= 0 and made_inside and self.is_dead(frame.fqn):
                found.append(frame)
        return found

    def is_dead(self, fqn: str) -> bool:
        """Whether a module runs, and all layers of all its calls are dead."""
        known = self._dead_modules.get(fqn)
        if known is None:
            layers = [
                i
                for name in self.names_of(fqn)
                for f in self.graph.calls.get(name, ())
                for i in self.graph.layers_inside[f]
            ]
            known = any(i in self.dead for i in layers) and all(i in self.gone for i in layers)
            self._dead_modules[fqn] = known
        return known

    def names_of(self, fqn: str) -> Iterable[str]:
        for names in self.graph.aliases_of.get(fqn, ((fqn,),)):
            yield from names

    def is_written(self, substitute: int, carried: set[int]) -> bool:
        """Whether a layer that still runs writes in place into a substitute or a value that becomes its alias.

        Aliases would change each other, and tensors saved by autograd. Layers whose results are not read count, too.
        """
        made = {v: self.graph.values[v].layer for v in (substitute, *carried)}
        storages = {v: self.graph.values[v].storage for v in made}
        running = (layer for layer in self.graph.layers if layer.writes and layer.index not in self.dead)
        return any(layer.index > made[v] and storages[v] in layer.writes for layer in running for v in made)

    def function_of(self, layer: Layer) -> str:
        """The function of a layer; for a leaf module, the only one that it calls."""
        if layer.function is not None:
            return layer.function
        return layer.functions[0] if len(set(layer.functions)) == 1 and len(layer.functions) == 1 else ""


def also_used(param: str, user: Layer) -> Refusal:
    """The reason that a remaining layer uses a parameter, maybe in another call of the module that owns it."""
    owner = param.rpartition(".")[0]
    if user.is_module and user.fqn == owner:
        return Refusal(RefusalCode.PARAMETER_OF_A_CALLED_MODULE, owner, param=param, user=user.name)
    return Refusal(RefusalCode.PARAMETER_USED, user.name, param=param)
