"""Every quirk that users' models, inputs and outputs have, through plan, prune, save and load.

Each case ends right (the pruned model equals the simulation, and what is loaded equals what was saved, bit for bit) or
in an error of the library's own, at the stage where it must. After every stage the model, its modes, its hooks, the
inputs, the RNG and the files are what they were before. What is no model, no budget, no plan: test_refusals.py; what
may befall an artefact: test_artefacts.py.
"""

from __future__ import annotations

import hashlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layerprune import LayerPruneError, UniversalLayerPruner, load_pruned, save_pruned
from layerprune.errors import CaptureError, CheckpointError, InputsError, UnsupportedModelError
from layerprune.modules import num_params, unwrap
from layerprune.tensors import map_tensors, tensors_in
from models import quirks
from models.nets import Photograph, rows
from models.quirks import Request, quirk
from oracle.simulation import simulate, union

STAGES = ("plan", "prune", "save", "load")


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and how it ends.

    Attributes:
        build: makes the model.
        inputs: example inputs.
        stage: where it is refused; "" where all goes well.
        error: what is raised then.
        match: what the message says.
        simulated: whether the simulation can run this model; what it cannot, must at least run.
        runs: whether there are values to run on.
        fresh: the seed of the fresh instance that is loaded into.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any] = rows
    stage: str = ""
    error: type[LayerPruneError] = LayerPruneError
    match: str = ""
    simulated: bool = True
    runs: bool = True
    fresh: int = 1


def refused(case: Case, stage: str, error: type[LayerPruneError], match: str) -> Case:
    return replace(case, stage=stage, error=error, match=match)


def fine(*builds: Callable[[], nn.Module], **options: Any) -> dict[str, Case]:
    return {build.__name__.replace("_", " "): Case(build, **options) for build in builds}


CASES: Mapping[str, Case] = {
    # ---- what cannot be copied
    **fine(
        *map(
            quirk,
            (
                *(quirks.old_weight_norm, quirks.pruning_masks, quirks.cached_tensor, quirks.open_file, quirks.lock),
                *(quirks.generator, quirks.random_generator, quirks.refuses_copy, quirks.knows_its_parent),
                # ---- hooks and parametrizations
                *(quirks.lambda_hook, quirks.pre_hook, quirks.backward_hook, quirks.state_dict_hook),
                *(quirks.new_weight_norm, quirks.spectral_norm, quirks.own_parametrization),
                # ---- values and sharing
                *(quirks.frozen, quirks.half_frozen, quirks.nan_weight, quirks.infinite_weight, quirks.zero_weights),
                *(quirks.gradients, quirks.shared_buffers, quirks.unsaved_buffer, quirks.tied_weights),
                *(quirks.one_memory, quirks.expanded_weight, quirks.transposed_weight, quirks.empty_layer),
                *(quirks.unused_layer, quirks.odd_names, quirks.two_names, quirks.forward_replaced),
            ),
        )
    ),
    # ---- other kinds of models
    **fine(
        *(quirks.plain, quirks.lazy_that_has_run, quirks.compiled, quirks.data_parallel, quirks.batch_norm),
        *(quirks.dotted_name,),
    ),
    "inference weights": Case(quirks.inference_weights, simulated=False),
    "on meta": refused(
        Case(quirks.on_meta, lambda: rows().to("meta"), runs=False), "save", CheckpointError, "has no values: load"
    ),
    "lazy": refused(Case(quirks.lazy), "plan", UnsupportedModelError, r"'0' is lazy.*run one forward"),
    "scripted": refused(Case(quirks.scripted), "plan", UnsupportedModelError, "TorchScript.*pass the Python module"),
    "scripted part": refused(Case(quirks.scripted_part), "plan", UnsupportedModelError, "'2' is a TorchScript"),
    "traced": refused(Case(quirks.traced), "plan", UnsupportedModelError, "TorchScript.*pass the Python module"),
    "dynamically quantised": refused(
        Case(quirks.dynamically_quantised), "plan", UnsupportedModelError, "'0' is a quantised Linear.*then quantise"
    ),
    "one part quantised": refused(
        Case(quirks.one_part_quantised), "plan", UnsupportedModelError, "'4' is a quantised Linear.*then quantise"
    ),
    "state of its own": Case(quirks.own_state),
    "no parameters": refused(Case(quirks.no_parameters), "plan", UnsupportedModelError, "has no transform"),
    "only norms": refused(Case(quirks.only_norms), "plan", UnsupportedModelError, "has no transform"),
    # ---- dtypes and forms of inputs
    "bfloat16": Case(lambda: quirks.plain().bfloat16(), lambda: rows().bfloat16()),
    "float16": Case(lambda: quirks.plain().half(), lambda: rows().half()),
    "float64": Case(lambda: quirks.plain().double(), lambda: rows().double()),
    "complex": Case(quirks.complex_numbers, lambda: rows().to(torch.complex64)),
    "batch norm, one sample": Case(quirks.batch_norm, lambda: rows(1)),
    "no sample": refused(Case(quirks.plain, lambda: rows(0)), "plan", InputsError, "hold no element .0×8."),
    "asks for a gradient": Case(quirks.plain, lambda: rows().requires_grad_()),
    "expanded input": Case(quirks.plain, lambda: rows(1).expand(4, 8)),
    "strided input": Case(quirks.plain, lambda: rows(8, 16)[::2, ::2]),
    "nan input": Case(quirks.plain, lambda: rows() * float("nan")),
    # ---- forwards
    **fine(
        *(quirks.counts_calls, quirks.keeps_outputs, quirks.writes_into_its_input, quirks.draws_numbers),
        *(quirks.goes_through_numpy, quirks.asks_a_value, quirks.without_grad, quirks.under_autocast, quirks.warns),
        *(quirks.called_twice, quirks.local_class, quirks.property_that_raises, quirks.context_inside),
    ),
    **fine(quirks.function_from_outside, quirks.modules_in_a_list, fresh=0),  # what is not registered is not saved
    "in inference mode": Case(quirks.in_inference_mode, simulated=False),
    "raises": refused(Case(quirks.raises), "plan", InputsError, "the cache is cold"),
    # ---- inputs
    "none among inputs": Case(quirks.takes_none, lambda: (rows(), None)),
    "an int among inputs": Case(quirks.takes_an_int, lambda: (rows(), 3)),
    "a string among inputs": Case(quirks.takes_a_string, lambda: (rows(), "plain")),
    "nested inputs": Case(quirks.takes_nested, lambda: ({"features": [{"x": rows()}], "ids": (1, 2)},)),
    "a dataclass": Case(quirks.takes_a_dataclass, lambda: Request(rows(), {"scale": 2.0})),
    "keywords": Case(quirks.takes_keywords, lambda: {"x": rows(), "scale": 3.0}),
    "inputs without values": Case(quirks.plain, lambda: rows().to("meta")),
    "input of another dtype": refused(
        Case(quirks.plain, lambda: rows().double()), "plan", InputsError, "example_inputs is float64, the model float32"
    ),
    # ---- outputs
    **fine(quirks.returns_a_loss, quirks.returns_a_mixture, quirks.returns_a_dataclass, quirks.returns_its_input),
    "returns nothing": refused(Case(quirks.returns_nothing), "plan", CaptureError, "returns no tensor"),
    "returns a number": refused(Case(quirks.returns_a_number), "plan", CaptureError, "returns no tensor"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_matrix(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    done = list(STAGES)[: list(STAGES).index(case.stage) if case.stage else None]
    assert Lockstep(case, tmp_path / "artefact").go() == done


class Lockstep:
    """One case's way through the stages."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = folder
        torch.manual_seed(0)
        self.model = case.build()
        self.inputs = case.inputs()
        self.values = [t.detach().clone() for t in tensors_in(self.inputs) if not t.is_meta]
        self.before = Photograph(self.model)
        self.found: dict[str, Any] = {}

    def go(self) -> list[str]:
        """Go as far as the case does; returns the stages that ended well."""
        done: list[str] = []
        for stage in STAGES:
            act = getattr(self, stage)
            if stage != self.case.stage:
                act()
                self.assert_untouched()
                done.append(stage)
                continue
            files = contents(self.folder)
            with pytest.raises(self.case.error, match=self.case.match) as raised:
                act()
            assert len(str(raised.value)) > 20
            assert contents(self.folder) == files
            self.assert_untouched()
            break
        return done

    def assert_untouched(self) -> None:
        assert self.before.difference(Photograph(self.model)) == ""
        now = [t for t in tensors_in(self.inputs) if not t.is_meta]
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(now, self.values, strict=True))

    # ---- the stages

    def plan(self) -> None:
        pruner = UniversalLayerPruner(self.model, example_inputs=self.inputs)
        plan = pruner.plan(max_param_reduction=0.7)
        assert plan.removals, pruner.render_plan()
        assert "Parameters" in pruner.render_plan()
        self.found |= {"pruner": pruner, "plan": plan}

    def prune(self) -> None:
        pruner, plan = self.found["pruner"], self.found["plan"]
        pruned = pruner.prune(plan=plan)
        assert type(pruned) is type(unwrap(self.model))
        assert num_params(pruned) == plan.num_params_after < plan.num_params_before
        assert pruned.training == unwrap(self.model).training
        self.found["pruned"] = pruned
        if self.case.runs:
            found = self.run(pruned)
            if self.case.simulated:
                removals = {r.name: r for r in pruner.removals}
                cut = union(removals[each.name].cut for each in plan.removals)
                twin = unwrap(self.built(0)).eval()
                args, kwargs = self.arguments()
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(5)
                    expected = simulate(twin, pruner.graph, cut, *args, **kwargs)
                assert_same(found, expected, 1e-5)

    def save(self) -> None:
        before = Photograph(self.found["pruned"])
        try:
            save_pruned(self.found["pruned"], self.folder)
        finally:
            assert before.difference(Photograph(self.found["pruned"])) == ""

    def load(self) -> None:
        files = contents(self.folder)
        loaded = load_pruned(self.folder, model=self.built(self.case.fresh))
        assert contents(self.folder) == files
        assert_same(self.run(loaded), self.run(self.found["pruned"]), 0.0)

    # ---- what they need

    def built(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.case.build()

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = map_tensors(self.inputs, lambda t: rows(*t.shape) if t.is_meta else t.detach().clone())
        if isinstance(given, dict):
            return (), given
        return (given if isinstance(given, tuple) else (given,)), {}

    def run(self, model: nn.Module) -> Any:
        """The output in eval mode; the model's own modes, and the RNG, are kept."""
        modes = [(module, module.training) for module in model.modules()]
        args, kwargs = self.arguments()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(5)
                return model.eval()(*args, **kwargs)
        finally:
            for module, training in modes:
                module.training = training


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
    assert type(found) is type(expected)
    pairs = list(zip(tensors_in(found), tensors_in(expected), strict=True))
    assert pairs
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder's parent with its hash."""
    files = sorted(path for path in folder.parent.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------

#: What is being done → the function that is interrupted at its n-th call, for each n.
INTERRUPTS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "copying": ("layerprune.modules.copier.Copier.copy", (1, 40)),
    "recording": ("layerprune.capture.recorder.Recorder.call_function", (1, 3)),
    "recording an operation": ("layerprune.capture.recorder.Recorder.operation", (1, 5)),
    "building the graph": ("layerprune.capture.graph_builder.GraphBuilder.layer", (1,)),
    "grouping": ("layerprune.graph.groups.lead_name", (2,)),
    "realising": ("layerprune.removals.lowering._Lowerer.run", (1, 2)),
    "proving": ("layerprune.proof.prover.Prover.check_run", (1, 2)),
    "scoring": ("layerprune.scoring.score", (1,)),
    "ablating": ("layerprune.capture.sandbox.Sandbox.forward", (1, 3)),
    "selecting": ("layerprune.select.milp.Milp.run", (1,)),
    "operating": ("layerprune.surgery.apply._carry_out", (1, 2, 3)),
    "copying what is left": ("layerprune.plan.plan.own", (1, 3)),
    "recording for a repair": ("layerprune.repair.closed_form.record_real", (1, 2)),
    "repairing": ("layerprune.repair.verdict._output", (1,)),
    "solving": ("layerprune.repair.refit.Refitter.run", (1,)),
    "writing what was repaired": ("layerprune.execute.write", (1,)),
    "saving": ("layerprune.checkpoint.weights._flat", (1, 3)),
    "writing the manifest": ("layerprune.checkpoint.save.write_text", (1, 2)),
    "loading": ("layerprune.checkpoint.weights.Weights._tensor", (1, 3)),
}


def everything(model: nn.Module, folder: Path, inplace: bool) -> nn.Module:
    """All stages, with calibration data, and so with a repair."""
    batches = [rows(16, seed=seed) for seed in range(4)]
    pruner = UniversalLayerPruner(model, example_inputs=rows(), calibration=batches)
    pruned = pruner.prune(max_param_reduction=0.7, inplace=inplace)
    save_pruned(pruned, folder)
    return load_pruned(folder, factory=quirks.plain)


def interrupted(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """A function at whose n-th call the user presses Ctrl-C."""
    calls = count(1)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("stage", "number", "inplace"),
    [
        (stage, number, inplace)
        for stage, (_, numbers) in INTERRUPTS.items()
        for number in numbers
        for inplace in (False, True)
        if inplace or stage != "writing what was repaired"
    ],
)
def test_ctrl_c(stage: str, number: int, inplace: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, folder = quirks.plain(), tmp_path / "artefact"
    path = INTERRUPTS[stage][0]
    original = pkgutil.resolve_name(path)
    before = Photograph(model)
    with monkeypatch.context() as patched:
        patched.setattr(path, interrupted(original, number))
        with pytest.raises(KeyboardInterrupt):
            everything(model, folder, inplace)
    done = inplace and stage in ("saving", "writing the manifest", "loading")
    if not done:
        assert before.difference(Photograph(model)) == ""
    assert folder.exists() == (stage == "loading")
    assert list(tmp_path.iterdir()) == [folder] * (stage == "loading")
    assert not torch.nn.modules.module._global_forward_hooks
    if not done:
        after = UniversalLayerPruner(model, example_inputs=rows()).prune(max_param_reduction=0.7)
        assert num_params(after) < num_params(model)
