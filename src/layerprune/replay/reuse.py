"""Reuses the original's stored outputs where an edited model runs the same calls.

An edited model's forward repeats all layers before the edits. A module call need not run again if it gets the same bits
as in the original's forward, and no edit has changed its modules. This holds for calls without side effects that return
a tree of tensors. Each call is checked while the original runs: it must not write into its arguments, and its output
must not be written into later. The forward must leave the modules and the random number generators unchanged, or whole
forwards run. Calls also run if they take or return other objects (caches), use memory without version counters, or
contain a module with hooks.

Values in globals, and writes that bypass the version counters, stay invisible. So a model is trusted only after a test:
forwards of the unedited model from several stored outputs, and one of an edited model, must give the same bits as whole
forwards, and all stored outputs must be unchanged.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerprune.capture import Sandbox
from layerprune.edits import Edit
from layerprune.graph import LayerGraph
from layerprune.modules import CallTracker, ModelState, OnModule, RunningCall, buffers, parameters, storage_key
from layerprune.replay.cached_call import CachedCall, Leaf, NotPlain
from layerprune.replay.call_reachability import UnchangedCalls
from layerprune.surgery import Folded, applied
from layerprune.tensors import map_tensors, tensors_in

#: Bytes that may be kept of one forward; further outputs are computed again.
MOST_BYTES = 2**30

#: The checks are not worth it for fewer sets.
FEWEST = 6

_ROUNDS = 4  # forwards, to find out which calls can be kept


class CannotReuse(BaseException):
    """Reused outputs may be wrong, so measurements with them do not count. Not an Exception: a loss may catch those."""


@dataclass(kw_only=True)
class ReusePolicy:
    """Facts about output reuse that all ablations of one model share; see :class:`OutputReuse`.

    Attributes:
        doubt: why every forward runs whole; empty while stored outputs may be reused.
        is_trusted: whether reuse has passed its test.
        barred: frames of the layer graph whose calls have side effects, or whose outputs are written into later.
        fewest: samples that a part of a batch needs to tell the result of the batch; 0 where no part does, None where
            not tested.
        share: the share of a batch that is measured first, where not all data are needed.
        handed_on: frame of the layer graph → number of samples for which its output was reused.
    """

    doubt: str = ""
    is_trusted: bool = False
    barred: set[int] = field(default_factory=set[int])
    fewest: int | None = None
    share: float = 1.0
    handed_on: Counter[int] = field(default_factory=Counter[int])


class OutputReuse:
    """Keeps outputs of the original's forward on one batch after the other, and reuses them.

    The layer graph tells which outputs to keep, and which calls an edit reaches; both are checked. ``folded`` holds for
    each set of edits the weights of projections.
    """

    def __init__(
        self,
        shade: Sandbox,
        graph: LayerGraph,
        sets: Sequence[Sequence[Edit]],
        folded: Sequence[Folded],
        reuse_policy: ReusePolicy,
    ) -> None:
        self.shade = shade
        self.reuse_policy = reuse_policy
        self.outcomes: dict[int, CachedCall] = {}
        self.leaves: dict[int, Leaf] = {}
        self.wanted: list[frozenset[int]] = []
        self.is_steady = True
        self.batch_size = 1
        reuse_policy.doubt = reuse_policy.doubt or _why_never(shade, graph)
        self.is_on = not reuse_policy.doubt and (reuse_policy.is_trusted or len(sets) >= FEWEST)
        if not self.is_on:
            return
        self.condition = ModelState(shade.model)
        reuse_policy.doubt = self.condition.unseen
        self.is_on = not reuse_policy.doubt
        self.upstream = UnchangedCalls(graph, shade.model)
        self.num_samples = max((graph.values[v].shape[0] for v in graph.inputs if graph.values[v].shape), default=1)
        hooked = {frame.index for frame in graph.frames if self.upstream.is_hooked(frame.index)}
        for edits, weights in zip(sets, folded, strict=True) if self.is_on else ():
            with applied(shade.model, edits, weights):
                self.wanted.append(self.upstream.unreached(self.condition) - hooked)

    # ---- the original's forward -----------------------------------------------------------------------------------

    @contextmanager
    def keeping(self, sets: Sequence[int], num_samples: int) -> Generator[None]:
        """Keep outputs of calls for some sets, by number, while the original's forward runs inside."""
        self.outcomes, self.leaves, self.is_steady = {}, {}, True
        self.batch_size = num_samples
        if not self.is_on or not sets:
            yield
            return
        frames = self._chosen(sets, num_samples / self.num_samples)
        before = _drawn()
        keeper = _Keeper(self, frames)
        with keeper.tracker.watching(self.shade.model, self.upstream.watched(frames)):
            yield
        self.leaves = {}
        if _drawn() != before:
            self.doubt("the forward draws random numbers")
        elif self.condition.changed() or self._has_moved:  # a cache that is filled once, or a state
            self._forget()
        else:
            self.reuse_policy.barred |= {
                frame
                for frame in frames - keeper.too_large
                if frame not in self.outcomes or not all(leaf.is_fresh for leaf in self.outcomes[frame].leaves)
            }
            self.outcomes = {
                frame: one for frame, one in self.outcomes.items() if frame not in self.reuse_policy.barred
            }

    def check(self, sets: Sequence[int], num_samples: int, repeat: Callable[[], bool]) -> None:
        """Find out which calls can be kept for some sets, and test whether forwards that reuse them give the same bits.

        ``repeat`` runs the original's forward again, and returns whether it gives the same bits.
        """
        if not self.is_on or not self.is_steady or not sets:
            return
        for _ in range(_ROUNDS):
            if self._chosen(sets, num_samples / self.num_samples) <= self.outcomes.keys():
                break
            with self.shade.running(), self.keeping(sets, num_samples):
                same = repeat()
            self._require(same, "the forward does not give the same twice")
        if self.reuse_policy.is_trusted or not self.outcomes:
            return
        outer, inner = self.upstream.outermost(self.outcomes), self.upstream.innermost(self.outcomes)
        digests = {id(leaf): (leaf, _digest(leaf.tensor)) for one in self.outcomes.values() for leaf in one.leaves}
        for frames in (outer, inner, outer[: len(outer) // 2]):
            with self.shade.running(), self._handing(frames):
                try:
                    same = repeat()
                except Exception:  # the forward ran before, so the reused outputs do not fit
                    same = False
            self._require(same, "a forward that goes on from what was kept gives something else than a whole one")
            self._require(not self.condition.changed(), "parts of the forward leave a state that the whole does not")
        kept = all(not leaf.is_fresh or _digest(leaf.tensor) == before for leaf, before in digests.values())
        self._require(kept, "the forward writes into tensors without counting it")

    def own(self, out: Any) -> Any:
        """An output of the original's forward, with copies of kept tensors: the caller may write into them."""
        memory = {storage_key(leaf.tensor) for one in self.outcomes.values() for leaf in one.leaves}
        if not any(storage_key(tensor) in memory for tensor in tensors_in(out)):
            return out
        return map_tensors(out, lambda tensor: tensor.clone() if storage_key(tensor) in memory else tensor)

    # ---- an edited model's forward --------------------------------------------------------------------------------

    @contextmanager
    def handing_on(self, number: int) -> Generator[None]:
        """Reuse kept outputs while the model with the edits of a set runs inside."""
        frames = self.upstream.outermost(self.wanted[number] & self.outcomes.keys()) if self.outcomes else ()
        with self._handing(frames):
            yield

    def settle(self) -> None:
        """Drop all outputs if an edited model has left a state behind; call it after the edits were undone."""
        if self.outcomes and self.condition.changed():
            self._forget()

    def probe(self, sets: Sequence[int]) -> int | None:
        """The set to measure again with whole forwards: that with most reused work; None once the model is trusted."""
        if not self.outcomes or self.reuse_policy.is_trusted:
            return None
        return max(sets, key=self._work_for)

    def confirm(self, same: bool) -> None:
        """Trust the model from now on, if a whole forward gave the same result as one with reused outputs."""
        self._require(same, "an edited model gives something else where it goes on from what was kept")
        self.reuse_policy.is_trusted = True

    def doubt(self, why: str) -> None:
        self.reuse_policy.doubt, self.is_on, self.outcomes = why, False, {}

    @property
    def _has_moved(self) -> bool:
        """Whether a run has changed containers of modules; the sandbox restores them after each run."""
        return self.shade.outside is not None and self.shade.outside.has_moved

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.doubt(otherwise)
            raise CannotReuse

    def _forget(self) -> None:
        """Run whole forwards on this batch; the next batch tells whether the model has become steady."""
        self.outcomes, self.is_steady = {}, False
        self.condition = ModelState(self.shade.model)

    def _chosen(self, sets: Sequence[int], scale: float) -> frozenset[int]:
        wanted = [self.wanted[number] - self.reuse_policy.barred for number in sets]
        return self.upstream.chosen(wanted, scale, MOST_BYTES)

    def _work_for(self, number: int) -> int:
        frames = self.upstream.outermost(self.wanted[number] & self.outcomes.keys())
        return sum(self.upstream.work[frame] for frame in frames)

    @contextmanager
    def _handing(self, frames: Collection[int]) -> Generator[None]:
        if not frames:
            yield
            return
        hander = _Hander(self, frozenset(frames))
        with hander.tracker.watching(self.shade.model, self.upstream.watched(frames)):
            yield
        self.reuse_policy.handed_on.update({frame: num * self.batch_size for frame, num in hander.handed_on.items()})


class _Replay:
    """Maps the calls of one forward to frames of the layer graph."""

    def __init__(self, output_reuse: OutputReuse, frames: frozenset[int], run: OnModule) -> None:
        self.output_reuse = output_reuse
        self.upstream = output_reuse.upstream
        self.frames = frames
        self.thread = threading.get_ident()
        self.tracker = CallTracker(self.upstream.names, run)

    def frame(self, call: RunningCall) -> int | None:
        """The frame of a call; None for a frame outside ``frames``, and for calls of another thread."""
        frame = self.upstream.calls.get(call.key) if threading.get_ident() == self.thread else None
        return frame if frame in self.frames else None


class _Keeper(_Replay):
    """Keeps arguments and outputs of calls in the original's forward."""

    def __init__(self, output_reuse: OutputReuse, frames: frozenset[int]) -> None:
        super().__init__(output_reuse, frames, self.run)
        self.too_large: set[int] = set()
        self.num_bytes = 0
        self.memory: set[int] = set()

    def run(self, call: RunningCall, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        frame = self.frame(call)
        if frame is None or torch.is_grad_enabled():
            return forward(*args, **kwargs)
        try:
            outcome = CachedCall(args, kwargs, self.leaf)
        except NotPlain:
            return forward(*args, **kwargs)
        out = forward(*args, **kwargs)
        try:
            outcome.finish(args, kwargs, out)
        except NotPlain:
            return out
        if self.has_room(outcome):
            self.output_reuse.outcomes[frame] = outcome
        else:
            self.too_large.add(frame)
            self.let_go(outcome)
        return out

    def leaf(self, tensor: Tensor) -> Leaf:
        leaves = self.output_reuse.leaves
        leaf = leaves.get(id(tensor))
        if leaf is None or not leaf.is_fresh:
            leaf = leaves[id(tensor)] = Leaf(tensor)
        return leaf

    def let_go(self, outcome: CachedCall) -> None:
        for leaf in outcome.leaves:
            if storage_key(leaf.tensor) not in self.memory:
                self.output_reuse.leaves.pop(id(leaf.tensor), None)

    def has_room(self, outcome: CachedCall) -> bool:
        tensors = {storage_key(leaf.tensor): leaf.tensor for leaf in outcome.leaves}
        new = {key: tensor for key, tensor in tensors.items() if key not in self.memory}
        more = sum(tensor.untyped_storage().nbytes() for tensor in new.values())
        if self.num_bytes + more > MOST_BYTES:
            return False
        self.num_bytes += more
        self.memory |= new.keys()
        return True


class _Hander(_Replay):
    """Reuses kept outputs while calls get the same arguments."""

    def __init__(self, output_reuse: OutputReuse, frames: frozenset[int]) -> None:
        super().__init__(output_reuse, frames, self.run)
        self.differs = False
        self.handed_on: Counter[int] = Counter()

    def run(self, call: RunningCall, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        frame = self.frame(call)
        outcome = None if frame is None else self.output_reuse.outcomes.get(frame)
        if frame is None or outcome is None or self.upstream.is_hooked(frame):
            return forward(*args, **kwargs)
        if not outcome.matches(args, kwargs, by_value=not self.differs):
            # A call that passes its argument through may differ only in the memory of that argument.
            self.differs = self.differs or not outcome.lies_in_arguments
            return forward(*args, **kwargs)
        if outcome.is_fresh:
            self.handed_on[frame] += 1
            return outcome.rebuilt()
        out = forward(*args, **kwargs)  # an earlier set's forward has written into the kept output
        if not outcome.renew(args, kwargs, out):
            del self.output_reuse.outcomes[frame]
        return out


def _why_never(shade: Sandbox, graph: LayerGraph) -> str:
    """Why a model's forwards always run whole; empty where reuse may be possible."""
    if graph.written_params:
        return "the forward writes into parameters"
    kinds = {tensor.device.type for tensor in (*parameters(shade.model), *buffers(shade.model))}
    if not kinds <= {"cpu", "cuda"}:
        return f"the random numbers of {', '.join(sorted(kinds))} are not looked at"
    return ""


def _drawn() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    name, keys, *rest = np.random.get_state()
    states = (torch.get_rng_state(), *cuda)
    return random.getstate(), name, np.asarray(keys).tobytes(), *rest, *(state.numpy().tobytes() for state in states)


@torch.no_grad()
def _digest(tensor: Tensor) -> float:
    """A number that almost surely changes when a tensor is written into."""
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if not values.is_floating_point():
        return float(values.sum())
    total, size = values.sum(dtype=torch.float64), torch.linalg.vector_norm(values, dtype=torch.float64)
    return float(torch.nan_to_num(total + np.pi * size))
