"""Modes of torch: set aside or read while the library's own code runs inside a user's forward."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from torch._C import DisableTorchFunction, DisableTorchFunctionSubclass
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

#: Disables all modes inside.
no_modes = _disable_current_modes
#: Disables function modes and ``__torch_function__`` of tensors inside.
no_function_modes = DisableTorchFunction
#: Disables ``__torch_function__`` of tensors inside; function modes stay on.
no_function_subclasses = DisableTorchFunctionSubclass
innermost_function_mode = _get_current_function_mode


class DispatchMode(TorchDispatchMode):
    """Sees every operation, also inside control flow (``torch.cond``)."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False saves a wrapper per operation: no compilation runs inside these modes."""
        return False
