"""Pruned models leave Python: torch.export, ONNX, torch.compile and tracing see the very graph of a smaller network.

Every case names the network that somebody would have written by hand without the removed layers, with the same weights.
Its graph is what the pruned model's must be, operator by operator, so that nothing of a removed layer is left in it.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from layerprune import PruningPlan, UniversalLayerPruner
from layerprune.errors import DroppedTensorError, ExportError
from layerprune.export import export_onnx
from layerprune.stand_ins import DroppedBranch
from models.nets import Net, Photograph, close, conv, image, linear, parameter, randomised, rows, tokens

Parts = Mapping[str, nn.Module | nn.Parameter]


class Attention(nn.Module):
    """Returns its output and None, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = linear(8, 24), linear()

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        q, k, v = self.qkv(hidden).unsqueeze(1).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).squeeze(1)), None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), linear(8, 16), linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


@dataclass(frozen=True)
class Case:
    """A network, what goes, and what is left.

    Attributes:
        kind: the removal's kind.
        edits: the kinds of edits that carry it out.
        group: the group that goes.
        parts: the network's parts; a stem, a head and what is between.
        body: what is between stem and head.
        left: the same without the removed layers, as one would write it by hand.
        inputs: example inputs.
        granularity: what is to be removed.
        more: the parts of the network by hand, where they are others.
    """

    kind: str
    edits: set[str]
    group: str
    parts: Callable[[], Parts]
    body: Callable[[Any, Tensor], Tensor]
    left: Callable[[Any, Tensor], Tensor]
    inputs: Callable[..., Tensor] = tokens
    granularity: str = "group"
    more: Callable[[Parts], Parts] = lambda parts: parts


def whole(body: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda net, x: net.head(body(net, net.stem(x)))


def functional_attention(net: Any, x: Tensor) -> Tensor:
    q, k, v = net.qkv(net.norm(x)).unsqueeze(1).chunk(3, -1)
    return x + net.out(F.scaled_dot_product_attention(q, k, v).squeeze(1))


def attention_module(net: Any, x: Tensor) -> Tensor:
    update, _ = net.attention(hidden=net.norm(x), mask=None)
    return x + update


def squeeze_excite(net: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(net.up(F.relu(net.down(x.mean((2, 3), keepdim=True)))))


def in_place_sum(net: Any, x: Tensor) -> Tensor:
    out = net.a(x)
    out += x
    return out


def written_later(net: Any, x: Tensor) -> Tensor:
    y = x + net.a(x)
    y.relu_()
    return y + x


def twice(net: Any, x: Tensor) -> Tensor:
    x = x + net.a(x)
    return x + net.a(x)


def read_twice(net: Any, x: Tensor) -> Tensor:
    t = net.a(x)
    return net.b(x + t) + t


def without_first_channels(fuse: Any) -> nn.Conv2d:
    sliced = conv(4, 4, 1)
    sliced.weight, sliced.bias = nn.Parameter(fuse.weight[:, 4:].detach().clone()), fuse.bias
    return sliced


def blocks(net: Any, x: Tensor) -> Tensor:
    for block in net.blocks:
        x = block(x)
    return x


def images(**parts: Any) -> Callable[[], Parts]:
    return lambda: {"stem": conv(3, 4), **{k: p() for k, p in parts.items()}, "head": conv(4)}


def rows_of(**parts: Any) -> Callable[[], Parts]:
    return lambda: {"stem": linear(), **{k: p() for k, p in parts.items()}, "head": linear(8, 3)}


CASES: Mapping[str, Case] = {
    "bypass": Case(
        "bypass", {"pass"}, "a", rows_of(a=linear), lambda net, x: F.relu(net.a(x)), lambda net, x: F.relu(x)
    ),
    "element of a sequence": Case(
        "block",
        {"delete"},
        "body.0",
        rows_of(body=lambda: nn.Sequential(linear(), nn.ReLU(), nn.Tanh())),
        lambda net, x: net.body(x),
        lambda net, x: torch.tanh(F.relu(x)),
    ),
    "bypass of two": Case(
        "bypass",
        {"pass"},
        "narrow",
        rows_of(narrow=lambda: linear(8, 4), wide=lambda: linear(4, 8)),
        lambda net, x: net.wide(net.narrow(x)),
        lambda net, x: x,
    ),
    "several": Case(
        "several",
        {"drop"},
        "a",
        rows_of(a=linear, b=linear),
        read_twice,
        lambda net, x: net.b(x),
        granularity="branch",
    ),
    "branch": Case(
        "branch",
        {"drop"},
        "fc",
        rows_of(norm=lambda: nn.LayerNorm(8), fc=linear),
        lambda net, x: x + F.gelu(net.fc(net.norm(x))),
        lambda net, x: x,
    ),
    "branch of functions": Case(
        "branch",
        {"drop"},
        "qkv",
        rows_of(norm=lambda: nn.LayerNorm(8), qkv=lambda: linear(8, 24), out=linear),
        functional_attention,
        lambda net, x: x,
    ),
    "branch that returns a tuple": Case(
        "branch",
        {"drop"},
        "attention.qkv",
        rows_of(norm=lambda: nn.LayerNorm(8), attention=Attention),
        attention_module,
        lambda net, x: x,
    ),
    "branch of torch's attention": Case(
        "branch",
        {"drop"},
        "attention",
        rows_of(norm=lambda: nn.LayerNorm(8), attention=lambda: nn.MultiheadAttention(8, 2, batch_first=True)),
        lambda net, x: x + net.attention(net.norm(x), net.norm(x), net.norm(x), need_weights=False)[0],
        lambda net, x: x,
    ),
    "branch that is summed in place": Case("branch", {"drop"}, "a", rows_of(a=linear), in_place_sum, lambda net, x: x),
    "branch with a scale": Case(
        "branch",
        {"drop", "drop_parameter"},
        "a",
        rows_of(gamma=lambda: parameter(8), a=linear),
        lambda net, x: x + net.gamma * net.a(x),
        lambda net, x: x,
        granularity="branch",
    ),
    "branch whose sum is written into": Case(
        "branch", {"drop"}, "a", rows_of(a=linear), written_later, lambda net, x: x.clone().relu_() + x
    ),
    "gate": Case(
        "gate",
        {"drop"},
        "down",
        images(down=lambda: conv(4, 2, 1), up=lambda: conv(2, 4, 1)),
        squeeze_excite,
        lambda net, x: x,
        image,
    ),
    "concat": Case(
        "concat",
        {"drop", "slice"},
        "a",
        images(a=conv, b=conv, fuse=lambda: conv(8, 4, 1)),
        lambda net, x: net.fuse(torch.cat([net.a(x), net.b(x)], 1)),
        lambda net, x: net.fuse(torch.cat([net.b(x)], 1)),
        image,
        more=lambda parts: {**parts, "fuse": without_first_channels(parts["fuse"])},
    ),
    "shared": Case("shared", {"drop"}, "a", rows_of(a=linear), twice, lambda net, x: x, granularity="branch"),
    "block": Case(
        "block",
        {"pass"},
        "blocks.1.fc1",
        rows_of(blocks=lambda: nn.ModuleList(Block() for _ in range(3))),
        blocks,
        lambda net, x: net.blocks[2](net.blocks[0](x)),
        granularity="block",
    ),
}


#: One case of every kind, two of branches: each takes seconds, and starts from the graph that torch.export makes.
IN_ONNX = ("bypass", "several", "branch of functions", "branch with a scale", "gate", "concat", "shared", "block")


@dataclass(frozen=True)
class Made:
    """A case made: the pruned model, the network by hand, and the inputs for both."""

    original: nn.Module
    pruned: nn.Module
    by_hand: nn.Module
    plan: PruningPlan
    inputs: Tensor
    more: Tensor

    def assert_as_by_hand(self, run: Callable[[Tensor], Any], *batches: Tensor) -> None:
        """What was exported returns what the network by hand does."""
        for x in batches or (self.inputs, self.more):
            with torch.no_grad():
                assert close(run(x), self.by_hand(x), 1e-5)


@functools.cache
def make(name: str) -> Made:
    case = CASES[name]
    torch.manual_seed(0)
    parts = case.parts()
    original = randomised(Net(whole(case.body), **parts))
    by_hand = Net(whole(case.left), **case.more(parts)).eval()
    x = case.inputs(batch=2)
    pruner = UniversalLayerPruner(original, example_inputs=x, granularity=case.granularity)
    plan = pruner.plan(groups=[case.group])
    assert [removal.kind for removal in plan.removals] == [case.kind]
    assert {edit.kind for edit in plan.edits} == case.edits
    return Made(original, pruner.prune(plan=plan), by_hand, plan, x, case.inputs(batch=5, seed=7))


@pytest.fixture(params=CASES)
def made(request: pytest.FixtureRequest) -> Made:
    return make(request.param)


def calls(graph: torch.fx.Graph) -> list[str]:
    """The operators of a graph of which something is used, in order."""
    graph.eliminate_dead_code()
    return [str(node.target) for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]


def exported(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch")},)
    wrapped = tuple(shapes) if not isinstance(model, Net) else {"args": shapes}
    return torch.export.export(model, (x,), dynamic_shapes=wrapped)


# ---- every kind of removal, every way out ----------------------------------------------------------------------------


def test_torch_export(made: Made) -> None:
    program = exported(made.pruned, made.inputs)
    made.assert_as_by_hand(program.module())
    assert calls(program.graph) == calls(exported(made.by_hand, made.inputs).graph)
    assert len(calls(program.graph)) < len(calls(exported(made.original, made.inputs).graph))
    assert not [name for name in program.constants if "token" in name]


def compiled(model: nn.Module) -> tuple[Callable[..., Tensor], list[list[str]]]:
    """A compiled model, in one graph or not at all, and the functional graphs that its backend gets."""
    graphs: list[list[str]] = []

    def keep(graph_module: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        graphs.append(calls(graph_module.graph))
        return make_boxed_func(graph_module.forward)

    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=keep), dynamic=True), graphs


def test_torch_compile_without_a_graph_break(made: Made) -> None:
    ours, graphs = compiled(made.pruned)
    made.assert_as_by_hand(ours)
    assert len(graphs) == 1, "one graph for both batch sizes: what it guards on does not change"
    theirs, expected = compiled(made.by_hand)
    made.assert_as_by_hand(theirs)
    assert graphs == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracing(made: Made) -> None:
    def traced(model: nn.Module) -> tuple[torch.jit.ScriptModule, list[str]]:
        with torch.no_grad():
            found = torch.jit.trace(model, (made.inputs,))
        return found, [node.kind() for node in found.inlined_graph.nodes() if node.kind().startswith("aten::")]

    (ours, names), (_, expected) = traced(made.pruned), traced(made.by_hand)
    made.assert_as_by_hand(ours)
    assert names == expected


@pytest.mark.parametrize("name", IN_ONNX)
def test_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    made = make(name)
    ours = export_onnx(made.pruned, tmp_path / "ours.onnx", made.inputs)
    theirs = export_onnx(made.by_hand, tmp_path / "theirs.onnx", made.inputs)
    assert ours.num_nodes == theirs.num_nodes
    assert ours.batch_sizes == (4, 6)
    made.assert_as_by_hand(lambda x: session(ours.path)(x)[0])


def session(path: Path) -> Callable[..., list[Tensor]]:
    """Run an ONNX file without torch."""
    import onnxruntime

    runtime = onnxruntime.InferenceSession(path)
    names = [each.name for each in runtime.get_inputs()]
    return lambda *x: [
        torch.from_numpy(out) for out in runtime.run(None, dict(zip(names, (t.numpy() for t in x), strict=True)))
    ]


def test_what_looks_at_the_weights_of_a_removed_part_compiles_and_exports() -> None:
    """Torch's encoder layers gather the weights of their parts before they call them."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(linear(), nn.TransformerEncoder(layer, 2), linear(8, 3)).eval()
    pruned = UniversalLayerPruner(model, example_inputs=tokens(), granularity="branch").prune(
        groups=["1.layers.0.self_attn"]
    )
    with torch.no_grad():
        expected = pruned(tokens())
        torch.compiler.reset()
        assert close(torch.compile(pruned, fullgraph=True, backend="aot_eager")(tokens()), expected)
        assert close(torch.export.export(pruned, (tokens(),)).module()(tokens()), expected)
        assert close(torch.jit.trace(pruned, (tokens(),))(tokens()), expected)


# ---- what else a compiled or exported model must do ------------------------------------------------------------------


def test_a_compiled_model_learns_as_the_smaller_network_does() -> None:
    made = make("branch of functions")
    gradients: list[list[Tensor]] = []
    for model in (made.pruned, made.by_hand):
        torch.compiler.reset()
        parameters = [p for p in model.parameters() if model is made.pruned] or [*stem_and_head(made.by_hand)]
        loss = torch.compile(model, fullgraph=True, backend="aot_eager")(made.inputs).square().sum()
        gradients.append(list(torch.autograd.grad(loss, parameters)))
    assert len(gradients[0]) == len(gradients[1]) == 4
    assert all(close(a, b) for a, b in zip(*gradients, strict=True))


def stem_and_head(net: Any) -> Sequence[nn.Parameter]:
    return [*net.stem.parameters(), *net.head.parameters()]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch's default compiler needs one for C++")
@pytest.mark.slow
def test_torchs_default_compiler() -> None:
    made = make("branch that returns a tuple")
    torch.compiler.reset()
    made.assert_as_by_hand(torch.compile(made.pruned, fullgraph=True))


def test_strict_export_is_refused_with_the_reason() -> None:
    made = make("gate")
    before = Photograph(made.pruned)
    with pytest.raises(DroppedTensorError, match="leave strict at False"):
        torch.export.export(made.pruned, (made.inputs,), strict=True)
    assert Photograph(made.pruned) == before


def test_what_is_pruned_without_stand_ins_can_be_scripted() -> None:
    model = randomised(nn.Sequential(linear(), nn.Sequential(linear(), nn.ReLU()), nn.Tanh(), linear(8, 3)))
    pruned = UniversalLayerPruner(model, example_inputs=rows()).prune(groups=["1.0"])
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.script"):
        scripted = torch.jit.script(pruned)
    assert close(scripted(rows()), pruned(rows()))


def test_attention_that_went_leaves_nothing_in_a_transformers_graph() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, head_dim=8
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    inputs = {"input_ids": torch.randint(3, 40, (2, 6)), "use_cache": False}
    pruner = UniversalLayerPruner(model, example_inputs=inputs, granularity="branch")
    pruned = pruner.prune(groups=["model.layers.1.self_attn.o_proj"])
    graphs = [torch.export.export(each, (), inputs) for each in (model, pruned)]
    before, after = (Counter(calls(program.graph)) for program in graphs)
    assert close(graphs[1].module()(**inputs).logits, pruned(**inputs).logits)
    gone = before - after
    assert not after - before
    assert gone["aten.linear.default"] == 4, "query, key, value, output"
    assert gone["aten.scaled_dot_product_attention.default"] == 1
    assert gone["aten.add.Tensor"] == 4, "the residual sum, the epsilon of its norm, two of the rotary embedding"
    assert gone["aten.rsqrt.default"] == gone["aten.pow.Tensor_Scalar"] == 1, "the norm before it goes, too"


def test_a_pruned_resnet_is_the_smaller_resnet_in_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    models = pytest.importorskip("torchvision.models.resnet")
    torch.manual_seed(0)
    large = models.ResNet(models.BasicBlock, [2, 1, 1, 1], num_classes=4).eval()
    small = models.ResNet(models.BasicBlock, [1, 1, 1, 1], num_classes=4).eval()
    pruned = UniversalLayerPruner(large, example_inputs=image(size=32), granularity="block").prune(
        groups=["layer1.1.conv1"]
    )
    assert list(pruned.state_dict()) == list(small.state_dict())
    x = image(batch=3, size=32)
    ours, theirs = (calls(torch.export.export(each, (x,)).graph) for each in (pruned, small))
    assert ours == theirs
    file = export_onnx(pruned, tmp_path / "resnet.onnx", x)
    assert close(session(file.path)(x)[0], pruned(x))


class Timed(nn.Module):
    """Adds a row to an image, as the residual blocks of a diffusion network do with the time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.time = conv(), nn.Sequential(nn.ReLU(), linear(6, 4))
        self.inner, self.outer, self.head = conv(), conv(), conv()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.inner(x) + self.time(time)[:, :, None, None]
        return self.head(x + self.outer(h.relu()))


def test_an_exporter_that_asks_a_dropped_tensor_for_its_dimensions_gets_an_answer() -> None:
    """Of an index like ``[:, :, None]`` torch.export reads ``ndim`` before it lets the tensor do it."""
    model, inputs = Timed().eval(), (image(2, 4), rows(2, 6))
    pruner = UniversalLayerPruner(model, example_inputs=inputs, protect_io=False)
    pruned = pruner.prune(groups=next(list(r.groups) for r in pruner.removals if {"inner", "outer"} <= {*r.groups}))
    assert isinstance(pruned.time, DroppedBranch)
    free = ({0: torch.export.Dim("batch")}, {0: torch.export.Dim("batch")})
    found = torch.export.export(pruned, inputs, dynamic_shapes=free).module()(*(torch.cat([x, x]) for x in inputs))
    with torch.no_grad():
        expected = model.head(model.stem(inputs[0]))
    assert close(found, torch.cat([expected, expected]))


# ---- export_onnx -----------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    """Takes two tensors, returns a dict of two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = linear(), nn.BatchNorm1d(8)

    def forward(self, x: Tensor, *, bias: Tensor) -> dict[str, Any]:
        y = self.norm(self.a(x)) + bias
        return {"sum": y, "parts": (x.sum(-1), None)}


def test_keywords_nested_outputs_and_a_tensor_without_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = randomised(Pair()).train()
    before = Photograph(model)
    file = export_onnx(model, tmp_path / "pair.onnx", {"x": rows(), "bias": rows(1)[0]})
    assert Photograph(model) == before
    assert file.batch_sizes == (8, 12)
    assert file.max_difference < 1e-5
    assert str(file).endswith("of the model at batch size 8 and 12")
    first, second = session(file.path)(rows(3), rows(1)[0])
    expected = model.eval()(rows(3), bias=rows(1)[0])
    assert close(first, expected["sum"])
    assert close(second, expected["parts"][0])


def test_a_fixed_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = export_onnx(linear(), tmp_path / "fixed.onnx", rows(), dynamic_batch=False)
    assert file.batch_sizes == (4,)
    import onnx

    (given,) = onnx.load(file.path).graph.input
    assert [size.dim_value for size in given.type.tensor_type.shape.dim] == [4, 8]


@pytest.mark.parametrize(
    ("model", "inputs", "options", "match"),
    [
        (
            Net(lambda net, x: net.a(x if x.sum() > 0 else -x), a=linear()),
            rows(),
            {},
            "torch cannot export Net to ONNX: ",
        ),
        (Net(lambda net, x, y: net.a(x) + y.sum(), a=linear()), (rows(), rows(3)), {}, "pass dynamic_batch=False"),
        (
            nn.Conv1d(8, 8, 3, dtype=torch.float64),
            torch.ones(2, 8, 5, dtype=torch.float64),
            {},
            "onnxruntime cannot run the ONNX graph of Conv1d at batch size 4: .*; nothing was written",
        ),
        (linear(), rows(), {"tolerance": -1.0}, "is off by .*at batch size 8; nothing was written"),
    ],
    ids=["a value is read", "no batch", "does not run", "differs"],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    model: nn.Module, inputs: Any, options: dict[str, Any], match: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    before = Photograph(model)
    with pytest.raises(ExportError, match=match):
        export_onnx(model, tmp_path / "none.onnx", inputs, **options)
    assert list(tmp_path.iterdir()) == []
    assert Photograph(model) == before


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerprune.export.onnx.find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(ExportError, match=r"needs onnxruntime; run: pip install onnxruntime 'torch=="):
        export_onnx(linear(), tmp_path / "none.onnx", rows())
