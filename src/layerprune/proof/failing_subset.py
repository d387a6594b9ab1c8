"""Finds the removals of a batch that fail, by carrying out parts of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from layerprune.graph import Refusal, RefusalCode
from layerprune.removals import Lowering

# Of removals that differ in numbers only, so many must fail for the same reason before the rest counts as failed.
_SAMPLES = 3
# Number of parts of a batch; no part may hold all removals that are alike.
_PARTS = 3

#: Carries removals out together and returns the reason why the result is wrong; None if it is right.
ReasonAgainst = Callable[[Sequence[Lowering]], Refusal | None]


def failures(batch: Mapping[int, Lowering], reason_against: ReasonAgainst) -> dict[int, Refusal]:
    """Return the removals of a batch that fail, with their reasons; found by halving."""
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
    """Spread a batch over parts, and removals that are alike over different parts, to isolate their effects."""
    parts: list[dict[int, Lowering]] = [{} for _ in range(_PARTS)]
    for some in _classes(batch):
        for number, i in enumerate(some):
            parts[number % _PARTS][i] = batch[i]
    return [part for part in parts if part]


def _classes(batch: Mapping[int, Lowering]) -> list[list[int]]:
    """Group removals that differ in numbers only, such as those of repeated blocks."""
    classes: dict[tuple[object, ...], list[int]] = {}
    for i, lowering in batch.items():
        classes.setdefault(tuple(edit.form for edit in lowering.edits), []).append(i)
    return list(classes.values())


def _failures_alike(batch: Mapping[int, Lowering], reason_against: ReasonAgainst) -> dict[int, Refusal]:
    """Return the removals that fail in a batch of removals that differ in numbers only.

    Once the first :data:`_SAMPLES` fail for the same reason, the others count as failed: the verdict critical needs no
    proof, and large models have a hundred of them.
    """
    members = list(batch)
    rest = dict(batch)
    found: dict[int, Refusal] = {}
    for i in members[:_SAMPLES]:
        found |= failures({i: rest.pop(i)}, reason_against)
        if i not in found:
            break  # it holds alone: another removal fails, or their combination
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
