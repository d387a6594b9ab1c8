"""Checks claims about custom ops: runs the op on random tensors of the shapes that a model calls it with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from layerprune.errors import OpClaimError
from layerprune.tensors.op_traits import traits_of
from layerprune.torch_internals import no_modes

_SCALES = (1.0, 100.0)  # of the random numbers: large ones show saturation


@dataclass(frozen=True)
class _Form:
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def random(self, scale: float, generator: torch.Generator) -> Tensor:
        numbers = torch.randn(self.shape, generator=generator, dtype=torch.float64) * scale
        return numbers.to("cpu" if self.device.type == "meta" else self.device, self.dtype)


@dataclass(frozen=True)
class OpCall:
    """One call of a registered op, as a model makes it.

    Attributes:
        name: the op's name.
        func: the op.
        args: its arguments by position, tensors by their forms.
        kwargs: those by keyword.
    """

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> OpCall:
        return cls(name, func, _formed(tuple(args)), _formed(dict(kwargs)))

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Call the op with other tensors, in order; a list takes all that are left."""
        left = list(tensors)
        args = [_filled(value, left) for value in self.args]
        kwargs = {key: _filled(value, left) for key, value in self.kwargs.items()}
        return self.func(*args, **kwargs)

    @property
    def forms(self) -> list[_Form]:
        return _forms_in((self.args, list(self.kwargs.values())))

    def __str__(self) -> str:
        shapes = ", ".join("×".join(map(str, form.shape)) or "a number" for form in self.forms)
        return f"'{self.name}' on {shapes}"


def check_claims(calls: Iterable[OpCall]) -> None:
    """Check the claims about the ops that a model calls; equal calls are checked once.

    Raises:
        OpClaimError: an op contradicts its claim, or cannot be run; the message names op, shapes and claim.
    """
    seen: set[str] = set()
    for call in calls:
        key = repr((call.name, call.args, call.kwargs))
        if key not in seen:
            seen.add(key)
            _check(call)


def _check(call: OpCall) -> None:
    traits = traits_of(call.name)
    said = f"merge={traits.merge!r}" if traits.merge else f"channels={traits.channels!r}"
    ask = f"register {call.name} anew without {said.partition('=')[0]}= (replace=True)"
    forms = call.forms
    if not all(form.dtype.is_floating_point for form in forms):
        raise OpClaimError(f"{said} cannot be checked of {call}: it takes tensors that are not floating; {ask}")
    check = _CHECKS[traits.merge or traits.channels]
    generator = torch.Generator().manual_seed(0)
    try:
        with no_modes(), torch.no_grad(), torch.random.fork_rng(devices=_accelerators(forms)):
            fault = next(filter(None, (check(call, [f.random(s, generator) for f in forms]) for s in _SCALES)), "")
    except Exception as error:  # the user's own op, which may have no kernel here
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise OpClaimError(f"{said} cannot be checked of {call}, as it raises {why[:150]}; {ask}") from error
    if fault:
        raise OpClaimError(f"{said} does not hold of {call}: {fault}; {ask}, or with what it does")


# ---- the checks ------------------------------------------------------------------------------------------------------


def _check_sum(call: OpCall, tensors: list[Tensor]) -> str:
    return "" if _close(call.run(tensors), tensors[0] + tensors[1]) else "it does not return the sum"


def _check_product(call: OpCall, tensors: list[Tensor]) -> str:
    return "" if _close(call.run(tensors), tensors[0] * tensors[1]) else "it does not return the product"


def _check_concat(call: OpCall, tensors: list[Tensor]) -> str:
    """The op joins all tensors along one dimension, and any subset along the same."""
    made = call.run(tensors)
    sums = [sum(tensor.shape[d] for tensor in tensors) == made.shape[d] for d in range(made.dim())]
    dims = [d for d, fits in enumerate(sums) if fits and torch.equal(made, torch.cat(tensors, d))]
    if len(tensors) > 1 and not dims:
        return "it does not return its tensors side by side"
    for place in range(len(tensors) if len(tensors) > 1 else 0):
        rest = tensors[:place] + tensors[place + 1 :]
        if not torch.equal(call.run(rest), torch.cat(rest, dims[0])):
            return f"without tensor {place} it does not return the others side by side"
    return ""


def _check_elementwise(call: OpCall, tensors: list[Tensor]) -> str:
    (x,) = tensors
    return _first_fault(call, x, range(x.dim()))


def _check_spatial(call: OpCall, tensors: list[Tensor]) -> str:
    (x,) = tensors
    return _first_fault(call, x, (1,)) if x.dim() > 2 else "its tensor has no dimension beside batch and channels"


def _first_fault(call: OpCall, x: Tensor, dims: Iterable[int]) -> str:
    """The fault of the first dimension along which the result at kept indices depends on other indices."""
    whole = call.run([x])
    for dim in dims:
        if whole.dim() != x.dim() or whole.shape[dim] != x.shape[dim]:
            return f"dimension {dim} of its result has another size"
        for kept in (range(x.shape[dim] // 2, x.shape[dim]), range(0, x.shape[dim], 2)):
            index = torch.tensor(list(kept), device=x.device)
            if not _close(call.run([x.index_select(dim, index)]), whole.index_select(dim, index)):
                return f"what it makes of some indices of dimension {dim} depends on the others"
    return ""


def _check_moves(call: OpCall, tensors: list[Tensor]) -> str:
    """The result holds elements of the operand, in places that do not depend on their values."""
    (x,) = tensors
    for made, negated in zip(_listed(call.run([x])), _listed(call.run([-x])), strict=True):
        if not bool(torch.isin(made, x).all()):
            return "its result holds numbers that its tensor does not"
        if made.shape != negated.shape or not torch.equal(made, -negated):
            return "where elements go depends on what they are"
    return ""


_CHECKS: Mapping[str, Callable[[OpCall, list[Tensor]], str]] = {
    "add": _check_sum,
    "mul": _check_product,
    "cat": _check_concat,
    "elementwise": _check_elementwise,
    "spatial": _check_spatial,
    "moves": _check_moves,
}


# ---- small parts -----------------------------------------------------------------------------------------------------


def _close(one: Any, other: Tensor) -> bool:
    """Whether two tensors have the same form, and are equal up to rounding."""
    if not isinstance(one, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        return False
    size = float(other.double().abs().max()) if other.numel() else 0.0
    most = 16 * torch.finfo(other.dtype).eps
    return torch.allclose(one.double(), other.double(), rtol=most, atol=most * size, equal_nan=True)


def _listed(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def _accelerators(forms: Sequence[_Form]) -> list[int]:
    return sorted({form.device.index or 0 for form in forms if form.device.type == "cuda"})


def _formed(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Form(tuple(value.shape), value.dtype, value.device)
    if isinstance(value, (list, tuple)):
        return tuple(_formed(item) for item in cast("Sequence[Any]", value))
    if isinstance(value, dict):
        return {key: _formed(item) for key, item in cast("dict[str, Any]", value).items()}
    return value


def _forms_in(value: Any) -> list[_Form]:
    if isinstance(value, _Form):
        return [value]
    items = cast("Sequence[Any]", value) if isinstance(value, (list, tuple)) else ()
    return [form for item in items for form in _forms_in(item)]


def _filled(value: Any, left: list[Tensor]) -> Any:
    if isinstance(value, _Form):
        return left.pop(0)
    if isinstance(value, tuple) and _forms_in(value):
        taken, left[:] = list(left), []
        return taken
    return value
