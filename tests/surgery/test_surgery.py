"""Surgery: every edit is carried out and taken back bit for bit, all or nothing, and what is left runs at any size."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner, applied
from layerprune.adapters.transformers import stack_shortening as stacks
from layerprune.edits import Delete, Drop, DropParameter, Guard, Pass, Slice, kept_ranges, ranges
from layerprune.errors import LayerPruneError, SurgeryError
from layerprune.modules import undo as undo_log
from layerprune.stand_ins import DroppedBranch, DroppedTensor, PassThrough, SkipsDropped
from layerprune.surgery import apply as surgery
from layerprune.surgery import fold_weights as projection
from layerprune.surgery import operate
from layerprune.surgery.apply import holds_dropped
from models.nets import (
    ExampleModel,
    Net,
    Photograph,
    close,
    conv,
    copy_of,
    image,
    linear,
    parameter,
    randomised,
    rows,
    run,
    tokens,
)

AT_WORK = {module.__file__ for module in (surgery, undo_log, projection, stacks)}


def residual():
    return Net(lambda net, x: net.h((y := net.s(x)) + net.a(y)), s=linear(), a=linear(), h=linear())


def with_guarded_module():
    class Halved(nn.Module):
        def forward(self, x):
            return x / 2

    return Net(lambda net, x: x + net.g(net.a(x)), a=linear(), g=Halved())


def with_parameter():
    return Net(lambda net, x: net.h(x) + F.linear(x, net.w, net.v), w=parameter(8, 8), v=parameter(8), h=linear())


def concat():
    def forward(net, x):
        return net.h(net.act(net.bn(torch.cat([net.a(x), net.b(x)], 1))))

    return Net(forward, a=conv(3, 2), b=conv(3, 3), bn=nn.BatchNorm2d(5), act=nn.PReLU(5), h=conv(5, 4))


EDITS = {
    "Delete": (lambda: nn.Sequential(linear(), nn.ReLU(), linear()), rows, [Delete(fqn="1")]),
    "Pass": (residual, rows, [Pass(fqn="a", position=0, keyword=None)]),
    "Pass by keyword": (residual, rows, [Pass(fqn="a", position=0, keyword="input", copies=True)]),
    "Drop": (residual, rows, [Drop(fqn="a", merges=("add",))]),
    "Guard": (with_guarded_module, rows, [Drop(fqn="a", merges=("add",)), Guard(fqn="g")]),
    "DropParameter": (
        with_parameter,
        rows,
        [DropParameter(fqn="w", merges=("add",)), DropParameter(fqn="v", merges=("add",))],
    ),
    "Slice": (
        concat,
        image,
        [
            Drop(fqn="a", merges=("cat",)),
            Slice(fqn="bn", side="channels", dropped=((0, 2),)),
            Slice(fqn="act", side="channels", dropped=((0, 2),)),
            Slice(fqn="h", side="in", dropped=((0, 2),)),
        ],
    ),
}

# What is left, written by hand.
LEFT = {
    "Delete": lambda net, x: net[2](net[0](x)),
    "Pass": lambda net, x: net.h(net.s(x) * 2),
    "Pass by keyword": lambda net, x: net.h(net.s(x) * 2),
    "Drop": lambda net, x: net.h(net.s(x)),
    "Guard": lambda net, x: x,
    "DropParameter": lambda net, x: net.h(x),
    "Slice": lambda net, x: F.conv2d(
        F.prelu(
            F.batch_norm(net.b(x), net.bn.running_mean[2:], net.bn.running_var[2:], net.bn.weight[2:], net.bn.bias[2:]),
            net.act.weight[2:],
        ),
        net.h.weight[:, 2:],
        net.h.bias,
        padding=1,
    ),
}


@pytest.fixture(params=EDITS)
def edited(request):
    """(name, a model, inputs, edits)"""
    build, inputs, edits = EDITS[request.param]
    return request.param, randomised(build()), inputs, edits


# ---- every edit: done, and undone ------------------------------------------------------------------------------------


def test_an_edit_leaves_the_net_written_by_hand_at_any_batch_size(edited):
    name, model, inputs, edits = edited
    original = copy_of(model)
    operate(model, edits)
    for batch in (1, 2, 5):
        x = inputs(batch, seed=3)
        with torch.no_grad():
            assert close(run(model, x), LEFT[name](original, x))


def test_undo_restores_everything_bit_for_bit(edited):
    _, model, inputs, edits = edited
    before, output = Photograph(model), run(model, inputs())
    undo = operate(model, edits)
    assert Photograph(model) != before
    undo()
    assert Photograph(model).difference(before) == ""
    assert torch.equal(run(model, inputs()), output)


def test_undo_twice_does_no_harm(edited):
    _, model, _, edits = edited
    before = Photograph(model)
    undo = operate(model, edits)
    undo()
    undo()
    assert Photograph(model).difference(before) == ""


def test_a_model_in_train_mode_stays_in_it_stand_ins_too(edited):
    _, model, _, edits = edited
    model.train()
    before = Photograph(model)
    undo = operate(model, edits)
    assert all(module.training for module in model.modules())
    undo()
    assert Photograph(model).difference(before) == ""


def test_applied_edits_hold_inside_the_block_only(edited):
    name, model, inputs, edits = edited
    original, before = copy_of(model), Photograph(model)
    with applied(model, edits) as inside:
        assert inside is model
        with torch.no_grad():
            assert close(model(inputs()), LEFT[name](original, inputs()))
    assert Photograph(model).difference(before) == ""


def test_an_exception_inside_the_block_passes_and_the_model_is_as_it_was(edited):
    _, model, _, edits = edited
    before = Photograph(model)
    with pytest.raises(ZeroDivisionError), applied(model, edits):
        raise ZeroDivisionError
    assert Photograph(model).difference(before) == ""


def test_a_surgery_that_fails_in_the_middle_leaves_the_model_as_it_was(edited):
    _, model, _, edits = edited
    before = Photograph(model)
    with pytest.raises(SurgeryError, match="no module 'nowhere'"):
        operate(model, [*edits, Drop(fqn="nowhere", merges=("add",))])
    assert Photograph(model).difference(before) == ""


def test_an_interrupt_in_the_middle_leaves_the_model_as_it_was(edited, monkeypatch):
    _, model, _, edits = edited
    before = Photograph(model)
    real = surgery._carry_out

    def interrupted(target, edit, *others):
        real(target, edit, *others)
        if edit is surgery._in_order(edits)[-1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(surgery, "_carry_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        operate(model, edits)
    assert Photograph(model).difference(before) == ""


def lines_at_work(function):
    """Run something and count the lines of this library that run meanwhile; raise a Ctrl-C at one of them, if given."""

    def run_to(stop):
        seen = 0

        def trace(frame, event, _):
            nonlocal seen
            if frame.f_code.co_filename in AT_WORK:
                if event == "line":
                    seen += 1
                    if seen == stop:
                        sys.settrace(None)
                        raise KeyboardInterrupt
                return trace
            return None

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            function()
        finally:
            sys.settrace(before)
        return seen

    return run_to


def test_an_interrupt_at_any_line_leaves_the_model_as_it_was(edited):
    """Before each line of surgery, once: also where nothing has been returned yet, and while edits are taken back."""
    _, model, _, edits = edited
    before = Photograph(model)

    def at_work():
        with applied(model, edits):
            pass

    run_to = lines_at_work(at_work)
    num_lines = run_to(None)
    assert num_lines > 40
    for line in range(1, num_lines + 1):
        with pytest.raises(KeyboardInterrupt):
            run_to(line)
        assert Photograph(model).difference(before) == "", line


# ---- what survives ---------------------------------------------------------------------------------------------------


def test_surviving_keys_and_tensors_stay_the_same_objects():
    model = randomised(ExampleModel())
    parameters = dict(model.named_parameters())
    pruner = UniversalLayerPruner(model, example_inputs=image())
    (removal,) = [r for r in pruner.removals if r.groups == ("conv2a",)]
    operate(model, removal.edits)
    left = dict(model.named_parameters())
    assert list(left) == [name for name in parameters if name.split(".")[0] not in ("conv2a", "bn2a")]
    changed = [name for name, tensor in left.items() if tensor is not parameters[name]]
    assert changed == ["conv3.weight"]
    assert isinstance(model.conv3.weight, nn.Parameter)
    assert type(model) is ExampleModel


def test_deleting_an_element_keeps_the_others_keys():
    model = nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU(), linear())
    operate(model, [Delete(fqn="2"), Delete(fqn="3")])
    assert list(model._modules) == ["0", "1", "4"]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "4.weight", "4.bias"]
    assert len(model) == 3


def test_dead_modules_keep_no_parameters():
    model = residual()
    operate(model, [Drop(fqn="a", merges=("add",))])
    assert isinstance(model.a, DroppedBranch)
    assert [name for name, _ in model.named_parameters()] == ["s.weight", "s.bias", "h.weight", "h.bias"]


def test_a_plain_pass_is_an_identity_and_another_is_a_pass_through():
    model = residual()
    operate(model, [Pass(fqn="a", position=0, keyword=None), Pass(fqn="s", position=0, keyword="input")])
    assert type(model.a) is nn.Identity
    assert type(model.s) is PassThrough


def test_a_guard_keeps_the_module_inside():
    model = with_guarded_module()
    inner = model.g
    operate(model, [Guard(fqn="g")])
    assert isinstance(model.g, SkipsDropped)
    assert model.g.inner is inner


def test_a_frozen_parameter_stays_frozen_when_it_is_sliced():
    model = concat()
    model.h.weight.requires_grad_(False)
    operate(model, [Slice(fqn="h", side="in", dropped=((1, 3),))])
    assert not model.h.weight.requires_grad
    assert model.h.in_channels == 3


def test_a_slice_keeps_the_very_channels_that_are_not_dropped():
    model = linear(6, 2)
    holder = nn.Sequential(model)
    weight = model.weight.detach().clone()
    operate(holder, [Slice(fqn="0", side="in", dropped=((0, 1), (3, 5)))])
    assert torch.equal(model.weight, weight[:, [1, 2, 5]])
    assert model.in_features == 3


def test_all_that_is_per_channel_is_sliced():
    holder = nn.Sequential(
        nn.BatchNorm2d(4),
        conv(4, 4, groups=4),
        nn.ConvTranspose2d(4, 2, 2),
        nn.InstanceNorm2d(4),
        nn.BatchNorm1d(4, affine=False),
    )
    undo = operate(
        holder,
        [
            Slice(fqn="0", side="channels", dropped=((1, 2),)),
            Slice(fqn="1", side="channels", dropped=((1, 2),)),
            Slice(fqn="2", side="in", dropped=((1, 2),)),
            Slice(fqn="3", side="channels", dropped=((1, 2),)),
            Slice(fqn="4", side="channels", dropped=((1, 2),)),
        ],
    )
    norm, depthwise, transposed, instance, plain = holder
    assert {tuple(t.shape) for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)} == {(3,)}
    assert (depthwise.weight.shape, depthwise.groups, depthwise.in_channels) == ((3, 1, 3, 3), 3, 3)
    assert (depthwise.out_channels, depthwise.bias.shape) == (3, (3,))
    assert (transposed.weight.shape, transposed.in_channels) == ((3, 2, 2, 2), 3)
    assert instance.num_features == 3
    assert (plain.num_features, plain.running_mean.shape) == (3, (3,))
    undo()
    assert (norm.num_features, depthwise.groups, transposed.in_channels, plain.running_var.shape) == (4, 4, 4, (4,))


def test_whether_loading_needs_this_library_can_be_asked():
    model = residual()
    assert not holds_dropped(model)
    with applied(model, [Drop(fqn="a", merges=("add",))]):
        assert holds_dropped(model)
    assert not holds_dropped(model)


# ---- edits that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Drop(fqn="a.b", merges=()), "no module 'a.b'"),
        (Pass(fqn="", position=0, keyword=None), "no module ''"),
        (Delete(fqn="a"), "is a Net, not an nn.Sequential"),
        (DropParameter(fqn="a.gain", merges=()), "'a' has no parameter 'gain'"),
        (DropParameter(fqn="gain", merges=()), "'Net' has no parameter 'gain'"),
        (Slice(fqn="n", side="channels", dropped=((0, 1),)), "channels of a LayerNorm"),
        (Slice(fqn="a", side="in", dropped=((6, 12),)), "do not lie within the 8"),
        (Slice(fqn="a", side="in", dropped=((0, 8),)), "do not lie within the 8"),
    ],
)
def test_an_edit_that_does_not_fit_says_why_and_changes_nothing(edit, message):
    model = Net(lambda net, x: net.n(net.a(x)), a=linear(), n=nn.LayerNorm(8))
    before = Photograph(model)
    with pytest.raises(SurgeryError, match="cannot") as raised:
        operate(model, [edit])
    assert message in str(raised.value)
    assert Photograph(model).difference(before) == ""


def test_deleting_what_is_not_there_is_an_error_that_changes_nothing():
    model = nn.Sequential(linear(), linear())
    before = Photograph(model)
    with pytest.raises(SurgeryError):
        operate(model, [Delete(fqn="7")])
    assert Photograph(model).difference(before) == ""


def test_operating_twice_says_that_it_was_pruned_already():
    model = nn.Sequential(linear(), residual(), linear())
    operate(model, [Drop(fqn="1", merges=("add",))])
    with pytest.raises(SurgeryError, match="pruned already"):
        operate(model, [Drop(fqn="1.a", merges=("add",))])


# ---- shared modules --------------------------------------------------------------------------------------------------


def test_a_module_that_hangs_at_two_places_is_replaced_at_both_and_restored_at_both():
    shared = linear()
    model = Net(
        lambda net, x: net.h((y := x + net.one(x)) + net.inner["two"](y)),
        one=shared,
        inner=nn.ModuleDict({"two": shared}),
        h=linear(),
    )
    before = Photograph(model)
    undo = operate(model, [Drop(fqn="one", merges=("add",))])
    assert model.one is model.inner["two"]
    assert isinstance(model.one, DroppedBranch)
    assert close(run(model, rows()), run(model.h, rows()))
    undo()
    assert model.one is model.inner["two"] is shared
    assert Photograph(model).difference(before) == ""


def test_a_module_called_twice_leaves_whole():
    model = randomised(
        Net(
            lambda net, x: net.h((y := (z := net.s(x)) + net.a(z)) + net.a(torch.relu(y))),
            s=linear(),
            a=linear(),
            h=linear(),
        )
    )
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    (removal,) = [r for r in pruner.removals if "a" in r.groups]
    assert removal.num_params == 72
    assert close(run(pruner.prune(groups=["a"]), rows()), run(model.h, run(model.s, rows())))


# ---- sizes, modes, gradients -----------------------------------------------------------------------------------------


class Block(nn.Module):
    """A transformer layer whose attention returns a tuple and asks for its input's length."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = linear(8, 24), linear()
        self.up, self.down = linear(8, 16), linear(16, 8)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, 8)
        x = x + self.drop(self.out(y))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))


def small_transformer():
    return randomised(nn.Sequential(linear(), Block(), Block(), linear()))


@pytest.mark.parametrize("groups", [["1.down"], ["1.up", "2.up"], ["2.down"]])
def test_any_batch_size_and_sequence_length_runs_afterwards(groups):
    model = small_transformer()
    pruner = UniversalLayerPruner(model, example_inputs=tokens(2, 5))
    pruned = pruner.prune(groups=groups)
    for batch, length in ((1, 1), (3, 7), (2, 64)):
        assert run(pruned, tokens(batch, length)).shape == (batch, length, 8)
    kept = model[1] if groups == ["2.down"] else model[2]
    assert run(kept, tokens()).shape == tokens().shape  # the original still runs whole


def test_without_the_feed_forward_the_block_is_its_attention():
    model = small_transformer()
    pruner = UniversalLayerPruner(model, example_inputs=tokens(2, 5))
    (removal,) = [r for r in pruner.removals if r.groups == ("1.up", "1.down")]
    pruned = copy_of(model)
    operate(pruned, removal.edits)

    def attention_only(block, x):
        batch, length, _ = x.shape
        q, k, v = block.qkv(block.norm1(x)).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, 8)
        return x + block.out(y)

    x = tokens(3, 9, seed=4)
    with torch.no_grad():
        assert close(run(pruned, x), model[3](model[2](attention_only(model[1], model[0](x)))))


def test_a_training_step_works_on_what_is_left():
    model = small_transformer()
    pruned = UniversalLayerPruner(model, example_inputs=tokens(2, 5)).prune(max_param_reduction=0.5).train()
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    before = [p.detach().clone() for p in pruned.parameters()]
    pruned(tokens(3, 4)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in pruned.parameters())
    optimizer.step()
    assert all(not torch.equal(p, b) for p, b in zip(pruned.parameters(), before, strict=True) if p.grad.any())


def test_gradients_are_those_of_the_net_written_by_hand():
    model = randomised(ExampleModel())
    pruned = UniversalLayerPruner(model, example_inputs=image()).prune(groups=["conv2b"]).train()
    by_hand = copy_of(model).train()
    x = image(3)
    pruned(x).square().sum().backward()
    stem = by_hand.pool1(by_hand.relu1(by_hand.bn1(by_hand.conv1(x))))
    branch = by_hand.relu2a(by_hand.bn2a(by_hand.conv2a(stem)))
    out = F.conv2d(branch, by_hand.conv3.weight[:, :64], by_hand.conv3.bias)
    by_hand.fc(by_hand.relu3(by_hand.bn3(out)).mean((2, 3))).square().sum().backward()
    assert close(pruned.conv2a.weight.grad, by_hand.conv2a.weight.grad, 1e-4)
    assert close(pruned.conv3.weight.grad, by_hand.conv3.weight.grad[:, :64], 1e-4)


@pytest.mark.parametrize(
    "again",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: model.to(torch.float64).to(torch.float32),
    ],
    ids=["deepcopy", "pickle", "to"],
)
def test_what_is_left_can_be_copied_saved_and_moved(again):
    pruned = UniversalLayerPruner(randomised(ExampleModel()), example_inputs=image()).prune(groups=["conv2a"])
    assert close(run(again(pruned), image()), run(pruned, image()))


def test_what_is_left_can_be_pruned_again():
    pruned = UniversalLayerPruner(randomised(ExampleModel()), example_inputs=image()).prune(groups=["conv2a"])
    pruner = UniversalLayerPruner(pruned, example_inputs=image())
    assert list(pruner.transform_layers) == ["conv1", "conv2b", "conv3", "fc"]
    reasons = {group.name: group.reason for group in pruner.groups}
    # Alone now, conv2b is a step from 32 to 64 channels, read behind a concat.
    assert reasons["conv2b"].startswith("changes 32 channels to 64 and nothing of that shape exists before it")


def test_what_is_left_can_be_pruned_again_where_more_can_go():
    model = small_transformer()
    once = UniversalLayerPruner(model, example_inputs=tokens()).prune(groups=["2.down"])
    again = UniversalLayerPruner(once, example_inputs=tokens()).prune(groups=["1.down"])
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in once.parameters())
    assert run(again, tokens(3, 9)).shape == (3, 9, 8)


# ---- aliasing: what a merge made new is now an old tensor ------------------------------------------------------------


def inplace_after(merge):
    """The models' usual way: a residual sum, then a ReLU in place. Without the sum, the ReLU must not write into y."""

    def forward(net, x):
        y = net.s(x)
        z = merge(y, net.a(y))
        z = F.relu(z, inplace=True)
        return net.h(z), y

    return Net(forward, s=linear(), a=linear(), h=linear())


@pytest.mark.parametrize(
    "merge", [lambda y, a: y + a, lambda y, a: y * a, lambda y, a: a + y], ids=["add", "mul", "radd"]
)
def test_a_relu_in_place_behind_a_dropped_branch_spares_the_earlier_activation(merge):
    model = randomised(inplace_after(merge))
    pruned = UniversalLayerPruner(model, example_inputs=rows()).prune(groups=["a"])
    with torch.no_grad():
        y = model.s(rows())
        out, earlier = run(pruned, rows())
        assert close(earlier, y)
        assert close(out, model.h(torch.relu(y)))


def test_a_relu_in_place_behind_a_removed_layer_spares_the_users_input():
    model = randomised(Net(lambda net, x: net.h(F.relu(net.a(x), inplace=True)), a=linear(), h=linear()))
    pruned = UniversalLayerPruner(model, example_inputs=rows(), protect_io=False).prune(groups=["a"])
    x = rows(seed=6)
    with torch.no_grad():
        assert close(run(pruned, x), model.h(torch.relu(x)))
    assert torch.equal(x, rows(seed=6))


def test_a_relu_module_in_place_behind_a_removed_layer_spares_what_others_read():
    def forward(net, x):
        y = net.s(x)
        return net.h(net.b(net.act(net.a(y)))) + net.g(y)

    model = randomised(
        Net(forward, s=linear(), a=linear(), act=nn.ReLU(inplace=True), b=linear(8, 4), h=linear(4, 8), g=linear())
    )
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    found = [r for r in pruner.removals if r.groups == ("a",)]
    assert found
    for removal in found:
        pruned = copy_of(model)
        operate(pruned, removal.edits)
        with torch.no_grad():
            y = model.s(rows())
            behind = y if "act" in {edit.fqn for edit in removal.edits} else torch.relu(y)
            assert close(run(pruned, rows()), model.h(model.b(behind)) + model.g(y)), str(removal)


def test_an_augmented_sum_behind_a_removed_block_spares_the_users_input():
    def forward(net, x):
        y = net.a(x)
        y += net.b(x)
        return net.h(y)

    model = randomised(Net(forward, a=linear(), b=linear(), h=linear()))
    pruner = UniversalLayerPruner(model, example_inputs=rows(), protect_io=False)
    assert pruner.removals
    for removal in pruner.removals:
        x = rows(seed=6)
        with applied(model, removal.edits):
            run(model, x)
        assert torch.equal(x, rows(seed=6)), str(removal)


def test_an_edit_at_work_leaves_no_dropped_tensor_in_the_output():
    model = randomised(residual())
    pruned = UniversalLayerPruner(model, example_inputs=rows()).prune(groups=["a"])
    out = run(pruned, rows())
    assert not isinstance(out, DroppedTensor)
    assert out.shape == (4, 8)


# ---- ranges ----------------------------------------------------------------------------------------------------------


def test_indices_become_half_open_ranges_and_back():
    assert ranges([]) == ()
    assert ranges([7, 0, 1, 2]) == ((0, 3), (7, 8))
    assert kept_ranges([(7, 8), (0, 3)], 10) == [(3, 7), (8, 10)]
    assert kept_ranges([], 3) == [(0, 3)]
    assert kept_ranges([(0, 3)], 3) == []


def test_surgery_errors_are_errors_of_this_library():
    assert issubclass(SurgeryError, LayerPruneError)
