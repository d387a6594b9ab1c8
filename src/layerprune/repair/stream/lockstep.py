"""Runs both models in lockstep and pauses at each tensor that can be corrected."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from layerprune.capture import Batch, Sandbox, real_sandbox
from layerprune.repair.sites.sites import Site
from layerprune.repair.stream.model_run import ModelRun
from layerprune.repair.stream.schedule import stop_of
from layerprune.repair.stream.site_batch import SiteBatch, knows_order, needs
from layerprune.repair.stream.suspended_forward import SuspendedForward, closing

#: Threads that may exist at once: each suspended forward has one, and torch starts more for it.
MOST_THREADS = 512


class Lockstep:
    """Runs both models in lockstep on all batches.

    The tensors of the waiting batches take at most ``memory_bytes``; the batches that do not fit restart for each
    tensor. ``repaired`` is a sandbox of the pruned model with the weights found so far. From batch ``first_judged`` on
    outputs are kept. The transforms named in ``ahead`` are solved before they run.
    """

    def __init__(
        self,
        original: ModelRun,
        pruned: ModelRun,
        repaired: Sandbox,
        batches: Sequence[Batch],
        sites: Sequence[Site],
        memory_bytes: int,
        first_judged: int,
        ahead: frozenset[str] = frozenset(),
    ) -> None:
        self.original = original
        self.pruned = pruned
        self.first_judged = first_judged
        self.repaired = repaired
        self.batches = batches
        self.routed: set[str] = set()
        self.resized: set[str] = set()
        self.sites_at: dict[int, list[Site]] = {}
        self.ahead = ahead
        for site in sites:
            self.sites_at.setdefault(stop_of(site, ahead), []).append(site)
        self.last_targets = {max(site.target for site in some) for some in self.sites_at.values()}
        self.num_waiting = self._num_waiting(memory_bytes)
        self.uses = Counter(value for site in sites for value in needs(site))
        self.targets = Counter(site.target for site in sites)
        self.waiting = [_Waiting(self, number) for number in range(self.num_waiting)]

    def _num_waiting(self, memory_bytes: int) -> int:
        recorded = max(_num_elements(self.batches[self.original.recorded]), 1)
        asked = [sum(self.original.num_bytes(site.target) for site in some) for some in self.sites_at.values()]
        each = (self.original.live_bytes + self.pruned.live_bytes + max(asked, default=0)) / recorded
        sizes = torch.tensor([max(_num_elements(batch), 1) * each for batch in self.batches]).cumsum(0)
        num_threads = max(1, MOST_THREADS // (2 * torch.get_num_threads()))
        return max(1, min(num_threads, int((sizes <= memory_bytes - self.original.held.num_bytes).sum())))

    @contextmanager
    def running(self) -> Generator[None]:
        """Run the forwards inside: afterwards no forward waits, and the RNG and torch's switches are as before."""
        suspended_forwards = [
            lane for pair in self.waiting for lane in (pair.original, pair.pruned) if lane is not None
        ]
        with ExitStack() as stack:
            stack.enter_context(self.original.shade.running())
            stack.enter_context(closing(suspended_forwards))
            yield

    def stops(self) -> Generator[tuple[int, list[Site]]]:
        """Advance to each tensor that can be corrected, in the order of the forward.

        Yields:
            The value, and the sites that feed it.
        """
        order = {value: self.pruned.graph.values[value].layer for value in self.sites_at}
        while True:
            at = [stop for pair in self.waiting if (stop := pair.stop()) is not None]
            if not at:
                return
            stop = min(at, key=order.__getitem__)
            if stop in self.sites_at:
                yield stop, self.sites_at[stop]
                self.leave_out(self.sites_at[stop])
            for pair in self.waiting:
                pair.leave(stop)

    def leave_out(self, sites: Iterable[Site]) -> None:
        """Skip some sites: no forward stops for them any more."""
        for site in list(sites):
            self.uses.subtract(needs(site))
            self.targets.subtract([site.target])
            stop = stop_of(site, self.ahead)
            self.sites_at[stop].remove(site)
            if not self.sites_at[stop]:
                del self.sites_at[stop]

    def behind(self, stop: int) -> list[Site]:
        return [site for value, some in self.sites_at.items() if value != stop for site in some]

    def views(self, stop: int, sites: Sequence[Site]) -> dict[str, list[SiteBatch]]:
        """The tensors of sites that feed the same tensor, by site name and batch.

        Empty for a site with another number of rows than in the original, as values then decide which rows it gets; and
        for a site whose order of elements is not known for the size of a batch.
        """
        found: dict[str, list[SiteBatch]] = {site.name: [] for site in sites}
        for number, batch in enumerate(self.batches):
            if number < self.num_waiting:
                made, reads, wanted = self.waiting[number].seen(stop, sites)
            else:
                made, reads, wanted = self._anew(number, stop, sites)
            for site in sites if made is not None else ():
                if all(value in reads for value in needs(site)) and site.target in wanted:
                    inner = None if site.passed is None else reads[site.passed.inner]
                    found_there = None if site.name in self.ahead else made
                    view = SiteBatch(
                        number=number,
                        read=reads[site.source],
                        found=found_there,
                        wanted=wanted[site.target],
                        mask=batch.mask,
                        inner=inner,
                    )
                    if not self._is_alike(site, view):
                        self.routed.add(site.name)
                    elif not knows_order(site, view):
                        self.resized.add(site.name)
                    else:
                        found[site.name].append(view)
        out = self.routed | self.resized
        return {name: [] if name in out else views for name, views in found.items()}

    def _is_alike(self, site: Site, view: SiteBatch) -> bool:
        if view.found is not None:
            return view.found.shape == view.wanted.shape
        read, reached = (math.prod(self.pruned.graph.values[v].shape) for v in (site.source, site.reached))
        return view.read.numel() * reached == view.wanted.numel() * read

    def why_not_seen(self, name: str) -> str:
        if name in self.routed:
            return "what it feeds holds other rows than in the original, as values decide"
        if name in self.resized:
            return "where the elements of its result go is known for batches of the first one's size only"
        return "what it reads or feeds is not seen in a run"

    def ends(self, number: int) -> bool:
        """Whether the corrected forward of a batch through the pruned model runs to its end."""
        return self.first_judged <= number < self.num_waiting

    def outputs(self) -> dict[int, tuple[Any, Any]]:
        """Number of each judged batch → the outputs of the original and of the pruned model's corrected forward.

        None for a model without a waiting forward.
        """
        found: dict[int, tuple[Any, Any]] = {}
        for number in range(self.first_judged, len(self.batches)):
            pair = self.waiting[number] if number < self.num_waiting else None
            original = None if pair is None else pair.original
            if original is not None:
                self.original.finish(original, number)
            if pair is not None:
                self.pruned.finish(pair.pruned, number)
            before = self.original.output(number) if original is None else original.output
            found[number] = before, None if pair is None else pair.pruned.output
        return found

    def _anew(
        self, number: int, stop: int, sites: Sequence[Site]
    ) -> tuple[Tensor | None, dict[int, Tensor], dict[int, Tensor]]:
        """The tensors of a stop from a forward that starts again."""
        values = {stop, *(value for site in sites for value in needs(site))}
        reads = self._collected(self.pruned, number, values, self.repaired)
        targets = {site.target for site in sites}
        wanted = self.original.known(number, targets)
        if left := targets - wanted.keys():
            wanted |= self._collected(self.original, number, left, self.original.shade)
        return reads.get(stop), reads, wanted

    def _collected(self, side: ModelRun, number: int, values: set[int], shade: Sandbox) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        lane = side.lane(self.batches[number], values, shade)
        with closing([lane]):
            while (one := side.next(lane, number)) is not None:
                found[one[0]] = one[1].detach().clone()  # a later layer may write into it
        return found


class _Waiting:
    """The two suspended forwards of one batch."""

    def __init__(self, walk: Lockstep, number: int) -> None:
        self.walk = walk
        self.number = number
        sites = [site for some in walk.sites_at.values() for site in some]
        batch = walk.batches[number]
        self.targets = {site.target for site in sites}
        self.wanted = walk.original.known(number, self.targets)
        self.original = self._lane(batch)
        values = {value for site in sites for value in (stop_of(site, walk.ahead), *needs(site))}
        shade = real_sandbox(walk.repaired.model, written=walk.pruned.graph.written_params)
        self.pruned = walk.pruned.lane(batch, values, shade, to_end=walk.ends(number), passes=self._passes)
        self.reads: dict[int, Tensor] = {}
        self.at: tuple[int, Tensor] | None = None

    def _lane(self, batch: Batch) -> SuspendedForward | None:
        """The original's forward, or None where its recording holds all tensors."""
        original = self.walk.original
        left = self.targets - self.wanted.keys()
        to_end = self.number >= self.walk.first_judged and original.output(self.number) is None
        if not left and not to_end:
            original.num_forwards += 1
            return None

        def passes(value: int, tensor: Tensor) -> bool:
            if value in left and self.walk.targets[value] and value not in self.walk.last_targets:
                self.wanted[value] = original.kept(value, tensor)  # a later tensor of the same stop is still to come
                return True
            return value not in left or not self.walk.targets[value]

        return original.lane(batch, left, to_end=to_end, passes=passes)

    def stop(self) -> int | None:
        """Run on to the next tensor that is not corrected yet; None at the end."""
        if self.at is None:
            self.at = self.walk.pruned.next(self.pruned, self.number)
        return None if self.at is None else self.at[0]

    def _want(self) -> bool:
        """Run the original on to its next target; returns whether there was one."""
        found = None if self.original is None else self.walk.original.next(self.original, self.number)
        if found is not None:
            self.wanted[found[0]] = self.walk.original.kept(*found)
        return found is not None

    def _passes(self, value: int, tensor: Tensor) -> bool:
        """Whether to pass a tensor without stopping; it is kept where a transform reads it."""
        if value in self.walk.sites_at:
            return False
        self._keep(value, tensor)
        return True

    def _keep(self, value: int, tensor: Tensor) -> None:
        if self.walk.uses[value] > 0:
            self.reads[value] = self.walk.pruned.kept(value, tensor)

    def leave(self, stop: int) -> None:
        """Leave a stop, and drop the tensors that are not needed any more."""
        if self.at is not None and self.at[0] == stop:
            self._keep(*self.at)
            self.at = None
        self.reads = {value: tensor for value, tensor in self.reads.items() if self.walk.uses[value] > 0}

    def seen(self, stop: int, sites: Sequence[Site]) -> tuple[Tensor | None, dict[int, Tensor], dict[int, Tensor]]:
        """The tensor at a stop, the inputs of the transforms that feed it, and the targets in the original."""
        if self.at is None or self.at[0] != stop:
            return None, {}, {}
        targets = {site.target for site in sites}
        while not targets <= self.wanted.keys() and self._want():
            pass
        wanted = {value: self.wanted[value] for value in targets & self.wanted.keys()}
        later = {site.target for value, some in self.walk.sites_at.items() if value != stop for site in some}
        self.wanted = {value: tensor for value, tensor in self.wanted.items() if value in later}
        return self.at[1], {**self.reads, stop: self.at[1]}, wanted


def _num_elements(batch: Batch) -> int:
    return sum(tensor.numel() for tensor in batch.inputs.tensors())
