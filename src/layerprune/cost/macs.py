"""MACs of one forward, by torch's FLOP counter and the formulas that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from layerprune.capture import Sandbox
from layerprune.cost.formulas import formulas
from layerprune.cost.sandbox_forward import on_sandbox, run
from layerprune.inputs import Inputs
from layerprune.modules import CallTracker, names_by_module
from layerprune.tensors import has_claims
from layerprune.torch_internals import DispatchMode

#: Under this name torch's counter has the whole forward.
WHOLE = "Global"
# Operations from elsewhere may hold products that nobody has told us of.
_KNOWN = frozenset({"aten", "prim", "prims", "profiler", "higher_order"})


@dataclass(frozen=True)
class Macs:
    """The multiply-accumulates of one forward.

    Attributes:
        total: of the whole forward.
        by_module: by the module's first name, the modules inside it included; the model itself is ``""``. Modules that
            compute no product are left out.
        uncounted: operations from outside torch that ran and count as nothing, for want of a formula.
    """

    total: int
    by_module: Mapping[str, int]
    uncounted: tuple[str, ...] = ()


def tally_macs(model: nn.Module, inputs: Inputs) -> Macs:
    """Count the multiply-accumulates of one forward in eval mode, by module.

    One multiply-accumulate is one product and its addition, in convolutions, matrix products, recurrences and
    attention; biases, norms and activations count as nothing. Attention counts whole, masked or causal.

    The forward runs on fake tensors, which needs no memory and works on the meta device; where that is impossible, on
    real ones, and then the number holds for these inputs.

    Args:
        model: any module; original or pruned. It stays as it is.
        inputs: arguments that its forward takes; their sizes count.

    Raises:
        CostError: the forward raises on these inputs.
    """
    return on_sandbox(model, inputs, _tally)


def count_macs(model: nn.Module, inputs: Inputs) -> int:
    """Count the multiply-accumulates of one forward; see :func:`tally_macs`."""
    return tally_macs(model, inputs).total


def macs_by_module(model: nn.Module, inputs: Inputs) -> Mapping[str, int]:
    """Count the multiply-accumulates of one forward in each module, those inside it included; see :class:`Macs`."""
    return tally_macs(model, inputs).by_module


def _tally(shade: Sandbox, inputs: Inputs) -> Macs:
    calls = CallTracker(names_by_module(shade.model, only_first=True))
    foreign = _Foreign(formulas())
    counter = mac_counter(lambda: [call.key.fqn for call in calls.running.outward()] if calls.running else [])
    with shade.running(), calls.watching(shade.model), foreign, counter:
        run(shade, inputs)
    sums = {name: sum(found.values()) // 2 for name, found in counter.get_flop_counts().items()}
    total = sums.pop(WHOLE, 0)
    return Macs(total, sums, tuple(sorted(foreign.seen)))


def mac_counter(owners: Callable[[], Iterable[str]]) -> FlopCounterMode:
    """Make torch's counter; it counts a multiply-accumulate as two.

    Args:
        owners: what an operation counts for, beside the whole forward; asked for at each operation.
    """
    counter = FlopCounterMode(display=False, custom_mapping=dict(formulas()))
    tracker = _Owners(owners)
    counter.mod_tracker = tracker  # pyright: ignore[reportAttributeAccessIssue]  # torch's own names shared modules twice
    return counter


class _Owners:
    """Says what an operation counts for, in the form in which torch's counter asks for it."""

    def __init__(self, owners: Callable[[], Iterable[str]]) -> None:
        self.owners = owners

    def __enter__(self) -> _Owners:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was opened."""

    @property
    def parents(self) -> set[str]:
        """The names that an operation counts for."""
        return {WHOLE, *self.owners()}


class _Foreign(DispatchMode):
    """Notes the operations from outside torch that no formula counts.

    Args:
        formulas: the formulas, by operation.
    """

    def __init__(self, formulas: Mapping[Any, Callable[..., int]]) -> None:
        super().__init__()
        self.formulas = dict(formulas)
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and look where it comes from."""
        packet = getattr(func, "overloadpacket", func)
        space = getattr(func, "namespace", "aten")
        known = packet in self.formulas or has_claims(f"{space}::{getattr(packet, '__name__', '')}")
        if space not in _KNOWN and not known:
            self.seen.add(f"{space}.{packet.__name__}")
        return func(*args, **(kwargs or {}))
