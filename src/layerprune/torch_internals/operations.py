"""Operations of torch's dispatcher."""

# pyright: reportUnusedImport=false, reportPrivateUsage=false
from __future__ import annotations

from typing import Any

from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket


def schema_of(operation: Any) -> Any:
    """The schema of an operation, which says what it writes into; None of one that has none (``torch.cond``)."""
    return getattr(operation, "_schema", None)


def name_of_custom_op(op: CustomOpDef) -> str:
    """The name, ``library::op``, of what ``torch.library.custom_op`` returned."""
    return op._qualname
