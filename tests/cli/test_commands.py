"""What the commands print and write, and how they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from layerprune.checkpoint import verify
from layerprune.cli import app
from layerprune.cli.completion import complete_data, complete_model
from layerprune.inspection import inspect_model
from layerprune.sources import load_model, load_skeleton
from models.families import FAMILIES
from models.sample_files import BATCHES, NET

SHAPE = ("--input-shape", "1,3,16,16")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    (tmp_path / "batches.py").write_text(BATCHES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def record(*args: str, code: int = 0) -> dict:
    return json.loads(run(*args, "--json", code=code).stdout)


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_tells_the_size_the_kinds_and_the_verdicts(folder):
    found = record("inspect", "net.py:make", *SHAPE)
    assert found["num_params"] == 3 * 8 * 9 + 8 + 3 * (8 * 8 * 9 + 8) + 8 * 10 + 10 == 2066
    assert found["macs"] == 256 * 8 * 9 * (3 + 3 * 8) + 80
    kinds = {each["kind"]: (each["num_layers"], each["num_params"]) for each in found["kinds"]}
    assert kinds["transform"] == (5, 2066)
    assert kinds["activation"] == (3, 0)
    assert found["blocks"] == [{"container": "", "block": "Block", "num": 3, "num_params": 3 * 584, "are_alike": True}]
    assert [(v["verdict"], v["num_groups"], v["num_params"]) for v in found["verdicts"]] == [
        ("removable", 3, 1752),
        ("with_calibration", 0, 0),
        ("critical", 2, 314),
    ]
    assert {each["code"] for each in found["refusals"]} == {"stem", "head"}


def test_inspect_prints_tables_within_the_width(folder):
    text = run("inspect", "net.py:make", *SHAPE).stdout
    assert text.startswith("Net: 2,066 parameters (8.07 KiB), 498 k MACs on 1×3×16×16\n13 layers run, in 11 modules\n")
    assert "the model           3 × Block  1,752 (84.8%)  alike" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_model_without_values_is_inspected_as_with_them(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    name, config, sizes = FAMILIES[family]
    torch.manual_seed(0)
    getattr(transformers, name)(getattr(transformers, config)(**sizes)).save_pretrained(tmp_path / family)
    spec = f"hf:{tmp_path / family}"
    bare = load_skeleton(spec)
    assert all(parameter.is_meta for parameter in bare.parameters())
    assert inspect_model(bare) == inspect_model(load_model(spec))


def test_a_model_whose_code_needs_values_is_built_with_them(folder):
    text = NET.replace(
        "        return super().forward(image)", "        return super().forward(image * float(self[0].bias.sum()))"
    )
    (folder / "net.py").write_text(text, encoding="utf-8")
    assert record("inspect", "net.py:make", *SHAPE)["num_params"] == 2066


# ---- plan, prune -----------------------------------------------------------------------------------------------------


def test_a_saved_plan_is_carried_out(folder):
    planned = record("plan", "net.py:make", "--group", "2.conv", "--save", "plan.json", *SHAPE)
    assert json.loads(Path("plan.json").read_text()) == planned["plan"]
    done = record("prune", "net.py:make", "--plan", "plan.json", "--out", "small", *SHAPE)
    assert done["plan"]["removals"][0]["groups"] == ["2.conv"]
    verify("small")


def test_a_budget_and_a_plan_are_one_too_many(folder):
    run("plan", "net.py:make", "--reduction", "0.4", "--save", "plan.json", *SHAPE)
    said = run("prune", "net.py:make", "--plan", "plan.json", "--reduction", "0.4", "--out", "small", code=2).stderr
    assert "or a plan, and nothing else" in " ".join(said.replace("│", " ").split())
    assert not Path("small").exists()


def test_a_repair_is_in_the_record_and_may_be_left_out(folder):
    options = ("net.py:make", "--reduction", "0.4", "--calibration", "batches.py:batches")
    repaired = record("prune", *options, "--out", "a")["repair"]
    assert repaired["kept"] is True
    assert repaired["after"] < repaired["before"]
    assert record("prune", *options, "--repair", "none", "--out", "b")["repair"] is None


def test_options_of_the_pruner_reach_it(folder):
    plan = record("plan", "net.py:make", "--reduction", "0.4", "--seed", "7", "--criterion", "magnitude", *SHAPE)[
        "plan"
    ]
    assert plan["seed"] == 7
    assert "magnitude" in plan["impact_unit"] or "norm" in plan["impact_unit"]


# ---- compare, export, report, env ------------------------------------------------------------------------------------


def test_compare_measures_a_folder_or_another_model(folder):
    run("prune", "net.py:make", "--reduction", "0.4", "--out", "small", *SHAPE)
    found = record("compare", "net.py:make", "small", "--data", "batches.py:batches", "--latency")
    assert found["num_samples"] == 64
    assert found["relative_l2"]["low"] <= found["relative_l2"]["value"] <= found["relative_l2"]["high"]
    assert found["saving"]["after"]["num_params"] == 1482
    assert found["latency"]["pruned"]["median_ms"] > 0
    assert found["kl"] is None
    same = record("compare", "net.py:make", "net.py:make", "--data", "batches.py:batches")
    assert same["relative_l2"]["value"] == 0


def test_an_exported_program_does_what_the_pruned_model_does(folder):
    run("prune", "net.py:make", "--reduction", "0.4", "--out", "small", *SHAPE)
    found = record("export", "net.py:make", "small", "--to", "torch-export", "--out", "small.pt2", *SHAPE)
    assert (found["batch_sizes"], found["max_difference"]) == ([2, 3], 0.0)
    from layerprune import load_pruned

    torch.manual_seed(0)
    left, images = load_pruned("small", model=load_model("net.py:make")), torch.randn(5, 3, 16, 16)
    program = torch.export.load("small.pt2").module()
    assert torch.equal(program(images), left.eval()(images))


def test_an_export_that_cannot_be_written_is_a_refusal(folder):
    for form in ("torch-export", "onnx"):
        result = run("export", "net.py:make", "--to", form, "--out", "/proc/net.file", *SHAPE, code=1)
        assert "/proc/net.file cannot be written: " in result.stderr
        assert "No such file or directory" in result.stderr


def test_a_report_of_a_plan_needs_no_model(folder):
    run("plan", "net.py:make", "--reduction", "0.4", "--save", "plan.json", *SHAPE)
    (folder / "net.py").unlink()
    found = record("report", "plan.json", "-o", "page.html")
    assert found == {"path": "page.html", "bytes": Path("page.html").stat().st_size}


def test_env_names_versions_and_what_is_missing(folder):
    found = record("env")
    assert found["torch"] == torch.__version__
    assert {"layerprune", "python", "platform", "threads", "devices", "transformers"} <= set(found)
    lines = run("env").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(found)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "kind", "says"),
    [
        (("plan", "nothing"), 1, "SourceError", "'nothing' names no model"),
        (("prune", "net.py:make", "--reduction", "0.001", "--out", "small"), 1, "BudgetError", "Nothing is written"),
        (("verify", "nothing"), 1, "CheckpointError", "manifest.json is missing"),
        (("run", "nothing.yaml"), 1, "RecipeError", "there is no file nothing.yaml"),
        (("report", "nothing"), 1, "ReportError", "there is no folder or file nothing"),
        (("compare", "net.py:make", "small", "--data", "text:a.txt"), 1, "CheckpointError", "small is no folder"),
        (("plan", "net.py:make", "--reduction", "2"), 2, "UsageError", "wrong call"),
        (("plan",), 2, "UsageError", "wrong call"),
    ],
)
def test_an_error_is_json_too(folder, args, code, kind, says):
    result = run(*args, "--json", code=code)
    found = json.loads(result.stdout)
    assert (found["code"], found["type"]) == (code, kind)
    assert says in found["error"]
    assert result.stderr


def test_the_command_line_is_a_module_too(folder):
    done = subprocess.run([sys.executable, "-m", "layerprune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("layerprune 0.")


# ---- completion ------------------------------------------------------------------------------------------------------


def test_models_and_data_are_completed_with_forms_files_and_folders(folder):
    (folder / "model").mkdir()
    (folder / "texts.txt").touch()
    assert complete_model("") == ["torchvision:", "timm:", "hf:", "batches.py:", "model/", "net.py:"]
    assert complete_model("t") == ["torchvision:", "timm:"]
    assert complete_model("hf:m") == ["hf:model/"]
    assert complete_model("hf:none/x") == []
    assert complete_data("text:") == ["text:model/", "text:texts.txt"]
    assert complete_data("images:mo") == ["images:model/"]
    assert complete_data("b") == ["batches.py:"]


def test_a_shell_asks_for_completions(folder):
    program = "from layerprune.cli import app; app(prog_name='layerprune')"
    asked = {"_LAYERPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "layerprune ins", "COMP_CWORD": "1"}
    path = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=asked | path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["inspect"]
