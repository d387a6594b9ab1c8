"""Planning time and memory for a model of Llama-3-8B's shape, on the meta device: no weights, no GPU.

A fresh process plans the model, so that its peak memory is its own. ``--layers 2`` tries it small.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

NUM_LAYERS = 32
SEQUENCE_LENGTH = 128
MAX_PARAM_REDUCTION = 0.25
TARGET_SECONDS = 5.0
TARGET_GIGABYTES = 0.5
console = Console()


@dataclass(frozen=True)
class Measurement:
    """What one process measured; ``planning_s`` is all that the constructor does, ``selection_s`` one budget."""

    num_params: int
    num_groups: int
    num_safe_groups: int
    num_removals: int
    planning_s: float
    selection_s: float
    peak_before_bytes: int
    peak_growth_bytes: int

    @property
    def total_s(self) -> float:
        return self.planning_s + self.selection_s


def measure(num_layers: int) -> Measurement:
    """Build the model, then plan it; everything imported is imported before the clock starts."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from torchvision_ops import declare_missing_ops

    declare_missing_ops()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from layerprune import UniversalLayerPruner

    with torch.device("meta"):
        model = LlamaForCausalLM(llama_3_8b(LlamaConfig, num_layers)).eval()
        example = {"input_ids": torch.zeros(1, SEQUENCE_LENGTH, dtype=torch.long)}
    num_params = sum(parameter.numel() for parameter in model.parameters())
    before = peak_bytes()

    start = time.perf_counter()
    pruner = UniversalLayerPruner(model, example_inputs=example)
    groups, removals = pruner.groups, pruner.removals
    planned = time.perf_counter()
    pruner.plan(max_param_reduction=MAX_PARAM_REDUCTION)
    selected = time.perf_counter()
    return Measurement(
        num_params=num_params,
        num_groups=len(groups),
        num_safe_groups=sum(group.can_remove for group in groups),
        num_removals=len(removals),
        planning_s=planned - start,
        selection_s=selected - planned,
        peak_before_bytes=before,
        peak_growth_bytes=peak_bytes() - before,
    )


def llama_3_8b(config_class: type, num_layers: int) -> object:
    return config_class(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    )


def peak_bytes() -> int:
    """The most memory this process has held; Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure_in_fresh_process(num_layers: int) -> Measurement:
    command = [sys.executable, __file__, "--in-this-process", "--layers", str(num_layers)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Measurement(**json.loads(answer.stdout.splitlines()[-1]))


def table_of(measured: Measurement) -> Table:
    growth = measured.peak_growth_bytes / 1e9
    table = Table("", title="Llama-3-8B's shape on the meta device")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    table.add_column("met")
    table.add_row("parameters", f"{measured.num_params:,}")
    table.add_row("groups, safe of all", f"{measured.num_safe_groups} of {measured.num_groups}")
    table.add_row("removals", f"{measured.num_removals:,}")
    table.add_row("capture, groups, removals, proof", f"{measured.planning_s:.2f} s")
    table.add_row(f"selection of {MAX_PARAM_REDUCTION:.0%}", f"{measured.selection_s:.2f} s")
    met = yes_or_no(measured.total_s <= TARGET_SECONDS)
    table.add_row("planning in all", f"{measured.total_s:.2f} s", f"≤ {TARGET_SECONDS:g} s", met)
    met = yes_or_no(growth <= TARGET_GIGABYTES)
    table.add_row("growth of peak memory", f"{growth:.2f} GB", f"≤ {TARGET_GIGABYTES:g} GB", met)
    return table


def yes_or_no(met: bool) -> str:
    return "[green]yes[/]" if met else "[red]no[/]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=NUM_LAYERS, help="decoder layers (default 32, the real shape)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        print(json.dumps(asdict(measure(options.layers))))
        return
    measured = measure_in_fresh_process(options.layers)
    console.print(table_of(measured))
    if options.json:
        options.json.write_text(json.dumps(asdict(measured), indent=2) + "\n")


if __name__ == "__main__":
    main()
