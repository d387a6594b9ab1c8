"""Modes of torch: those that are on are set aside, or asked for, while code of our own runs inside a user's forward."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from torch._C import DisableTorchFunction, DisableTorchFunctionSubclass
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

#: Runs what is inside outside of all modes.
no_modes = _disable_current_modes
#: Runs what is inside outside of function modes, and past ``__torch_function__``.
no_function_modes = DisableTorchFunction
#: Runs what is inside past ``__torch_function__`` of tensors; function modes stay on.
no_function_subclasses = DisableTorchFunctionSubclass
innermost_function_mode = _get_current_function_mode


class DispatchMode(TorchDispatchMode):
    """Sees every operation, those inside control flow (``torch.cond``) included."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not wrapped once more for each operation: nothing is compiled where one of these is on."""
        return False
