"""Groups: a lead transform and the layers that depend on it alone, up to the next transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerprune.errors import UnsupportedModelError
from layerprune.graph.layer_graph import LayerGraph
from layerprune.tables import brief, count_text, impact_text

GROUP_TYPES = ("transform_unit", "parallel_branch", "complex")
GroupVerdict = Literal["removable", "with_calibration", "critical"]
_PLAIN_KINDS = frozenset({"transform", "normalization", "activation", "pooling", "dropout"})


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """A layer as the plan shows it.

    Attributes:
        name: the module's dotted name, or the function's place in its module's forward.
        type_name: the module's class, or the function's name.
        kind: kind of the layer; see ``graph/op_kinds``.
        num_params: number of elements of its parameters.
        output_shape: shape of its first output in the recorded forward.
    """

    name: str
    type_name: str
    kind: str
    num_params: int
    output_shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.type_name} ({self.kind})"

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.output_shape)) or "scalar"
        return brief(self, f"{self}, {self.num_params:,} parameters, to {shape}")


@dataclass(frozen=True, kw_only=True)
class Group:
    """A lead transform and the layers that depend on it alone.

    Attributes:
        lead_transform: the transform that leads it.
        layers: its members in order of execution, the lead first; a module called several times is listed per call.
        type: ``transform_unit`` (transform, then normalization, activation, pooling or dropout only, on the trunk),
            ``parallel_branch`` (on one of several paths that fork from one tensor and meet in a merge), or ``complex``.
        num_params: number of elements of its members' parameters, each once; more may leave: see ``num_removed``.
        can_remove: whether a proven removal takes it out now, with the data given.
        needs_calibration: whether it leaves by projections only, which have to be fitted on calibration data.
        reason: why it cannot be removed, what data its removal needs, or which groups leave with it.
        reason_code: a stable code of the reason: ``parameter_tied``, ``needs_calibration``, or another name of
            ``graph/refusals.RefusalCode`` in lower case. Empty without a reason.
        impact: the least impact of a removal that takes it out; infinite where there is none, ``nan`` where it is not
            known, as without the calibration data that it needs.
        num_removed: number of parameters that the model loses in the removal of least impact, with sliced channels of
            readers and other layers that leave; 0 where there is no removal.
        leaves_with: names of the other groups that this removal takes out.
        members: its layers' numbers in the layer graph.
        calls: numbers of the lead's layers, one for each call.
    """

    lead_transform: LayerInfo
    layers: tuple[LayerInfo, ...]
    type: str
    num_params: int
    members: tuple[int, ...]
    calls: tuple[int, ...]
    can_remove: bool = False
    reason: str = ""
    reason_code: str = ""
    impact: float = float("inf")
    needs_calibration: bool = False
    num_removed: int = 0
    leaves_with: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The lead transform's name."""
        return self.lead_transform.name

    @property
    def verdict(self) -> GroupVerdict:
        """``removable`` now, ``with_calibration`` data only, or ``critical``."""
        if self.can_remove:
            return "removable"
        return "with_calibration" if self.needs_calibration else "critical"

    def __repr__(self) -> str:
        size = f"{count_text(len(self.layers), 'layer')}, {self.num_params:,} parameters"
        return brief(self, f"{self.name}: {size}, {self.verdict}, impact {impact_text(self.impact)}")


def form_groups(graph: LayerGraph) -> tuple[Group, ...]:
    """Form the groups of a layer graph, in order of execution.

    Every group starts with a transform; a layer that is no transform joins a group when all layers that it depends on
    are in it; no group spans two transforms. Raises :class:`UnsupportedModelError` where no transform lies between the
    model's inputs and its outputs.
    """
    owner: dict[int, str] = {}
    members: dict[str, list[int]] = {}
    for layer in graph.layers:
        if layer.index not in graph.live or layer.param_only:
            continue
        if layer.kind == "transform":
            lead = lead_name(graph, layer.index)
        else:
            sources = {s for s in graph.sources(layer.index) if s < 0 or not graph.layers[s].param_only}
            owners = {owner.get(s) for s in sources}
            lead = owners.pop() if len(owners) == 1 else None
        if lead is not None:
            owner[layer.index] = lead
            members.setdefault(lead, []).append(layer.index)
    if not members:
        lost = "".join(f" ({note})" for note in graph.notes if "a dependency may be missing" in note)
        raise UnsupportedModelError(
            f"the model has no transform (Conv, Linear, …) between input and output: there is nothing to remove{lost}"
        )
    return tuple(_make_group(graph, lead, layers) for lead, layers in members.items())


def lead_name(graph: LayerGraph, index: int) -> str:
    """Name the group that a transform leads: its module, or for a function the module that owns its matrix.

    Where that module only holds parameters of several functions (a ``ParameterList``), the matrix gives the name.
    """
    layer = graph.layers[index]
    if layer.is_module:
        return layer.fqn
    owners = {_owner(name) for name in layer.params}
    owner = owners.pop() if len(owners) == 1 else ""
    called = owner in graph.calls and any(
        graph.layers[i].fqn == owner for f in graph.calls[owner] for i in graph.layers_inside[f]
    )
    if not owner or owner == layer.fqn or called:
        return layer.name.partition("#")[0]
    beside = [name for name in graph.param_ids if _owner(name) == owner and name not in layer.params]
    users = {user for name in beside for user in graph.param_users.get(graph.param_ids[name], ())}
    others = any(user != index and graph.layers[user].kind == "transform" for user in users)
    return max(layer.params, key=lambda name: graph.param_sizes[name]) if others else owner


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def layer_info(graph: LayerGraph, index: int, name: str | None = None) -> LayerInfo:
    """Describe a layer for the plan."""
    layer = graph.layers[index]
    sizes = {graph.param_ids[p]: graph.param_sizes[p] for p in layer.params}
    shape = graph.values[layer.outputs[0]].shape if layer.outputs else ()
    return LayerInfo(
        name=name or layer.name,
        type_name=layer.type_name,
        kind=layer.kind,
        num_params=sum(sizes.values()),
        output_shape=shape,
    )


def _make_group(graph: LayerGraph, lead: str, members: list[int]) -> Group:
    calls = tuple(i for i in members if graph.layers[i].kind == "transform")
    first = layer_info(graph, calls[0], lead)
    others = tuple(layer_info(graph, i) for i in members if i != calls[0])
    params = {graph.param_ids[p]: graph.param_sizes[p] for i in members for p in graph.layers[i].params}
    return Group(
        lead_transform=first,
        layers=(first, *others),
        type=_type_of(graph, members, calls),
        num_params=sum(params.values()),
        members=tuple(members),
        calls=calls,
    )


def _type_of(graph: LayerGraph, members: list[int], calls: tuple[int, ...]) -> str:
    trunk = frozenset(graph.trunk)
    if all(i in trunk for i in calls):
        plain = all(graph.layers[i].kind in _PLAIN_KINDS for i in members)
        return "transform_unit" if plain and len(calls) == 1 else "complex"
    meets = graph.post_dominator.get(members[-1], "out")
    while meets != "out" and not _is_merge(graph, int(meets)) and meets not in trunk:
        meets = graph.post_dominator.get(meets, "out")
    return "parallel_branch" if len(calls) == 1 and meets != "out" and _is_merge(graph, int(meets)) else "complex"


def _is_merge(graph: LayerGraph, index: int) -> bool:
    """Whether several paths meet in a layer."""
    layer = graph.layers[index]
    return layer.kind in ("merge", "attention") or len(layer.operands) > 1
