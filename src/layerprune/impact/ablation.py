"""Ablation: the truth about a removal, measured by making it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layerprune.calibration import Batch
from layerprune.edits import Edit
from layerprune.impact.evidence import Evidence, Scene
from layerprune.impact.harm import Harm, harm_of
from layerprune.shadow import Shadow, real_shadow
from layerprune.surgery import applied


def score_ablation(scene: Scene, harm: Harm | None = None) -> Evidence:
    """Make each removal, run, compare the output with the original's, and undo it; one pass per removal.

    Args:
        scene: what to score, and on what.
        harm: how outputs are compared; told from the model and its output if None.
    """
    return ablate(scene, [removal.edits for removal in scene.removals], harm)


def ablate(scene: Scene, sets: Sequence[Sequence[Edit]], harm: Harm | None = None) -> Evidence:
    """Make sets of edits, one after the other, and measure what each does to the output.

    Returns:
        Evidence with one column per set.
    """
    shade = real_shadow(scene.model, written=scene.graph.written_params)
    change = np.full((len(scene.batches), len(sets)), np.nan)
    size = np.ones_like(change)
    for row, batch in enumerate(scene.batches):
        original = _run(shade, batch)
        harm = harm or harm_of(scene.model, original)
        for column, edits in enumerate(sets):
            with applied(shade.model, edits):
                out = _run(shade, batch)
            change[row, column], size[row, column] = harm.between(original, out, batch.mask)
            scene.progress(row * len(sets) + column + 1, change.size)
    unit = f"{harm.unit if harm else ''}, by ablation"
    return Evidence(change, size, 1.0, unit, is_ablation=True)


def _run(shade: Shadow, batch: Batch) -> Any:
    inputs = shade.adapt(batch.inputs)
    with shade.running():
        return shade.model(*inputs.args, **inputs.kwargs)
