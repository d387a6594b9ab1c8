"""Keeps the slots of a transformers key-value cache valid when modules that write them are removed."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from torch import nn

from layerprune.adapters import PLACES, CacheUse, by_name, generates, may_cache, observe_cache
from layerprune.capture import Sandbox, ShapeCache
from layerprune.edits import Edit, Shorten, TakePlace, taken_out
from layerprune.errors import short
from layerprune.graph import Refusal, RefusalCode
from layerprune.inputs import Inputs
from layerprune.removals.lowering import Lowering

_Place = tuple[int, int]


class CacheSlots:
    """Keeps generation with a cache valid: a slot that the model asks about the past must have a writer.

    Args:
        shade: a sandbox of the model.
        modules: its modules by name.
        inputs: the example inputs.
        notes: receives a note if generation does not run.
        memo: shape cache for fake tensors; None if the sandbox has real tensors.
    """

    def __init__(
        self,
        shade: Sandbox,
        modules: Mapping[str, nn.Module],
        inputs: Inputs,
        notes: list[str],
        memo: ShapeCache | None,
    ) -> None:
        self.shade = shade
        self.memo = memo
        self.modules = modules
        self.inputs = inputs
        self.use: CacheUse | None = None
        self.prepared = False
        named = by_name(shade.model, inputs)
        if named is not None and may_cache(shade.model, named):
            self.inputs = named
            self.prepared = generates(shade.model)
            try:
                self.use = self.observe()
            except Exception as error:  # the user's own forward, which may need other inputs for a second step
                notes.append(f"generation with a cache does not run on these inputs ({short(error)}): not proven")

    def observe(self) -> CacheUse | None:
        adapted = self.shade.adapt(self.inputs)
        return observe_cache(self.shade.model, adapted, self.running, prepared=self.prepared)

    @contextmanager
    def running(self) -> Generator[None]:
        """Run forwards inside; a shape cache suffices, because only shapes of the past are compared."""
        with self.shade.running(), nullcontext() if self.memo is None else self.memo.recalling():
            yield

    def check(self, edits: Sequence[Edit]) -> None:
        """Check that a second step, with edits made, sees the same past as in the original.

        Raises:
            Refusal: it does not.
        """
        if self.use is None or not self.concerned(edits):
            return
        try:
            found = self.observe()
        except Exception as error:  # the user's forward after the edits may raise anything
            raise Refusal(RefusalCode.CACHE_FAILS, error=error) from error
        strange = sorted((found.answers if found is not None else frozenset()) - self.use.answers)
        if strange:
            kind, method, answer = strange[0]
            raise Refusal(RefusalCode.CACHE_FORGETS, method=method, kind=kind, answer=answer)

    def concerned(self, edits: Sequence[Edit]) -> bool:
        """Whether edits change writers of the cache or the number of its layers."""
        return any(isinstance(edit, (Shorten, TakePlace)) for edit in edits) or bool(self.leaving(edits))

    def leaving(self, edits: Sequence[Edit]) -> set[str]:
        writers = (
            {name for names in self.use.writers.values() for name in names} if self.use is not None else set[str]()
        )
        gone = taken_out(edits)
        return {name for name in writers if any(f"{name}.".startswith(f"{top}.") for top in gone)}

    def keep(self, lowering: Lowering) -> Lowering:
        """Move remaining writers to slots that the model asks about the past and that lose their writers.

        Raises:
            Refusal: no writer of the same kind is left.
        """
        moves = self.moves(lowering.edits)
        if not moves:
            return lowering
        stand_ins = lowering.stand_ins or lowering.edits
        return replace(lowering, edits=(*lowering.edits, *moves), stand_ins=stand_ins)

    def moves(self, edits: Sequence[Edit]) -> list[TakePlace]:
        use, gone = self.use, self.leaving(edits)
        if use is None or not gone:
            return []
        shortened = taken_out([edit for edit in edits if isinstance(edit, Shorten)])
        found: list[TakePlace] = []
        for recurrent in (False, True):
            by_kind: dict[tuple[int, str], list[_Place]] = {}
            for number, place, kind in sorted(use.writers):
                names = use.writers[number, place, kind]
                if kind is recurrent and not all(_inside(name, shortened) for name in names):
                    by_kind.setdefault((number, use.kinds[number, place]), []).append((number, place))
            for places in by_kind.values():
                found += self.moved(places, recurrent, gone)
        return found

    def moved(self, places: Sequence[_Place], recurrent: bool, gone: set[str]) -> list[TakePlace]:
        """Moves of writers within one kind of cache layer, to the slots that are asked."""
        assert self.use is not None
        names = {where: self.use.writers[(*where, recurrent)] for where in places}
        left = [where for where in places if not all(name in gone for name in names[where])]
        all_of_kind = [
            w for w in self.use.kinds if self.use.kinds[w] == self.use.kinds[places[0]] and w[0] == places[0][0]
        ]
        ends = {all_of_kind[0]: places[0], all_of_kind[-1]: places[-1]}
        asked = sorted({ends.get(w, w) for w in all_of_kind if (*w, recurrent) in self.use.asked} & {*places})
        free = [where for where in left if where not in asked]
        moves: list[TakePlace] = []
        for where in asked:
            if where in left:
                continue
            if not free:
                raise Refusal(RefusalCode.CACHE_LENGTH_LOST, names[where][0])
            moves.append(self.move(names[free.pop(0)], names[where]))
        return moves

    def move(self, who: Sequence[str], whose: Sequence[str]) -> TakePlace:
        for name in (*who, *whose):
            if len(who) != 1 or len(whose) != 1 or not _has_place(self.modules.get(name)):
                raise Refusal(RefusalCode.CACHE_PLACE_LOST, whose[0])
        return TakePlace(fqn=who[0], of=whose[0])


def _inside(name: str, tops: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{top}.") for top in tops)


def _has_place(module: Any) -> bool:
    return module is not None and any(type(vars(module).get(name)) is int for name in PLACES)
