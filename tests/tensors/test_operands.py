"""Operands: what an operation takes and writes into, at any place of its call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedFakeTensorException

from layerprune.tensors import KeepsIntegers, flat_tensors, form_of, written_tensors

ATEN = torch.ops.aten
A, B, C = (torch.zeros(2) for _ in range(3))


def test_tensors_are_found_in_containers_in_order() -> None:
    found = list(flat_tensors((A, [B, (1, "x", C)], {"out": A})))
    assert [id(tensor) for tensor in found] == [id(A), id(B), id(C), id(A)]


def test_the_form_of_arguments_tells_containers_apart_and_asks_for_all_else() -> None:
    def leaf(value: object) -> object:
        return "tensor" if isinstance(value, Tensor) else value

    assert form_of((A, [B, 2], {"dim": slice(0, 1)}), leaf) == (
        tuple,
        "tensor",
        (list, "tensor", 2),
        (dict, ("dim", (slice, 0, 1, None))),
    )
    assert form_of([A], leaf) != form_of((A,), leaf)


@pytest.mark.parametrize(
    ("func", "args", "kwargs", "written"),
    [
        (ATEN.add.Tensor, (A, B), {}, []),
        (ATEN.add_.Tensor, (A, B), {}, [A]),
        (ATEN.add.out, (A, B), {"out": C}, [C]),
        (ATEN.add_.Tensor, (), {"self": A, "other": B}, [A]),
        (ATEN._foreach_add_.List, ([A, B], [C, C]), {}, [A, B]),
        (torch.add, (A, B), {"out": C}, []),
    ],
    ids=["none", "first", "out", "by name", "list", "no schema"],
)
def test_what_an_operation_writes_into(func: object, args: tuple, kwargs: dict, written: list[Tensor]) -> None:
    assert [id(tensor) for tensor in written_tensors(func, args, kwargs)] == [id(tensor) for tensor in written]


def test_an_unknown_value_written_into_known_integers_is_refused_wherever_they_stand() -> None:
    mode = FakeTensorMode()
    unknown, known = mode.from_tensor(torch.zeros(2, dtype=torch.long)), torch.zeros(2, dtype=torch.long)
    with mode, KeepsIntegers(mode):
        with pytest.raises(UnsupportedFakeTensorException, match="not known"):
            known.add_(unknown)
        with pytest.raises(UnsupportedFakeTensorException, match="not known"):
            torch.add(unknown, unknown, out=known)
