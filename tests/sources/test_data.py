"""Data of every form become batches that the model takes, and what is wrong with them is named."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from layerprune.capture import read_calibration
from layerprune.errors import SourceError
from layerprune.sources import DataSettings, ModelSource, load_data, load_model, source_of
from models.sample_files import BATCHES, NET, WORDS, write_images, write_json_lines, write_language_model


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ModelSource]:
    folder = tmp_path_factory.mktemp("language") / "model"
    write_language_model(folder)
    return load_model(f"hf:{folder}"), source_of(f"hf:{folder}")


@pytest.fixture
def net(tmp_path: Path) -> tuple[nn.Module, ModelSource]:
    path = tmp_path / "net.py"
    path.write_text(NET, encoding="utf-8")
    return load_model(f"{path}:make"), source_of(f"{path}:make")


def batches(spec: str, of: tuple[nn.Module, ModelSource], **settings: Any) -> list[Any]:
    found = list(load_data(spec, *of, DataSettings(**settings)))
    with torch.no_grad():
        for batch in read_calibration(found[:2], of[0]):
            of[0](*batch.inputs.args, **batch.inputs.kwargs)  # the model takes them
    return found


def refusal(spec: str, of: tuple[nn.Module, ModelSource], **settings: Any) -> str:
    with pytest.raises(SourceError) as found:
        list(load_data(spec, *of, DataSettings(**settings)))
    return str(found.value)


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_samples_are_spread_over_the_data_and_shuffled_alike_in_every_run():
    chosen = DataSettings(max_samples=5).chosen(101)
    assert sorted(chosen) == [0, 25, 50, 75, 100]
    assert chosen == DataSettings(max_samples=5).chosen(101) != sorted(chosen)
    assert sorted(DataSettings().chosen(3)) == [0, 1, 2]


# ---- text ------------------------------------------------------------------------------------------------------------


def test_lines_are_tokenized_by_the_models_own_tokenizer(tmp_path, language_model):
    path = tmp_path / "a.txt"
    path.write_text("word0 word1\n\tword2   nothing\n", encoding="utf-8")
    (batch,) = batches(f"text:{path}", language_model)
    ids = sorted(map(tuple, batch["input_ids"].tolist()))
    assert ids == [(3, 4), (5, 0)]  # after <unk>, <s> and </s>; an unknown word
    assert batch.keys() == {"input_ids", "attention_mask"}


def test_paragraphs_are_texts_where_blank_lines_separate_them(tmp_path, language_model):
    path = tmp_path / "a.txt"
    path.write_text("word0\nword1\n\nword2\n \n\nword3 word4 word5\n\n", encoding="utf-8")
    (batch,) = batches(f"text:{path}", language_model)
    assert sorted(batch["attention_mask"].sum(1).tolist()) == [1, 2, 3]


def test_texts_are_cut_and_padded_and_number_as_many_as_are_asked_for(tmp_path, language_model):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(" ".join(WORDS[:n]) for n in range(1, 31)), encoding="utf-8")
    found = batches(f"text:{path}", language_model, batch_size=4, max_samples=10, max_length=6)
    assert [len(batch["input_ids"]) for batch in found] == [4, 4, 2]
    assert max(batch["input_ids"].shape[1] for batch in found) == 6


def test_a_decoder_gets_the_text_one_token_later(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_language_model(tmp_path / "t5")
    config = transformers.T5Config(
        vocab_size=33, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    (tmp_path / "a.txt").write_text("word0 word1\n", encoding="utf-8")
    spec = f"hf:{tmp_path / 't5'}"
    (batch,) = batches(f"text:{tmp_path / 'a.txt'}", (load_model(spec), source_of(spec)))
    assert batch["decoder_input_ids"].tolist() == [[0, 3]]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b" \n\n", "holds no text"), (b"\xff\xfe\x00", "cannot be read as text in UTF-8"), (None, "there is no file")],
)
def test_a_file_without_text_is_named(tmp_path, language_model, content, says):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    assert says in refusal(f"text:{tmp_path / 'a.txt'}", language_model)


def test_texts_for_a_model_without_tokenizer_are_refused_with_what_to_do(tmp_path, net):
    (tmp_path / "a.txt").write_text("word0\n", encoding="utf-8")
    message = refusal(f"text:{tmp_path / 'a.txt'}", net)
    assert "texts need the tokenizer of an hf: model" in message
    assert "file.py:name" in message


def test_a_model_folder_without_tokenizer_is_refused_with_what_to_do(tmp_path, language_model):
    write_language_model(tmp_path / "model")
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    (tmp_path / "a.txt").write_text("word0\n", encoding="utf-8")
    message = refusal(f"text:{tmp_path / 'a.txt'}", (language_model[0], source_of(f"hf:{tmp_path / 'model'}")))
    assert "has no tokenizer that can be loaded; save one with tokenizer.save_pretrained" in message


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "size"), [("torchvision:resnet18", 224), ("timm:test_resnet.r160_in1k", 160)])
def test_images_get_the_size_and_the_normalization_of_the_models_config(tmp_path, spec, size):
    write_images(tmp_path / "photos", 6)
    model = load_model(spec)
    found = list(load_data(f"images:{tmp_path / 'photos'}", model, source_of(spec), DataSettings(batch_size=4)))
    assert [tuple(batch.shape) for batch in found] == [(4, 3, size, size), (2, 3, size, size)]
    assert found[0].min() < -0.5  # normalized: pixels lie around zero


def test_an_image_processor_makes_the_arguments_of_a_transformers_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "vit"
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    write_images(tmp_path / "photos", 3)
    spec = f"hf:{folder}"
    (batch,) = batches(f"images:{tmp_path / 'photos'}", (load_model(spec), source_of(spec)))
    assert tuple(batch["pixel_values"].shape) == (3, 3, 32, 32)
    (folder / "preprocessor_config.json").unlink()
    assert "has no image processor that can be loaded" in refusal(
        f"images:{tmp_path / 'photos'}", (load_model(spec), source_of(spec))
    )


def test_what_is_wrong_with_a_folder_of_images_is_named(tmp_path, net):
    of = (net[0], source_of("torchvision:resnet18"))
    assert "there is no folder" in refusal(f"images:{tmp_path / 'none'}", of)
    assert "it is a file" in refusal(f"images:{tmp_path / 'net.py'}", of)
    assert "holds no image (.bmp, " in refusal(f"images:{tmp_path}", of)
    (tmp_path / "broken.png").write_bytes(b"no image")
    message = refusal(f"images:{tmp_path}", of)
    assert f"{tmp_path / 'broken.png'} cannot be read as an image: UnidentifiedImageError" in message
    assert "a model of a Python file states no image size or normalization" in refusal(f"images:{tmp_path}", net)


# ---- arrays ----------------------------------------------------------------------------------------------------------


def test_arrays_are_arguments_by_their_names(tmp_path, net):
    path = tmp_path / "a.npz"
    np.savez(path, image=np.arange(20 * 3 * 8 * 8).reshape(20, 3, 8, 8) / 4000)
    found = batches(f"npz:{path}", net, batch_size=8)
    assert [batch["image"].shape for batch in found] == [(8, 3, 8, 8), (8, 3, 8, 8), (4, 3, 8, 8)]
    assert sorted(float(x) for batch in found for x in batch["image"][:, 0, 0, 0]) == [
        n * 192 / 4000 for n in range(20)
    ]


def test_arrays_without_names_are_arguments_in_order(tmp_path, net):
    np.savez(tmp_path / "a.npz", np.zeros((4, 3, 8, 8), dtype=np.float32))
    (batch,) = batches(f"npz:{tmp_path / 'a.npz'}", net)
    assert [part.shape for part in batch] == [(4, 3, 8, 8)]


def saved(**arrays: Any) -> Callable[[Path], object]:
    return lambda path: np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (saved(images=np.zeros((2, 3, 8, 8))), "holds 'images', which is no argument of Net.forward; it takes image"),
        (saved(image=np.zeros((2, 3)), label=np.zeros(2)), "holds 'label', which is no argument"),
        (saved(image=np.zeros((0, 3))), "holds no sample"),
        (saved(image=np.float32(1)), "'image' in .* is a single number"),
        (saved(image=np.array(["a", "b"])), "'image' in .* holds <U1, and no numbers"),
        (saved(image=np.array([{}, {}])), "cannot be read as an npz file: Object arrays cannot be loaded"),
        (lambda path: path.write_bytes(b"PK"), "cannot be read as an npz file"),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), "holds a single array without a name"),
        (lambda path: None, "there is no file"),
    ],
)
def test_what_is_wrong_with_arrays_is_named(tmp_path, net, write, says):
    path = tmp_path / "a.npz"
    write(path)
    with pytest.raises(SourceError, match=says):
        load_data(f"npz:{path}", *net)


def test_arrays_of_unequal_lengths_are_named(tmp_path):
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    np.savez(tmp_path / "a.npz", a=np.zeros((2, 3)), b=np.zeros((3, 3)))
    message = refusal(f"npz:{tmp_path / 'a.npz'}", (Two(), source_of("net.py:make")))
    assert "different numbers of samples (a: 2, b: 3)" in message


# ---- datasets --------------------------------------------------------------------------------------------------------

datasets = pytest.importorskip("datasets")


def test_a_file_of_json_gives_its_texts(tmp_path, language_model):
    write_json_lines(tmp_path / "a.jsonl", [{"text": f"word{n} word{n}", "label": n} for n in range(6)])
    found = batches(f"hf-dataset:{tmp_path / 'a.jsonl'}", language_model, batch_size=4)
    assert [tuple(batch["input_ids"].shape) for batch in found] == [(4, 2), (2, 2)]


def test_a_saved_dataset_gives_the_split_that_is_named(tmp_path, language_model):
    parts = {
        name: datasets.Dataset.from_dict({"text": ["word1 word2"] * num})
        for name, num in (("train", 5), ("validation", 2))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "held"))
    assert len(batches(f"hf-dataset:{tmp_path / 'held'}:train", language_model)[0]["input_ids"]) == 5
    assert len(batches(f"hf-dataset:{tmp_path / 'held'}", language_model)[0]["input_ids"]) == 2  # not trained on
    message = refusal(f"hf-dataset:{tmp_path / 'held'}:dev", language_model)
    assert "has no split 'dev'; it has train, validation" in message


def test_columns_that_are_arguments_are_taken_as_they_are(tmp_path, language_model):
    rows = {
        "input_ids": [[3, 4, 5], [6, 7, 8]],
        "attention_mask": [[1, 1, 1], [1, 1, 1]],
        "labels": [0, 1],
        "text": ["a", "b"],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "held"))
    (batch,) = batches(f"hf-dataset:{tmp_path / 'held'}", language_model)
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert sorted(batch["input_ids"].tolist()) == [[3, 4, 5], [6, 7, 8]]
    rows = {"input_ids": [[3, 4, 5], [6]]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "ragged"))
    assert "pad them" in refusal(f"hf-dataset:{tmp_path / 'ragged'}", language_model)


def test_images_of_a_dataset_are_transformed(tmp_path):
    write_images(tmp_path / "photos", 4)
    files = sorted(map(str, (tmp_path / "photos").rglob("*.png")))
    held = datasets.Dataset.from_dict({"picture": files}).cast_column("picture", datasets.Image())
    held.save_to_disk(str(tmp_path / "held"))
    spec = "torchvision:resnet18"
    (batch,) = load_data(f"hf-dataset:{tmp_path / 'held'}", load_model(spec), source_of(spec), DataSettings())
    assert tuple(batch.shape) == (4, 3, 224, 224)


def test_the_column_is_named_where_several_fit(tmp_path, language_model):
    write_json_lines(tmp_path / "a.json", [{"question": "word1", "answer": "word2 word3", "number": 1}] * 3)
    spec = f"hf-dataset:{tmp_path / 'a.json'}"
    assert "several columns that fit (question, answer); name one: --column question" in refusal(spec, language_model)
    (batch,) = batches(spec, language_model, column="answer")
    assert tuple(batch["input_ids"].shape) == (3, 2)
    assert "has no column 'text'; it has question" in refusal(spec, language_model, column="text")
    assert "holds neither texts nor images" in refusal(spec, language_model, column="number")


def test_what_is_no_dataset_is_named(tmp_path, language_model, net):
    assert "there is no file or folder" in refusal(f"hf-dataset:{tmp_path / 'none'}", language_model)
    (tmp_path / "a.bin").write_bytes(b"")
    assert "is no file of a dataset (.json, " in refusal(f"hf-dataset:{tmp_path / 'a.bin'}", language_model)
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    assert "cannot be loaded" in refusal(f"hf-dataset:{tmp_path / 'a.json'}", language_model)
    (tmp_path / "b.json").write_text(json.dumps([{"number": 1}]), encoding="utf-8")
    assert "no column of" in refusal(f"hf-dataset:{tmp_path / 'b.json'}", net)


# ---- forms -----------------------------------------------------------------------------------------------------------


def test_a_name_in_a_file_is_an_iterable_or_returns_one(tmp_path, net):
    path = tmp_path / "batches.py"
    path.write_text(BATCHES + "\nheld = [torch.zeros(2, 3, 8, 8)]\nnumber = 1\n", encoding="utf-8")
    assert len(batches(f"{path}:batches", net)) == 8
    assert len(batches(f"{path}:held", net)) == 1
    assert "gives a int, not an iterable of batches" in refusal(f"{path}:number", net)
    assert "defines no 'batch'; it has: batches" in refusal(f"{path}:batch", net)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a.txt", "did you mean text:"),
        ("a.npz", "did you mean npz:"),
        ("a.jsonl", "did you mean hf-dataset:"),
        ("a.py", "the name in the file is missing"),
        ("folder", "did you mean images:"),
        ("nothing", "names no data; give one of: text:FILE, images:DIR"),
    ],
)
def test_an_argument_of_no_form_is_answered_with_what_was_meant(tmp_path, net, name, hint):
    if name == "folder":
        (tmp_path / name).mkdir()
    elif name != "nothing":
        (tmp_path / name).touch()
    assert hint in refusal(str(tmp_path / name), net)


@pytest.mark.parametrize(
    ("spec", "package", "pip"),
    [("images:{}", "PIL.Image", "pip install pillow"), ("hf-dataset:{}", "datasets", "pip install datasets")],
)
def test_a_missing_package_is_answered_with_the_command_that_installs_it(
    tmp_path, monkeypatch, net, spec, package, pip
):
    write_images(tmp_path / "photos", 1)
    found = importlib.import_module

    def absent(name: str) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
        return found(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    of = (net[0], source_of("torchvision:resnet18"))
    assert f"is not installed; run: {pip}" in refusal(spec.format(tmp_path / "photos"), of)
    assert torch.is_grad_enabled()
