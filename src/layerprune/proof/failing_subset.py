"""Finds the removals of a batch that fail, by carrying out parts of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from layerprune.graph import Refusal, RefusalCode
from layerprune.removals import Lowering

# How many removals that differ in numbers only have to fail for the same reason before the rest counts as failed.
_SAMPLES = 3
# Into how many parts a batch is spread of which no part may hold all removals that are alike.
_PARTS = 3

#: Carries removals out together, and says what is wrong with the result; None if nothing is.
ReasonAgainst = Callable[[Sequence[Lowering]], Refusal | None]


def failures(batch: Mapping[int, Lowering], reason_against: ReasonAgainst) -> dict[int, Refusal]:
    """Which removals of a batch fail, and why; found by halving."""
    reason = reason_against(list(batch.values())) if batch else None
    if reason is None:
        return {}
    if len(batch) == 1:
        return dict.fromkeys(batch, reason)
    classes = _classes(batch)
    if len(classes) == 1:
        return _failures_alike(batch, reason_against)
    found: dict[int, Refusal] = {}
    for some in classes:
        found |= failures({i: batch[i] for i in some}, reason_against)
    return found


def spread(batch: Mapping[int, Lowering]) -> list[dict[int, Lowering]]:
    """Spread a batch so that of removals that are alike some are left out, to show what the others do to them."""
    parts: list[dict[int, Lowering]] = [{} for _ in range(_PARTS)]
    for some in _classes(batch):
        for number, i in enumerate(some):
            parts[number % _PARTS][i] = batch[i]
    return [part for part in parts if part]


def _classes(batch: Mapping[int, Lowering]) -> list[list[int]]:
    """Sort removals by what they differ in other than numbers, as those of repeated blocks do."""
    classes: dict[tuple[object, ...], list[int]] = {}
    for i, lowering in batch.items():
        classes.setdefault(tuple(edit.form for edit in lowering.edits), []).append(i)
    return list(classes.values())


def _failures_alike(batch: Mapping[int, Lowering], reason_against: ReasonAgainst) -> dict[int, Refusal]:
    """Which of a batch of removals fail that differ in numbers only, as those of repeated blocks do.

    Where the first :data:`_SAMPLES` fail for the same reason, the others are taken to fail as well: a verdict of
    critical needs no proof, and large models have a hundred of them.
    """
    members = list(batch)
    rest = dict(batch)
    found: dict[int, Refusal] = {}
    for i in members[:_SAMPLES]:
        found |= failures({i: rest.pop(i)}, reason_against)
        if i not in found:
            break  # it holds alone: what fails is another one, or their company
    if len(found) == _SAMPLES and len({why.form for why in found.values()}) == 1:
        alike = batch[members[0]].edits[0].fqn
        return found | dict.fromkeys(rest, Refusal(RefusalCode.FAILS_AS_ANOTHER, alike, why=found[members[0]]))
    if not rest or reason_against(list(rest.values())) is None:
        return found
    some = list(rest)
    halves = some[: len(some) // 2], some[len(some) // 2 :]
    for half in halves:
        found |= failures({i: rest[i] for i in half}, reason_against)
    return found
