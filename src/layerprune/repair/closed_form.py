"""Closed-form repair of a pruned model: all steps in order, judged by the output, and written all at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from layerprune.calibration import Batch, fitting, read_calibration
from layerprune.capture import capture, record_on
from layerprune.edits import Edit
from layerprune.impact.harm import Harm, harm_of
from layerprune.modules import unwrap
from layerprune.repair.changes import write
from layerprune.repair.refit import Refitter
from layerprune.repair.report import Refitted, RepairReport
from layerprune.repair.sites import find_sites
from layerprune.repair.walk import Side
from layerprune.shadow import Shadow, real_shadow

MEMORY_BYTES = 4 * 2**30


def repair(
    original: nn.Module,
    pruned: nn.Module,
    calibration: Iterable[Any],
    *,
    edits: Sequence[Edit] = (),
    memory_bytes: int = MEMORY_BYTES,
) -> RepairReport:
    """Solve the transforms behind each gap again, so that what they feed is what it was in the original.

    Front to back, each transform that a removal has moved gets the weights that bring the tensor which it feeds
    linearly (through sums, reshapes, batch norms) nearest to the original's, by ridge regression on the calibration
    data. The strength of the ridge is chosen on the last quarter of the data with weights that have not seen it; what
    does not serve that quarter is not kept. The weights that are kept are then fitted on all of the data, and if the
    output on the last quarter is no better in the end, the model stays as it is. No parameters are added.

    Both models run in eval mode on copies that share their weights; modes, hooks, buffers and the RNG stay as they are.

    Args:
        original: the model before pruning.
        pruned: what is left of it. Its parameters are written into, at the very end, all or none.
        calibration: batches of real inputs, each as the forward takes it; as many tokens as the widest layer has inputs
            are right, or more.
        edits: ``plan.edits``; needed where whole layers have left their container and the others are renumbered.
        memory_bytes: what solving one step may take, and the original's tensors that are kept between steps as much
            again. A layer whose Gram matrix is too large gets ``W = T W₀`` instead, or stays as it is. Where the
            tensors do not fit, the original runs once more for each step.

    Returns:
        What was done, layer by layer, and what it did to the output.

    Raises:
        CalibrationError: the data are empty, do not fit either model, or make values that are not finite.
    """
    original, pruned = unwrap(original), unwrap(pruned)
    batches = read_calibration(calibration, original)
    with fitting():
        sides = _side(original, batches[0]), _side(pruned, batches[0])
    sites, refused = find_sites(sides[0].graph, sides[1].graph, pruned, edits)
    if not sites:
        return RepairReport(refused=refused, notes=("no transform can be solved again",))
    refitter = Refitter(*sides, batches, memory_bytes)
    refitted, repaired = refitter.run(sites)
    refused |= refitter.refused
    if not refitted:
        return RepairReport(refused=refused, notes=("no tensor that a transform feeds differs from the original's",))
    verdict = _judge(original, (sides[0].shade, sides[1].shade, repaired), refitter.held_out)
    kept = any(one.kept for one in refitted) and (verdict.after < verdict.before or not verdict.unit)
    notes = list(refitter.notes)
    if kept:
        write(pruned, _values(repaired.model, refitted))
    else:
        notes.append("the pruned model stays as it was: new weights make its output no better")
    return RepairReport(
        tuple(refitted),
        refused,
        verdict.before,
        verdict.after,
        verdict.unit,
        kept,
        (sides[0].num_forwards // len(batches), sides[1].num_forwards // len(batches)),
        tuple(notes),
    )


def _side(model: nn.Module, batch: Batch) -> Side:
    """Record a model as it runs on real data."""
    shade = real_shadow(model, written=capture(model, batch.inputs).written_params)
    return Side(model, shade, record_on(shade, batch.inputs))


@dataclass(frozen=True)
class _Verdict:
    """Harm to the output before and after a repair; without a unit where there is no output that could be compared."""

    before: float
    after: float
    unit: str


def _judge(model: nn.Module, shades: tuple[Shadow, Shadow, Shadow], batches: Sequence[Batch]) -> _Verdict:
    """Hold the outputs of the pruned model, unrepaired and repaired, against the original's."""
    harm: Harm | None = None
    change, size = [0.0, 0.0], 0.0
    for batch in batches:
        original, *others = (_output(shade, batch) for shade in shades)
        harm = harm or harm_of(model, original)
        if not harm.outputs(original):
            return _Verdict(float("nan"), float("nan"), "")
        found = [harm.between(original, other, batch.mask) for other in others]
        change = [total + one for total, (one, _) in zip(change, found, strict=True)]
        size += found[0][1]
    return _Verdict(change[0] / size, change[1] / size, "" if harm is None else harm.unit)


def _output(shade: Shadow, batch: Batch) -> Any:
    inputs = shade.adapt(batch.inputs)
    with shade.running():
        return shade.model(*inputs.args, **inputs.kwargs)


def _values(model: nn.Module, refitted: Sequence[Refitted]) -> dict[str, Tensor]:
    """The new weights, by name."""
    found: dict[str, Tensor] = {}
    for one in refitted:
        module = model.get_submodule(one.name)
        found |= {
            f"{one.name}.{key}": held.detach()
            for key in ("weight", "bias")
            if one.kept and (held := module._parameters.get(key)) is not None
        }
    return found
