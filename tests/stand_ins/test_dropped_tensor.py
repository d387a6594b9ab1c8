"""The dropped tensor: merges of its kinds leave it out, other functions hand it on, and it never guesses."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from layerprune.errors import DroppedTensorError
from layerprune.stand_ins import (
    DroppedBranch,
    DroppedTensor,
    PassThrough,
    SkipsDropped,
    dropped,
    dropped_tensors,
    watching_merges,
)
from models.nets import Net, copy_of, linear, rows

ALL = ("add", "mul", "cat", "bypass")


# ---- merges of its kinds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "merge",
    [
        lambda x, d: x + d,
        lambda x, d: d + x,
        lambda x, d: torch.add(x, d),
        lambda x, d: x.add(d),
        lambda x, d: torch.add(d, x, alpha=2),
        lambda x, d: x - d,
        lambda x, d: torch.sub(x, d),
    ],
)
def test_a_sum_leaves_it_out(merge):
    x = rows()
    assert merge(x, dropped(["add"])) is x


@pytest.mark.parametrize(
    "merge", [lambda x, d: x * d, lambda x, d: d * x, lambda x, d: torch.mul(x, d), lambda x, d: x.multiply(d)]
)
def test_a_product_leaves_it_out(merge):
    x = rows()
    assert merge(x, dropped(["mul"])) is x


@pytest.mark.parametrize("cat", [torch.cat, torch.concat, torch.concatenate])
def test_a_concat_joins_the_others(cat):
    x, y, token = rows(), rows(seed=2), dropped(["cat"])
    joined = torch.cat([x, y], 1)
    assert torch.equal(cat([x, token, y], dim=1), joined)
    assert torch.equal(cat((token, x, y, token), 1), joined)
    assert torch.equal(cat(tensors=[x, y, token], dim=-1), joined)


def test_a_concat_of_dropped_tensors_only_is_dropped():
    token = dropped(["cat"])
    assert isinstance(torch.cat([token, token], 1), DroppedTensor)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, d: F.linear(x, d, d),
        lambda x, d: F.linear(x, d),
        lambda x, d: F.linear(input=x, weight=d),
        lambda x, d: F.conv2d(x, d, d, padding=1),
        lambda x, d: F.conv1d(x, d),
    ],
)
def test_a_transform_whose_weight_is_dropped_hands_its_input_on(function):
    x = rows()
    assert function(x, dropped(["bypass"])) is x


def test_a_sum_of_two_dropped_tensors_is_dropped():
    token = dropped(["add"])
    assert isinstance(token + token, DroppedTensor)
    assert isinstance(token + 1, DroppedTensor)
    assert isinstance(2 * dropped(["mul"]), DroppedTensor)


def test_the_left_side_of_a_subtraction_cannot_be_dropped():
    with pytest.raises(DroppedTensorError, match="sign"):
        dropped(["add"]) - rows()


# ---- in place --------------------------------------------------------------------------------------------------------


def test_writing_it_into_a_tensor_leaves_that_very_tensor_unchanged():
    x = rows()
    kept = x
    x += dropped(["add"])
    assert x is kept
    assert x.add_(dropped(["add"])) is kept
    x *= dropped(["mul"])
    assert x.mul_(dropped(["mul"])) is kept
    x -= dropped(["add"])
    assert x is kept
    assert torch.equal(x, rows())


def test_writing_into_it_yields_the_other_tensor():
    x = rows()
    token = dropped(["add"])
    token += x
    assert token is x
    assert torch.equal(x, rows())


def test_with_copies_a_merge_hands_on_a_copy():
    x = rows()
    for out in (x + dropped(["add"], copies=True), dropped(["mul"], copies=True) * x):
        assert out is not x
        assert torch.equal(out, x)
        out.zero_()
        assert torch.equal(x, rows())


def test_with_copies_writing_into_the_dropped_tensor_spares_the_other():
    x = rows()
    token = dropped(["add"], copies=True)
    token += x
    token.relu_()
    assert torch.equal(x, rows())


def test_with_copies_an_augmented_assignment_still_keeps_the_object():
    x = rows()
    kept = x
    x += dropped(["add"], copies=True)
    assert x is kept


def test_an_out_argument_cannot_take_it():
    with pytest.raises(DroppedTensorError, match="out="):
        torch.add(rows(), dropped(["add"]), out=torch.empty(4, 8))


# ---- other functions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda d: F.relu(d),
        lambda d: d.relu_(),
        lambda d: d.view(2, -1),
        lambda d: d.transpose(0, 1),
        lambda d: d.T,
        lambda d: d[:, 0],
        lambda d: F.linear(d, torch.ones(2, 2)),
        lambda d: F.layer_norm(d, (8,)),
        lambda d: F.max_pool2d(d, 2),
        lambda d: d.mean(1),
        lambda d: d.contiguous(),
        lambda d: d.to(torch.float16),
        lambda d: d * rows(),  # a merge, but not of its kind
        lambda d: torch.stack([rows(), d]),
        lambda d: torch.matmul(rows(), d),
        lambda d: F.dropout(d, 0.5, True),
        lambda d: F.scaled_dot_product_attention(d, d, d),
        lambda d: torch.where(rows() > 0, rows(), d),
        lambda d: -d,
        lambda d: d / 2,
        lambda d: 1 - d,
    ],
)
def test_any_other_function_of_it_is_dropped_too_and_keeps_its_kinds(function):
    token = function(dropped(["add"]))
    assert isinstance(token, DroppedTensor)
    assert token.merges == {"add"}
    x = rows()
    assert x + token is x


def test_of_several_dropped_operands_the_one_that_a_merge_leaves_out_is_handed_on():
    scale, branch = dropped([]), dropped(["add"])
    x = rows()
    for product in (scale * branch, branch * scale, torch.stack([scale, branch])):
        assert product.merges == {"add"}
        assert x + product is x


@pytest.mark.parametrize("module", [nn.ReLU(), nn.LayerNorm(8), nn.Dropout(0.5), linear(), nn.Flatten(), nn.PReLU()])
def test_modules_of_torch_hand_it_on(module):
    x = rows()
    for training in (True, False):
        assert x + module.train(training)(dropped(["add"])) is x


def test_functions_that_return_several_tensors_return_several_dropped_ones():
    token = dropped(["add"])
    for pieces, number in (
        (token.chunk(3, dim=1), 3),
        (torch.chunk(token, chunks=2), 2),
        (token.split([2, 3, 3], 1), 3),
        (torch.split(token, split_size_or_sections=[4, 4]), 2),
    ):
        assert isinstance(pieces, tuple)
        assert len(pieces) == number
        assert all(isinstance(piece, DroppedTensor) for piece in pieces)


@pytest.mark.parametrize("module", [nn.BatchNorm1d(8), nn.MultiheadAttention(8, 2), nn.LSTM(8, 8)])
def test_modules_that_look_at_a_shape_first_raise(module):
    token = dropped(["add"])
    with pytest.raises(DroppedTensorError, match="'dim'"):
        module(*[token] * (3 if isinstance(module, nn.MultiheadAttention) else 1))


# ---- what it cannot answer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda d: d.shape,
        lambda d: d.size(0),
        lambda d: d.dim(),
        lambda d: d.ndim,
        lambda d: d.numel(),
        lambda d: len(d),
        lambda d: d.stride(),
        lambda d: bool(d),
        lambda d: bool(d.sum() > 0),
        lambda d: float(d),
        lambda d: int(d),
        lambda d: d.item(),
        lambda d: d.tolist(),
        lambda d: d.numpy(),
        lambda d: list(d),
        lambda d: [*d],
        lambda d: d.unbind(0),
        lambda d: torch.equal(d, d),
        lambda d: torch.allclose(d, d),
        lambda d: d.nonzero(),
        lambda d: list(d.split(2)),
        lambda d: len(d.split(2)),
        lambda d: d.split(2)[1:],
        lambda d: [1, 2, 3][d],
    ],
)
def test_shape_truth_values_and_iteration_raise_in_a_forward(ask):
    with pytest.raises(DroppedTensorError):
        Net(lambda net, d: ask(d))(dropped(ALL))


def test_a_method_that_is_called_past_the_modules_call_is_a_forward_too():
    model = Net(lambda net, d: d.shape)
    with pytest.raises(DroppedTensorError):
        model.forward(dropped(ALL))


def test_a_piece_of_a_split_into_pieces_of_a_given_size_is_dropped():
    token = dropped(ALL)
    assert token.split(2, 1)[3] is token
    assert torch.split(token, 2, 1)[-1] is token


def test_dtype_and_device_may_be_asked_for():
    token = dropped(ALL)
    assert token.dtype == torch.float32
    assert token.device == torch.device("cpu")
    assert token.requires_grad is False


def test_the_error_names_what_was_read():
    with pytest.raises(DroppedTensorError, match="'shape'"):
        Net(lambda net, d: d.shape)(dropped(ALL))


@pytest.mark.parametrize("cast", [lambda d: d.bool(), lambda d: d.int(), lambda d: d.float(), lambda d: d.long()])
def test_a_cast_is_no_truth_value(cast):
    assert isinstance(Net(lambda net, d: cast(d))(dropped(ALL)), DroppedTensor)


# ---- as an object ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda branch: pickle.loads(pickle.dumps(branch))], ids=["deepcopy", "pickle"]
)
def test_it_survives_a_copy_with_its_kinds(again):
    branch = DroppedBranch(["add"], {"tuple": ["tensor", {"value": None}]}, copies=True)
    token, nothing = again(branch)(rows())
    assert nothing is None
    assert isinstance(token, DroppedTensor)
    assert (token.merges, token.copies) == ({"add"}, True)
    x = rows()
    assert torch.equal(x + token, x)


def test_it_is_made_real_even_where_a_mode_would_make_it_fake():
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        assert not isinstance(dropped(["add"]), FakeTensor)


# ---- the modules around it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        ("tensor", "T"),
        ("argument", "A"),
        ({"tuple": ["tensor", {"value": None}]}, ("T", None)),
        ({"list": ["argument", "tensor"]}, ["A", "T"]),
        ({"dict": {"y": "argument", "n": {"value": 3}}}, {"y": "A", "n": 3}),
        ({"tuple": [{"dict": {"h": {"list": ["tensor"]}}}]}, ({"h": ["T"]},)),
    ],
)
def test_a_stand_in_returns_what_was_recorded_and_arguments_in_their_places(structure, expected):
    stand_in = PassThrough(0, None, structure)
    stand_in.token = "T"
    assert stand_in("A") == expected


def test_a_structure_of_no_known_form_is_an_error():
    with pytest.raises(DroppedTensorError, match="cannot be rebuilt"):
        DroppedBranch(["add"], None)


def test_a_dropped_branch_takes_whatever_its_module_took():
    x = rows()
    branch = DroppedBranch(["add"])
    assert x + branch(x, mask=None, cache=[1]) is x
    assert list(branch.parameters()) == []
    assert branch.state_dict() == {}


def test_a_pass_through_hands_on_the_argument_by_position_or_keyword():
    x, y = rows(), rows(seed=2)
    assert PassThrough(1, None)(x, y) is y
    assert PassThrough(1, "hidden")(x, y) is y
    assert PassThrough(1, "hidden")(x, hidden=y) is y
    assert PassThrough(None, "hidden")(hidden=y) is y
    out = PassThrough(0, None, {"tuple": ["argument", "tensor"]})(x)
    assert out[0] is x
    assert isinstance(out[1], DroppedTensor)


def test_a_pass_through_that_copies_spares_its_argument():
    x = rows()
    out = PassThrough(0, None, copies=True)(x)
    out.zero_()
    assert torch.equal(x, rows())


def test_a_pass_through_without_its_argument_says_which():
    with pytest.raises(DroppedTensorError, match="hidden"):
        PassThrough(0, "hidden")(mask=None)


def test_a_guard_hands_dropped_tensors_past_its_module_and_everything_else_through():
    class Scaled(nn.Module):
        def forward(self, x, factor=2):
            return x * factor / x.shape[0]

    x, guard = rows(), SkipsDropped(Scaled())
    token = dropped(["add"])
    assert guard(token) is token
    assert torch.equal(guard(x, factor=4), x)


def test_merges_that_leave_it_out_are_counted_while_watched():
    model = Net(
        lambda net, x: net.b(x + net.a(x)) + torch.cat([net.a(x), x]).sum(), a=DroppedBranch(["add", "cat"]), b=linear()
    )
    with watching_merges(dropped_tensors(model), {id(model): "net"}) as merges:
        model(rows())
    assert [kind for kind, _ in merges] == ["add", "cat"]
    assert all(place.startswith("net ") for _, place in merges)
    assert merges[0][1] != merges[1][1]
    model(rows())
    assert len(merges) == 2


class Adapted(nn.Module):
    """As LoRA does it: the adapter's result is brought to the type of what it is added to."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = linear(), linear(8, 2), linear(2, 8)

    def forward(self, x):
        out = self.base(x)
        kind = out.dtype
        return (out + self.up(self.down(x))).to(kind)


@pytest.mark.parametrize("later", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("first", [torch.float32, torch.float64, torch.bfloat16])
def test_a_dropped_tensor_is_of_the_type_that_the_model_computes_in_now_and_later(first, later):
    model = Net(lambda net, x: net.head(net.a(net.stem(x))), stem=linear(), a=Adapted(), head=linear()).to(first)
    pruned = UniversalLayerPruner(model, example_inputs=rows().to(first)).prune(groups=["a.base"])
    for one in (pruned.to(later), copy_of(pruned)):
        x = rows().to(later)
        by_hand = one.head(one.a.up(one.a.down(one.stem(x))))
        assert by_hand.dtype == later
        assert torch.equal(one(x), by_hand)
