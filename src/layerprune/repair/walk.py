"""The walk: both models side by side on all batches, from one tensor that can be mended to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.calibration import Batch
from layerprune.errors import CalibrationError
from layerprune.graph import Frame, LayerGraph
from layerprune.holding import Holding
from layerprune.repair.lanes import Lane, closing
from layerprune.repair.prefix import hand
from layerprune.repair.sites import Site
from layerprune.repair.transforms import single
from layerprune.shadow import Shadow, real_shadow, short

#: Threads that may exist at once: each lane has one, and torch gives it helpers of its own.
MOST_THREADS = 512


@dataclass(eq=False)
class Side:
    """One of the two models that are held against each other.

    Attributes:
        model: the user's model; it is not touched.
        shade: a real shadow of it.
        graph: its layer graph.
        num_forwards: forwards so far, those cut short included.
        recorded: the number of the batch that it was recorded on.
        held: what that forward has shown.
    """

    model: nn.Module
    shade: Shadow
    graph: LayerGraph
    num_forwards: int = 0
    recorded: int = 0
    held: Holding = field(default_factory=lambda: Holding(0))

    def lane(
        self,
        batch: Batch,
        values: Iterable[int],
        shade: Shadow | None = None,
        *,
        to_end: bool = False,
        passes: Callable[[int, Tensor], bool] | None = None,
    ) -> Lane:
        """A forward that stops at some values; on a shadow of its own if None is given."""
        self.num_forwards += 1
        return Lane(shade or self.shadow(), self.graph, frozenset(values), batch.inputs, to_end=to_end, passes=passes)

    def shadow(self) -> Shadow:
        """Another shadow of the model."""
        return real_shadow(self.model, written=self.graph.written_params)

    def known(self, number: int, values: Collection[int]) -> dict[int, Tensor]:
        """What is known of some values in a batch without another forward."""
        held = self.held.tensors if number == self.recorded else {}
        return {value: held[value] for value in values if value in held}

    def output(self, number: int) -> Any:
        """What the model returns of a batch, if that is known without another forward; else None."""
        return self.held.output if number == self.recorded else None

    @cached_property
    def overwritten(self) -> frozenset[int]:
        """The storages that some layer writes into."""
        return frozenset(storage for layer in self.graph.layers for storage in layer.writes)

    def kept(self, value: int, tensor: Tensor) -> Tensor:
        """A tensor that stays what it is, whatever later layers write into it."""
        tensor = tensor.detach()
        return tensor.clone() if self.graph.values[value].storage in self.overwritten else tensor

    def next(self, lane: Lane, number: int) -> tuple[int, Tensor] | None:
        """What a lane comes to next.

        Raises:
            CalibrationError: the forward raises.
        """
        with self._telling(number):
            return lane.next()

    def finish(self, lane: Lane, number: int) -> None:
        """Run a lane on to the end of the forward.

        Raises:
            CalibrationError: the forward raises.
        """
        with self._telling(number):
            lane.finish()

    @contextmanager
    def _telling(self, number: int) -> Generator[None]:
        try:
            yield
        except Exception as error:  # the user's own forward
            raise CalibrationError(
                f"{type(self.model).__name__}.forward raised on batch {number} of the calibration data: {short(error)}"
            ) from error

    @property
    def live_bytes(self) -> int:
        """What a forward of the recorded inputs holds at most of values that are still to be read."""
        last: dict[int, int] = {}
        size: dict[int, int] = {}
        made: dict[int, int] = {}
        for value in self.graph.values.values():
            if value.index not in self.graph.readers:
                continue  # within a layer, or handed out
            reader = max(self.graph.readers[value.index])
            last[value.storage] = max(last.get(value.storage, -1), reader)
            made[value.storage] = min(made.get(value.storage, value.layer), value.layer)
            num_bytes = torch.Size(value.shape).numel() * value.dtype.itemsize
            size[value.storage] = max(size.get(value.storage, 0), num_bytes)
        steps = [0] * (len(self.graph.layers) + 3)
        for storage, num_bytes in size.items():
            steps[made[storage] + 1] += num_bytes
            steps[last[storage] + 2] -= num_bytes
        most = now = 0
        for step in steps:
            now += step
            most = max(most, now)
        return most


@dataclass(frozen=True, eq=False)
class View:
    """What one batch shows of a site.

    Attributes:
        number: of the batch.
        read: what the transform reads in the pruned model, repaired so far.
        found: what it feeds there; what is written into it is what the rest of the forward reads.
        wanted: what that is in the original.
        mask: ``(sample, token)``, 1 where a token counts.
        inner: what the normalization reads that the transform's result passes; None where it passes none.
    """

    number: int
    read: Tensor
    found: Tensor
    wanted: Tensor
    mask: Tensor | None
    inner: Tensor | None = None

    @property
    def missing(self) -> Tensor:
        """What the tensor should change by, in float32 or wider."""
        dtype = single(self.found)
        return self.wanted.to(self.found.device, dtype) - self.found.to(dtype)


def needs(site: Site) -> tuple[int, ...]:
    """The values of the pruned model that solving a site takes, besides the one that it reaches."""
    return (site.source,) if site.passed is None else (site.source, site.passed.inner)


def knows_order(site: Site, view: View) -> bool:
    """Whether it is known for tensors of a batch's size what becomes of the order of their elements."""
    if site.passed is None or view.inner is None:
        return site.moves is None or site.moves.fits(view.found.shape)
    behind = site.passed.moves
    before = site.moves is None or site.moves.fits(view.inner.shape)
    return before and (behind is None or behind.fits(view.found.shape))


class Walk:
    """Goes with all batches through both models.

    Args:
        original: the original.
        pruned: the pruned model.
        repaired: a shadow of it with the weights that were found so far.
        batches: calibration data.
        sites: of the pruned model.
        memory_bytes: what the tensors of the batches that wait may take. Where they do not fit, the last batches start
            anew for each tensor.
        first_judged: the number of the first of the batches, the last ones, of which outputs are asked for in the end.
        prefix: calls whose results are handed on from the original to the pruned model.
    """

    def __init__(
        self,
        original: Side,
        pruned: Side,
        repaired: Shadow,
        batches: Sequence[Batch],
        sites: Sequence[Site],
        memory_bytes: int,
        first_judged: int,
        prefix: Sequence[Frame] = (),
    ) -> None:
        self.original = original
        self.prefix = prefix
        self.pruned = pruned
        self.first_judged = first_judged
        self.repaired = repaired
        self.batches = batches
        self.routed: set[str] = set()
        self.resized: set[str] = set()
        self.sites_at: dict[int, list[Site]] = {}
        for site in sites:
            self.sites_at.setdefault(site.reached, []).append(site)
        self.num_waiting = self._num_waiting(memory_bytes)
        self.uses = Counter(value for site in sites for value in needs(site))
        self.targets = Counter(site.target for site in sites)
        self.waiting = [_Waiting(self, number) for number in range(self.num_waiting)]

    def _num_waiting(self, memory_bytes: int) -> int:
        """How many of the batches can wait side by side; one at the least."""
        recorded = max(_num_elements(self.batches[self.original.recorded]), 1)
        each = (self.original.live_bytes + self.pruned.live_bytes) / recorded
        sizes = torch.tensor([max(_num_elements(batch), 1) * each for batch in self.batches]).cumsum(0)
        num_threads = max(1, MOST_THREADS // (2 * torch.get_num_threads()))
        return max(1, min(num_threads, int((sizes <= memory_bytes - self.original.held.num_bytes).sum())))

    @contextmanager
    def running(self) -> Generator[None]:
        """Walk inside: whatever happens, no forward is left waiting, and the RNG and torch's switches are as before."""
        lanes = [lane for pair in self.waiting for lane in (pair.original, pair.pruned) if lane is not None]
        with self.original.shade.running(), closing(lanes):
            yield

    def stops(self) -> Generator[tuple[int, list[Site]]]:
        """Go on to each tensor that can be mended, as the forward comes to it.

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
        """Look at some sites no more: no forward stops for them any longer."""
        for site in list(sites):
            self.uses.subtract(needs(site))
            self.targets.subtract([site.target])
            self.sites_at[site.reached].remove(site)
            if not self.sites_at[site.reached]:
                del self.sites_at[site.reached]

    def behind(self, stop: int) -> list[Site]:
        """The sites that are still to come behind a tensor."""
        return [site for value, some in self.sites_at.items() if value != stop for site in some]

    def views(self, stop: int, sites: Sequence[Site]) -> dict[str, list[View]]:
        """What each batch shows of sites that feed the same tensor, by the sites' names.

        Nothing of a site that gets another number of rows than in the original: then values decide which rows it gets.
        Nor of one of whose tensor it is not known where its elements come from in a batch of that size.
        """
        found: dict[str, list[View]] = {site.name: [] for site in sites}
        for number, batch in enumerate(self.batches):
            if number < self.num_waiting:
                made, reads, wanted = self.waiting[number].seen(stop, sites)
            else:
                made, reads, wanted = self._anew(number, stop, sites)
            for site in sites if made is not None else ():
                if all(value in reads for value in needs(site)) and site.target in wanted and made is not None:
                    inner = None if site.passed is None else reads[site.passed.inner]
                    view = View(number, reads[site.source], made, wanted[site.target], batch.mask, inner)
                    if made.shape != view.wanted.shape:
                        self.routed.add(site.name)
                    elif not knows_order(site, view):
                        self.resized.add(site.name)
                    else:
                        found[site.name].append(view)
        out = self.routed | self.resized
        return {name: [] if name in out else views for name, views in found.items()}

    def ends(self, number: int) -> bool:
        """Whether a batch's forward through the pruned model goes on to its end, mended on its way."""
        return self.first_judged <= number < self.num_waiting

    def outputs(self) -> dict[int, tuple[Any, Any]]:
        """What the original returns of each batch that is to be judged, and the pruned model, mended on its way.

        None for either where no forward of it waits.
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
        """The same from the start of the forward."""
        values = {stop, *(value for site in sites for value in needs(site))}
        reads = self._collected(self.pruned, number, values, self.repaired)
        targets = {site.target for site in sites}
        wanted = self.original.known(number, targets)
        if left := targets - wanted.keys():
            wanted |= self._collected(self.original, number, left, self.original.shade)
        return reads.get(stop), reads, wanted

    def _collected(self, side: Side, number: int, values: set[int], shade: Shadow) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        lane = side.lane(self.batches[number], values, shade)
        with closing([lane]):
            while (one := side.next(lane, number)) is not None:
                found[one[0]] = one[1].detach().clone()  # a later layer may write into it
        return found


class _Waiting:
    """One batch on its way through both models."""

    def __init__(self, walk: Walk, number: int) -> None:
        self.walk = walk
        self.number = number
        sites = [site for some in walk.sites_at.values() for site in some]
        batch = walk.batches[number]
        self.targets = {site.target for site in sites}
        self.wanted = walk.original.known(number, self.targets)
        handed = {value for frame in walk.prefix for value in frame.outputs}
        self.handed = walk.original.known(number, handed)
        self.original = self._lane(batch, handed - self.handed.keys())
        values = {value for site in sites for value in (site.reached, *needs(site))}
        shade = walk.pruned.shadow()
        hand(shade.model, walk.pruned.graph, walk.prefix, self.handed)
        self.pruned = walk.pruned.lane(batch, values, shade, to_end=walk.ends(number), passes=self._passes)
        self.reads: dict[int, Tensor] = {}
        self.at: tuple[int, Tensor] | None = None
        self.has_begun = False

    def _lane(self, batch: Batch, handed: set[int]) -> Lane | None:
        """The original's forward, or None where its recording stands for it."""
        original = self.walk.original
        left = self.targets - self.wanted.keys()
        to_end = self.number >= self.walk.first_judged and original.output(self.number) is None
        if not left and not to_end:
            original.num_forwards += 1
            return None

        def passes(value: int, tensor: Tensor) -> bool:
            if value in handed:
                self.handed[value] = original.kept(value, tensor)
            return value not in left or not self.walk.targets[value]

        return original.lane(batch, left | handed, to_end=to_end, passes=passes)

    def stop(self) -> int | None:
        """Run on to the next tensor that is not mended yet; None at the end."""
        if not self.has_begun:
            self.has_begun = True
            if self.walk.prefix:  # the original goes ahead, so that there is something to hand on
                self._want()
        if self.at is None:
            self.at = self.walk.pruned.next(self.pruned, self.number)
        return None if self.at is None else self.at[0]

    def _want(self) -> bool:
        """Go on to the next tensor of the original that is asked for; whether there was one."""
        found = None if self.original is None else self.walk.original.next(self.original, self.number)
        if found is not None:
            self.wanted[found[0]] = self.walk.original.kept(*found)
        return found is not None

    def _passes(self, value: int, tensor: Tensor) -> bool:
        """Whether to go by a tensor that is not to be mended; it is kept where a transform reads it."""
        if value in self.walk.sites_at:
            return False
        self._keep(value, tensor)
        return True

    def _keep(self, value: int, tensor: Tensor) -> None:
        if self.walk.uses[value] > 0:
            self.reads[value] = self.walk.pruned.kept(value, tensor)

    def leave(self, stop: int) -> None:
        """Go on from a tensor, and forget what is not needed any more."""
        if self.at is not None and self.at[0] == stop:
            self._keep(*self.at)
            self.at = None
        self.handed.clear()
        self.reads = {value: tensor for value, tensor in self.reads.items() if self.walk.uses[value] > 0}

    def seen(self, stop: int, sites: Sequence[Site]) -> tuple[Tensor | None, dict[int, Tensor], dict[int, Tensor]]:
        """What is there of a tensor, what the transforms that feed it read, and what it was in the original."""
        if self.at is None or self.at[0] != stop:
            return None, {}, {}
        targets = {site.target for site in sites}
        while not targets <= self.wanted.keys() and self._want():
            pass
        wanted = {value: self.wanted[value] for value in targets & self.wanted.keys()}
        later = {site.target for value, some in self.walk.sites_at.items() if value != stop for site in some}
        self.wanted = {value: tensor for value, tensor in self.wanted.items() if value in later}
        return self.at[1], self.reads, wanted


def _num_elements(batch: Batch) -> int:
    return sum(tensor.numel() for tensor in batch.inputs.tensors())
