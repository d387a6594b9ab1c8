"""Removals: each row of the table in DESIGN.md on a net small enough to cross layers out by hand.

A row gives a net, the groups that a removal takes out, and the forward that is left, written by hand with the net's own
modules. The pruned net must agree with it, have lost the very parameters named, and run at another batch size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from layerprune import UniversalLayerPruner
from layerprune.capture import capture
from layerprune.errors import BudgetError, CriticalGroupError, UnknownNameError
from layerprune.graph import Cut, Refusal, RefusalCode
from layerprune.inputs import as_inputs
from layerprune.plan import PruningPlan
from layerprune.removals import lower_removal
from layerprune.surgery import operate
from models.nets import Net, close, conv, copy_of, image, linear, parameter, randomised, rows, run, tokens

STEM, HEAD = str(Refusal(RefusalCode.STEM)), str(Refusal(RefusalCode.HEAD))


@dataclass(frozen=True)
class Row:
    build: Callable[[], nn.Module]
    inputs: Callable[..., torch.Tensor]
    removals: dict[tuple[str, str], tuple[int, Callable[[Any, torch.Tensor], Any]]]


ROWS: dict[str, Row] = {}


def row(name, net, inputs, removals):
    """Enter a row: ``removals`` maps (kind, "groups that leave") to (parameters that go, what is left by hand)."""
    ROWS[name] = Row(net, inputs, removals)


# ---- plain chain -----------------------------------------------------------------------------------------------------

row(
    "chain in a Sequential",
    lambda: nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU(), linear()),
    rows,
    {
        ("block", "2"): (72, lambda n, x: n[4](torch.relu(n[0](x)))),
        ("bypass", "2"): (72, lambda n, x: n[4](torch.relu(n[0](x)))),
    },
)
row(
    "chain in a forward",
    lambda: Net(
        lambda n, x: n.c(torch.tanh(n.norm(n.b(torch.relu(n.a(x)))))),
        a=linear(),
        b=linear(),
        norm=nn.LayerNorm(8),
        c=linear(),
    ),
    rows,
    {("bypass", "b"): (72 + 16, lambda n, x: n.c(torch.tanh(torch.relu(n.a(x)))))},
)
row(
    "chain that ends in a pool of another shape",
    lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4), nn.ReLU(), nn.MaxPool2d(2), conv(4, 2)),
    image,
    {("bypass", "2"): (148, lambda n, x: n[5](n[4](n[1](n[0](x)))))},
)

# ---- residual branch -------------------------------------------------------------------------------------------------

row(
    "residual branch of two groups",
    lambda: Net(
        lambda n, x: n.h((y := n.s(x)) + n.b(torch.relu(n.a(y)))),
        s=linear(),
        a=linear(8, 4),
        b=linear(4, 8),
        h=linear(),
    ),
    rows,
    {("branch", "a b"): (36 + 40, lambda n, x: n.h(n.s(x)))},
)


def _iadd(n, x):
    y = n.s(x)
    z = n.a(y)
    z += y
    return n.h(torch.relu(z))


row(
    "residual in place",
    lambda: Net(_iadd, s=linear(), a=linear(), h=linear()),
    rows,
    {("branch", "a"): (72, lambda n, x: n.h(torch.relu(n.s(x))))},
)


def _reads_the_shape_of_the_sum(n, x):
    y = n.s(x)
    z = y + n.a(y)
    return n.h(z.reshape(z.shape[0], 2, 4))


row(
    "residual sum whose shape is read behind it",
    lambda: Net(_reads_the_shape_of_the_sum, s=linear(), a=linear(), h=linear(4)),
    rows,
    {("branch", "a"): (72, lambda n, x: n.h(n.s(x).reshape(-1, 2, 4)))},
)


class PreNorm(nn.Module):
    """A transformer layer as most are: two residual branches, each behind a norm of its own."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = linear(8, 16), linear(16, 8)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def feed_forward(self, x):
        return self.down(F.gelu(self.up(self.norm2(x))))

    def attend(self, x):
        y = self.norm1(x)
        return self.attn(y, y, y, need_weights=False)[0]


row(
    "sublayers of a transformer",
    lambda: nn.Sequential(linear(), PreNorm(), linear()),
    tokens,
    {
        ("branch", "1.attn"): (
            16 + 288,
            lambda n, x: n[2]((y := n[0](x)) + n[1].feed_forward(y)),
        ),
        ("branch", "1.up 1.down"): (
            16 + 144 + 136,
            lambda n, x: n[2]((y := n[0](x)) + n[1].attend(y)),
        ),
        ("block", "1.attn 1.up 1.down"): (32 + 288 + 144 + 136, lambda n, x: n[2](n[0](x))),
    },
)

# ---- shortcut with a projection --------------------------------------------------------------------------------------

row(
    "shortcut with a projection",
    lambda: Net(
        lambda n, x: n.h(torch.relu(n.bn(n.a(y := n.s(x)))) + n.p(y)),
        s=conv(3, 4),
        a=conv(4, 6),
        bn=nn.BatchNorm2d(6),
        p=conv(4, 6, 1),
        h=conv(6, 2),
    ),
    image,
    {
        ("branch", "p"): (30, lambda n, x: n.h(torch.relu(n.bn(n.a(n.s(x)))))),
        ("branch", "a"): (222 + 12, lambda n, x: n.h(n.p(n.s(x)))),
    },
)
row(
    "right side of a subtraction",
    lambda: Net(lambda n, x: n.h((y := n.s(x)) - n.a(y)), s=linear(), a=linear(), h=linear()),
    rows,
    {("branch", "a"): (72, lambda n, x: n.h(n.s(x)))},
)

# ---- gates -----------------------------------------------------------------------------------------------------------


def _squeeze_excite(n, x):
    y = n.s(x)
    gate = torch.sigmoid(n.up(torch.relu(n.down(y.mean((2, 3), keepdim=True)))))
    return n.h(y * gate)


row(
    "squeeze and excite",
    lambda: Net(_squeeze_excite, s=conv(3, 4), down=conv(4, 2, 1), up=conv(2, 4, 1), h=conv(4, 2)),
    image,
    {("gate", "down up"): (10 + 12, lambda n, x: n.h(n.s(x)))},
)
row(
    "gated unit",
    lambda: Net(
        lambda n, x: n.h(F.silu(n.gate(y := n.s(x))) * n.up(y)),
        s=linear(),
        gate=linear(8, 6),
        up=linear(8, 6),
        h=linear(6, 8),
    ),
    rows,
    {
        ("gate", "gate"): (54, lambda n, x: n.h(n.up(n.s(x)))),
        ("gate", "up"): (54, lambda n, x: n.h(F.silu(n.gate(n.s(x))))),
    },
)

# ---- concats ---------------------------------------------------------------------------------------------------------


def _inception(n, x):
    y = n.s(x)
    return n.h(torch.relu(n.bn(torch.cat([n.a(y), n.b(y), n.c(y)], 1))))


def _inception_without(kept, *branches):
    """The same with a branch crossed out: BatchNorm and head keep the others' channels."""

    def forward(n, x):
        y = n.s(x)
        z = torch.cat([getattr(n, name)(y) for name in branches], 1)
        bn = n.bn
        z = F.batch_norm(z, bn.running_mean[kept], bn.running_var[kept], bn.weight[kept], bn.bias[kept])
        return F.conv2d(torch.relu(z), n.h.weight[:, kept], n.h.bias, padding=1)

    return forward


row(
    "branches of an Inception module",
    lambda: Net(
        _inception, s=conv(3, 4), a=conv(4, 2), b=conv(4, 3), c=conv(4, 5), bn=nn.BatchNorm2d(10), h=conv(10, 4)
    ),
    image,
    {
        ("concat", "a"): (74 + 4 + 72, _inception_without([2, 3, 4, 5, 6, 7, 8, 9], "b", "c")),
        ("concat", "b"): (111 + 6 + 108, _inception_without([0, 1, 5, 6, 7, 8, 9], "a", "c")),
        ("concat", "c"): (185 + 10 + 180, _inception_without([0, 1, 2, 3, 4], "a", "b")),
    },
)


def _u_net(n, x):
    skip = torch.relu(n.a(x))
    deep = F.interpolate(n.d(F.max_pool2d(skip, 2)), scale_factor=2)
    return n.h(torch.cat([skip, deep], 1))


row(
    "long way round of a U-Net",
    lambda: Net(_u_net, a=conv(3, 4), d=conv(4, 6), h=conv(10, 2)),
    image,
    {("concat", "d"): (222 + 108, lambda n, x: F.conv2d(torch.relu(n.a(x)), n.h.weight[:, :4], n.h.bias, padding=1))},
)


def _flattened(n, x):
    y = n.s(x)
    z = torch.cat([n.a(y), n.b(y)], 1).flatten(1)
    return n.h(z)


row(
    "concat that is flattened before it is read",
    lambda: Net(_flattened, s=conv(3, 4), a=conv(4, 2), b=conv(4, 3), h=linear(5 * 64, 2)),
    image,
    {
        ("concat", "a"): (74 + 2 * 128, lambda n, x: F.linear(n.b(n.s(x)).flatten(1), n.h.weight[:, 128:], n.h.bias)),
        ("concat", "b"): (111 + 2 * 192, lambda n, x: F.linear(n.a(n.s(x)).flatten(1), n.h.weight[:, :128], n.h.bias)),
    },
)


def _two_readers(n, x):
    y = n.s(x)
    z = torch.cat([n.a(y), n.b(y)], -1)
    return n.out(n.h(z) + n.g(F.gelu(z)))


row(
    "concat with two readers, along the last dimension",
    lambda: Net(
        _two_readers, s=linear(), a=linear(8, 3), b=linear(8, 5), h=linear(8, 2), g=linear(8, 2), out=linear(2)
    ),
    tokens,
    {
        ("concat", "a"): (
            27 + 6 + 6,
            lambda n, x: n.out(
                F.linear(z := n.b(n.s(x)), n.h.weight[:, 3:], n.h.bias)
                + F.linear(F.gelu(z), n.g.weight[:, 3:], n.g.bias)
            ),
        ),
        ("concat", "b"): (
            45 + 10 + 10,
            lambda n, x: n.out(
                F.linear(z := n.a(n.s(x)), n.h.weight[:, :3], n.h.bias)
                + F.linear(F.gelu(z), n.g.weight[:, :3], n.g.bias)
            ),
        ),
    },
)


def _depthwise(n, x):
    y = n.s(x)
    return n.h(n.d(torch.cat([n.a(y), n.b(y)], 1)))


row(
    "concat read by a depthwise convolution",
    lambda: Net(_depthwise, s=conv(3, 4), a=conv(4, 2), b=conv(4, 3), d=conv(5, 5, groups=5), h=conv(5, 4, 1)),
    image,
    {
        ("concat", "a"): (
            74 + 20 + 8,
            lambda n, x: F.conv2d(
                F.conv2d(n.b(n.s(x)), n.d.weight[2:], n.d.bias[2:], padding=1, groups=3), n.h.weight[:, 2:], n.h.bias
            ),
        ),
    },
)

# ---- a tensor read by several merges ---------------------------------------------------------------------------------


def _dense(n, x):
    y = n.s(x)
    a = n.a(y)
    b = n.b(torch.cat([y, a], 1))
    return n.h(torch.cat([y, a, b], 1))


def _dense_without_a(n, x):
    y = n.s(x)
    b = F.conv2d(y, n.b.weight[:, :4], n.b.bias, padding=1)
    return F.conv2d(torch.cat([y, b], 1), n.h.weight[:, [0, 1, 2, 3, 6, 7, 8]], n.h.bias, padding=1)


row(
    "layer of a DenseNet, read by every later one",
    lambda: Net(_dense, s=conv(3, 4), a=conv(4, 2), b=conv(6, 3), h=conv(9, 4)),
    image,
    {
        ("several", "a"): (74 + 54 + 72, _dense_without_a),
        ("concat", "b"): (
            165 + 108,
            lambda n, x: F.conv2d(torch.cat([y := n.s(x), n.a(y)], 1), n.h.weight[:, :6], n.h.bias, padding=1),
        ),
    },
)


def _two_merges(n, x):
    y = n.s(x)
    a = n.a(y)
    return n.h(y + a), n.g(y * a)


row(
    "tensor read by a sum and a product",
    lambda: Net(_two_merges, s=linear(), a=linear(), h=linear(8, 3), g=linear(8, 2)),
    rows,
    {("several", "a"): (72, lambda n, x: (n.h(y := n.s(x)), n.g(y)))},
)

# ---- bottleneck, block, run ------------------------------------------------------------------------------------------

row(
    "bottleneck without a skip",
    lambda: nn.Sequential(linear(), nn.ReLU(), linear(8, 2), nn.ReLU(), linear(2, 8), nn.ReLU(), linear()),
    rows,
    {("bypass", "2 4"): (18 + 24, lambda n, x: n[6](torch.relu(n[0](x))))},
)


class PostNorm(nn.Module):
    """A transformer layer as BERT has it: the norms lie on the trunk."""

    def __init__(self):
        super().__init__()
        self.mix, self.norm1 = linear(), nn.LayerNorm(8)
        self.up, self.down, self.norm2 = linear(8, 16), linear(16, 8), nn.LayerNorm(8)

    def forward(self, x):
        x = self.norm1(x + self.mix(x))
        return self.norm2(x + self.down(torch.relu(self.up(x))))


def _through_blocks(n, x):
    x = n.stem(x)
    for block in n.blocks:
        x = block(x)
    return n.head(x)


row(
    "post-norm block in a ModuleList",
    lambda: Net(_through_blocks, stem=linear(), blocks=nn.ModuleList([PostNorm(), PostNorm()]), head=linear()),
    tokens,
    {
        ("block", "blocks.0.mix blocks.0.up blocks.0.down"): (384, lambda n, x: n.head(n.blocks[1](n.stem(x)))),
        ("block", "blocks.1.mix blocks.1.up blocks.1.down"): (384, lambda n, x: n.head(n.blocks[0](n.stem(x)))),
        # a sublayer with its norm: the run between two trunk tensors of one shape
        ("bypass", "blocks.1.up blocks.1.down"): (
            280 + 16,
            lambda n, x: n.head((b := n.blocks[1]).norm1((y := n.blocks[0](n.stem(x))) + b.mix(y))),
        ),
        # the branch alone: its norm stays
        ("branch", "blocks.0.mix"): (
            72,
            lambda n, x: n.head(
                n.blocks[1]((b := n.blocks[0]).norm2((y := b.norm1(n.stem(x))) + b.down(torch.relu(b.up(y)))))
            ),
        ),
    },
)
row(
    "post-norm block in a Sequential",
    lambda: nn.Sequential(linear(), PostNorm(), PostNorm(), linear()),
    tokens,
    {("block", "1.mix 1.up 1.down"): (384, lambda n, x: n[3](n[2](n[0](x))))},
)

# ---- functions with parameters ---------------------------------------------------------------------------------------

row(
    "branch that is a function with a parameter",
    lambda: Net(lambda n, x: n.h((y := n.s(x)) + F.linear(y, n.w)), s=linear(), w=parameter(8, 8), h=linear()),
    rows,
    {("branch", "linear"): (64, lambda n, x: n.h(n.s(x)))},
)

CASES = [(name, key) for name, entry in ROWS.items() for key in entry.removals]


@pytest.fixture(scope="module")
def prepared():
    """Each row's net with its pruner, made once."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            net = randomised(ROWS[name].build())
            made[name] = net, UniversalLayerPruner(net, example_inputs=ROWS[name].inputs())
        return made[name]

    return get


def removals_of(pruner, kind, groups):
    return [r for r in pruner.removals if r.kind == kind and set(r.groups) == set(groups.split())]


@pytest.mark.parametrize(("name", "key"), CASES, ids=[f"{name}: {' '.join(key)}" for name, key in CASES])
def test_a_removal_leaves_the_net_that_is_written_by_hand(prepared, name, key):
    net, pruner = prepared(name)
    size, left = ROWS[name].removals[key]
    found = removals_of(pruner, *key)
    assert found, f"there is no such removal among {[str(r) for r in pruner.removals]}"
    assert size in {removal.num_params for removal in found}
    removal = next(r for r in found if r.num_params == size)
    pruned = copy_of(net)
    operate(pruned, removal.edits)
    for batch in (2, 3):
        x = ROWS[name].inputs(batch, seed=7)
        with torch.no_grad():
            expected = left(net, x)
        got = run(pruned, x)
        pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
        assert all(close(a, b, 1e-5) for a, b in pairs)
    assert sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in pruned.parameters()) == size


@pytest.mark.parametrize("name", ROWS)
def test_the_groups_of_a_row_are_safe_and_stem_and_head_are_not(prepared, name):
    _, pruner = prepared(name)
    safe = {group.name for group in pruner.groups if group.can_remove}
    assert safe >= {group for _, groups in ROWS[name].removals for group in groups.split()}
    assert safe == {group for removal in pruner.removals for group in removal.groups}
    reasons = [group.reason for group in pruner.groups if not group.can_remove]
    assert {STEM, HEAD} <= set(reasons)


@pytest.mark.parametrize("name", ROWS)
def test_every_removal_that_is_listed_runs_and_loses_what_it_says(prepared, name):
    net, pruner = prepared(name)
    before = run(net, ROWS[name].inputs())
    for removal in pruner.removals:
        pruned = copy_of(net)
        operate(pruned, removal.edits)
        lost = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in pruned.parameters())
        assert lost == removal.num_params, str(removal)
        after = run(pruned, ROWS[name].inputs())
        if isinstance(before, torch.Tensor):
            assert after.shape == before.shape
            assert not torch.equal(after, before), f"{removal} changes nothing"


def test_what_leaves_together_is_named(prepared):
    _, pruner = prepared("residual branch of two groups")
    reasons = {group.name: group.reason for group in pruner.groups if group.can_remove}
    assert reasons == {"a": "leaves together with 'b'", "b": "leaves together with 'a'"}


def test_members_behind_the_substitute_are_kept_and_said_so(prepared):
    _, pruner = prepared("chain that ends in a pool of another shape")
    (removal,) = pruner.plan(groups=["2"]).removals
    assert removal.kept == ("4",)
    assert "→ 4: MaxPool2d (pooling) [kept]" in pruner.render_plan()


def test_a_shared_layer_between_functions_leaves_at_all_its_calls():
    """No container and no merge: each call is bypassed by the tensor before it."""
    model = Net(lambda n, *xs: n.h(sum(F.relu(n.m(F.relu(n.s(x)))) for x in xs)), s=linear(), m=linear(), h=linear())
    xs = rows(3), rows(3, seed=2)
    pruned = UniversalLayerPruner(randomised(model), example_inputs=xs).prune(groups=["m"])
    by_hand = model.h(sum(F.relu(model.s(x)) for x in xs))
    assert close(run(pruned, *xs), by_hand)


# ---- why a group is critical -----------------------------------------------------------------------------------------


def reasons_of(model, inputs, **options):
    pruner = UniversalLayerPruner(randomised(model), example_inputs=inputs, **options)
    return {group.name: group.reason for group in pruner.groups if not group.can_remove}


def chain():
    return nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU(), linear())


def test_stem_and_head_are_critical():
    assert reasons_of(chain(), rows()) == {"0": STEM, "4": HEAD}


def test_a_norm_before_the_first_transform_makes_it_no_less_the_stem():
    model = nn.Sequential(nn.LayerNorm(8), linear(), nn.ReLU(), linear(), linear())
    assert reasons_of(model, rows())["1"] == STEM


def test_an_activation_behind_the_last_transform_makes_it_no_less_the_head():
    model = nn.Sequential(linear(), linear(), linear(), nn.Softmax(-1))
    assert reasons_of(model, rows())["2"] == HEAD


def test_a_residual_write_before_the_output_is_no_head():
    model = Net(lambda n, x: (y := n.s(x)) + n.a(y), s=linear(), a=linear())
    assert reasons_of(model, rows()) == {"s": STEM}


def test_a_change_of_channels_that_nothing_makes_up_for_is_the_reason():
    model = nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 128), nn.ReLU(), nn.ConvTranspose2d(128, 10, 3))
    assert reasons_of(model, image())["2"] == (
        "changes 64 channels to 128 and nothing of that shape exists before it; no projection can take its place: "
        "'4' reads it, and is a ConvTranspose2d, which no projection can be folded into"
    )


def test_a_change_of_size_that_nothing_makes_up_for_is_the_reason():
    model = nn.Sequential(conv(3, 4), nn.ReLU(), nn.Conv2d(4, 4, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3))
    assert reasons_of(model, image())["2"].startswith(
        "changes 2×4×8×8 to 2×4×4×4 and nothing of that shape exists before it; no projection"
    )


def test_a_norm_across_channels_behind_a_concat_is_the_reason():
    def forward(n, x):
        y = n.s(x)
        return n.h(n.norm(torch.cat([n.a(y), n.b(y)], -1)))

    model = Net(forward, s=linear(), a=linear(8, 3), b=linear(8, 5), norm=nn.LayerNorm(8), h=linear())
    reasons = reasons_of(model, tokens())
    assert "LayerNorm" in reasons["a"]
    assert "normalizes across channels" in reasons["a"]


def test_a_grouped_convolution_behind_a_concat_is_the_reason():
    def forward(n, x):
        y = n.s(x)
        return n.h(torch.cat([n.a(y), n.b(y)], 1))

    model = Net(forward, s=conv(3, 4), a=conv(4, 2), b=conv(4, 4), h=conv(6, 6, groups=2))
    assert "grouped convolution (2 groups)" in reasons_of(model, image(), protect_io=False)["a"]


def test_a_concat_that_the_model_returns_is_the_reason():
    def forward(n, x):
        y = n.s(x)
        return torch.cat([n.a(y), n.b(y)], 1)

    net = Net(forward, s=conv(3, 4), a=conv(4, 2), b=conv(4, 3))
    assert reasons_of(net, image())["a"] == HEAD
    assert reasons_of(net, image(), protect_io=False)["a"] == "the channels of 'a' reach the model's output"


def test_the_reason_names_the_layer_whose_channels_they_are_not_the_first_of_its_branch():
    def forward(n, x):
        y = n.s(x)
        return torch.cat([n.deep(torch.relu(n.first(y))), n.b(y)], 1)

    model = Net(forward, s=conv(3, 4), first=conv(4, 6), deep=conv(6, 2), b=conv(4, 3))
    reasons = reasons_of(model, image(), protect_io=False, granularity="branch")
    assert reasons["first"] == reasons["deep"] == "the channels of 'deep' reach the model's output"


def test_a_change_of_channels_is_the_reason_at_every_call_of_a_shared_layer():
    model = Net(lambda n, x, y: n.h(n.s(x) - n.s(y)), s=nn.Sequential(linear(), linear(8, 3)), h=linear(3))
    assert (
        reasons_of(model, (rows(), rows()))["s.1"]
        == "changes 8 channels to 3 and nothing of that shape exists before it"
    )


def test_what_a_forward_does_between_a_tensor_and_its_substitute_is_the_reason():
    """A U-Net's last stage: its first convolution could only go with the concat, which the stage's forward makes."""
    body = nn.Sequential(conv(8, 4), nn.ReLU(), conv(4), nn.ReLU())
    stage = Net(lambda n, x, y: n.body(torch.cat([x, y], 1)), body=body)
    model = Net(lambda n, x: n.h(n.up(y := n.s(x), n.deep(y))), s=conv(3, 4), deep=conv(4), up=stage, h=conv(4, 2))
    graph = capture(model, as_inputs(image()))
    made = {layer.name: layer.outputs[0] for layer in graph.layers}
    with pytest.raises(Refusal, match=r"where 'up\.body\.1' .* is read: the forward of 'up' calls 'cat' in betw"):
        lower_removal(graph, dict(model.named_modules()), Cut({made["up.body.1"]: made["s"]}))


@pytest.mark.parametrize(("hidden", "why"), [(7, "the forward of the model calls 'pad_packed_"), (6, "part of an arg")])
def test_what_stands_in_the_way_of_layers_that_take_a_packed_sequence_is_the_reason(hidden, why):
    """Their arguments hold tensors; that the stem would have to go along, which it may not, is not what stops them."""

    def forward(n, x):
        packed = pack_padded_sequence(n.s(x), torch.full(x.shape[:1], x.shape[1]), batch_first=True)
        return n.h(pad_packed_sequence(n.b(n.a(packed)[0])[0], batch_first=True)[0])

    lstms = {"a": nn.LSTM(6, hidden, batch_first=True), "b": nn.LSTM(hidden, 8, batch_first=True)}
    reasons = reasons_of(Net(forward, s=linear(8, 6), **lstms, h=linear(8, 3)), tokens())
    assert not any("only together" in reason for reason in reasons.values())
    assert why in reasons["a"]


def test_a_module_whose_forward_takes_any_arguments_hands_its_first_on():
    """Behind ``*args`` no argument has a name, and ``nn.Identity`` takes but one."""
    stage = Net(lambda n, x, y: n.c(torch.cat([x, y], 1)), c=conv(8, 4))
    model = Net(lambda n, x: n.h(n.up(y := n.s(x), n.deep(y))), s=conv(3, 4), deep=conv(4), up=stage, h=conv(4, 2))
    pruner = UniversalLayerPruner(randomised(model), example_inputs=image())
    pruned = PruningPlan.from_json(pruner.plan(groups=["up.c"]).to_json()).apply(model)
    assert close(run(pruned, image(3)), model.h(model.s(image(3))))


def test_a_weight_that_is_used_elsewhere_is_the_reason():
    model = Net(lambda n, x: n.h((y := n.s(x)) + n.a(y)) @ n.a.weight, s=linear(), a=linear(), h=linear())
    assert "'a.weight'" in reasons_of(model, rows())["a"]


@pytest.mark.parametrize("returned", ["pair", "tensor"])
def test_a_tensor_that_is_written_into_through_a_view_of_it_is_the_reason(returned):
    """Nothing can stand in the place of a tensor that has two values, its own and the one written later."""

    def part(n, x):
        out = x @ n.w
        n.half = out[:, :].mul_(0.5)
        return (out, n.half) if returned == "pair" else out

    def forward(n, x):
        y = n.s(x)
        found = n.m(y)
        return n.h(y + (found[1] if returned == "pair" else n.m.half))

    reasons = reasons_of(Net(forward, s=linear(), m=Net(part, w=parameter(8, 8)), h=linear()), rows())
    assert reasons["m"] == "'m' returns a tensor that is written into by others, too: nothing can stand in its place"


def test_a_part_that_the_model_also_calls_by_itself_is_the_reason():
    """The attention reads its projection's weight without calling it, and the model calls that one."""

    def forward(n, x):
        y = n.s(x)
        y = y + n.att(y, y, y)[0]
        return n.h(y + n.att.out_proj(y))

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    reasons = reasons_of(Net(forward, s=linear(), att=attention, h=linear()), tokens())
    assert reasons["att"] == (
        "its parameter 'att.out_proj.weight' is that of 'att.out_proj', which is called by itself as well "
        "('att.out_proj')"
    )
    assert reasons["att.out_proj"] == "its parameter 'att.out_proj.weight' is also used by 'att'"


def test_reasons_reach_the_error_of_a_group_that_is_asked_for():
    pruner = UniversalLayerPruner(chain(), example_inputs=rows())
    with pytest.raises(CriticalGroupError, match="'0' cannot be removed: reads the model's input"):
        pruner.plan(groups=["0"])


# ---- protect ---------------------------------------------------------------------------------------------------------


def deep():
    return nn.Sequential(linear(), *(linear() for _ in range(4)), linear())


def test_what_matches_a_pattern_is_protected_and_says_by_which():
    reasons = reasons_of(deep(), rows(), protect=["2", "[34]"])
    assert {name: reason for name, reason in reasons.items() if "protected" in reason} == {
        "2": "protected by '2'",
        "3": "protected by '[34]'",
        "4": "protected by '[34]'",
    }


def test_one_pattern_may_be_given_as_a_string():
    assert reasons_of(deep(), rows(), protect="2")["2"] == "protected by '2'"


def test_protecting_a_container_protects_all_below_it():
    model = nn.Sequential(linear(), PostNorm(), PostNorm(), linear())
    pruner = UniversalLayerPruner(randomised(model), example_inputs=tokens(), protect=["1"])
    assert {g.name for g in pruner.groups if g.reason == "protected by '1'"} == {"1.mix", "1.up", "1.down"}
    assert all(name.startswith("2.") for removal in pruner.removals for name in removal.groups)


def test_protecting_a_member_protects_its_group():
    reasons = reasons_of(nn.Sequential(linear(), linear(), nn.ReLU(), linear()), rows(), protect=["2"])
    assert reasons["1"] == "protected by '2'"


def test_what_would_leave_with_a_protected_group_says_so():
    model = nn.Sequential(linear(), nn.ReLU(), linear(8, 2), nn.ReLU(), linear(2, 8), nn.ReLU(), linear())
    reasons = reasons_of(model, rows(), protect=["4"])
    assert reasons["4"] == "protected by '4'"
    assert reasons["2"] == "leaves only together with '4', which is protected by '4'"


def test_what_would_leave_with_the_stem_says_so():
    # Nothing but a reads the input, and without b nothing reads a: dropping the sum's other side takes both.
    model = Net(lambda n, x: n.b(torch.relu(n.a(x))) + x, a=linear(8, 4), b=linear(4, 8))
    reasons = reasons_of(model, rows())
    assert reasons["a"] == STEM
    assert reasons["b"] == f"leaves only together with 'a', which {STEM}"


def test_a_pattern_that_matches_nothing_is_an_error_that_names_some_groups():
    with pytest.raises(UnknownNameError, match=r"'layer9\.\*' matches no module.*'0', '1'"):
        UniversalLayerPruner(deep(), example_inputs=rows(), protect=["layer9.*"])


def test_without_protection_stem_and_head_may_go_where_shapes_allow():
    net = randomised(chain())
    pruner = UniversalLayerPruner(net, example_inputs=rows(), protect_io=False)
    assert {g.name for g in pruner.groups if g.can_remove} == {"0", "2", "4"}
    x = rows(seed=5)
    with torch.no_grad():
        without_stem = net[4](torch.relu(net[2](torch.relu(x))))
        without_head = torch.relu(net[2](torch.relu(net[0](x))))
    (stem,) = [r for r in pruner.removals if r.kind == "block" and r.groups == ("0",)]
    for edits, expected in ((stem.edits, without_stem), (pruner.plan(groups=["4"]).edits, without_head)):
        pruned = copy_of(net)
        operate(pruned, edits)
        assert close(run(pruned, x), expected)


# ---- granularity -----------------------------------------------------------------------------------------------------


def kinds(model, inputs, granularity):
    pruner = UniversalLayerPruner(randomised(model), example_inputs=inputs, granularity=granularity)
    return {removal.kind for removal in pruner.removals}


def test_granularity_says_which_rows_of_the_table_are_tried():
    def model():
        return nn.Sequential(linear(), PostNorm(), linear(), nn.ReLU(), linear())

    assert kinds(model(), tokens(), "group") == {"branch", "block", "bypass"}
    assert "bypass" not in kinds(model(), tokens(), "branch")
    assert kinds(model(), tokens(), "block") == {"block"}


def test_an_unknown_granularity_is_refused_and_the_known_ones_are_named():
    with pytest.raises(BudgetError, match="'layer' is none of group, branch, block"):
        UniversalLayerPruner(chain(), example_inputs=rows(), granularity="layer")


class Steps(nn.Module):
    """Returns what it computes step by step, as encoders do that hand all hidden states out."""

    def __init__(self):
        super().__init__()
        self.f, self.g, self.h, self.k = linear(), linear(), linear(), linear()

    def forward(self, x):
        y = x + self.f(x)
        y = y + self.g(y)
        z = y + self.h(y)
        return y, z + self.k(z)


def test_an_element_leaves_by_the_result_that_is_read_elsewhere():
    def forward(net, x):
        _, x = net.blocks[0](net.stem(x))
        _, x = net.blocks[1](x)
        return net.head(x)

    model = Net(forward, stem=linear(), blocks=nn.ModuleList([Steps(), Steps()]), head=linear())
    pruner = UniversalLayerPruner(randomised(model), example_inputs=rows())
    names = [removal.name for removal in pruner.removals]
    assert len(set(names)) == len(names)
    (whole,) = (removal for removal in pruner.removals if removal.name == "blocks.0 by its input")
    assert set(whole.groups) == {f"blocks.0.{name}" for name in "fghk"}


class Maps(nn.Module):
    """Returns its results in a list, which is its caller's from then on."""

    def __init__(self):
        super().__init__()
        self.f, self.g = linear(), linear()

    def forward(self, x):
        y = torch.relu(self.f(x))
        return [y, torch.relu(self.g(y))]


def test_a_list_that_a_module_returns_may_be_changed_by_its_caller():
    def forward(net, x):
        maps = net.maps(net.stem(x))
        y = maps.pop()
        y = y + net.a(torch.relu(net.b(y)))
        y = y + net.c(torch.relu(net.d(y)))
        return net.head(y + maps.pop())

    parts = {name: linear() for name in ("stem", "a", "b", "c", "d", "head")}
    pruner = UniversalLayerPruner(randomised(Net(forward, maps=Maps(), **parts)), example_inputs=rows())
    assert {"a", "b", "c", "d"} <= {group.name for group in pruner.groups if group.can_remove}
    for name in "abcd":
        pruner.prune(groups=[name])(rows())


class Recomputing(torch.autograd.Function):
    """A function whose backward runs two modules again, and asks the first one's result for its history."""

    @staticmethod
    def forward(ctx, x, f, g):
        ctx.parts = f, g
        ctx.save_for_backward(x)
        return x + f(x) + g(x)

    @staticmethod
    def backward(ctx, grad):
        f, g = ctx.parts
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            first = f(x)
            assert first.grad_fn.next_functions
            torch.autograd.backward([first, x + g(x)], [grad, grad])
        return x.grad, None, None


def test_where_a_model_brings_its_own_backward_a_backward_is_part_of_the_proof():
    def forward(net, x):
        x = Recomputing.apply(net.stem(x), net.f, net.g)
        return net.head(x + net.h(torch.relu(net.k(x))))

    parts = {name: linear() for name in ("stem", "f", "g", "h", "k", "head")}
    pruner = UniversalLayerPruner(randomised(Net(forward, **parts)), example_inputs=rows())
    verdicts = {group.name: group for group in pruner.groups}
    assert verdicts["g"].can_remove
    assert verdicts["h"].can_remove
    assert not verdicts["f"].can_remove
    assert "backward" in verdicts["f"].reason


class Sized(nn.Module):
    """Returns the length of its sequence, or of any sequence, next to its tokens."""

    def __init__(self, *, own):
        super().__init__()
        self.f, self.own = linear(), own

    def forward(self, x):
        return self.f(x), x.shape[1] if self.own else 5


@pytest.mark.parametrize("own", [True, False])
def test_a_module_that_returns_a_size_stays_unless_the_size_is_always_the_same(own):
    def forward(net, x):
        x = net.stem(x)
        y, length = net.sized(x)
        x = x + torch.relu(net.g(y)).reshape(x.shape[0], x.shape[1], -1)[:, : max(length, x.shape[1])]
        return net.head(x)

    parts = {name: linear() for name in ("stem", "g", "head")}
    model = randomised(Net(forward, sized=Sized(own=own), **parts))
    pruner = UniversalLayerPruner(model, example_inputs=tokens())
    assert {group.name: group.can_remove for group in pruner.groups}["g"]
    standing = [edit.fqn for removal in pruner.removals for edit in removal.edits if edit.kind in ("pass", "drop")]
    assert ("sized" in standing) is not own
    for removal in pruner.removals:
        pruner.prune(groups=[removal.groups[0]])(tokens(2, 9))


def test_a_loop_over_tokens_is_proven_for_one_number_of_calls_and_a_note_says_so():
    def forward(n, x):
        h = x[:, 0]
        for t in range(x.shape[1]):
            h = h + n.mid(torch.tanh(n.inp(x[:, t])))
        return n.h(h)

    model = randomised(Net(forward, inp=linear(), mid=linear(), h=linear()))
    pruner = UniversalLayerPruner(model, example_inputs=tokens(length=5))
    (note,) = (note for note in pruner.notes if "called several times" in note)
    assert "'mid' (5); that they may go is proven for these numbers of calls" in note
    single = UniversalLayerPruner(chain(), example_inputs=rows())
    assert not any("called several times" in note for note in single.notes)
