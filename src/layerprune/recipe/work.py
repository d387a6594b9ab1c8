"""What each stage of a recipe does; what several stages need is made once."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerprune.capture import record_first
from layerprune.checkpoint import load_pruned, save_as_it_came, save_pruned, write_record
from layerprune.distillation import Distillation, distill
from layerprune.environment import progress_bar
from layerprune.errors import BudgetError, ShortfallWarning, SourceError
from layerprune.export import export_onnx, export_program
from layerprune.fidelity import Fidelity, compare
from layerprune.modules import unwrap
from layerprune.plan import PruningPlan
from layerprune.pruner import UniversalLayerPruner
from layerprune.recipe.records import ExportPart, PruningRecipe
from layerprune.recipe.stages import Stage
from layerprune.sources import DataSettings, load_data, load_model, source_of


class Work:
    """The stages of a recipe, each of which writes into the output folder.

    Args:
        recipe: the recipe.
        out: the output folder.
    """

    def __init__(self, recipe: PruningRecipe, out: Path) -> None:
        self.recipe = recipe
        self.out = out
        self.fidelity: Fidelity | None = None
        self._read: dict[str, Iterable[Any]] = {}
        self._left: tuple[str, nn.Module] | None = None

    def run(self, stage: Stage) -> dict[str, Any]:
        """Run a stage, whose files are then in the folder, and return its figures."""
        if stage.name.startswith("export "):
            return self._export(next(each for each in self.recipe.export if f"export {each.file}" == stage.name))
        runs: Mapping[str, Callable[[Stage], dict[str, Any]]] = {
            "plan": self._plan,
            "prune": self._prune,
            "distill": self._distill,
            "compare": self._compare,
            "report": self._report,
        }
        return runs[stage.name](stage)

    # ---- what several stages need ------------------------------------------------------------------------------------

    @cached_property
    def original(self) -> nn.Module:
        part = self.recipe.model
        torch.manual_seed(0)  # random weights are the same in every run
        with progress_bar(f"loading {part.source}"):
            model = load_model(part.source, pretrained=part.pretrained)
        if part.device is None:
            return model
        try:
            return model.to(part.device)
        except Exception as error:  # torch raises errors of many types
            raise SourceError(f"model.device: '{part.device}' cannot be used: {error}") from error

    def data(self, spec: str) -> Iterable[Any]:
        """The batches of a DATA argument, read once."""
        if spec not in self._read:
            part = self.recipe.data
            settings = DataSettings(
                batch_size=part.batch_size, max_samples=part.samples, max_length=part.length, column=part.column
            )
            with progress_bar(f"reading {spec}"):
                self._read[spec] = list(load_data(spec, self.original, source_of(self.recipe.model.source), settings))
        return self._read[spec]

    @cached_property
    def pruner(self) -> UniversalLayerPruner:
        calibration = self.recipe.data.calibration
        return UniversalLayerPruner(
            self.original,
            calibration=None if calibration is None else self.data(calibration),
            example_inputs=self.example,
            **self.recipe.pruner.model_dump(),
        )

    @property
    def example(self) -> torch.Tensor | None:
        """The example input, where the recipe states its shape; the same in every run."""
        shape = self.recipe.model.input_shape
        if shape is None:
            return None
        place = next((parameter.device for parameter in self.original.parameters()), None)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(place)

    def left(self) -> nn.Module:
        """What is left of the model after the last stage that changed it."""
        name = "distilled" if self.recipe.distill is not None else "pruned"
        return self._loaded(name)

    def _loaded(self, name: str) -> nn.Module:
        if self._left is None or self._left[0] != name:
            self._left = name, load_pruned(self.out / name, model=self.original)
        return self._left[1]

    # ---- stages --------------------------------------------------------------------------------------------------

    def _plan(self, _: Stage) -> dict[str, Any]:
        part = self.recipe.plan
        if part.file is not None:
            chosen = PruningPlan.load(part.file)
            chosen.check(unwrap(self.original))
        elif part.groups:
            chosen = self.pruner.plan(groups=part.groups)
        elif part.unused:
            chosen = self.pruner.plan(unused=True)
        else:
            chosen = self.pruner.plan(**part.budgets, slack=part.slack, strategy=part.strategy)
        if not chosen.removals and not self.recipe.prune.allow_empty:
            raise BudgetError(f"{chosen.shortfall or 'the plan removes nothing'}; prune.allow_empty: true goes on")
        chosen.save(self.out / "plan.json")
        return {
            "num_removals": len(chosen.removals),
            "num_params_before": chosen.num_params_before,
            "num_params_after": chosen.num_params_after,
            "impact": chosen.impact_together,
            "shortfall": chosen.shortfall,
        }

    def _prune(self, _: Stage) -> dict[str, Any]:
        repair = self.recipe.prune.repair
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortfallWarning)  # told with the figures of the plan
            pruned = self.pruner.prune(plan=self.out / "plan.json", repair=None if repair == "none" else repair)
        self._save(pruned, "pruned")
        self._left = "pruned", pruned
        report = self.pruner.repair_report
        figures = {} if report is None else {"num_repaired": report.num_kept, "before": report.before}
        return figures if report is None else {**figures, "after": report.after, "unit": report.unit}

    def _distill(self, stage: Stage) -> dict[str, Any]:
        part, data = self.recipe.distill, self.recipe.data
        assert part is not None
        spec = data.distill or data.calibration
        assert spec is not None
        checkpoint = self.out / f".training-{stage.fingerprint[:12]}"
        for older in self.out.glob(".training-*"):
            if older != checkpoint:  # of settings that have changed
                shutil.rmtree(older, ignore_errors=True)
        pruned = self._loaded("pruned")
        report = distill(
            self.original,
            pruned,
            self.data(spec),
            held_out=None if data.held_out is None else self.data(data.held_out),
            edits=PruningPlan.load(self.out / "plan.json").edits,
            checkpoint=checkpoint,
            kind=self.recipe.pruner.kind,
            **part.settings,
        )
        self._save(pruned, "distilled")
        self._left = "distilled", pruned
        write_record(self.out / "distillation.json", asdict(report))
        shutil.rmtree(checkpoint, ignore_errors=True)
        return {
            "before": report.before,
            "after": report.after,
            "unit": report.unit,
            "kept": report.kept,
            "num_steps": report.num_steps,
            "stopped": report.stopped,
        }

    def _compare(self, _: Stage) -> dict[str, Any]:
        part, spec = self.recipe.compares, self.recipe.data.compare
        assert part is not None
        assert spec is not None
        kind = part.kind or self.recipe.pruner.kind
        found = compare(
            self.original,
            self.left(),
            self.data(spec),
            kind=kind,
            num_generated=part.generate,
            latency=part.latency,
            seed=part.seed,
        )
        self.fidelity = found
        write_record(self.out / "compare.json", plain(asdict(found)))
        return {"num_samples": found.num_samples, "relative_l2": found.relative_l2.value, "cosine": found.cosine.value}

    def _export(self, part: ExportPart) -> dict[str, Any]:
        write = export_onnx if part.to == "onnx" else export_program
        inputs = record_first(unwrap(self.original), self.example, None)[0]
        written = write(
            self.left(), self.out / part.file, inputs, dynamic_batch=not part.fixed_batch, tolerance=part.tolerance
        )
        return {"num_nodes": written.num_nodes, "max_difference": written.max_difference}

    def _report(self, _: Stage) -> dict[str, Any]:
        part = self.recipe.report
        assert part is not None
        if self.fidelity is None and self.recipe.compares is not None:  # it was kept of an earlier process
            self._compare(_)
        page = self.pruner.report(
            self.out / part.file,
            self.out / "plan.json",
            fidelity=self.fidelity,
            distillation=None if self.recipe.distill is None else self._training(),
            origin=self.recipe.model.source,
        )
        return {"bytes": page.stat().st_size}

    def _training(self) -> Distillation:
        held: dict[str, Any] = json.loads((self.out / "distillation.json").read_text(encoding="utf-8"))
        held |= {name: tuple(value) for name, value in held.items() if isinstance(value, list)}
        held["looks"] = tuple((step, value) for step, value in held["looks"])
        return Distillation(**held)

    def _save(self, model: nn.Module, name: str) -> None:
        part, source = self.recipe.save, source_of(self.recipe.model.source)
        if part.format == "auto" and part.max_shard_bytes is None:
            save_as_it_came(model, self.out / name, source=source.origin)
        else:
            sharded: dict[str, Any] = {} if part.max_shard_bytes is None else {"max_shard_bytes": part.max_shard_bytes}
            save_pruned(model, self.out / name, **sharded)


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers that it lacks (infinite, nan) become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
