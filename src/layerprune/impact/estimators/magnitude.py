"""Scores a removal by the norm of its weights; needs no data."""

from __future__ import annotations

import numpy as np
import torch

from layerprune.impact.scores import ImpactScores, ScoringContext
from layerprune.modules import named_parameters


def score_magnitude(scene: ScoringContext) -> ImpactScores:
    """Score each removal by the norm of its parameters, relative to the norm of all parameters.

    A baseline of pruning without data: large weights are assumed to matter. The batches of ``scene`` are not used.
    """
    squares: dict[int, float] = {}
    for name, parameter in named_parameters(scene.model, every_name=True):
        number = scene.graph.param_ids[name]
        if number not in squares:
            squares[number] = float(torch.linalg.vector_norm(parameter.detach().float()).square())
    scene.progress(1, 1)
    change = [sum(squares[number] for number in removal.lowering.params) for removal in scene.removals]
    size = np.full((1, len(change)), sum(squares.values()))
    return ImpactScores(change=np.array([change]), size=size, power=0.5, unit="magnitude: share of the weights' norm")
