"""Operations of torch's dispatcher."""

# pyright: reportUnusedImport=false
from __future__ import annotations

from typing import Any

from torch._ops import OpOverload, OpOverloadPacket


def schema_of(operation: Any) -> Any:
    """The schema of an operation, which says what it writes into; None of one that has none (``torch.cond``)."""
    return getattr(operation, "_schema", None)
