"""Chooses the layers that are solved before they run, so that the forwards continue with the new weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layerprune.graph import LayerGraph
from layerprune.repair.sites.sites import Site


def solved_ahead(sites: Sequence[Site], graph: LayerGraph, fits: Callable[[Site], bool]) -> frozenset[str]:
    """Name the transforms that can be solved as soon as their input is there.

    The tensor of such a transform depends on its input alone: nothing is added to it, and the sums of inputs replace
    its old output. No other tensor may be corrected between its input and its call: otherwise forwards of the original
    would run far ahead and hold all tensors in between.

    ``fits`` tells whether a transform's weights can be found by the sums of its inputs. Other transforms are solved
    when the tensor that they feed is there.
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
    """The value at which forwards wait for a transform: its input, or the tensor that it feeds."""
    return site.source if site.name in ahead else site.reached
