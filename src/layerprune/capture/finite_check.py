"""Checks that a model's outputs on its data are finite, and names the first layer whose output is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.capture.calibration import Batch
from layerprune.capture.sandbox import Sandbox, real_sandbox
from layerprune.errors import NotFiniteError
from layerprune.stand_ins import DroppedTensor
from layerprune.tensors import tensors_in

_HALF = (torch.float16, torch.bfloat16)


def spoilt_inputs(batches: Sequence[Batch]) -> list[int]:
    """Numbers of the batches whose inputs hold NaN or +inf; -inf is normal in additive masks."""
    return [number for number, batch in enumerate(batches) if _spoilt(batch.inputs.tensors())]


def require_finite(model: nn.Module, batches: Sequence[Batch], numbers: Iterable[int]) -> None:
    """Run a model on batches, and refuse the first batch whose output is not finite.

    Batches on which the forward raises are skipped: these errors are reported elsewhere.

    Raises:
        NotFiniteError: an output holds NaN or +inf; the message names the batch and the first layer.
    """
    for number, found in _spoilt_outputs(model, batches, numbers, strict=False):
        raise NotFiniteError(f"{_makes(number, found)}. Leave the batch out, or mend the data or the model")


def finite_ones(model: nn.Module, batches: Sequence[Batch]) -> tuple[list[Batch], tuple[str, ...]]:
    """The batches on which a model's output is finite, and a note on the others; :class:`NotFiniteError` if none is."""
    spoilt = dict(_spoilt_outputs(model, batches, range(len(batches)), strict=True))
    if not spoilt:
        return list(batches), ()
    makes = _makes(*next(iter(spoilt.items())))
    if len(spoilt) == len(batches):
        raise NotFiniteError(f"{makes}, and so do all others. Mend the data or the model")
    note = f"{len(spoilt)} of {len(batches)} calibration batches are left out: {makes}"
    return [batch for number, batch in enumerate(batches) if number not in spoilt], (note,)


def _makes(number: int, found: str) -> str:
    return f"batch {number} of the calibration data makes an output that is not finite: {found}"


def _spoilt_outputs(
    model: nn.Module, batches: Sequence[Batch], numbers: Iterable[int], *, strict: bool
) -> Iterator[tuple[int, str]]:
    """Numbers of the batches on which a model's output is not finite, and the first such layer."""
    shade: Sandbox | None = None
    for number in numbers:
        shade = shade or real_sandbox(model)
        if found := first_not_finite(shade, batches[number], strict=strict):
            yield number, found


def first_not_finite(shade: Sandbox, batch: Batch, *, strict: bool = False) -> str:
    """The first layer with NaN or infinite outputs, and the cause; empty if the output is finite or the forward raises.

    With ``strict``, -inf counts as well, which may be the logit of an excluded class or token.
    """
    feeds: list[tuple[str, nn.Module, str]] = []
    hooks = [
        module.register_forward_hook(_watching(name, feeds, strict=strict))
        for name, module in shade.model.named_modules()
    ]
    try:
        out = shade.forward(batch.inputs, fast_path=False)
    except Exception:  # user code; the error is raised where the batch is used
        return ""
    finally:
        for hook in hooks:
            hook.remove()
    if not (what := _spoilt(tensors_in(out), strict=strict)):
        return ""
    name, module, what = feeds[0] if feeds else ("", shade.model, what)
    where = f"'{name}' ({type(module).__name__})" if name else f"the forward of {type(module).__name__} itself"
    return f"{where} is the first layer that feeds {what}{_why(name, module, batch, out)}"


def _watching(name: str, feeds: list[tuple[str, nn.Module, str]], *, strict: bool) -> Any:
    """A hook that records outputs that are not finite; of nested modules the innermost comes first."""

    def hook(module: nn.Module, _args: Any, out: Any) -> None:
        if not feeds and (what := _spoilt(tensors_in(out), strict=strict)):
            feeds.append((name, module, what))

    return hook


def _why(name: str, module: nn.Module, batch: Batch, out: Any) -> str:
    """The likely cause of a layer's output that is not finite."""
    if what := _spoilt(batch.inputs.tensors()):
        return f": the batch itself holds {what}"
    held = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    for key, tensor in held:
        if what := _spoilt([tensor]):
            return f": its '{f'{name}.{key}' if name else key}' holds {what}"
    half = next((tensor.dtype for tensor in tensors_in(out) if tensor.dtype in _HALF), None)
    if half is not None:
        return f"; {str(half).removeprefix('torch.')} ends at {torch.finfo(half).max:.3g}: prune a float32 copy"
    return ""


def _spoilt(tensors: Iterable[Tensor], *, strict: bool = False) -> str:
    """``NaN`` or ``infinite values``, whichever tensors hold; empty where they hold neither."""
    for tensor in tensors:
        if (
            isinstance(tensor, DroppedTensor)
            or tensor.is_meta
            or not (tensor.is_floating_point() or tensor.is_complex())
        ):
            continue
        try:
            if bool(tensor.isnan().any()):
                return "NaN"
            one_sided = tensor.is_floating_point() and not strict
            if bool((tensor.isposinf() if one_sided else tensor.isinf()).any()):
                return "infinite values"
        except (NotImplementedError, RuntimeError):  # dtypes and layouts that torch cannot compare
            continue
    return ""
