"""Ways to make one number of a gradient and a change: which of them ranks single removals as making them does.

All from the same backwards. The truth is ablation on held-out data; ``--loss`` compares estimates of the change of a
loss instead. What won is :mod:`layerprune.impact.output_change` and :mod:`layerprune.impact.loss`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from impact import NUM_HELD_OUT, console, rank
from layerprune import UniversalLayerPruner
from layerprune.capture import Loss, Probe, gradient_sandbox, read_calibration
from layerprune.fidelity import Divergence
from layerprune.impact import ScoringContext
from layerprune.impact.ablation import score_ablation
from layerprune.impact.estimators.loss import loss_on
from layerprune.impact.estimators.output_change import _pull
from layerprune.impact.estimators.perturbations import Perturbation, Tensors, perturbations_of
from subjects import SUBJECTS, Subject, subject

#: name → what it makes of the statistics of :func:`statistics`, each ``(removal, sample)`` of one direction
OF_OUTPUT: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]] = {
    "elements' squares (output_change)": lambda s: s["elements"],
    "square of the sum: all of Gauss-Newton": lambda s: s["sum"] ** 2,
    "tokens' squares": lambda s: s["tokens"],
    "tokens' gradient norm × step norm, squared": lambda s: s["norms"],
    "geometric mean of elements and sum": lambda s: np.sqrt(s["elements"]) * np.abs(s["sum"]),
    "square of the sum, steps clipped to the tensor's size": lambda s: s["clipped"] ** 2,
    "square of the sum, step between equal norms": lambda s: s["normed"] ** 2,
    "absolute sum": lambda s: np.abs(s["sum"]),
    "log(1 + square of the sum)": lambda s: np.log1p(s["sum"] ** 2),
    "saturating: square / (1 + square)": lambda s: s["sum"] ** 2 / (1 + s["sum"] ** 2),
}
OF_LOSS: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]] = {
    "root of the elements' squares (loss)": lambda s: np.sqrt(s["elements"]),
    "elements' squares": lambda s: s["elements"],
    "absolute sum": lambda s: np.abs(s["sum"]),
    "square of the sum": lambda s: s["sum"] ** 2,
    "sum": lambda s: s["sum"],
    "sum + square / 2": lambda s: s["sum"] + s["sum"] ** 2 / 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--directions", type=int, default=1, help="backwards per batch (default 1)")
    parser.add_argument("--loss", action="store_true", help="estimates of the change of a loss with labels")
    options = parser.parse_args()
    for name in options.subjects or list(SUBJECTS):
        compare(subject(name), options.directions, with_loss=options.loss)


def compare(of: Subject, num_directions: int, *, with_loss: bool) -> None:
    """Print the correlations of one subject."""
    loss = loss_of(of) if with_loss else None
    data, held_out = of.calibration, of.held_out[:NUM_HELD_OUT]
    if loss is not None:
        data = list(zip(data, of.calibration_targets, strict=True))
        held_out = list(zip(held_out, of.held_out_targets, strict=False))
    pruner = UniversalLayerPruner(of.model, example_inputs=of.calibration[0], criterion="magnitude")
    scene = ScoringContext(
        model=of.model,
        graph=pruner.graph,
        removals=pruner.removals,
        batches=read_calibration(data, of.model, loss),
        loss=loss,
    )
    harm = None if loss else Divergence(of.kind)
    truth = score_ablation(replace(scene, batches=read_calibration(held_out, of.model, loss)), harm).impacts
    found = statistics(scene, harm, num_directions)
    what = "a loss" if harm is None else harm.unit
    table = Table("estimate", title=f"{of.name}: {len(truth)} removals, {num_directions} direction(s), {what}")
    table.add_column("single", justify="right")
    for name, make in (OF_LOSS if loss else OF_OUTPUT).items():
        impacts = np.mean([make({key: each[d] for key, each in found.items()}) for d in range(num_directions)], axis=0)
        table.add_row(name, f"{rank(impacts.mean(1), truth):.3f}")
    console.print(table)


def loss_of(of: Subject) -> Loss:
    """A loss on pairs of inputs and labels."""

    def loss(model: nn.Module, item: Any) -> Tensor:
        inputs, targets = item
        out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        if of.name.startswith("digits"):
            return F.cross_entropy(out, targets)
        each = of.measure(out, inputs, targets)
        return -each.mean() if of.higher_is_better else each.mean()

    return loss


def statistics(scene: ScoringContext, harm: Divergence | None, num_directions: int) -> dict[str, np.ndarray]:
    """Products of gradients and changes, summed in several ways; ``(direction, removal, sample)`` each."""
    shade = gradient_sandbox(scene.model)
    shifts = [perturbations_of(scene.graph, removal)[0] for removal in scene.removals]
    tensors = Tensors(scene.graph, shifts)
    observer = Probe(shade, scene.graph, tensors.wanted)
    generator = torch.Generator().manual_seed(scene.seed)
    rows: dict[str, list[np.ndarray]] = {}
    for batch in scene.batches:
        ends: dict[int, Any] = {}
        kept: dict[int, list[tuple[Perturbation, Tensor, Tensor]]] = {}
        found: dict[tuple[Perturbation, str], list[Tensor]] = {}
        remember = tensors.seeing(lambda s, m, o, kept=kept: kept.setdefault(s.moved, []).append((s, m, o)))

        def see(value: int, tensor: Tensor, ends=ends, kept=kept, found=found, remember=remember, batch=batch) -> None:
            def multiply(gradient: Tensor) -> None:
                for shift, moved, other in kept[value]:
                    for key, each in summed(gradient, moved, shift, other, batch.num_samples).items():
                        found.setdefault((shift, key), []).append(each)

            if value in tensors.moved:
                ends[value] = torch.autograd.graph.get_gradient_edge(tensor)
                tensor.register_hook(multiply)
            remember(value, tensor)

        def use(out: Any, ends=ends, batch=batch) -> None:
            if harm is None:
                torch.autograd.grad([batch.num_samples * out], list(ends.values()), allow_unused=True)
            else:
                _pull(out, list(ends.values()), harm, batch, generator, num_directions)

        forward = None if scene.loss is None else partial(loss_on, scene.loss, batch=batch)
        observer.run(batch.inputs, lambda see=see: see, use=use, forward=forward)
        for key in {key for _, key in found}:
            made = [torch.stack(found[shift, key]).double().numpy() for shift in shifts]
            rows.setdefault(key, []).append(np.stack(made, axis=1))
    return {key: np.concatenate(each, axis=2) for key, each in rows.items()}


def summed(gradient: Tensor, moved: Tensor, shift: Perturbation, other: Tensor, num: int) -> dict[str, Tensor]:
    """What one gradient and one change give, a number for each sample."""
    new = moved - other if shift.lost else other
    part = gradient.detach() * (new - moved)

    def by_token(tensor: Tensor) -> Tensor:
        return {3: lambda: tensor.sum(-1), 4: lambda: tensor.sum(1).flatten(1)}.get(
            tensor.dim(), lambda: tensor.reshape(num, -1).sum(1, keepdim=True)
        )()

    steps, sizes, news = (by_token(t.square()).clamp_min(1e-12) for t in (new - moved, moved, new))
    tokens, gradients = by_token(part), by_token(gradient.square())
    toward = (by_token(gradient * new) * (sizes / news).sqrt()) - by_token(gradient * moved)
    return {
        "sum": part.reshape(num, -1).sum(1),
        "elements": part.square().reshape(num, -1).sum(1),
        "tokens": tokens.square().sum(1),
        "norms": (gradients * steps).sum(1),
        "clipped": (tokens / (steps / sizes).sqrt().clamp_min(1)).sum(1),
        "normed": toward.sum(1),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
