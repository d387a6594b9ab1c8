from __future__ import annotations

import importlib
import re
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from layerprune.environment import packages
from layerprune.errors import LayerPruneError, SourceError
from layerprune.sources.models import MODEL_FORMS, folder_or_repository, load_model


def write(folder: Path, text: str, name: str = "net.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_torchvision_names_build_that_model_with_random_weights() -> None:
    model = load_model("torchvision:resnet18")
    assert type(model).__name__ == "ResNet"
    assert sum(p.numel() for p in model.parameters()) == 11_689_512


def test_a_torchvision_detector_downloads_no_backbone() -> None:
    assert type(load_model("torchvision:fasterrcnn_mobilenet_v3_large_fpn")).__name__ == "FasterRCNN"


def test_timm_names_build_that_model() -> None:
    assert type(load_model("timm:resnet10t")).__name__ == "ResNet"


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=16
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_hf_folder_loads_as_the_class_it_was_saved_from(tiny_bert: Path) -> None:
    assert type(load_model(f"hf:{tiny_bert}")).__name__ == "BertForMaskedLM"


def test_hf_folder_without_architectures_loads_as_the_base_model(tiny_bert: Path) -> None:
    config = tiny_bert / "config.json"
    config.write_text(config.read_text().replace("architectures", "unused"))
    assert type(load_model(f"hf:{tiny_bert}")).__name__ == "BertModel"


def test_a_file_gives_what_its_factory_returns(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 3", "sizes.py")
    path = write(tmp_path, "from torch import nn\nfrom sizes import WIDTH\ndef make(): return nn.Linear(WIDTH, 2)\n")
    before = list(sys.path)
    model = load_model(f"{path}:make")
    assert isinstance(model, nn.Linear)
    assert model.in_features == 3
    assert sys.path == before


def test_a_file_may_name_a_class_or_a_finished_model(tmp_path: Path) -> None:
    path = write(tmp_path, "from torch import nn\nclass Net(nn.Sequential): pass\nnet = Net(nn.ReLU())\n")
    assert type(load_model(f"{path}:Net")).__name__ == "Net"
    finished = load_model(f"{path}:net")
    assert isinstance(finished, nn.Sequential)
    assert len(finished) == 1


@pytest.mark.parametrize("spec", ["resnet18", "timm:", "", "tensorflow:resnet18", "net.py", "net.txt:make"])
def test_an_argument_of_no_known_form_is_answered_with_the_forms(spec: str) -> None:
    with pytest.raises(SourceError, match=r"torchvision:resnet50.*file\.py:factory"):
        load_model(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet19", "no model 'resnet19'; did you mean .*resnet18"),
        ("timm:resnet19", "no model 'resnet19'; did you mean .*resnet"),
        ("timm:zzzzzzzzzz", "no model 'zzzzzzzzzz'$"),
        ("hf:/nowhere/at/all", "there is no folder /nowhere/at/all"),
        ("hf:three/parts/long", "there is no folder three/parts/long"),
        ("hf:./here", r"there is no folder \./here"),
        ("hf:no-such-owner/no-such-model", "no-such-model"),
        ("/nowhere/net.py:make", "no file /nowhere/net.py"),
    ],
)
def test_an_unknown_name_is_refused(spec: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load_model(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(): pass\n_hidden = len\n", "defines no 'make'; it has: build"),
        ("make = 3\n", "'make' in .* gives a int, not a torch.nn.Module"),
        ("def make(): return [1]\n", "gives a list"),
        ("def make():\n    raise ValueError('too wide')\n", r"make\(\) of .* raised ValueError: too wide .*line 2"),
        ("1 / 0\n", "the file of .* raised ZeroDivisionError.*line 1"),
        ("def make(:\n", "raised SyntaxError"),
        ("import no_such_package\n", "raised ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_a_file_at_fault_is_reported_with_the_fault(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SourceError, match=message):
        load_model(f"{path}:make")


@pytest.mark.parametrize(
    ("spec", "package", "command"),
    [
        ("torchvision:resnet18", "torchvision", "'torchvision==0.28.*' 'torch=="),
        ("timm:resnet18", "timm", "timm 'torchvision==0.28.*' 'torch=="),
        ("hf:x", "transformers", "transformers 'torch=="),
    ],
)
def test_a_missing_package_is_answered_with_the_install_command_that_keeps_torch(
    monkeypatch: pytest.MonkeyPatch, spec: str, package: str, command: str
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    monkeypatch.setattr(packages, "version", lambda _: "2.13.0")
    with pytest.raises(LayerPruneError, match=rf"{package} is not installed; run: pip install {re.escape(command)}2"):
        load_model(spec)


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet18"])
def test_a_torchvision_of_another_build_is_named_as_such(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    def mismatched(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", mismatched)
    with pytest.raises(SourceError, match=r"not built for this torch; run: pip install .*--no-deps 'torchvision"):
        load_model(spec)


def test_the_forms_in_the_error_are_all_understood() -> None:
    assert [form.partition(":")[0] for form in MODEL_FORMS.split(", ")] == [
        "torchvision",
        "timm",
        "hf",
        "path/to/file.py",
    ]


def test_a_mistyped_folder_is_answered_at_once_and_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("name not known")

    (tmp_path / "models" / "bert-base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    monkeypatch.setattr("layerprune.sources.models.getproxies", dict)
    start = time.perf_counter()
    for spec, ends in (
        ("hf:models/bert-bse", r"and .* cannot be reached .*name not known.*; did you mean models/bert-base\?"),
        ("hf:./models/bert-bse", r"; did you mean models/bert-base\?"),
        ("hf:bert", "and .* cannot be reached"),
    ):
        with pytest.raises(SourceError, match=f"^there is no folder {spec[3:]}.*{ends}"):
            load_model(spec)
    assert time.perf_counter() - start < 5


def test_what_the_hub_may_have_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerprune.sources.models.getproxies", lambda: {"https": "http://proxy:3128"})
    assert folder_or_repository("owner/name") == "owner/name"
    monkeypatch.setattr("layerprune.sources.models.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    assert folder_or_repository("owner/name") == "owner/name"
