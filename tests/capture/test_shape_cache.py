"""The memo of functions: on fakes a function runs once per form of its arguments, and returns what has that form."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from layerprune.capture import ShapeCache


@pytest.fixture
def memo():
    return ShapeCache(FakeTensorMode())


def fake(memo, *shape, dtype=torch.float32):
    with memo.mode:
        return torch.empty(shape, dtype=dtype)


class Counted:
    """A function that counts its runs."""

    def __init__(self, func):
        self.func, self.__name__, self.runs = func, func.__name__, 0

    def __call__(self, *args, **kwargs):
        self.runs += 1
        return self.func(*args, **kwargs)


def results(memo, func, *calls):
    counted = Counted(func)
    return [memo.functions.result(counted, args, {}) for args in calls], counted.runs


def test_a_function_runs_once_for_each_form_of_its_arguments(memo):
    pairs = [(fake(memo, 2, n), fake(memo, n, 5)) for n in (3, 3, 4, 3)]
    found, runs = results(memo, torch.matmul, *pairs)
    assert runs == 2
    assert [tuple(out.shape) for out in found] == [(2, 5)] * 4
    assert len({id(out) for out in found}) == 4


def test_strides_types_and_numbers_are_part_of_the_form(memo):
    x = fake(memo, 2, 3)
    found, runs = results(memo, torch.sum, (x, 0), (x, 1), (fake(memo, 3, 2).t(), 1), (x.to(torch.float64), 1))
    assert runs == 4
    assert [(tuple(out.shape), out.dtype) for out in found] == [
        ((3,), torch.float32),
        ((2,), torch.float32),
        ((2,), torch.float32),
        ((2,), torch.float64),
    ]


def test_a_write_that_leaves_the_form_is_made_once_and_returns_what_was_written_into(memo):
    for func in (torch.Tensor.add_, torch.Tensor.__iadd__):
        targets = [fake(memo, 2, 3), fake(memo, 2, 3)]
        found, runs = results(memo, func, *((x, fake(memo, 3)) for x in targets))
        assert found[0] is targets[0]
        assert found[1] is targets[1]
        assert runs == 1


def test_an_assignment_returns_nothing_from_memory_either(memo):
    found, runs = results(memo, torch.Tensor.__setitem__, *[(fake(memo, 4, 3), 0, fake(memo, 3)) for _ in range(3)])
    assert found == [None] * 3
    assert runs == 1


def test_a_write_that_changes_the_form_runs_every_time(memo):
    targets = [fake(memo, 1, 3) for _ in range(3)]
    _, runs = results(memo, torch.Tensor.squeeze_, *((x,) for x in targets))
    assert runs == 3
    assert all(tuple(x.shape) == (3,) for x in targets)


def test_what_fails_fails_every_time(memo):
    for _ in range(2):
        with pytest.raises(RuntimeError):
            memo.functions.result(torch.matmul, (fake(memo, 2, 3), fake(memo, 2, 3)), {})
        with pytest.raises(RuntimeError):
            memo.functions.result(torch.Tensor.__setitem__, (fake(memo, 4, 3), 0, fake(memo, 5)), {})


def test_a_tensor_with_values_is_no_form(memo):
    x = torch.arange(6.0).reshape(2, 3)
    found, runs = results(memo, torch.sum, (x, 0), (2 * x, 0))
    assert runs == 2
    assert torch.equal(found[1], torch.tensor([6.0, 10.0, 14.0]))


def test_a_function_that_hands_its_argument_back_still_does(memo):
    x, y = fake(memo, 2, 3), fake(memo, 2, 3)
    found, _ = results(memo, torch.Tensor.contiguous, (x,), (y,))
    assert found[0] is x
    assert found[1] is y


def test_functions_inside_are_recalled(memo):
    x = fake(memo, 2, 3)
    with memo.mode, memo.recalling():
        first = (x + 1).transpose(0, 1)
        known = len(memo.functions.known)
        second = (x + 1).transpose(0, 1)
    assert known >= 2
    assert len(memo.functions.known) == known
    assert first.shape == second.shape == (3, 2)
    assert first.stride() == second.stride() == (1, 3)
