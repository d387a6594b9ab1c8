"""Combines several removals into one set of edits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from layerprune.edits import Edit, Shorten, Slice, joined, ranges
from layerprune.graph import Cut, LayerGraph, Refusal, RefusalCode
from layerprune.removals.lowering import Lowering


def side_by_side(graph: LayerGraph, lowerings: Sequence[Lowering]) -> Lowering:
    """Combine removals that do not interfere, each carried out as if alone."""
    dead = frozenset(layer for r in lowerings for layer in r.dead)
    concats = {merge for r in lowerings for merge, _ in r.cut.dropped} - dead
    others = [merge for r in lowerings for merge in r.merges if merge[0] != "cat"]
    shortened = any(r.stand_ins for r in lowerings)
    return Lowering(
        cut=join_cuts([(r.cut, r.dead) for r in lowerings], graph),
        edits=_joined_edits(edit for r in lowerings for edit in r.edits),
        merges=tuple(sorted([*others, *(("cat", graph.layers[merge].site) for merge in concats)])),
        dead=dead,
        params=frozenset(param for r in lowerings for param in r.params),
        leftovers=(),
        moved=tuple(moved for r in lowerings for moved in r.moved),
        stand_ins=_joined_edits(e for r in lowerings for e in r.stand_ins or r.edits) if shortened else (),
    )


def _joined_edits(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    listed = list(edits)
    once = {(e.kind, e.fqn): e for e in listed if not isinstance(e, (Slice, Shorten))}.values()
    slices = _joined_slices([edit for edit in listed if isinstance(edit, Slice)])
    return (*once, *slices, *joined(edit for edit in listed if isinstance(edit, Shorten)))


def _joined_slices(slices: Sequence[Slice]) -> list[Slice]:
    """One slice per module, of all channels that it loses."""
    gone: dict[tuple[str, str], set[int]] = {}
    for edit in slices:
        gone.setdefault((edit.fqn, edit.side), set()).update(
            i for first, last in edit.dropped for i in range(first, last)
        )
    sides = {(edit.fqn, edit.side): edit for edit in slices}
    if len({fqn for fqn, _ in sides}) < len(sides):
        raise Refusal(RefusalCode.INPUTS_AND_GROUPS)
    return [edit.model_copy(update={"dropped": ranges(gone[key])}) for key, edit in sides.items()]


def join_cuts(cuts: Sequence[tuple[Cut, frozenset[int]]], graph: LayerGraph) -> Cut:
    """Join cuts into one, without parts that die by another cut.

    Args:
        cuts: each cut with the layers that die by it.
        graph: the layer graph.

    Raises:
        Refusal: two cuts replace a tensor by different substitutes, or a concat loses all operands.
    """
    substitutes: dict[int, int] = {}
    dropped: set[tuple[int, int]] = set()
    projected: set[int] = set()
    for number, (cut, _) in enumerate(cuts):
        others: set[int] = set()
        for other, (_, dead) in enumerate(cuts):
            if other != number:
                others |= dead
        for y, s in cut.substitutes.items():
            if graph.values[y].layer in others and all(reader in others for reader in graph.readers.get(y, (-1,))):
                continue
            if substitutes.get(y, s) != s:
                raise Refusal(RefusalCode.TWO_SUBSTITUTES, value=graph.describe([y]))
            substitutes[y] = s
            projected |= {y} & cut.projected
        dropped |= {(merge, value) for merge, value in cut.dropped if merge not in others}
    for merge in {m for m, _ in dropped}:
        if {(v,) for m, v in dropped if m == merge} >= set(graph.layers[merge].operands):
            raise Refusal(RefusalCode.NOTHING_LEFT_TO_JOIN, graph.layers[merge].name)
    return Cut(substitutes, frozenset(dropped), frozenset(projected))
