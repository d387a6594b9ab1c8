"""Outputs: their form, and how far two of them are apart."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from menagerie.entry import Batch
from menagerie.outcomes import Wrong
from menagerie.weights import perturbed
from oracle.simulation import tensors

TOLERANCE = 1e-9  # of the largest element, in float64
_NUDGE = 1e-15  # relative; what rounding does to the inputs, at the least
_AMPLIFIED = 100  # times what a nudge does is still rounding
_NEGLIGIBLE = 1e-12  # an output this much smaller than another one is measured by that one


def run(model: nn.Module, batch: Batch) -> Any:
    """One forward without gradients, on copies of the arguments, from the same RNG state each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return model(*copies(batch[0]), **copies(batch[1]))


def copies(value: Any) -> Any:
    """Copy arguments, which a forward may write into."""
    if isinstance(value, dict):
        return {key: copies(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(copies(item) for item in value)
    return value.clone() if isinstance(value, Tensor) else value


def form(value: Any) -> Any:
    """The structure of an output: types, keys, shapes and dtypes; of a cache, its type."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, Mapping):
        return type(value), [(key, form(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [form(item) for item in value]
    return type(value), [form(tensor) for tensor in results(value)]


def results(value: Any) -> Iterator[Tensor]:
    """The tensors of an output, without those in caches: these are state, one slot per layer, and layers have left."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from results(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from results(item)
    elif not isinstance(value, _caches()):
        yield from tensors(value)


def _caches() -> tuple[type, ...]:
    """The classes of caches: transformers', in a process that has a transformers model."""
    found = sys.modules.get("transformers.cache_utils")
    return (found.Cache,) if found else ()


def check_form(found: Any, expected: Any) -> None:
    if form(found) != form(expected):
        raise Wrong(f"the output's form has changed: {form(expected)} to {form(found)}")


def distance(found: Any, expected: Any) -> float:
    """The largest difference of two outputs of one form, relative to the largest element; NaN and infinities alike."""
    check_form(found, expected)
    pairs = list(zip(results(found), results(expected), strict=True))
    if not pairs:
        raise Wrong("the output holds no tensor")
    largest = max(_size(b) for _, b in pairs)
    return max(_apart(a, b, largest * _NEGLIGIBLE) for a, b in pairs)


def _apart(found: Tensor, expected: Tensor, negligible: float) -> float:
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(found, expected) else float("inf")
    finite = expected.isfinite()
    if not torch.equal(found.isfinite(), finite) or not torch.equal(
        found[~finite].nan_to_num(), expected[~finite].nan_to_num()
    ):
        return float("inf")
    gap = float((found[finite] - expected[finite]).abs().max()) if bool(finite.any()) else 0.0
    return gap / max(_size(expected), negligible, 1e-300)


def _size(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def rounding(model: nn.Module, batch: Batch) -> float:
    """How far rounding may move a model's output: measured by nudging its inputs, or its weights if these are ids."""
    original = run(model, batch)
    torch.manual_seed(1)
    if any(tensor.is_floating_point() for tensor in tensors(batch)):
        return _AMPLIFIED * distance(run(model, _nudged(batch)), original)
    with perturbed(model, _NUDGE):
        return _AMPLIFIED * distance(run(model, batch), original)


def _nudged(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nudged(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_nudged(item) for item in value)
    if isinstance(value, Tensor) and value.is_floating_point():
        return value * (1 + _NUDGE * torch.randn_like(value))
    return value
