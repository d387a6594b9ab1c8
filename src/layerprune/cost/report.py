"""The cost of a model, and what another model saves against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from layerprune.cost.macs import tally_macs
from layerprune.cost.memory import activation_peak_bytes, buffer_bytes, kv_cache_bytes_per_token, param_bytes
from layerprune.errors import CostError
from layerprune.inputs import Inputs
from layerprune.modules import num_params

#: What is measured, and how a reader sees it called.
LABELS = {
    "num_params": "parameters",
    "param_bytes": "parameter memory",
    "buffer_bytes": "buffer memory",
    "macs": "MACs",
    "activation_bytes": "activation memory, peak",
    "peak_bytes": "memory in all, peak",
    "kv_cache_bytes_per_token": "KV cache per token",
}
_UNITS = ("KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Cost:
    """What a model costs in one forward on certain inputs.

    Attributes:
        num_params: the parameters; tied ones count once.
        param_bytes: their bytes.
        buffer_bytes: the bytes of the buffers.
        macs: multiply-accumulates; None where they could not be counted.
        activation_bytes: the most that the tensors of the forward hold at once; None where that could not be measured.
        kv_cache_bytes_per_token: what one more token of one sequence adds to the cache; None where there is none.
        notes: by field, why it is None or what it leaves out.
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
        """What parameters, buffers and the activations at their peak hold together; None where the last is not known.

        It is what ``max_memory_bytes`` limits; the inputs and what kernels need inside themselves come on top.
        """
        if self.activation_bytes is None:
            return None
        return self.param_bytes + self.buffer_bytes + self.activation_bytes

    def value(self, name: str) -> int | None:
        """Return a field's number."""
        return getattr(self, name)

    def rows(self) -> list[tuple[str, str]]:
        """Return what is measured and how much it is, as text, one pair a row of a table."""
        return [(label, _text(name, self.value(name))) for name, label in LABELS.items()]

    def __str__(self) -> str:
        return _lines(self.rows(), self.notes)


@dataclass(frozen=True)
class Saving:
    """What one model costs less than another, on the same inputs.

    Attributes:
        before: the cost of the one.
        after: the cost of the other.
    """

    before: Cost
    after: Cost

    def amount(self, name: str) -> int | None:
        """Return how much less a field is, negative where it is more; None where either is not known."""
        before, after = self.before.value(name), self.after.value(name)
        return None if before is None or after is None else before - after

    def share(self, name: str) -> float | None:
        """Return how much less a field is, as a share of what it was; None where that is not known, or nothing."""
        amount, before = self.amount(name), self.before.value(name)
        return None if amount is None or not before else amount / before

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return what is measured, before, after, and the change, as text, four a row of a table."""
        found: list[tuple[str, str, str, str]] = []
        for name, label in LABELS.items():
            share = self.share(name)
            before, after = _text(name, self.before.value(name)), _text(name, self.after.value(name))
            found.append((label, before, after, "—" if share is None else f"{-share:+.1%}"))
        return found

    def __str__(self) -> str:
        return _lines(self.rows(), {**self.after.notes, **self.before.notes})


def measure(model: nn.Module, inputs: Inputs) -> Cost:
    """Measure what a model costs as it is, original or pruned: for a set of removals, of the model without them.

    Nothing runs but forwards on fake tensors, or on real ones where those cannot go; the latency is another matter, see
    :func:`compare_latency`. The model stays as it is.

    Args:
        model: any module, on the meta device too.
        inputs: arguments that its forward takes.

    Returns:
        The cost. A part that cannot be measured is None, with the reason in its notes.
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
    return Cost(num_params(model), param_bytes(model), buffer_bytes(model), macs, peak, cache, notes)


def saved(before: Cost, after: Cost) -> Saving:
    """Compare two costs, such as those of a model before and after pruning."""
    return Saving(before, after)


def _text(name: str, value: int | None) -> str:
    if value is None:
        return "—"
    return bytes_text(value) if "bytes" in name else f"{value:,}"


def bytes_text(value: int) -> str:
    """Three digits and a unit: ``1.95 KiB``."""
    if value < 1024:
        return f"{value} B"
    size, place = value / 1024, 0
    while size >= 999.5 and place < len(_UNITS) - 1:
        size, place = size / 1024, place + 1
    return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f} {_UNITS[place]}"


def _lines(rows: list[tuple[str, str]] | list[tuple[str, str, str, str]], notes: Mapping[str, str]) -> str:
    """Set rows in columns, the first to the left, and the notes below."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([*lines, *(f"Note: {LABELS[name]}: {note}" for name, note in notes.items())])
