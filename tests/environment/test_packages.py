"""The commands in messages install what is missing and leave the user's torch alone; no extra raises it."""

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from layerprune.environment import how_to_install, how_to_match_torchvision, packages

ROOT = Path(__file__).parents[2]
CPU = "--extra-index-url https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize(
    ("torch", "names", "command"),
    [
        ("2.13.0", ["onnx"], "pip install onnx 'torch==2.13.0'"),
        ("2.13.0+cpu", ["accelerate", "peft"], "pip install accelerate peft 'torch==2.13.0+cpu'"),
        ("2.6.0", ["torchvision"], "pip install 'torchvision==0.21.*' 'torch==2.6.0'"),
        ("2.13.0+cpu", ["timm"], f"pip install timm 'torchvision==0.28.*' 'torch==2.13.0+cpu' {CPU}"),
        ("2.9.0a0+git1234", ["timm"], "pip install timm 'torchvision==0.24.*' 'torch==2.9.0a0+git1234'"),
    ],
)
def test_the_torch_that_is_there_is_in_the_command(torch, names, command, monkeypatch):
    monkeypatch.setattr(packages, "version", lambda _: torch)
    assert how_to_install(*names) == command


def test_torchvision_is_matched_to_torch_and_not_the_other_way_round(monkeypatch):
    monkeypatch.setattr(packages, "version", lambda _: "2.13.0+cu130")
    command = how_to_match_torchvision()
    assert "--no-deps 'torchvision==0.28.*' --index-url https://download.pytorch.org/whl/cu130" in command


def test_without_torch_there_is_nothing_to_keep(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "version", absent)
    assert how_to_install("timm") == "pip install timm"


def extras():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = re.search(r"\[project\.optional-dependencies\]\n(.*?)\n\[", text, re.DOTALL)
    assert table is not None
    found = re.findall(r"^(\w+) = \[(.*?)\]$", table.group(1), re.DOTALL | re.MULTILINE)
    return {name: set(re.findall(r'"([\w-]+)', held)) for name, held in found}


def test_no_extra_for_users_wants_one_torch():
    found = extras()
    assert {"hf", "onnx", "train", "dev", "bench"} <= found.keys()
    for name in found.keys() - {"dev", "bench"}:  # environments of their own, with constraints
        assert not found[name] & {"torch", "torchvision", "timm"}, name


def test_what_is_told_to_be_typed_is_quoted_and_raises_no_torch():
    files = [
        ROOT / "README.md",
        ROOT / "requirements.txt",
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
    ]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install [^'\n]*layerprune\[", text), f"{path.name}: zsh takes [ for a pattern"
        assert not re.search(r"pip install [^\n]*(-U|--upgrade)\b", text), path.name
    assert "-c constraints.txt" not in (ROOT / "requirements.txt").read_text(encoding="utf-8")
