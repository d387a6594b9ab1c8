"""The cost of a model, and the saving of another model against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from layerprune.cost.macs import tally_macs
from layerprune.cost.memory import activation_peak_bytes, buffer_bytes, kv_cache_bytes_per_token, param_bytes
from layerprune.errors import CostError
from layerprune.inputs import Inputs
from layerprune.modules import num_params
from layerprune.tables import ShownAsTable, Table, brief, bytes_text, short_number, table_text

#: Fields of :class:`Cost`, and their labels in reports.
LABELS = {
    "num_params": "parameters",
    "param_bytes": "parameter memory",
    "buffer_bytes": "buffer memory",
    "macs": "MACs",
    "activation_bytes": "activation memory, peak",
    "peak_bytes": "memory in all, peak",
    "kv_cache_bytes_per_token": "KV cache per token",
}


@dataclass(frozen=True, kw_only=True)
class Cost(ShownAsTable):
    """The cost of a model in one forward on given inputs.

    Attributes:
        num_params: number of parameters; tied ones count once.
        param_bytes: bytes of the parameters.
        buffer_bytes: bytes of the buffers.
        macs: multiply-accumulates; None where they could not be counted.
        activation_bytes: peak bytes of the forward's tensors; None where they could not be measured.
        kv_cache_bytes_per_token: growth of the cache per token of a sequence; None without a cache.
        notes: by field, why it is None, or its omissions.
    """

    num_params: int
    param_bytes: int
    buffer_bytes: int = 0
    macs: int | None = None
    activation_bytes: int | None = None
    kv_cache_bytes_per_token: int | None = None
    notes: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def peak_bytes(self) -> int | None:
        """Bytes of parameters, buffers and activations at their peak; None without the last.

        ``max_memory_bytes`` limits this number; inputs and workspaces of kernels come on top.
        """
        if self.activation_bytes is None:
            return None
        return self.param_bytes + self.buffer_bytes + self.activation_bytes

    def value(self, name: str) -> int | None:
        return getattr(self, name)

    def rows(self) -> list[tuple[str, str]]:
        """Return table rows of text: label, value."""
        return [(label, _text(name, self.value(name))) for name, label in LABELS.items()]

    def as_table(self) -> Table:
        """One row for each quantity."""
        return Table(columns=("", "cost"), rows=tuple(self.rows()), notes=_notes(self.notes))

    def __str__(self) -> str:
        return table_text(replace(self.as_table(), columns=()))

    def __repr__(self) -> str:
        macs = "MACs not counted" if self.macs is None else f"{short_number(self.macs)} MACs"
        return brief(self, f"{self.num_params:,} parameters, {bytes_text(self.param_bytes)}, {macs}")


@dataclass(frozen=True)
class Saving(ShownAsTable):
    """The saving of a model (``after``) against a larger model (``before``), on the same inputs."""

    before: Cost
    after: Cost

    def amount(self, name: str) -> int | None:
        """Return the decrease of a field, negative for an increase; None where a value is not known."""
        before, after = self.before.value(name), self.after.value(name)
        return None if before is None or after is None else before - after

    def share(self, name: str) -> float | None:
        """Return the decrease of a field as a share of its value before; None where it is not known, or zero before."""
        amount, before = self.amount(name), self.before.value(name)
        return None if amount is None or not before else amount / before

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return table rows of text: label, before, after, change."""
        found: list[tuple[str, str, str, str]] = []
        for name, label in LABELS.items():
            share = self.share(name)
            before, after = _text(name, self.before.value(name)), _text(name, self.after.value(name))
            found.append((label, before, after, "—" if share is None else _change(share)))
        return found

    def as_table(self) -> Table:
        """One row for each quantity: before, after, change."""
        notes = _notes({**self.after.notes, **self.before.notes})
        return Table(columns=("", "original", "pruned", "change"), rows=tuple(self.rows()), notes=notes)

    def __str__(self) -> str:
        return table_text(replace(self.as_table(), columns=()))

    def __repr__(self) -> str:
        before, after = self.before, self.after
        shares = [("parameters", "num_params"), ("MACs", "macs"), ("peak memory", "peak_bytes")]
        changes = [f"{_change(share)} {label}" for label, name in shares if (share := self.share(name)) is not None]
        return brief(self, f"{before.num_params:,} → {after.num_params:,}: {', '.join(changes)}")


def measure(model: nn.Module, inputs: Inputs) -> Cost:
    """Measure the cost of a model, original or pruned, without its latency (see :func:`compare_latency`).

    Forwards run on fake tensors, or on real tensors where fake ones fail.

    Args:
        model: any module, on any device, also the meta device; it is not changed.
        inputs: arguments that its forward takes.

    Returns:
        The cost. Parts that cannot be measured are None, with the reason in its notes.
    """
    notes: dict[str, str] = {}
    macs: int | None = None
    peak: int | None = None
    cache: int | None = None
    try:
        tally = tally_macs(model, inputs)
        macs = tally.total
        if tally.uncounted:
            notes["macs"] = f"without {', '.join(tally.uncounted)}, for which there is no formula"
    except CostError as error:
        notes["macs"] = str(error)
    try:
        peak = activation_peak_bytes(model, inputs)
    except CostError as error:
        notes["activation_bytes"] = str(error)
    try:
        cache = kv_cache_bytes_per_token(model, inputs)
        if cache is None:
            notes["kv_cache_bytes_per_token"] = "the model keeps no key-value cache of these inputs"
    except CostError as error:
        notes["kv_cache_bytes_per_token"] = str(error)
    return Cost(
        num_params=num_params(model),
        param_bytes=param_bytes(model),
        buffer_bytes=buffer_bytes(model),
        macs=macs,
        activation_bytes=peak,
        kv_cache_bytes_per_token=cache,
        notes=notes,
    )


def saved(before: Cost, after: Cost) -> Saving:
    """Compare two costs, such as those of a model before and after pruning."""
    return Saving(before, after)


def _change(share: float) -> str:
    """A decrease as a signed percentage, without a sign where it rounds to 0."""
    text = f"{-share:+.1%}"
    return "0.0%" if text[1:] == "0.0%" else text


def _text(name: str, value: int | None) -> str:
    if value is None:
        return "—"
    return bytes_text(value) if "bytes" in name else f"{value:,}"


def _notes(notes: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{LABELS[name]}: {note}" for name, note in notes.items())
