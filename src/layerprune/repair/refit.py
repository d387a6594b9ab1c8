"""Refit: the surviving transforms solved again, front to back, so that what they feed is what it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from layerprune.calibration import Batch
from layerprune.repair.report import Refitted
from layerprune.repair.sites import Site
from layerprune.repair.solving import Change, Solver
from layerprune.repair.walk import Side, Walk
from layerprune.shadow import Shadow, real_shadow

_SHARE_HELD_OUT = 0.25


class Refitter:
    """Solves the transforms of a pruned model again, on a copy of these.

    Args:
        original: the original.
        pruned: the pruned model; it is not touched.
        batches: calibration data.
        memory_bytes: what solving one site may take, and as much again the batches that wait on their way.

    Attributes:
        refused: sites that could not be solved again, and why.
        notes: what the user should know.
    """

    def __init__(self, original: Side, pruned: Side, batches: Sequence[Batch], memory_bytes: int) -> None:
        self.original = original
        self.pruned = pruned
        self.batches = batches
        self.memory_bytes = memory_bytes
        self.refused: dict[str, str] = {}
        self.notes: list[str] = []

    @property
    def held_out(self) -> list[Batch]:
        """The batches that strengths are chosen on: the last quarter, or the only one, of which it is a quarter."""
        return list(self.batches[-max(1, round(len(self.batches) * _SHARE_HELD_OUT)) :])

    def run(self, sites: Sequence[Site]) -> tuple[list[Refitted], Shadow]:
        """Solve those sites again that the removals have moved, each on what those before it have become.

        Returns:
            What was done, and a shadow of the pruned model with the new weights.

        Raises:
            CalibrationError: a batch does not run, or makes values that are not finite.
        """
        weights = {f"{site.name}.{key}" for site in sites for key in ("weight", "bias")}
        repaired = real_shadow(self.pruned.model, written=weights | self.pruned.graph.written_params)
        num, num_held_out = len(self.batches), len(self.held_out)
        solver = Solver(self.pruned.shade.model, num, num - num_held_out, _SHARE_HELD_OUT, self.memory_bytes)
        done: list[Refitted] = []
        unseen = {site.name for site in sites}
        walk = Walk(self.original, self.pruned, repaired, self.batches, sites, self.memory_bytes)
        with walk.running():
            for stop, some in walk.stops():
                shown = walk.views(stop, some)
                for site in some:
                    views = shown[site.name]
                    unseen -= {site.name} if views else set()
                    if not views or not solver.is_moved(site, views):
                        continue
                    reason = solver.why_not(site)
                    if reason:
                        self.refused[site.name] = reason
                        continue
                    told, change = solver.solve(site, views, self.notes)
                    done.append(told)
                    if change is not None:
                        _put(change, repaired.model)
                        for view in views:
                            change.make(view)
        self.refused |= dict.fromkeys(sorted(unseen), "what it reads or feeds is not seen in a run")
        return done, repaired


def _put(change: Change, model: nn.Module) -> None:
    """Write new weights into a shadow."""
    held = model.get_submodule(change.site.name)._parameters
    with torch.no_grad():
        for key, value in (("weight", change.weight), ("bias", change.bias)):
            old = held.get(key)
            if old is not None and value is not None:
                old.copy_(value)
