"""Keeps the values of integer tensors, such as indices and lengths, in a fake run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from layerprune.tensors.operands import flat_tensors, written_tensors
from layerprune.torch_internals import DispatchMode, FakeTensor, FakeTensorMode, UnknownValue, no_modes

# A larger integer tensor is data rather than sizes and indices, and costs memory.
_MOST_ELEMENTS = 1_000_000


def holds_values(tensor: Tensor) -> bool:
    """Whether a tensor holds integers and is small enough to carry its values through a fake run."""
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    return whole and not tensor.is_meta and type(tensor) is Tensor and tensor.numel() <= _MOST_ELEMENTS


class KeepsIntegers(DispatchMode):
    """Runs operations on real integer tensors for real, above a mode of fake tensors.

    Many forwards take sizes from values: lengths of sequences, grids of patches, masks of tokens. These depend on the
    integer inputs, not on the weights, so a forward on fake weights can still know them.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def limited(self, out: Any) -> Any:
        """Drop the values of tensors too large to be sizes or indices, such as a mask of all pairs of tokens."""
        if isinstance(out, Tensor):
            return out if out.numel() <= _MOST_ELEMENTS else self.mode.from_tensor(out, static_shapes=True)
        if isinstance(out, (tuple, list)):
            return type(out)(self.limited(item) for item in cast("Sequence[Any]", out))
        return out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation for real if all its operands are real, or if it makes integers from no operands."""
        kwargs = kwargs or {}
        tensors = list(flat_tensors((args, kwargs)))
        real = [t for t in tensors if not isinstance(t, FakeTensor)]
        if len(real) == len(tensors) and (tensors or _makes_integers(func, args, kwargs)):
            with no_modes():
                return self.limited(func(*args, **kwargs))
        if real and any(t is r for t in written_tensors(func, args, kwargs) for r in real):
            raise UnknownValue("a value that is not known is written into one that is")
        return func(*args, **kwargs)


def _makes_integers(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a function without tensor operands makes integers, as a range or a constant."""
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return not (dtype.is_floating_point or dtype.is_complex)
    plain = all(isinstance(value, (int, type(None))) for value in args)
    return func.__name__.startswith("arange") and plain
