"""MACs of a forward, by torch's FLOP counter and additional formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from layerprune.capture import Sandbox
from layerprune.cost.formulas import formulas
from layerprune.cost.sandbox_forward import on_sandbox
from layerprune.inputs import Inputs
from layerprune.modules import CallTracker, names_by_module
from layerprune.tensors import has_claims
from layerprune.torch_internals import DispatchMode

#: The counter's own name for the whole forward.
WHOLE = "Global"
# Operations of other libraries may compute products without a formula.
_KNOWN = frozenset({"aten", "prim", "prims", "profiler", "higher_order"})


@dataclass(frozen=True)
class Macs:
    """The multiply-accumulates of a forward.

    Attributes:
        total: of the whole forward.
        by_module: by the module's first name, with the modules inside it; the model itself is ``""``. Modules that
            compute no product are left out.
        uncounted: operations of other libraries that ran and have no formula; they count as zero.
    """

    total: int
    by_module: Mapping[str, int]
    uncounted: tuple[str, ...] = ()


def tally_macs(model: nn.Module, inputs: Inputs) -> Macs:
    """Count the multiply-accumulates of a forward in eval mode, by module.

    A multiply-accumulate is a product and its addition, in convolutions, matrix products, recurrences and attention;
    biases, norms and activations count as zero. Attention counts in full, also with a mask.

    The forward runs on fake tensors, which need no memory and work on the meta device, or on real tensors where fake
    ones fail; then the number holds for these inputs only.

    Args:
        model: any module, original or pruned; it is not changed.
        inputs: arguments that its forward takes; their sizes count.

    Raises:
        CostError: the forward raises on these inputs.
    """
    return on_sandbox(model, inputs, lambda shade: _tally(shade, inputs))


def count_macs(model: nn.Module, inputs: Inputs) -> int:
    """Count the multiply-accumulates of a forward; see :func:`tally_macs`."""
    return tally_macs(model, inputs).total


def macs_by_module(model: nn.Module, inputs: Inputs) -> Mapping[str, int]:
    """Count the multiply-accumulates of each module in a forward, with the modules inside it; see :class:`Macs`."""
    return tally_macs(model, inputs).by_module


def _tally(shade: Sandbox, inputs: Inputs) -> Macs:
    calls = CallTracker(names_by_module(shade.model, only_first=True))
    foreign = _Foreign(formulas())
    counter = mac_counter(lambda: [call.key.fqn for call in calls.running.outward()] if calls.running else [])
    shade.forward(inputs, calls.watching(shade.model), foreign, counter, fast_path=False)
    sums = {name: sum(found.values()) // 2 for name, found in counter.get_flop_counts().items()}
    total = sums.pop(WHOLE, 0)
    return Macs(total, sums, tuple(sorted(foreign.seen)))


def mac_counter(owners: Callable[[], Iterable[str]]) -> FlopCounterMode:
    """Make torch's counter of FLOPs, two per multiply-accumulate; ``owners`` are asked at each operation."""
    counter = FlopCounterMode(display=False, custom_mapping=dict(formulas()))
    tracker = _Owners(owners)
    counter.mod_tracker = tracker  # pyright: ignore[reportAttributeAccessIssue]  # torch's own names shared modules twice
    return counter


class _Owners:
    """Names that an operation counts for, with the interface of torch's module tracker."""

    def __init__(self, owners: Callable[[], Iterable[str]]) -> None:
        self.owners = owners

    def __enter__(self) -> _Owners:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no context."""

    @property
    def parents(self) -> set[str]:
        return {WHOLE, *self.owners()}


class _Foreign(DispatchMode):
    """Collects operations of other libraries that have no formula."""

    def __init__(self, formulas: Mapping[Any, Callable[..., int]]) -> None:
        super().__init__()
        self.formulas = dict(formulas)
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = getattr(func, "overloadpacket", func)
        space = getattr(func, "namespace", "aten")
        known = packet in self.formulas or has_claims(f"{space}::{getattr(packet, '__name__', '')}")
        if space not in _KNOWN and not known:
            self.seen.add(f"{space}.{packet.__name__}")
        return func(*args, **(kwargs or {}))
