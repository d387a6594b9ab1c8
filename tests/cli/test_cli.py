from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from layerprune import UniversalLayerPruner, load_pruned
from layerprune.cli import app
from layerprune.cli.options import BUDGETS
from layerprune.select import Budgets
from layerprune.sources import load_model

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


@pytest.mark.parametrize("args", [["--help"], ["plan", "--help"], ["prune", "--help"], ["distill", "--help"]])
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
    assert result.stdout.startswith("Sequential: 2,066 parameters, 498 k MACs on 1×3×16×16\nCan leave now: ")
    assert "\n\nPRUNING GROUPS (each starting from a transform layer):\n" in result.stdout
    assert result.stdout.count("✓ SAFE TO REMOVE") == 1
    assert ", but for the impact: " in result.stdout
    assert result.stdout.count("✗ CRITICAL") == 2
    assert "own code" not in result.stdout


def test_plan_in_full_prints_each_group(net: str) -> None:
    result = run("plan", net, "--full", *SHAPE)
    assert result.stdout.count("✓ SAFE TO REMOVE") == 3


def test_plan_with_a_reduction_also_shows_what_would_go(net: str) -> None:
    result = run("plan", net, "--reduction", "0.4", *SHAPE)
    assert result.exit_code == 0, result.output
    assert "2,066 → 1,482 parameters" in result.stdout


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
    assert "2,066 → 1,482 parameters" in result.stdout
    weights = load_file(out / "model.safetensors")
    plan = json.loads((out / "plan.json").read_text())
    assert sum(tensor.numel() for tensor in weights.values()) == plan["num_params_after"] == 1_482
    assert sorted(path.name for path in out.parent.iterdir()) == ["small"]


def test_what_never_runs_goes_alone_with_unused(net: str, tmp_path: Path) -> None:
    """The encoder's last stages of a U-Net: held, and never called."""
    with_more = "\n\ndef more():\n    net = make()\n    net[1].extra = nn.Linear(8, 8)\n    return net\n"
    (tmp_path / "net.py").write_text(NET + with_more, encoding="utf-8")
    model, out = net.replace(":make", ":more"), tmp_path / "small"
    planned = run("plan", model, "--unused", "--json", *SHAPE)
    assert [removal["name"] for removal in json.loads(planned.stdout)["plan"]["removals"]] == [
        "1.extra, which never runs"
    ]
    result = run("prune", model, "--unused", "--out", out, *SHAPE)
    assert result.exit_code == 0, result.output
    assert "2,138 → 2,066 parameters" in result.stdout
    assert sum(tensor.numel() for tensor in load_file(out / "model.safetensors").values()) == 2_066
    refused = run("prune", model, "--unused", "--reduction", "0.3", "--out", tmp_path / "other", *SHAPE)
    assert (refused.exit_code, (tmp_path / "other").exists()) == (1, False)
    nothing = run("prune", net, "--unused", "--out", tmp_path / "other", *SHAPE)
    assert (nothing.exit_code, (tmp_path / "other").exists()) == (1, False)
    assert "there is nothing unused to take out" in nothing.stderr


def test_prune_as_json_prints_the_folder_and_the_plan_that_it_writes(net: str, tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = run("prune", net, "--reduction", "0.4", "--out", out, "--json", *SHAPE)
    found = json.loads(result.stdout)
    assert found["plan"] == json.loads((out / "plan.json").read_text())
    assert found["folder"] == str(out)
    assert found["files"] == sorted(path.name for path in out.iterdir())
    assert found["repair"] is None


def test_the_plan_does_not_change_between_runs(net: str) -> None:
    first, second = (run("plan", net, "--reduction", "0.4", "--json", *SHAPE).stdout for _ in range(2))
    assert json.loads(first) == json.loads(second)


BATCHES = """
import torch

draw = torch.Generator().manual_seed(1)


def batches():
    return [torch.randn(8, 3, 16, 16, generator=draw) for _ in range(4)]
"""


@pytest.fixture
def calibration(tmp_path: Path) -> str:
    path = tmp_path / "batches.py"
    path.write_text(BATCHES, encoding="utf-8")
    return f"{path}:batches"


def test_impacts_are_those_on_the_calibration_batches(net: str, calibration: str) -> None:
    plan = json.loads(run("plan", net, "--reduction", "0.4", "--calibration", calibration, "--json").stdout)["plan"]
    torch.manual_seed(0)
    model = load_model(net)
    draw = torch.Generator().manual_seed(1)
    batches = [torch.randn(8, 3, 16, 16, generator=draw) for _ in range(4)]
    expected = UniversalLayerPruner(model, calibration=batches).plan(max_param_reduction=0.4)
    assert "by ablation" in plan["impact_unit"]
    assert [removal["impact"] for removal in plan["removals"]] == [removal.impact for removal in expected.removals]


def test_outputs_are_compared_as_is_said(net: str, calibration: str) -> None:
    options = ("--reduction", "0.4", "--calibration", calibration, "--json")
    plan = json.loads(run("plan", net, *options, "--kind", "distribution").stdout)["plan"]
    assert "KL divergence" in plan["impact_unit"]


def test_with_calibration_prune_writes_repaired_weights(net: str, calibration: str, tmp_path: Path) -> None:
    options = ("--reduction", "0.4", "--calibration", calibration)
    result = run("prune", net, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "solved again" in result.stderr
    torch.manual_seed(0)
    original = load_model(net)
    left = load_pruned(tmp_path / "out", model=original)
    own = dict(original.named_parameters())
    assert any(not torch.equal(weight, own[name]) for name, weight in left.named_parameters())


# ---- distill ---------------------------------------------------------------------------------------------------------

DATA = """
import torch

print("read by the user's own code")
held = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(100, 102)]


def batches():
    for seed in range(8):
        yield torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def one():
    return 1


def broken():
    raise ValueError("no such disk")
"""


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.py"
    path.write_text(DATA, encoding="utf-8")
    return f"{path}:batches"


@pytest.fixture
def small(net: str, tmp_path: Path) -> Path:
    out = tmp_path / "small"
    assert run("prune", net, "--reduction", "0.4", "--out", out, *SHAPE).exit_code == 0
    return out


def outputs(net: str, folder: Path | None) -> torch.Tensor:
    torch.manual_seed(0)
    model = load_model(net)
    model = model if folder is None else load_pruned(folder, model=model)
    with torch.no_grad():
        return model.eval()(torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(7)))


def test_distill_trains_and_writes_a_model_that_is_nearer_to_the_original(
    net: str, small: Path, data: str, tmp_path: Path
) -> None:
    out = tmp_path / "healed"
    result = run("distill", net, small, "--data", data, "--out", out, "--epochs", "4", "--rate", "5e-3")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("28 of 28 steps in ")  # seven batches of eight, four times
    assert f"Written to {out}: " in result.stdout
    assert "own code" not in result.stdout
    original = outputs(net, None)
    before, after = ((outputs(net, folder) - original).norm() for folder in (small, out))
    assert after < 0.7 * before
    assert run("verify", out).exit_code == 0
    assert json.loads((out / "plan.json").read_text()) == json.loads((small / "plan.json").read_text())


def test_distill_takes_other_data_to_choose_by_low_ranks_and_mixed_precision(
    net: str, small: Path, data: str, tmp_path: Path
) -> None:
    out = tmp_path / "healed"
    held = data.replace("batches", "held")
    more = ("--held-out", held, "--lora-rank", "2", "--mixed-precision", "bf16", "--epochs", "1", "--rate", "1e-3")
    result = run("distill", net, small, "--data", data, "--out", out, *more)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("8 of 8 steps in ")
    # Two matrices of rank 2 beside the convolutions 3·9 → 8 and, in two blocks, 8·9 → 8, and the linear layer 8 → 10.
    trained = int(result.stdout.split(" numbers trained")[0].split()[-1].replace(",", ""))
    assert trained == 2 * ((27 + 8) + 2 * (72 + 8) + (8 + 10))
    assert load_file(out / "model.safetensors").keys() == load_file(small / "model.safetensors").keys()


def test_distill_goes_on_from_a_checkpoint(net: str, small: Path, data: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    options = ("--data", data, "--checkpoint", checkpoint, "--epochs", "1", "--rate", "1e-3")
    first = run("distill", net, small, *options, "--out", tmp_path / "a")
    assert first.exit_code == 0, first.output
    assert (checkpoint / "training.json").is_file()
    second = run("distill", net, small, *options, "--out", tmp_path / "b")
    assert second.exit_code == 0, second.output
    assert f"went on from step 7, from {checkpoint}" in " ".join(second.stdout.split())
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--data": "batches"}, "'batches' names no data"),
        ({"--data": "{}:batch"}, "defines no 'batch'"),
        ({"--data": "{}:one"}, "'one' in"),
        ({"--data": "{}:broken"}, "no such disk"),
        ({"--rate": "0"}, "learning_rate=0.0 is no good"),
    ],
)
def test_what_distill_cannot_use_is_a_refusal(
    net: str, small: Path, data: str, tmp_path: Path, change: dict[str, str], says: str
) -> None:
    options = {"--data": data, "--out": str(tmp_path / "healed")} | change
    options = {key: value.format(data.rpartition(":")[0]) for key, value in options.items()}
    result = run("distill", net, small, *(part for pair in options.items() for part in pair))
    assert result.exit_code == 1
    assert says in result.stderr
    assert not (tmp_path / "healed").exists()


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
        ["distill", "x.py:make", "small", "--out", "new"],
        ["distill", "x.py:make", "small", "--data", "d.py:b", "--out", "new", "--epochs", "0"],
        ["distill", "x.py:make", "small", "--data", "d.py:b", "--out", "new", "--mixed-precision", "fp8"],
        ["distill", "x.py:make", "small", "--data", "d.py:b", "--out", "/dev/null"],
    ],
)
def test_a_wrong_call_is_exit_code_2(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_there_is_an_option_for_each_budget():
    assert {*BUDGETS, "slack"} == {field.name for field in fields(Budgets)}
