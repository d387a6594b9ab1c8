"""Finds modules that return numbers which follow from the size of the model's input."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from layerprune.capture import Sandbox, record_results
from layerprune.edits import Drop, Edit, Pass
from layerprune.graph import LayerGraph, Refusal, RefusalCode
from layerprune.inputs import Inputs
from layerprune.tensors import OutputTree


class SizeConstants:
    """Finds the stand-ins whose constants are right for one input size only.

    A vision transformer's stage may return the height and width of its map next to its tokens. A stand-in returns
    recorded constants, so these must be the same on larger inputs. The sandbox must not use a shape cache yet.
    """

    def __init__(self, shade: Sandbox, graph: LayerGraph, inputs: Inputs) -> None:
        self.moving: frozenset[str] = frozenset()
        recorded = {frame.key: found for frame in graph.frames if (found := _numbers(frame.result))}
        larger = inputs.map(_larger)
        if recorded and any(a is not b for a, b in zip(larger.tensors(), inputs.tensors(), strict=True)):
            results = record_results(shade, larger)  # none where the model takes one size only
            self.moving = frozenset(
                call.fqn for call, found in recorded.items() if call in results and _numbers(results[call]) != found
            )

    def check(self, edits: tuple[Edit, ...]) -> None:
        """Raise :class:`Refusal` where a stand-in would return numbers that depend on the input size."""
        for edit in edits:
            if not isinstance(edit, (Pass, Drop)) or edit.fqn not in self.moving:
                continue
            if _numbers(OutputTree.from_json(edit.structure)):
                raise Refusal(RefusalCode.SIZE_IN_RESULT, edit.fqn)


def _larger(tensor: Tensor) -> Tensor:
    """Images of twice the height and width, sequences of twice the length."""
    if tensor.dim() == 4 and tensor.is_floating_point():
        return tensor.repeat(1, 1, 2, 2)
    if tensor.dim() == 2 and not tensor.is_floating_point():
        return tensor.repeat(1, 2)
    return tensor.repeat(1, 2, 1) if tensor.dim() == 3 and tensor.is_floating_point() else tensor


def _numbers(output: OutputTree[Any] | None) -> list[float]:
    constants = () if output is None else output.constants()
    return [value for value in constants if isinstance(value, (int, float)) and not isinstance(value, bool)]
