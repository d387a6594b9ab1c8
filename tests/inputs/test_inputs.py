"""Example inputs: what counts as one argument, what a batch is, and what is inferred from a model."""

import dataclasses
import threading
import types
from collections import OrderedDict, UserDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from layerprune.errors import InputsError
from layerprune.inputs import Inputs, Sampler, as_inputs, describe, infer_inputs


def running(model):
    """Attempts that really run the model, in eval and without grad."""

    def attempt(inputs):
        try:
            with torch.no_grad():
                model.eval()(*inputs.args, **inputs.kwargs)
        except Exception as error:
            return error
        return None

    return attempt


def inferred(model, candidates=()):
    return infer_inputs(model, running(model), candidates)


def shapes(inputs):
    return [tuple(tensor.shape) for tensor in inputs.tensors()]


# ---- as_inputs: what the user gave -----------------------------------------------------------------------------------


class Batch:
    """An object with attributes, as detection and graph libraries pass them."""

    def __init__(self, x):
        self.x = x
        self.name = "batch"


def test_a_tensor_a_list_and_an_object_are_one_positional_argument():
    x = torch.zeros(2, 3)
    for given in (x, [x], Batch(x), {0: x}, namedtuple("Pair", "a b")(x, x), nn.utils.rnn.pack_sequence([x])):
        inputs = as_inputs(given)
        assert len(inputs.args) == 1
        assert inputs.args[0] is given
        assert not inputs.kwargs


def test_a_tuple_holds_the_positional_arguments():
    x, y = torch.zeros(1), torch.ones(1)
    assert as_inputs((x, y)).args == (x, y)
    assert as_inputs(({"x": x},)).args == ({"x": x},)


@pytest.mark.parametrize("mapping", [dict, OrderedDict, UserDict])
def test_a_mapping_holds_the_keyword_arguments(mapping):
    x = torch.zeros(1)
    inputs = as_inputs(mapping(x=x, flag=False))
    assert inputs.args == ()
    assert inputs.kwargs == {"x": x, "flag": False}


def test_inputs_pass_through_and_what_was_given_is_not_inferred():
    inputs = as_inputs(torch.zeros(1))
    assert as_inputs(inputs) is inputs
    assert inputs.origin == "given"
    assert not inputs.inferred
    assert Inputs((), {}, "inferred: 1×8").inferred


@pytest.mark.parametrize(
    ("mistake", "advice"),
    [
        (None, "leave it out"),
        (nn.Linear(1, 1), "a model"),
        (DataLoader([torch.zeros(1)]), "one batch"),
        (iter([torch.zeros(1)]), "calibration="),
    ],
)
def test_a_mistake_is_told_what_to_pass(mistake, advice):
    with pytest.raises(InputsError, match=advice):
        as_inputs(mistake)


def test_inputs_print_their_shapes_and_origin():
    inputs = Inputs((torch.zeros(1, 3, 8, 8),), {"ids": torch.zeros(1, 4, dtype=torch.int64), "use_cache": False})
    assert describe(inputs) == "1×3×8×8, ids 1×4 int64, use_cache False"
    assert repr(inputs) == "Inputs(1×3×8×8, ids 1×4 int64, use_cache False; given)"
    assert describe(Inputs(([torch.zeros(2)], None))) == "list(2), None"
    assert describe(Inputs(())) == "no arguments"


# ---- map: tensors at any depth ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: torch.Tensor


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda x: x, lambda v: v),
        (lambda x: [x], lambda v: v[0]),
        (lambda x: (1, x), lambda v: v[1]),
        (lambda x: Pair("a", x), lambda v: v.right),
        (lambda x: {"a": {"b": [x]}}, lambda v: v["a"]["b"][0]),
        (lambda x: OrderedDict(a=x), lambda v: v["a"]),
        (lambda x: UserDict(a=x), lambda v: v["a"]),
        (lambda x: types.MappingProxyType({"a": x}), lambda v: v["a"]),
        (lambda x: Frozen(x, "note"), lambda v: v.x),
        (lambda x: Slotted(x), lambda v: v.x),
        (lambda x: Batch([x]), lambda v: v.x[0]),
        (lambda x: {x}, lambda v: next(iter(v))),
        (lambda x: torch.return_types.max((x, 1)), lambda v: v.values),
    ],
)
def test_map_reaches_a_tensor_in_any_structure_and_mutates_none(wrap, unwrap):
    x = torch.ones(2)
    given = wrap(x)
    inputs = Inputs((given,))
    mapped = inputs.map(lambda tensor: tensor + 1)
    assert type(mapped.args[0]) is type(given)
    assert unwrap(mapped.args[0]).tolist() == [2, 2]
    assert unwrap(given) is x
    assert inputs.tensors() == [x]


def test_map_keeps_identity():
    x, config = torch.ones(2), {"depth": 3}
    mapped = Inputs((x, [x, x]), {"x": x, "config": config}).map(torch.clone)
    first, pair = mapped.args
    assert pair[0] is pair[1] is first is mapped.kwargs["x"]
    assert first is not x
    assert mapped.kwargs["config"] == config


def test_what_is_written_into_a_mapped_container_does_not_reach_the_one_that_it_was_made_of():
    """A forward may append to a list that it is given, filled or empty, or to one that an object holds."""
    lock, states, given = threading.Lock(), [], [torch.ones(2)]
    holder = SimpleNamespace(states=[], lock=lock)
    mapped = Inputs((states, given, holder)).map(torch.clone)
    for container in (mapped.args[0], mapped.args[1], mapped.args[2].states):
        container.append(torch.zeros(2))
    assert (len(states), len(given), len(holder.states)) == (0, 1, 0)
    assert mapped.args[2].lock is lock


def test_map_follows_cycles():
    batch = Batch(torch.ones(1))
    batch.myself = [batch]
    mapped = Inputs((batch,)).map(torch.clone).args[0]
    assert mapped is not batch
    assert mapped.myself[0] is mapped
    assert len(Inputs((batch,)).tensors()) == 1


def test_map_leaves_modules_and_their_weights_alone():
    layer = nn.Linear(1, 1)
    inputs = Inputs((torch.ones(1),), {"layer": layer})
    assert inputs.map(torch.clone).kwargs["layer"] is layer
    assert len(inputs.tensors()) == 1


# ---- batch_size, repeat ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([torch.zeros(4, 3)], 4),
        ([torch.zeros(4, 3), torch.zeros(4)], 4),  # images and labels
        ([torch.zeros(4, 3), torch.zeros(7)], 4),  # a vector that is no batch
        ([torch.zeros(4)], 4),
        ([torch.zeros(4, 3), torch.zeros(1, 3)], 4),  # broadcast
        ([torch.zeros(4, 3), torch.zeros(5, 3)], None),  # they disagree
        ([torch.tensor(1.0)], None),
        (["text"], None),
        ([[torch.zeros(3, 16, 16), torch.zeros(3, 20, 18)]], 2),  # a detector's images
    ],
)
def test_batch_size_is_what_the_tensors_share(values, expected):
    inputs = Inputs(tuple(values))
    assert inputs.batch_size == expected
    assert (inputs.repeat(2) is None) == (expected is None)


def test_repeat_repeats_the_samples_and_nothing_else():
    x, vector, scalar = torch.arange(4.0).view(2, 2), torch.zeros(7), torch.tensor(1.0)
    repeated = Inputs((Frozen(x),), {"vector": vector, "scalar": scalar}).repeat(3)
    assert repeated is not None
    assert torch.equal(repeated.args[0].x, torch.cat([x, x, x]))
    assert repeated.kwargs["vector"] is vector
    assert repeated.kwargs["scalar"] is scalar
    assert repeated.batch_size == 6


def test_repeat_repeats_a_detectors_images_and_targets_as_lists():
    images, targets = [torch.zeros(3, 16, 16)], [{"boxes": torch.zeros(5, 4)}]
    repeated = Inputs((images, targets)).repeat(2)
    assert repeated is not None
    assert [len(value) for value in repeated.args] == [2, 2]
    assert repeated.args[0][1] is images[0]
    assert len(images) == 1


def test_some_samples_are_cut_out_and_nothing_else():
    x, vector, scalar = torch.arange(8.0).view(4, 2), torch.zeros(7), torch.tensor(1.0)
    cut = Inputs((Frozen(x),), {"vector": vector, "scalar": scalar}).samples(0, 2)
    assert cut is not None
    assert torch.equal(cut.args[0].x, x[:2])
    assert cut.kwargs["vector"] is vector
    assert cut.kwargs["scalar"] is scalar
    assert Inputs((torch.zeros(4, 3), torch.zeros(5, 3))).samples(0, 2) is None


def test_the_first_of_a_detectors_images_come_with_their_targets():
    images, targets = [torch.zeros(3, 16, 16) for _ in range(3)], [{"boxes": torch.zeros(3, 4)} for _ in range(3)]
    cut = Inputs((images, targets)).samples(0, 2)
    assert cut is not None
    assert [len(value) for value in cut.args] == [2, 2]
    assert cut.args[1][0]["boxes"].shape == (3, 4)


# ---- infer_inputs: from the first layer that reads -------------------------------------------------------------------


def seq(*layers):
    return nn.Sequential(*layers)


class Forward(nn.Module):
    """Named layers with a forward given as a function of (module, ...)."""

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def net(forward, **layers):
    return type("Net", (Forward,), {"forward": forward})(**layers)


def text_classifier():
    return net(lambda self, ids: self.head(self.embed(ids).mean(1)), embed=nn.Embedding(50, 8), head=nn.Linear(8, 2))


def head_registered_first():
    return net(lambda self, x: self.head(self.conv(x).mean((2, 3))), head=nn.Linear(4, 2), conv=nn.Conv2d(3, 4, 3))


def channels_last():
    return net(lambda self, x: self.conv(x.permute(0, 3, 1, 2)), conv=nn.Conv2d(5, 4, 3))


def patch_mixer():
    def forward(self, images):
        patches = F.unfold(images, 16, stride=16).transpose(1, 2)
        return self.embed(self.norm(patches)) + self.position

    model = net(forward, norm=nn.LayerNorm(768), embed=nn.Linear(768, 4))
    model.position = nn.Parameter(torch.zeros(1, 256, 4))
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (seq(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), [(1, 3, 224, 224)]),
        (seq(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 2)), [(1, 1, 28, 28)]),
        (seq(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2)), [(1, 3, 32, 32)]),
        (channels_last(), [(1, 224, 224, 5)]),
        (head_registered_first(), [(1, 3, 224, 224)]),
        (seq(nn.Conv1d(6, 4, 3), nn.AdaptiveAvgPool1d(1)), [(1, 6, 128)]),
        (seq(nn.Conv1d(1, 4, 80, stride=16), nn.AvgPool1d(16), nn.AvgPool1d(16)), [(1, 1, 16000)]),
        (seq(nn.Conv3d(3, 4, 3)), [(1, 3, 16, 112, 112)]),
        (seq(nn.ConvTranspose2d(10, 4, 4), nn.ReLU()), [(1, 10, 1, 1)]),
        (seq(nn.Linear(12, 4), nn.BatchNorm1d(4)), [(1, 12)]),
        (nn.LSTM(5, 4, batch_first=True), [(1, 8, 5)]),
        (nn.GRU(5, 4), [(8, 1, 5)]),
        (nn.LSTMCell(5, 4), [(1, 5)]),
        (nn.TransformerEncoderLayer(8, 2, batch_first=True), [(1, 8, 8)]),
        (nn.Transformer(8, 2, 1, 1), [(8, 1, 8)] * 2),
        (nn.MultiheadAttention(8, 2), [(8, 1, 8)] * 3),
        (seq(nn.LayerNorm(6), nn.Linear(6, 2)), [(1, 8, 6)]),
        (seq(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), [(1, 3, 224, 224)]),
        (text_classifier(), [(1, 8)]),
        (patch_mixer(), [(1, 3, 256, 256)]),
        (net(lambda self: self.layer.weight.sum(), layer=nn.Linear(2, 2)), []),
        (net(lambda self, *, x: self.layer(x), layer=nn.Linear(2, 2)), [(1, 2)]),
    ],
)
def test_the_first_layer_tells_the_shape(model, expected):
    assert shapes(inferred(model)) == expected


def test_the_origin_says_the_shape_and_the_layer():
    inputs = inferred(net(lambda self, x: self.conv1(x), conv1=nn.Conv2d(3, 4, 3)))
    assert inputs.origin == "inferred: 1×3×224×224 from 'conv1'"
    assert inferred(nn.Linear(3, 4)).origin == "inferred: 1×3 from Linear"


@pytest.mark.parametrize(
    ("forward", "layers", "expected"),
    [
        (lambda self, a, b: self.f(a) + self.f(b), {"f": nn.Linear(3, 4)}, [(1, 3), (1, 3)]),
        (lambda self, a, b: self.f(a) + self.g(b), {"f": nn.Linear(3, 4), "g": nn.Linear(5, 4)}, [(1, 3), (1, 5)]),
        (
            lambda self, image, ids: self.f(image).mean((2, 3)) + self.g(ids).mean(1),
            {"f": nn.Conv2d(3, 4, 3), "g": nn.Embedding(9, 4)},
            [(1, 3, 224, 224), (1, 8)],
        ),
        (
            lambda self, x, t: self.f(x) + self.g(t)[:, :, None, None],
            {"f": nn.Conv2d(3, 4, 3), "g": nn.Embedding(100, 4)},
            [(1, 3, 224, 224), (1,)],
        ),
        (
            lambda self, input_ids, attention_mask: self.f(input_ids) * attention_mask[..., None],
            {"f": nn.Embedding(9, 4)},
            [(1, 8), (1, 8)],
        ),
        (
            lambda self, x, edge_index: self.f(x).index_add(0, edge_index[0], self.f(x)[edge_index[1]]),
            {"f": nn.Linear(3, 4)},
            [(8, 3), (2, 16)],
        ),
        (lambda self, text, offsets: self.f(text, offsets), {"f": nn.EmbeddingBag(9, 4)}, [(8,), (1,)]),
    ],
)
def test_a_forward_with_several_parameters_gets_one_tensor_each(forward, layers, expected):
    assert shapes(inferred(net(forward, **layers))) == expected


def test_tensors_have_the_models_dtype_and_device():
    assert inferred(nn.Linear(3, 4).double()).tensors()[0].dtype == torch.float64
    model = nn.Linear(3, 4, device="meta")
    assert inferred(model).tensors()[0].device.type == "meta"
    mixed = seq(nn.LayerNorm(4), nn.Linear(4, 4).bfloat16())
    assert Sampler(mixed).dtype == torch.bfloat16


def test_values_are_plausible_and_the_same_each_time():
    first, second = inferred(nn.Linear(1000, 4)).args[0], inferred(nn.Linear(1000, 4)).args[0]
    assert torch.equal(first, second)
    assert abs(first.std().item() - 1) < 0.1
    ids = inferred(text_classifier()).args[0]
    assert ids.dtype == torch.int64
    assert len(ids.unique()) > 4
    assert 0 < ids.min() <= ids.max() < 50
    assert ids.max() - ids.min() > 20


def test_two_arguments_of_one_shape_have_different_values():
    a, b = inferred(nn.Bilinear(3, 3, 2)).args
    assert not torch.equal(a, b)


def test_the_global_random_state_is_untouched():
    models = [text_classifier(), seq(nn.Conv2d(3, 4, 3)), seq(nn.ReLU(), nn.GRU(5, 4))]
    before = torch.get_rng_state()
    for model in models:
        inferred(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_default_device_and_dtype_do_not_leak_in():
    model = nn.Linear(3, 4)
    with torch.device("meta"):
        x = inferred(model).args[0]
    assert x.device.type == "cpu"


def test_candidates_come_first():
    candidate = Inputs((torch.zeros(2, 3),), {}, "inferred: by an adapter")
    assert inferred(nn.Linear(3, 4), [candidate]) is candidate
    misfit = Inputs((torch.zeros(2, 9),), {}, "inferred: by an adapter")
    assert inferred(nn.Linear(3, 4), iter([misfit])).origin == "inferred: 1×3 from Linear"


# ---- infer_inputs: nothing fits --------------------------------------------------------------------------------------


class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 11 * 5, 2)

    def forward(self, image: torch.Tensor, scale: float = 1.0):
        return self.head(self.stem(image).flatten(1)) * scale


def test_when_nothing_fits_the_error_lists_the_tries_and_shows_what_forward_takes():
    with pytest.raises(InputsError) as caught:
        inferred(Picky())
    message = str(caught.value)
    assert "no example inputs could be inferred for Picky; tried" in message
    assert "1×3×224×224" in message
    assert "in 'head'" in message
    assert "mat1 and mat2 shapes cannot be multiplied" in message
    assert "Pass example_inputs=" in message
    assert "Picky.forward(image: torch.Tensor, scale: float = 1.0)" in message
    assert len(message.splitlines()) < 12


def test_a_forward_that_always_raises_is_blamed_itself():
    def forward(self, x):
        raise NotImplementedError("still to come")

    with pytest.raises(InputsError, match=r"Net's forward raises whatever it is given[^$]*still to come"):
        inferred(net(forward, conv=nn.Conv2d(3, 4, 3)))


def test_a_model_that_takes_another_structure_gets_the_call_to_make():
    model = net(lambda self, batch: self.f({**batch}["x"]["y"]), f=nn.Linear(3, 4))
    with pytest.raises(InputsError, match=r"tuple, dict or object that forward takes:\s+Net.forward\(batch\)"):
        inferred(model)
    given = as_inputs(({"x": {"y": torch.zeros(2, 3)}},))
    assert running(model)(given) is None
    assert given.batch_size == 2


def test_without_a_layer_that_reads_there_is_nothing_to_try():
    with pytest.raises(InputsError, match="no layer tells what it reads"):
        inferred(seq(nn.ReLU()))


def test_lazy_layers_propose_nothing():
    with pytest.raises(InputsError):
        inferred(seq(nn.LazyLinear(3)))


def test_an_error_that_attempt_raises_itself_gets_through():
    def attempt(inputs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer_inputs(nn.Linear(3, 4), attempt)


def test_of_tensors_in_lists_no_samples_are_cut():
    images = [torch.zeros(3, 8, 8) for _ in range(3)]  # three channels each, and three of them
    for given in ((images,), (tuple(images),), ({"images": images},), (Frozen(images),), (images, torch.zeros(3))):
        inputs = Inputs(given)
        assert inputs.samples(0, 2) is None
    assert Inputs(({"x": torch.zeros(4, 2), "flags": [True, False]},)).samples(0, 2) is not None
