"""Merges that leave a dropped tensor out, by the layer graph and in a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from layerprune.edits import Drop, Edit, is_under
from layerprune.graph import Layer, LayerGraph, Refusal, RefusalCode
from layerprune.tensors import merge_label, merge_of_label

_WORDS = {"add": "a sum", "mul": "a product", "cat": "a concat", "bypass": "a linear layer or convolution"}


def idle_merges(
    graph: LayerGraph, edits: Sequence[Edit], leftovers: Sequence[int], carried: frozenset[int]
) -> list[tuple[str, str]]:
    """Merges that leave a dropped tensor out although only removed modules read their results.

    A loop that adds a tensor in each step (``z = f(z) + u``) runs such merges, because only the last sum is read.

    Args:
        graph: the layer graph.
        edits: the edits that carry a cut out.
        leftovers: dead layers that still run, in order of execution.
        carried: values that equal a substitute; their merges do not count.

    Returns:
        Label and call site of each.
    """
    kinds = {name: {*edit.merges} for edit in edits if isinstance(edit, Drop) for name in graph.all_names([edit.fqn])}
    dropped = {
        value: kinds[name] for name in kinds for f in graph.calls.get(name, ()) for value in graph.frames[f].outputs
    }
    harmless = _read_by_none(graph, leftovers, kinds)
    found: list[tuple[str, str]] = []
    for index in leftovers:
        layer = graph.layers[index]
        reads = graph.read_by(index)
        tokens = [dropped[value] for value in reads if value in dropped]
        if not tokens or carried & {*layer.outputs}:
            continue
        kind = merge_of(layer)
        if kind and all(kind in some for some in tokens) and len(tokens) < len(reads):
            if index in harmless:
                found.append((kind, layer.site))
            continue
        dropped.update(dict.fromkeys(layer.outputs, tokens[0]))
    return found


def _read_by_none(graph: LayerGraph, leftovers: Sequence[int], gone: Collection[str]) -> set[int]:
    """The layers whose results are read only by removed modules, or by other layers of this set."""
    found: set[int] = set()
    for index in reversed(leftovers):
        made = graph.layers[index].outputs
        readers = [reader for value in made for reader in graph.readers.get(value, ())]
        if {*made}.isdisjoint(graph.outputs) and all(
            reader in found or is_under(graph.layers[reader].fqn + ".", gone) for reader in readers
        ):
            found.add(index)
    return found


def is_concat(layer: Layer) -> bool:
    """Whether a layer is a concat."""
    return merge_of_label(merge_of(layer)) == "cat"


def merge_of(layer: Layer) -> str:
    """The merge label of a layer, as in edits; empty if it is no merge."""
    name = layer.function or (layer.functions[0] if len(layer.functions) == 1 else "")
    return merge_label(name)


def difference(found: Sequence[tuple[str, str]], expected: Sequence[tuple[str, str]]) -> Refusal | None:
    """The first difference between the merges of a run and the expected merges; None if there is none.

    Args:
        found: label and call site of each merge in the run.
        expected: the same by the layer graph; call sites are compared only if all are known.
    """
    places = all(site for _, site in expected)
    one, other = (Counter(pair if places else (pair[0], "") for pair in pairs) for pairs in (found, expected))
    more, fewer = one - other, other - one
    for code, pairs in ((RefusalCode.MEETS_A_MERGE, more), (RefusalCode.MISSES_A_MERGE, fewer)):
        if pairs:
            kind, site = next(iter(pairs))
            name = site.partition(" ")[0]
            where = (f" of '{name}'" if name else " of the model") if places and site else ""
            return Refusal(code, name, where=where, merge=_WORDS[merge_of_label(kind)])
    return None
