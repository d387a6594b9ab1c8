"""Predicted impact against the truth: rank correlation with what removals do to held-out outputs, alone and in sets.

The truth is ablation on held-out data. Predictions see calibration data only. ``--quick`` tries one small model,
``--cost`` measures instead what one pass costs in time and memory, also for larger models with random weights;
``--resumed`` what ablations by forwards that go on from stored outputs take, against whole forwards.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

for folder in ("benchmarks", "tests", "examples"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

# ruff: noqa: E402
from torchvision_ops import declare_missing_ops

declare_missing_ops()
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

from layerprune import UniversalLayerPruner
from layerprune.capture import Batch, Probe, Variants, read_calibration, real_sandbox
from layerprune.cost.layer_costs import macs_by_layer
from layerprune.edits import Edit
from layerprune.fidelity import Divergence, Kind
from layerprune.graph import Refusal
from layerprune.impact import FINAL, ImpactScores, ScoringContext, ablate, score_output_change
from layerprune.impact.ablation import score_ablation
from layerprune.impact.estimators.influence import score_influence
from layerprune.impact.estimators.magnitude import score_magnitude
from layerprune.impact.estimators.perturbations import Perturbation, Tensors, perturbations_of
from layerprune.impact.shortlist import score_shortlist
from layerprune.replay import ReusePolicy
from layerprune.select.conflicts import conflicts
from live_bytes import peak_of
from subjects import SUBJECTS, Subject, subject

NUM_SETS = 200
SET_SIZES = range(2, 7)
NUM_HELD_OUT = 6  # batches
NUM_ROUNDS = 9  # of which costs are medians
COLUMNS = ("single", "sets: sum", "sets: sum of roots", "sets: with pairs")
console = Console()


@dataclass(frozen=True)
class Prediction:
    """What a criterion said: of each removal, and how long it took in plain forwards over the same data."""

    name: str
    evidence: ImpactScores
    cost: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "subjects",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(SUBJECTS)}; default: all. With --cost also {', '.join(LARGER)}",
    )
    parser.add_argument("--sets", type=int, default=NUM_SETS, help=f"random sets per subject (default {NUM_SETS})")
    parser.add_argument("--quick", action="store_true", help="one small model, 20 sets")
    parser.add_argument("--cost", action="store_true", help="time and memory of one pass, instead of correlations")
    parser.add_argument("--resumed", action="store_true", help="ablations that go on from outputs against whole ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    names = ["digits_resnet"] if options.quick else options.subjects
    if options.resumed:
        found = resumed(names or list(SUBJECTS))
    elif options.cost:
        found = contract(names or [*SUBJECTS, *LARGER])
    else:
        names = names or list(SUBJECTS)
        found = {name: measure(subject(name), 20 if options.quick else options.sets) for name in names}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(of: Subject, num_sets: int) -> dict[str, dict[str, float]]:
    """Print and return the correlations of one subject."""
    calibration = read_calibration(of.calibration, of.model)
    held_out = read_calibration(of.held_out[:NUM_HELD_OUT], of.model)
    pruner = UniversalLayerPruner(of.model, example_inputs=of.calibration[0])
    harm = Divergence(of.kind)
    scene = ScoringContext(model=of.model, graph=pruner.graph, removals=pruner.removals, batches=calibration)
    truth = score_ablation(replace(scene, batches=held_out), harm).impacts
    sets, edits = joint_sets(pruner, num_sets)
    together = ablate(replace(scene, batches=held_out), edits, harm).impacts
    table = Table("criterion", title=f"{of.name}: {len(truth)} removals, {len(sets)} sets of 2 to 6, {harm.unit}")
    for column in (*COLUMNS, "cost, forwards"):
        table.add_column(column, justify="right")
    figures: dict[str, dict[str, float]] = {}
    for prediction in predictions(scene, harm):
        impacts = prediction.evidence.impacts
        row = {"single": rank(impacts, truth)}
        row["sets: sum"] = rank([sum(impacts[i] for i in some) for some in sets], together)
        row["sets: sum of roots"] = rank([sum(abs(impacts[i]) ** 0.5 for i in some) for some in sets], together)
        if prediction.evidence.pairs is not None:
            row["sets: with pairs"] = rank([quadratic(prediction.evidence, some) for some in sets], together)
        row["cost, forwards"] = prediction.cost
        figures[prediction.name] = row
        cells = [f"{row[column]:.3f}" if column in row else "" for column in COLUMNS]
        table.add_row(prediction.name, *cells, f"{prediction.cost:.1f}")
    for num in (1, FINAL):
        name = f"the set itself made, {num} of {len(calibration)} batches"
        made_here = ablate(replace(scene, batches=calibration[:num]), edits, harm).impacts
        figures[name] = {"sets: sum": rank(made_here, together), "cost, forwards": num / len(calibration)}
        table.add_row(name, "", f"{figures[name]['sets: sum']:.3f}", "", "", f"{num / len(calibration):.2f} a set")
    console.print(table)
    return figures


def predictions(scene: ScoringContext, harm: Divergence) -> list[Prediction]:
    """Every criterion on the same calibration data, and how many plain forwards each takes."""
    one = replace(scene, batches=scene.batches[:1])
    plain = timed(lambda: ablate(scene, [], harm))[1]
    criteria: dict[str, Callable[[], ImpactScores]] = {
        "output_change": lambda: score_output_change(scene, harm),
        "output_change, 4 directions": lambda: score_output_change(scene, harm, num_directions=4),
        "influence": lambda: score_influence(scene),
        "cosine Block Influence": lambda: score_block_influence(scene),
        "magnitude": lambda: score_magnitude(scene),
        "shortlist": lambda: score_shortlist(scene, harm),
        "ablation, one batch": lambda: score_ablation(one, harm),
        "ablation": lambda: score_ablation(scene, harm),
    }
    return [made(name, run, plain) for name, run in criteria.items()]


def score_block_influence(scene: ScoringContext) -> ImpactScores:
    """ShortGPT's measure (arXiv 2403.03853, section 3.2) of any removal: 1 - cosine, by tokens, pixels or samples."""
    shade = real_sandbox(scene.model)
    shifts = [perturbations_of(scene.graph, removal)[0] for removal in scene.removals]
    tensors = Tensors(scene.graph, shifts)
    observer = Probe(shade, scene.graph, tensors.wanted)
    rows: list[list[float]] = []
    for batch in scene.batches:
        found: dict[Perturbation, float] = {}

        def compare(
            shift: Perturbation, moved: torch.Tensor, other: torch.Tensor, found: dict[Perturbation, float] = found
        ) -> None:
            assert shift.place is None, "no subject has a concat"
            new = moved - other if shift.lost else other
            cosines = torch.cosine_similarity(moved, new, dim=1 if moved.dim() == 4 else -1)
            found[shift] = 1 - float(cosines.mean())

        observer.run(batch.inputs, lambda compare=compare: tensors.seeing(compare))
        rows.append([found[shift] for shift in shifts])
    change = np.array(rows)
    return ImpactScores(change=change, size=np.ones_like(change), power=1.0, unit="1 - cosine")


def made(name: str, run: Callable[[], ImpactScores], plain: float) -> Prediction:
    evidence, seconds = timed(run)
    return Prediction(name, evidence, seconds / plain)


def timed(run: Callable[[], ImpactScores]) -> tuple[ImpactScores, float]:
    """What a call returns, and the CPU seconds that it took."""
    start = time.process_time()
    return run(), time.process_time() - start


def contract(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Print and return what one pass of the criteria costs, for subjects and larger models of random weights."""
    table = Table("model", title="one pass for all removals, CPU time: median of the ratios of nine rounds")
    columns = (
        *("influence / forward", "a later pass / forward"),
        *("output_change / forward + backward", "a later pass / forward + backward"),
        *("memory: influence", "output_change"),
    )
    for column in columns:
        table.add_column(column, justify="right")
    figures: dict[str, dict[str, float]] = {}
    for name in names:
        model, batches, kind = LARGER[name]() if name in LARGER else of_subject(subject(name))
        figures[name] = dict(
            zip(columns, costs(model, read_calibration(batches, model), Divergence(kind)), strict=True)
        )
        table.add_row(name, *[f"{figures[name][column]:.2f}" for column in columns])
    console.print(table)
    console.print(
        "memory: the most alive at a time, the weights included, by that of the weights and of what a forward keeps "
        "for its backward, on one batch"
    )
    return figures


def costs(model: torch.nn.Module, batches: Sequence[Batch], harm: Divergence) -> tuple[float, ...]:
    """Ratios of time and of memory, as :func:`contract` prints them.

    A first pass finds out, and a later one knows, what real forwards do where the layer graph says otherwise.
    """
    pruner = UniversalLayerPruner(model, example_inputs=batches[0].inputs, criterion="magnitude")
    scene = ScoringContext(model=model, graph=pruner.graph, removals=pruner.removals, batches=batches)
    one = replace(scene, batches=batches[:1])

    def forward(scene: ScoringContext = scene) -> None:
        with torch.no_grad():
            for batch in scene.batches:
                model(*batch.inputs.args, **batch.inputs.kwargs)

    def kept() -> list[torch.Tensor]:
        batch = one.batches[0]
        return harm.outputs(model(*batch.inputs.args, **batch.inputs.kwargs))

    def both() -> None:
        for batch in scene.batches:
            outputs = harm.outputs(model(*batch.inputs.args, **batch.inputs.kwargs))
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            model.zero_grad()

    criteria = (score_influence, lambda scene: score_output_change(scene, harm))
    runs = [forward, both]
    for criterion in criteria:
        runs += [lambda run=criterion: run(replace(scene, variants=Variants())), lambda run=criterion: run(scene)]
    numbers = track(range(NUM_ROUNDS + 1), "rounds", console=console, transient=True)
    rounds = np.array([[seconds_of(run) for run in runs] for _ in numbers])[1:]
    plain = np.median(rounds[:, 0])
    ratios = np.median(rounds[:, 2:] / rounds[:, [0, 0, 1, 1]], axis=0)  # of one round: others may be busier
    weights = sum(tensor.nbytes for tensor in model.parameters())
    most = weights + peak_of(kept)
    peaks = [peak_of(lambda run=run: run(replace(one, variants=Variants()))) for run in criteria]
    console.print(
        f"{len(scene.removals)} removals, {plain / len(batches) * 1e3:.0f} ms per forward; MB: weights "
        f"{weights / 1e6:.1f}, a forward's activations {(most - weights) / 1e6:.1f}, "
        f"a pass {peaks[0] / 1e6:.1f} and {peaks[1] / 1e6:.1f}"
    )
    return (*ratios, *((weights + peak) / most for peak in peaks))


def resumed(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Print and return what ablation takes when it goes on from outputs of the original's, against whole forwards."""
    columns = ("CPU time, all batches", "one batch", "work", "memory, whole", "memory, resumed")
    table = Table("model", "removals", title="ablations that go on from stored outputs, against whole forwards")
    for column in columns:
        table.add_column(column, justify="right")
    figures: dict[str, dict[str, float]] = {}
    for name in names:
        of = subject(name)
        batches = read_calibration(of.calibration, of.model)
        pruner = UniversalLayerPruner(
            of.model, example_inputs=batches[0].inputs, criterion="magnitude", projections=False
        )
        scene = ScoringContext(model=of.model, graph=pruner.graph, removals=pruner.removals, batches=batches)
        figures[name] = dict(zip(columns, against_whole(scene, Divergence(of.kind)), strict=True))
        table.add_row(name, str(len(scene.removals)), *[f"{figure:.2f}" for figure in figures[name].values()])
    console.print(table)
    console.print(
        "work: multiply-accumulates. memory: the most alive at a time on one batch, by what a forward keeps for its "
        "backward, weights in neither"
    )
    return figures


def against_whole(scene: ScoringContext, harm: Divergence) -> tuple[float, float, float, float, float]:
    """Ratios of time, work and memory, as :func:`resumed` prints them; impacts must be the same to the bit."""

    def whole(scene: ScoringContext) -> ImpactScores:
        return score_ablation(replace(scene, reuse_policy=ReusePolicy(doubt="whole forwards are measured")), harm)

    def going_on(scene: ScoringContext) -> ImpactScores:
        return score_ablation(replace(scene, reuse_policy=ReusePolicy()), harm)

    ratios: list[float] = []
    for some in (scene, replace(scene, batches=scene.batches[:1])):
        rounds = 1 if some is scene else 3
        (old, before), (new, now) = (
            min((timed(lambda run=run, some=some: run(some)) for _ in range(rounds)), key=lambda pair: pair[1])
            for run in (whole, going_on)
        )
        assert (old.change == new.change).all(), "not the same bits"
        ratios.append(now / before)
    one, reuse_policy = replace(scene, batches=scene.batches[:1]), ReusePolicy(is_trusted=True)
    score_ablation(replace(one, reuse_policy=reuse_policy), harm)
    macs = macs_by_layer(scene.model, scene.graph, one.batches[0].inputs)
    handed = sum(n * macs.get(i, 0) for f, n in reuse_policy.handed_on.items() for i in scene.graph.layers_inside[f])
    work = 1 - handed / one.batches[0].num_samples / sum(macs.values()) / (1 + len(scene.removals))

    def kept() -> list[torch.Tensor]:
        batch = one.batches[0]
        return harm.outputs(scene.model(*batch.inputs.args, **batch.inputs.kwargs))

    peaks = [peak_of(lambda run=run: run(one)) / peak_of(kept) for run in (whole, going_on)]
    return (*ratios, work, *peaks)


def seconds_of(run: Callable[[], object]) -> float:
    """The CPU seconds that a call takes."""
    start = time.process_time()
    run()
    return time.process_time() - start


def of_subject(of: Subject) -> tuple[torch.nn.Module, list[Any], Kind]:
    return of.model, of.calibration, of.kind


def at_once(name: str) -> tuple[torch.nn.Module, list[Any], Kind]:
    """A subject of images with all of its calibration data as one batch."""
    of = subject(name)
    return of.model, [torch.cat(of.calibration)], of.kind


def llama() -> tuple[torch.nn.Module, list[Any], Kind]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, use_cache=False
    )
    draw = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(2000, (4, 128), generator=draw)} for _ in range(2)]
    return LlamaForCausalLM(config).eval(), batches, "distribution"


def resnet50() -> tuple[torch.nn.Module, list[Any], Kind]:
    from torchvision.models import resnet50

    draw = torch.Generator().manual_seed(0)
    return resnet50().eval(), [torch.randn(4, 3, 224, 224, generator=draw) for _ in range(2)], "distribution"


def resnet18() -> tuple[torch.nn.Module, list[Any], Kind]:
    from torchvision.models import resnet18

    draw = torch.Generator().manual_seed(0)
    return resnet18().eval(), [torch.randn(32, 3, 128, 128, generator=draw) for _ in range(2)], "distribution"


def vit_small() -> tuple[torch.nn.Module, list[Any], Kind]:
    from torchvision.models import VisionTransformer

    draw = torch.Generator().manual_seed(0)
    model = VisionTransformer(224, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536)
    return model.eval(), [torch.randn(8, 3, 224, 224, generator=draw) for _ in range(2)], "distribution"


LARGER: dict[str, Callable[[], tuple[torch.nn.Module, list[Any], Kind]]] = {
    "llama_768": llama,
    "resnet50_224": resnet50,
    "resnet18_128": resnet18,
    "vit_small_224": vit_small,
    "digits_resnet_at_once": lambda: at_once("digits_resnet"),
    "digits_vit_at_once": lambda: at_once("digits_vit"),
}


def joint_sets(pruner: UniversalLayerPruner, num_sets: int) -> tuple[list[tuple[int, ...]], list[Sequence[Edit]]]:
    """Random sets of removals that hold together, and the edits that make each."""
    draw = random.Random(0)
    excluded = set(conflicts(pruner.graph, pruner.removals))
    sets: list[tuple[int, ...]] = []
    edits: list[Sequence[Edit]] = []
    places = range(len(pruner.removals))
    for _ in track(range(20 * num_sets), "drawing sets", console=console, transient=True):
        some = tuple(sorted(draw.sample(places, min(draw.choice(SET_SIZES), len(places)))))
        if len(sets) == num_sets:
            break
        if some in sets or any((a, b) in excluded for a in some for b in some):
            continue
        try:
            edits.append(pruner._planner.joints.proven(some).edits)
        except Refusal:
            continue
        sets.append(some)
    return sets, edits


def quadratic(evidence: ImpactScores, some: tuple[int, ...]) -> float:
    """The estimate of a set by squares and products: ``zᵀQz``."""
    assert evidence.pairs is not None
    return float(sum(evidence.impacts[i] for i in some) + evidence.pairs[np.ix_(some, some)].sum())


def rank(predicted: Sequence[float] | np.ndarray, truth: np.ndarray) -> float:
    return float(spearmanr(predicted, truth).statistic)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
