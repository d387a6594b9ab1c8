from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from layerprune.cli import app

# Three residual branches; each may go, the stem and the head may not.
NET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()


def make():
    print("made by the user's own code")
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Block(), Block(), Block(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )


def without_transforms():
    return nn.ReLU()
"""
SHAPE = ("--input-shape", "1,3,16,16")


@pytest.fixture
def net(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(NET, encoding="utf-8")
    return f"{path}:make"


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    program = (
        "import sys, layerprune.cli; print([m for m in ('torch', 'networkx', 'pydantic', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("args", [["--help"], ["plan", "--help"], ["prune", "--help"]])
def test_help_is_given(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_version_is_printed() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("layerprune 0.")


def test_plan_prints_the_groups_on_standard_output(net: str) -> None:
    result = run("plan", net, *SHAPE)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("PRUNING GROUPS (each starting from a transform layer):")
    assert result.stdout.count("✓ SAFE TO REMOVE") == 3
    assert result.stdout.count("✗ CRITICAL") == 2
    assert "own code" not in result.stdout


def test_plan_with_a_reduction_also_shows_what_would_go(net: str) -> None:
    result = run("plan", net, "--reduction", "0.4", *SHAPE)
    assert result.exit_code == 0, result.output
    assert "Parameters: 2,066 → 1,482" in result.stdout


def test_plan_as_json_lists_the_groups(net: str) -> None:
    result = run("plan", net, "--json", *SHAPE)
    groups = {group["lead"]: group for group in json.loads(result.stdout)["groups"]}
    assert set(groups) == {"0", "1.conv", "2.conv", "3.conv", "6"}
    assert groups["1.conv"]["can_remove"] is True
    assert groups["1.conv"]["num_params"] == 8 * 8 * 9 + 8
    assert groups["0"]["can_remove"] is False
    assert groups["0"]["impact"] is None
    assert groups["0"]["reason"]


def test_protected_layers_stay(net: str) -> None:
    result = run("plan", net, "--json", "--protect", "1*", "--protect", "3*", *SHAPE)
    removable = [g["lead"] for g in json.loads(result.stdout)["groups"] if g["can_remove"]]
    assert removable == ["2.conv"]


def test_prune_writes_a_plan_and_the_weights_that_are_left(net: str, tmp_path: Path) -> None:
    out = tmp_path / "made" / "small"
    result = run("prune", net, "--reduction", "0.4", "--out", out, *SHAPE)
    assert result.exit_code == 0, result.output
    assert "Parameters: 2,066 → 1,482" in result.stdout
    weights = load_file(out / "model.safetensors")
    plan = json.loads((out / "plan.json").read_text())
    assert sum(tensor.numel() for tensor in weights.values()) == plan["num_params_after"] == 1_482
    assert sorted(path.name for path in out.parent.iterdir()) == ["small"]


def test_prune_as_json_prints_the_plan_that_it_writes(net: str, tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = run("prune", net, "--reduction", "0.4", "--out", out, "--json", *SHAPE)
    assert json.loads(result.stdout) == json.loads((out / "plan.json").read_text())


def test_the_plan_does_not_change_between_runs(net: str) -> None:
    first, second = (run("plan", net, "--reduction", "0.4", "--json", *SHAPE).stdout for _ in range(2))
    assert json.loads(first) == json.loads(second)


def test_an_empty_folder_is_taken_and_a_full_one_refused(net: str, tmp_path: Path) -> None:
    out = tmp_path / "small"
    out.mkdir()
    assert run("prune", net, "--reduction", "0.4", "--out", out, *SHAPE).exit_code == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    again = run("prune", net, "--reduction", "0.4", "--out", out, *SHAPE)
    assert again.exit_code == 2
    assert "not an empty folder" in " ".join(again.stderr.replace("│", " ").split())  # the box breaks lines
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_refusal_is_one_message_and_exit_code_1(net: str, tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = run("prune", net.replace("make", "without_transforms"), "--reduction", "0.3", "--out", out, *SHAPE)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"] == []


def test_an_unknown_model_is_a_refusal() -> None:
    result = run("plan", "nothing")
    assert result.exit_code == 1
    assert "names no model" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["plan"],
        ["plan", "x.py:make", "--reduction", "0"],
        ["plan", "x.py:make", "--reduction", "1"],
        ["plan", "x.py:make", "--reduction", "much"],
        ["plan", "x.py:make", "--granularity", "layer"],
        ["plan", "x.py:make", "--input-shape", "1,3,-1"],
        ["plan", "x.py:make", "--input-shape", "wide"],
        ["prune", "x.py:make", "--reduction", "0.3"],
        ["prune", "x.py:make", "--reduction", "0.3", "--out", "/dev/null"],
        ["prune", "x.py:make", "--reduction", "0.3", "--out", "/dev/null/sub"],
        ["rune", "x.py:make"],
    ],
)
def test_a_wrong_call_is_exit_code_2(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
