"""Registering ops: what an op may be said to be, and what is refused at once."""

import pytest
import torch
from torch import nn

from layerprune import register_op
from layerprune.cost import count_macs
from layerprune.cost.macs import tally_macs
from layerprune.errors import ArgumentError, CostError, OpClaimError
from layerprune.graph import kind_of_function
from layerprune.inputs import as_inputs
from layerprune.tensors import OpCall, check_claims, traits_of
from layerprune.tensors.op_traits import registered_ops, unregister
from models import custom_ops as ops
from models.nets import Net, parameter


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    yield
    for name in registered_ops():
        unregister(name)


@pytest.mark.parametrize("op", [ops.join, "lp_tests::join", torch.ops.lp_tests.join, torch.ops.lp_tests.join.default])
def test_an_op_is_registered_by_itself_or_by_its_name(op):
    register_op(op, merge="add")
    assert traits_of("lp_tests::join").is_sum
    assert kind_of_function("lp_tests::join", 2, has_matrix=False) == "merge"


def test_what_an_op_does_tells_its_kind_unless_that_is_said():
    register_op(ops.rectify, channels="elementwise")
    register_op(ops.halve, channels="spatial", kind="other")
    register_op(ops.matrix, kind="transform")
    kinds = [traits_of(f"lp_tests::{name}").kind for name in ("rectify", "halve", "matrix")]
    assert kinds == ["activation", "other", "transform"]


@pytest.mark.parametrize(
    ("op", "said", "why"),
    [
        ("lp_tests::nothing", {"kind": "other"}, "torch has no op 'lp_tests::nothing'"),
        ("add", {"merge": "add"}, "torch has no op 'add'"),
        ("aten::add", {"merge": "add"}, "'add.* is torch's own, and known"),
        (torch.ops.aten.relu, {"kind": "activation"}, "'relu' is torch's own"),
        (torch.relu, {"kind": "activation"}, "is no op of torch's dispatcher"),
        (7, {"kind": "activation"}, "7 is no op"),
        (ops.join, {}, "nothing is said of 'lp_tests::join'"),
        (ops.join, {"merge": "sub"}, "merge='sub' of 'lp_tests::join' is none of add, mul, cat"),
        (ops.join, {"kind": "merge"}, "is none of transform.*pass merge= for a merge"),
        (ops.join, {"kind": 3}, "kind=3"),
        (ops.rectify, {"channels": "all"}, "channels='all'"),
        (ops.join, {"merge": "add", "kind": "other"}, "cannot be a merge and something else"),
        (ops.join, {"merge": "add", "channels": "moves"}, "cannot be a merge and something else"),
        (ops.rectify, {"merge": "add"}, "is for an op that takes two tensors"),
        (ops.join, {"merge": "cat"}, "is for an op that takes a list of tensors first"),
        (ops.join, {"channels": "elementwise"}, "is for an op that takes one tensor, first"),
        (ops.matrix, {"macs": 3}, "macs= of 'lp_tests::matrix' is 3: pass a function"),
        (ops.matrix, {"macs": lambda x, w: 1}, "takes no out_shape"),
    ],
)
def test_nonsense_is_refused_and_nothing_is_registered(op, said, why):
    with pytest.raises(ArgumentError, match=why):
        register_op(op, **said)
    assert registered_ops() == {}


def test_an_op_that_writes_into_its_argument_is_no_merge():
    library = torch.library.Library("lp_writes", "DEF")
    library.define("join_(Tensor(a!) a, Tensor b) -> Tensor")
    with pytest.raises(ArgumentError, match="writes into none"):
        register_op("lp_writes::join_", merge="add")


def test_registering_twice_is_refused_unless_it_is_to_replace():
    register_op(ops.join, kind="other")
    with pytest.raises(ArgumentError, match="pass replace=True"):
        register_op(ops.join, merge="add")
    assert traits_of("lp_tests::join").kind == "other"
    register_op(ops.join, merge="add", replace=True)
    assert traits_of("lp_tests::join").merge == "add"


# ---- checks ----------------------------------------------------------------------------------------------------------


def test_an_op_that_cannot_be_run_is_refused_and_the_error_says_why():
    library = torch.library.Library("lp_no_kernel", "DEF")
    library.define("join(Tensor a, Tensor b) -> Tensor")
    register_op("lp_no_kernel::join", merge="add")
    x = torch.zeros(2, 3)
    with pytest.raises(OpClaimError, match=r"cannot be checked of 'lp_no_kernel::join' on 2×3, 2×3, as it raises"):
        check_claims([OpCall.of("lp_no_kernel::join", torch.ops.lp_no_kernel.join, (x, x), {})])


def test_whole_numbers_are_not_checked_and_so_refused():
    register_op(ops.join, merge="add")
    x = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(OpClaimError, match="it takes tensors that are not floating"):
        check_claims([OpCall.of("lp_tests::join", ops.join, (x, x), {})])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_fault(dtype):
    register_op(ops.join, merge="add")
    register_op(ops.gate, merge="mul")
    register_op(ops.rectify, channels="elementwise")
    register_op(ops.halve, channels="spatial")
    register_op(ops.swap, channels="moves")
    x, row = torch.zeros(2, 8, 4, 4, dtype=dtype), torch.zeros(8, 1, 1, dtype=dtype)
    check_claims(
        [OpCall.of("lp_tests::join", ops.join, (x, row), {}), OpCall.of("lp_tests::gate", ops.gate, (x, x), {})]
    )
    check_claims(OpCall.of(f"lp_tests::{name}", getattr(ops, name), (x,), {}) for name in ("rectify", "halve", "swap"))
    register_op(ops.join, merge="mul", replace=True)  # and what is wrong is a fault in every precision
    with pytest.raises(OpClaimError):
        check_claims([OpCall.of("lp_tests::join", ops.join, (x, row), {})])


def test_a_check_leaves_the_random_numbers_as_they_were():
    register_op(ops.join, merge="add")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    x = torch.zeros(2, 3)
    check_claims([OpCall.of("lp_tests::join", ops.join, (x, x), {})])
    assert torch.equal(torch.get_rng_state(), before)


# ---- MACs ------------------------------------------------------------------------------------------------------------


def multiplies() -> nn.Module:
    return Net(lambda net, x: ops.join(x, ops.matrix(x, net.w)), w=parameter(8, 8))


def test_multiply_accumulates_of_a_registered_op_are_counted():
    inputs = as_inputs(torch.zeros(3, 8))
    assert tally_macs(multiplies(), inputs).uncounted == ("lp_tests.join", "lp_tests.matrix")
    register_op(ops.matrix, kind="transform", macs=lambda x, w, out_shape: out_shape[0] * w[0] * w[1])
    register_op(ops.join, merge="add")
    found = tally_macs(multiplies(), inputs)
    assert (found.total, found.uncounted) == (3 * 64, ())


@pytest.mark.parametrize(("result", "why"), [(1.5, "returned 1.5"), (-1, "returned -1"), (None, "returned None")])
def test_a_formula_that_gives_no_number_is_an_error(result, why):
    register_op(ops.matrix, macs=lambda *shapes, out_shape: result)
    with pytest.raises(CostError, match=why):
        count_macs(multiplies(), as_inputs(torch.zeros(3, 8)))


def test_a_formula_that_raises_is_an_error():
    register_op(ops.matrix, macs=lambda x, *, out_shape: 1)
    with pytest.raises(CostError, match="macs= of 'lp_tests::matrix' raised"):
        count_macs(multiplies(), as_inputs(torch.zeros(3, 8)))
