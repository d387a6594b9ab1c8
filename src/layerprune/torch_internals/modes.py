"""Modes of torch: those that are on are set aside, or asked for, while code of our own runs inside a user's forward."""

# pyright: reportPrivateUsage=false, reportUnusedImport=false
from __future__ import annotations

from torch._C import DisableTorchFunction as no_function_modes
from torch._C import DisableTorchFunctionSubclass as no_function_subclasses
from torch.overrides import _get_current_function_mode as innermost_function_mode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as no_modes


class DispatchMode(TorchDispatchMode):
    """Sees every operation, those inside control flow (``torch.cond``) included."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not wrapped once more for each operation: nothing is compiled where one of these is on."""
        return False
