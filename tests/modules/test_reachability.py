"""A note names what a forward uses whose state nobody can restore: files, sockets, compiled code."""

import json
import sqlite3
import time
import types

import pytest
import torch
from safetensors import _safetensors_rust
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.modules import notes_on_unseen_state
from models.nets import linear, rows

native = time.perf_counter  # a compiled function of the standard library


def next_line(path):
    with open(path) as file:
        return len(file.read())


class FromAFile(nn.Module):
    def __init__(self, path):
        super().__init__()
        self.path, self.a, self.b, self.c = path, linear(), linear(), linear()

    def scale(self):
        return next_line(self.path)

    def forward(self, x):
        return self.c(self.b(self.a(x)) * self.scale())


class Counting(nn.Module):
    def forward(self, x):
        sqlite3.connect(":memory:").close()
        return x


class Loading(nn.Module):
    """Reads a file when it is made, and not in its forward."""

    def __init__(self, path):
        super().__init__()
        with open(path) as file:
            self.settings = json.load(file)

    def save(self, path):
        with open(path, "w") as file:
            json.dump(self.settings, file)

    def forward(self, x):
        return torch.relu(x)


def test_a_file_that_a_function_of_the_forward_opens_is_named_in_the_plans_notes(tmp_path):
    (tmp_path / "state").write_text("ab")
    model = FromAFile(tmp_path / "state")
    (note,) = notes_on_unseen_state(model)
    assert note.startswith("the forward of FromAFile uses open(): ")
    assert note in UniversalLayerPruner(model, example_inputs=rows()).notes


def test_databases_and_compiled_functions_of_others_are_named(monkeypatch):
    assert "Counting uses sqlite3:" in notes_on_unseen_state(Counting())[0]

    class Compiled(nn.Module):
        def forward(self, x):
            return x * native()

    assert notes_on_unseen_state(Compiled()) == [], "the standard library keeps no state"
    functions = [value for value in vars(_safetensors_rust).values() if isinstance(value, types.BuiltinFunctionType)]
    monkeypatch.setitem(globals(), "native", functions[0])
    assert "Compiled uses native():" in notes_on_unseen_state(Compiled())[0]


@pytest.mark.parametrize("model", [linear(), nn.TransformerEncoderLayer(8, 2), nn.LSTM(4, 4)])
def test_torchs_own_modules_have_no_note(model):
    assert notes_on_unseen_state(model) == []


def test_what_other_methods_do_with_files_is_no_matter(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    assert notes_on_unseen_state(nn.Sequential(Loading(tmp_path / "settings.json"))) == []
