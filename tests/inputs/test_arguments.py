"""What a batch of a loader stands for: the arguments of the model's forward, and nothing that it was not meant for."""

from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from layerprune import LayerPruneError, UniversalLayerPruner
from layerprune.capture import read_calibration
from layerprune.errors import CalibrationError, InputsError
from layerprune.fidelity import compare
from layerprune.inputs import why_mismatched
from layerprune.repair import repair
from layerprune.repair.batchnorm import reestimate
from models.nets import linear, randomised, rows

X = rows(4)  # (4, 8)
CLASSES = torch.tensor([0, 1, 2, 1])


class Residual(nn.Module):
    """Takes one tensor; each variant below has a signature of its own and hands the tensor on to this."""

    def __init__(self):
        super().__init__()
        for name in ("stem", "a", "b", "head"):
            setattr(self, name, linear())

    def run(self, x):
        x = self.stem(x)
        x = x + torch.tanh(self.a(x))
        x = x + torch.tanh(self.b(x))
        return self.head(x)


class One(Residual):
    def forward(self, x):
        return self.run(x)


class Masked(Residual):
    def forward(self, x, mask=None):
        assert mask is None or mask.dim() == 2, "a mask has two dimensions"
        return self.run(x if mask is None else x * mask)


class Flagged(Residual):
    def forward(self, x, return_features=False):
        return self.run(x) if return_features is False else (self.run(x), x)


class Timed(Residual):
    def forward(self, x, timesteps=None):
        return self.run(x if timesteps is None else x + timesteps[:, None])


class Two(Residual):
    def forward(self, x, y):
        return self.run(x + y[:, None])


class Conditioned(Residual):
    """Insists on the classes, though the signature says that they may be left out."""

    def forward(self, x, y=None):
        assert y is not None, "classes are needed"
        return self.run(x + y[:, None])


class OfDict(Residual):
    def forward(self, batch):
        return self.run(batch["image"])


class OfList(Residual):
    def forward(self, streams):
        return self.run(streams[0] + F.linear(streams[1], torch.ones(8, 8)))


class Named(Residual):
    def forward(self, input_values=None, attention_mask=None, labels=None, **more):
        assert not {"idx", "text"} & more.keys()
        out = self.run(input_values if attention_mask is None else input_values * attention_mask)
        return out if labels is None else (out.sum(), out)


class Wrapper(Residual):
    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)

    def inner(self, x, scale=1.0):
        return self.run(x * scale)


def read(model, item):
    return read_calibration([item], randomised(model))[0].inputs


# ---- lists and tuples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [X, (X,), [X], (X, CLASSES), [X, CLASSES], [X, CLASSES, "path.png"]])
def test_a_forward_of_one_argument_gets_the_first_of_a_pair(item):
    inputs = read(One(), item)
    assert len(inputs.args) == 1
    assert inputs.args[0] is X
    assert not inputs.kwargs
    assert bool(inputs.notes) == (isinstance(item, (list, tuple)) and len(item) > 1)


@pytest.mark.parametrize("pair", [tuple, list])
@pytest.mark.parametrize("labels", [CLASSES, CLASSES.float(), CLASSES[:, None], torch.randn(4, 5), torch.ones(4, 3, 3)])
def test_labels_are_never_handed_on_as_a_mask(pair, labels):
    inputs = read(Masked(), pair([X, labels]))
    assert [arg is X for arg in inputs.args] == [True]
    assert inputs.notes == (
        "item 2 of the 2 in each batch is left out: it may be labels; if it is meant for 'mask', give a dict with "
        "this key",
    )


@pytest.mark.parametrize("pair", [tuple, list])
@pytest.mark.parametrize("mask", [torch.ones(4, 8), torch.ones(4, 8, dtype=torch.int64), torch.ones(4, 8) > 0])
def test_what_is_a_mask_is_handed_on_and_said(pair, mask):
    inputs = read(Masked(), pair([X, mask, CLASSES]))
    assert inputs.args[0] is X
    assert inputs.args[1] is mask
    assert len(inputs.args) == 2
    assert [note.split(",")[0] for note in inputs.notes] == [
        "2 items of each batch are handed on by position",
        "item 3 of the 3 in each batch is left out: Masked.forward takes no more",
    ]


@pytest.mark.parametrize("labels", [CLASSES, torch.ones(4, 5, dtype=torch.int64)])
def test_a_flag_takes_no_tensor(labels):
    assert len(read(Flagged(), (X, labels)).args) == 1
    assert read(Flagged(), (X, False)).args[1] is False


def test_one_number_a_sample_is_handed_on_where_the_parameter_is_for_that():
    assert len(read(Timed(), [X, CLASSES]).args) == 2
    assert len(read(Timed(), [X, torch.ones(4, 3)]).args) == 1


def test_kinds_of_tokens_are_no_labels_of_samples():
    class Tokens(Masked):
        def forward(self, x=None, mask=None, token_type_ids=None):
            return self.run(x if token_type_ids is None else x + token_type_ids)

    assert len(read(Tokens(), [X, torch.ones(4, 8), CLASSES]).args) == 2
    assert len(read(Tokens(), (X, torch.ones(4, 8), torch.ones(4, 8))).args) == 3


def test_where_no_way_runs_the_error_is_of_the_likeliest():
    class Strict(One):
        def forward(self, x, extra=None):
            return self.run(x)

    text = message(CalibrationError, lambda: UniversalLayerPruner(Strict(), calibration=[[X[:, :5], CLASSES]]))
    assert "(4×5) does not fit" in text


def test_images_of_a_detector_are_one_argument_without_a_trial():
    images = [torch.zeros(3, 20, 16), torch.zeros(3, 16, 24)]
    assert len(read(One(), images).args[0]) == 2
    assert len(read(One(), tuple(images)).args[0]) == 2


def test_required_arguments_are_all_handed_on():
    inputs = read(Two(), [X, CLASSES])
    assert inputs.args[1] is CLASSES
    assert inputs.notes == ()


def test_what_the_forward_insists_on_is_handed_on_and_said():
    inputs = read(Conditioned(), [X, CLASSES])
    assert inputs.args[1] is CLASSES
    assert inputs.notes


def test_a_list_that_the_forward_takes_as_such_stays_one_argument():
    streams = [X, 2 * X]
    inputs = read(OfList(), streams)
    assert len(inputs.args) == 1
    assert inputs.args[0][1] is streams[1]
    assert inputs.notes == ()


def test_a_named_tuple_is_read_by_its_names():
    sample = namedtuple("Sample", "x y")
    assert read(One(), sample(X, CLASSES)).kwargs.keys() == {"x"}
    assert read(Two(), sample(X, CLASSES)).kwargs.keys() == {"x", "y"}


def test_a_wrapper_of_any_arguments_gets_no_labels():
    assert len(read(Wrapper(), [X, CLASSES]).args) == 1
    assert len(read(Wrapper(), (X, 2.0)).args) == 2


# ---- mappings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapping", [dict, UserDict])
def test_keys_that_the_forward_does_not_have_are_left_out(mapping):
    inputs = read(Masked(), mapping(x=X, label=CLASSES, idx=torch.arange(4)))
    assert inputs.kwargs.keys() == {"x"}
    assert inputs.notes == ("'idx', 'label' of each batch is left out: Masked.forward is not called with it",)


def test_keys_that_the_forward_names_are_handed_on_even_labels():
    inputs = read(Named(), {"input_values": X, "labels": CLASSES})
    assert inputs.kwargs.keys() == {"input_values", "labels"}
    assert inputs.notes == ()


def test_of_any_keywords_those_go_that_the_forward_does_not_run_with():
    inputs = read(Named(), {"input_values": X, "idx": torch.arange(4), "text": ["a"] * 4, "flag": True})
    assert inputs.kwargs.keys() == {"input_values"}
    assert read(Named(), {"input_values": X, "flag": True}).kwargs.keys() == {"input_values", "flag"}


def test_a_dict_is_the_argument_of_a_forward_that_takes_one():
    item = {"image": X, "label": CLASSES}
    inputs = read(OfDict(), item)
    assert len(inputs.args) == 1
    assert inputs.args[0].keys() == item.keys()
    assert not inputs.kwargs


def test_the_one_tensor_of_a_dict_beside_labels_is_the_one_argument():
    inputs = read(One(), {"pixel_values": X, "labels": CLASSES})
    assert inputs.args[0] is X
    assert inputs.notes == (
        "'pixel_values' of each batch is handed on as 'x', the first argument",
        "'labels' of each batch is left out: One.forward is not called with it",
    )


def test_keyword_arguments_may_be_paired_with_labels():
    inputs = read(Named(), ({"input_values": X}, CLASSES))
    assert inputs.kwargs.keys() == {"input_values"}
    assert inputs.notes


# ---- numpy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_arrays_become_tensors_of_the_models_dtype(dtype):
    model = randomised(Two()).to(dtype)
    inputs = read_calibration([[np.ones((4, 8)), np.arange(4)]], model)[0].inputs
    assert [tensor.dtype for tensor in inputs.args] == [dtype, torch.int64]


def test_an_array_is_no_iterable_of_batches():
    for data in (X, X.numpy(), {"x": X}, UserDict(x=X)):
        with pytest.raises(CalibrationError, match=r"give an iterable of batches, as \[batch\]"):
            read_calibration(data, One())
    with pytest.raises(CalibrationError, match="DataLoader"):
        read_calibration(TensorDataset(X), One())


# ---- through the pruner ---------------------------------------------------------------------------------------------


class Pairs(Dataset):
    """Gives what data sets give: arrays, numbers, dicts or tuples, which a loader collates."""

    def __init__(self, form):
        self.form = form

    def __len__(self):
        return 8

    def __getitem__(self, index):
        x = rows(8)[index]
        forms = {"pair": (x, index % 3), "arrays": (x.numpy(), np.int64(index)), "dict": {"x": x, "label": index}}
        return forms[self.form]


@pytest.mark.parametrize("form", ["pair", "arrays", "dict"])
def test_a_loader_with_labels_measures_repairs_and_compares_as_one_without(form):
    model = randomised(One())
    loader = DataLoader(Pairs(form), batch_size=4)
    bare = UniversalLayerPruner(model, calibration=list(rows(8).split(4)))
    pruner = UniversalLayerPruner(model, calibration=loader)
    assert [r.impact for r in pruner.removals] == [r.impact for r in bare.removals]
    assert any("left out" in note for note in pruner.notes)
    pruned, same = pruner.prune(groups=["a"]), bare.prune(groups=["a"])
    assert torch.equal(pruned(X), same(X))
    found = compare(model, pruned, loader, metric=lambda out, batch: out.sum(1))
    assert "left out" in str(found)
    again = pruner.plan(groups=["a"]).apply(model)
    assert any("left out" in note for note in repair(model, again, loader).notes)


def test_example_inputs_may_be_a_batch_of_a_loader():
    batch = next(iter(DataLoader(TensorDataset(X, CLASSES), batch_size=4)))
    pruner = UniversalLayerPruner(randomised(Masked()), example_inputs=batch)
    assert len(pruner.inputs.args) == 1
    assert any("left out" in note for note in pruner.notes)


def test_example_inputs_written_as_a_tuple_are_handed_on_whole_and_without_a_word():
    pruner = UniversalLayerPruner(randomised(Timed()), example_inputs=(X, torch.ones(4)))
    assert len(pruner.inputs.args) == 2
    assert pruner.inputs.notes == ()


# ---- what does not fit ----------------------------------------------------------------------------------------------


def message(error, call):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert len(text) <= 300, text
    return text


def test_a_mismatch_of_dtypes_is_said_as_such():
    model = randomised(One()).bfloat16()
    text = message(CalibrationError, lambda: UniversalLayerPruner(model, calibration=[X]).groups)
    assert "calibration is float32, the model bfloat16" in text
    assert text.split(": ")[-2] == "RuntimeError"
    text = message(InputsError, lambda: UniversalLayerPruner(model, example_inputs=X).groups)
    assert "example_inputs is float32, the model bfloat16" in text
    images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1))
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    text = message(CalibrationError, lambda: UniversalLayerPruner(images, calibration=[pixels]))
    assert "calibration is uint8, the model float32" in text


def test_comparing_and_estimating_say_it_too():
    model = randomised(nn.Sequential(linear(), nn.BatchNorm1d(8), linear())).double()
    for call in (lambda: compare(model, model, [X]), lambda: reestimate(model, [X])):
        assert "the batch is float32, the model float64" in message(LayerPruneError, call)


def test_a_mismatch_of_devices_is_said_as_such():
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda", 0)

    inputs, error = read(One(), X), RuntimeError("Expected all tensors to be on the same device")
    moved = inputs.map(lambda tensor: tensor.as_subclass(Elsewhere))
    assert why_mismatched(One(), inputs, "calibration", error) == ""
    assert why_mismatched(One(), moved, "calibration", error) == "calibration is on cuda:0, the model on cpu"


def test_the_error_of_the_forward_comes_last_and_whole_where_there_is_room():
    class Picky(One):
        def forward(self, x):
            raise ValueError("x has to be of unit length\nand a second line")

    text = message(CalibrationError, lambda: UniversalLayerPruner(Picky(), calibration=[X]))
    assert text.startswith("the first batch of the calibration data (4×8) does not fit Picky.forward; ")
    assert text.endswith(": ValueError: x has to be of unit length")


def test_long_errors_are_cut():
    class Wordy(One):
        def forward(self, x, *args, **kwargs):
            raise ValueError("word " * 200)

    many = {f"argument_with_a_long_name_{number}": X for number in range(30)}
    text = message(CalibrationError, lambda: UniversalLayerPruner(Wordy(), calibration=[many | {"x": X}]))
    assert "ValueError: word word" in text


def test_a_later_batch_is_named():
    text = message(CalibrationError, lambda: UniversalLayerPruner(One(), calibration=[X, X[:, :5]]).groups)
    assert "batch 1 of the calibration data" in text
    assert "4×5" in text
