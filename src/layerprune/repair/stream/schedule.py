"""Which layers are solved before they run, so that the forwards go on with the new weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layerprune.graph import LayerGraph
from layerprune.repair.sites.sites import Site


def solved_ahead(sites: Sequence[Site], graph: LayerGraph, fits: Callable[[Site], bool]) -> frozenset[str]:
    """Tell which transforms can be solved as soon as what they read is there.

    That are those whose tensor follows from what they read alone: nothing is added to it, and what it was before new
    weights need not be known, as the sums of what they read tell. Between what they read and their call no other tensor
    may be mended: forwards of the original would run far ahead, and hold all that they make on the way.

    Args:
        sites: the transforms.
        graph: the pruned model's layer graph.
        fits: tells of a transform whether its weights can be found by the sums of its inputs.

    Returns:
        Their names; the others are solved when the tensor that they feed is there.
    """
    ahead = {site.name for site in sites if site.is_alone and fits(site)}
    while True:
        stops = {stop_of(site, ahead) for site in sites}
        layers = {graph.values[stop].layer for stop in stops}
        late = {
            site.name
            for site in sites
            if site.name in ahead and any(graph.values[site.source].layer < layer < site.layer for layer in layers)
        }
        if not late:
            return frozenset(ahead)
        ahead -= late


def stop_of(site: Site, ahead: frozenset[str] | set[str]) -> int:
    """The value at which forwards wait for a transform to be solved: what it reads, or what it feeds."""
    return site.source if site.name in ahead else site.reached
