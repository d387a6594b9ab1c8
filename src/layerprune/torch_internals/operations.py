"""Operations of torch's dispatcher."""

# pyright: reportUnusedImport=false, reportPrivateUsage=false
from __future__ import annotations

from typing import Any

from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket


def schema_of(operation: Any) -> Any:
    """The schema of an operation; None for operations without one (``torch.cond``)."""
    return getattr(operation, "_schema", None)


def name_of_custom_op(op: CustomOpDef) -> str:
    """The name ``library::op`` of a result of ``torch.library.custom_op``."""
    return op._qualname
