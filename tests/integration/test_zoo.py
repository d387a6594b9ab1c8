"""The zoo's fixed subset at full depth: planned, pruned, run, compared, trained, saved and loaded, model by model."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerprune.plan import PruningPlan

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from menagerie import catalogue
from menagerie.checks import check_full
from menagerie.entry import Batch, Entry
from menagerie.planning import check_plan
from menagerie.report import as_markdown, as_pages
from menagerie.results import Results, is_failure
from menagerie.runner import Runner
from menagerie.subset import SUBSET
from menagerie.worker import Job

_MODELS = [(library, name) for library, names in SUBSET.items() for name in names]
#: Slow models whose mechanisms others of the subset, or the oracle's architectures, have as well.
_REPEATS = {
    *("inception_v3", "efficientformer_l1", "levit_128s", "coat_tiny", "cait_xxs24_224", "xcit_nano_12_p8_224"),
    *("res2net50_14w_8s", "pvt_v2_b0", "maxvit_pico_rw_256", "fastvit_t8", "t5", "bart", "jamba"),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small models run no faster on two threads, and bits must not depend on how work is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("library", "name"),
    [
        pytest.param(library, name, marks=[pytest.mark.reliability] * (name in _REPEATS), id=f"{library}-{name}")
        for library, name in _MODELS
    ],
)
def test_an_architecture_passes_every_check(library: str, name: str) -> None:
    pytest.importorskip(library)
    row = check_full(catalogue(library)[name])
    assert row["outcome"] == "ok", "\n".join([row["outcome"], *(f"{k}: {v}" for k, v in row.get("checks", {}).items())])


# ---- the runner ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_beyond_its_limits_ends_and_the_others_go_on() -> None:
    pytest.importorskip("torchvision")
    jobs = [Job("torchvision", "plan", name) for name in ("alexnet", "resnet18")]
    hasty = dict(Runner(1, seconds=0.0, gib=9).run(jobs))
    assert {job.name for job in hasty} == {"alexnet", "resnet18"}
    assert all(row["outcome"].startswith("timeout") for row in hasty.values())
    greedy = dict(Runner(1, seconds=60, gib=0.01).run(jobs[:1]))
    assert greedy[jobs[0]]["outcome"].startswith("killed (memory)")
    patient = dict(Runner(1, seconds=60, gib=9).run(jobs))
    assert [row["outcome"] for row in patient.values()] == ["planned", "planned"]


def _row(name: str, outcome: str, **more: Any) -> dict[str, Any]:
    return {"library": "timm", "depth": "plan", "name": name, "family": "f", "outcome": outcome, "seconds": 1.0, **more}


def test_results_outlive_a_run_that_broke_off_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    results = Results(path)
    results.begin()
    results.add(_row("a", "refused: InputsError: no"))
    with path.open("a") as file:
        file.write('{"library": "timm", "dep')
    resumed = Results(path)
    resumed.add(_row("a", "planned", layers=3, groups=2, safe=1, removable=0.5, removed=0.25))
    resumed.add(_row("b", "foreign: KeyError: x [graph.py:1 f]"))
    resumed.settle()
    rows = Results(path).rows
    assert [row["outcome"] for row in rows.values()] == ["planned", "foreign: KeyError: x [graph.py:1 f]"]
    assert [is_failure(row) for row in rows.values()] == [False, True]
    assert "foreign: KeyError" in as_markdown(Results(path))
    page = as_pages(Results(path))["timm"]
    assert "| a | 3 | 2 | 1 | 50.0% | 25.0% | 1.0 |  |" in page


# ---- the checks themselves ----------------------------------------------------------------------------------------


class _Net(nn.Module):
    """Four residual branches behind layer scales that begin at nothing, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(4))
        self.gammas = nn.ParameterList(nn.Parameter(torch.full((8,), 1e-6)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch, gamma in zip(self.branches, self.gammas, strict=True):
            x = x + gamma * branch(x)
        return self.head(x)


def _inputs(model: nn.Module, batch: int, variant: int) -> Batch:
    return (torch.randn(batch, 5 + variant, 4, dtype=torch.float64),), {}


_ENTRY = Entry("test", "net", "test", plan=lambda: _Net().to("meta"), full=_Net, inputs=_inputs)


def test_a_net_passes_every_check_and_every_removal_moves_its_output() -> None:
    row = check_full(_ENTRY)
    assert row["outcome"] == "ok", row
    assert row["alone"] == row["moved"] == row["safe"] > 0
    assert 0 < row["removed"] <= 0.3
    assert check_plan(_ENTRY)["outcome"] == "planned"


def _removes_too_little(plan: PruningPlan, model: nn.Module, **options: Any) -> nn.Module:
    return copy.deepcopy(model)


def _returns_another_form(plan: PruningPlan, model: nn.Module, **options: Any) -> nn.Module:
    pruned = _APPLY(plan, model, **options)
    pruned.register_forward_hook(lambda module, args, out: (out,))
    return pruned


def _is_a_little_off(plan: PruningPlan, model: nn.Module, **options: Any) -> nn.Module:
    pruned = _APPLY(plan, model, **options)
    with torch.no_grad():
        pruned.head.bias += 1e-6
    return pruned


def _edits_the_original(plan: PruningPlan, model: nn.Module, **options: Any) -> nn.Module:
    with torch.no_grad():
        model.stem.weight[0, 0] += 1e-9
    return _APPLY(plan, model, **options)


def _draws(plan: PruningPlan, model: nn.Module, **options: Any) -> nn.Module:
    torch.rand(1)
    return _APPLY(plan, model, **options)


def _trains_no_more(plan: PruningPlan, model: nn.Module, **options: Any) -> nn.Module:
    pruned = _APPLY(plan, model, **options)
    pruned.register_forward_pre_hook(lambda module, args: 1 / (not module.training))
    return pruned


def _raises(plan: PruningPlan, model: nn.Module, **options: Any) -> nn.Module:
    raise KeyError("a mistake")


_APPLY = PruningPlan.apply
_FAULTS: Mapping[str, tuple[Callable[..., nn.Module], str]] = {
    "params": (_removes_too_little, "wrong"),
    "eval": (_returns_another_form, "wrong: the output's form"),
    "oracle": (_is_a_little_off, "wrong"),
    "alone": (_is_a_little_off, "wrong"),
    "untouched": (_edits_the_original, "wrong: 'stem.weight'"),
    "prune": (_draws, "wrong: pruning has changed the RNG state"),
    "train": (_trains_no_more, "foreign: ZeroDivisionError"),
}


@pytest.mark.parametrize("check", _FAULTS)
def test_a_check_fails_where_the_library_is_at_fault(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, expected = _FAULTS[check]
    monkeypatch.setattr(PruningPlan, "apply", fault)
    row = check_full(_ENTRY)
    assert check in row["outcome"]
    assert row["checks"][check].startswith(expected)


def test_an_error_of_another_type_is_told_from_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PruningPlan, "apply", _raises)
    assert check_full(_ENTRY)["checks"]["prune"].startswith("foreign: KeyError: 'a mistake' [test_zoo.py")
    without = replace(_ENTRY, plan=lambda: nn.Sequential(nn.ReLU()).to("meta"))
    assert check_plan(without)["outcome"].startswith("refused: UnsupportedModelError")
