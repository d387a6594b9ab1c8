"""Planning time of layerprune against Torch-Pruning and against one forward, on ten torchvision models.

Only the ratios travel from machine to machine: every contender runs in the same process, interleaved.
For instance ``python benchmarks/planning.py --models resnet18 vit_b_16 --repeats 3 --json planning.json``.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch_pruning
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from figures import add_keep, keep
from layerprune import UniversalLayerPruner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from torchvision_ops import declare_missing_ops

MODELS = (
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "densenet121",
    "googlenet",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "regnet_y_400mf",
    "vit_b_16",
)
NUM_CLASSES = 1000
PRUNING_RATIO = 0.5
console = Console()


@dataclass(frozen=True)
class Outcome:
    """The median seconds of one contender on one model, or why it has none."""

    seconds: float | None = None
    failure: str | None = None

    def __str__(self) -> str:
        return f"failed: {self.failure}" if self.seconds is None else f"{1000 * self.seconds:,.0f}"


@dataclass(frozen=True)
class Row:
    """One model: planning with layerprune, a step of Torch-Pruning, one eval forward at batch 1."""

    model: str
    layerprune: Outcome
    torch_pruning: Outcome
    forward: Outcome

    @property
    def to_torch_pruning(self) -> float | None:
        return ratio(self.layerprune, self.torch_pruning)

    @property
    def to_forward(self) -> float | None:
        return ratio(self.layerprune, self.forward)


def ratio(ours: Outcome, other: Outcome) -> float | None:
    return ours.seconds / other.seconds if ours.seconds and other.seconds else None


def plan_with_layerprune(model: nn.Module, image: Tensor) -> None:
    """Capture, groups, removals, and the proof of every safe group."""
    assert UniversalLayerPruner(model, example_inputs=image).transform_layers


def step_with_torch_pruning(model: nn.Module, image: Tensor) -> None:
    """Dependency graph, importance and one pruning step, as in Torch-Pruning's README."""
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == NUM_CLASSES]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example_inputs=image,
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=PRUNING_RATIO,
        ignored_layers=heads,
    )
    pruner.step()


def forward_once(model: nn.Module, image: Tensor) -> None:
    with torch.no_grad():
        model(image)


def seconds_of(run: Callable[[nn.Module, Tensor], None], model: nn.Module, image: Tensor) -> float:
    gc.collect()
    start = time.perf_counter()
    run(model, image)
    return time.perf_counter() - start


def compare(name: str, repeats: int) -> Row:
    """Time the contenders in turn, after one warm-up of each."""
    model = build(name)
    image = torch.randn(1, 3, 224, 224)
    contenders: dict[str, Callable[[nn.Module, Tensor], None]] = {
        "layerprune": plan_with_layerprune,
        "torch_pruning": step_with_torch_pruning,
        "forward": forward_once,
    }
    seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
    failures: dict[str, str] = {}
    for repeat in range(repeats + 1):
        for contender, run in contenders.items():
            if contender in failures:
                continue
            subject = copy.deepcopy(model) if contender == "torch_pruning" else model  # it prunes what it is given
            try:
                elapsed = seconds_of(run, subject, image)
            except Exception as error:  # a contender that raises is a result, and is shown as one
                failures[contender] = short_reason(error)
                continue
            if repeat > 0:
                seconds[contender].append(elapsed)
    outcomes = {
        contender: Outcome(failure=failures[contender])
        if contender in failures
        else Outcome(statistics.median(seconds[contender]))
        for contender in contenders
    }
    return Row(name, **outcomes)


def build(name: str) -> nn.Module:
    declare_missing_ops()
    import torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # googlenet: a future change of its default initialisation
        return torchvision.models.get_model(name, weights=None).eval()


def short_reason(error: Exception, width: int = 60) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= width else text[: width - 1] + "…"


def table_of(rows: Sequence[Row]) -> Table:
    table = Table(title="Planning time, ms (medians)")
    table.add_column("model", no_wrap=True)
    for heading in ("layerprune", "Torch-Pruning", "ratio", "one forward", "ratio"):
        table.add_column(heading, justify="right")
    for row in rows:
        against_peer, against_forward = as_ratio(row.to_torch_pruning), as_ratio(row.to_forward)
        cells = (str(row.layerprune), str(row.torch_pruning), against_peer, str(row.forward), against_forward)
        table.add_row(row.model, *cells)
    table.add_section()
    medians = [as_ratio(median_of([row.to_torch_pruning for row in rows]))]
    medians.append(as_ratio(median_of([row.to_forward for row in rows])))
    table.add_row("median ratio", "", "", medians[0], "", medians[1], style="bold")
    return table


def median_of(ratios: Sequence[float | None]) -> float | None:
    known = [value for value in ratios if value is not None]
    return statistics.median(known) if known else None


def as_ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def as_json(rows: Sequence[Row], repeats: int) -> str:
    record = {
        "torch": torch.__version__,
        "torch_pruning": version("torch-pruning"),
        "num_threads": torch.get_num_threads(),
        "repeats": repeats,
        "median_ratio_to_torch_pruning": median_of([row.to_torch_pruning for row in rows]),
        "median_ratio_to_forward": median_of([row.to_forward for row in rows]),
        "models": [
            {**asdict(row), "ratio_to_torch_pruning": row.to_torch_pruning, "ratio_to_forward": row.to_forward}
            for row in rows
        ],
    }
    return json.dumps(record, indent=2) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each contender (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    add_keep(parser)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch_pruning")  # its defaults for unwrapped parameters
    torch.manual_seed(0)
    rows = [compare(name, options.repeats) for name in track(options.models, "planning", console=console)]
    console.print(table_of(rows))
    threads = torch.get_num_threads()
    console.print(f"{options.repeats} interleaved repeats, {threads} threads, torch {torch.__version__}")
    if options.json:
        options.json.write_text(as_json(rows, options.repeats))
    if options.keep:
        keep("planning", "torchvision", table_of(rows), f"ms, medians of {options.repeats} runs in turn")


if __name__ == "__main__":
    main()
