"""Lowers a cut of the layer graph to edits of the module tree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from layerprune.channels import ChannelGap, ChannelTrace, FoldTrace, Moved, TrainGraph
from layerprune.edits import Delete, Drop, DropParameter, Edit, Fold, Guard, Pass, Slice, is_under, taken_out
from layerprune.graph import Cut, Frame, LayerGraph, Read, Refusal, RefusalCode
from layerprune.modules import parameters
from layerprune.removals.idle_merges import idle_merges, is_concat, merge_of
from layerprune.removals.rewiring import Rewirer, Rewiring, also_used
from layerprune.stand_ins import kept_members, parts_read
from layerprune.tables import brief, count_text
from layerprune.tensors import OutputTree, StandInLeaf, Structure
from layerprune.torch_internals import children_of, registry_of


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """The edits that carry a cut out.

    Attributes:
        cut: the cut.
        edits: one edit per module or parameter.
        merges: label and call site of each merge that will leave a dropped tensor out, sorted, once per call.
        dead: layers that die.
        params: numbers of the removed parameters.
        leftovers: dead layers that still run, on a dropped tensor or without effect.
        carried: values that then equal a substitute.
        moved: rearrangements of values that lose channels.
        stand_ins: the same edits with stand-ins where ``edits`` shorten containers; empty if none do.
    """

    cut: Cut
    edits: tuple[Edit, ...]
    merges: tuple[tuple[str, str], ...]
    dead: frozenset[int]
    params: frozenset[int]
    leftovers: tuple[int, ...]
    carried: frozenset[int] = frozenset()
    stand_ins: tuple[Edit, ...] = ()
    moved: tuple[Moved, ...] = ()

    def __repr__(self) -> str:
        return brief(self, f"{count_text(len(self.edits), 'edit')}, {count_text(len(self.dead), 'dead layer')}")


def lower_removal(
    graph: LayerGraph, modules: Mapping[str, nn.Module], cut: Cut, companion: TrainGraph | None = None
) -> Lowering:
    """Find the edits that carry a cut out.

    Each substituted value is traced back to its substitute: through dead modules, which then return an argument, and
    through merges, whose other operands are dropped. Other dead modules are replaced, the outermost ones as a whole.
    Readers of concats are sliced, and projections are folded into their readers.

    Args:
        graph: the layer graph.
        modules: the model's modules by name.
        cut: the cut of one removal or of several together.
        companion: the graph of train mode, if it runs more layers than eval mode.

    Raises:
        Refusal: no edits carry the cut out; it says why.
    """
    return _Lowerer(graph, modules, cut, companion).run()


class _Lowerer:
    def __init__(
        self, graph: LayerGraph, modules: Mapping[str, nn.Module], cut: Cut, companion: TrainGraph | None
    ) -> None:
        self.graph = graph
        self.modules = modules
        self.cut = cut
        self.companion = companion
        self.marker = Rewirer(graph, cut)
        self.dead, self.gone, self.dead_params = self.marker.dead, self.marker.gone, self.marker.dead_params

    def run(self) -> Lowering:
        if not self.dead:
            raise Refusal(RefusalCode.NOTHING_DIES)
        marks = self.marks()
        slices, moved, gaps = self.slices()
        outermost = self.outermost_dead()
        edits = [
            *self.module_edits(marks, outermost),
            *self.param_edits(marks, outermost),
            *slices,
            *self.folds(slices, gaps),
        ]
        self.check_params(edits)
        self.check_hooks(edits)
        self.check_hosts(edits)
        leftovers = self.leftovers(edits)
        edits += self.guards(leftovers)
        self.check_shape_reads(edits, leftovers, marks.carried)
        marks.merges += idle_merges(self.graph, edits, leftovers, frozenset(marks.carried))
        return Lowering(
            cut=self.cut,
            edits=tuple(edits),
            merges=tuple(sorted(marks.merges)),
            dead=self.dead,
            params=self.dead_params,
            leftovers=leftovers,
            carried=frozenset(marks.carried),
            moved=moved,
        )

    def marks(self) -> Rewiring:
        marks = Rewiring()
        for y, s in self.cut.substitutes.items():
            found = self.marker.carry(y, s)
            if found is None:
                raise self.marker.stuck(y, s)
            if self.marker.is_written(s, found.carried):
                found.copies |= found.entries
            marks.join(found)
        for merge, value in sorted(self.cut.dropped):
            found = self.marker.token(value, merge_of(self.graph.layers[merge]))
            if found is None:
                raise Refusal(RefusalCode.CANNOT_BE_DROPPED, value=self.graph.describe([value]))
            marks.join(found)
        cut_merges = [self.graph.layers[m] for m in {m for m, _ in self.cut.dropped} - self.dead]
        marks.merges += [(merge_of(layer), layer.site) for layer in cut_merges]
        return marks

    # ---- modules --------------------------------------------------------------------------------------------------

    def outermost_dead(self) -> list[str]:
        found: dict[str, None] = {}
        for index in sorted(self.dead):
            chain: list[Frame] = []
            frame = self.graph.layers[index].frame
            while frame > 0:
                chain.append(self.graph.frames[frame])
                frame = self.graph.frames[frame].parent
            top = next((f.fqn for f in reversed(chain) if self.marker.is_dead(f.fqn)), None)
            if top is not None:
                found[top] = None
        return list(found)

    def module_edits(self, marks: Rewiring, outermost: list[str]) -> list[Edit]:
        edits: list[Edit] = []
        inside_pass = [name for name in marks.passes]
        for name in dict.fromkeys([*marks.passes, *outermost]):
            if name in marks.passes:
                edits.append(self.pass_edit(name, marks.passes[name], name in marks.copies))
            elif not any(p.startswith(name + ".") for p in [*inside_pass, *marks.drops] if p != name):
                kinds = marks.drops.get(name, set())
                edits.append(self.drop_edit(name, kinds, name in marks.copies))
            else:
                edits += self.opened(name, marks)
        return self.one_each([e for e in edits if not any(e.fqn.startswith(name + ".") for name in marks.passes)])

    def one_each(self, edits: list[Edit]) -> list[Edit]:
        """One edit per module, also if it is called under several names."""
        found: dict[str, Edit] = {}
        for edit in edits:
            first = self.graph.aliases_of.get(edit.fqn, ((edit.fqn,),))[0][0]
            known = found.setdefault(first, edit)
            if known is edit:
                continue
            same = edit.model_copy(update={"fqn": known.fqn})
            if isinstance(known, Drop) and isinstance(same, Drop):
                merges = tuple(sorted({*known.merges, *same.merges}))
                known, same = (one.model_copy(update={"merges": merges}) for one in (known, same))
            if same != known:
                raise Refusal(RefusalCode.OTHER_NAME, known.fqn, other=edit.fqn)
            found[first] = known
        return list(found.values())

    def opened(self, name: str, marks: Rewiring) -> list[Edit]:
        """Edits inside a dead module that stays because a module in it is passed or dropped separately."""
        prefix = name + "."
        named = [n for n in [*marks.passes, *marks.drops] if n.startswith(prefix)]
        inside: dict[str, None] = {}
        for fqn in self.graph.calls:
            child = fqn.startswith(prefix) and self.marker.is_dead(fqn)
            if child and not any(n.startswith(fqn + ".") for n in named) and fqn not in marks.passes:
                inside[fqn] = None
        tops = [f for f in inside if not any(f.startswith(o + ".") for o in inside)]
        return [self.drop_edit(f, marks.drops.get(f, set()), f in marks.copies) for f in tops]

    def pass_edit(self, name: str, values: Mapping[int, tuple[int | None, str | None]], copies: bool) -> Edit:
        frames = [self.graph.frames[f] for f in self.graph.calls[name]]
        position, keyword = next(iter(values.values()))
        leaves: dict[int, StandInLeaf] = {
            v: "argument" if way == (position, keyword) else way for v, way in values.items()
        }
        structure = self.same([_output(f, {**self.staying(f), **leaves}) for f in frames], name)
        if structure == "argument" and not copies and self.is_element(name, frames):
            return Delete(fqn=name)
        alone = position == 0 and all(f.arity == 1 for f in frames)
        return Pass(
            fqn=name,
            position=position,
            keyword=None if alone else keyword,
            structure=structure,
            copies=copies,
            others=not alone and keyword is None,  # arguments after *args have no names
            shows=bool(kept_members(self.modules[name])),
        )

    def drop_edit(self, name: str, kinds: set[str], copies: bool) -> Edit:
        frames = [self.graph.frames[f] for f in self.graph.calls[name]]
        structure = self.same([_output(f, self.staying(f)) for f in frames], name)
        return Drop(fqn=name, merges=tuple(sorted(kinds)), structure=structure, copies=copies)

    def staying(self, frame: Frame) -> dict[int, StandInLeaf]:
        """Outputs of a dead call that stay: arguments that it returns, made or replaced outside."""
        found: dict[int, StandInLeaf] = {}
        for value in frame.outputs:
            if self.graph.values[value].layer not in self.gone or self.is_replaced_outside(value, frame):
                ways = [(position, keyword) for position, keyword, v in frame.arguments if v == value]
                if not ways:
                    what = self.graph.describe([value])
                    raise Refusal(RefusalCode.RETURNS_WHAT_STAYS, frame.fqn, value=what)
                found[value] = ways[0]
        return found

    def is_replaced_outside(self, value: int, frame: Frame) -> bool:
        """Whether a call gets a substituted value as an argument, and so returns the substitute."""
        return value in self.cut.substitutes and any(v == value for _, _, v in frame.arguments)

    def same(self, outputs: Sequence[OutputTree[StandInLeaf] | None], name: str) -> Structure:
        """The common output of a module's stand-in at each call."""
        first = outputs[0]
        if first is None or any(output is None for output in outputs):
            results = [self.graph.frames[f].result for f in self.graph.calls[name]]
            opaque = any(result is not None and result.is_opaque for result in results)
            raise Refusal(RefusalCode.RETURNS_AN_OBJECT if opaque else RefusalCode.RETURNS_A_WRITTEN_TENSOR, name)
        if any(output != first for output in outputs):
            raise Refusal(RefusalCode.CALLS_DIFFER, name, num=len(outputs))
        return first.to_json()

    def is_element(self, name: str, frames: list[Frame]) -> bool:
        """Whether only the ``nn.Sequential`` that holds a module calls it."""
        parent, _, key = name.rpartition(".")
        container = self.modules.get(parent)
        return (
            isinstance(container, nn.Sequential)
            and type(container).forward is nn.Sequential.forward
            and key in children_of(container)
            and len(self.graph.aliases_of.get(name, ((name,),))[0]) == 1
            and all(f.parent >= 0 and self.graph.frames[f.parent].fqn == parent and f.arity == 1 for f in frames)
        )

    # ---- parameters, channels, leftovers --------------------------------------------------------------------------

    def param_edits(self, marks: Rewiring, outermost: list[str]) -> list[Edit]:
        """Edits that turn dead parameters of remaining modules into dropped tensors."""
        edits: list[Edit] = []
        inside = self.graph.all_names(outermost)
        done: set[int] = set()
        wanted = {self.graph.param_ids[name]: kinds for name, kinds in marks.params.items()}
        for name, number in self.graph.param_ids.items():
            if number in self.dead_params and number not in done and not is_under(name, inside):
                done.add(number)
                merges = tuple(sorted(wanted.get(number, set())))
                edits.append(DropParameter(fqn=name, merges=merges, copies=name in marks.copies))
        return edits

    def check_params(self, edits: list[Edit]) -> None:
        """Refuse if a parameter that stays lies in a removed module, or a dropped one is tied under two names."""
        removed = self.graph.all_names(taken_out(edits))
        for name, number in self.graph.param_ids.items():
            if number not in self.dead_params and number in self.graph.param_users and is_under(name, removed):
                users = [u for u in self.graph.param_users[number] if u not in self.gone]
                if users and not self.held_elsewhere(number, removed):
                    raise also_used(name, self.graph.layers[users[0]])
        dropped = {self.graph.param_ids[e.fqn] for e in edits if e.kind == "drop_parameter"}
        for number in dropped:
            names = self.names_by_owner(number)
            if len(names) > 1:
                raise Refusal(RefusalCode.PARAMETER_TIED, param=names[0], other=names[1])

    def check_hooks(self, edits: list[Edit]) -> None:
        """Refuse if a removed module has hooks on which other layers depend."""
        taken = set(taken_out(edits))
        for name in self.graph.hooked:
            if taken & set(self.graph.aliases_of.get(name, ((name,),))[0]):
                raise Refusal(RefusalCode.HOOK_GOES_ALONG, name)

    def check_hosts(self, edits: list[Edit]) -> None:
        """Refuse if a method of a remaining module reads removed weights."""
        taken = set(taken_out(edits))
        for name in sorted(taken):
            parent, _, key = name.rpartition(".")
            if any(parent == one or parent.startswith(f"{one}.") for one in taken):
                continue
            held = self.modules[name]
            for method, attribute in sorted(parts_read(type(self.modules[parent])).get(key, ())):
                if attribute in registry_of(held, attribute):
                    read = f"{key}.{attribute}"
                    code = RefusalCode.METHOD_READS_WEIGHT
                    raise Refusal(code, parent or "the model", attribute=read, method=method)

    def names_by_owner(self, number: int) -> list[str]:
        """One name of a parameter for each place that holds it; a shared module is one place."""
        found: dict[tuple[int, str], str] = {}
        for name, other in self.graph.param_ids.items():
            if other == number:
                owner, _, key = name.rpartition(".")
                found.setdefault((id(self.modules[owner]), key), name)
        return list(found.values())

    def held_elsewhere(self, number: int, removed: Collection[str]) -> bool:
        return any(i == number and not is_under(n, removed) for n, i in self.graph.param_ids.items())

    def slices(self) -> tuple[list[Slice], tuple[Moved, ...], Mapping[int, ChannelGap]]:
        kept = [(merge, value) for merge, value in self.cut.dropped if merge not in self.dead]
        cats = [(merge, value) for merge, value in kept if is_concat(self.graph.layers[merge])]
        if not cats:
            return [], (), {}
        trace = ChannelTrace(self.graph, self.modules, self.dead, self.cut.substitutes, self.cut.projected)
        slices = trace.run(cats)
        if self.companion is not None:
            slices += self.companion.slices(self.cut, self.dead, slices)
        return slices, tuple(trace.moved), trace.gaps

    def folds(self, slices: list[Slice], gaps: Mapping[int, ChannelGap]) -> list[Fold]:
        folds = FoldTrace(self.graph, self.modules, self.cut, self.dead, gaps).run()
        for name in {fold.owner for fold in folds} & {edit.fqn for edit in slices}:
            raise Refusal(RefusalCode.FOLDS_AND_LOSES, name)
        return folds

    def leftovers(self, edits: list[Edit]) -> tuple[int, ...]:
        removed = self.graph.all_names(taken_out(edits))
        return tuple(
            i for i in sorted(self.dead)
            if not self.graph.layers[i].param_only and not is_under(self.graph.layers[i].fqn + ".", removed)
        )  # fmt: skip

    def guards(self, leftovers: tuple[int, ...]) -> list[Edit]:
        """Guards for leftover modules of the user's own without parameters, which may read a dropped tensor's shape.

        Most modules of torch pass their argument to functions, which support dropped tensors. A module that reads its
        shape first, as a batch norm does, has parameters, and the proof refuses it.
        """
        calls = [layer for layer in (self.graph.layers[i] for i in leftovers) if layer.is_module and not layer.params]
        names = dict.fromkeys(layer.fqn for layer in calls if not self.marker.is_dead(layer.fqn))
        own = [name for name in names if not type(self.modules[name]).__module__.startswith("torch.nn.")]
        return [Guard(fqn=name) for name in own if not any(True for _ in parameters(self.modules[name]))]

    def check_shape_reads(self, edits: list[Edit], leftovers: tuple[int, ...], carried: set[int]) -> None:
        """Refuse if a remaining forward reads the shape of a dropped tensor."""
        removed = self.graph.all_names(taken_out(edits))
        drops = self.graph.all_names(edit.fqn for edit in edits if edit.kind == "drop")
        tokens = {v for n in drops for f in self.graph.calls.get(n, ()) for v in self.graph.frames[f].outputs}
        params = {e.fqn for e in edits if e.kind == "drop_parameter"}
        for index in leftovers:
            layer = self.graph.layers[index]
            if tokens & self.graph.read_by(index) or params & set(layer.params):
                tokens |= set(layer.outputs) - carried
        for value, frame in self.graph.shape_reads:
            fqn = self.graph.frames[frame].fqn
            if value in tokens and not is_under(fqn + ".", removed):
                raise Refusal(RefusalCode.READS_THE_SHAPE, fqn, value=self.graph.describe([value]))


def _output(frame: Frame, leaves: Mapping[int, StandInLeaf]) -> OutputTree[StandInLeaf] | None:
    """A stand-in's output: ``leaves`` for values, else dropped tensors; None if it cannot be rebuilt."""
    result = frame.result
    if result is None or result.is_opaque or any(len(read) != 1 for read in result.leaves()):
        return None

    def at(read: Read) -> StandInLeaf:
        return leaves.get(read[0], "tensor")

    return result.map(at)
