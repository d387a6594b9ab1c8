"""The op table: one entry an op, and names that tell torch's ops from those of other libraries."""

from collections import Counter

import pytest
import torch

from layerprune.tensors import KINDS, op_name, traits_of
from layerprune.tensors.op_traits import _TABLE


def names_with(**traits):
    """The ops of the table that have these traits."""
    return {
        name
        for entry, names in _TABLE
        for name in names.split()
        if all(getattr(entry, trait) == value for trait, value in traits.items())
    }


def test_every_op_has_one_entry_and_a_known_kind():
    counts = Counter(name for _, names in _TABLE for name in names.split())
    assert {name for name, count in counts.items() if count > 1} == set()
    assert {entry.kind for entry, _ in _TABLE} == set(KINDS)


def test_of_an_op_in_no_table_nothing_is_known():
    assert (traits_of("cumsum").kind, traits_of("cumsum").merge, traits_of("cumsum").channels) == ("other", "", "")


def test_forms_of_one_merge_are_the_same_merge():
    assert names_with(is_sum=True) == {"add", "iadd", "radd"}
    assert names_with(is_left_only=True) == {"sub", "isub", "subtract"}
    assert names_with(merge="mul") == {"mul", "imul", "rmul", "multiply"}
    assert names_with(merge="cat") == {"cat", "concat", "concatenate"}
    assert names_with(joins=True) == {"cat", "concat", "concatenate", "stack"}


@pytest.mark.parametrize("name", sorted(names_with(channels="elementwise") - {"stochastic_depth", "alias", "data"}))
def test_an_elementwise_op_leaves_other_elements_alone(name):
    function = getattr(torch.Tensor, name, None) or getattr(torch, name, None) or getattr(torch.nn.functional, name)
    casts = {"to": (torch.float64,), "type": (torch.float64,)}
    numbers = {"clamp": (-1.0, 1.0), "clamp_min": (0.0,), "pow": (2.0,), "threshold": (0.1, 0.2)}
    dropouts = dict.fromkeys(("dropout", "dropout2d", "feature_dropout", "alpha_dropout"), (0.5, False))
    given = {**casts, **numbers, **dropouts}.get(name, ())
    x = torch.rand(3, 4, 5, 5).add_(0.1)
    torch.testing.assert_close(function(x.clone(), *given)[:, 1:3], function(x[:, 1:3].clone(), *given))


@pytest.mark.parametrize("name", sorted(names_with(keeps_order=True) - {"dropout", "alias", "data"}))
def test_what_keeps_the_order_does(name):
    arguments = {"view": (2, 6), "reshape": (2, 6), "unflatten": (1, (2, 2)), "unsqueeze": (1,)}
    like = torch.zeros(2, 6)
    given = {**arguments, "view_as": (like,), "reshape_as": (like,)}.get(name, ())
    x = torch.arange(12).view(3, 4)
    assert torch.equal(getattr(x, name)(*given).flatten(), x.flatten())


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.Tensor.__iadd__, "iadd"),
        (torch.Tensor.__rmul__, "rmul"),
        (torch.Tensor.add_, "add"),
        (torch.Tensor.T.__get__, "T"),
        (torch.ops.aten.add, "add"),
        (torch.nn.functional.relu, "relu"),
    ],
)
def test_torchs_functions_are_named_without_the_underscores_of_their_form(function, name):
    assert op_name(function) == name


def test_the_op_of_a_library_is_named_with_it_however_it_is_called():
    library = torch.library.Library("lp_naming", "DEF")
    library.define("add(Tensor a, Tensor b) -> Tensor")
    assert op_name(torch.ops.lp_naming.add) == "lp_naming::add"
    assert op_name(torch.ops.lp_naming.add.default) == "lp_naming::add"
    assert traits_of("lp_naming::add").merge == ""
