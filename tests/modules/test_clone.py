"""A clone is a model of its own: what closes over the original's layers closes over the copy's."""

import copy
import functools

import torch
from torch import nn

from layerprune.modules import clone, own
from models.nets import Photograph, linear, rows


def two():
    return nn.Sequential(linear(), linear())


def assert_independent(model):
    """A copy runs as the original does, and on weights of its own."""
    before = Photograph(model)
    twin, expected = clone(model, own), model(rows())
    assert torch.equal(twin(rows()), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(rows()).any(), "something of the original still runs in it"
    assert torch.equal(model(rows()), expected)
    assert before.difference(Photograph(model)) == ""


def test_a_forward_that_was_replaced_by_a_closure_over_the_old_one():
    model = two()
    old = model[0].forward
    model[0].forward = lambda x: 2 * old(x)
    assert_independent(model)


def test_a_forward_that_closes_over_the_model_its_tensors_and_another_closure():
    model = two()
    weight = model[1].weight

    def inner(x):
        return model[0](x) @ weight.t()

    def outer(x, again=inner):
        return again(x) if x.dim() else outer(x[None])

    model.forward = outer
    assert_independent(model)


def test_a_bound_method_and_a_partial():
    model = two()
    model[0].old = model[0].forward
    model.forward = functools.partial(nn.Sequential.forward, model)
    model[0].forward = functools.partial(torch.nn.functional.linear, weight=model[0].weight, bias=model[0].bias)
    assert_independent(model)
    assert clone(model, own)[0].old.__self__ is not model[0]


def test_hooks_close_over_the_copy_and_their_own_state_stays_shared():
    model, seen = two(), []
    model[0].register_forward_hook(lambda module, args, out: seen.append(module is model[0]) or model[1](out))
    twin = clone(model, own)
    twin(rows())
    assert seen == [True], "its own closure speaks of its own model"
    assert_independent(model)


def test_a_function_that_closes_over_nothing_of_the_model_is_shared():
    model, outside = two(), linear()
    model.first, model.second = (lambda x: outside(x)), copy.copy
    twin = clone(model, own)
    assert twin.first is model.first
    assert twin.second is copy.copy


def test_a_closure_whose_variable_has_no_value_yet():
    model = two()

    def later(x):
        return model(x) + offset

    model.later = later
    twin = clone(model, own)
    offset = 1.0
    assert twin.later is not later
    for each in (model, twin):
        assert torch.equal(each.later(rows()), model(rows()) + offset)
