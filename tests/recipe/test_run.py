"""Stages that have finished are kept; what changed runs again, with what depends on it; a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from layerprune.errors import BudgetError, RecipeError, SourceError
from layerprune.recipe import PruningRecipe, RecipeRun, recipe_of, run_recipe
from models.sample_files import BATCHES, NET

DATA = {"calibration": "batches.py:batches"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    (tmp_path / "batches.py").write_text(BATCHES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(**changes: object) -> dict[str, object]:
    return {
        "model": "net.py:make",
        "data": {"calibration": "batches.py:batches", "compare": "batches.py:batches"},
        "plan": {"max_param_reduction": 0.4},
        "out": "result",
        **changes,
    }


def recipe(**changes: object) -> PruningRecipe:
    return recipe_of(content(**changes))


def ran(run: RecipeRun) -> list[str]:
    return [stage.name for stage in run.stages if run.again[stage.name] is not None]


def test_a_dry_run_tells_the_stages_and_writes_nothing(folder):
    before = sorted(folder.iterdir())
    run = run_recipe(recipe(distill={}, report={}), dry_run=True)
    assert ran(run) == [stage.name for stage in run.stages] == ["plan", "prune", "distill", "compare", "report"]
    assert sorted(folder.iterdir()) == before
    assert run.model is None


def test_a_whole_run_is_kept_and_changes_run_what_depends_on_them(folder):
    news: list[str] = []
    first = run_recipe(recipe(), told=lambda stage, text: news.append(f"{stage}: {text}"))
    assert ran(first) == ["plan", "prune", "compare"]
    plan = json.loads(Path("result/plan.json").read_text())
    weights = load_file("result/pruned/model.safetensors")
    assert sum(t.numel() for t in weights.values()) == plan["num_params_after"] < 2066
    assert first.states["compare"].result["num_samples"] == 64
    assert json.loads(Path("result/recipe.json").read_text()) == recipe().model_dump(mode="json")
    assert json.loads(Path("result/environment.json").read_text())["torch"] == torch.__version__
    assert [text.partition(" ")[0] for text in news] == [f"{s}:" for s in ("plan", "prune", "compare") for _ in (0, 1)]

    assert ran(run_recipe(recipe())) == []
    # another setting of the last stage
    again = run_recipe(recipe(compare={"seed": 1}))
    assert (ran(again), again.again["compare"]) == (["compare"], "compare.seed was 0, and is 1")
    # a setting of an earlier stage
    again = run_recipe(recipe(compare={"seed": 1}, prune={"repair": "none"}))
    assert ran(again) == ["prune", "compare"]
    assert again.again["prune"] == "prune.repair was 'auto', and is 'none'"
    assert again.again["compare"] == "prune runs again"
    # other data
    Path("batches.py").write_text(BATCHES.replace("manual_seed(1)", "manual_seed(2)"), encoding="utf-8")
    again = run_recipe(recipe(compare={"seed": 1}, prune={"repair": "none"}), dry_run=True)
    assert (ran(again), again.again["plan"]) == (["plan", "prune", "compare"], "its data have changed")
    # a file that is gone
    Path("batches.py").write_text(BATCHES, encoding="utf-8")
    Path("result/compare.json").unlink()
    again = run_recipe(recipe(compare={"seed": 1}, prune={"repair": "none"}), dry_run=True)
    assert (ran(again), again.again["compare"]) == (["compare"], "compare.json is gone")


def test_a_training_and_a_report_are_stages_too(folder):
    own = {
        "distill": {"num_epochs": 1, "learning_rate": 1e-3},
        "report": {"file": "page.html"},
        "data": {"calibration": "batches.py:batches"},
    }
    run = run_recipe(recipe(**own))
    assert run.model == Path("result/distilled")
    assert (run.model / "manifest.json").is_file()
    assert "<html" in Path("result/page.html").read_text(encoding="utf-8")
    assert list(Path("result").glob(".training-*")) == []
    Path("result/page.html").unlink()  # the training is told from what was kept of it
    assert ran(run_recipe(recipe(**own))) == ["report"]
    assert Path("result/page.html").is_file()


def test_a_plan_from_a_file_is_carried_out(folder):
    run_recipe(recipe(data={}))
    run = run_recipe(recipe(data={}, plan={"file": "result/plan.json"}, out="other"))
    assert ran(run) == ["plan", "prune"]
    assert Path("other/plan.json").read_text() == Path("result/plan.json").read_text()


def test_an_empty_plan_is_refused_unless_it_is_allowed(folder):
    nothing = {"plan": {"max_param_reduction": 0.001}, "data": {}}
    with pytest.raises(BudgetError, match="allow_empty: true goes on"):
        run_recipe(recipe(**nothing))
    run = run_recipe(recipe(**nothing, prune={"allow_empty": True}))
    assert run.states["plan"].result["num_removals"] == 0
    assert (Path("result") / "pruned" / "manifest.json").is_file()


PROGRAM = """
import sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads({threads})  # sums of another number of threads differ in their last bits
from layerprune.recipe import run_recipe, recipe_of
def told(stage, text):
    print(stage, text, flush=True)
run_recipe(recipe_of({content!r}), told=told)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_one_without_a_break(folder):
    own = content(
        distill={"num_epochs": 12, "learning_rate": 1e-3, "patience": 1000}, data={"calibration": "batches.py:batches"}
    )
    program = PROGRAM.format(path=sys.path, content=own, threads=torch.get_num_threads())
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as killed:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not list(Path("result").glob(".training-*/*.json")):
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
    assert not Path("result/distilled").exists()
    run = run_recipe(recipe_of(own))
    assert ran(run) == ["distill"]
    whole = run_recipe(recipe_of({**own, "out": "whole"}))
    weights = [load_file(Path(r.out) / "distilled" / "model.safetensors") for r in (run, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert sorted(path.name for path in Path("result").iterdir()) == sorted(
        path.name for path in Path("whole").iterdir()
    )


def test_two_runs_in_one_folder_are_refused(folder):
    import fcntl

    Path("result").mkdir()
    with open("result/.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RecipeError, match="another run is at work in result"):
            run_recipe(recipe())


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model": "nets.py:make"}, SourceError, "there is no file nets.py"),
        ({"model": "resnet18"}, SourceError, "'resnet18' names no model"),
        ({"data": {"calibration": "text:a.txt"}}, SourceError, "there is no file a.txt"),
        ({"data": {"calibration": "images:a"}}, SourceError, "there is no folder a"),
        ({"data": {"calibration": "a.txt"}}, SourceError, "'a.txt' names no data"),
        ({"plan": {"file": "a.json"}}, RecipeError, "plan.file: a.json cannot be read"),
        ({"out": "net.py"}, RecipeError, "net.py is a file"),
        ({"out": "."}, RecipeError, "is no folder of a run"),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(folder, changes, error, says):
    for dry_run in (True, False):
        with pytest.raises(error) as found:
            run_recipe(recipe(**changes), dry_run=dry_run)
        assert says in str(found.value)
    assert not Path("result").exists()


def test_a_damaged_record_is_named(folder):
    Path("result").mkdir()
    Path("result/run.json").write_text("{", encoding="utf-8")
    with pytest.raises(RecipeError, match="cannot be read; remove it"):
        run_recipe(recipe())
