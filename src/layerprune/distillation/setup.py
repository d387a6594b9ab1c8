"""Prepares a distillation: both models, the data, and the losses between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.capture import Batch, fitting, notes_of, read_calibration
from layerprune.checkpoint import digest
from layerprune.distillation.accelerator import Accelerating
from layerprune.distillation.hidden_matching import HiddenStates, Match, find_matches, hidden_states_of
from layerprune.distillation.losses import TopLogits, top_logits
from layerprune.distillation.recipe import Recipe
from layerprune.distillation.snapshots import Snapshot
from layerprune.distillation.student import Student
from layerprune.distillation.teacher import Teacher
from layerprune.distillation.trainer import Trainer
from layerprune.edits import Edit
from layerprune.environment import locked
from layerprune.errors import DistillationError
from layerprune.fidelity import Divergence, Kind, divergence_named, divergence_of
from layerprune.inputs import describe
from layerprune.modules import fingerprint, named_parameters, parameters
from layerprune.plan import plans_since
from layerprune.repair import find_sites

_EVERY = 8  # every eighth batch is held out


@dataclass(frozen=True, eq=False, kw_only=True)
class DistillationSetup:
    """Models, data and comparison of a distillation; ``held_out`` are places in ``batches`` for evaluation."""

    original: nn.Module
    pruned: nn.Module
    teacher: HiddenStates
    student: HiddenStates
    batches: Sequence[Batch]
    held_out: Sequence[int]
    recipe: Recipe
    edits: tuple[Edit, ...]
    harm: Divergence
    notes: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        return next(parameters(self.pruned)).device

    def key(self) -> dict[str, Any]:
        """Everything, except the first weights, that determines the final weights."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "the data": self.data_key(),
            "the held-out batches": list(self.held_out),
            "the original's weights": weights_of(self.original),
            "the pruned model": fingerprint(self.pruned),
            "the comparison": self.harm.kind,
        }

    def data_key(self) -> str:
        named = [
            (f"{number} {describe(batch.inputs)}", tensor)
            for number, batch in enumerate(self.batches)
            for tensor in batch.inputs.tensors()
        ]
        return digest(named)

    @locked
    def trainer(
        self, tools: Accelerating, found: Snapshot | None, cache_bytes: int, cache_folder: Path | None
    ) -> Trainer:
        """Build the trainer; ``found`` is the snapshot to resume from."""
        if found is not None:
            with torch.no_grad():
                for name, parameter in named_parameters(self.student.shade.model):
                    parameter.copy_(found.start[name])
        recipe = self.recipe
        matches = find_matches(self.teacher, self.student, self.edits, recipe.hidden) if recipe.hidden_weight else ()
        sites, _ = find_sites(self.teacher.graph, self.student.graph, self.student.shade.model, self.edits)
        student = Student(self.student, [site.name for site in sites], recipe.lora_rank, recipe.seed)
        teacher = self.lessons(matches, cache_bytes, cache_folder)
        return Trainer(recipe, student, teacher, matches, self.harm, self.batches, self.held_out, tools)

    def lessons(self, matches: Sequence[Match], cache_bytes: int, folder: Path | None) -> Teacher:
        values = sorted({match.teacher for match in matches})
        if folder is not None:
            recipe = self.recipe
            settings = f"{values} {self.harm.kind} {recipe.top_k} {recipe.temperature} {list(self.held_out)}"
            found = digest([(self.data_key() + weights_of(self.original) + settings, torch.zeros(0))])
            folder = folder / found[:16]
            folder.mkdir(parents=True, exist_ok=True)
        # The divergence of held-out batches needs all logits, and no hidden states.
        looked_at = frozenset(self.held_out if len(self.batches) > 1 else ())

        def outputs(number: int, out: Any) -> Sequence[Tensor | TopLogits]:
            tensors = self.harm.outputs(out)
            count = self.recipe.num_compared(tensors[0].shape[-1])
            if self.harm.kind == "values" or number in looked_at or tensors[0].dim() != 3:
                return tensors
            whole = count >= tensors[0].shape[-1]
            return tensors if whole else [top_logits(tensors[0], count, self.recipe.temperature)]

        return Teacher(self.teacher, values, outputs, looked_at, cache_bytes, folder)


@locked
def setup_of(
    original: nn.Module,
    pruned: nn.Module,
    data: Iterable[Any],
    held_out: Iterable[Any] | None,
    recipe: Recipe,
    edits: Sequence[Edit] | None,
    kind: Kind | None,
) -> DistillationSetup:
    """Read the data, and record both models on them.

    Raises:
        DistillationError: the models are on different devices or on the meta device, or return nothing to compare.
        CalibrationError: the data are empty, or do not fit a model.
    """
    if original is pruned:
        raise DistillationError("original and pruned are one model: there has to be an original to learn from")
    if edits is None:
        edits = _edits_between(original, pruned)
    devices = {parameter.device for model in (original, pruned) for parameter in parameters(model)}
    if len(devices) != 1 or any(device.type == "meta" for device in devices):
        raise DistillationError(
            f"the models' parameters are on {', '.join(sorted(map(str, devices))) or 'no device'}: "
            "put both on one that computes"
        )
    batches = read_calibration(data, original)
    if held_out is None:
        places, notes = _own_share(len(batches))
    else:
        places, notes = range(len(batches), len(batches) + len(more := read_calibration(held_out, original))), ()
        batches += more
    with fitting(original, batches[0].inputs):
        teacher, student = (
            hidden_states_of(original, batches[0], copied=False),
            hidden_states_of(pruned, batches[0], copied=True),
        )
    out = teacher.shade.forward(batches[0].inputs)
    harm = divergence_named(kind) or divergence_of(original, out)
    if not harm.outputs(out):
        raise DistillationError("the original returns no tensor of floating point: there is nothing to learn from")
    notes = (*notes_of(batches), *notes)
    return DistillationSetup(
        original=original,
        pruned=pruned,
        teacher=teacher,
        student=student,
        batches=batches,
        held_out=places,
        recipe=recipe,
        edits=tuple(edits),
        harm=harm,
        notes=notes,
    )


def _edits_between(original: nn.Module, pruned: nn.Module) -> tuple[Edit, ...]:
    """The edits of the one plan between the models; empty for several plans, or for a plan of a part."""
    since = plans_since(pruned, original)
    return since[0][1].edits if len(since) == 1 and not since[0][0] else ()


def _own_share(count: int) -> tuple[Sequence[int], tuple[str, ...]]:
    """Choose held-out batches, evenly spread, because batches may be sorted by length."""
    if count == 1:
        return (0,), ("one batch was trained on and looked at: what it won there says nothing of other data",)
    return range(min(_EVERY, count) // 2, count, _EVERY), ()


def weights_of(model: nn.Module) -> str:
    """Hash a model's parameters."""
    return digest(named_parameters(model))
